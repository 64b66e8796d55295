//! How fast media goes out to one client: a few dozen packets at once, then the next after a rest; or as fast as its line is known to take.
//!
//! A keyframe is hundreds of packets. All at once they find no room on many ways: Linux keeps some hundred for a socket that asks for no
//! more, and so do switches and routers in front of a slower line. What is lost there comes again, if the client asks for it at all, a
//! round trip later and as the next burst.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Packets that go out at once.
const AT_ONCE: usize = 48;

/// How long after them the next go: 90 Mbit/s of full packets.
const REST: Duration = Duration::from_millis(5);

/// How long what follows waits for packets that lead: on few ways do packets overtake each other by more.
const LEAD: Duration = Duration::from_millis(25);

/// How far ahead of the rate of a line that is known packets may go: what a timer is late by costs nothing.
const AHEAD: Duration = Duration::from_millis(10);

/// Packets that wait at the most; with more, the oldest go.
const WAITING_MAX: usize = 2048;

/// What goes out to one client, in order.
#[derive(Debug)]
pub struct Pace<T> {
    /// With how many bytes each has.
    waiting: VecDeque<(T, usize)>,
    bytes: usize,
    /// When others may go, and how many more until then.
    until: Option<Instant>,
    left: usize,
    /// So many packets go ahead of all that follow.
    leading: usize,
    /// Bytes a second that the line takes, if that is known, and until when it is busy with those that went.
    line: Option<(f64, Instant)>,
}

impl<T> Default for Pace<T> {
    fn default() -> Pace<T> {
        Pace { waiting: VecDeque::new(), bytes: 0, until: None, left: 0, leading: 0, line: None }
    }
}

impl<T> Pace<T> {
    /// Lets the next `packets` go ahead of all that follow.
    pub fn lead(&mut self, packets: usize) {
        self.leading = packets;
    }

    /// Goes by the bytes a second that the line takes, if that is known.
    pub fn bind(&mut self, rate: Option<f64>, now: Instant) {
        self.line = rate.map(|rate| (rate, self.line.map_or(now, |(_, busy)| busy)));
    }

    /// Whether a packet of so many bytes may go now, before which none waits.
    pub fn admits(&mut self, bytes: usize, now: Instant) -> bool {
        self.waiting.is_empty() && self.count(bytes, now)
    }

    /// Keeps a packet of so many bytes until [`next`](Self::next) gives it back.
    pub fn keep(&mut self, packet: T, bytes: usize) {
        self.waiting.push_back((packet, bytes));
        self.bytes += bytes;
    }

    /// The first packet that waits, if it may go by now.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        let first = self.waiting.front()?.1;
        if self.waiting.len() <= WAITING_MAX && !self.count(first, now) {
            return None;
        }
        let (packet, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some(packet)
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.bytes
    }

    /// All that waits, for a client that is to be left.
    pub fn rest(self) -> impl Iterator<Item = T> {
        self.waiting.into_iter().map(|(packet, _)| packet)
    }

    /// When [`next`](Self::next) is to be asked again.
    pub fn due(&self) -> Option<Instant> {
        let busy = self.line.and_then(|(_, busy)| busy.checked_sub(AHEAD));
        self.until.max(busy).filter(|_| !self.waiting.is_empty())
    }

    /// Counts a packet of so many bytes that is to go; false if it may not.
    fn count(&mut self, bytes: usize, now: Instant) -> bool {
        if self.line.is_some_and(|(_, busy)| now + AHEAD < busy) {
            return false;
        }
        let goes = self.count_at_once(now);
        if let (true, Some((rate, busy))) = (goes, &mut self.line) {
            *busy = (*busy).max(now) + Duration::from_secs_f64(bytes as f64 / *rate);
        }
        goes
    }

