//! Whether a player's line carries the pictures, by its receiver reports (RFC 3550 §6.4.2), and what to leave out where it does not.
//!
//! A line that is a little too narrow loses sound like pictures, and all that is sent again takes room from both: nothing comes whole. So
//! pictures then go out no faster than arrived, and those that would come too late are left out up to a keyframe. Who loses as much
//! even so has a line that loses by itself, and is sent everything again.
//!
//! Invariant: nothing is left out before [`HEAVY_FOR`] spans of much loss in a row.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use str0m::stats::MediaEgressStats;

/// How often the engine is to tell of the reports.
pub const SPAN: Duration = Duration::from_secs(1);

/// Packets that a span has at the least: the share of fewer tells nothing.
const SPAN_PACKETS: u64 = 10;

/// The share of packets lost from which on a line may be too narrow: that in the mean of so many spans in a row, and half of it in each, as an
/// interruption has one or two. A line that only loses, and loses so much, is rare.
const HEAVY: f64 = 0.2;
const HEAVY_FOR: usize = 5;

/// The strain from which on a line still gets too much, and below which it may take more: the share lost beyond what it loses by itself, and
/// how long packets wait on the way, since a queue that is full takes no sound either.
const SOME: f64 = 0.02;
const HARDLY_ANY: f64 = 0.01;

/// How much longer than at its best a packet is on its way, there and back, for a strain of 1.
const WAIT: Duration = Duration::from_millis(7_500);

/// How much goes out of what might have arrived when it was too much. The rest lets the line's queue drain.
const LESS: f64 = 0.85;

/// Spans until the reports tell of that: what waited on the way comes before.
const SETTLES: u32 = 2;

/// The share of the strain that is left where less went out, from which on that was in vain. So often in a row, and it is the line's own; or
/// once where nothing waits on the way.
const LEFT: f64 = 0.6;
const IN_VAIN: u32 = 3;
const NO_WAIT: Duration = Duration::from_millis(50);

/// How long a line that loses so much by itself is known not to be narrow, at first and at the most.
const KNOWN: Duration = Duration::from_mins(1);
const KNOWN_MAX: Duration = Duration::from_mins(10);

/// What the rate grows by in a span without strain: below that which was last too much, near it, and beyond it, where nothing is known.
const GROWTH: f64 = 1.04;
const GROWTH_NEAR: f64 = 1.008;
const GROWTH_BEYOND: f64 = 1.08;
const NEAR: f64 = 0.93;
const BEYOND: f64 = 1.07;

/// A line that takes so much more than there is, for so many spans in which nothing was left out, is wide enough.
const WIDE: f64 = 1.3;
const WIDE_FOR: u32 = 10;

/// How late a picture may go out, in seconds; and a keyframe, which is left out if it takes longer, and lets the rate grow so much instead.
const LATE: f64 = 0.7;
const LATE_KEY: f64 = 1.5;
const GROWTH_KEY: f64 = 1.1;

/// Bytes a second that a line takes at the least, whatever is reported.
const RATE_MIN: f64 = 2_000.0;

/// The line to one player.
#[derive(Debug, Default)]
pub struct Line {
    /// Bytes of pictures that went out, without what was sent again.
    sent: u64,
    /// As the present span began: the newest packet that had come, how many were lost, what was sent, and when it was.
    begun: Option<(u64, u32, u64, Instant)>,
    /// How long a packet is on its way, there and back, where none waits.
    least: Option<Duration>,
    /// What the last spans lost, if each of them lost much.
    heavy: VecDeque<f64>,
    narrow: Option<Narrow>,
    /// Until when it is known not to be narrow, and how long that was known.
    known: Option<(Instant, Duration)>,
}

/// One that takes less than there is.
#[derive(Debug)]
struct Narrow {
    /// Bytes a second that it takes.
    rate: f64,
    /// The rate that was last too much, if any was since the line is known to be narrow; and what the strain was.
    limit: f64,
    strain: f64,
    /// The share that it may lose by itself, and how long packets may wait whatever goes out.
    own: f64,
    idle: Duration,
    /// Spans since the rate was lowered; how often that was in vain, and what it was before that.
    since: u32,
    in_vain: u32,
    before: f64,
    /// Spans since a picture was left out.
    whole: u32,
    /// Pictures are left out up to the next keyframe.
    skips: bool,
}

