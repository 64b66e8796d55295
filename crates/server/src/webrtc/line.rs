//! Whether a player's line carries the pictures, by its receiver reports (RFC 3550 §6.4.2), and what to leave out where it does not.
//!
//! A line that is a little too narrow loses sound like pictures, and all that is sent again takes room from both: nothing comes whole. So
//! pictures then go out no faster than arrived, and those that would come too late are left out up to a keyframe. Who loses as much
//! even so, or loses sound while no picture goes out, has a line that loses by itself, and is sent everything again.
//!
//! Invariants: nothing is left out before four spans of [`HEAVY_FOR`] lost much. No picture goes out that needs one that was left out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use str0m::stats::MediaEgressStats;

/// How often the engine is to tell of the reports.
pub const SPAN: Duration = Duration::from_secs(1);

/// Packets that a span has at the least: the share of fewer tells nothing.
const SPAN_PACKETS: u64 = 10;

/// The share of packets lost from which on a line may be too narrow, in the mean of so many spans. It counts more the longer packets wait on their
/// way, twice from `TWICE` on; and a span no more than `HEAVY_MAX`, as an interruption has three or fewer. A line that only loses, and loses so much, is rare.
const HEAVY: f64 = 0.2;
const HEAVY_FOR: usize = 8;
const HEAVY_MAX: f64 = 0.4;
const TWICE: Duration = Duration::from_millis(100);

/// The strain from which on a line still gets too much, and below which it may take more: the share lost beyond what it loses by itself, and
/// how long packets wait on the way, since a queue that is full takes no sound either. Less than `MUCH` where nothing waits is none: any line loses a
/// little now and then.
const SOME: f64 = 0.02;
const HARDLY_ANY: f64 = 0.01;
const MUCH: f64 = 0.1;

/// How much longer than at its best packets are on their way, there and back, for a strain of 1; up to which nothing waits; from which on two that take so
/// long are enough to tell, where fewer may be chance; and from which on one of two is, for a queue that may be about to fill.
const WAIT: Duration = Duration::from_millis(7_500);
const NO_WAIT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_millis(150);
const FILLS: Duration = Duration::from_millis(75);

/// Of so many ways the quickest tells how long it surely is; the best is the quickest of the last half or whole minute.
const TRIPS: usize = 4;
const TRIPS_AGE: Duration = Duration::from_secs(30);

/// How much goes out of what might have arrived when it was too much. The rest lets the line's queue drain.
const LESS: f64 = 0.85;

/// Reports until they tell of that: what waited on the way comes before.
const SETTLES: u32 = 2;

/// The share of the strain that is left where less went out than had arrived, from which on that was in vain; one of the first so many spans tells.
/// So often in a row, and it is the line's own; or once where nothing waits on the way.
const LEFT: f64 = 0.6;
const TELL: u32 = 2;
const IN_VAIN: u32 = 3;

/// How fast what the line loses by itself goes up to a little that is lost without strain, and how far; and how fast down, in each span.
const LEARNS: f64 = 0.2;
const OWN_LEARNED: f64 = 0.05;
const SHRINKS: f64 = 0.1;

/// How long a line that loses so much by itself is known not to be narrow, at first and at the most.
const KNOWN: Duration = Duration::from_mins(1);
const KNOWN_MAX: Duration = Duration::from_mins(10);

/// What the rate grows by in a span without strain: below that which was last too much, near it, and beyond it, where nothing is known, there faster
/// with each so many spans; and by which share of that where a queue may be about to fill.
const GROWTH: f64 = 0.04;
const GROWTH_NEAR: f64 = 0.008;
const GROWTH_BEYOND: f64 = 0.12;
const FASTER_EACH: f64 = 4.0;
const FASTER_MAX: f64 = 3.0;
const GROWTH_LESS: f64 = 0.25;
const NEAR: f64 = 0.93;
const BEYOND: f64 = 1.07;

/// After so many spans, or reports, a rate that was too much is forgotten: it would have been reached again.
const LIMIT_FOR: u32 = 20;
const LIMIT_MAX: u32 = 40;

