//! Puts the two tracks of an RTP sender on one line, by its sender reports or, without them, by arrival.
//!
//! The RTP clocks of a sender share neither origin nor exact rate. What ties them is the sender's wall clock, which RTCP
//! sender reports give for a moment of each track (RFC 3550 §6.4.1); and arrival, as packets that left together
//! come together, the quickest of some seconds most exactly. Each gives for each track one number, how far that clock
//! is from the track's own, and the difference of the two numbers is where one track belongs beside the other.
//!
//! Sound is the line: its times are those of its RTP clock, so that a codec sees no seam. Pictures are moved to it, by a
//! tenth of their pace at most. An RTP timestamp says when a picture is shown; when it is decoded follows from the order they come in.
//!
//! Invariant: the times of a track rise by at least 1 ms from frame to frame and start at 0 or later, whatever comes in.

use crate::{Kind, Time};

/// How fast pictures move towards their place: this share of the way for each second of media …
const PULL: f64 = 0.5;
/// … but no faster than this share of their own pace.
const SLEW_MAX: f64 = 0.1;
/// How far before its time a frame may seem to come, and how far reports and arrival may disagree: beyond is another clock.
const PLAUSIBLE: Time = Time::from_millis(3_000);
/// How far a track's timestamps may go back; reordering explains no more.
const BACK_MAX: Time = Time::from_millis(1_000);
/// A track that is silent for so long while the other comes in time has paused; nothing holds packets that long for
/// one track alone.
const PAUSE: Time = Time::from_millis(3_000);
/// A track that is silent for so long, while its timestamps count less than a quarter of it, may have paused.
const GAP: Time = Time::from_millis(250);
/// By how much it comes later than it says, then …
const LATE: Time = Time::from_millis(100);
/// … and for how long, as what was held back catches up. Pictures may wait for an encoder, or for what was sent before them;
/// sound that comes after a gap does not.
const SURE: Time = Time::from_millis(500);
const SURE_SOUND: Time = Time::from_millis(100);
/// How far a report may stand from those before it, besides [`DRIFT`].
const REPORT_NOISE: Time = Time::from_millis(50);
/// A wall clock that shows so little of a second shows whole seconds only: werift writes milliseconds where the fraction belongs.
const FRACTION_MIN: Time = Time::from_nanos(1_000);
/// How fast a track's clock may run away from the sender's wall clock, in millionths; twice what is seen at worst.
const DRIFT: i64 = 1_000;
/// How long a report is believed without another one. At 400 ppm between the tracks that is 12 ms.
const REPORT_AGE: Time = Time::from_millis(30_000);
/// How many reports weigh in the mean.
const REPORTS: i64 = 4;
/// How many pictures may be shown behind one that is decoded after them (H.264 §A.3.1, H.265 §A.4.2).
const REORDER_MAX: usize = 16;
/// Between what a track's trust stays. A report that agrees adds one, one that contradicts takes two, and reports count from one on.
const TRUST: (i64, i64) = (-4, 4);

/// The line of one sender. It starts at 0 with the first frame of either track.
#[derive(Debug, Default)]
pub struct Sync {
    video: Lane,
    audio: Lane,
    /// What reports say more than arrival does: pictures may take longer to encode than sound. Kept for when reports end.
    bias: Time,
}

#[derive(Debug, Default)]
struct Lane {
    last: Option<Point>,
    /// A frame that does not fit the clock; a second one that fits this one makes it the clock.
    suspect: Option<Point>,
    /// What to add to the track's clock for the line.
    offset: Option<Time>,
    floors: Floors,
    report: Option<Report>,
    /// A report that contradicts; a second one that agrees with it makes it the report.
    doubt: Option<Report>,
    /// How often its reports have agreed of late, see [`TRUST`].
    trust: i64,
    late: Option<Late>,
    /// The last pause, until a report says whether it was one.
    moved: Option<Moved>,
    order: Order,
    /// The last time given out.
    out: Option<Time>,
}

/// The time of a frame on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// When it is decoded.
    pub dts: Time,
    /// How much later it is shown. It is zero unless the sender's pictures are shown in another order than they are decoded in.
    pub cts: Time,
}

/// In which order pictures are shown.
#[derive(Debug, Default)]
struct Order {
    /// When the last ones are, sorted.
    shown: Vec<Time>,
    /// How many pictures have been shown behind one that was decoded after them, at the most.
    depth: usize,
}

/// A frame: its timestamp, where that is on the track's own clock, and when it came.
#[derive(Clone, Copy, Debug)]
struct Point {
    rtp: u32,
    media: Time,
    arrival: Time,
}

/// Frames that come later than they say, though those of the other track do not.
#[derive(Clone, Copy, Debug)]
struct Late {
    since: Time,
    /// They began behind a [`GAP`].
    gap: bool,
    /// How much greater than the other track's the delay was before.
    apart: Time,
    /// By how much the first one was late.
    first: Time,
    /// The least delay since, of this track and of the other.
    own: Time,
    other: Time,
}

