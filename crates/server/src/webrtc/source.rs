//! Which stream of a publisher carries a section, by the payload types of its packets.
//!
//! The engine knows a stream by an `a=ssrc` of the offer, or by the name of its section in a header extension (RFC 8843 §15). An offer
//! needs neither: then a payload type tells (RFC 8843 §9.2). And it does not follow a publisher that goes back to a stream from which it
//! had changed, as a mixer does that switches between its sources. What it needs to hear is told it by packets of ours, which have such a
//! name: it learns from the header before it finds that the rest does not decrypt.

use std::time::Instant;

use bytes::Bytes;
use str0m::media::Mid;
use str0m::rtp::Ssrc;

use super::offer::Carried;

/// What is to be done with a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// The engine knows its stream, or will by itself.
    Known,
    /// Before it the engine is to be given these.
    New(Vec<Bytes>),
    /// It comes late, of a stream that another has followed, or is of one stream too many.
    Stray,
}

/// The streams of a publisher.
pub struct Sources {
    carried: Vec<Carried>,
    mid_extension: u8,
    lines: Vec<Line>,
    seen: Seen,
}

/// Which streams there have been. The engine keeps some bytes of each for as long as the session lasts.
struct Seen {
    /// The last ones, the newest first.
    ssrcs: Vec<u32>,
    /// So many others may begin, and one more for each second since then.
    spare: u64,
    since: Instant,
}

/// The stream of a section that carries its media, or what repairs them.
struct Line {
    mid: Mid,
    main: bool,
    ssrc: u32,
    /// Those that it followed.
    former: Vec<u32>,
    /// Packets in a row of one of those.
    strays: u8,
}

/// So many packets in a row are of a stream that has come back, and no late ones.
const BACK: u8 = 3;

/// Streams of a section that are remembered.
const FORMER_MAX: usize = 16;

/// Streams of a session that are remembered, and that may begin at once.
const SEEN_MAX: usize = 64;

impl Seen {
    /// Whether a stream is one of them, or may begin.
    fn take(&mut self, ssrc: u32, now: Instant) -> bool {
        if let Some(at) = self.ssrcs.iter().position(|it| *it == ssrc) {
            self.ssrcs[..=at].rotate_right(1);
            return true;
        }
        let passed = now.saturating_duration_since(self.since).as_secs();
        if passed > 0 {
            (self.spare, self.since) = ((self.spare + passed).min(SEEN_MAX as u64), now);
        }
        let Some(spare) = self.spare.checked_sub(1) else { return false };
        self.spare = spare;
        self.ssrcs.truncate(SEEN_MAX - 1);
        self.ssrcs.insert(0, ssrc);
        true
    }
}

impl Sources {
    /// Those of an offer.
    pub fn new(carried: &[Carried], mid_extension: u8, now: Instant) -> Sources {
        let seen = Seen { ssrcs: Vec::new(), spare: SEEN_MAX as u64, since: now };
        Sources { carried: carried.to_vec(), mid_extension, lines: Vec::new(), seen }
    }

    /// Looks at a packet of a stream that came `now`.
    pub fn take(&mut self, ssrc: Ssrc, packet: &[u8], now: Instant) -> Source {
        let (ssrc, pt) = (*ssrc, packet.get(1).map_or(0, |kind| kind & 0x7f));
        if !self.seen.take(ssrc, now) {
            return Source::Stray;
        }
        let Some(&carried) = self.carried.iter().find(|it| it.pt == pt) else { return Source::Known };
        // By 0 browsers measure the way, without media.
        if ssrc == 0 {
            return Source::Known;
        }
        let Carried { mid, main, named, .. } = carried;
        let line_of = |main| move |line: &Line| line.mid == mid && line.main == main;
        let back = match self.lines.iter().position(line_of(main)) {
            Some(at) => {
                let line = &mut self.lines[at];
                if line.ssrc == ssrc {
                    line.strays = 0;
                    return Source::Known;
                }
                let back = line.former.contains(&ssrc);
                line.strays += u8::from(back);
                if back && line.strays < BACK {
                    return Source::Stray;
                }
                line.former.retain(|it| *it != ssrc);
                line.former.truncate(FORMER_MAX - 1);
                line.former.insert(0, std::mem::replace(&mut line.ssrc, ssrc));
                line.strays = 0;
                back
            }
            // The engine takes no repairs of what it has not seen.
            None if !main && !self.lines.iter().any(line_of(true)) => return Source::Known,
            None => {
                self.lines.push(Line { mid, main, ssrc, former: Vec::new(), strays: 0 });
                false
            }
        };
        // It takes no stream back that it has just left, but any other.
        let between = (back && main).then(rand::random::<u32>);
        match back || !named {
            true => Source::New(between.into_iter().chain([ssrc]).map(|ssrc| self.name(ssrc, mid, packet)).collect()),
            false => Source::Known,
        }
    }

