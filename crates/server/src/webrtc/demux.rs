//! Which session a packet is for: by the STUN user name at first, by its source address from then on.
//!
//! Invariant: the table holds nothing that a stranger could add. A source is learned only from a STUN request that names a
//! session's own ICE user, and of each session only the last [`SOURCES_MAX`] are kept.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bywash_media::StreamKey;
use str0m::ice::StunMessage;
use tokio::sync::mpsc;

use super::peer::Command;

/// Source addresses that one session may have: a client tries several of its own at once.
const SOURCES_MAX: usize = 8;

/// Sessions whose clients have closed the connection are known for so long after, and so many of them.
const CLOSED: Duration = Duration::from_secs(30);
const CLOSED_MAX: usize = 256;

/// Packets that wait for a session, in reads of the socket; what comes beyond is dropped, as a network would.
pub const MAIL: usize = 256;

/// A session, in addresses that only its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u128);

impl Id {
    /// A new one that nobody can guess.
    pub fn random() -> Id {
        Id(rand::random())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Id, ()> {
        let digits = text.len() == 32 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(text, 16).ok().filter(|_| digits).map(Id).ok_or(())
    }
}

/// Datagrams of one source that came in together: each `stride` bytes long but the last, which may be shorter.
pub struct Packets {
    /// Who sent them.
    pub source: SocketAddr,
    /// The address of ours that they were sent to.
    pub destination: SocketAddr,
    /// When they came.
    pub at: Instant,
    /// The datagrams.
    pub data: Bytes,
    /// How long each is.
    pub stride: usize,
    /// Where answers go, if they came over TCP.
    pub tcp: Option<mpsc::Sender<Bytes>>,
}

/// What a session is reached by.
pub struct Entry {
    /// What it publishes or plays.
    pub key: StreamKey,
    /// Whether it publishes.
    pub publishes: bool,
    /// Takes its packets.
    pub mail: mpsc::Sender<Packets>,
    /// Takes its orders.
    pub orders: mpsc::Sender<Command>,
    /// When it was last heard.
    pub heard: Instant,
    users: Vec<String>,
    sources: VecDeque<SocketAddr>,
}

impl Entry {
    /// A session that nothing has been heard of.
    pub fn new(
        key: StreamKey,
        publishes: bool,
        mail: mpsc::Sender<Packets>,
        orders: mpsc::Sender<Command>,
        now: Instant,
    ) -> Entry {
        Entry { key, publishes, mail, orders, heard: now, users: Vec::new(), sources: VecDeque::new() }
    }
}

/// All sessions.
#[derive(Default)]
pub struct Table {
    sessions: HashMap<Id, Entry>,
    users: HashMap<String, Id>,
    sources: HashMap<SocketAddr, Id>,
    opened: Option<Instant>,
    /// Those that their clients have closed, who may still say so over HTTP; the newest first.
    closed: VecDeque<(Id, StreamKey, Instant)>,
}

impl Table {
    /// Adds a session, reached by the ICE user `user`.
    pub fn insert(&mut self, id: Id, entry: Entry, user: String) {
        self.opened = Some(entry.heard);
        self.sessions.insert(id, entry);
        self.add_user(id, user);
    }

    /// Lets a session be reached by one more ICE user; only the newest two count: that of a restart and the one before it.
    pub fn add_user(&mut self, id: Id, user: String) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        entry.users.push(user.clone());
        self.users.insert(user, id);
        if entry.users.len() > 2 {
            self.users.remove(&entry.users.remove(0));
        }
    }

    /// Forgets a session, and gives what was known of it.
    pub fn remove(&mut self, id: Id) -> Option<Entry> {
        let entry = self.sessions.remove(&id)?;
        for user in &entry.users {
            self.users.remove(user);
        }
        for source in &entry.sources {
            // Another session may have taken it over.
            if self.sources.get(source) == Some(&id) {
                self.sources.remove(source);
            }
        }
        Some(entry)
    }

    /// Notes that the client of a session has closed the connection.
    pub fn closed(&mut self, id: Id, now: Instant) {
        let Some(entry) = self.sessions.get(&id) else { return };
        self.closed.truncate(CLOSED_MAX - 1);
        self.closed.push_front((id, entry.key.clone(), now));
    }