/// By how much a pause put a track later, when, and the least delay that was known then.
#[derive(Clone, Copy, Debug)]
struct Moved {
    by: Time,
    at: Time,
    floor: Time,
}

/// What reports say.
#[derive(Clone, Copy, Debug)]
struct Report {
    /// The sender's wall clock less the track's own.
    ahead: Time,
    ntp: Time,
    arrival: Time,
    /// How many agree.
    count: i64,
}

impl Sync {
    /// A line without frames.
    pub fn new() -> Sync {
        Sync::default()
    }

    /// An RTCP sender report: `rtp` of `track`, whose clock has `rate` Hz, was sampled at the sender's time `ntp`, on any
    /// origin that is a whole number of seconds from NTP's, and the report came at `arrival`. A sender that has no wall clock says 0,
    /// which says nothing.
    pub fn report(&mut self, track: Kind, rate: u32, rtp: u32, ntp: Time, arrival: Time) {
        let (lane, other) = match track {
            Kind::Video => (&mut self.video, &mut self.audio),
            Kind::Audio => (&mut self.audio, &mut self.video),
        };
        // Where a late track stands is not known before it is known whether it paused.
        let says = lane.late.is_none() && ntp.as_nanos().rem_euclid(1_000_000_000) >= FRACTION_MIN.as_nanos();
        let Some(last) = lane.last.filter(|_| says) else { return };
        let media = last.at(rate, rtp);
        let now = last.media + (arrival - last.arrival);
        if distance(media, now) > PLAUSIBLE + PLAUSIBLE {
            return;
        }
        let new = Report { ahead: ntp - media, ntp, arrival, count: 1 };
        if let (Some(known), Some(moved)) = (lane.report, lane.moved.take()) {
            // Its clock went on: it was late, and pictures go back to their place as pictures go.
            let back = Report { ahead: known.ahead - moved.by, ..known };
            lane.report = Some(if !known.agrees(&new) && back.agrees(&new) { back } else { known });
        }
        match (lane.report, lane.doubt) {
            // The same once more, or overtaken by a newer one.
            (Some(known), _) if known.agrees(&new) && ntp <= known.ntp => return,
            (Some(known), _) if known.agrees(&new) => {
                lane.report = Some(known.with(&new));
                lane.doubt = None;
                lane.trust = TRUST.1.min(lane.trust + 1);
            }
            (_, Some(doubt)) if doubt.agrees(&new) && ntp > doubt.ntp => {
                lane.report = Some(doubt.with(&new));
                lane.doubt = None;
                lane.trust = TRUST.1.min(lane.trust + 1);
                // The wall clock was set: what the other track's reports said before is void.
                other.report = other.doubt.take();
            }
            (None, None) => lane.report = Some(new),
            (known, _) => {
                lane.report = known.map(|it| Report { count: it.count - 1, ..it }).filter(|it| it.count > 0);
                lane.doubt = Some(new);
                lane.trust = TRUST.0.max(lane.trust - 2);
                if lane.trust < 1 {
                    // Neither was what it said before.
                    self.bias = Time::ZERO;
                }
            }
        }
        if let (Some(reported), Some(arrived)) = (self.reported(arrival), self.arrived()) {
            self.bias = reported - arrived;
        }
    }

    /// The frames of `track` come from another encoder from now on, whose timestamps begin elsewhere: the line goes on with arrival.
    pub fn restart(&mut self, track: Kind) {
        let lane = match track {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        };
        (lane.last, lane.suspect, lane.report, lane.doubt) = (None, None, None, None);
        (lane.late, lane.moved) = (None, None);
    }

    /// The time on the line of a frame of `track`, whose clock has `rate` Hz, with timestamp `rtp`, that came at `arrival`.
    pub fn stamp(&mut self, track: Kind, rate: u32, rtp: u32, arrival: Time) -> Stamp {
        let (lane, other) = match track {
            Kind::Video => (&mut self.video, &self.audio),
            Kind::Audio => (&mut self.audio, &self.video),
        };
        let before = lane.last.map(|last| last.media);
        let media = lane.place(track, other, rate, rtp, arrival);
        if lane.late.is_none() {
            lane.floors.add(arrival, arrival - media);
        }
        let offset = match (track, lane.offset, other.offset) {
            (_, None, None) => Time::ZERO - media,
            // At its first frame the track's own clock is arrival.
            (_, None, Some(others)) => others - other.floors.lowest,
            (Kind::Video, Some(own), Some(others)) => {
                let goal = self.apart(arrival).map_or(own, |apart| others + apart);
                let passed = before.map_or(Time::ZERO, |before| media - before).as_nanos().max(0) as f64;
                let pull = (PULL * passed / 1e9).min(1.0) * (goal - own).as_nanos() as f64;
                own + Time::from_nanos(pull.clamp(-SLEW_MAX * passed, SLEW_MAX * passed) as i64)
            }
            (_, Some(own), _) => own,
        };
        let lane = match track {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        };
        lane.offset = Some(offset);
        let next = lane.out.map_or(Time::ZERO, |out| out + Time::from_millis(1));
        let shown = media + offset;
        let (dts, reorders) = match track {
            Kind::Video => (lane.order.decoded(shown).max(next), lane.order.depth > 0),
            Kind::Audio => (shown.max(next), false),
        };
        lane.out = Some(dts);
        let cts = if reorders { (shown - dts).max(Time::ZERO) } else { Time::ZERO };
        Stamp { dts, cts }
    }

