//! # DeleteCDNTransferRule
//!
//! Ends the relay of a stream to a CDN and forgets the rule. Deleting what is not there succeeds.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | yes | as in CreatCDNTransferRule |
//! | CDNUrl | String | yes | the rule's address; its query is not compared |
//! | Sequence | String | yes | as in CreatCDNTransferRule |
//!
//! Limit: 10 calls a second, 5 in the test environment.
//!
//! Data: null. Codes: 5004 CDNUrl; 5005 bad Sequence; 30002 too many calls; 30003 internal; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=DeleteCDNTransferRule&StreamId=rtc01&CDNUrl=rtmp%3A%2F%2Fpush.example.com%2Flive%2Frtc01&Sequence=1617249600002&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":null}
//! ```

use bywash_media::StreamKey;

use crate::api::code::{self, Fault};
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::Tx;
use crate::vendor::Target;

/// The call.
pub struct DeleteCdnTransferRule {
    key: StreamKey,
    address: String,
}

impl Action for DeleteCdnTransferRule {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let url = params.text("CDNUrl").ok_or_else(|| code::BAD_URL.because("CDNUrl is required"))?;
        let target = Target::parse(url).map_err(|why| code::BAD_URL.because(format!("CDNUrl: {why}")))?;
        Ok(Self { key: params.stream()?, address: target.address() })
    }

    fn streams(&self) -> Vec<StreamKey> {
        vec![self.key.clone()]
    }

    async fn apply(self, tx: &mut Tx, _: &Context) -> Result<Reply, Fault> {
        tx.rule_delete(&self.key, &self.address).await?;
        Ok(Reply::done())
    }
}