/// A line that takes so much more than there is, for so many spans in which nothing was left out, is wide enough.
const WIDE: f64 = 1.3;
const WIDE_FOR: u32 = 10;

/// How late a picture may go out, in seconds; and a keyframe, behind which others may be so much later.
const LATE: f64 = 0.7;
const LATE_KEY: f64 = 1.5;
const LATE_BEHIND: f64 = 0.35;

/// Where no picture goes out nothing is learned of the line. So the rate grows by so much in each second, up to what lets a keyframe go that is so much
/// larger than the last, and from so small a part of that on; by a third of what it grew by whenever it was too much.
const HURRY: f64 = 0.5;
const HURRY_MIN: f64 = 0.03;
const HURRY_LESS: f64 = 3.0;
const HURRY_FROM: f64 = 8.0;
const KEY_GROWS: f64 = 1.2;

/// Reports without a picture after which none is on its way.
const IDLE: u32 = 2;

/// Bytes a second that a line takes at the least, whatever is reported.
const RATE_MIN: f64 = 2_000.0;

/// The line to one player.
#[derive(Debug, Default)]
pub struct Line {
    /// Bytes of pictures that went out, without what was sent again.
    sent: u64,
    /// Bytes of the newest keyframe.
    key: usize,
    /// Pictures are left out up to the next keyframe.
    skips: bool,
    /// As the present span began.
    begun: Option<Seen>,
    /// What had been sent at the last report, and how many reports ago that was more than before.
    told: u64,
    idle: u32,
    sound: Sound,
    trips: Trips,
    /// How much the last spans lost.
    heavy: VecDeque<f64>,
    narrow: Option<Narrow>,
    /// Until when it is known not to be narrow, and how long that was known.
    known: Option<(Instant, Duration)>,
}

/// What was known at a report: the newest packet that had come, how many were lost, what was sent, and when it was.
#[derive(Clone, Copy, Debug)]
struct Seen {
    newest: u64,
    lost: u32,
    sent: u64,
    at: Instant,
}

/// The share of packets that was lost, and what is surely more than chance of it.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    share: f64,
    surely: f64,
}

/// What becomes of the sound, of which there are fewer reports.
#[derive(Debug, Default)]
struct Sound {
    begun: Option<Seen>,
    /// No picture has gone out since then.
    alone: bool,
    /// The rate has been lowered since then, or so shortly before that it tells of the time before.
    old: bool,
    /// The share that was lost, until it is looked at.
    lost: Lost,
}

/// How long packets are on their way, there and back.
#[derive(Debug, Default)]
struct Trips {
    last: VecDeque<Duration>,
    /// The least of the present half minute, and of the one before.
    least: [Option<Duration>; 2],
    since: Option<Instant>,
}

/// How long packets wait on their way: the quickest of the last two and of the last four, and the slowest of two.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    two: Duration,
    four: Duration,
    most: Duration,
    /// The last waited less than the one before.
    fall: bool,
}

/// A line that takes less than there is.
#[derive(Debug)]
struct Narrow {
    /// Bytes a second that it takes.
    rate: f64,
    /// The rate that was last too much, if any was since the line is known to be narrow; what the strain was, and how much arrived.
    limit: f64,
    strain: f64,
    arrived: f64,
    /// The share that it may lose by itself, and how long packets may wait whatever goes out.
    own: f64,
    idle: Duration,
    /// Reports since the rate was lowered, and spans since then that tell of it; how often that was in vain, and what it was before that.
    since: u32,
    spans: u32,
    in_vain: u32,
    before: f64,
    /// Spans without strain beyond the limit.
    beyond: u32,
    /// Spans since a picture was left out.
    whole: u32,
    /// How late the newest keyframe went out, in seconds.
    late: f64,
    /// By how much the rate grows where no picture goes out; and that it has.
    hurry: f64,
    hurried: bool,
}

impl Line {
    /// How many bytes a second the pictures may take; `None` for as many as they are.
    pub fn rate(&self) -> Option<f64> {
        self.narrow.as_ref().map(|narrow| narrow.rate)
    }

