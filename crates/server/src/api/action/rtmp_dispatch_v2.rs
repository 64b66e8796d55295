//! # RTMPDispatchV2
//!
//! Gives the RTMP addresses at which a stream can be published or played with ordinary RTMP tools.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | yes | 1 to 256 of `A-Z a-z 0-9 - _ .`, but no dots alone; in the test environment it begins with `zegotest-<AppId>-` |
//! | Sequence | Int64 | yes | for reconciliation; not compared |
//! | Type | String | yes | `push` or `pull` |
//! | ClientIP | String | no | IPv4 address of the publisher or player |
//!
//! Limit: 40 calls a second.
//!
//! Data: a list of addresses. Codes: 1006 no Sequence; 30002 too many calls; 30003 internal; 30004 IsTest; 30009
//! StreamId; 30010 Type; 30011 ClientIP.
//!
//! ```text
//! GET /?Action=RTMPDispatchV2&StreamId=rtc01&Sequence=1617249600001&Type=push&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":["rtmp://203.0.113.7:1935/1234567890/rtc01"]}
//! ```

use std::net::Ipv4Addr;

use axum::http::Uri;
use bywash_media::StreamKey;
use serde_json::json;

use crate::api::code::{self, Fault};
use crate::api::params::Params;
use crate::api::{Action, Context, Reply, Settings};
use crate::store::Tx;

/// The call.
pub struct RtmpDispatchV2 {
    key: StreamKey,
}

impl Action for RtmpDispatchV2 {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let key = params.stream()?;
        params.required("Sequence")?;
        if !matches!(params.text("Type"), Some("pull" | "push")) {
            return Err(code::BAD_TYPE.into());
        }
        if params.text("ClientIP").is_some_and(|ip| ip.parse::<Ipv4Addr>().is_err()) {
            return Err(code::BAD_CLIENT_IP.into());
        }
        Ok(Self { key })
    }

    async fn apply(self, _: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let node = node(&context.settings);
        Ok(Reply::data(json!([format!("rtmp://{node}/{}/{}", self.key.app(), self.key.id())])))
    }
}

/// `host:port` of our RTMP listener as others reach it: where it listens on every address, the host of `public_url`.
pub fn node(settings: &Settings) -> String {
    let listen = settings.rtmp_listen;
    let public: Option<Uri> = settings.urls.public_url.parse().ok();
    match public.as_ref().and_then(Uri::host) {
        Some(host) if listen.ip().is_unspecified() => format!("{host}:{}", listen.port()),
        _ => listen.to_string(),
    }
}
