//! ZEGO's publish and play tokens (WHIP), which RTMP carries in the query.
//!
//! A token is the lower-case hex of SHA-256 over `appid=…&streamId=…&zgExpired=…&zgNonce=…&zgPrivilege=…&key=…`. The privilege
//! is not in the address: the server knows what is asked for. `userId` and `zgVer` are not signed.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{App, PublishAuth};
use crate::secret::Secret;

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Playing alone: 0.
    Play = 0,
    /// Publishing and playing: 1.
    Publish = 1,
}

/// What a client wants to do with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To write it.
    Publish,
    /// To read it.
    Play,
}

/// Why a client may not publish or play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("no token was given")]
    Missing,
    #[error("the token's parameters are malformed: {0}")]
    Malformed(&'static str),
    #[error("the token does not fit the app, the stream or the parameters")]
    Wrong,
    #[error("the token has expired")]
    Expired,
}

/// The token of an `Authorization` header, which stands for `zgToken`.
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The token for `stream`, whose id is as it is published, until `expired` (Unix seconds).
pub fn make(app: u32, stream: &str, expired: i64, nonce: &str, privilege: Privilege, key: &Secret) -> String {
    digest(app, stream, &expired.to_string(), nonce, privilege, key)
}

/// Whether a client may do `purpose` with `stream` at `now` (Unix seconds); gives its `userId`, which may be empty and which no
/// token vouches for. `params` are the address's: `userId`, `zgVer`, `zgExpired`, `zgNonce`, `zgToken`. Publishing is open unless
/// the app asks for tokens; playing is open as well if the app has no key for it.
pub fn verify(app: &App, stream: &str, params: &[(String, String)], purpose: Purpose, now: i64) -> Result<String, Denied> {
    let param = |name: &str| params.iter().find(|(it, _)| it == name).map_or("", |(_, value)| value.as_str());
    let user = param("userId");
    if user.len() > USER_ID_MAX || user.chars().any(char::is_control) {
        return Err(Denied::Malformed("userId"));
    }
    if app.publish_auth == PublishAuth::None || (purpose == Purpose::Play && app.play_key.expose().is_empty()) {
        return Ok(user.into());
    }
    let (expired, nonce, token) = (param("zgExpired"), param("zgNonce"), param("zgToken"));
    if token.is_empty() {
        return Err(Denied::Missing);
    }
    if param("zgVer") != "v1" {
        return Err(Denied::Malformed("zgVer is not v1"));
    }
    if nonce.is_empty() || nonce.len() > NONCE_MAX {
        return Err(Denied::Malformed("zgNonce is not of 1 to 15 bytes"));
    }
    let digits = expired.bytes().all(|c| c.is_ascii_digit());
    let until = expired.parse::<i64>().ok().filter(|_| digits).ok_or(Denied::Malformed("zgExpired is not a time in seconds"))?;
    let keys: &[(Privilege, &Secret)] = match purpose {
        Purpose::Publish => &[(Privilege::Publish, &app.publish_key)],
        Purpose::Play => &[(Privilege::Play, &app.play_key), (Privilege::Publish, &app.play_key), (Privilege::Publish, &app.publish_key)],
    };
    // An app without a key must not be open to whoever signs with an empty one.
    let fits = keys.iter().filter(|(_, key)| !key.expose().is_empty()).any(|(privilege, key)| {
        let want = digest(app.id, stream, expired, nonce, *privilege, key);
        bool::from(want.as_bytes().ct_eq(token.as_bytes()))
    });
    match fits {
        false => Err(Denied::Wrong),
        true if now > until => Err(Denied::Expired),
        true => Ok(user.into()),
    }
}

/// ZEGO's limits, in bytes.
const NONCE_MAX: usize = 15;
const USER_ID_MAX: usize = 64;