    /// Whether a picture goes out, of so many bytes and behind so many that wait.
    pub fn takes(&mut self, key: bool, bytes: usize, waiting: usize) -> bool {
        if key {
            (self.key, self.skips) = (bytes, false);
        }
        if let Some(narrow) = &mut self.narrow {
            self.skips |= narrow.is_late(key, bytes, waiting);
            narrow.whole = if self.skips { 0 } else { narrow.whole };
        }
        if !self.skips {
            self.sent += bytes as u64;
            self.sound.alone = false;
        }
        !self.skips
    }

    /// Takes in what is reported of the pictures.
    pub fn report(&mut self, stats: &MediaEgressStats) {
        self.idle = if self.told == self.sent { self.idle + 1 } else { 0 };
        self.told = self.sent;
        if let Some(narrow) = &mut self.narrow {
            narrow.since += 1;
            if self.idle > 0 {
                narrow.starve(self.key);
            }
        }
        let Some(seen) = Seen::new(stats, self.sent) else { return };
        let Some((lost, span)) = seen.since(&mut self.begun) else { return };
        let waits = self.trips.waits(stats.rtt, seen.at);
        let took = seen.at.saturating_duration_since(span.at).as_secs_f64().max(f64::EPSILON);
        let rate = (seen.sent - span.sent) as f64 / took;
        if let Some(narrow) = &mut self.narrow {
            // Sound may lose more than pictures, which take the room in a queue as soon as there is some.
            let wide = narrow.find(lost, std::mem::take(&mut self.sound.lost), waits, rate);
            self.sound.old |= narrow.since == 0;
            if wide {
                self.widen(seen.at);
            }
        } else if self.suspects(lost.share, waits.two, seen.at) {
            (self.narrow, self.skips) = (Some(Narrow::new(rate, lost.share)), true);
            self.sound.old = true;
        }
    }

    /// Takes in what is reported of the sound. What it loses while no picture goes out the line loses by itself.
    pub fn report_sound(&mut self, stats: &MediaEgressStats) {
        let Some(seen) = Seen::new(stats, 0) else { return };
        let Some((lost, _)) = seen.since(&mut self.sound.begun) else { return };
        let alone = std::mem::replace(&mut self.sound.alone, self.idle >= IDLE);
        let settles = self.narrow.as_ref().is_some_and(|narrow| narrow.since <= SETTLES);
        let old = std::mem::replace(&mut self.sound.old, settles);
        self.sound.lost = if old { Lost::default() } else { lost };
        let waits = self.trips.waits(stats.rtt, seen.at);
        if let Some(narrow) = self.narrow.as_mut().filter(|_| alone && waits.most < NO_WAIT) {
            narrow.concede(lost, waits);
            if lost.share >= HEAVY {
                self.widen(seen.at);
            }
        }
    }

    /// The line is not narrow.
    fn widen(&mut self, now: Instant) {
        if self.narrow.take().is_some_and(|narrow| narrow.own >= HEAVY) {
            let known = self.known.map_or(KNOWN, |(_, last)| (2 * last).min(KNOWN_MAX));
            self.known = Some((now + known, known));
        }
    }

    /// Whether enough was lost for a narrow line.
    fn suspects(&mut self, lost: f64, waits: Duration, now: Instant) -> bool {
        if self.known.is_some_and(|(until, _)| now < until) {
            return false;
        }
        let weight = 1.0 + (waits.as_secs_f64() / TWICE.as_secs_f64()).min(1.0);
        self.heavy.truncate(HEAVY_FOR - 1);
        self.heavy.push_front((lost * weight).min(HEAVY_MAX));
        let heavy = self.heavy.iter().sum::<f64>() >= HEAVY * HEAVY_FOR as f64;
        if heavy {
            self.heavy.clear();
        }
        heavy
    }
}

