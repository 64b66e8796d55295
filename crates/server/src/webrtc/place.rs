//! Where a client is: a translator in front of it (NAT) may give it another port at any time.
//!
//! Then the client nominates (RFC 8445 §8.1.1) a pair that is worth as much as the one before, and of two such the engine keeps to the first
//! until that has been silent for 15 s. Here the client is followed where it has nominated another place by a check that the engine
//! answered, which tells that it was the client's, and sends more from there, while nothing comes from where it was. One check alone is
//! not enough: there are clients that nominate all pairs (RFC 5245 §8.1.1.2), and send by one.
//!
//! Invariant: nothing that a stranger can send moves a client.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use str0m::ice::{StunMessage, TransId};

use super::demux::{is_stun, stun};

/// The server's address and the client's.
pub type Way = (SocketAddr, SocketAddr);

/// For so long nothing has come from where a client is no more.
const AWAY: Duration = Duration::from_millis(500);

/// Where one client is.
#[derive(Default)]
pub struct Place {
    /// Where the engine sends.
    told: Option<Way>,
    /// Where that goes instead.
    moved: Option<Way>,
    /// When something last came from where it goes.
    heard: Option<Instant>,
    /// Where the client may be now, by a check.
    next: Option<Way>,
    /// A check that nominates and has not been answered yet: where it came from, its transaction, and when it came.
    asked: Option<(Way, TransId, Instant)>,
}

impl Place {
    /// Looks at a datagram of the client.
    pub fn comes(&mut self, way: Way, datagram: &[u8], at: Instant) {
        if self.moved.or(self.told) == Some(way) {
            self.heard = self.heard.max(Some(at));
            self.next = None;
        } else if is_stun(datagram) {
            let check = stun(datagram).filter(|it| it.is_binding_request() && it.use_candidate());
            self.asked = check.map(|check| (way, check.trans_id(), at)).or(self.asked);
        } else if self.next == Some(way) {
            self.follow(way, at);
        }
    }

    /// Looks at a datagram of the engine; tells where it goes.
    pub fn goes(&mut self, way: Way, datagram: &[u8]) -> Way {
        if is_stun(datagram) {
            self.answers(way, datagram);
            return way;
        }
        if self.told != Some(way) {
            *self = Place { told: Some(way), heard: self.heard, ..Place::default() };
        }
        self.moved.unwrap_or(way)
    }

    fn answers(&mut self, way: Way, datagram: &[u8]) {
        let answered = |(asked, transaction, _): &mut (Way, TransId, Instant)| {
            let answers = |it: StunMessage| it.is_successful_binding_response() && it.trans_id() == *transaction;
            *asked == way && stun(datagram).is_some_and(answers)
        };
        let Some((_, _, at)) = self.asked.take_if(answered) else { return };
        let gone = self.heard.is_none_or(|heard| at.saturating_duration_since(heard) >= AWAY);
        match self.next {
            _ if !gone || self.told.is_none() => {}
            Some(next) if next == way => self.follow(way, at),
            _ => self.next = Some(way),
        }
    }

    fn follow(&mut self, way: Way, at: Instant) {
        (self.moved, self.heard, self.next) = (Some(way), Some(at), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as it goes out, with an integrity that nobody here checks.
    fn bytes(message: StunMessage) -> Vec<u8> {
        let mut bytes = vec![0; 200];
        let length = message.to_bytes(Some(b"password"), &mut bytes, |_, _| [0; 20]).expect("it has room");
        bytes.truncate(length);
        bytes
    }

    fn request(transaction: TransId, nominates: bool) -> Vec<u8> {
        bytes(StunMessage::binding_request("a:b", transaction, true, 1, 1, nominates))
    }

    /// What happens at which millisecond, `A` and `B` being places of the client: `>` media of the engine, which goes to A by itself, `+`
    /// media of the client, `?` a check and `!` one that nominates, both answered, `-` one that nominates and is refused. Tells where the
    /// media go.
    fn check(script: &str, want: &str) {
        let way = |place: u8| {
            let client = SocketAddr::from(([10, 0, 0, 1], u16::from(place)));
            (SocketAddr::from(([10, 0, 0, 2], 443)), client)
        };
        let (begin, mut place, mut went) = (Instant::now(), Place::default(), String::new());
        for step in script.split(' ') {
            let (at, what) = step.split_at(step.find(|c: char| !c.is_ascii_digit()).expect("what happens"));
            let at = begin + Duration::from_millis(at.parse().expect("milliseconds"));
            let (kind, of) = (what.as_bytes()[0], way(*what.as_bytes().get(1).unwrap_or(&b'A')));
            match kind {
                b'>' => went.push(char::from(place.goes(of, &[0x80; 40]).1.port() as u8)),
                b'+' => place.comes(of, &[0x80; 40], at),
                _ => {
                    let transaction = TransId::new();
                    place.comes(of, &request(transaction, kind != b'?'), at);
                    if kind != b'-' {
                        let answer = bytes(StunMessage::binding_reply(transaction, of.1));
                        assert_eq!(place.goes(of, &answer), of, "an answer goes where the check came from");
                    }
                }
            }
        }
        assert_eq!(went, want, "{script}");
    }

    #[test]
    fn a_client_is_followed_where_it_nominates_another_place_and_is_silent_where_it_was() {
        check("0> 0!A 10+A 600!B 600> 700!B 700>", "AAB");
        check("0> 0!A 10+A 590+B 600!B 600> 610+B 610>", "AAB");
        // And once more, and back.
        check("0> 0!A 600!B 700!B 700> 1300!C 1400!C 1400> 2000!A 2100!A 2100>", "ABCA");
        // The engine sends elsewhere by itself.
        check("0> 0!A 600!B 700!B 700> 800>C 900>C", "ABCC");
    }

    #[test]
    fn a_client_that_is_still_where_it_was_is_not_followed() {
        check("0> 0!A 600!B 650+A 700!B 1300!B 1310!A 1900!B 1950+A 1950>", "AA");
        // It checks another place and does not nominate it.
        check("0> 0!A 600?B 700?B 1300?B 1300>", "AA");
        // It has not been silent for long.
        check("0> 0!A 300!B 400!B 410+B 410>", "AA");
        // It nominates one and another.
        check("0> 0!A 600!B 700!C 800!B 810+C 810>", "AA");
    }

    #[test]
    fn a_stranger_moves_nobody() {
        check("0> 0!A 600-B 700-B 800-B 810+B 810>", "AA");
        // An answer to another.
        check("0> 0!A 600-B 600?B 700-B 700?B 800-B 800?B 800>", "AA");
        // What is no STUN, or cut short.
        let mut place = Place::default();
        let way = (SocketAddr::from(([10, 0, 0, 2], 443)), SocketAddr::from(([10, 0, 0, 1], 1)));
        let check = request(TransId::new(), true);
        for length in 0..check.len() {
            place.comes(way, &check[..length], Instant::now());
            place.comes(way, &[0, 1, 0, 0, 9, 9][..length.min(6)], Instant::now());
        }
        assert!(place.asked.is_none());
        place.comes(way, &bytes(StunMessage::binding_reply(TransId::new(), way.1)), Instant::now());
        assert!(place.asked.is_none(), "an answer nominates nothing");
        place.comes(way, &check, Instant::now());
        assert!(place.asked.is_some());
    }
}
