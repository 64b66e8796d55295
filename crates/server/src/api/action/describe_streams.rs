//! # DescribeStreams
//!
//! Lists the streams that are live now in the app's environment. An extension of bywash.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | StreamId | String | no | only this stream |
//! | PageNumber | Number | no | from 0 |
//! | PageSize | Number | no | 1 to 1000, default 100 |
//!
//! Limit: 20 calls a second.
//!
//! Data: `Total` and `Streams`, ordered by StreamId. Since is Unix milliseconds, Bitrate bits a second, FrameRate pictures
//! a second, Outputs the number of relays, recordings and viewers, Protocol `RTMP` or `WHIP`. What a stream lacks is `""` or 0.
//!
//! Codes: 5005 a page parameter; 30002 too many calls; 30003 internal; 30004 IsTest; 30009 StreamId.
//!
//! ```text
//! GET /?Action=DescribeStreams&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":{"Total":1,"Streams":[{"StreamId":"rtc01",
//!  "Protocol":"RTMP","PublisherAddress":"198.51.100.4:50312","Since":1617249600001,"VideoCodec":"H.264","Width":1280,
//!  "Height":720,"FrameRate":30.0,"AudioCodec":"AAC","SampleRate":48000,"Channels":2,"Bitrate":2500000,"Outputs":2}]}}
//! ```

use std::sync::atomic::Ordering;

use bywash_media::{Format, StreamKey, Track};
use serde_json::{Value, json};

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::live::Stream;
use crate::store::{Page, Tx};

/// The call.
pub struct DescribeStreams {
    key: Option<StreamKey>,
    page: Page,
}

impl Action for DescribeStreams {
    fn parse(params: &Params) -> Result<Self, Fault> {
        Ok(Self { key: params.stream_if_any()?, page: params.page()? })
    }

    async fn apply(self, _: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let asked = |key: &StreamKey| {
            let ours = key.app() == context.app.id && key.environment() == context.environment;
            ours && self.key.as_ref().is_none_or(|only| only == key)
        };
        let mut streams = context.live.streams();
        streams.retain(|(key, _)| asked(key));
        let first = self.page.number.saturating_mul(self.page.size) as usize;
        let page = streams.iter().skip(first).take(self.page.size as usize);
        let page: Vec<Value> = page.map(|(key, stream)| describe(key, stream)).collect();
        Ok(Reply::data(json!({ "Total": streams.len(), "Streams": page })))
    }
}

fn describe(key: &StreamKey, stream: &Stream) -> Value {
    let tracks = stream.tracks.read().expect("no holder panics").clone();
    let (video, audio) = (tracks.video.as_deref(), tracks.audio.as_deref());
    let codec = |track: Option<&Track>| track.map_or("", |it| it.codec.name());
    let (width, height) = match video.map(|it| it.format) {
        Some(Format::Video { width, height }) => (width, height),
        _ => (0, 0),
    };
    let (sample_rate, channels) = match audio.map(|it| it.format) {
        Some(Format::Audio { sample_rate, channels }) => (sample_rate, channels),
        _ => (0, 0),
    };
    let publisher = stream.publisher();
    json!({
        "StreamId": key.id(),
        "Protocol": publisher.protocol,
        "PublisherAddress": publisher.address,
        "Since": stream.since_ms,
        "VideoCodec": codec(video),
        "Width": width,
        "Height": height,
        "FrameRate": stream.frame_rate_milli.load(Ordering::Relaxed) as f64 / 1000.0,
        "AudioCodec": codec(audio),
        "SampleRate": sample_rate,
        "Channels": channels,
        "Bitrate": stream.bytes.bits_per_second(),
        "Outputs": stream.outputs.load(Ordering::Relaxed),
    })
}