    /// How much more has to be added to the clock of pictures than to that of sound.
    fn apart(&self, now: Time) -> Option<Time> {
        let arrived = self.arrived().map(|it| it + self.bias);
        self.reported(now).or(arrived)
    }

    /// The same by reports alone, while they are believed, fresh and not absurd.
    fn reported(&self, now: Time) -> Option<Time> {
        let apart = self.video.believed(now)?.ahead - self.audio.believed(now)?.ahead;
        self.arrived().is_none_or(|arrived| distance(apart, arrived) <= PLAUSIBLE).then_some(apart)
    }

    /// The same by arrival alone.
    fn arrived(&self) -> Option<Time> {
        self.video.floors.less(&self.audio.floors)
    }
}

impl Lane {
    /// Where a frame stands on the track's own clock. This goes on over the 32-bit wrap and over what was lost, and where
    /// the sender sets its clock, it goes on with arrival.
    fn place(&mut self, track: Kind, other: &Lane, rate: u32, rtp: u32, arrival: Time) -> Time {
        let due = arrival - self.floors.lowest;
        let Some(last) = self.last else {
            self.order = Order::default();
            self.last = Some(Point { rtp, media: due, arrival });
            return due;
        };
        let fits = |from: Point| {
            let point = Point { rtp, media: from.at(rate, rtp), arrival };
            (point.media - due <= PLAUSIBLE && from.media - point.media <= BACK_MAX).then_some(point)
        };
        let stood = due - last.at(rate, rtp) >= PAUSE && arrival - last.arrival >= PAUSE;
        if stood && other.last.is_some_and(|it| other.flows(it, arrival)) {
            (self.order, self.late) = (Order::default(), None);
            self.last = Some(Point { rtp, media: due, arrival });
            return due;
        }
        match fits(last).or_else(|| fits(self.suspect?)) {
            Some(mut point) => {
                if let Some(stood) = self.paused(track, other, last, point) {
                    self.order = Order::default();
                    point.media = point.media + stood;
                }
                self.last = Some(point);
                if self.suspect.take().is_some() {
                    self.order = Order::default();
                }
                point.media
            }
            None => {
                (self.order, self.late) = (Order::default(), None);
                self.suspect = Some(Point { rtp, media: due, arrival });
                due
            }
        }
    }

    /// By how much the track's clock has stood, if `new`, which follows `last`, makes it sure that it has. What was sent later does not come
    /// earlier: a track that is late while the other one is not was not held back on the way.
    fn paused(&mut self, track: Kind, other: &Lane, last: Point, new: Point) -> Option<Time> {
        let before = self.late.take();
        let others = other.last.filter(|it| new.arrival - it.arrival < PAUSE)?;
        let apart = before.map(|it| it.apart).or_else(|| self.floors.less(&other.floors))?;
        let (own, beside) = (new.delay(), others.delay());
        if let Some(moved) = &mut self.moved
            && track == Kind::Audio
            && own < moved.floor
            && new.arrival - moved.at < PAUSE
        {
            // It comes still earlier: so much of it was held back after all.
            let back = (moved.floor - own).min(moved.by);
            moved.by = moved.by - back;
            return Some(Time::ZERO - back);
        }
        // Beside the other track, and beside what it was: it is not late because the other comes sooner than before.
        let lowest = self.floors.lowest;
        let lag_of = |own: Time, beside: Time| (own - beside - apart).min(own - lowest);
        let lag = lag_of(own, beside);
        let passed = new.arrival - last.arrival;
        let gap = passed >= GAP && (new.media - last.media).as_nanos() < passed.as_nanos() / 4;
        if lag < LATE || (before.is_none() && !gap && track == Kind::Video) {
            return None;
        }
        let begins = Late { since: new.arrival, gap, apart, first: lag, own, other: beside };
        let late = before.filter(|_| !gap).unwrap_or(begins);
        let late = Late { own: late.own.min(own), other: late.other.min(beside), ..late };
        let stood = lag_of(late.own, late.other);
        if stood.as_nanos() < late.first.as_nanos() * 2 / 3 {
            // It catches up.
            self.late = (track == Kind::Audio).then_some(begins);
            return None;
        }
        let sure = if late.gap && track == Kind::Audio { SURE_SOUND } else { SURE };
        let overtaken = (new.arrival - others.arrival).as_nanos() <= lag.as_nanos() / 2;
        if !overtaken || new.arrival - late.since < sure {
            self.late = Some(late);
            return None;
        }
        self.moved = Some(Moved { by: stood, at: new.arrival, floor: late.own - stood });
        Some(stood)
    }

