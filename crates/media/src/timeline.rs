//! Repairs a publisher's timestamps once, at entry.
//!
//! Each track follows its publisher's clock for as long as that is plausible: pauses, drift and the offset between
//! the tracks stay as sent, the 32-bit wrap goes on. A step that arrival times do not explain is a new
//! clock. It is joined to the line where arrival says the line would stand, and the other track joins it in the
//! same place when its own timestamps step too; until then that track stays on the old clock. A clock that stands still or runs backwards
//! for two seconds of frames is none, and arrival is all there is.
//!
//! Invariant: the times of a track rise by at least 1 ms from frame to frame, start at 0 or later, and
//! run ahead of arrival by no more than [`AHEAD_MAX_MS`], 1 % for a fast clock, and 1 ms for each frame.

use crate::{Kind, Time};

/// How far a track may step ahead of the furthest that the stream has been ahead of arrival.
const FORWARD_MS: i64 = 3_000;
/// How far a track may step back and still be on its clock.
const BACK_MS: i64 = 1_000;
/// How far apart two tracks may stand on one clock; also how far the times given out may be ahead of a track's own.
const APART_MS: i64 = 5_000;
/// A longer step is held against the other track's clock, if that is another: the nearer to arrival wins.
const SUSPECT_FORWARD_MS: i64 = 1_000;
const SUSPECT_BACK_MS: i64 = 300;
/// How long, and for how many frames, a clock may not rise and be believed.
const STILL_MS: i64 = 2_000;
const STILL_FRAMES: u32 = 8;
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
    /// The last frame that did not lie far before what had been given out.
    ahead: Option<Point>,
    /// The last time given out.
    dts: Option<i64>,
    /// The last frame whose clock had risen, and to what had not been given out yet.
    risen: Option<Point>,
    /// Frames since then.
    still: u32,
}

impl Lane {
    /// Whether a frame at `line` lies far before what has been given out.
    fn is_past(&self, line: i64) -> bool {
        self.dts.is_some_and(|given| line < given - SUSPECT_BACK_MS)
    }

    /// Whether the clock is ahead of where the last frame had it.
    fn rises(&self, raw: u32) -> bool {
        self.last.is_none_or(|last| raw.wrapping_sub(last.raw) as i32 > 0)
    }

