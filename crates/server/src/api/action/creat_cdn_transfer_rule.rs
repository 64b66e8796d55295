//! # CreatCDNTransferRule
//!
//! Relays a stream to a CDN. The rule is kept until it is deleted or cleared: it may be made before the stream
//! is published, and it relays again whenever the stream comes back, also after a restart of the server.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | yes | 1 to 256 of `A-Z a-z 0-9 - _ .`, but no dots alone; in the test environment it begins with `zegotest-<AppId>-` |
//! | CDNUrl | String | no | `rtmp://` or `rtmps://` address of at most 2048 bytes, URL-encoded. Without it the app's `cdn.default_target` and the StreamId |
//! | Sequence | String | yes | a number that grows from call to call of a stream; milliseconds of the clock serve |
//!
//! Limit: 10 calls a second, 5 in the test environment. A stream has at most 32 rules. The same address again,
//! whatever its query, is the same rule: the newer query is used from the next connect on.
//!
//! Data: null. Codes: 5005 bad Sequence or one rule too many; 30001 no address that can be pushed to; 30002 too
//! many calls; 30003 internal; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=CreatCDNTransferRule&StreamId=rtc01&CDNUrl=rtmp%3A%2F%2Fpush.example.com%2Flive%2Frtc01&Sequence=1617249600001&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"918334131114317411","Data":null}
//! ```

use std::net::IpAddr;

use axum::http::Uri;
use bywash_media::StreamKey;

use crate::address;
use crate::api::code::{self, Fault};
use crate::api::params::Params;
use crate::api::{Action, Context, Reply, Settings};
use crate::store::{Origin, Tx};
use crate::vendor::Target;

/// Rules that one stream may have. ZEGO states no number.
const RULES_MAX: u64 = 32;

/// The call.
pub struct CreatCdnTransferRule {
    key: StreamKey,
    target: Option<Target>,
}

impl Action for CreatCdnTransferRule {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let target = params.text("CDNUrl").map(parse_target).transpose()?;
        Ok(Self { key: params.stream()?, target })
    }

    fn streams(&self) -> Vec<StreamKey> {
        vec![self.key.clone()]
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let key = self.key;
        let target = match (self.target, &context.app.cdn.default_target) {
            (Some(target), _) => target,
            (None, Some(base)) => parse_target(&format!("{}/{}", base.trim_end_matches('/'), key.id()))?,
            (None, None) => {
                return Err(code::BAD_TARGET.because("CDNUrl is required: the app has no cdn.default_target"));
            }
        };
        if leads_to_itself(&target, &key, &context.settings) {
            return Err(code::BAD_TARGET.because("CDNUrl is the address of this very stream on this server"));
        }
        let literal: Result<IpAddr, _> = target.host().parse();
        if !context.settings.allow_private_targets && literal.is_ok_and(|ip| !address::is_public(ip)) {
            let why = "CDNUrl is not a public address; relay.allow_private_targets = true allows it";
            return Err(code::BAD_TARGET.because(why));
        }
        let address = target.address();
        if tx.rule(&key, &address).await?.is_none() && tx.rule_count(&key).await? >= RULES_MAX {
            return Err(code::INVALID_REQUEST.because(format!("the stream has {RULES_MAX} rules already")));
        }
        tx.rule_put(&key, &address, target.url(), Origin::Api, context.now_ms).await?;
        Ok(Reply::done())
    }
}

fn parse_target(url: &str) -> Result<Target, Fault> {
    Target::parse(url).map_err(|why| code::BAD_TARGET.because(format!("CDNUrl: {why}")))
}

/// Whether `target` is where this server takes in the very stream. Of names, only those are told that the server
/// knows itself by.
fn leads_to_itself(target: &Target, key: &StreamKey, settings: &Settings) -> bool {
    let same = !target.tls() && target.app() == key.app().to_string() && target.stream() == key.id();
    let public: Option<Uri> = settings.urls.public_url.parse().ok();
    let named = target.host() == "localhost" || public.is_some_and(|uri| uri.host() == Some(target.host()));
    let ours = settings.own_addresses.iter().filter(|own| own.port() == target.port());
    let here = |own: IpAddr| match target.host().parse::<IpAddr>() {
        Ok(ip) => ip == own || own.is_unspecified() && (ip.is_loopback() || ip.is_unspecified()),
        Err(_) => named,
    };
    same && ours.map(|own| own.ip()).any(here)
}