impl Seen {
    fn new(stats: &MediaEgressStats, sent: u64) -> Option<Seen> {
        let remote = stats.remote.as_ref()?;
        let (newest, lost) = (*remote.maximum_sequence_number, remote.packets_lost as u32);
        Some(Seen { newest, lost, sent, at: stats.timestamp })
    }

    /// The share of packets lost since `begun`, and what was known then, if there were enough. Then it begins anew.
    fn since(&self, begun: &mut Option<Seen>) -> Option<(Lost, Seen)> {
        let before = *begun.get_or_insert(*self);
        let packets = match self.newest.checked_sub(before.newest) {
            Some(few) if few < SPAN_PACKETS => return None,
            packets => {
                *begun = Some(*self);
                packets?
            }
        };
        // A number of 24 bits with a sign.
        let lost = (self.lost.wrapping_sub(before.lost) << 8) as i32 >> 8;
        let lost = f64::from(lost).max(0.0);
        let of = |lost: f64| (lost / packets as f64).min(1.0);
        Some((Lost { share: of(lost), surely: of(lost - lost.sqrt()).max(0.0) }, before))
    }
}

impl Trips {
    /// How much longer than at its best the last few were.
    fn waits(&mut self, trip: Option<Duration>, now: Instant) -> Waits {
        let Some(trip) = trip else { return Waits::default() };
        self.last.truncate(TRIPS - 1);
        self.last.push_front(trip);
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > TRIPS_AGE) {
            (self.least, self.since) = ([None, self.least[0]], Some(now));
        }
        self.least[0] = self.least[0].into_iter().chain([trip]).min();
        let least = self.least.into_iter().flatten().min().unwrap_or(trip);
        let waits = |trip: Option<&Duration>| trip.map_or(Duration::ZERO, |trip| trip.saturating_sub(least));
        Waits {
            two: waits(self.last.iter().take(2).min()),
            four: waits(self.last.iter().min()),
            most: waits(self.last.iter().take(2).max()),
            fall: self.last.get(1).is_some_and(|before| trip + NO_WAIT < *before),
        }
    }
}

impl Narrow {
    /// One of which so much was lost as so many bytes a second went out.
    fn new(before: f64, lost: f64) -> Narrow {
        // More may have arrived, as much of what did was sent again.
        let rate = ((1.0 - lost) * before).max(RATE_MIN);
        Narrow {
            rate,
            limit: 0.0,
            arrived: rate,
            strain: lost,
            own: 0.0,
            idle: Duration::ZERO,
            since: 0,
            spans: 0,
            in_vain: 0,
            before,
            beyond: 0,
            whole: 0,
            late: 0.0,
            hurry: HURRY,
            hurried: false,
        }
    }

    /// Whether a picture would come too late.
    fn is_late(&mut self, key: bool, bytes: usize, waiting: usize) -> bool {
        let late = (waiting + bytes) as f64 / self.rate;
        if key {
            self.late = late;
            return late > LATE_KEY;
        }
        late > LATE.max(self.late + LATE_BEHIND)
    }

    /// No picture went out in a span.
    fn starve(&mut self, key: usize) {
        let most = KEY_GROWS * key as f64 / LATE_KEY;
        if self.rate < most {
            self.rate = (self.rate.max(most / HURRY_FROM) * (1.0 + self.hurry)).min(most);
            self.hurried = true;
        }
    }

    /// Looks at a span in which so many bytes a second went out and these shares of the packets of pictures and of sound were lost, and sets the rate by
    /// it. Whether the line takes all.
    fn find(&mut self, lost: Lost, of_sound: Lost, waits: Waits, sent: f64) -> bool {
        // What falls has been too much, and is no more.
        let settled = self.since > SETTLES && !waits.fall;
        self.spans += u32::from(settled);
        self.whole += 1;
        let fresh = self.strain(lost, waits);
        let strain = fresh.max(self.strain(of_sound, waits));
        if settled {
            // It may have been the queue after all.
            self.own -= SHRINKS * (self.own - lost.share).max(0.0);
            self.idle -= self.idle.saturating_sub(waits.two).mul_f64(SHRINKS);
        }
        if strain == 0.0 {
            self.own = self.own.max((self.own + LEARNS * (lost.share - self.own)).min(OWN_LEARNED));
        }
        if strain < HARDLY_ANY {
            self.grow(waits, sent);
            return self.whole >= WIDE_FOR && self.rate > WIDE * sent;
        }
        if strain < SOME || !settled {
            return false;
        }
        let in_vain = self.spans <= TELL && fresh > LEFT * self.strain && self.rate <= self.arrived;
        self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
        if self.in_vain == IN_VAIN || in_vain && waits.most < NO_WAIT {
            (self.rate, self.limit, self.in_vain) = (self.before, 0.0, 0);
            self.concede(lost, waits);
            return false;
        }
        if !in_vain {
            self.before = self.rate;
        }
        self.lower(lost.share, strain);
        false
    }

