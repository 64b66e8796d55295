//! # ResumeRTCStream
//!
//! Allows publishing a stream again. Resuming what is not forbidden succeeds.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | yes | 1 to 256 of `A-Z a-z 0-9 - _ .`, but no dots alone; in the test environment it begins with `zegotest-<AppId>-` |
//! | Sequence | String | yes | a number that grows from call to call of a stream; milliseconds of the clock serve |
//!
//! Limit: 20 calls a second, 5 in the test environment.
//!
//! Data: null. Codes: 30002 too many calls; 30003 internal, or a bad Sequence; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=ResumeRTCStream&StreamId=rtc01&Sequence=1617249600001&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":null}
//! ```

use bywash_media::StreamKey;

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::Tx;

/// The call.
pub struct ResumeRtcStream {
    key: StreamKey,
}

impl Action for ResumeRtcStream {
    fn parse(params: &Params) -> Result<Self, Fault> {
        Ok(Self { key: params.stream()? })
    }

    fn streams(&self) -> Vec<StreamKey> {
        vec![self.key.clone()]
    }

    async fn apply(self, tx: &mut Tx, _: &Context) -> Result<Reply, Fault> {
        tx.forbid_delete(&self.key).await?;
        Ok(Reply::done())
    }
}
