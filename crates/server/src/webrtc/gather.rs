//! How long packets wait in the kernel until they are read together.
//!
//! Read as they come, each packet wakes a thread, and that costs more than the packet. So they are read at beats: far apart where little
//! comes, closer while a session opens, each of whose round trips waits for one. What comes between two beats must fit what the kernel
//! keeps. Browsers send a picture's packets one by one, but others, as OBS, a whole keyframe at once, and those of a screen are large: by
//! the usual limits of a Linux that may be more than fits. What came of late tells how long beats can be, and whether there can be any.

use std::time::{Duration, Instant};

/// How far apart beats are at the most.
pub const BEAT_MAX: Duration = Duration::from_millis(40);

/// How far apart they may be, the best first.
const BEATS: [Duration; 5] = [
    BEAT_MAX,
    Duration::from_millis(20),
    Duration::from_millis(10),
    Duration::from_millis(5),
    Duration::from_micros(2_500),
];

/// The longest while a session opens, and how long one does.
const OPENING: Duration = Duration::from_millis(5);
const OPENS: Duration = Duration::from_secs(1);

/// What the kernel counts for a datagram: a page, however little of it is used.
const DATAGRAM: usize = 4 << 10;

/// What comes between two beats may take such a part of what the kernel keeps, since the next may bring more, or be late.
const PART: usize = 2;

/// Bytes that a kernel should keep: those of 512 datagrams, more than come at once of a stream of 10 Mbit/s. With room for them beats
/// are trusted until they bring too much.
pub const ROOM_WISHED: usize = 512 * DATAGRAM;

/// Beats that brought too much may be tried again after so long: keyframes are seldom farther apart.
const CALM: Duration = Duration::from_secs(10);

/// So long without a packet ends the reading.
pub const QUIET: Duration = Duration::from_millis(100);

/// How one socket is read, from a packet on until none comes.
pub struct Gather {
    /// Datagrams that may come between two beats.
    fit: usize,
    /// One for each of [`BEATS`].
    windows: [Window; BEATS.len()],
    opens: bool,
    /// When the socket was last read, and when that brought a packet.
    read: Instant,
    heard: Instant,
}

/// What comes in spans of one length.
#[derive(Clone, Copy)]
struct Window {
    since: Instant,
    datagrams: usize,
    /// Beats of that length are not to be before then.
    barred: Instant,
}

impl Gather {
    /// From a packet that came `now`; the kernel keeps `room` bytes.
    pub fn new(room: usize, now: Instant) -> Gather {
        let barred = if room < ROOM_WISHED { now + CALM / 2 } else { now };
        let window = Window { since: now, datagrams: 0, barred };
        let fit = room / DATAGRAM / PART;
        Gather { fit, windows: [window; BEATS.len()], opens: false, read: now, heard: now }
    }

    /// How long to wait until the socket is read again; `None` is until a packet comes, or [`QUIET`] has passed.
    pub fn beat(&self) -> Option<Duration> {
        let calm = BEATS.iter().zip(&self.windows).filter(|(_, window)| window.barred <= self.read);
        calm.map(|(beat, _)| *beat).find(|beat| !self.opens || *beat <= OPENING)
    }