    /// What its reports say, if another one has borne that out and they do not keep contradicting each other.
    fn believed(&self, now: Time) -> Option<Report> {
        self.report.filter(|it| it.count > 1 && self.trust > 0 && now - it.arrival <= REPORT_AGE)
    }

    /// Whether frames of this track come, and in time; `last` is the newest.
    fn flows(&self, last: Point, now: Time) -> bool {
        let late = last.delay() - self.floors.lowest;
        now - last.arrival < PAUSE && late < PAUSE
    }
}

impl Order {
    /// When a picture is decoded that is shown at `shown`: as the pictures are shown, but by [`Order::depth`] of them earlier, so that each
    /// is decoded by the time it is shown. Where the depth was not known yet the times do not rise.
    fn decoded(&mut self, shown: Time) -> Time {
        let at = self.shown.partition_point(|it| *it <= shown);
        self.depth = self.depth.max(self.shown.len() - at);
        self.shown.insert(at, shown);
        if self.shown.len() > REORDER_MAX + 1 {
            self.shown.remove(0);
        }
        self.shown[self.shown.len().saturating_sub(1 + self.depth)]
    }
}

impl Point {
    /// How long it took, on the track's own clock.
    fn delay(&self) -> Time {
        self.arrival - self.media
    }

    /// Where `rtp` of the same clock stands; half the range forward and half back.
    fn at(&self, rate: u32, rtp: u32) -> Time {
        self.media + Time::from_ticks(i64::from(rtp.wrapping_sub(self.rtp) as i32), rate.max(1))
    }
}

impl Report {
    fn agrees(&self, new: &Report) -> bool {
        let age = distance(new.arrival, self.arrival).as_nanos();
        distance(self.ahead, new.ahead) <= REPORT_NOISE + Time::from_nanos(age / 1_000_000 * DRIFT)
    }

    /// The mean with a newer one.
    fn with(&self, new: &Report) -> Report {
        let count = (self.count + 1).min(REPORTS);
        let ahead = self.ahead + Time::from_nanos((new.ahead - self.ahead).as_nanos() / count);
        Report { ahead, count, ..*new }
    }
}

/// The least delay of a track in each of the last spans of 2 s. A delay is arrival less the track's own clock.
#[derive(Debug, Default)]
struct Floors {
    /// Span and delay, at the span's place.
    spans: [Option<(i64, Time)>; SPANS],
    /// The least of all.
    lowest: Time,
}

const SPANS: usize = 16;

impl Floors {
    fn add(&mut self, arrival: Time, delay: Time) {
        let now = arrival.as_millis().div_euclid(2_000);
        let span = &mut self.spans[now.rem_euclid(SPANS as i64) as usize];
        match span {
            Some((same, least)) if *same == now => *least = delay.min(*least),
            _ => *span = Some((now, delay)),
        }
        let recent = self.spans.iter().flatten().filter(|it| now.saturating_sub(it.0) < SPANS as i64);
        self.lowest = recent.map(|it| it.1).min().unwrap_or(delay);
    }

    /// The least delay less that of `other`: the median of the spans that saw both tracks. A change on the way changes
    /// both, but may leave one span where it had changed for one of them only.
    fn less(&self, other: &Floors) -> Option<Time> {
        let pairs = self.spans.iter().zip(&other.spans).filter_map(|(own, other)| own.zip(*other));
        let both = pairs.filter(|(own, other)| own.0 == other.0).map(|(own, other)| (own.0, own.1 - other.1));
        let newest = both.clone().map(|it| it.0).max()?;
        let mut recent = [Time::ZERO; SPANS];
        let mut count = 0;
        for (_, difference) in both.filter(|it| newest - it.0 < SPANS as i64) {
            recent[count] = difference;
            count += 1;
        }
        recent[..count].sort_unstable();
        Some(recent[count / 2])
    }
}

