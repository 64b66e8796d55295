//! Frames collected into fragments: one `moof` and one `mdat` for each stretch of about half a second.
//!
//! Times are computed from the stream's own line, never by adding up rounded durations, and count from the smallest
//! decoding time of the first fragment. Sound is counted in samples instead, as long as its stamps agree within a packet.

use std::sync::Arc;

use bytes::Bytes;

use super::boxes::{Head, boxed, full, packet_ticks};
use crate::mux::clock::{last_length, placed};
use crate::{Frame, Kind, Time, Track, Tracks};

/// How long a fragment collects. What a kill costs is this and a frame, beside what is on its way from the stream to the disk.
const LENGTH: Time = Time::from_millis(500);
/// How much of it, in bytes: a bound for what is held in memory.
const BYTES_MAX: usize = 16 << 20;

/// A track that is this far behind what was pushed last pauses, or has ended.
const PAUSE: Time = Time::from_millis(1_000);

const KEY: u32 = 0x0200_0000;
const NOT_KEY: u32 = 0x0101_0000;

/// Collects the frames of all tracks.
#[derive(Debug)]
pub(crate) struct Fragments {
    lanes: Vec<Lane>,
    /// Where the times of the file begin.
    base: Option<Time>,
    /// The decoding time at which the fragment being collected was begun.
    begun: Option<Time>,
    /// That of the sample that was pushed last.
    pushed: Time,
    bytes: usize,
    sequence: u32,
}

#[derive(Debug)]
struct Lane {
    head: Head,
    track: Arc<Track>,
    samples: Vec<Sample>,
    /// When the sample that was pushed last is decoded, and how long it lasts by itself.
    last: Option<(i64, u32)>,
    /// The duration of the last sample whose successor is known, in ticks.
    step: u32,
}

#[derive(Debug)]
struct Sample {
    /// Decoding time in ticks, on the stream's line.
    dts: i64,
    offset: u32,
    /// How long it lasts by itself, in ticks; 0 for a picture.
    duration: u32,
    key: bool,
    payload: Bytes,
}

/// A fragment in the bytes of the file: the `moof` and the head of the `mdat`, then the payloads.
pub(crate) type Parts = Vec<Bytes>;

impl Fragments {
    pub(crate) fn new(tracks: &Tracks) -> Fragments {
        let lane = |(id, track): (u32, &Arc<Track>)| Lane {
            head: Head::new(id, track),
            track: track.clone(),
            samples: Vec::new(),
            last: None,
            step: 0,
        };
        let lanes = (1..).zip([&tracks.video, &tracks.audio].into_iter().flatten()).map(lane).collect();
        Fragments { lanes, base: None, begun: None, pushed: Time::ZERO, bytes: 0, sequence: 0 }
    }

    /// Those whose times count from zero.
    pub(crate) fn going_on(tracks: &Tracks) -> Fragments {
        Fragments { base: Some(Time::ZERO), ..Fragments::new(tracks) }
    }

    pub(crate) fn heads(&self) -> Vec<Head> {
        self.lanes.iter().map(|lane| lane.head.clone()).collect()
    }

    /// Takes a frame; says whether it is time to [`cut`](Self::cut). A frame of no known track is passed over.
    pub(crate) fn push(&mut self, frame: &Frame) -> bool {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.head.kind == frame.track) else { return false };
        lane.push(frame, self.base);
        self.bytes += frame.payload.len();
        self.pushed = lane.samples.last().map_or(frame.dts, |it| lane.time(it));
        let begun = *self.begun.get_or_insert(frame.dts);
        frame.dts - begun >= LENGTH || self.bytes >= BYTES_MAX
    }

    /// The fragment of all samples but the last of each track, whose duration only the next will tell. `None` if that is nothing.
    pub(crate) fn cut(&mut self) -> Option<Parts> {
        self.take(|lane| lane.samples.len().saturating_sub(1))
    }

    /// That with which a segment ends: likewise, but a track that pauses is not waited for, as its next sample may be segments away.
    pub(crate) fn end(&mut self) -> Option<Parts> {
        let pushed = self.pushed;
        self.take(|lane| match lane.samples.last() {
            Some(last) if pushed - lane.time(last) <= PAUSE => lane.samples.len() - 1,
            _ => lane.samples.len(),
        })
    }

    /// The fragment of all that is left.
    pub(crate) fn flush(&mut self) -> Option<Parts> {
        self.take(|lane| lane.samples.len())
    }

    /// The fragment of the first samples of each track, as many as are `ready`.
    fn take(&mut self, ready: impl Fn(&Lane) -> usize) -> Option<Parts> {
        self.begun = self.lanes.iter().filter_map(|lane| Some(lane.time(lane.samples.last()?))).max();
        let firsts = self.lanes.iter().filter_map(|lane| Some(lane.time(lane.samples.first()?)));
        let base = *self.base.get_or_insert(firsts.min()?);
        let total: usize = self.lanes.iter().map(&ready).sum();
        if total == 0 {
            return None;
        }
        let until = self.lanes.iter().filter_map(Lane::until).max().unwrap_or(base);
        self.sequence += 1;
        let mut head = Vec::with_capacity(128 + 16 * total);
        // Where each track's offset is to be put, and how many bytes of payload it has.
        let mut holes = [(0, 0); 2];
        boxed(&mut head, b"moof", |out| {
            full(out, b"mfhd", 0, 0, |out| out.extend(self.sequence.to_be_bytes()));
            for (lane, hole) in self.lanes.iter_mut().zip(&mut holes) {
                if ready(lane) > 0 {
                    *hole = lane.traf(out, ready(lane), base, until);
                }
            }
        });
        let mut offset = head.len() + 8;
        for (at, bytes) in holes.into_iter().filter(|&(at, _)| at > 0) {
            head[at..at + 4].copy_from_slice(&(offset as u32).to_be_bytes());
            offset += bytes;
        }
        let payload = offset - head.len() - 8;
        head.extend((payload as u32 + 8).to_be_bytes());
        head.extend(b"mdat");
        self.bytes -= payload;
        let mut parts = Vec::with_capacity(1 + total);
        parts.push(head.into());
        for lane in &mut self.lanes {
            let ready = ready(lane);
            parts.extend(lane.samples.drain(..ready).map(|sample| sample.payload));
        }
        Some(parts)
    }
}

