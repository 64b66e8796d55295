//! What runs at this moment, for those who only look: the Describe actions and the metrics.
//!
//! The hub and the relays write counters here; nobody takes a decision from them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use bywash_media::{StreamKey, Tracks};

use crate::store::{RecordStatus, Status};

/// All that runs.
#[derive(Default)]
pub struct Live {
    streams: RwLock<HashMap<StreamKey, Arc<Stream>>>,
    relays: RwLock<HashMap<(StreamKey, String), Arc<Relay>>>,
    /// By the number that plan gave them.
    recordings: RwLock<BTreeMap<u64, (StreamKey, Arc<Recording>)>>,
    /// Streams that have ended while their rows do not say so yet, and when, Unix milliseconds.
    closing: RwLock<HashMap<StreamKey, i64>>,
}

/// Who publishes a stream.
#[derive(Clone)]
pub struct Publisher {
    /// `RTMP`, `WHIP`.
    pub protocol: &'static str,
    /// Where it connects from.
    pub address: String,
}

/// A live stream's counters.
pub struct Stream {
    /// Who publishes it, or did last.
    pub publisher: RwLock<Publisher>,
    /// When the stream became live, Unix milliseconds.
    pub since_ms: i64,
    /// Its tracks now.
    pub tracks: RwLock<Arc<Tracks>>,
    /// Pictures a second in thousandths, as measured; 0 until known.
    pub frame_rate_milli: AtomicU64,
    /// Bytes of media taken in.
    pub bytes: Meter,
    /// Readers that follow the stream now.
    pub outputs: AtomicU64,
}

impl Stream {
    /// Counters of a stream that begins.
    pub fn new(protocol: &'static str, address: String, since_ms: i64) -> Stream {
        Stream {
            publisher: RwLock::new(Publisher { protocol, address }),
            since_ms,
            tracks: RwLock::default(),
            frame_rate_milli: AtomicU64::new(0),
            bytes: Meter::default(),
            outputs: AtomicU64::new(0),
        }
    }

    /// Who publishes it.
    pub fn publisher(&self) -> Publisher {
        self.publisher.read().expect("no holder panics").clone()
    }
}

/// A relay's counters.
#[derive(Default)]
pub struct Relay {
    /// The target as anyone may see it.
    pub target: String,
    /// Bytes that the target has acknowledged, over all sessions since the task began.
    pub bytes: Meter,
    /// Frames skipped because the target was too slow.
    pub frames_dropped: AtomicU64,
    /// How it goes: what its row says as soon as that is written. See [`Relay::status`].
    pub status: Mutex<Status>,
}

impl Relay {
    /// How it goes.
    pub fn status(&self) -> Status {
        self.status.lock().expect("no holder panics").clone()
    }
}

/// A recording's counters.
#[derive(Default)]
pub struct Recording {
    /// Bytes of media taken, once for all formats.
    pub bytes: AtomicU64,
    /// Frames skipped because the disk was too slow.
    pub frames_skipped: AtomicU64,
    /// The task that it is of.
    pub task: String,
    /// How it goes: what its row says as soon as that is written. Its `state_ms` is 0 until it has told.
    pub status: Mutex<RecordStatus>,
}

/// A counter of bytes and its rate over the last seconds.
pub struct Meter {
    total: AtomicU64,
    bits_per_second: AtomicU64,
    /// When it was last measured, and what it stood at then.
    mark: Mutex<(Instant, u64)>,
}

impl Default for Meter {
    fn default() -> Meter {
        Meter { total: AtomicU64::new(0), bits_per_second: AtomicU64::new(0), mark: Mutex::new((Instant::now(), 0)) }
    }
}

