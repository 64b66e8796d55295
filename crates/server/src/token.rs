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

/// Who the client says it is; the token vouches for the stream, not for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `userId`; empty if the client gave none.
    pub id: String,
}

/// Why a client may not publish or play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is none.
    #[error("no token was given")]
    Missing,
    /// They are not what a token is made with.
    #[error("the token's parameters are malformed: {0}")]
    Malformed(&'static str),
    /// It was made with another key, or for something else.
    #[error("the token does not fit the app, the stream or the parameters")]
    Wrong,
    /// It was good until `zgExpired`.
    #[error("the token has expired")]
    Expired,
}

/// What a client presents: `userId`, `zgVer`, `zgExpired`, `zgNonce`, and the token as `zgToken` or as a bearer.
#[derive(Clone, Debug, Default)]
pub struct Params {
    user: String,
    version: String,
    expired: String,
    nonce: String,
    token: Secret,
}

impl Params {
    /// Reads an address's query; what it does not know it ignores.
    pub fn parse(query: &str) -> Params {
        let mut params = Params::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "userId" => params.user = value.into(),
                "zgVer" => params.version = value.into(),
                "zgExpired" => params.expired = value.into(),
                "zgNonce" => params.nonce = value.into(),
                "zgToken" => params.token = Secret::new(value),
                _ => {}
            }
        }
        params
    }

    /// Takes the token of an `Authorization` header, where there is one.
    pub fn bearer(self, authorization: Option<&str>) -> Params {
        let token =
            authorization.and_then(|it| it.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        match token {
            Some((_, token)) => Params { token: Secret::new(token.trim()), ..self },
            None => self,
        }
    }
}

/// The token for `stream`, whose id is as it is published, until `expired` (Unix seconds).
pub fn make(app: u32, stream: &str, expired: i64, nonce: &str, privilege: Privilege, key: &Secret) -> String {
    digest(app, stream, &expired.to_string(), nonce, privilege, key)
}

/// Whether a client with `params` may do `purpose` with `stream` at `now` (Unix seconds). Publishing is open unless the app
/// asks for tokens; playing is open as well if the app has no key for it.
pub fn verify(app: &App, stream: &str, params: &Params, purpose: Purpose, now: i64) -> Result<User, Denied> {
    if params.user.len() > USER_ID_MAX || params.user.chars().any(char::is_control) {
        return Err(Denied::Malformed("userId"));
    }
    let user = User { id: params.user.clone() };
    let keys: &[(Privilege, &Secret)] = match purpose {
        Purpose::Publish => &[(Privilege::Publish, &app.publish_key)],
        Purpose::Play => &[
            (Privilege::Play, &app.play_key),
            (Privilege::Publish, &app.play_key),
            (Privilege::Publish, &app.publish_key),
        ],
    };
    if app.publish_auth == PublishAuth::None || (purpose == Purpose::Play && app.play_key.expose().is_empty()) {
        return Ok(user);
    }
    let token = params.token.expose();
    if token.is_empty() {
        return Err(Denied::Missing);
    }
    if params.version != "v1" {
        return Err(Denied::Malformed("zgVer is not v1"));
    }
    if params.nonce.is_empty() || params.nonce.len() > NONCE_MAX {
        return Err(Denied::Malformed("zgNonce is not of 1 to 15 bytes"));
    }
    let digits = params.expired.bytes().all(|c| c.is_ascii_digit());
    let expired = params
        .expired
        .parse::<i64>()
        .ok()
        .filter(|_| digits)
        .ok_or(Denied::Malformed("zgExpired is not a time in seconds"))?;
    // An app without a key must not be open to whoever signs with an empty one.
    let fits = keys.iter().filter(|(_, key)| !key.expose().is_empty()).any(|(privilege, key)| {
        let want = digest(app.id, stream, &params.expired, &params.nonce, *privilege, key);
        bool::from(want.as_bytes().ct_eq(token.as_bytes()))
    });
    match fits {
        false => Err(Denied::Wrong),
        true if now > expired => Err(Denied::Expired),
        true => Ok(user),
    }
}

/// ZEGO's limit, in bytes.
const NONCE_MAX: usize = 15;

