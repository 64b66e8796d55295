//! Packets of pictures in an order in which what was lost can still be filled in.
//!
//! The engine keeps a window of 100 sequence numbers: what lies farther behind the newest packet it neither asks for again nor takes. At
//! 2 Mbit/s that is less than half a second, and less than one keyframe that is sent at once. So while a packet is missing, those beyond
//! the window wait here. No picture comes later by that: the engine gives out none before one that is not whole.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far ahead of a missing packet the engine may be.
const WINDOW: u16 = 100;

/// The engine asks five times, some 105 ms apart, and waits for 300 ms after the last.
const PATIENCE: Duration = Duration::from_millis(800);

/// Packets that wait at the most: a second of 20 Mbit/s. With more, what is missing is given up.
const WAITING_MAX: usize = 2048;

/// The packets of one sender who sends again what was lost under its old sequence number.
#[derive(Debug)]
pub struct Order<T> {
    /// The newest that has gone on.
    newest: Option<u16>,
    /// What has not come and lies before that, in order, and since when.
    missing: VecDeque<(u16, Instant)>,
    waiting: VecDeque<(u16, T)>,
}

impl<T> Default for Order<T> {
    fn default() -> Order<T> {
        Order { newest: None, missing: VecDeque::new(), waiting: VecDeque::new() }
    }
}

impl<T> Order<T> {
    /// Takes in a packet; gives it back if it may go on at once.
    pub fn take(&mut self, sequence: u16, packet: T, now: Instant) -> Option<T> {
        if self.fits(sequence) || (self.waiting.is_empty() && self.is_anew(sequence)) {
            self.goes_on(sequence, now);
            return Some(packet);
        }
        if self.waiting.len() == WAITING_MAX {
            self.missing.clear();
        }
        self.waiting.push_back((sequence, packet));
        None
    }

