//! How long packets wait in the kernel until they are read together.
//!
//! Read as they come, each packet wakes a thread, and that costs more than the packet. So they are read at beats: far apart where little
//! comes, closer where more would fill what the kernel keeps, or while a session opens, each of whose round trips waits for one.

use std::time::{Duration, Instant};

/// Between two beats at the most, and at the least. All other lengths are halves of the longest.
const LONGEST: Duration = Duration::from_millis(40);
const SHORTEST: Duration = Duration::from_micros(2_500);

/// The same while a session opens, and how long one does.
const OPENING: Duration = Duration::from_millis(5);
const OPENS: Duration = Duration::from_secs(1);

/// What the kernel counts for a datagram: a page, however little of it is used.
const DATAGRAM: usize = 4 << 10;

/// What comes between two beats may take such a part of what the kernel keeps. A keyframe is several times another picture.
const PART: usize = 4;

/// Beats become longer once none had to be as short for so long.
const CALM: Duration = Duration::from_millis(500);

/// So long without a packet ends the beats.
const QUIET: Duration = Duration::from_millis(100);

/// The beats at which one socket is read, from a packet on until none comes.
pub struct Gather {
    /// Bytes that the kernel keeps.
    room: usize,
    beat: Duration,
    /// When beats last had to be as short as they are.
    needed: Instant,
    /// When a packet last came.
    heard: Instant,
}

impl Gather {
    /// Beats from a packet that came `now`; the kernel keeps `room` bytes.
    pub fn new(room: usize, now: Instant) -> Gather {
        Gather { room, beat: LONGEST, needed: now, heard: now }
    }

    /// How long the beats are.
    pub fn beat(&self) -> Duration {
        self.beat
    }

    /// Takes in how many datagrams the last beat brought, and when a session was last opened; false once the beats end.
    pub fn goes_on(&mut self, datagrams: usize, opened: Option<Instant>, now: Instant) -> bool {
        let opens = opened.is_some_and(|opened| now.saturating_duration_since(opened) < OPENS);
        let mut fit = if opens { OPENING } else { LONGEST };
        while fit > SHORTEST && self.overfills(fit, datagrams) {
            fit /= 2;
        }
        if fit <= self.beat {
            (self.beat, self.needed) = (fit, now);
        } else if now.saturating_duration_since(self.needed) >= CALM {
            (self.beat, self.needed) = (self.beat * 2, now);
        }
        if datagrams > 0 {
            self.heard = now;
        }
        now.saturating_duration_since(self.heard) < QUIET
    }

    /// Whether beats of this length would bring too much, if this much comes in one as they are.
    fn overfills(&self, beat: Duration, datagrams: usize) -> bool {
        let share = beat.as_secs_f64() / self.beat.as_secs_f64();
        (datagrams * DATAGRAM * PART) as f64 * share > self.room as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 416 << 10;

    /// The beats, in microseconds, where so many datagrams a second come for two seconds, and again so many; a session opens `opened` ms
    /// before the first.
    fn beats(rates: &[usize], opened: Option<u64>) -> Vec<u128> {
        let begin = Instant::now() + OPENS;
        let opened = opened.map(|ms| begin - Duration::from_millis(ms));
        let (mut gather, mut now, mut lengths) = (Gather::new(ROOM, begin), begin, Vec::new());
        for (n, rate) in rates.iter().enumerate() {
            while now < begin + (n as u32 + 1) * Duration::from_secs(2) {
                let beat = gather.beat();
                now += beat;
                assert!(gather.goes_on((beat.as_secs_f64() * *rate as f64).round() as usize, opened, now));
                let length = gather.beat().as_micros();
                if lengths.last() != Some(&length) {
                    lengths.push(length);
                }
            }
        }
        lengths
    }

    #[test]
    fn beats_are_as_far_apart_as_what_the_kernel_keeps_allows() {
        assert_eq!(beats(&[300], None), [40_000]);
        assert_eq!(beats(&[1_000], None), [20_000]);
        assert_eq!(beats(&[1_000, 300, 10_000], None), [20_000, 40_000, 2_500]);
        assert_eq!(beats(&[1_000_000], None), [2_500], "and no shorter");
    }

    #[test]
    fn a_session_that_opens_does_not_wait_long() {
        assert_eq!(beats(&[300, 300], Some(0)), [5_000, 10_000, 20_000, 40_000]);
        assert_eq!(beats(&[300], Some(1_000)), [40_000]);
    }

    #[test]
    fn beats_end_where_nothing_comes() {
        let begin = Instant::now();
        let mut gather = Gather::new(ROOM, begin);
        let goes_on: Vec<_> = (1..=4).map(|n| gather.goes_on(0, None, begin + n * LONGEST)).collect();
        assert_eq!(goes_on, [true, true, false, false]);
        assert!(gather.goes_on(1, None, begin + 5 * LONGEST));
    }
}