    fn count_at_once(&mut self, now: Instant) -> bool {
        if self.until.is_none_or(|until| now >= until) {
            (self.until, self.left) = (Some(now + REST), AT_ONCE);
        }
        let goes = self.left > 0;
        if goes && self.leading > 0 {
            self.leading -= 1;
            if self.leading == 0 {
                (self.until, self.left) = (Some(now + LEAD), 0);
            }
        }
        self.left = self.left.saturating_sub(1);
        goes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1_000;

    /// Gives packets to `pace` at `now`, and takes those that go.
    fn offer(pace: &mut Pace<usize>, packets: std::ops::Range<usize>, now: Instant) -> Vec<usize> {
        let mut gone = Vec::new();
        for packet in packets {
            if pace.admits(SIZE, now) {
                gone.push(packet);
            } else {
                pace.keep(packet, SIZE);
                gone.extend(pace.next(now));
            }
        }
        gone
    }

    #[test]
    fn a_keyframe_goes_out_in_parts_and_what_follows_it_behind_it() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let mut gone = offer(&mut pace, 0..200, begin);
        assert_eq!(gone, (0..AT_ONCE).collect::<Vec<_>>());
        let mut parts = 1;
        while let Some(due) = pace.due() {
            assert_eq!(due, begin + parts * REST);
            assert_eq!(pace.next(due - Duration::from_millis(1)), None);
            // A picture in the midst of it.
            if parts == 2 {
                assert!(offer(&mut pace, 200..210, due - Duration::from_millis(1)).is_empty());
            }
            let before = gone.len();
            gone.extend(std::iter::from_fn(|| pace.next(due)));
            assert!(gone.len() - before <= AT_ONCE);
            parts += 1;
        }
        assert_eq!((parts, gone), (5, (0..210).collect()));
    }

    #[test]
    fn packets_that_lead_go_ahead_of_all_that_follow() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        assert_eq!(offer(&mut pace, 0..3, begin), [0, 1, 2]);
        pace.lead(2);
        assert_eq!(offer(&mut pace, 3..8, begin), [3, 4]);
        assert_eq!(pace.due(), Some(begin + LEAD));
        assert!(offer(&mut pace, 8..9, begin + LEAD - REST).is_empty());
        let rest: Vec<_> = std::iter::from_fn(|| pace.next(begin + LEAD)).collect();
        assert_eq!((rest, pace.due()), ((5..9).collect(), None));
    }

    #[test]
    fn by_a_line_that_is_known_packets_go_as_it_takes_them() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        pace.bind(Some(100_000.0), begin);
        let mut gone = offer(&mut pace, 0..200, begin);
        assert_eq!((gone.len(), pace.waiting()), (2, 198 * SIZE));
        while let Some(due) = pace.due() {
            gone.extend(std::iter::from_fn(|| pace.next(due)));
            // 100 packets a second.
            let went = gone.len() as u32 * Duration::from_millis(10);
            assert!(
                due + AHEAD < begin + went && begin + went <= due + 2 * AHEAD,
                "{} at {:?}",
                gone.len(),
                due - begin
            );
        }
        assert_eq!((gone, pace.waiting()), ((0..200).collect(), 0));
        pace.bind(None, begin);
        assert_eq!(offer(&mut pace, 0..AT_ONCE, begin + 2 * Duration::from_secs(2)).len(), AT_ONCE);
    }

    #[test]
    fn what_is_few_goes_out_at_once() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        for n in 0..100 {
            let now = begin + n * REST;
            assert_eq!(offer(&mut pace, 0..AT_ONCE, now).len(), AT_ONCE);
            assert_eq!(pace.due(), None);
        }
    }

    #[test]
    fn what_waits_is_bounded_and_nothing_of_it_is_lost() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let all = 3 * WAITING_MAX;
        let mut gone = offer(&mut pace, 0..all, begin);
        assert_eq!(gone.len(), all - WAITING_MAX);
        gone.extend(pace.rest());
        assert_eq!(gone, (0..all).collect::<Vec<_>>());
    }
}