    /// The next of those that wait, if it may go on by now.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        if self.waiting.is_empty() {
            return None;
        }
        while self.missing.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= PATIENCE) {
            self.missing.pop_front();
        }
        let at = self.waiting.iter().position(|(sequence, _)| self.fits(*sequence))?;
        let (sequence, packet) = self.waiting.remove(at)?;
        self.goes_on(sequence, now);
        Some(packet)
    }

    /// Whether packets wait.
    pub fn holds(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lets all go that wait.
    pub fn give_up(&mut self) {
        self.missing.clear();
    }

    /// How far a packet is ahead of the first that is missing, if it is.
    fn ahead(&self, sequence: u16) -> Option<u16> {
        let (first, _) = self.missing.front()?;
        Some(sequence.wrapping_sub(*first)).filter(|ahead| *ahead < 1 << 15)
    }

    fn fits(&self, sequence: u16) -> bool {
        self.ahead(sequence).is_none_or(|ahead| ahead <= WINDOW)
    }

    /// Whether a sender that goes on with this has begun anew.
    fn is_anew(&self, sequence: u16) -> bool {
        self.ahead(sequence).is_some_and(|ahead| usize::from(ahead) > WAITING_MAX)
    }

    fn goes_on(&mut self, sequence: u16, now: Instant) {
        let Some(newest) = self.newest else {
            self.newest = Some(sequence);
            return;
        };
        match sequence.wrapping_sub(newest) {
            0 => {}
            ahead @ 1..=WINDOW => {
                self.missing.extend((1..ahead).map(|n| (newest.wrapping_add(n), now)));
                self.newest = Some(sequence);
            }
            ahead if ahead.wrapping_neg() < WAITING_MAX as u16 => self.missing.retain(|it| it.0 != sequence),
            // So far ahead that nothing between can be filled in, or the sender has begun anew.
            _ => {
                self.missing.clear();
                self.newest = Some(sequence);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_comes_goes_on_once_and_none_is_far_ahead_of_what_is_missing(
            first: u16,
            come in prop::collection::vec((0u16..400, 0u64..40, any::<bool>()), 1..600),
        ) {
            let begin = Instant::now();
            let (mut order, mut gone, mut ms, mut newest) = (Order::default(), Vec::new(), 0, first);
            for (n, (far, wait, ahead)) in come.iter().enumerate() {
                ms += wait;
                let sequence = if *ahead { newest.wrapping_add(1 + far % 8) } else { newest.wrapping_sub(*far) };
                newest = if *ahead { sequence } else { newest };
                let now = begin + Duration::from_millis(ms);
                let missing = order.missing.front().map(|it: &(u16, Instant)| it.0);
                if let Some(packet) = order.take(sequence, n, now) {
                    let ahead = missing.map_or(0, |missing| sequence.wrapping_sub(missing) as i16);
                    prop_assert!(ahead <= WINDOW as i16, "{ahead} ahead");
                    gone.push(packet);
                }
                gone.extend(std::iter::from_fn(|| order.next(now)));
                prop_assert!(order.missing.len() <= usize::from(WINDOW));
            }
            let late = begin + Duration::from_millis(ms);
            // What waits behind the last may show that more is missing.
            for n in 1..=20 {
                gone.extend(std::iter::from_fn(|| order.next(late + n * PATIENCE)));
            }
            gone.sort_unstable();
            prop_assert_eq!(gone, (0..come.len()).collect::<Vec<_>>());
        }
    }

    /// Gives the packets of `come` to an order, each at a millisecond and with all that may follow it, and compares when which went on.
    fn check(come: &[(u64, u16)], want: &[(u64, u16)]) {
        let begin = Instant::now();
        let (mut order, mut gone) = (Order::default(), Vec::new());
        for (ms, sequence) in come {
            let now = begin + Duration::from_millis(*ms);
            gone.extend(std::iter::from_fn(|| order.next(now)).map(|sequence| (*ms, sequence)));
            gone.extend(order.take(*sequence, *sequence, now).map(|sequence| (*ms, sequence)));
            gone.extend(std::iter::from_fn(|| order.next(now)).map(|sequence| (*ms, sequence)));
        }
        assert_eq!(gone, want);
    }

    /// All of `sequences` at once.
    fn at(ms: u64, sequences: impl IntoIterator<Item = u16>) -> Vec<(u64, u16)> {
        sequences.into_iter().map(|sequence| (ms, sequence)).collect()
    }

    #[test]
    fn what_comes_in_order_goes_on_at_once() {
        let come = at(0, (65_000..=65_535).chain(0..1000));
        check(&come, &come);
        let come = at(0, [3, 1, 2, 4, 4, 2, 5]);
        check(&come, &come);
    }

    #[test]
    fn what_is_too_far_ahead_of_a_lost_packet_waits_for_it() {
        for first in [100u16, 65_500, 65_535] {
            let number = |n: u16| first.wrapping_add(n);
            let come = [at(0, [number(0)]), at(0, (2..=300).map(number)), at(150, [number(1)]), at(151, [number(301)])];
            let want = [
                at(0, [number(0)]),
                at(0, (2..=101).map(number)),
                at(150, [number(1)]),
                at(150, (102..=300).map(number)),
                at(151, [number(301)]),
            ];
            check(&come.concat(), &want.concat());
        }
    }

    #[test]
    fn what_was_lost_among_those_that_wait_is_waited_for_as_well() {
        let come = [at(0, [0]), at(0, 2..=150), at(0, 152..=400), at(100, [1]), at(200, [151])];
        let want = [
            at(0, [0]),
            at(0, 2..=101),
            at(100, [1]),
            at(100, 102..=150),
            at(100, 152..=251),
            at(200, [151]),
            at(200, 252..=400),
        ];
        check(&come.concat(), &want.concat());
    }

    #[test]
    fn what_never_comes_is_given_up() {
        let come = [at(0, [0]), at(0, 2..=150), at(799, [151]), at(800, [152])];
        let want = [at(0, [0]), at(0, 2..=101), at(800, 102..=152)];
        check(&come.concat(), &want.concat());
        let many = [at(0, [0]), at(0, 2..=101 + WAITING_MAX as u16), at(1, [3000])];
        let mut order = Order::default();
        let now = Instant::now();
        let kept = many.concat().into_iter().filter(|(_, n)| order.take(*n, *n, now).is_none()).count();
        assert_eq!(kept, WAITING_MAX + 1);
        assert_eq!(std::iter::from_fn(|| order.next(now)).count(), WAITING_MAX + 1, "all of them");
    }

    #[test]
    fn who_begins_anew_or_far_ahead_is_followed() {
        let come = at(0, [10, 12, 5000, 5001, 40_000, 40_001]);
        check(&come, &come);
    }
}
