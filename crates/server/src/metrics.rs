//! What Prometheus asks for: counters kept as things happen, and gauges read from what runs.
//!
//! Invariant: no label ever holds a secret or more values than there are live streams and relays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::job;
use crate::live::Live;
use crate::webrtc;

/// The counters of the process.
pub struct Metrics {
    registry: Registry,
    /// Connections and requests refused on the RTMP port.
    pub rtmp_refused: Counter,
    /// API calls answered, whatever the answer.
    pub api_calls: Counter,
    /// Attempts to deliver callbacks.
    pub callbacks: job::callback::Counters,
}

impl Metrics {
    /// Counters at zero, with the gauges of `live` and the counters of `webrtc` beside them.
    pub fn new(live: Arc<Live>, webrtc: &webrtc::Counters) -> Arc<Metrics> {
        let mut registry = Registry::with_prefix("bywash");
        let (rtmp_refused, api_calls) = (Counter::default(), Counter::default());
        registry.register("rtmp_refused", "Connections and requests refused on the RTMP port", rtmp_refused.clone());
        registry.register("api_calls", "API calls answered", api_calls.clone());
        let callbacks = job::callback::Counters::default();
        registry.register("callbacks_delivered", "Callbacks answered with a 2xx", callbacks.delivered.clone());
        registry.register("callbacks_failed", "Attempts that will be repeated", callbacks.failed.clone());
        registry.register("callbacks_dead", "Callbacks given up", callbacks.dead.clone());
        let webrtc::Counters { publishers, players, bytes, dropped, overflowed, nacks, gaps, left_out } =
            webrtc.clone();
        registry.register("webrtc_publishers", "Sessions that publish", publishers);
        registry.register("webrtc_players", "Sessions that play", players);
        registry.register_with_unit("webrtc_ingest", "Taken in over UDP and TCP", Unit::Bytes, bytes);
        registry.register("webrtc_dropped", "Reads thrown away as their session was too slow", dropped);
        registry.register("webrtc_overflowed", "Packets that the kernel had no room for", overflowed);
        registry.register("webrtc_nacks", "Requests to send packets again", nacks);
        registry.register("webrtc_gaps", "Losses of publishers beyond repair", gaps);
        registry.register(
            "webrtc_left_out",
            "Pictures that players were not sent, as their lines are too narrow",
            left_out,
        );
        registry.register_collector(Box::new(Running(live)));
        Arc::new(Metrics { registry, rtmp_refused, api_calls, callbacks })
    }

    /// The page, in OpenMetrics text.
    pub fn page(&self) -> String {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).expect("a string takes any text");
        page
    }
}

/// Reads the gauges when they are asked for.
struct Running(Arc<Live>);

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

impl Collector for Running {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (streams, relays, recordings) = (self.0.streams(), self.0.relays(), self.0.recordings());
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);

        let gauge = ConstGauge::new(streams.len() as i64);
        let metric = encoder.encode_descriptor("streams", "Live streams", None, gauge.metric_type())?;
        gauge.encode(metric)?;
        let gauge = ConstGauge::new(relays.len() as i64);
        let metric = encoder.encode_descriptor("relays", "Relays that run or retry", None, gauge.metric_type())?;
        gauge.encode(metric)?;

        let gauge = ConstGauge::new(recordings.len() as i64);
        let metric =
            encoder.encode_descriptor("recordings", "Recordings that run or pause", None, gauge.metric_type())?;
        gauge.encode(metric)?;

        let labels = |key: &bywash_media::StreamKey| [("app", key.app().to_string()), ("stream", key.id().to_owned())];
        let zero = ConstCounter::new(0u64);
        let mut family =
            encoder.encode_descriptor("stream_ingest", "Media taken in", Some(&Unit::Bytes), zero.metric_type())?;
        for (key, stream) in &streams {
            ConstCounter::new(stream.bytes.total()).encode(family.encode_family(&labels(key))?)?;
        }
        let mut family = encoder.encode_descriptor("stream_outputs", "Readers", None, gauge.metric_type())?;
        for (key, stream) in &streams {
            ConstGauge::new(load(&stream.outputs) as i64).encode(family.encode_family(&labels(key))?)?;
        }
        let relay_labels = |key: &bywash_media::StreamKey, relay: &crate::live::Relay| {
            let [app, stream] = labels(key);
            [app, stream, ("target", relay.target.clone())]
        };
        let mut counter = |name, help, unit: Option<&Unit>, read: &dyn Fn(&crate::live::Relay) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, unit, zero.metric_type())?;
            for ((key, _), relay) in &relays {
                ConstCounter::new(read(relay)).encode(family.encode_family(&relay_labels(key, relay))?)?;
            }
            Ok::<_, std::fmt::Error>(())
        };
        let acknowledged = "Bytes that the target has acknowledged";
        counter("relay_acknowledged", acknowledged, Some(&Unit::Bytes), &|relay| relay.bytes.total())?;
        let dropped = "Frames skipped since the target was too slow";
        counter("relay_frames_dropped", dropped, None, &|relay| load(&relay.frames_dropped))?;
        counter("relay_retries", "Connections tried again", None, &|relay| relay.status().retries as u64)?;
        let state = "0 no relay, 1 requesting, 2 relaying";
        let mut family = encoder.encode_descriptor("relay_state", state, None, gauge.metric_type())?;
        for ((key, _), relay) in &relays {
            ConstGauge::new(relay.status().state as i64).encode(family.encode_family(&relay_labels(key, relay))?)?;
        }
        // Recordings of one stream under several names are one line.
        let mut by_stream = BTreeMap::<_, (u64, u64)>::new();
        for (key, recording) in &recordings {
            let (bytes, skipped) = by_stream.entry(key).or_default();
            *bytes += load(&recording.bytes);
            *skipped += load(&recording.frames_skipped);
        }
        let help = "Media taken for files, once for all formats";
        let mut family = encoder.encode_descriptor("recording", help, Some(&Unit::Bytes), zero.metric_type())?;
        for (key, (bytes, _)) in &by_stream {
            ConstCounter::new(*bytes).encode(family.encode_family(&labels(key))?)?;
        }
        let help = "Frames skipped since the disk was too slow";
        let mut family = encoder.encode_descriptor("recording_frames_skipped", help, None, zero.metric_type())?;
        for (key, (_, skipped)) in &by_stream {
            ConstCounter::new(*skipped).encode(family.encode_family(&labels(key))?)?;
        }
        Ok(())
    }
}