/// What a span says of a line that was narrow.
enum Finding {
    Narrow,
    /// It takes all.
    Wide,
    /// It takes no more of less.
    Lossy,
}

impl Line {
    /// How many bytes a second the pictures may take; `None` for as many as they are.
    pub fn rate(&self) -> Option<f64> {
        self.narrow.as_ref().map(|narrow| narrow.rate)
    }

    /// Whether a picture goes out, of so many bytes and behind so many that wait.
    pub fn takes(&mut self, key: bool, bytes: usize, waiting: usize) -> bool {
        let taken = self.narrow.as_mut().is_none_or(|narrow| narrow.takes(key, bytes, waiting));
        self.sent += if taken { bytes as u64 } else { 0 };
        taken
    }

    /// Takes in what is reported of the pictures.
    pub fn report(&mut self, stats: &MediaEgressStats) {
        let Some(remote) = &stats.remote else { return };
        let next = (*remote.maximum_sequence_number, remote.packets_lost as u32, self.sent, stats.timestamp);
        let (number, lost, sent, at) = *self.begun.get_or_insert(next);
        let packets = next.0.saturating_sub(number);
        if packets < SPAN_PACKETS {
            return;
        }
        self.begun = Some(next);
        // A number of 24 bits with a sign.
        let lost = (next.1.wrapping_sub(lost) << 8) as i32 >> 8;
        let lost = (f64::from(lost) / packets as f64).clamp(0.0, 1.0);
        let span = next.3.saturating_duration_since(at).as_secs_f64().max(f64::EPSILON);
        self.span(lost, stats.rtt, (next.2 - sent) as f64 / span, next.3);
    }

    /// A span in which so many bytes a second went out, this share of the packets was lost, and one was so long on its way and back.
    fn span(&mut self, lost: f64, trip: Option<Duration>, rate: f64, now: Instant) {
        self.least = self.least.into_iter().chain(trip).min();
        let waits = trip.zip(self.least).map_or(Duration::ZERO, |(trip, least)| trip - least);
        let Some(narrow) = &mut self.narrow else {
            if self.suspects(lost, now) {
                // More may have arrived, as much of what did was sent again.
                self.narrow = Some(Narrow::new((1.0 - lost) * rate, lost));
            }
            return;
        };
        match narrow.find(lost, waits, rate) {
            Finding::Narrow => return,
            Finding::Wide => {}
            Finding::Lossy => {
                let known = self.known.map_or(KNOWN, |(_, last)| (2 * last).min(KNOWN_MAX));
                self.known = Some((now + known, known));
            }
        }
        self.narrow = None;
    }

    /// Whether enough was lost for a narrow line.
    fn suspects(&mut self, lost: f64, now: Instant) -> bool {
        if lost < HEAVY / 2.0 || self.known.is_some_and(|(until, _)| now < until) {
            self.heavy.clear();
            return false;
        }
        self.heavy.truncate(HEAVY_FOR - 1);
        self.heavy.push_front(lost);
        let heavy = self.heavy.len() == HEAVY_FOR && self.heavy.iter().sum::<f64>() >= HEAVY * HEAVY_FOR as f64;
        if heavy {
            self.heavy.clear();
        }
        heavy
    }
}

impl Narrow {
    fn new(rate: f64, strain: f64) -> Narrow {
        let rate = rate.max(RATE_MIN);
        let (own, idle) = (0.0, Duration::ZERO);
        Narrow { rate, limit: 0.0, strain, own, idle, since: 0, in_vain: 0, before: rate, whole: 0, skips: true }
    }

    fn takes(&mut self, key: bool, bytes: usize, waiting: usize) -> bool {
        let late = (waiting + bytes) as f64 / self.rate;
        if key {
            self.skips = late > LATE_KEY;
            // Of a line that is sent nothing nothing is learned.
            if self.skips && waiting == 0 {
                self.rate *= GROWTH_KEY;
            }
        } else {
            self.skips |= late > LATE;
        }
        if self.skips {
            self.whole = 0;
        }
        !self.skips
    }

