//! What went out to a player that asks for lost packets (RFC 4585 §6.2.1) and takes no RTX (RFC 4588), to be sent again as it was.
//!
//! The engine sends again by RTX alone. A datagram may go out as often as one likes, encrypted as it is: who has had it drops it (RFC
//! 3711 §3.3.2).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many packets are kept to be sent again: a second of 20 Mbit/s.
pub const PACKETS: usize = 2048;

/// How long they are kept: no longer than helps.
pub const AGE: Duration = Duration::from_secs(3);

/// The last packets of one stream.
#[derive(Debug, Default)]
pub struct Sent {
    /// With numbers that follow each other, the oldest first.
    kept: VecDeque<(u16, Instant, Box<[u8]>)>,
    /// How many may still go out again: no more than have gone out for the first time.
    allowed: usize,
}

impl Sent {
    /// Keeps a packet that went out at `at`.
    pub fn keep(&mut self, sequence: u16, packet: &[u8], at: Instant) {
        if self.kept.back().is_some_and(|(last, ..)| last.wrapping_add(1) != sequence) {
            self.kept.clear();
        }
        let old = |(_, since, _): &(u16, Instant, Box<[u8]>)| at.saturating_duration_since(*since) > AGE;
        while self.kept.len() >= PACKETS || self.kept.front().is_some_and(old) {
            self.kept.pop_front();
        }
        self.kept.push_back((sequence, at, packet.into()));
        self.allowed = (self.allowed + 1).min(PACKETS);
    }

    /// What is to go out again for one entry of a NACK: the packet `first`, and those of the 16 behind it whose bits are set.
    pub fn again(&mut self, first: u16, behind: u16) -> Vec<&[u8]> {
        let Some(&(oldest, ..)) = self.kept.front() else { return Vec::new() };
        let asked = (0..=16).filter(|n| *n == 0 || behind >> (n - 1) & 1 == 1);
        let places = asked.map(|n| usize::from(first.wrapping_add(n).wrapping_sub(oldest)));
        let packets: Vec<_> = places.filter_map(|at| self.kept.get(at)).map(|it| &*it.2).take(self.allowed).collect();
        self.allowed -= packets.len();
        packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets `from`, `from + 1` and so on, each of which has its place as its only byte, one a millisecond.
    fn sent(from: u16, count: u8) -> Sent {
        let (mut sent, begin) = (Sent::default(), Instant::now());
        for n in 0..count {
            sent.keep(from.wrapping_add(n.into()), &[n], begin + Duration::from_millis(n.into()));
        }
        sent
    }

    #[track_caller]
    fn assert_again(sent: &mut Sent, first: u16, behind: u16, want: &[u8]) {
        assert_eq!(sent.again(first, behind).concat(), want, "{first} {behind:016b}");
    }

    #[test]
    fn what_is_asked_for_goes_out_again_over_the_wrap_of_the_numbers() {
        let mut sent = sent(65_530, 20);
        assert_again(&mut sent, 65_530, 0, &[0]);
        assert_again(&mut sent, 65_534, 0b1000_0000_0000_0101, &[4, 5, 7]);
        assert_again(&mut sent, 1, u16::MAX, &[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
        assert_again(&mut sent, 65_529, 1, &[0]);
        assert_again(&mut sent, 14, u16::MAX, &[]);
        assert_again(&mut Sent::default(), 0, u16::MAX, &[]);
    }

    #[test]
    fn no_more_goes_out_again_than_went_out() {
        let mut sent = sent(0, 3);
        assert_again(&mut sent, 0, 1, &[0, 1]);
        assert_again(&mut sent, 0, 3, &[0]);
        assert_again(&mut sent, 0, 3, &[]);
        sent.keep(3, &[3], Instant::now());
        assert_again(&mut sent, 3, 0, &[3]);
        assert_again(&mut sent, 3, 0, &[]);
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_age() {
        let (mut sent, begin) = (Sent::default(), Instant::now());
        for n in 0..3 * PACKETS {
            sent.keep(n as u16, &[], begin);
            assert!(sent.kept.len() <= PACKETS);
        }
        assert_eq!((sent.kept.len(), sent.allowed), (PACKETS, PACKETS));
        sent.keep((3 * PACKETS) as u16, &[1], begin + AGE + Duration::from_millis(1));
        assert_eq!(sent.kept.len(), 1);
        // Numbers that do not follow are of a stream that has begun anew.
        sent.keep(7, &[2], begin + AGE);
        assert_again(&mut sent, 7, 0, &[2]);
        assert_eq!(sent.kept.len(), 1);
    }
}