impl Meter {
    /// Counts `n` more bytes.
    pub fn add(&self, n: u64) {
        self.total.fetch_add(n, Ordering::Relaxed);
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bits a second, as last measured.
    pub fn bits_per_second(&self) -> u64 {
        self.bits_per_second.load(Ordering::Relaxed)
    }

    /// Measures the rate since the last measurement; to be called about once a second.
    pub fn measure(&self, now: Instant) {
        let total = self.total();
        let mut mark = self.mark.lock().expect("no holder panics");
        let (then, before) = std::mem::replace(&mut *mark, (now, total));
        let elapsed = now.saturating_duration_since(then).as_secs_f64();
        if elapsed > 0.0 {
            let rate = (total - before) as f64 * 8.0 / elapsed;
            // Pictures come in bursts: the mean of this second and those before is what people call the rate.
            let old = self.bits_per_second() as f64;
            let smooth = if old == 0.0 { rate } else { 0.7 * old + 0.3 * rate };
            self.bits_per_second.store(smooth as u64, Ordering::Relaxed);
        }
    }
}

impl Live {
    /// Notes a stream's counters; the newest wins.
    pub fn stream_started(&self, key: StreamKey, stream: Arc<Stream>) {
        self.streams.write().expect("no holder panics").insert(key, stream);
    }

    /// Forgets a stream.
    pub fn stream_ended(&self, key: &StreamKey) {
        self.streams.write().expect("no holder panics").remove(key);
    }

    /// Notes that a stream has ended, which its rows do not say yet.
    pub fn stream_closing(&self, key: &StreamKey, at_ms: i64) {
        self.closing.write().expect("no holder panics").insert(key.clone(), at_ms);
    }

    /// The rows say by now that a stream ended then.
    pub fn stream_closed(&self, key: &StreamKey, at_ms: i64) {
        let mut closing = self.closing.write().expect("no holder panics");
        if closing.get(key) == Some(&at_ms) {
            closing.remove(key);
        }
    }

    /// When a stream ended that its rows call live, Unix milliseconds.
    pub fn closing(&self, key: &StreamKey) -> Option<i64> {
        self.closing.read().expect("no holder panics").get(key).copied()
    }

    /// One stream.
    pub fn stream(&self, key: &StreamKey) -> Option<Arc<Stream>> {
        self.streams.read().expect("no holder panics").get(key).cloned()
    }

    /// All streams, ordered by key.
    pub fn streams(&self) -> Vec<(StreamKey, Arc<Stream>)> {
        let streams = self.streams.read().expect("no holder panics");
        let mut all: Vec<_> = streams.iter().map(|(k, s)| (k.clone(), s.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Notes a relay's counters.
    pub fn relay_started(&self, key: StreamKey, address: String, relay: Arc<Relay>) {
        self.relays.write().expect("no holder panics").insert((key, address), relay);
    }

    /// Forgets a relay, unless another has taken its place.
    pub fn relay_ended(&self, key: &StreamKey, address: &str, relay: &Arc<Relay>) {
        let (mut relays, of) = (self.relays.write().expect("no holder panics"), (key.clone(), address.to_owned()));
        if relays.get(&of).is_some_and(|it| Arc::ptr_eq(it, relay)) {
            relays.remove(&of);
        }
    }

    /// One relay.
    pub fn relay(&self, key: &StreamKey, address: &str) -> Option<Arc<Relay>> {
        self.relays.read().expect("no holder panics").get(&(key.clone(), address.to_owned())).cloned()
    }

    /// All relays, ordered.
    pub fn relays(&self) -> Vec<((StreamKey, String), Arc<Relay>)> {
        let relays = self.relays.read().expect("no holder panics");
        let mut all: Vec<_> = relays.iter().map(|(k, r)| (k.clone(), r.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Notes a recording's counters.
    pub fn recording_started(&self, number: u64, key: StreamKey, recording: Arc<Recording>) {
        self.recordings.write().expect("no holder panics").insert(number, (key, recording));
    }

    /// Forgets a recording.
    pub fn recording_ended(&self, number: u64) {
        self.recordings.write().expect("no holder panics").remove(&number);
    }

    /// What a task's recording has told last, if it has: the newest of them.
    pub fn recording(&self, task: &str) -> Option<RecordStatus> {
        let recordings = self.recordings.read().expect("no holder panics");
        let of_task = recordings.values().rev().filter(|(_, it)| it.task == task);
        of_task.map(|(_, it)| it.status.lock().expect("no holder panics").clone()).find(|it| it.state_ms > 0)
    }

    /// All recordings, in the order in which they began.
    pub fn recordings(&self) -> Vec<(StreamKey, Arc<Recording>)> {
        self.recordings.read().expect("no holder panics").values().cloned().collect()
    }
}
