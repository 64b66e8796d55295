//! Who may call: signature, clock, environment, rate and order.
//!
//! Nothing of a call's own parameters is looked at before its signature is found right.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bywash_media::{Environment, StreamKey};
use md5::{Digest, Md5};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::code::{self, Fault};
use super::params::{Params, Query};
use super::{Outcome, Row};
use crate::config::{self, App, Apps};
use crate::secret::Secret;
use crate::store::{self, Accepted, Tx};

/// How far a Timestamp may be from our clock, in seconds.
const WINDOW_S: u64 = 600;

/// How long an accepted Sequence binds the later ones of its stream, in milliseconds.
const ORDER_MS: i64 = 10_000;

/// A call whose signature is right.
pub struct Caller {
    /// The app that signed it.
    pub app: Arc<App>,
    /// The action.
    pub row: &'static Row,
}

/// The caller behind the common parameters, or the first thing wrong with them.
pub fn caller(query: &Query, apps: &Apps, now_ms: i64) -> Result<Caller, Fault> {
    let action = query.get("Action").ok_or(code::NO_ACTION)?;
    let app_id = query.get("AppId").filter(|id| id.bytes().all(|c| c.is_ascii_digit())).ok_or(code::BAD_APP_ID)?;
    let id = app_id.parse().map_err(|_| code::BAD_APP_ID)?;
    let timestamp = query.get("Timestamp").ok_or(code::NO_TIMESTAMP)?;
    let seconds: i64 = timestamp.parse().map_err(|_| code::BAD_TIMESTAMP)?;
    let nonce = query.get("SignatureNonce").ok_or(code::NO_NONCE)?;
    let given = query.get("Signature").ok_or(code::NO_SIGNATURE)?;
    match query.get("SignatureVersion") {
        None => return Err(code::NO_VERSION.into()),
        Some("2.0") => {}
        Some(_) => return Err(code::BAD_VERSION.into()),
    }
    let row = super::row_of(action).ok_or(code::UNKNOWN_ACTION)?;
    let app = apps.get(id).ok_or(code::UNKNOWN_APP)?;
    if seconds.abs_diff(now_ms.div_euclid(1000)) > WINDOW_S {
        return Err(code::EXPIRED.into());
    }
    let right = signature(app_id, nonce, &app.server_secret, timestamp);
    if !bool::from(right.as_bytes().ct_eq(given.as_bytes())) {
        return Err(code::BAD_SIGNATURE.into());
    }
    Ok(Caller { app, row })
}

/// The signature of a call, version 2.0: lower-case hex MD5 of AppId, SignatureNonce, ServerSecret and
/// Timestamp, joined as sent.
pub fn signature(app_id: &str, nonce: &str, secret: &Secret, timestamp: &str) -> String {
    let mut hash = Md5::new();
    for part in [app_id, nonce, secret.expose(), timestamp] {
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

impl Caller {
    /// The environment that IsTest names, if the app has it.
    pub fn environment(&self, query: &Query) -> Result<Environment, Fault> {
        let (environment, other) = match query.get("IsTest") {
            Some(text) if text.eq_ignore_ascii_case("true") => (Environment::Test, config::Environment::Production),
            Some(text) if !text.eq_ignore_ascii_case("false") => return Err(self.row.family.is_test.into()),
            _ => (Environment::Production, config::Environment::Test),
        };
        match self.app.environment == other {
            true => Err(code::NO_ENVIRONMENT.into()),
            false => Ok(environment),
        }
    }
}

/// Counts calls: at most so many of an app's action in any second, test apart from production.
///
/// Bounded: one short queue for each app, action and environment that was ever called.
#[derive(Default)]
pub struct Limits(Mutex<HashMap<Counted, VecDeque<Instant>>>);

/// App, environment, action.
type Counted = (u32, Environment, &'static str);

impl Limits {
    /// Admits a call or refuses it. A refused call does not count.
    pub fn admit(&self, app: u32, environment: Environment, row: &'static Row, now: Instant) -> Result<(), Fault> {
        let most = match environment {
            Environment::Production => row.limit.0,
            Environment::Test => row.limit.1,
        };
        let mut all = self.0.lock().expect("no holder panics");
        let admitted = all.entry((app, environment, row.name)).or_default();
        while admitted.front().is_some_and(|&then| now.saturating_duration_since(then) >= Duration::from_secs(1)) {
            admitted.pop_front();
        }
        if admitted.len() >= most {
            return Err(row.family.rate.because(format!("at most {most} calls of {} a second", row.name)));
        }
        admitted.push_back(now);
        Ok(())
    }
}

/// What a call's Sequence asks for.
pub enum Turn {
    /// Nothing newer was accepted: carry the call out, then [`Order::accept`] its outcome.
    Next(Order),
    /// The same call was carried out already: its outcome again.
    Again(Outcome),
}

/// A call's place in the order of its streams.
pub struct Order {
    streams: Vec<StreamKey>,
    family: &'static str,
    sequence: i64,
    fingerprint: String,
}

impl Order {
    /// Compares the call's Sequence with the last ones that `streams` accepted within ten seconds.
    pub async fn check(
        tx: &mut Tx,
        params: &Params,
        action: &str,
        family: &'static str,
        streams: Vec<StreamKey>,
        now_ms: i64,
    ) -> Result<Turn, Fault> {
        let out_of_order = || params.family.order.because("sequence out of order");
        let sequence = params.required("Sequence")?.parse().map_err(|_| out_of_order())?;
        let fingerprint = hex::encode(Sha256::digest(format!("{action}?{}", params.values.canonical())));
        let mut stale = false;
        for key in &streams {
            let Some(last) = tx.sequence(key, family).await? else { continue };
            if now_ms - last.at_ms >= ORDER_MS {
                continue;
            }
            if last.sequence == sequence && last.fingerprint == fingerprint {
                let outcome = serde_json::from_str(&last.reply);
                return Ok(Turn::Again(outcome.map_err(|e| store::Error::Other(e.to_string()))?));
            }
            stale |= sequence <= last.sequence;
        }
        match stale {
            true => Err(out_of_order()),
            false => Ok(Turn::Next(Order { streams, family, sequence, fingerprint })),
        }
    }

    /// Notes the call as the last of its streams, within the transaction that carried it out.
    pub async fn accept(self, tx: &mut Tx, outcome: &Outcome, now_ms: i64) -> Result<(), Fault> {
        let reply = serde_json::to_string(outcome).expect("an outcome has text keys only");
        let accepted = Accepted { sequence: self.sequence, fingerprint: self.fingerprint, reply, at_ms: now_ms };
        for key in &self.streams {
            tx.sequence_put(key, self.family, &accepted).await?;
        }
        Ok(())
    }
}