fn distance(a: Time, b: Time) -> Time {
    (a - b).max(b - a)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// Plays frames written `v<rtp>@<arrival>` or `a…` and reports `V<rtp>=<ntp>@<arrival>` or `A…`, on clocks of 1 kHz;
    /// compares the frames' times with those wanted, all in milliseconds.
    fn check(script: &str, want: &[i64]) {
        let mut line = Sync::new();
        let mut got = Vec::new();
        for step in script.split_whitespace() {
            let (kind, numbers) = step.split_at(1);
            let (numbers, arrival) = numbers.split_once('@').unwrap();
            let arrival = Time::from_millis(arrival.parse().unwrap());
            let track = if kind.eq_ignore_ascii_case("v") { Kind::Video } else { Kind::Audio };
            match numbers.split_once('=') {
                Some((rtp, ntp)) => {
                    let ntp = Time::from_millis(ntp.parse().unwrap());
                    line.report(track, 1_000, rtp.parse().unwrap(), ntp, arrival);
                }
                None => got.push(line.stamp(track, 1_000, numbers.parse().unwrap(), arrival).dts.as_millis()),
            }
        }
        assert_eq!(got, want, "{script}");
    }

    #[test]
    fn the_line_starts_at_the_first_frame_and_keeps_each_tracks_own_steps() {
        check("v5000@70 a90010@80 v5040@115 a90030@97", &[0, 10, 40, 30]);
    }

    #[test]
    fn the_32_bit_wrap_goes_on() {
        check("a4294967290@0 a14@20 a34@40", &[0, 20, 40]);
    }

    #[test]
    fn a_second_track_is_placed_by_the_quickest_packets_of_the_first() {
        // Pictures that came 30 ms and 0 ms late; sound comes without delay.
        check("v0@130 v40@140 a900@180", &[0, 40, 80]);
    }

    #[test]
    fn another_encoder_of_pictures_goes_on_where_time_has_got_to() {
        let mut line = Sync::new();
        let stamp =
            |line: &mut Sync, rtp, ms| line.stamp(Kind::Video, 1_000, rtp, Time::from_millis(ms)).dts.as_millis();
        assert_eq!([stamp(&mut line, 5_000, 70), stamp(&mut line, 5_040, 110)], [0, 40]);
        line.restart(Kind::Video);
        assert_eq!([stamp(&mut line, 900_000, 150), stamp(&mut line, 900_040, 190)], [80, 120]);
    }

    #[test]
    fn pictures_are_pulled_to_sound_without_a_jump() {
        // Reports say that pictures are taken 100 ms later than they seem to be.
        check(
            "a0@0 v0@0 A0=7010@1 V0=7110@1 A1=7011@2 V1=7111@2 v100@100 a100@100 v200@200 v1200@1200 v3200@3200 v5200@5200",
            &[0, 0, 105, 100, 209, 1254, 3300, 5300],
        );
    }

    /// Stamps pictures that come every 40 ms with these timestamps, in 40 ms; compares when each is decoded and shown, in milliseconds.
    fn check_order(rtp: &[u32], want: &[(i64, i64)]) {
        let mut line = Sync::new();
        let stamps = (0..).zip(rtp).map(|(n, rtp)| line.stamp(Kind::Video, 25, 900 + rtp, Time::from_millis(n * 40)));
        let got: Vec<_> = stamps.map(|it| (it.dts.as_millis(), (it.dts + it.cts).as_millis())).collect();
        assert_eq!(got, want, "{rtp:?}");
    }

    #[test]
    fn pictures_that_are_decoded_in_another_order_are_shown_in_theirs() {
        check_order(&[0, 1, 2, 3], &[(0, 0), (40, 40), (80, 80), (120, 120)]);
        // A B-frame: once it is known that there are any, pictures are decoded one earlier than they are shown.
        check_order(
            &[0, 2, 1, 4, 3, 6, 5],
            &[(0, 0), (80, 80), (81, 81), (82, 160), (120, 120), (160, 240), (200, 200)],
        );
        // One that others need, so two earlier.
        check_order(
            &[0, 4, 2, 1, 3, 8, 6, 5, 7, 9],
            &[
                (0, 0),
                (160, 160),
                (161, 161),
                (162, 162),
                (163, 163),
                (164, 320),
                (165, 240),
                (200, 200),
                (240, 280),
                (280, 360),
            ],
        );
        // A strange timestamp is no B-frame.
        check_order(&[0, 1, 2, 90_000, 3, 4], &[(0, 0), (40, 40), (80, 80), (120, 120), (121, 121), (160, 160)]);
    }

    #[test]
    fn one_frame_with_a_strange_timestamp_leaves_the_clock() {
        check("a0@0 a20@20 a7200000@40 a60@60 a3000000000@80 a100@100", &[0, 20, 40, 60, 80, 100]);
    }

    #[test]
    fn a_clock_that_is_set_goes_on_with_arrival() {
        check("a90000@0 a90020@20 a5@40 a25@60 a45@80", &[0, 20, 40, 60, 80]);
        check("v0@0 v40@40 v7200080@80 v7200120@120 v7200160@160", &[0, 40, 80, 120, 160]);
    }

    #[test]
    fn a_pause_keeps_the_line() {
        // Mute that says nothing, and mute whose clock stands.
        let pictures = "v0@0 v1000@1000 v4000@4000 v7000@7000 v9000@9000";
        check(&format!("a0@0 {pictures} a9000@9000 a9020@9020"), &[0, 0, 1000, 4000, 7000, 9000, 9000, 9020]);
        check(&format!("a0@0 {pictures} a20@9000 a40@9020"), &[0, 0, 1000, 4000, 7000, 9000, 9000, 9020]);
        // What a stall of the network held back is not a pause.
        check("a0@0 v0@0 a20@9000 v40@9000 a40@9000 v80@9000", &[0, 0, 20, 40, 40, 80]);
    }

    #[test]
    fn a_report_that_cannot_be_true_is_ignored() {
        let all_as_arrival_says = [0, 0, 1000, 1000, 2000, 3000];
        for reports in [
            "V900000=8010@1 V900001=8011@2",
            "V0=0@1 V1000=0@2",
            "V0=8000@1 V1000=9000@2",
            "V0=7110@1",
            "V0=7110@1 V0=7110@2",
            "V0=7110@1 V1=8300@2",
            "V0=99999999@1 V1=99999999@2",
            "V0=12010@1 V1=12011@2",
            "A0=7010@1",
        ] {
            check(
                &format!("a0@0 v0@0 A0=7010@1 A1=7011@2 {reports} v1000@1000 a1000@1000 v2000@2000 v3000@3000"),
                &all_as_arrival_says,
            )
        }
    }

    /// A sender, the way from it, and what it reports.
    #[derive(Clone, Copy)]
    struct Case {
        /// How fast the clocks of pictures, of sound and of the wall run, in millionths more than ours.
        drift: [f64; 3],
        /// How much longer than sound a picture takes to be sent, in seconds.
        encode: f64,
        /// When each track starts: pictures and sound.
        start: [f64; 2],
        /// From when each track is reported.
        reports: [f64; 2],
        /// Until when they are.
        reported: f64,
        /// What they say of a time, and of a number between 0 and 1 that nobody knows.
        wall: fn(f64, f64) -> f64,
        /// Time and delay of steps of the network, in seconds.
        steps: &'static [(f64, f64)],
        /// The track that pauses, and when and for how long.
        pauses: (usize, &'static [(f64, f64)]),
        /// Its clock stands then.
        stands: bool,
        /// For how long a track holds back what it captures at a time.
        held: fn(usize, f64) -> f64,
        /// From when the offset must hold; but not before a second after a pause.
        settled: f64,
        /// How long, in seconds.
        length: f64,
    }

    const NEVER: f64 = 1e9;
    const PLAIN: Case = Case {
        drift: [0.0; 3],
        encode: 0.0,
        start: [0.0, 0.0],
        reports: [0.8, 2.5],
        reported: NEVER,
        wall: |at, dice| at + 0.004 * (dice - 0.5),
        steps: &[],
        pauses: (1, &[]),
        stands: false,
        held: |_, _| 0.0,
        settled: 3.0,
        length: 120.0,
    };

    /// Plays `case` over a way with 3 % loss and jitter that is 15 ms in the mean, and gives the greatest offset between
    /// sound and pictures after it has settled, in seconds. `seed` makes the dice.
    fn offset(case: Case, seed: u64) -> f64 {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = move || {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            (dice >> 11) as f64 / (1u64 << 53) as f64
        };
        let time = |seconds: f64| Time::from_nanos((seconds * 1e9) as i64);
        let mut line = Sync::new();
        // What happens next on each track, by the time it is captured: a frame, a report.
        let mut frame = case.start;
        let mut report = [case.reports[0].max(case.start[0]), case.reports[1].max(case.start[1])];
        let mut arrived = [0.0; 2];
        // What is under way, by its arrival: when it was captured, on which track, and what a report says.
        let mut way: VecDeque<(f64, f64, usize, Option<f64>)> = VecDeque::new();
        let mut last = [None; 2];
        let mut worst: f64 = 0.0;
        loop {
            let next = frame.iter().chain(&report).copied().fold(f64::MAX, f64::min);
            if next > case.length {
                return worst;
            }
            while let Some((arrival, at, n, ntp)) = way.pop_front_if(|first| first.0 <= next) {
                let (kind, rate) = [(Kind::Video, 90_000), (Kind::Audio, 48_000)][n];
                // Within a pause a sender reckons that its clock goes on.
                let stood = |at: f64| -> f64 {
                    let (track, pauses) = case.pauses;
                    let over = pauses.iter().filter(|it| case.stands && track == n && it.0 + it.1 <= at);
                    over.map(|it| it.1).sum()
                };
                let ticks = ((at - stood(at)) * (1.0 + case.drift[n] / 1e6) * f64::from(rate)) as u64;
                let rtp = (ticks + [4_294_000_000, 77][n]) as u32;
                if let Some(ntp) = ntp {
                    line.report(kind, rate, rtp, time(ntp), time(arrival));
                    continue;
                }
                let stamp = line.stamp(kind, rate, rtp, time(arrival));
                assert_eq!(stamp.cts, Time::ZERO, "at {at} s");
                let stamped = stamp.dts.as_nanos() as f64 / 1e9;
                if let Some((before, stamped_before)) = last[n] {
                    let passed = (at - stood(at)) - (before - stood(before));
                    let least = if n == 0 { (1.0 - SLEW_MAX) * passed - 1e-3 } else { 0.0 };
                    assert!(stamped - stamped_before > least, "track {n} is squeezed at {at} s");
                }
                last[n] = Some((at, stamped));
                let settles = |it: &(f64, f64)| it.0 <= at && at <= it.0 + it.1 + 1.0;
                if let [Some((video, pictures)), Some((audio, sound))] = last
                    && at > case.settled
                    && !case.pauses.1.iter().any(settles)
                {
                    worst = worst.max(((pictures - sound) - (video - audio)).abs());
                }
            }
            let n = usize::from(frame[1].min(report[1]) < frame[0].min(report[0]));
            let delay = case.steps.iter().rfind(|step| step.0 <= next).map_or(0.02, |step| step.1);
            let (lost, late) = (roll() < 0.03, -0.015 * (1.0 - roll()).ln());
            let mut arrival = next + delay + late;
            let mut ntp = None;
            if report[n] <= frame[n] {
                report[n] += [1.0, 5.0][n] * (0.5 + roll());
                if lost || next >= case.reported {
                    continue;
                }
                ntp = Some(1e6 + (case.wall)(next * (1.0 + case.drift[2] / 1e6), roll()));
            } else {
                frame[n] += [1.0 / 30.0, 0.02][n];
                let within = |it: &(f64, f64)| it.0 <= next && next < it.0 + it.1;
                if lost || (n == case.pauses.0 && case.pauses.1.iter().any(within)) {
                    continue;
                }
                let encode = if n == 0 { case.encode } else { 0.0 };
                // What was held back goes out at once and comes so.
                let held = (case.held)(n, next);
                if held > 0.0 {
                    arrival = next + delay + held;
                }
                // A jitter buffer gives frames in order.
                arrival = f64::max(arrived[n], arrival + encode);
                arrived[n] = arrival;
            }
            way.insert(way.partition_point(|it| it.0 <= arrival), (arrival, next, n, ntp));
        }
    }

    #[test]
    fn sound_and_pictures_stay_within_40_ms() {
        let cases = [
            ("plain", PLAIN),
            // Two reports of sound, of which one may be lost, and four seconds to move.
            ("pictures take 300 ms to encode", Case { encode: 0.3, settled: 25.0, ..PLAIN }),
            ("no reports at all", Case { reports: [NEVER; 2], drift: [200.0, -200.0, 0.0], ..PLAIN }),
            ("reports for pictures only", Case { reports: [0.8, NEVER], drift: [-200.0, 200.0, 200.0], ..PLAIN }),
            ("reports for sound only", Case { reports: [NEVER, 2.5], drift: [200.0, -200.0, -200.0], ..PLAIN }),
            ("reports from second 10", Case { reports: [10.0; 2], encode: 0.15, settled: 30.0, ..PLAIN }),
            (
                "reports end",
                Case {
                    reported: 60.0,
                    encode: 0.1,
                    drift: [200.0, -200.0, 0.0],
                    settled: 25.0,
                    length: 600.0,
                    ..PLAIN
                },
            ),
            ("sound starts late", Case { start: [0.0, 17.0], settled: 19.0, ..PLAIN }),
            ("pictures start late", Case { start: [17.0, 0.0], settled: 19.0, ..PLAIN }),
            ("late and without reports", Case { start: [0.0, 17.0], reports: [NEVER; 2], settled: 19.0, ..PLAIN }),
            ("the way changes", Case { steps: &[(20.0, 0.3), (50.0, 0.01), (80.0, 1.0)], ..PLAIN }),
            (
                "the way changes, no reports",
                Case { reports: [NEVER; 2], steps: &[(20.0, 0.3), (50.0, 0.01), (80.0, 1.0)], ..PLAIN },
            ),
        ];
        within_40_ms(&cases);
    }

    #[test]
    fn a_second_after_any_pause_sound_and_pictures_are_together() {
        const FLAPS: [(f64, f64); 10] = {
            let (mut flaps, mut n) = ([(0.0, 0.6); 10], 0);
            while n < flaps.len() {
                flaps[n].0 = 8.0 + 1.2 * n as f64;
                n += 1;
            }
            flaps
        };
        for pauses in [&[(7.0, 0.3)], &[(7.0, 1.0)], &[(7.0, 2.5)], &[(5.9, 2.0)], &FLAPS as &[_]] {
            for (track, stands) in [(1, true), (1, false), (0, true), (0, false)] {
                for reports in [PLAIN.reports, [NEVER; 2]] {
                    let case = Case { pauses: (track, pauses), stands, reports, length: 60.0, ..PLAIN };
                    within_40_ms(&[(&format!("track {track}, {pauses:?}, stands: {stands}, {reports:?}"), case)]);
                }
            }
        }
    }

    #[test]
    fn what_was_held_back_is_no_pause() {
        // For 0.8 s of each ten.
        fn hold(at: f64) -> f64 {
            if at % 10.0 < 9.0 { 0.0 } else { (9.8 - at % 10.0).max(0.0) }
        }
        fn from_20_to_24(at: f64, held: f64) -> f64 {
            if (20.0..24.0).contains(&at) { held } else { 0.0 }
        }
        within_40_ms(&[
            // What it is taken for at first, the next report corrects, at a tenth of the pace.
            ("pictures stay late", Case { held: |n, at| [from_20_to_24(at, 0.8), 0.0][n], settled: 34.0, ..PLAIN }),
            (
                "sound catches up slowly",
                Case { held: |n, at| [0.0, from_20_to_24(at, 0.8 - (at - 20.0) / 5.0)][n], settled: 30.0, ..PLAIN },
            ),
        ]);
        for reports in [PLAIN.reports, [NEVER; 2]] {
            within_40_ms(&[
                // Two reports, of which one may be lost, and a second to move by.
                ("sound comes in chunks", Case { held: |n, at| [0.0, 1.0 - at % 1.0][n], settled: 30.0, ..PLAIN }),
                ("the way stands", Case { held: |_, at| hold(at), reports, settled: 8.0, ..PLAIN }),
                ("pictures wait", Case { held: |n, at| [hold(at), 0.0][n], reports, settled: 8.0, ..PLAIN }),
                ("sound waits", Case { held: |n, at| [0.0, hold(at)][n], reports, settled: 8.0, ..PLAIN }),
            ]);
        }
    }

    #[test]
    fn a_sender_whose_wall_clock_is_absurd_is_kept_in_step_by_arrival() {
        let within = |wall| Case { wall, length: 600.0, ..PLAIN };
        within_40_ms(&[
            ("it shows whole seconds", within(|at, _| at.floor() + 1e-7)),
            ("it shows half seconds", within(|at, _| (at * 2.0).floor() / 2.0 + 0.01)),
            ("it is 2 s early or late", within(|at, dice| at + 4.0 * (dice - 0.5))),
            ("it stands", within(|_, _| 5.1)),
            ("it runs twice as fast", within(|at, _| at * 2.0)),
            (
                "it comes to its senses",
                Case {
                    encode: 0.15,
                    settled: 90.0,
                    ..within(|at, dice| at + (40.0 - at).clamp(0.0, 4.0) * (dice - 0.5))
                },
            ),
        ]);
    }

    #[track_caller]
    fn within_40_ms(cases: &[(&str, Case)]) {
        for (what, case) in cases {
            for seed in 1..=3 {
                let worst = offset(*case, seed);
                assert!(worst < 0.04, "{what}, seed {seed}: {:.1} ms", worst * 1e3);
            }
        }
    }

    #[test]
    fn sound_and_pictures_stay_within_40_ms_for_two_hours_though_clocks_drift() {
        let drifts = [[200.0, -200.0, 0.0], [-200.0, 200.0, 200.0], [200.0, 200.0, -200.0], [-200.0, -200.0, 200.0]];
        for (n, drift) in drifts.into_iter().enumerate() {
            for reports in [PLAIN.reports, [NEVER; 2]] {
                let worst = offset(Case { drift, reports, length: 2.0 * 3600.0, ..PLAIN }, n as u64 + 1);
                assert!(worst < 0.04, "{drift:?}, reports from {reports:?}: {:.1} ms", worst * 1e3);
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_in_each_track_rises(
            script in prop::collection::vec((0..4usize, any::<u32>(), any::<bool>(), any::<i64>(), 0..5_000i64, any::<u32>()), 1..200),
        ) {
            let mut line = Sync::new();
            let mut last = [None; 2];
            let (mut arrival, mut clock) = (Time::ZERO, 0u32);
            for (what, rtp, sane, ntp, passed, rate) in script {
                arrival = arrival + Time::from_millis(passed);
                clock = clock.wrapping_add(passed as u32 * 90);
                let (rtp, rate) = if sane { (clock, 90_000) } else { (rtp, rate) };
                let kind = [Kind::Video, Kind::Audio][what % 2];
                if what < 2 {
                    let got = line.stamp(kind, rate, rtp, arrival).dts;
                    prop_assert!(got >= last[what % 2].map_or(Time::ZERO, |it| it + Time::from_millis(1)));
                    last[what % 2] = Some(got);
                } else {
                    line.report(kind, rate, rtp, if sane { arrival } else { Time::from_nanos(ntp) }, arrival);
                }
            }
        }
    }
}