/// ZEGO's limit of a `userId`, in bytes.
pub const USER_ID_MAX: usize = 64;

fn digest(app: u32, stream: &str, expired: &str, nonce: &str, privilege: Privilege, key: &Secret) -> String {
    let privilege = privilege as u8;
    let key = key.expose();
    let text =
        format!("appid={app}&streamId={stream}&zgExpired={expired}&zgNonce={nonce}&zgPrivilege={privilege}&key={key}");
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

    fn check(app: &App, query: &str, purpose: Purpose, now: i64, want: Result<&str, Denied>) {
        let got = verify(app, "stream001", &Params::parse(query), purpose, now);
        assert_eq!(got.map(|it| it.id), want.map(str::to_owned), "{query}");
    }

    #[test]
    fn zegos_vector_is_reproduced() {
        assert_eq!(
            make(1_234_567_890, "stream001", EXPIRED, "1700000000000", Privilege::Publish, &Secret::new(KEY)),
            TOKEN
        );
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_for_what_it_was_made() {
        let app = app(KEY, "");
        let query =
            |token: &str| format!("userId=u&zgVer=v1&zgExpired={EXPIRED}&zgNonce=1700000000000&zgToken={token}");
        check(&app, &query(TOKEN), Purpose::Publish, EXPIRED, Ok("u"));
        check(&app, &query(TOKEN), Purpose::Publish, EXPIRED + 1, Err(Denied::Expired));
        check(&app, &query(&TOKEN.to_uppercase()), Purpose::Publish, EXPIRED, Err(Denied::Wrong));
        check(&app, &query(""), Purpose::Publish, EXPIRED, Err(Denied::Missing));
        check(&app, "", Purpose::Publish, EXPIRED, Err(Denied::Missing));
        check(&app, &query(TOKEN).replace("zgExpired=1", "zgExpired=2"), Purpose::Publish, EXPIRED, Err(Denied::Wrong));
        check(
            &app,
            &query(TOKEN).replace("v1", "v2"),
            Purpose::Publish,
            EXPIRED,
            Err(Denied::Malformed("zgVer is not v1")),
        );
        check(
            &app,
            &query(TOKEN).replace("1700000000000", "1234567890123456"),
            Purpose::Publish,
            0,
            Err(Denied::Malformed("zgNonce is not of 1 to 15 bytes")),
        );
        check(
            &app,
            &query(TOKEN).replace("zgExpired=", "zgExpired=-"),
            Purpose::Publish,
            0,
            Err(Denied::Malformed("zgExpired is not a time in seconds")),
        );
        check(&App { id: 1, ..app.clone() }, &query(TOKEN), Purpose::Publish, EXPIRED, Err(Denied::Wrong));
        assert_eq!(verify(&app, "stream002", &Params::parse(&query(TOKEN)), Purpose::Publish, 0), Err(Denied::Wrong));
    }

    #[test]
    fn a_player_may_present_a_play_token_or_a_publish_token() {
        let app = app(KEY, "play");
        let query = |privilege, key: &str| {
            format!(
                "zgVer=v1&zgExpired=9&zgNonce=n&zgToken={}",
                make(app.id, "stream001", 9, "n", privilege, &Secret::new(key))
            )
        };
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
        check(
            &app("", ""),
            &format!("zgVer=v1&zgExpired=9&zgNonce=n&zgToken={empty}"),
            Purpose::Publish,
            0,
            Err(Denied::Wrong),
        );
    }

    #[test]
    fn a_bearer_stands_for_the_parameter() {
        for (header, want) in [("Bearer t", "t"), ("bearer  t ", "t"), ("Basic t", "q"), ("t", "q")] {
            assert_eq!(Params::parse("zgToken=q").bearer(Some(header)).token.expose(), want, "{header}");
        }
        assert!(!format!("{:?}", Params::parse("zgToken=seen")).contains("seen"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_query_is_verified_or_denied(query in "(zgVer=v1&zgExpired=|zgToken=)?\\PC{0,40}", stream in "\\PC{0,8}") {
            let denied = verify(&app(KEY, KEY), &stream, &Params::parse(&query), Purpose::Publish, 0);
            prop_assert!(denied.is_err());
        }
    }
}
