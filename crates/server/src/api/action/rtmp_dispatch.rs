//! # RTMPDispatch
//!
//! The older form of RTMPDispatchV2: the same parameters, limits and codes, but Data has `ip:port` alone.
//!
//! ```text
//! GET /?Action=RTMPDispatch&StreamId=rtc01&Sequence=1617249600001&Type=push&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":["203.0.113.7:1935"]}
//! ```

use serde_json::json;

use super::rtmp_dispatch_v2::{RtmpDispatchV2, node};
use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::Tx;

/// The call.
pub struct RtmpDispatch;

impl Action for RtmpDispatch {
    fn parse(params: &Params) -> Result<Self, Fault> {
        RtmpDispatchV2::parse(params).map(|_| RtmpDispatch)
    }

    async fn apply(self, _: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        Ok(Reply::data(json!([node(&context.settings)])))
    }
}
