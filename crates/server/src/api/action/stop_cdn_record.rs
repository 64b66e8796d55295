//! # StopCDNRecord
//!
//! Ends the recordings of streams under a vendor's name. Their files are finished and announced at once. Where the app records
//! every stream (`record_everything`), a stream that was stopped is recorded again when it is published anew, or by StartCDNRecord.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId[] | String list | yes | 1 to 20 ids, each as in CreatCDNTransferRule; one bad id and none is taken |
//! | Vendor | String | yes | as in StartCDNRecord |
//! | Domain, Point | String | no | of Aliyun; taken and not needed |
//!
//! Limit: 20 calls a second.
//!
//! Data is that of StartCDNRecord, of Tencent without TaskId. A stream without a recording has another Code in
//! its element: `ResourceNotFound` with Tencent, 404 with the others.
//!
//! Codes: 2 a parameter; 4 the app does not record as this vendor; 6 too many calls; 1000 internal.
//!
//! ```text
//! GET /?Action=StopCDNRecord&StreamId[]=cdn01&StreamId[]=cdn02&Vendor=Tencent&<common parameters>
//! {"Code":0,"Message":"success","RequestId":"4191282558729715911","Data":{"Tencent":[
//!  {"StreamName":"cdn01","RequestId":"70628bcd-5652-4d5c-aa04-97956a4e771a","Code":"","Message":""},
//!  {"StreamName":"cdn02","RequestId":"0c1f6a52-93d1-47b8-8e0e-5d9a3f7b2c64","Code":"ResourceNotFound","Message":"the stream has no recording"}]}}
//! ```

use bywash_media::StreamKey;

use super::start_cdn_record::STREAMS_MAX;
use crate::api::cdn::{self, Meant};
use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::config::Vendor;
use crate::store::Tx;

/// The call.
pub struct StopCdnRecord {
    keys: Vec<StreamKey>,
    vendor: Vendor,
}

impl Action for StopCdnRecord {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let vendor = cdn::vendor(params, &Vendor::ALL)?;
        Ok(Self { keys: params.streams(STREAMS_MAX)?, vendor })
    }

    fn streams(&self) -> Vec<StreamKey> {
        self.keys.clone()
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let Self { keys, vendor } = self;
        let formats = &cdn::recording(context, vendor)?.formats;
        let mut all = Vec::with_capacity(keys.len());
        for key in &keys {
            let task = tx.record_wished(key, vendor).await?.map(|record| record.id);
            if let Some(task) = &task {
                tx.record_close(task, context.now_ms).await?;
            }
            all.push(Meant { key, task });
        }
        Ok(cdn::reply(vendor, cdn::streams(vendor, formats, &all, false, context.now_ms)))
    }
}
