//! A bad way for datagrams: loss, delay, jitter and reordering, both ways, in front of one port.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The share of datagrams that is lost.
    pub loss: f64,
    /// The delay in the mean.
    pub delay: Duration,
    /// How much more or less it may be; neighbours overtake each other.
    pub jitter: Duration,
}

/// How long datagrams wait before a way that is narrow.
const QUEUE: Duration = Duration::from_millis(300);

/// A forwarder to one port of this machine; each sender gets a socket of its own towards it, as behind a router.
pub struct Forwarder {
    address: SocketAddr,
    target: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    lost: AtomicU64,
    /// Bits a second that go back to the senders; 0 for any.
    rate: AtomicU32,
    rebind: AtomicBool,
    stop: AtomicBool,
}

impl Forwarder {
    /// Starts one in front of `target`. `seed` makes its dice.
    pub fn start(target: u16, way: Way, seed: u64) -> Forwarder {
        Forwarder::at((Ipv4Addr::LOCALHOST, crate::port()).into(), target, way, seed)
    }

    /// Starts one at the target's own port, on [`Forwarder::PUBLIC`]: for clients that go where the target says that it is.
    pub fn public(target: u16, way: Way, seed: u64) -> Forwarder {
        Forwarder::at((Forwarder::PUBLIC, target).into(), target, way, seed)
    }

    /// An address of this machine that nothing else listens on.
    pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

    fn at(address: SocketAddr, target: u16, way: Way, seed: u64) -> Forwarder {
        let forwarder = Forwarder { address, target, shared: Arc::default() };
        let front = UdpSocket::bind(address).expect("our own port");
        let its = forwarder.shared.clone();
        thread::spawn(move || run(&front, (Ipv4Addr::LOCALHOST, target).into(), way, seed, &its));
        forwarder
    }

    /// Where to send to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// JavaScript that sends a page by this, in place of the target's own port and TCP.
    pub fn detour(&self) -> String {
        format!(
            "const set = RTCPeerConnection.prototype.setRemoteDescription;
            RTCPeerConnection.prototype.setRemoteDescription = function ({{ type, sdp }}) {{
              sdp = sdp.replaceAll(' {} typ ', ' {} typ ').replace(/^a=candidate:.* tcp .*\\r\\n/gim, '');
              return set.call(this, {{ type, sdp }});
            }};",
            self.target,
            self.port()
        )
    }

    /// From now on every sender has another socket towards the target, as behind a router that has forgotten where they were. What the
    /// target sends to the old ones is lost.
    pub fn rebind(&self) {
        self.shared.rebind.store(true, Relaxed);
    }

    /// From now on so many bits a second go back to the senders, or any again. What is more waits for 300 ms, and the rest is lost.
    pub fn narrow(&self, rate: Option<u32>) {
        self.shared.rate.store(rate.unwrap_or(0), Relaxed);
    }

    /// Datagrams lost so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Relaxed)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

fn run(front: &UdpSocket, target: SocketAddr, way: Way, seed: u64, shared: &Shared) {
    let mut dice = seed | 1;
    let mut roll = move || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 11) as f64 / (1u64 << 53) as f64
    };
    front.set_nonblocking(true).expect("a socket of ours");
    let mut backs: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut forgotten = Vec::new();
    // What is on the way, by when it arrives: the sender that it belongs to, whether it goes to the target, and the bytes.
    let mut flying: BTreeMap<(Instant, u64), (SocketAddr, bool, Vec<u8>)> = BTreeMap::new();
    let mut buffer = [0; 2048];
    let mut number = 0;
    // When what went back will have left a narrow way.
    let mut busy = Instant::now();
    while !shared.stop.load(Relaxed) {
        if shared.rebind.swap(false, Relaxed) {
            forgotten.extend(backs.drain().map(|(_, back)| back));
        }
        let mut come = Vec::new();
        while let Ok((length, from)) = front.recv_from(&mut buffer) {
            come.push((from, true, buffer[..length].to_vec()));
        }
        for (from, back) in &backs {
            while let Ok(length) = back.recv(&mut buffer) {
                come.push((*from, false, buffer[..length].to_vec()));
            }
        }
        let now = Instant::now();
        for datagram in come {
            let rate = if datagram.1 { 0 } else { shared.rate.load(Relaxed) };
            busy = busy.max(now);
            if roll() < way.loss || rate > 0 && busy > now + QUEUE {
                shared.lost.fetch_add(1, Relaxed);
                continue;
            }
            number += 1;
            let delay = (way.delay + way.jitter.mul_f64(2.0 * roll())).saturating_sub(way.jitter);
            let mut leaves = now;
            if rate > 0 {
                busy += Duration::from_secs(1).mul_f64(8.0 * datagram.2.len() as f64 / f64::from(rate));
                leaves = busy;
            }
            flying.insert((leaves + delay, number), datagram);
        }
        while let Some(first) = flying.first_entry().filter(|it| it.key().0 <= now) {
            let (from, forth, bytes) = first.remove();
            if forth {
                let back = backs.entry(from).or_insert_with(|| {
                    let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
                    back.connect(target).expect("loopback");
                    back.set_nonblocking(true).expect("a socket of ours");
                    back
                });
                let _ = back.send(&bytes);
            } else {
                let _ = front.send_to(&bytes, from);
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}
