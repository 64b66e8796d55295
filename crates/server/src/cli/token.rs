//! `bywash token`: the addresses that one stream is published or played at, tokens included.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bywash_media::StreamKey;
use clap::Args;

use super::{Source, app, now};
use crate::config::{self, App, Config};
use crate::token::{self, Privilege};

/// Prints where a stream is published or played, with its token
///
/// The WHIP or WHEP address with its bearer token, and the RTMP address.
#[derive(Args)]
#[command(after_help = "Example: bywash token rtc01 --ttl 24h")]
pub struct Token {
    /// The stream's id
    stream: String,
    /// For playing, not for publishing
    #[arg(long)]
    play: bool,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = config::duration)]
    ttl: Duration,
    /// The userId that callbacks will name
    #[arg(long, value_name = "ID", default_value = "bywash")]
    user: String,
    /// The app, where there are several
    #[arg(long, value_name = "ID")]
    app: Option<u32>,
    #[command(flatten)]
    source: Source,
}

/// Prints the addresses.
pub fn token(it: Token) -> anyhow::Result<ExitCode> {
    let config = it.source.load()?;
    let app = app(&config, it.app)?;
    StreamKey::published(app.id, &it.stream)
        .context("not a stream id: use 1 to 256 letters, digits, and `-`, `_`, `.`")?;
    anyhow::ensure!(it.user.len() <= token::USER_ID_MAX, "--user: a userId has at most {} bytes", token::USER_ID_MAX);
    anyhow::ensure!(!it.ttl.is_zero(), "--ttl: a token is valid for a second at least");
    let expired = (now() + it.ttl).as_secs() as i64;
    let nonce = now().as_millis().to_string();
    print!("{}", describe(&config, &app, &it, expired, &nonce));
    Ok(ExitCode::SUCCESS)
}

fn describe(config: &Config, app: &App, it: &Token, expired: i64, nonce: &str) -> String {
    let (key, privilege, door) = match it.play {
        false => (&app.publish_key, Privilege::Publish, "whip"),
        true => (&app.play_key, Privilege::Play, "whep"),
    };
    let user: String = form_urlencoded::byte_serialize(it.user.as_bytes()).collect();
    let (mut query, mut rtmp_query, mut bearer) = (format!("userId={user}"), format!("userId={user}"), String::new());
    // Without a key the server asks for no token.
    if !key.expose().is_empty() {
        let token = token::make(app.id, &it.stream, expired, nonce, privilege, key);
        query += &format!("&zgVer=v1&zgExpired={expired}&zgNonce={nonce}");
        rtmp_query = format!("{query}&zgToken={token}");
        bearer = format!("token  {token}   (Authorization: Bearer …)\n");
    }
    let (id, stream, rtmp) = (app.id, &it.stream, config.rtmp_base(config.rtmp.listen));
    let url = format!("{}/{door}/v1/{id}/{stream}?{query}", config.http.public_url);
    let obs = if it.play {
        String::new()
    } else {
        format!("OBS    server {rtmp}/{id}\n       key    {stream}?{rtmp_query}\n")
    };
    format!("{}   {url}\n{bearer}RTMP   {rtmp}/{id}/{stream}?{rtmp_query}\n{obs}", door.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::super::Flags;
    use super::*;
    use crate::secret::Secret;

    fn check(play: bool, key: &str, want: &str) {
        let config = Config {
            rtmp: config::Rtmp { listen: ([0, 0, 0, 0], 1935).into(), max_connections: 1 },
            ..Config::default()
        };
        let app = App { id: 7, publish_key: Secret::new(key), play_key: Secret::new(key), ..App::default() };
        let source = Source { config: None, flags: Flags { data_dir: None, set: Vec::new() } };
        let it = Token { stream: "s".into(), play, ttl: Duration::ZERO, user: "a b".into(), app: None, source };
        assert_eq!(describe(&config, &app, &it, 9, "n"), want);
    }

    #[test]
    fn the_addresses_carry_the_token_only_where_there_is_a_key() {
        check(
            true,
            "",
            "WHEP   http://127.0.0.1:8080/whep/v1/7/s?userId=a+b\nRTMP   rtmp://127.0.0.1:1935/7/s?userId=a+b\n",
        );
        let token = token::make(7, "s", 9, "n", Privilege::Publish, &Secret::new("k"));
        let query = "userId=a+b&zgVer=v1&zgExpired=9&zgNonce=n";
        check(
            false,
            "k",
            &format!(
                "WHIP   http://127.0.0.1:8080/whip/v1/7/s?{query}\ntoken  {token}   (Authorization: Bearer …)\n\
                 RTMP   rtmp://127.0.0.1:1935/7/s?{query}&zgToken={token}\nOBS    server rtmp://127.0.0.1:1935/7\n       key    s?{query}&zgToken={token}\n"
            ),
        );
    }
}
