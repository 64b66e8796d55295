//! # StartCDNRecord
//!
//! Records streams under a vendor's name, in the formats of the app's `[app.record.<Vendor>]`. The streams need not be
//! live: each is recorded whenever it is, until StopCDNRecord or EndTime, also after a restart of the server.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId[] | String list | yes | 1 to 20 ids, each as in CreatCDNTransferRule; one bad id and none is taken |
//! | Vendor | String | yes | `Tencent`, `Ws`, `Huawei` or `Aliyun`, one that the app records as |
//! | EndTime | String | no | Unix seconds, later than now and within 24 hours. Tencent only; the others ignore it |
//! | Domain, Point | String | no | of Aliyun; taken and not needed |
//!
//! Limit: 20 calls a second. With Tencent, without EndTime, the recording ends after 24 hours; with the others it goes on
//! until it is stopped. A stream that is recorded under the vendor's name already keeps its TaskId and takes the new end.
//!
//! Data has one member, named as the vendor. Tencent, Huawei, Aliyun: one element for each stream; Code is the text ``
//! for success with Tencent, the number 0 with Huawei, 200 with Aliyun. Ws: one object, with an element of `list` for each
//! stream and format. Times are UTC.
//!
//! Codes: 2 a parameter; 4 the app does not record as this vendor; 6 too many calls; 1000 internal.
//!
//! ```text
//! GET /?Action=StartCDNRecord&StreamId[]=cdn01&StreamId[]=cdn02&Vendor=Tencent&EndTime=1616415377&<common parameters>
//! {"Code":0,"Message":"success","RequestId":"4191282558729715911","Data":{"Tencent":[
//!  {"StreamName":"cdn01","TaskId":"5f1d7a84c4a8d7de8f7e5c1a6b3f9d02","RequestId":"70628bcd-5652-4d5c-aa04-97956a4e771a","Code":"","Message":""},
//!  {"StreamName":"cdn02","TaskId":"c2b9f0e4a17d4b6f93be0d5a8e61742c","RequestId":"0c1f6a52-93d1-47b8-8e0e-5d9a3f7b2c64","Code":"","Message":""}]}}
//! {"Ws":{"call_time":"2022-04-27 14:27:48","http_code":200,"list":[{"http_code":200,"id":"cdn01","msg":"success",
//!  "persistentId":"5f1d7a84c4a8d7de8f7e5c1a6b3f9d020002","task":"mp4"}],"msg":null,"trace_id":"15ccf21b-f3c2-4ee3-aaad-d995393f80cd"}}
//! {"Huawei":[{"StreamName":"cdn01","RequestId":"c373b2cc-8a51-159d-4d60-e0ec543c5d88","Code":0,"Message":"success"}]}
//! {"Aliyun":[{"StreamName":"cdn01","RequestId":"16a96b9a-f203-4ec5-8e43-cb92e68f4cd8","Code":200,"Message":""}]}
//! ```

use bywash_media::StreamKey;

use crate::api::cdn::{self, Meant};
use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply, code};
use crate::config::Vendor;
use crate::store::record::task_id;
use crate::store::{Origin, Record, RecordStatus, Tx};

/// Streams that one call may name. ZEGO states no number.
pub const STREAMS_MAX: usize = 20;

/// The longest time that a recording of Tencent's may go on, in seconds.
const SPAN_S: i64 = 24 * 3600;

/// The call.
pub struct StartCdnRecord {
    keys: Vec<StreamKey>,
    vendor: Vendor,
    end_s: Option<i64>,
}

impl Action for StartCdnRecord {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let vendor = cdn::vendor(params, &Vendor::ALL)?;
        let end_s = if vendor == Vendor::Tencent { params.number("EndTime")? } else { None };
        Ok(Self { keys: params.streams(STREAMS_MAX)?, vendor, end_s })
    }

    fn streams(&self) -> Vec<StreamKey> {
        self.keys.clone()
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let Self { keys, vendor, end_s } = self;
        let formats = &cdn::recording(context, vendor)?.formats;
        let now_s = context.now_ms.div_euclid(1000);
        let end_ms = match end_s {
            Some(end_s) if end_s <= now_s || end_s > now_s + SPAN_S => {
                return Err(
                    code::BAD_PARAMETER.because("EndTime is later than now and within 24 hours, in Unix seconds")
                );
            }
            Some(end_s) => end_s * 1000,
            None if vendor == Vendor::Tencent => context.now_ms + SPAN_S * 1000,
            None => 0,
        };
        let mut all = Vec::with_capacity(keys.len());
        for key in &keys {
            let task = match tx.record_wished(key, vendor).await? {
                Some(record) => {
                    tx.record_set_end(&record.id, end_ms).await?;
                    record.id
                }
                None => {
                    let record = Record {
                        id: task_id(),
                        key: key.clone(),
                        vendor,
                        origin: Origin::Api,
                        created_ms: context.now_ms,
                        end_ms,
                        closed_ms: 0,
                        status: RecordStatus { state_ms: context.now_ms, ..RecordStatus::default() },
                    };
                    tx.record_put(&record).await?;
                    record.id
                }
            };
            all.push(Meant { key, task: Some(task) });
        }
        Ok(cdn::reply(vendor, cdn::streams(vendor, formats, &all, true, context.now_ms)))
    }
}