    /// Looks at a span in which so many bytes a second went out, and sets the rate by it.
    fn find(&mut self, lost: f64, waits: Duration, sent: f64) -> Finding {
        self.since += 1;
        self.whole += 1;
        let strain = (lost - self.own).max(0.0) + waits.saturating_sub(self.idle).as_secs_f64() / WAIT.as_secs_f64();
        if strain < HARDLY_ANY {
            self.rate *= match self.rate / self.limit {
                ..NEAR => GROWTH,
                NEAR..BEYOND => GROWTH_NEAR,
                _ => GROWTH_BEYOND,
            };
            return if self.whole >= WIDE_FOR && self.rate > WIDE * sent { Finding::Wide } else { Finding::Narrow };
        }
        if strain < SOME || self.since <= SETTLES {
            return Finding::Narrow;
        }
        let in_vain = self.since == SETTLES + 1 && strain > LEFT * self.strain;
        self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
        if self.in_vain == IN_VAIN || in_vain && waits < NO_WAIT {
            // Of a hundred packets at most so many more are lost, as a rule.
            (self.own, self.idle) = (lost + 0.2 * lost.sqrt(), waits);
            (self.rate, self.limit, self.in_vain) = (self.before, 0.0, 0);
            return if lost >= HEAVY { Finding::Lossy } else { Finding::Narrow };
        }
        if !in_vain {
            self.before = self.rate;
        }
        (self.limit, self.strain, self.since) = (self.rate, strain, 0);
        self.rate = (LESS * (1.0 - lost) * self.rate).max(RATE_MIN);
        Finding::Narrow
    }
}

#[cfg(test)]
mod tests {
    use str0m::stats::RemoteIngressStats;

    use super::super::pace::Pace;
    use super::*;

    const PACKET: usize = 1_200;

    /// Pictures of 1.5 Mbit/s, 25 a second with a keyframe every two seconds, beside sound of 50 packets a second.
    const PICTURE: usize = 6_900;
    const KEYFRAME: usize = 30_000;
    const DEMAND: f64 = 187_500.0;

    /// What came of ten seconds: the share of the pictures that went out, and that of the sound that was lost.
    #[derive(Clone, Copy, Debug)]
    struct Came {
        pictures: f64,
        sound_lost: f64,
    }

    /// Sends a minute and a half by a line that takes `takes(second)` of what there is, keeps `keeps` seconds of what is more, and loses the share `loses`
    /// of all by itself.
    fn send(takes: impl Fn(u64) -> f64, keeps: f64, loses: f64) -> Vec<Came> {
        let begin = Instant::now();
        let (mut line, mut pace) = (Line::default(), Pace::default());
        // Numbers of the pictures' packets; how many were lost.
        let (mut number, mut newest, mut lost) = (0, 0, 0);
        // Packets to go out, and lost ones that will be asked for again, with when that is.
        let (mut queue, mut again) = (VecDeque::new(), VecDeque::new());
        let (mut held, mut dice, mut came) = (0.0, 1u32, Vec::new());
        let (mut pictures, mut sound) = ([0.0; 2], [0.0; 2]);
        for ms in 0..90_000u64 {
            let now = begin + Duration::from_millis(ms);
            let takes = (takes(ms / 1000) * (DEMAND + 5_000.0)).max(1.0);
            held = f64::max(held - takes / 1000.0, 0.0);
            let mut arrives = |bytes: usize| {
                dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let fits = held < keeps * takes && f64::from(dice) / 2f64.powi(32) >= loses;
                held += if fits { bytes as f64 } else { 0.0 };
                fits
            };
            if ms % 40 == 0 {
                let key = ms % 2000 == 0;
                let bytes = if key { KEYFRAME } else { PICTURE };
                pictures[0] += 1.0;
                if line.takes(key, bytes, pace.waiting()) {
                    pictures[1] += 1.0;
                    for _ in 0..bytes.div_ceil(PACKET) {
                        number += 1;
                        queue.push_back((number, true));
                    }
                }
            }
            while again.front().is_some_and(|(at, _)| *at <= ms) {
                queue.extend(again.pop_front().map(|(_, number)| (number, false)));
            }
            for packet in queue.drain(..) {
                pace.keep(packet, PACKET);
            }
            while let Some((number, first)) = pace.next(now) {
                let came = arrives(PACKET);
                match first {
                    true if came => newest = number,
                    true => lost += 1,
                    false => {}
                }
                if !came && again.len() < 20 {
                    again.push_back((ms + 100, number));
                }
            }
            if ms % 20 == 0 {
                sound[0] += 1.0;
                sound[1] += if arrives(100) { 0.0 } else { 1.0 };
            }
            if ms % 1000 == 999 {
                let remote =
                    RemoteIngressStats { jitter: 0, maximum_sequence_number: newest.into(), packets_lost: lost };
                let stats = MediaEgressStats {
                    mid: "0".into(),
                    rid: None,
                    bytes: 0,
                    packets: 0,
                    firs: 0,
                    plis: 0,
                    nacks: 0,
                    rtt: Some(Duration::from_millis(60) + Duration::from_secs_f64(held / takes)),
                    loss: None,
                    timestamp: now,
                    remote: Some(remote),
                };
                line.report(&stats);
                pace.bind(line.rate(), now);
            }
            if ms % 10_000 == 9_999 {
                came.push(Came { pictures: pictures[1] / pictures[0], sound_lost: sound[1] / sound[0] });
                (pictures, sound) = ([0.0; 2], [0.0; 2]);
            }
        }
        println!("{came:.3?}");
        came
    }

