//! How fast media goes out to one client: a few dozen packets at once, then the next after a rest.
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

/// Packets that wait at the most; with more, the oldest go.
const WAITING_MAX: usize = 2048;

/// What goes out to one client, in order.
#[derive(Debug)]
pub struct Pace<T> {
    waiting: VecDeque<T>,
    /// When others may go, and how many more until then.
    until: Option<Instant>,
    left: usize,
    /// So many packets go ahead of all that follow.
    leading: usize,
}

impl<T> Default for Pace<T> {
    fn default() -> Pace<T> {
        Pace { waiting: VecDeque::new(), until: None, left: 0, leading: 0 }
    }
}

impl<T> Pace<T> {
    /// Lets the next `packets` go ahead of all that follow.
    pub fn lead(&mut self, packets: usize) {
        self.leading = packets;
    }

    /// Whether a packet may go now, before which none waits.
    pub fn admits(&mut self, now: Instant) -> bool {
        self.waiting.is_empty() && self.count(now)
    }

    /// Keeps a packet until [`next`](Self::next) gives it back.
    pub fn keep(&mut self, packet: T) {
        self.waiting.push_back(packet);
    }

    /// The first packet that waits, if it may go by now.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        let goes = self.waiting.len() > WAITING_MAX || !self.waiting.is_empty() && self.count(now);
        if goes { self.waiting.pop_front() } else { None }
    }

    /// All that waits, for a client that is to be left.
    pub fn rest(self) -> impl Iterator<Item = T> {
        self.waiting.into_iter()
    }

    /// When [`next`](Self::next) is to be asked again.
    pub fn due(&self) -> Option<Instant> {
        self.until.filter(|_| !self.waiting.is_empty())
    }

    /// Counts a packet that is to go; false if it may not.
    fn count(&mut self, now: Instant) -> bool {
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

    /// Gives packets to `pace` at `now`, and takes those that go.
    fn offer(pace: &mut Pace<usize>, packets: std::ops::Range<usize>, now: Instant) -> Vec<usize> {
        let mut gone = Vec::new();
        for packet in packets {
            if pace.admits(now) {
                gone.push(packet);
            } else {
                pace.keep(packet);
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