impl Lane {
    fn push(&mut self, frame: &Frame, base: Option<Time>) {
        let rate = self.head.timescale;
        let duration = packet_ticks(&self.track, &frame.payload);
        let stamped = frame.dts.max(base.unwrap_or(frame.dts)).as_ticks(rate);
        let dts = placed(stamped, duration, self.last);
        self.last = Some((dts, duration));
        let offset = frame.cts.as_ticks(rate).clamp(0, u32::MAX.into()) as u32;
        let (key, payload) = (frame.key || frame.track == Kind::Audio, frame.payload.clone());
        self.samples.push(Sample { dts, offset, duration, key, payload });
    }

    fn time(&self, sample: &Sample) -> Time {
        Time::from_ticks(sample.dts, self.head.timescale)
    }

    /// How far the track is known to go: to the end of its last packet, or to the beginning of its last picture.
    fn until(&self) -> Option<Time> {
        self.last.map(|(dts, duration)| Time::from_ticks(dts + i64::from(duration), self.head.timescale))
    }

    /// Writes the first `count` samples' `traf`, all tracks being known to go `until` then; gives the place of its data offset, and
    /// the samples' bytes.
    fn traf(&mut self, out: &mut Vec<u8>, count: usize, base: Time, until: Time) -> (usize, usize) {
        const DEFAULT_BASE_IS_MOOF: u32 = 0x02_0000;
        const OFFSET_DURATION_SIZE_FLAGS: u32 = 0x701;
        const COMPOSITION: u32 = 0x800;
        let (samples, rate) = (&self.samples[..count], self.head.timescale);
        let reordered = samples.iter().any(|sample| sample.offset > 0);
        let (mut hole, mut bytes) = (0, 0);
        boxed(out, b"traf", |out| {
            full(out, b"tfhd", 0, DEFAULT_BASE_IS_MOOF, |out| out.extend(self.head.id.to_be_bytes()));
            let start = (samples[0].dts - base.as_ticks(self.head.timescale)).max(0);
            full(out, b"tfdt", 1, 0, |out| out.extend(start.to_be_bytes()));
            let flags = OFFSET_DURATION_SIZE_FLAGS | if reordered { COMPOSITION } else { 0 };
            full(out, b"trun", 0, flags, |out| {
                out.extend((count as u32).to_be_bytes());
                hole = out.len();
                out.extend([0; 4]);
                for (at, sample) in samples.iter().enumerate() {
                    self.step = match self.samples.get(at + 1) {
                        Some(next) => (next.dts - sample.dts).min(u32::MAX.into()) as u32,
                        None if sample.duration > 0 => sample.duration,
                        None => {
                            let rest = until - Time::from_ticks(sample.dts, rate);
                            last_length(Time::from_ticks(self.step.into(), rate), rest).as_ticks(rate) as u32
                        }
                    };
                    let flags = if sample.key { KEY } else { NOT_KEY };
                    bytes += sample.payload.len();
                    out.extend(self.step.to_be_bytes());
                    out.extend((sample.payload.len() as u32).to_be_bytes());
                    out.extend(flags.to_be_bytes());
                    if reordered {
                        out.extend(sample.offset.to_be_bytes());
                    }
                }
            });
        });
        (hole, bytes)
    }
}