    /// The strain of a line that loses so much and lets packets wait so long.
    fn strain(&self, lost: Lost, waits: Waits) -> f64 {
        let more = (lost.surely - self.own).max(0.0);
        let longer = waits.two.saturating_sub(self.idle);
        let queues = more >= MUCH || more >= SOME && longer >= NO_WAIT;
        let (more, longer) = match queues {
            true => (more, longer),
            false if longer >= LONG => (0.0, longer),
            false => (0.0, waits.four.saturating_sub(self.idle)),
        };
        more + if longer < NO_WAIT { 0.0 } else { longer.as_secs_f64() / WAIT.as_secs_f64() }
    }

    /// Nothing was too much of so many bytes a second.
    fn grow(&mut self, waits: Waits, sent: f64) {
        if self.spans > LIMIT_FOR || self.since > LIMIT_MAX {
            self.limit = 0.0;
        }
        let growth = match self.rate / self.limit {
            ..NEAR => GROWTH,
            NEAR..BEYOND => GROWTH_NEAR,
            _ => {
                self.beyond += 1;
                GROWTH_BEYOND * (f64::from(self.beyond) / FASTER_EACH).clamp(1.0, FASTER_MAX)
            }
        };
        let fills = waits.most.saturating_sub(self.idle) >= FILLS;
        // What did not go out was not borne.
        let borne = (sent * self.rate).sqrt().min(self.rate);
        self.rate += growth * borne * if fills { GROWTH_LESS } else { 1.0 };
    }

    /// It was too much.
    fn lower(&mut self, lost: f64, strain: f64) {
        if std::mem::take(&mut self.hurried) {
            self.hurry = (self.hurry / HURRY_LESS).max(HURRY_MIN);
        }
        (self.limit, self.strain, self.since, self.spans, self.beyond) = (self.rate, strain, 0, 0, 0);
        self.arrived = (1.0 - lost) * self.rate;
        self.rate = (LESS * self.arrived).max(RATE_MIN);
    }

    /// The line loses so much by itself, and lets packets wait so long.
    fn concede(&mut self, lost: Lost, waits: Waits) {
        (self.own, self.idle) = (lost.share, waits.two);
    }
}

#[cfg(test)]
mod tests {
    use str0m::stats::RemoteIngressStats;

    use super::super::pace::Pace;
    use super::*;

    const PACKET: usize = 1_200;

    /// Bytes a second of the pictures, 25 a second, beside sound of 50 packets a second.
    const DEMAND: f64 = 187_500.0;
    const SOUND: usize = 100;

    /// A way to a player and what goes by it, each by the second.
    #[derive(Clone, Copy)]
    struct Way {
        /// What it takes of what there is.
        takes: fn(u64) -> f64,
        /// How many seconds of what is more it keeps.
        keeps: f64,
        /// What it loses by itself.
        loses: fn(u64) -> f64,
        /// Milliseconds there and back.
        trip: fn(u64) -> u64,
        /// Keyframes: bytes, and seconds from one to the next.
        key: (usize, u64),
    }

    const WAY: Way = Way { takes: |_| 2.0, keeps: 0.3, loses: |_| 0.0, trip: |_| 60, key: (30_000, 2) };

