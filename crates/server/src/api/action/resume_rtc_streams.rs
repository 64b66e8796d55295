//! # ResumeRTCStreams
//!
//! Allows publishing up to 20 streams again, all or none of them: ResumeRTCStream for a list.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId[] | String list | yes | 1 to 20 ids, each as in ResumeRTCStream; one bad id and none is taken |
//! | Sequence | String | yes | a number that grows from call to call of each of the streams |
//!
//! Limit: 20 calls a second, 5 in the test environment.
//!
//! Data: null. Codes: 30002 too many calls; 30003 internal, or a bad Sequence; 30004 IsTest; 30006 the list.
//!
//! ```text
//! GET /?Action=ResumeRTCStreams&StreamId[]=rtc01&StreamId[]=rtc02&Sequence=1617249600001&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":null}
//! ```

use bywash_media::StreamKey;

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::Tx;

/// The call.
pub struct ResumeRtcStreams {
    keys: Vec<StreamKey>,
}

impl Action for ResumeRtcStreams {
    fn parse(params: &Params) -> Result<Self, Fault> {
        Ok(Self { keys: params.streams(20)? })
    }

    fn streams(&self) -> Vec<StreamKey> {
        self.keys.clone()
    }

    async fn apply(self, tx: &mut Tx, _: &Context) -> Result<Reply, Fault> {
        for key in &self.keys {
            tx.forbid_delete(key).await?;
        }
        Ok(Reply::done())
    }
}
