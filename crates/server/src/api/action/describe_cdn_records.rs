//! # DescribeCDNRecords
//!
//! Lists the recordings of the app's environment and how each is doing. An extension of bywash.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | no | only the recordings of this stream |
//! | Vendor | String | no | only those under this vendor's name |
//! | PageNumber | Number | no | from 0 |
//! | PageSize | Number | no | 1 to 1000, default 100 |
//!
//! Limit: 20 calls a second.
//!
//! Data: `Total` and `Tasks`, the newest first. State: `waiting` for the stream, `recording`, `paused` while the stream is live
//! but cannot be recorded, for which Reason says why, `ended` or `failed`. StartTime is that of the first media (0: none yet),
//! EndTime when it ended or is to end by itself (0: never); Unix milliseconds. Formats are what is written now. Files are the
//! Keys of the newest files that are ready, at most 100, in the order of their making; SearchMedia has all. A recording that
//! is over is listed for 30 days, and longer while it has files.
//!
//! Codes: 5005 Vendor or a page parameter; 30002 too many calls; 30003 internal; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=DescribeCDNRecords&StreamId=cdn01&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":{"Total":1,"Tasks":[{
//!  "TaskId":"5f1d7a84c4a8d7de8f7e5c1a6b3f9d02","StreamId":"cdn01","Vendor":"Tencent","State":"recording","Reason":"",
//!  "StartTime":1616328977123,"EndTime":1616415377000,"Formats":["mp4","m3u8"],
//!  "Files":["1234567890/cdn01/2021-03-21/121617-5f1d7a84c4a8-1.mp4"],"LastError":""}]}}
//! ```

use bywash_media::StreamKey;
use serde_json::json;

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::config::Vendor;
use crate::store::{Page, RecordState, RecordStatus, Tx};

/// Keys that are listed of one recording.
const KEYS_MAX: i64 = 100;

/// The call.
pub struct DescribeCdnRecords {
    key: Option<StreamKey>,
    vendor: Option<Vendor>,
    page: Page,
}

impl Action for DescribeCdnRecords {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let known = |name| Vendor::named(name).ok_or_else(|| params.bad("Vendor is not known"));
        let vendor = params.text("Vendor").map(known).transpose()?;
        Ok(Self { key: params.stream_if_any()?, vendor, page: params.page()? })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let stream = self.key.as_ref().map(StreamKey::id);
        let page = tx.records_page(context.app.id, context.environment, stream, self.vendor, self.page).await?;
        let (total, records) = page;
        let mut tasks = Vec::with_capacity(records.len());
        for record in records {
            // The row is behind where the disk is slow or full.
            let told = context.live.recording(&record.id);
            let RecordStatus { state, reason, last_error, .. } = told.as_ref().unwrap_or(&record.status);
            // A recording that was stopped before its stream came never ran.
            let state = match *state {
                RecordState::Waiting if record.closed_ms > 0 => RecordState::Ended,
                state => state,
            };
            let config = context.app.record.get(record.vendor.name());
            let formats = config.map_or(&[][..], |config| &config.formats);
            tasks.push(json!({
                "TaskId": record.id,
                "StreamId": record.key.id(),
                "Vendor": record.vendor.name(),
                "State": state.name(),
                "Reason": reason,
                "StartTime": record.status.begun_ms,
                "EndTime": if record.closed_ms > 0 { record.closed_ms } else { record.end_ms },
                "Formats": formats.iter().map(|format| format.name()).collect::<Vec<_>>(),
                "Files": tx.record_keys(&record.id, KEYS_MAX).await?,
                "LastError": last_error,
            }));
        }
        Ok(Reply::data(json!({ "Total": total, "Tasks": tasks })))
    }
}
