//! What must hold for what callers and players write into addresses, on any bytes at all.

use bywash::api::params::Query;
use bywash::config::{App, PublishAuth};
use bywash::secret::Secret;
use bywash::token::{self, Params, Purpose};
use bywash::vendor::Target;

/// A token's parameters: nobody gets in without the key.
pub fn token(data: &[u8]) {
    let query = String::from_utf8_lossy(data);
    let app = App {
        id: 1,
        publish_auth: PublishAuth::Token,
        publish_key: Secret::new("0123456789abcdef0123456789abcdef"),
        play_key: Secret::new("fedcba9876543210fedcba9876543210"),
        ..App::default()
    };
    for purpose in [Purpose::Publish, Purpose::Play] {
        assert!(token::verify(&app, "s", &Params::parse(&query), purpose, 1_700_000_000).is_err(), "{query}");
    }
}

/// An API call's query, and a target's address.
pub fn query(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut query = Query::parse(&text);
    if let Ok(serde_json::Value::Object(body)) = serde_json::from_str(&text) {
        query.overlay(body);
    }
    let once = query.canonical();
    assert_eq!(once, query.canonical());
    if let Ok(target) = Target::parse(&text) {
        assert!(!target.masked().contains('?') || target.masked().ends_with("?***"), "{}", target.masked());
        assert_eq!(Target::parse(&target.address()).map(|again| again.address()), Ok(target.address()));
    }
}