fn digest(app: u32, stream: &str, expired: &str, nonce: &str, privilege: Privilege, key: &Secret) -> String {
    let privilege = privilege as u8;
    let key = key.expose();
    let text = format!("appid={app}&streamId={stream}&zgExpired={expired}&zgNonce={nonce}&zgPrivilege={privilege}&key={key}");
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const TOKEN: &str = "0f43c0018c039a74545971e58bc3f217bdd72c7ebf8948b5d9395ceebf097be3";
    const EXPIRED: i64 = 1_700_086_400;

    fn app(publish_key: &str, play_key: &str) -> App {
        let (publish_key, play_key) = (Secret::new(publish_key), Secret::new(play_key));
        App { id: 1_234_567_890, publish_auth: PublishAuth::Token, publish_key, play_key, ..App::default() }
    }

    fn ask(app: &App, stream: &str, query: &str, purpose: Purpose, now: i64) -> Result<String, Denied> {
        let params: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        verify(app, stream, &params, purpose, now)
    }

    fn check(app: &App, query: &str, purpose: Purpose, now: i64, want: Result<&str, Denied>) {
        assert_eq!(ask(app, "stream001", query, purpose, now), want.map(str::to_owned), "{query}");
    }

    #[test]
    fn zegos_vector_is_reproduced() {
        assert_eq!(make(1_234_567_890, "stream001", EXPIRED, "1700000000000", Privilege::Publish, &Secret::new(KEY)), TOKEN);
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_for_what_it_was_made() {
        let app = app(KEY, "");
        let query = |token: &str| format!("userId=u&zgVer=v1&zgExpired={EXPIRED}&zgNonce=1700000000000&zgToken={token}");
        check(&app, &query(TOKEN), Purpose::Publish, EXPIRED, Ok("u"));
        check(&app, &query(TOKEN), Purpose::Publish, EXPIRED + 1, Err(Denied::Expired));
        check(&app, &query(&TOKEN.to_uppercase()), Purpose::Publish, EXPIRED, Err(Denied::Wrong));
        check(&app, &query(""), Purpose::Publish, EXPIRED, Err(Denied::Missing));
        check(&app, "", Purpose::Publish, EXPIRED, Err(Denied::Missing));
        check(&app, &query(TOKEN).replace("zgExpired=1", "zgExpired=2"), Purpose::Publish, EXPIRED, Err(Denied::Wrong));
        check(&app, &query(TOKEN).replace("v1", "v2"), Purpose::Publish, EXPIRED, Err(Denied::Malformed("zgVer is not v1")));
        check(&app, &query(TOKEN).replace("1700000000000", "1234567890123456"), Purpose::Publish, 0, Err(Denied::Malformed("zgNonce is not of 1 to 15 bytes")));
        check(&app, &query(TOKEN).replace("zgExpired=", "zgExpired=-"), Purpose::Publish, 0, Err(Denied::Malformed("zgExpired is not a time in seconds")));
        check(&App { id: 1, ..app.clone() }, &query(TOKEN), Purpose::Publish, EXPIRED, Err(Denied::Wrong));
        assert_eq!(ask(&app, "stream002", &query(TOKEN), Purpose::Publish, 0), Err(Denied::Wrong));
    }

    #[test]
    fn a_player_may_present_a_play_token_or_a_publish_token() {
        let app = app(KEY, "play");
        let query = |privilege, key: &str| format!("zgVer=v1&zgExpired=9&zgNonce=n&zgToken={}", make(app.id, "stream001", 9, "n", privilege, &Secret::new(key)));
        check(&app, &query(Privilege::Play, "play"), Purpose::Play, 0, Ok(""));
        check(&app, &query(Privilege::Publish, "play"), Purpose::Play, 0, Ok(""));
        check(&app, &query(Privilege::Publish, KEY), Purpose::Play, 0, Ok(""));
        check(&app, &query(Privilege::Play, KEY), Purpose::Play, 0, Err(Denied::Wrong));
        check(&app, &query(Privilege::Play, "play"), Purpose::Publish, 0, Err(Denied::Wrong));
        check(&app, &query(Privilege::Publish, "play"), Purpose::Publish, 0, Err(Denied::Wrong));
    }

    #[test]
    fn what_needs_no_token_is_open_and_an_empty_key_opens_nothing() {
        check(&App { publish_auth: PublishAuth::None, ..app(KEY, KEY) }, "userId=u", Purpose::Publish, 0, Ok("u"));
        check(&app(KEY, ""), "", Purpose::Play, 0, Ok(""));
        let empty = make(1_234_567_890, "stream001", 9, "n", Privilege::Publish, &Secret::default());
        check(&app("", ""), &format!("zgVer=v1&zgExpired=9&zgNonce=n&zgToken={empty}"), Purpose::Publish, 0, Err(Denied::Wrong));
    }

    #[test]
    fn a_bearer_is_taken_from_its_header() {
        for (header, want) in [("Bearer t", Some("t")), ("bearer  t ", Some("t")), ("Basic t", None), ("t", None), ("", None)] {
            assert_eq!(bearer(header), want, "{header}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_query_is_verified_or_denied(query in "(zgVer=v1&zgExpired=|zgToken=)?\\PC{0,40}", stream in "\\PC{0,8}") {
            let denied = ask(&app(KEY, KEY), &stream, &query, Purpose::Publish, 0);
            prop_assert!(denied.is_err());
        }
    }
}