    #[test]
    fn of_a_line_that_is_wide_enough_nothing_is_left_out() {
        for loses in [0.0, 0.05, 0.15] {
            assert!(send(|_| 1.1, 0.3, loses).iter().all(|it| it.pictures == 1.0), "{loses}");
        }
    }

    #[test]
    fn by_a_line_that_is_too_narrow_sound_comes_whole_and_pictures_in_part() {
        for (takes, pictures) in [(0.85, 0.5), (0.6, 0.3), (0.3, 0.04)] {
            for keeps in [0.3, 2.0] {
                let came = send(|_| takes, keeps, 0.0);
                assert!(came[0].sound_lost + came[1].sound_lost > 0.2, "{takes} is not narrow");
                let late = &came[3..];
                let lost: f64 = late.iter().map(|it| it.sound_lost).sum::<f64>() / late.len() as f64;
                assert!(lost < 0.02 && late.iter().all(|it| it.pictures > pictures), "{takes}, {keeps}");
            }
        }
    }

    #[test]
    fn a_line_that_is_wide_again_is_sent_everything_again() {
        let came = send(|second| if second < 30 { 0.5 } else { 2.0 }, 0.3, 0.0);
        assert!(came[1].pictures < 0.6 && came[7].pictures == 1.0 && came[8].pictures == 1.0);
    }

    #[test]
    fn a_line_that_loses_much_by_itself_is_sent_everything() {
        let came = send(|_| 1.5, 0.3, 0.3);
        // It is looked at again after a minute.
        assert!(came[3..6].iter().all(|it| it.pictures == 1.0));
        assert!(came.iter().all(|it| it.pictures > 0.4));
    }

    #[test]
    fn a_narrow_line_that_loses_by_itself_too_still_shows_pictures() {
        let came = send(|_| 0.7, 0.3, 0.05);
        assert!(came[3..].iter().all(|it| it.pictures > 0.2 && it.sound_lost < 0.1));
    }

    #[test]
    fn an_interruption_leaves_nothing_out() {
        let came = send(|second| if second % 10 < 2 { 0.0 } else { 2.0 }, 0.3, 0.0);
        assert!(came.iter().all(|it| it.pictures == 1.0));
    }

    /// Whatever a player reports, its pictures go on at some rate.
    #[test]
    fn nonsense_reports_do_no_harm() {
        let (mut line, begin) = (Line::default(), Instant::now());
        for n in 1..200 {
            line.takes(n % 2 == 0, 10_000, 0);
            line.span(if n % 9 == 0 { 0.0 } else { 1.0 }, Some(n * SPAN), 0.0, begin + n * SPAN);
            assert!(line.rate().is_none_or(|rate| rate.is_finite() && rate >= RATE_MIN));
        }
    }
}
