//! # ClearCDNTransferRule
//!
//! Forgets the rules of a stream that are not relaying now. Relays that run go on.
//!
//! ZEGO's text speaks of all rules of the AppId and yet requires a StreamId. Here the StreamId counts, unless the
//! operator sets the app's `clear_whole_app`.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | yes | as in CreatCDNTransferRule |
//! | Sequence | String | yes | as in CreatCDNTransferRule |
//!
//! Limit: 10 calls a second, 5 in the test environment.
//!
//! Data: null. Codes: 5005 bad Sequence; 30002 too many calls; 30003 internal; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=ClearCDNTransferRule&StreamId=rtc01&Sequence=1617249600003&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":null}
//! ```

use bywash_media::StreamKey;

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::{State, Tx};

/// The call.
pub struct ClearCdnTransferRule {
    key: StreamKey,
}

impl Action for ClearCdnTransferRule {
    fn parse(params: &Params) -> Result<Self, Fault> {
        Ok(Self { key: params.stream()? })
    }

    fn streams(&self) -> Vec<StreamKey> {
        vec![self.key.clone()]
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        // The rows are behind by a moment: what relays stays.
        for ((key, address), relay) in context.live.relays() {
            if (key.app(), key.environment()) == (self.key.app(), self.key.environment()) {
                let status = relay.status();
                if status.state == State::Relaying {
                    tx.rule_note(&key, &address, &status).await?;
                }
            }
        }
        let stream = (!context.app.clear_whole_app).then(|| self.key.id());
        let touched = tx.rules_clear_waiting(self.key.app(), self.key.environment(), stream).await?;
        Ok(Reply { touched, ..Reply::done() })
    }
}
