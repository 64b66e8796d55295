//! # DescribeRTCStreamState
//!
//! Tells whether a stream is being published, and since when.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | yes | 1 to 256 of `A-Z a-z 0-9 - _ .`, but no dots alone; in the test environment it begins with `zegotest-<AppId>-` |
//! | Sequence | String | yes | not compared: the call changes nothing |
//!
//! Limit: 40 calls a second, 10 in the test environment.
//!
//! Data: `create_time` and `close_time`, texts of Unix seconds; `close_time` is empty while the stream is live.
//! Codes: 0 live; 41004 no such stream; 41006 over, with both times, only within the app's `stream_history` after its
//! end; 30002 too many calls; 30003 internal, or no Sequence; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=DescribeRTCStreamState&StreamId=rtc01&Sequence=1617249600001&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":{"create_time":"1673334117","close_time":""}}
//! ```

use bywash_media::StreamKey;
use serde_json::json;

use crate::api::code::{self, Fault};
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::Tx;

/// The call.
pub struct DescribeRtcStreamState {
    key: StreamKey,
}

impl Action for DescribeRtcStreamState {
    fn parse(params: &Params) -> Result<Self, Fault> {
        params.required("Sequence")?;
        Ok(Self { key: params.stream()? })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let is_live = |since_ms| Reply::data(json!({ "create_time": seconds(since_ms), "close_time": "" }));
        // The row is behind where the disk is slow or full.
        if let Some(stream) = context.live.stream(&self.key) {
            return Ok(is_live(stream.since_ms));
        }
        let mut session = tx.stream(&self.key).await?.ok_or(code::NO_STREAM)?;
        session.closed_ms = context.live.closing(&self.key).unwrap_or(session.closed_ms);
        if session.closed_ms == 0 {
            return Ok(is_live(session.created_ms));
        }
        let history_ms = context.app.stream_history.map_or(0, |it| it.as_millis() as i64);
        if context.now_ms.saturating_sub(session.closed_ms) >= history_ms {
            return Err(code::NO_STREAM.into());
        }
        let data = json!({ "create_time": seconds(session.created_ms), "close_time": seconds(session.closed_ms) });
        Ok(Reply { code: code::STREAM_CLOSED, ..Reply::data(data) })
    }
}

fn seconds(ms: i64) -> String {
    ms.div_euclid(1000).to_string()
}