    /// Takes in how many datagrams were read `now`, whether others found no room before, and when a session was last opened; false once
    /// nothing comes any more.
    pub fn goes_on(&mut self, datagrams: usize, overflowed: bool, opened: Option<Instant>, now: Instant) -> bool {
        // What was not waited for has just come.
        let waited = self.beat().map_or(Duration::ZERO, |_| now.saturating_duration_since(self.read));
        self.read = now;
        for (beat, window) in BEATS.iter().zip(&mut self.windows) {
            // How they were spread over a longer wait is not known.
            let share = (beat.as_secs_f64() / waited.as_secs_f64()).min(1.0);
            window.datagrams += (datagrams as f64 * share).round() as usize;
            if overflowed || window.datagrams > self.fit {
                window.barred = now + CALM;
            }
            if now.saturating_duration_since(window.since) >= *beat {
                (window.since, window.datagrams) = (now, 0);
            }
        }
        self.opens = opened.is_some_and(|opened| now.saturating_duration_since(opened) < OPENS);
        if datagrams > 0 {
            self.heard = now;
        }
        now.saturating_duration_since(self.heard) < QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the usual limits, and by ours.
    const SMALL: usize = 416 << 10;
    const LARGE: usize = 8 << 20;

    /// Reads a socket to which datagrams come at these milliseconds. Gives the beats that there were, each when they began.
    fn read(room: usize, mut come: impl Iterator<Item = u64>, opened: bool) -> Vec<(u128, Option<u128>)> {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let (mut gather, mut now, mut next, mut seen) = (Gather::new(room, begin), begin, come.next(), Vec::new());
        loop {
            let mut datagrams = 0;
            while next.is_some_and(|ms| at(ms) <= now) {
                (datagrams, next) = (datagrams + 1, come.next());
            }
            if !gather.goes_on(datagrams, false, opened.then_some(begin), now) {
                return seen;
            }
            let beat = gather.beat();
            if seen.last().is_none_or(|(_, last)| *last != beat.map(|it| it.as_micros())) {
                seen.push(((now - begin).as_millis(), beat.map(|it| it.as_micros())));
            }
            now += beat.unwrap_or_else(|| next.map_or(QUIET, |ms| at(ms) - now));
        }
    }

    /// So many datagrams every so many milliseconds, for a minute.
    fn evenly(datagrams: usize, every: u64) -> impl Iterator<Item = u64> {
        (0..60_000 / every).flat_map(move |n| std::iter::repeat_n(n * every, datagrams))
    }

    #[test]
    fn beats_are_as_far_apart_as_what_the_kernel_keeps_allows() {
        assert_eq!(read(LARGE, evenly(1, 3), false), [(0, Some(40_000))]);
        assert_eq!(read(LARGE, evenly(20, 1), false), [(0, Some(40_000))]);
        assert_eq!(read(SMALL, evenly(1, 3), false), [(0, None), (5_001, Some(40_000))]);
        assert_eq!(read(SMALL, evenly(2, 1), false), [(0, None), (5_000, Some(20_000))]);
        assert_eq!(read(SMALL, evenly(12, 1), false), [(0, None), (5_000, Some(2_500))]);
        assert_eq!(read(SMALL, evenly(40, 1), false), [(0, None)]);
    }

    #[test]
    fn there_are_no_beats_where_more_comes_at_once_than_the_kernel_keeps() {
        // A keyframe of 200 packets every two seconds, and between them pictures of 20.
        let screen = || (0..1500).flat_map(|n| std::iter::repeat_n(n * 40, if n % 50 == 0 { 200 } else { 20 }));
        assert_eq!(read(SMALL, screen(), false), [(0, None)]);
        assert_eq!(read(LARGE, screen(), false), [(0, Some(40_000))]);
    }

    #[test]
    fn beats_that_brought_too_much_come_again_once_little_comes() {
        let begin = Instant::now();
        let mut gather = Gather::new(LARGE, begin);
        let at = |ms| begin + Duration::from_millis(ms);
        gather.goes_on(3_000, false, None, at(40));
        assert_eq!(gather.beat(), Some(Duration::from_millis(10)), "so much of it came in each, as far as is known");
        gather.goes_on(30, true, None, at(50));
        assert_eq!(gather.beat(), None, "the kernel had no room for others");
        gather.goes_on(30, false, None, at(10_049));
        assert_eq!(gather.beat(), None);
        gather.goes_on(30, false, None, at(10_050));
        assert_eq!(gather.beat(), Some(BEATS[0]));
    }

    #[test]
    fn a_session_that_opens_does_not_wait_long() {
        assert_eq!(read(LARGE, evenly(1, 3), true), [(0, Some(5_000)), (1_000, Some(40_000))]);
        assert_eq!(read(SMALL, evenly(1, 3), true), [(0, None), (5_001, Some(40_000))]);
    }

    #[test]
    fn nothing_is_read_once_nothing_comes() {
        let begin = Instant::now();
        let mut gather = Gather::new(LARGE, begin);
        let goes_on: Vec<_> = (1..=4).map(|n| gather.goes_on(0, false, None, begin + n * BEATS[0])).collect();
        assert_eq!(goes_on, [true, true, false, false]);
        assert!(gather.goes_on(1, false, None, begin + 5 * BEATS[0]));
    }
}