    /// Where arrival says that a frame stands whose clock no longer rises.
    fn stands_still(&self, raw: u32, arrival: i64) -> Option<i64> {
        let risen = self.risen.filter(|_| self.still >= STILL_FRAMES && !self.rises(raw));
        risen.filter(|risen| arrival - risen.arrival >= STILL_MS).map(|risen| risen.due(arrival))
    }
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
        let point = Some(Point { raw: raw_ms, line, arrival });
        let ahead = if lane.is_past(line) { lane.ahead } else { point };
        let has_risen = lane.rises(raw_ms) && lane.dts.is_none_or(|given| line > given);
        let (risen, still) = if has_risen { (point, 0) } else { (lane.risen, lane.still.saturating_add(1)) };
        *lane = Lane { last: point, ahead, dts: Some(dts), risen, still };
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

/// Puts pictures whose composition offsets are negative where they can be decoded: earlier, and shown when they were to be.
///
/// Invariant: decoding times rise, and no picture is shown before it is decoded.
#[derive(Debug, Default)]
pub struct Order {
    /// How much earlier, the most that was needed so far.
    lead: Time,
    last: Option<Time>,
}

impl Order {
    /// Decoding time and composition offset of a picture, which are as they were given for as long as no offset was negative.
    pub fn place(&mut self, dts: Time, cts: Time) -> (Time, Time) {
        self.lead = self.lead.max(Time::ZERO - cts).min(LEAD_MAX);
        let (shown, earliest) = (dts + cts, self.last.map_or(Time::ZERO, |last| last + Time::from_millis(1)));
        let dts = (dts - self.lead).max(earliest);
        self.last = Some(dts);
        (dts, (shown - dts).max(Time::ZERO))
    }
}

/// More than sixteen pictures, which is the most that H.264 and H.265 reorder, at 15 a second.
const LEAD_MAX: Time = Time::from_millis(1_200);

/// Where on the line a frame of `lane` stands.
fn place(lane: &Lane, other: &Lane, reach: &Reach, start: (i64, i64), raw: u32, arrival: i64) -> i64 {
    if let Some(due) = lane.stands_still(raw, arrival) {
        return due;
    }
    let floor = lane.dts.map_or(-APART_MS, |dts| dts - APART_MS);
    let allowed = floor..=reach.ceiling(arrival);
    let due = match lane.last.or(other.last) {
        Some(last) => last.due(arrival),
        None => start.0 + (arrival - start.1),
    };
    let own = lane.last.map(|last| (last.at(raw), last.line));
    // One frame from the past is a slip. With the second, the clock has gone back.
    let gone_back =
        lane.last.zip(lane.ahead).is_some_and(|(last, ahead)| lane.is_past(last.line) && last.line < ahead.line);
    let believed = |line| !(gone_back && lane.is_past(line));
    // If both tracks are on one clock, the other's says nothing new.
    let others = other.last.map(|last| last.at(raw)).filter(|&line| {
        believed(line)
            && own.is_none_or(|(own, _)| line != own)
            && allowed.contains(&line)
            && (line - due).abs() <= APART_MS
    });
    let own = own.filter(|&(line, last)| {
        let stalled = arrival + reach.lead;
        believed(line) && allowed.contains(&line) && line >= last - BACK_MS && line <= stalled.max(due) + FORWARD_MS
    });
    match (own, others) {
        (Some((own, last)), Some(others)) => {
            let suspect = own > due + SUSPECT_FORWARD_MS || own < last - SUSPECT_BACK_MS;
            if suspect && (others - due).abs() < (own - due).abs() { others } else { own }
        }
        (Some((own, _)), None) => own,
        (None, Some(others)) => others,
        (None, None) => {
            let due = if gone_back { lane.ahead.map_or(due, |ahead| ahead.due(arrival)) } else { due };
            due.max(lane.dts.map_or(0, |dts| dts + 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// Stamps frames written `v<raw>@<arrival>` or `a…` (one number stands for both), or resumes at `R<arrival>`;
    /// compares with the times wanted, all in milliseconds.
    fn check(script: &str, want: &[i64]) {
        let mut line = Timeline::new();
        let mut got = Vec::new();
        for step in script.split_whitespace() {
            let (kind, numbers) = step.split_at(1);
            let (raw, arrival) = numbers.split_once('@').unwrap_or((numbers, numbers));
            let arrival = Time::from_millis(arrival.parse().unwrap());
            match kind {
                "R" => line.resume(arrival),
                kind => {
                    let track = if kind == "v" { Kind::Video } else { Kind::Audio };
                    got.push(line.stamp(track, raw.parse().unwrap(), arrival).as_millis());
                }
            }
        }
        assert_eq!(got, want, "{script}");
    }

    #[test]
    fn a_clock_that_goes_back_by_less_than_a_second_again_and_again_is_joined_where_arrival_says() {
        check("v0@0 v960@960 v0@1000 v40@1040 v960@1960 v0@2000 v40@2040", &[0, 960, 961, 1040, 1960, 1961, 2040]);
        // One frame alone is a slip.
        check("v0@0 v960@960 v0@1000 v1040@1040 v1080@1080", &[0, 960, 961, 1040, 1080]);
        check("v0@0 a0@1 v960@960 a960@961 v0@1000 a0@1001 v40@1040 a41@1042", &[0, 0, 960, 960, 961, 961, 1040, 1041]);
    }

    /// Stamps 25 pictures a second for six seconds, each with what `clock` makes of its arrival; gives the last time and the longest step.
    fn stretched(clock: impl Fn(i64) -> i64) -> (i64, i64) {
        let mut line = Timeline::new();
        let mut stamp = |n: i64| line.stamp(Kind::Video, clock(n * 40) as u32, Time::from_millis(n * 40)).as_millis();
        let times: Vec<i64> = (0..=150).map(&mut stamp).collect();
        (times[150], times.windows(2).map(|two| two[1] - two[0]).max().unwrap())
    }

    #[test]
    fn a_clock_that_stands_still_or_runs_backwards_is_joined_where_arrival_says() {
        for (what, clock) in [
            ("still", (|_| 0) as fn(i64) -> i64),
            ("still from there on", |time| time.min(1000)),
            ("still, and goes on", |time| if time < 5000 { 0 } else { time - 5000 }),
            ("backwards", |time| 10_000_000 - time),
            ("slowly backwards", |time| 10_000_000 - time / 40),
        ] {
            let (end, step) = stretched(clock);
            assert!((5_600..=6_040).contains(&end) && step <= 2_040, "{what}: ends at {end}, steps by {step}");
        }
        // A stall in the middle of a picture that comes in two messages is none.
        check("v0 v40 v80 v80@3080 v120@3080 v160@3100", &[0, 40, 80, 81, 120, 160]);
    }

    #[test]
    fn pictures_with_negative_offsets_are_shown_when_they_were_to_be() {
        let check = |pictures: &[(i64, i64)], want: &[(i64, i64)]| {
            let mut order = Order::default();
            let place = |(dts, cts): &(i64, i64)| {
                let (dts, cts) = order.place(Time::from_millis(*dts), Time::from_millis(*cts));
                (dts.as_millis(), cts.as_millis())
            };
            assert_eq!(pictures.iter().map(place).collect::<Vec<_>>(), want);
        };
        check(&[(0, 80), (40, 0), (80, 40)], &[(0, 80), (40, 0), (80, 40)]);
        // Shown at 0, 160, 80, 120, 280: as they were sent, decoding 80 ms earlier.
        let sent = [(0, 0), (40, 120), (80, 0), (160, -40), (200, 80), (240, -80), (280, 0)];
        check(&sent, &[(0, 0), (40, 120), (80, 0), (120, 0), (160, 120), (161, 0), (200, 80)]);
    }

    #[test]
    fn the_line_starts_at_the_first_frame() {
        check("v5000@70 a5010@71 v5040@110", &[0, 10, 40]);
    }

    #[test]
    fn the_offset_between_the_tracks_is_kept() {
        check("v0 v40 a3000 v3040 a3020", &[0, 40, 3000, 3040, 3020]);
        // Apart in their timestamps only.
        check("a0@0 v3000@0 a20@20 v3040@40", &[0, 3000, 20, 3040]);
    }

    #[test]
    fn a_track_that_begins_before_the_epoch_catches_up_with_its_own_time() {
        check("v100@0 a90@0 a95@5 a110@20 a130@40", &[0, 0, 1, 10, 30]);
        check("v3000@0 a0@0 a1000@1000 a2000@2000 a3000@3000 a4000@4000", &[0, 0, 1, 2, 3, 1000]);
    }

    #[test]
    fn the_32_bit_wrap_goes_on() {
        check("v4294967256@0 a4294967290@20 v0@40 a16@60 v40@80", &[0, 34, 40, 56, 80]);
    }

    #[test]
    fn small_steps_back_are_nudged() {
        check("v0 v100 v60@140 v101@141 v200", &[0, 100, 101, 102, 200]);
    }

    #[test]
    fn a_pause_and_a_stall_are_kept() {
        check("v0 a0 v40 v20040@20040 a20040@20040", &[0, 0, 40, 20040, 20040]);
        // The network held everything back for 8 s, and the publisher dropped pictures meanwhile.
        check("v0 a0 v40 v80@8080 a20@8080 a40@8080 v8000@8080 a60@8080", &[0, 0, 40, 80, 20, 40, 8000, 60]);
    }

    #[test]
    fn a_clock_set_back_is_joined_with_both_tracks_in_step() {
        check("v90000@0 a90010@10 v90040@40 v0@80 a90030@50 a10@90 v40@120", &[0, 10, 40, 80, 30, 90, 120]);
    }

    #[test]
    fn a_jump_by_hours_is_joined_with_both_tracks_in_step() {
        check("v0 a10 v40 v7200080@80 a7200090@90 v7200120@120", &[0, 10, 40, 80, 90, 120]);
        // The other track steps a little less, and alone would have been believed.
        check("v0 a10 v40 v3120@80 a3060@90", &[0, 10, 40, 80, 20]);
    }

    #[test]
    fn a_track_that_jumps_alone_does_not_take_the_other_along() {
        check("v0 a10 v40 a900030@30 v80 a900050@50 v120 a900070@70", &[0, 10, 40, 30, 80, 50, 120, 70]);
    }

    #[test]
    fn tracks_on_different_epochs_are_joined_by_arrival() {
        check("v0@0 a5000000@5 v40@40 a5000020@25", &[0, 5, 40, 25]);
    }

    #[test]
    fn garbage_advances_with_arrival() {
        check("v0@0 v9000000@40 v0@80 v9000000@120 v7@160", &[0, 40, 80, 120, 160]);
        check("v0@0 v9000000@0 v0@0 v9000000@0", &[0, 1, 2, 3]);
    }

    #[test]
    fn a_clock_that_drifts_is_left_alone() {
        let mut line = Timeline::new();
        for n in 0..2 * HOUR / 40 {
            let fast = n * 40 + n * 40 / 200;
            let got = line.stamp(Kind::Video, fast as u32, Time::from_millis(n * 40));
            assert_eq!(got.as_millis(), fast);
        }
    }

    #[test]
    fn a_publisher_that_comes_back_goes_on_where_time_has_got_to() {
        for gap in [300, 8000] {
            let mut line = Timeline::new();
            let mut stamp = |kind, raw, arrival| line.stamp(kind, raw, Time::from_millis(arrival)).as_millis();
            assert_eq!(stamp(Kind::Video, 500, 0), 0);
            assert_eq!(stamp(Kind::Audio, 510, 10), 10);
            line.resume(Time::from_millis(gap));
            let mut stamp = |kind, raw, arrival| line.stamp(kind, raw, Time::from_millis(arrival)).as_millis();
            assert_eq!(stamp(Kind::Audio, 20, gap), gap);
            assert_eq!(stamp(Kind::Video, 0, gap), gap - 20);
            assert_eq!(stamp(Kind::Video, 40, gap + 20), gap + 20);
        }
        check("R7 v0@9 R9 v0@9", &[0, 1]);
    }
}