    /// What came of ten seconds: the share of the pictures that went out, and that of the sound that was lost.
    #[derive(Clone, Copy, Debug)]
    struct Came {
        pictures: f64,
        sound_lost: f64,
    }

    fn stats(newest: u64, packets_lost: u64, rtt: Duration, timestamp: Instant) -> MediaEgressStats {
        let remote = RemoteIngressStats { jitter: 0, maximum_sequence_number: newest.into(), packets_lost };
        MediaEgressStats {
            mid: "0".into(),
            rid: None,
            bytes: 0,
            packets: 0,
            firs: 0,
            plis: 0,
            nacks: 0,
            rtt: Some(rtt),
            loss: None,
            timestamp,
            remote: Some(remote),
        }
    }

    /// Sends so many seconds by a way.
    fn send(way: Way, seconds: u64) -> Vec<Came> {
        let begin = Instant::now();
        let (mut line, mut pace) = (Line::default(), Pace::default());
        let (bytes, every) = way.key;
        let picture = ((DEMAND * every as f64 - bytes as f64) / (25 * every - 1) as f64) as usize;
        // Numbers of the pictures' packets; how many were lost.
        let (mut number, mut newest, mut lost) = (0, 0, 0);
        // Packets to go out, and lost ones that will be asked for again, with when that is.
        let (mut queue, mut again) = (VecDeque::new(), VecDeque::new());
        let (mut held, mut dice, mut came) = (0.0, 1u32, Vec::new());
        // What is told of the sound each five seconds.
        let (mut sound_number, mut sound_newest, mut sound_lost) = (0, 0, 0);
        let (mut pictures, mut sound, mut whole) = ([0.0; 2], [0.0; 2], true);
        for ms in 0..1000 * seconds {
            let now = begin + Duration::from_millis(ms);
            let second = ms / 1000;
            let takes = ((way.takes)(second) * (DEMAND + 50.0 * SOUND as f64)).max(1.0);
            held = f64::max(held - takes / 1000.0, 0.0);
            let mut arrives = |bytes: usize| {
                dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let fits = held < way.keeps * takes && f64::from(dice) / 2f64.powi(32) >= (way.loses)(second);
                held += if fits { bytes as f64 } else { 0.0 };
                fits
            };
            if ms % 40 == 0 {
                let key = ms % (1000 * every) == 0;
                let bytes = if key { bytes } else { picture };
                pictures[0] += 1.0;
                let goes = line.takes(key, bytes, pace.waiting());
                assert!(!goes || key || whole, "a picture without those that it needs");
                whole = goes;
                if goes {
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
                sound_number += 1;
                if arrives(SOUND) {
                    sound_newest = sound_number;
                } else {
                    sound[1] += 1.0;
                    sound_lost += 1;
                }
            }
            if ms % 1000 == 999 {
                let rtt = Duration::from_millis((way.trip)(second)) + Duration::from_secs_f64(held / takes);
                line.report(&stats(newest, lost, rtt, now));
                if ms % 5000 == 4999 {
                    line.report_sound(&stats(sound_newest, sound_lost, rtt, now));
                }
            }
            pace.bind(line.rate(), now);
            if ms % 10_000 == 9_999 {
                came.push(Came { pictures: pictures[1] / pictures[0], sound_lost: sound[1] / sound[0] });
                (pictures, sound) = ([0.0; 2], [0.0; 2]);
            }
        }
        println!("{}", came.iter().map(|it| format!("{:.2}/{:.2} ", it.pictures, it.sound_lost)).collect::<String>());
        came
    }

    fn mean(came: &[Came], of: impl Fn(&Came) -> f64) -> f64 {
        came.iter().map(of).sum::<f64>() / came.len() as f64
    }

    /// From which second on all pictures go out.
    fn whole_from(came: &[Came]) -> usize {
        10 * came.iter().rposition(|it| it.pictures < 1.0).map_or(0, |n| n + 1)
    }

    #[test]
    fn of_a_line_that_is_wide_enough_nothing_is_left_out() {
        let loses: [fn(u64) -> f64; 3] = [|_| 0.0, |_| 0.05, |_| 0.15];
        for loses in loses {
            assert_eq!(whole_from(&send(Way { takes: |_| 1.1, loses, ..WAY }, 90)), 0);
        }
    }

    #[test]
    fn an_interruption_leaves_nothing_out() {
        for takes in
            [(|s| if s % 10 < 2 { 0.0 } else { 2.0 }) as fn(u64) -> f64, |s| if s % 30 < 4 { 0.0 } else { 2.0 }]
        {
            assert_eq!(whole_from(&send(Way { takes, ..WAY }, 90)), 0);
        }
    }

    /// By lines of some width pictures come in part, in the mean and never less than so many, once that is known; and sound comes but for such a share.
    #[track_caller]
    fn assert_in_part(way: Way, pictures: [f64; 4], least: [f64; 4], sound_lost: f64) {
        let widths: [fn(u64) -> f64; 4] = [|_| 0.9, |_| 0.85, |_| 0.6, |_| 0.3];
        for ((takes, pictures), least) in widths.into_iter().zip(pictures).zip(least) {
            let came = send(Way { takes, ..way }, 120);
            let early = mean(&came[..2], |it| it.sound_lost);
            assert!(early > 0.1, "{} is not narrow: {early} of the sound was lost", takes(0));
            let late = [mean(&came[3..], |it| it.pictures), mean(&came[3..], |it| it.sound_lost)];
            let never = came[3..].iter().all(|it| it.pictures >= least);
            let good = late[0] > pictures && never && late[1] < sound_lost;
            assert!(good, "{}, {:?}, {}: {late:?}", takes(0), way.key, way.keeps);
        }
    }

    #[test]
    fn by_a_line_that_is_too_narrow_sound_comes_whole_and_pictures_in_part() {
        for keeps in [0.3, 2.0] {
            let way = Way { keeps, ..WAY };
            assert_in_part(way, [0.75, 0.7, 0.42, 0.08], [0.5, 0.5, 0.3, 0.04], 0.02);
            // A third to two thirds of the bytes are keyframes.
            assert_in_part(Way { key: (120_000, 2), ..way }, [0.65, 0.6, 0.3, 0.02], [0.0; 4], 0.1);
            assert_in_part(Way { key: (100_000, 4), ..way }, [0.6, 0.5, 0.15, 0.015], [0.0; 4], 0.08);
            assert_in_part(Way { key: (200_000, 10), ..way }, [0.5, 0.35, 0.07, 0.015], [0.0; 4], 0.12);
        }
        // What waits on the way shows less.
        assert_in_part(Way { keeps: 0.1, ..WAY }, [0.7, 0.65, 0.35, 0.08], [0.0; 4], 0.18);
    }

    #[test]
    fn a_narrow_line_that_loses_by_itself_too_still_shows_pictures() {
        for loses in [(|_| 0.02) as fn(u64) -> f64, |_| 0.05, |_| 0.1] {
            for takes in [(|_| 0.7) as fn(u64) -> f64, |_| 0.9] {
                let came = send(Way { takes, loses, ..WAY }, 120);
                let late = [mean(&came[3..], |it| it.pictures), mean(&came[3..], |it| it.sound_lost)];
                assert!(
                    late[0] > 0.25 && late[1] < loses(0) + 0.04,
                    "loses {}, takes {}: {late:?}",
                    loses(0),
                    takes(0)
                );
            }
        }
        let came = send(Way { takes: |_| 0.7, loses: |_| 0.05, ..WAY }, 90);
        assert!(came[3..].iter().all(|it| it.pictures > 0.2 && it.sound_lost < 0.1));
    }

    #[test]
    fn a_line_that_is_wide_again_is_sent_everything_again() {
        let came = send(Way { takes: |s| if s < 30 { 0.5 } else { 2.0 }, ..WAY }, 90);
        assert!(came[1].pictures < 0.6 && came[7].pictures == 1.0 && came[8].pictures == 1.0);
        // So long after six seconds, fifteen, and half a minute of nearly nothing.
        for (key, within) in [((30_000, 2), 60), ((100_000, 4), 60), ((100_000, 10), 110), ((200_000, 10), 60)] {
            type Takes = fn(u64) -> f64;
            let takes: [(Takes, usize); 3] = [
                (|s| if (10..16).contains(&s) { 0.1 } else { 2.0 }, 16),
                (|s| if (10..25).contains(&s) { 0.1 } else { 2.0 }, 25),
                (|s| if (10..40).contains(&s) { 0.02 } else { 2.0 }, 40),
            ];
            for (takes, over) in takes {
                let came = send(Way { takes, key, ..WAY }, 180);
                assert!(came[1].pictures < 1.0, "it was not narrow");
                assert!(whole_from(&came) <= over + within + 10, "{key:?} {over}");
            }
        }
    }

    #[test]
    fn a_line_that_is_wide_again_may_be_longer_or_lose_a_little() {
        let takes: fn(u64) -> f64 = |s| if s < 30 { 0.6 } else { 3.0 };
        let trips: [fn(u64) -> u64; 4] = [
            |s| if s < 30 { 60 } else { 160 },
            |s| if s < 30 { 60 } else { 300 },
            |s| 60 + s * 7919 % 100,
            |s| 60 + s * 7919 % 200,
        ];
        for trip in trips {
            assert!(whole_from(&send(Way { takes, trip, ..WAY }, 200)) <= 110);
        }
        let jitters: fn(u64) -> u64 = |s| 60 + s * 7919 % 100;
        assert!(whole_from(&send(Way { takes, trip: jitters, loses: |_| 0.02, ..WAY }, 200)) <= 110);
        let loses: [fn(u64) -> f64; 7] = [
            |s| if s.is_multiple_of(10) { 0.04 } else { 0.0 },
            |s| if s.is_multiple_of(20) { 0.04 } else { 0.0 },
            |_| 0.01,
            |_| 0.015,
            |_| 0.02,
            |_| 0.03,
            |_| 0.05,
        ];
        for loses in loses {
            assert!(whole_from(&send(Way { takes, loses, ..WAY }, 150)) <= 70);
        }
    }

    #[test]
    fn a_line_that_loses_much_by_itself_is_sent_everything() {
        for key in [(30_000, 2), (200_000, 10)] {
            for loses in [(|_| 0.25) as fn(u64) -> f64, |_| 0.3, |_| 0.5] {
                let came = send(Way { takes: |_| 1.5, loses, key, ..WAY }, 300);
                // It is looked at again after a minute, and two more.
                let whole = came.iter().filter(|it| it.pictures == 1.0).count();
                assert!(came[3..6].iter().all(|it| it.pictures == 1.0) && whole >= 22, "{whole} of 30");
            }
        }
        let came = send(Way { takes: |_| 1.5, loses: |_| 0.3, ..WAY }, 90);
        assert!(came.iter().all(|it| it.pictures > 0.4));
    }

    #[test]
    fn nonsense_reports_do_no_harm_and_sense_ends_it() {
        let (mut line, begin, mut dice) = (Line::default(), Instant::now(), 1u64);
        let mut roll = || {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            dice >> 32
        };
        for n in 0..20_000 {
            line.takes(roll() % 4 == 0, (roll() % 50_000) as usize, (roll() % 50_000) as usize);
            let told = stats(roll() >> (roll() % 32), roll(), Duration::from_micros(roll()), begin + n * SPAN / 2);
            if roll() % 8 == 0 {
                line.report_sound(&told);
            } else {
                line.report(&told);
            }
            assert!(line.rate().is_none_or(|rate| rate.is_finite() && rate >= RATE_MIN), "{line:?}");
        }
        for n in 0..100 {
            for picture in 0..25 {
                line.takes(picture == 0, 7_500, 0);
            }
            line.report(&stats(150 * n, 0, Duration::from_millis(60), begin + (10_000 + n as u32) * SPAN));
        }
        assert!(line.rate().is_none() && line.takes(false, 7_500, 0), "{line:?}");
    }
}