    /// Whether its client has closed this session a short while ago, and has not asked before.
    pub fn was_closed(&mut self, id: Id, key: &StreamKey, now: Instant) -> bool {
        self.closed.retain(|(.., at)| now.saturating_duration_since(*at) < CLOSED);
        let place = self.closed.iter().position(|(closed, of, _)| (*closed, of) == (id, key));
        place.and_then(|place| self.closed.remove(place)).is_some()
    }

    /// One session.
    pub fn get(&self, id: Id) -> Option<&Entry> {
        self.sessions.get(&id)
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = (&Id, &Entry)> {
        self.sessions.iter()
    }

    /// When the newest was added.
    pub fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The session that a datagram from `source` is for.
    pub fn route(&mut self, source: SocketAddr, datagram: &[u8], now: Instant) -> Option<&Entry> {
        let id = match user(datagram).map(|user| self.users.get(&user).copied()) {
            Some(Some(id)) => {
                self.learn(id, source);
                id
            }
            Some(None) => return None,
            None => *self.sources.get(&source)?,
        };
        self.heard(id, now)
    }

    /// Likewise over TCP, where the connection stands for the source: its first datagram decides.
    pub fn open(&mut self, datagram: &[u8], now: Instant) -> Option<Id> {
        let id = *self.users.get(&user(datagram)?)?;
        self.heard(id, now).map(|_| id)
    }

    /// A session that has just been heard.
    pub fn heard(&mut self, id: Id, now: Instant) -> Option<&Entry> {
        let entry = self.sessions.get_mut(&id)?;
        entry.heard = now;
        Some(entry)
    }

    fn learn(&mut self, id: Id, source: SocketAddr) {
        if self.sources.insert(source, id) == Some(id) {
            return;
        }
        let entry = self.sessions.get_mut(&id).expect("a user's session is in the table");
        // Another session may have had it meanwhile.
        entry.sources.retain(|known| *known != source);
        entry.sources.push_back(source);
        if entry.sources.len() > SOURCES_MAX
            && let Some(oldest) = entry.sources.pop_front()
            && self.sources.get(&oldest) == Some(&id)
        {
            self.sources.remove(&oldest);
        }
    }
}

/// Whether a datagram is STUN: that begins with 0 to 3, and nothing else on this port does (RFC 7983 §7).
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| *first <= 3)
}

/// A whole STUN message; that it is whose it claims to be is not checked.
pub fn stun(datagram: &[u8]) -> Option<StunMessage<'_>> {
    const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
    if !is_stun(datagram) || *datagram.get(4..8)? != COOKIE {
        return None;
    }
    StunMessage::parse(datagram).ok()
}

