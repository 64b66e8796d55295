//! # DescribeCDNTransferRules
//!
//! Lists the relay rules of the app's environment and how each is doing. An extension of bywash.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | no | only the rules of this stream |
//! | PageNumber | Number | no | from 0 |
//! | PageSize | Number | no | 1 to 1000, default 100 |
//!
//! Limit: 20 calls a second.
//!
//! Data: `Total` and `Rules`, ordered by StreamId and address. CDNUrl is without its secrets. State: 0 no relay, 1
//! requesting, 2 relaying. UpdateReason: 0 none, 1 server error, 2 handshake failed, 3 access point error, 4 create
//! stream failed, 5 bad name, 6 CDN server disconnected, 7 actively disconnected. StateTime and NextRetryTime (0: none)
//! are Unix milliseconds. BytesSent counts what the target has acknowledged since the relay began, Bitrate is in bits a second.
//!
//! Codes: 5005 a page parameter; 30002 too many calls; 30003 internal; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=DescribeCDNTransferRules&StreamId=rtc01&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":{"Total":1,"Rules":[{"StreamId":"rtc01",
//!  "CDNUrl":"rtmp://push.example.com/live/rtc01?***","State":2,"UpdateReason":0,"StateTime":1617249600001,
//!  "BytesSent":1048576,"Bitrate":2500000,"FramesDropped":0,"Retries":0,"NextRetryTime":0,"LastError":""}]}}
//! ```

use std::sync::atomic::Ordering;

use bywash_media::StreamKey;
use serde_json::{Value, json};

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::live::Live;
use crate::store::{Page, Rule, State, Tx};
use crate::vendor::Target;

/// The call.
pub struct DescribeCdnTransferRules {
    key: Option<StreamKey>,
    page: Page,
}

impl Action for DescribeCdnTransferRules {
    fn parse(params: &Params) -> Result<Self, Fault> {
        Ok(Self { key: params.stream_if_any()?, page: params.page()? })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let stream = self.key.as_ref().map(StreamKey::id);
        let (total, rules) = tx.rules_page(context.app.id, context.environment, stream, self.page).await?;
        let rules: Vec<Value> = rules.iter().map(|rule| describe(rule, &context.live)).collect();
        Ok(Reply::data(json!({ "Total": total, "Rules": rules })))
    }
}

fn describe(rule: &Rule, live: &Live) -> Value {
    let running = live.relay(&rule.key, &rule.address);
    let relay = running.clone().unwrap_or_default();
    // The row is behind where the disk is slow or full, even if it says that something runs.
    let mut status = Some(relay.status()).filter(|it| it.state_ms > 0).unwrap_or_else(|| rule.status.clone());
    if running.is_none() {
        status.state = State::None;
    }
    json!({
        "StreamId": rule.key.id(),
        "CDNUrl": Target::parse(rule.url.expose()).map_or_else(|_| rule.address.clone(), |target| target.masked()),
        "State": status.state as u8,
        "UpdateReason": status.reason as u8,
        "StateTime": status.state_ms,
        "BytesSent": relay.bytes.total(),
        "Bitrate": relay.bytes.bits_per_second(),
        "FramesDropped": relay.frames_dropped.load(Ordering::Relaxed),
        "Retries": status.retries,
        "NextRetryTime": status.next_retry_ms,
        "LastError": status.last_error,
    })
}
