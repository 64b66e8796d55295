//! Packets of pictures in an order in which what was lost can still be filled in.
//!
//! The engine keeps a window of 100 sequence numbers: what lies farther behind the newest packet it neither asks for again nor takes. At
//! 2 Mbit/s that is less than half a second, and less than one keyframe that is sent at once. So while a packet is missing, those beyond
//! the window wait here. No picture comes later by that: the engine gives out none before one that is not whole.
//!
//! What is missing at 5 % loss is most of the time something, so that a window goes on in each round trip: 100 packets in 150 ms are some
//! 6 Mbit/s. Beyond that more and more would wait; what has been missing for longer than [`PATIENCE`] is given up, and with it its picture.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far ahead of a missing packet the engine may be.
const WINDOW: u16 = 100;

/// How long a packet is waited for. The engine asks five times, some 105 ms apart, and waits for 300 ms after the last.
const PATIENCE: Duration = Duration::from_millis(800);

/// Packets that wait at the most, or are missing: a second of 20 Mbit/s. With more, what is missing is given up.
const WAITING_MAX: usize = 2048;

/// The packets of one stream whose sender sends lost ones again.
#[derive(Debug)]
pub struct Order<T> {
    /// The newest that has come.
    newest: Option<u16>,
    /// What has not come and lies before that, in order, and since when.
    missing: VecDeque<(u16, Instant)>,
    /// In order.
    waiting: VecDeque<(u16, T)>,
}

impl<T> Order<T> {
    /// Of what follows the first packet that the engine took, if it did.
    pub fn after(first: Option<u16>) -> Order<T> {
        Order { newest: first, missing: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// Takes in a packet that came at `at`; gives it back if it may go on at once.
    pub fn take(&mut self, sequence: u16, packet: T, at: Instant) -> Option<T> {
        let newest = *self.newest.get_or_insert(sequence);
        let ahead = sequence.wrapping_sub(newest);
        if usize::from(ahead.wrapping_neg()) <= WAITING_MAX {
            self.fill(sequence);
        } else {
            self.newest = Some(sequence);
            match ahead {
                1..=WINDOW => self.missing.extend((1..ahead).map(|n| (newest.wrapping_add(n), at))),
                // With more missing before it than the engine could ask for.
                _ if usize::from(ahead) <= WAITING_MAX => {}
                // The sender has begun anew.
                _ => self.missing.clear(),
            }
        }
        let full = self.waiting.len() >= WAITING_MAX || self.missing.len() > WAITING_MAX;
        if full {
            self.missing.clear();
        }
        // What has waited for nothing goes on before this one.
        if self.fits(sequence) && (!full || self.waiting.is_empty()) {
            return Some(packet);
        }
        let place = self.waiting.iter().rposition(|(other, _)| sequence.wrapping_sub(*other) < 1 << 15);
        self.waiting.insert(place.map_or(0, |place| place + 1), (sequence, packet));
        None
    }

    /// Takes note that what was missing has come, if by another way.
    pub fn fill(&mut self, sequence: u16) {
        self.missing.retain(|(missing, _)| *missing != sequence);
    }

    /// The next of those that wait, if it may go on by now.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        let (first, _) = self.waiting.front()?;
        while self.missing.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= PATIENCE) {
            self.missing.pop_front();
        }
        if !self.fits(*first) {
            return None;
        }
        self.waiting.pop_front().map(|(_, packet)| packet)
    }

    /// Whether a packet is not too far ahead of the first that is missing.
    fn fits(&self, sequence: u16) -> bool {
        self.missing.front().is_none_or(|(first, _)| {
            let ahead = sequence.wrapping_sub(*first);
            ahead <= WINDOW || ahead >= 1 << 15
        })
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
            let (mut order, mut gone, mut ms, mut newest) = (Order::after(Some(first)), Vec::new(), 0, first);
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
                prop_assert!(order.missing.len() <= WAITING_MAX);
            }
            let late = begin + Duration::from_millis(ms);
            gone.extend(std::iter::from_fn(|| order.next(late + PATIENCE)));
            gone.sort_unstable();
            prop_assert_eq!(gone, (0..come.len()).collect::<Vec<_>>());
        }
    }

    /// Gives the packets of `come` to an order, each at a millisecond and with all that may follow it, and compares when which went on.
    fn check(come: &[(u64, u16)], want: &[(u64, u16)]) {
        let begin = Instant::now();
        let (mut order, mut gone) = (Order::after(None), Vec::new());
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
    fn what_comes_by_another_way_is_not_waited_for() {
        let (mut order, now) = (Order::after(Some(0)), Instant::now());
        let waiting = (2..=150).filter(|n| order.take(*n, *n, now).is_none()).count();
        assert_eq!((waiting, order.next(now)), (49, None));
        order.fill(1);
        assert!(std::iter::from_fn(|| order.next(now)).eq(102..=150));
    }

    #[test]
    fn what_never_comes_is_given_up() {
        let come = [at(0, [0]), at(0, 2..=150), at(799, [151]), at(800, [152])];
        let want = [at(0, [0]), at(0, 2..=101), at(800, 102..=152)];
        check(&come.concat(), &want.concat());
        // However late those before it went on.
        let come = [at(0, [0]), at(0, 2..=150), at(0, 152..=400), at(700, [1]), at(800, [401])];
        let want =
            [at(0, [0]), at(0, 2..=101), at(700, [1]), at(700, 102..=150), at(700, 152..=251), at(800, 252..=401)];
        check(&come.concat(), &want.concat());

        let now = Instant::now();
        let many = [at(0, [0]), at(0, 2..=101 + WAITING_MAX as u16)].concat();
        let sparse = (1..=100).map(|n| (0, n * WINDOW)).collect();
        for come in [many, sparse] {
            let mut order = Order::after(Some(0));
            let kept = come.iter().filter(|(_, n)| order.take(*n, *n, now).is_none()).count();
            assert!(kept > 10 && order.missing.len() <= WAITING_MAX && order.waiting.len() <= WAITING_MAX, "{kept}");
            assert!(order.take(12_000, 12_000, now).is_some() || order.next(now).is_some(), "a way out");
        }

        // What has waited goes on before that for which there was no room.
        let last = 102 + WAITING_MAX as u16;
        let mut order = Order::after(Some(0));
        let gone: Vec<_> = (2..=last).filter_map(|n| order.take(n, n, now)).collect();
        let waited: Vec<_> = std::iter::from_fn(|| order.next(now)).collect();
        assert_eq!([gone, waited].concat(), (2..=last).collect::<Vec<_>>());
    }

    #[test]
    fn who_begins_anew_or_far_ahead_is_followed() {
        let come = at(0, [10, 12, 5000, 5001, 40_000, 40_001]);
        check(&come, &come);
    }
}