/// The ICE user of ours that a STUN request is addressed to (RFC 8445 §7.2.2); `None` for whatever else.
pub fn user(datagram: &[u8]) -> Option<String> {
    let message = stun(datagram)?;
    let (ours, _) = message.is_binding_request().then(|| message.split_username()).flatten()?;
    Some(ours.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A binding request with user name, priority and an integrity that nobody here checks.
    fn stun(user: &str) -> Vec<u8> {
        let padded = user.len().next_multiple_of(4);
        let mut out = vec![0, 1];
        out.extend((padded as u16 + 4 + 8 + 24).to_be_bytes());
        out.extend([0x21, 0x12, 0xa4, 0x42]);
        out.extend([7; 12]);
        out.extend([0, 6]);
        out.extend((user.len() as u16).to_be_bytes());
        out.extend(user.as_bytes());
        out.resize(20 + 4 + padded, 0);
        out.extend([0, 0x24, 0, 4, 0, 0, 0, 1, 0, 8, 0, 20]);
        out.extend([0; 20]);
        out
    }

    /// A table with the sessions `a` and `b`, reached by users of their names.
    fn table() -> (Table, [Id; 2]) {
        let (mut table, ids) = (Table::default(), [Id::random(), Id::random()]);
        for (id, name) in ids.iter().zip(["aaaa", "bbbb"]) {
            let key = StreamKey::published(1, name).unwrap();
            let entry = Entry::new(key, true, mpsc::channel(1).0, mpsc::channel(1).0, Instant::now());
            table.insert(*id, entry, name.into());
        }
        (table, ids)
    }

    /// Routes packets from ports in turn; says whose each is.
    fn check(table: &mut Table, packets: &[(u16, &[u8])], want: &[Option<&str>]) {
        let got: Vec<_> = packets
            .iter()
            .map(|(port, packet)| {
                let source = SocketAddr::from(([127, 0, 0, 1], *port));
                table.route(source, packet, Instant::now()).map(|entry| entry.key.id().to_owned())
            })
            .collect();
        assert_eq!(got.iter().map(Option::as_deref).collect::<Vec<_>>(), want);
    }

    const RTP: &[u8] = &[0x80, 96, 0, 1];

    #[test]
    fn a_source_is_known_by_its_first_stun_request_and_no_sooner() {
        let (mut table, ids) = table();
        let (a, b, nobody) = (stun("aaaa:x"), stun("bbbb:x"), stun("cccc:x"));
        let packets =
            [(1, RTP), (1, &a), (1, RTP), (2, &b), (2, RTP), (1, RTP), (3, &nobody), (3, RTP), (1, &b), (1, RTP)];
        let (a, b) = (Some("aaaa"), Some("bbbb"));
        check(&mut table, &packets, &[None, a, a, b, b, a, None, None, b, b]);
        table.remove(ids[0]);
        check(&mut table, &[(1, RTP), (2, RTP)], &[b, b]);
        table.remove(ids[1]);
        check(&mut table, &[(1, RTP), (2, RTP)], &[None, None]);
        assert!(table.users.is_empty() && table.sources.is_empty());
    }

    #[test]
    fn a_session_has_few_sources_and_two_users() {
        let (mut table, ids) = table();
        for port in 1..1000 {
            check(&mut table, &[(port, &stun("aaaa:x"))], &[Some("aaaa")]);
        }
        assert_eq!(table.sources.len(), SOURCES_MAX);
        for n in 0..100 {
            table.add_user(ids[0], format!("u{n}"));
        }
        assert_eq!(table.users.len(), 3);
        check(
            &mut table,
            &[(1, &stun("aaaa:x")), (1, &stun("u98:x")), (1, &stun("u99:x"))],
            &[None, Some("aaaa"), Some("aaaa")],
        );
    }

    #[test]
    fn a_session_that_its_client_has_closed_is_known_as_such_once_for_a_while() {
        let (mut table, ids) = table();
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let keys = ["aaaa", "bbbb"].map(|name| StreamKey::published(1, name).unwrap());
        for (n, id) in ids.iter().enumerate() {
            assert!(!table.was_closed(*id, &keys[n], begin));
            table.closed(*id, begin);
            table.remove(*id);
        }
        assert!(!table.was_closed(ids[0], &keys[1], begin), "another stream's");
        assert!(table.was_closed(ids[0], &keys[0], begin + second));
        assert!(!table.was_closed(ids[0], &keys[0], begin + second), "it was said");
        assert!(!table.was_closed(ids[1], &keys[1], begin + CLOSED));
        for _ in 0..2 * CLOSED_MAX {
            let id = Id::random();
            let entry = Entry::new(keys[0].clone(), true, mpsc::channel(1).0, mpsc::channel(1).0, begin);
            table.insert(id, entry, id.to_string());
            table.closed(id, begin);
            table.remove(id);
            assert!(table.closed.len() <= CLOSED_MAX);
        }
        table.closed(ids[0], begin);
        assert_eq!(table.closed.len(), CLOSED_MAX, "one that is not there leaves nothing");
    }

    #[test]
    fn an_id_is_32_digits_and_nothing_else() {
        let id = Id::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0", &"0".repeat(33), &"g".repeat(32), &"A".repeat(32), &("+".to_owned() + &"0".repeat(31))] {
            assert_eq!(bad.parse::<Id>(), Err(()), "{bad}");
        }
    }
}
