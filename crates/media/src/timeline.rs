//! Repairs a publisher's timestamps once, at entry.
//!
//! Each track follows its publisher's clock for as long as that is plausible: pauses, drift and the offset between
//! the tracks stay as sent, the 32-bit wrap goes on. A step that arrival times do not explain is a new
//! clock. It is joined to the line where arrival says the line would stand, and the other track joins it in the
//! same place when its own timestamps step too; until then that track stays on the old clock.
//!
//! Invariant: the times of a track rise by at least 1 ms from frame to frame, start at 0 or later, and
//! run ahead of arrival by no more than [`AHEAD_MAX_MS`], 1 % for a fast clock, and 1 ms for each frame.

use crate::{Kind, Time};

/// How far a track may step ahead of the furthest that the stream has been ahead of arrival.
const FORWARD_MS: i64 = 3_000;
/// How far a track may step back and still be on its clock.
const BACK_MS: i64 = 1_000;
/// How far apart two tracks may stand on one clock; also how long a track is held back until its clock has caught up with its times.
const APART_MS: i64 = 5_000;
/// Within these a step is held against the other track's clock if the two differ.
const SUSPECT_FORWARD_MS: i64 = 1_000;
const SUSPECT_BACK_MS: i64 = 300;
/// How far a stream may be ahead of arrival altogether: a publisher that sends a file in one go.
pub const AHEAD_MAX_MS: i64 = 60_000;

/// The line of one stream. The line starts at 0 with the first frame of either track.
///
/// A track whose first timestamp lies before that begins at 0 and moves by 1 ms a frame until
/// its own time is reached; from there on it has its true offset to the other track.
#[derive(Debug, Default)]
pub struct Timeline {
    video: Lane,
    audio: Lane,
    reach: Option<Reach>,
    /// Line and arrival that the next clock starts from, while no track is on one.
    start: Option<(i64, i64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    last: Option<Point>,
    /// The last time given out.
    dts: Option<i64>,
}

/// A frame: where its clock, the line and arrival stood. `line` is before repair and may be negative.
#[derive(Clone, Copy, Debug)]
struct Point {
    raw: u32,
    line: i64,
    arrival: i64,
}

impl Point {
    /// Where `raw` of the same clock stands.
    fn at(&self, raw: u32) -> i64 {
        // A difference of more than half the range is a step back: this is what continues the wrap.
        self.line + i64::from(raw.wrapping_sub(self.raw) as i32)
    }

    /// Where the line stands at `arrival` by arrival alone.
    fn due(&self, arrival: i64) -> i64 {
        self.line + (arrival - self.arrival)
    }
}

/// How far ahead of arrival the line may be.
#[derive(Clone, Copy, Debug)]
struct Reach {
    origin: i64,
    /// The most that the line has been ahead; what a stall held back may catch up to here.
    lead: i64,
}

impl Reach {
    fn ceiling(&self, arrival: i64) -> i64 {
        let elapsed = arrival - self.origin;
        elapsed + elapsed.max(0) / 100 + AHEAD_MAX_MS
    }
}

impl Timeline {
    /// A line without frames.
    pub fn new() -> Timeline {
        Timeline::default()
    }

    /// The decoding time of a frame. `raw_ms` is the carrier's timestamp in milliseconds, which wraps; `arrival` is
    /// when the frame came, on any fixed origin.
    pub fn stamp(&mut self, track: Kind, raw_ms: u32, arrival: Time) -> Time {
        let arrival = arrival.as_millis();
        let start = *self.start.get_or_insert((0, arrival));
        let reach = self.reach.get_or_insert(Reach { origin: arrival, lead: -arrival });
        let (lane, other) = match track {
            Kind::Video => (&mut self.video, &self.audio),
            Kind::Audio => (&mut self.audio, &self.video),
        };
        let line = place(lane, other, reach, start, raw_ms, arrival);
        reach.lead = reach.lead.max(line - arrival);
        let dts = line.max(lane.dts.map_or(0, |dts| dts + 1));
        *lane = Lane { last: Some(Point { raw: raw_ms, line, arrival }), dts: Some(dts) };
        Time::from_millis(dts)
    }

    /// A publisher came back: its clock starts anew, and the line goes on from where it was plus the time that passed.
    pub fn resume(&mut self, arrival: Time) {
        let arrival = arrival.as_millis();
        let lanes = [self.video, self.audio];
        let Some(newest) = lanes.iter().filter_map(|lane| lane.last).max_by_key(|last| last.arrival) else {
            return;
        };
        let past = lanes.iter().filter_map(|lane| lane.dts).max().map_or(0, |dts| dts + 1);
        self.start = Some((newest.due(arrival).max(past), arrival));
        self.video.last = None;
        self.audio.last = None;
    }
}

/// Where on the line a frame of `lane` stands.
fn place(lane: &Lane, other: &Lane, reach: &Reach, start: (i64, i64), raw: u32, arrival: i64) -> i64 {
    let floor = lane.dts.map_or(-APART_MS, |dts| dts - APART_MS);
    let allowed = floor..=reach.ceiling(arrival);
    let due = match lane.last.or(other.last) {
        Some(last) => last.due(arrival),
        None => start.0 + (arrival - start.1),
    };
    let own = lane.last.map(|last| (last.at(raw), last.line)).filter(|&(line, last)| {
        let stalled = arrival + reach.lead;
        allowed.contains(&line) && line >= last - BACK_MS && line <= stalled.max(due) + FORWARD_MS
    });
    let others = other.last.map(|last| last.at(raw));
    let others = others.filter(|line| allowed.contains(line) && (line - due).abs() <= APART_MS);
    match (own, others) {
        (Some((own, last)), Some(others)) => {
            let suspect = own > due + SUSPECT_FORWARD_MS || own < last - SUSPECT_BACK_MS;
            if suspect && (others - due).abs() < (own - due).abs() { others } else { own }
        }
        (Some((own, _)), None) => own,
        (None, Some(others)) => others,
        (None, None) => due.max(lane.dts.map_or(0, |dts| dts + 1)),
    }
}