    /// A packet like this one that says which section it is of, and nothing that decrypts.
    fn name(&self, ssrc: u32, mid: Mid, packet: &[u8]) -> Bytes {
        let mid = mid.as_bytes();
        let words = (1 + mid.len()).div_ceil(4);
        let mut name = vec![0x90];
        name.extend_from_slice(packet.get(1..8).unwrap_or(&[0; 7]));
        name.extend_from_slice(&ssrc.to_be_bytes());
        // RFC 8285 §4.2.
        name.extend_from_slice(&[0xbe, 0xde, 0, words as u8, self.mid_extension << 4 | (mid.len() as u8 - 1)]);
        name.extend_from_slice(mid);
        name.resize(16 + 4 * words + NOTHING, 0);
        name.into()
    }
}

/// Less than a packet has that is decrypted: that would fail, and the engine would warn.
const NOTHING: usize = 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Feeds packets of pictures (`A`, `B`, `C`, each a stream) and of their repairs (`a`, `b`); says of each what is done: `.` goes on,
    /// `-` is left out, a number is how many go before it.
    fn check(named: bool, packets: &str, want: &str) {
        let carried = [96, 97].map(|pt| Carried { pt, mid: "1".into(), main: pt == 96, named });
        let now = Instant::now();
        let mut sources = Sources::new(&carried, 3, now);
        let got: String = packets
            .bytes()
            .map(|which| {
                let pt = if which.is_ascii_uppercase() { 96 } else { 97 };
                match sources.take(u32::from(which).into(), &[0x80, pt, 0, 1, 0, 0, 0, 2], now) {
                    Source::Known => '.',
                    Source::Stray => '-',
                    Source::New(names) => char::from(b'0' + names.len() as u8),
                }
            })
            .collect();
        assert_eq!(got, want, "{packets}");
    }

    #[test]
    fn a_stream_without_a_name_is_told_by_its_payload_type() {
        check(false, "AAABB", "1..1.");
        check(false, "aAaa", ".11.");
        check(true, "AAABBaab", "........");
    }

    #[test]
    fn a_stream_comes_back_with_a_few_packets_in_a_row() {
        check(true, "AABBAAAA", "....--2.");
        check(true, "ABABABBBAAAB", "..-.-...--2-");
        check(false, "ABAAAA", "11--2.");
    }

    #[test]
    fn whoever_begins_stream_after_stream_is_held_to_one_a_second_and_those_that_flow_go_on() {
        let begin = Instant::now();
        let mut seen = Seen { ssrcs: Vec::new(), spare: SEEN_MAX as u64, since: begin };
        let mut taken = 0;
        for n in 0..100_000 {
            let now = begin + Duration::from_millis(n / 10);
            assert!(seen.take(7, now), "packet {n} of what flows");
            taken += u32::from(seen.take(1_000 + n as u32, now));
        }
        assert_eq!((taken, seen.ssrcs.len()), (SEEN_MAX as u32 - 1 + 9, SEEN_MAX));
        assert!(!seen.take(1_000, begin + Duration::from_millis(9_999)), "it is forgotten");
    }

    #[test]
    fn a_name_is_a_packet_of_the_section() {
        let carried = [Carried { pt: 96, mid: "video".into(), main: true, named: false }];
        let now = Instant::now();
        let mut sources = Sources::new(&carried, 5, now);
        let Source::New(names) = sources.take(7.into(), &[0x80, 0xe0, 1, 2, 3, 4, 5, 6], now) else {
            panic!("it is new")
        };
        let want =
            [0x90, 0xe0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 7, 0xbe, 0xde, 0, 2, 0x54, b'v', b'i', b'd', b'e', b'o', 0, 0];
        assert_eq!((&names[0][..24], names[0].len()), (&want[..], 24 + NOTHING));
    }
}
