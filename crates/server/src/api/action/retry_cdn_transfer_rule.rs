//! # RetryCDNTransferRule
//!
//! Connects a relay that waits for its next try now. A relay that runs is left alone. An extension of bywash.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | yes | as in CreatCDNTransferRule |
//! | CDNUrl | String | yes | the rule's address; its query is not compared |
//!
//! Limit: 20 calls a second.
//!
//! Data: null. Codes: 30001 CDNUrl, or there is no such rule; 30002 too many calls; 30003 internal; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=RetryCDNTransferRule&StreamId=rtc01&CDNUrl=rtmp%3A%2F%2Fpush.example.com%2Flive%2Frtc01&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":null}
//! ```

use bywash_media::StreamKey;

use crate::api::code::{self, Fault};
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::Tx;
use crate::vendor::Target;

/// The call.
pub struct RetryCdnTransferRule {
    key: StreamKey,
    address: String,
}

impl Action for RetryCdnTransferRule {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let url = params.text("CDNUrl").ok_or_else(|| code::BAD_TARGET.because("CDNUrl is required"))?;
        let target = Target::parse(url).map_err(|why| code::BAD_TARGET.because(format!("CDNUrl: {why}")))?;
        Ok(Self { key: params.stream()?, address: target.address() })
    }

    fn streams(&self) -> Vec<StreamKey> {
        vec![self.key.clone()]
    }

    async fn apply(self, tx: &mut Tx, _: &Context) -> Result<Reply, Fault> {
        match tx.rule_retry(&self.key, &self.address).await? {
            true => Ok(Reply::done()),
            false => Err(code::BAD_TARGET.because("the stream has no rule for this CDNUrl")),
        }
    }
}
