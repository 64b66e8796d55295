//! The sockets that all sessions share, and what a session needs of them.
//!
//! One task reads the UDP socket and hands what it reads to the sessions, which live on their lanes; each session sends for itself.
//! The task lives on a lane too, so that a packet for a session there crosses no thread. While packets come they are gathered in the
//! kernel and read at beats ([`Gather`]): the kernel has noted when each came. A TCP connection (RFC 6544, the passive side) has a task
//! of its own.
//!
//! Invariant: whoever sends, a full mailbox or socket drops the packet and waits for nobody.

use std::collections::HashSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use bywash_media::StreamKey;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use str0m::Candidate;
use str0m::config::DtlsCert;
use str0m::net::TcpType;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::demux::{Entry, Id, Packets, Table};
use super::gather::{Gather, QUIET, ROOM_WISHED};
use super::peer::Command;
use super::{certificate, framing};
use crate::address::canonical;
use crate::config;
use crate::lane::Lane;
use crate::sys::{self, Metronome};

/// Reads of the socket in one system call, each of up to 64 KiB of datagrams of one source (UDP_GRO). More than a picture has.
const BATCH: usize = 32;
const READ: usize = 64 << 10;

/// What the kernel may keep for us, if its own limit allows: a quarter of a second of 100 Mbit/s.
const SOCKET_BUFFER: usize = 4 << 20;

/// Where there are no beats to read at, it is read so often.
const WITHOUT_BEATS: Duration = Duration::from_millis(20);

/// How long a packet can have waited for us: what the kernel's notes say beyond that, the host's clock was set in between.
const WAITED_MAX: Duration = Duration::from_millis(200);

/// Interface addresses that are told to clients, at the most, and how long they are taken to be as they were.
const ADDRESSES_MAX: usize = 16;
const ADDRESSES_AGE: Duration = Duration::from_secs(1);

/// How long a TCP connection may take to name its session, and a write to it.
const TCP_PATIENCE: Duration = Duration::from_secs(10);

/// Datagrams that wait for a TCP connection to take them, a large keyframe, and that it is given at once.
const TCP_QUEUE: usize = 512;
const TCP_BATCH: usize = 16;

/// How long a publisher must be silent before another may take its place.
const SILENCE: Duration = Duration::from_secs(4);

/// How long a session may take to end once it is told to.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The sockets and the table of sessions.
pub struct Port {
    udp: std::net::UdpSocket,
    state: UdpSocketState,
    /// Bytes that the kernel keeps of what is not read yet, as it counts.
    room: usize,
    tcp: TcpListener,
    local: SocketAddr,
    /// `webrtc.public_addresses`.
    public: Vec<IpAddr>,
    addresses: ArcSwap<Addresses>,
    certificate: DtlsCert,
    max_sessions: usize,
    jitter_buffer: Duration,
    counters: Counters,
    table: Mutex<Table>,
    tasks: Mutex<JoinSet<()>>,
}

/// Where this host is reached.
struct Addresses {
    /// What candidates are made of.
    told: Vec<SocketAddr>,
    /// Of its interfaces, to send from where the peer sent to.
    own: HashSet<IpAddr>,
    read: Instant,
}

/// What one read of the socket fills.
struct Inbox {
    memory: Vec<u8>,
    metas: [RecvMeta; BATCH],
    /// Packets that the kernel had no room for, by its own count.
    overflowed: u32,
}

/// What Prometheus is told of all sessions.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Sessions that publish, and that play, connected or not yet.
    pub publishers: Gauge,
    /// See [`Counters::publishers`].
    pub players: Gauge,
    /// Bytes that came for a session.
    pub bytes: Counter,
    /// Reads of the socket that were thrown away as their session was too slow.
    pub dropped: Counter,
    /// Packets that the kernel had no room for until they could be read.
    pub overflowed: Counter,
    /// Requests to send packets again: ours to publishers, and those of players.
    pub nacks: Counter,
    /// Places where something was lost of what a publisher sent, and did not come again.
    pub gaps: Counter,
    /// Pictures that players were not sent, as their lines are too narrow.
    pub left_out: Counter,
}

/// Waits for the end of a session that was told to end; false if it does not come soon.
async fn gone(orders: &mpsc::Sender<Command>) -> bool {
    tokio::time::timeout(END_PATIENCE, orders.closed()).await.is_ok()
}

/// `webrtc.max_sessions` is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} WebRTC sessions are open: no more are taken")]
pub struct Full(pub usize);

impl Addresses {
    fn read(local: SocketAddr, public: &[IpAddr]) -> io::Result<Addresses> {
        let mut own = Vec::new();
        if local.ip().is_unspecified() {
            own = sys::interface_addresses()?;
            own.retain(|ip| local.is_ipv6() || ip.is_ipv4());
            // ffmpeg tries none but the first.
            own.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
            own.truncate(ADDRESSES_MAX);
        }
        let bound = Some(local.ip()).filter(|ip| !ip.is_unspecified());
        let mut told: Vec<SocketAddr> = Vec::new();
        for ip in public.iter().chain(&bound).chain(&own) {
            let address = SocketAddr::new(*ip, local.port());
            if !told.contains(&address) {
                told.push(address);
            }
        }
        Ok(Addresses { told, own: own.into_iter().collect(), read: Instant::now() })
    }
}

impl Counters {
    fn sessions(&self, publishes: bool) -> &Gauge {
        if publishes { &self.publishers } else { &self.players }
    }
}

impl Port {
    /// Binds both sockets to one port number, and finds or makes the certificate in `data_dir`.
    pub async fn bind(config: &config::Webrtc, data_dir: &Path) -> anyhow::Result<Arc<Port>> {
        let listen = config.listen;
        let hint = || format!("cannot listen on {listen} (set webrtc.listen to another address, or stop who has it)");
        let udp = std::net::UdpSocket::bind(listen).with_context(hint)?;
        udp.set_nonblocking(true)?;
        let local = udp.local_addr()?;
        let tcp = TcpListener::bind(local).await.with_context(hint)?;
        let state = UdpSocketState::new(UdpSockRef::from(&udp))?;
        let _ = state.set_send_buffer_size(UdpSockRef::from(&udp), SOCKET_BUFFER);
        let room = sys::set_receive_buffer(udp.as_fd(), SOCKET_BUFFER)?;
        if room < ROOM_WISHED {
            // The kernel takes twice what is asked for.
            let wished = ROOM_WISHED / 2;
            warn!(
                "the kernel keeps few webrtc packets, and may lose those of a large picture: set net.core.rmem_max to {wished} or more"
            );
        }

        let addresses = Addresses::read(local, &config.public_addresses).context("list this host's addresses")?;
        Ok(Arc::new(Port {
            udp,
            state,
            room,
            tcp,
            local,
            public: config.public_addresses.clone(),
            addresses: ArcSwap::from_pointee(addresses),
            certificate: certificate::load(data_dir)?,
            max_sessions: config.max_sessions,
            jitter_buffer: config.jitter_buffer,
            counters: Counters::default(),
            table: Mutex::default(),
            tasks: Mutex::default(),
        }))
    }

    /// Where both sockets really listen.
    pub fn address(&self) -> SocketAddr {
        self.local
    }

    /// The counters, for all sessions together.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Hands packets to the sessions until `stop`; then ends the sessions that are left.
    pub async fn serve(self: Arc<Port>, stop: CancellationToken) {
        // Tasks of their own: a packet has nothing to do with the others.
        let mut sockets = JoinSet::new();
        sockets.spawn({
            let port = self.clone();
            async move { port.read_udp().await }
        });
        sockets.spawn({
            let (port, stop) = (self.clone(), stop.clone());
            async move { port.accept_tcp(&stop).await }
        });
        tokio::select! {
            () = stop.cancelled() => {}
            // They end before only if they panic. Who looks after this task is to see it.
            Some(ended) = sockets.join_next() => ended.expect("reading the socket does not panic"),
        }
        drop(sockets);
        let mut tasks = std::mem::take(&mut *self.tasks.lock().expect("no holder panics"));
        tasks.shutdown().await;
    }

    /// Runs a session on `lane`, for as long as the port is served.
    pub fn spawn(&self, lane: &Lane, session: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("no holder panics");
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(session, lane.handle());
    }

    /// Asks the session that publishes `key`, if nothing has come from it for [`SILENCE`], to make room; true once it has.
    pub async fn replace_silent(&self, key: &StreamKey) -> bool {
        let silent = {
            let table = self.table();
            let silent = |entry: &Entry| entry.key == *key && entry.publishes && entry.heard.elapsed() >= SILENCE;
            table.iter().find(|(_, entry)| silent(entry)).map(|(_, entry)| entry.orders.clone())
        };
        let Some(orders) = silent else { return false };
        let _ = orders.send(Command::End(false)).await;
        gone(&orders).await
    }

    /// Whether there is such a session. `key` is what its address says.
    pub fn knows(&self, id: Id, key: &StreamKey) -> bool {
        self.table().get(id).is_some_and(|entry| entry.key == *key)
    }

    /// Gives a session an order; false if there is no such session. `key` is what its address says. One that is to end has ended then:
    /// whoever asked for that may publish anew at once. Who has closed the connection before that may still say so.
    pub async fn order(&self, id: Id, key: &StreamKey, command: Command) -> bool {
        let orders = self.table().get(id).filter(|entry| entry.key == *key).map(|entry| entry.orders.clone());
        let ends = matches!(command, Command::End(_));
        let taken = match &orders {
            Some(orders) => orders.send(command).await.is_ok(),
            None => false,
        };
        if let Some(orders) = orders.filter(|_| taken && ends) {
            gone(&orders).await;
        }
        taken || ends && self.table().was_closed(id, key, Instant::now())
    }

    /// Notes that the client of a session has closed the connection.
    pub(super) fn closed(&self, id: Id) {
        self.table().closed(id, Instant::now());
    }

    pub(super) fn open(
        &self,
        key: StreamKey,
        publishes: bool,
        mail: mpsc::Sender<Packets>,
        orders: mpsc::Sender<Command>,
        user: String,
    ) -> Result<Id, Full> {
        let mut table = self.table();
        if table.len() >= self.max_sessions {
            return Err(Full(self.max_sessions));
        }
        let id = Id::random();
        table.insert(id, Entry::new(key, publishes, mail, orders, Instant::now()), user);
        self.counters.sessions(publishes).inc();
        Ok(id)
    }

    pub(super) fn add_user(&self, id: Id, user: String) {
        self.table().add_user(id, user);
    }

    pub(super) fn close(&self, id: Id) {
        if let Some(entry) = self.table().remove(id) {
            self.counters.sessions(entry.publishes).dec();
        }
    }

    pub(super) fn certificate(&self) -> DtlsCert {
        self.certificate.clone()
    }

    pub(super) fn jitter_buffer(&self) -> Duration {
        self.jitter_buffer
    }

    /// Whether someone who calls from `ip` is told of an address that is not only this machine's.
    pub fn reaches(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.load().told.iter().any(|it| !it.ip().is_loopback())
    }

    /// Where a session that begins now can be reached.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        self.look_at_addresses();
        let tcp = |address| Candidate::builder().tcp().host(address).tcptype(TcpType::Passive).build();
        let told = &self.addresses.load().told;
        told.iter().flat_map(|&it| [Candidate::host(it, "udp").ok(), tcp(it).ok()]).flatten().collect()
    }

    /// Follows this host to its new addresses: leases end, and failover moves them.
    fn look_at_addresses(&self) {
        if !self.local.ip().is_unspecified() || self.addresses.load().read.elapsed() < ADDRESSES_AGE {
            return;
        }
        match Addresses::read(self.local, &self.public) {
            Ok(addresses) => {
                if addresses.told != self.addresses.load().told {
                    info!(addresses = ?addresses.told, "webrtc is reached at other addresses");
                }
                self.addresses.store(Arc::new(addresses));
            }
            Err(error) => warn!(%error, "cannot list this host's addresses"),
        }
    }

    /// Sends datagrams of `stride` bytes each, the last maybe shorter.
    pub(super) fn send(&self, from: SocketAddr, to: SocketAddr, contents: &[u8], stride: usize) {
        let transmit = quinn_udp::Transmit {
            destination: self.reachable(to),
            ecn: None,
            contents,
            segment_size: Some(stride),
            src_ip: Some(from.ip()).filter(|ip| self.addresses.load().own.contains(ip)),
        };
        if let Err(error) = self.state.try_send(UdpSockRef::from(&self.udp), &transmit)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            debug!(%to, %error, "not sent");
        }
    }

    /// As the socket writes addresses: IPv4 on a socket of both kinds is mapped.
    fn reachable(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(to) if self.local.is_ipv6() => {
                SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0).into()
            }
            to => to,
        }
    }

    /// The candidate that a packet sent to `ip` was meant for: a translator in front of us changes public addresses to ours.
    fn candidate(&self, ip: Option<IpAddr>, source: &SocketAddr) -> SocketAddr {
        let ip = ip.unwrap_or(self.local.ip()).to_canonical();
        let told = &self.addresses.load().told;
        let known = told.iter().find(|it| it.ip() == ip);
        let alike = || told.iter().find(|it| it.is_ipv4() == source.is_ipv4());
        known.or_else(alike).copied().unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.local.port()))
    }

    async fn read_udp(&self) {
        let mut inbox = Inbox { memory: vec![0; BATCH * READ], metas: [RecvMeta::default(); BATCH], overflowed: 0 };
        loop {
            if let Err(error) = self.gather(&mut inbox).await {
                // Out of file descriptors: publishers are served none the worse.
                warn!(%error, "webrtc packets are read late");
                self.drain(&mut inbox, None).await;
                tokio::time::sleep(WITHOUT_BEATS).await;
            }
        }
    }

    /// Waits for a packet, and reads until none come for a while. A socket that is registered for its events wakes the thread for
    /// each packet; so it is only while nothing comes, or there can be no beats.
    async fn gather(&self, inbox: &mut Inbox) -> io::Result<()> {
        let register = || UdpSocket::from_std(self.udp.try_clone()?);
        let socket = register()?;
        socket.readable().await?;
        let mut registered = Some(socket);
        let mut gather = Gather::new(self.room, Instant::now());
        let mut beats = None;
        loop {
            let datagrams = self.drain(inbox, registered.as_ref()).await;
            let opened = self.table().opened();
            if !gather.goes_on(datagrams, self.has_overflowed(inbox), opened, Instant::now()) {
                return Ok(());
            }
            match gather.beat() {
                Some(beat) => {
                    registered = None;
                    let metronome = match &mut beats {
                        Some(metronome) => metronome,
                        None => beats.insert(Metronome::new(beat)?),
                    };
                    metronome.set(beat)?;
                    metronome.beat().await?;
                }
                None => {
                    let socket = match &registered {
                        Some(socket) => socket,
                        None => registered.insert(register()?),
                    };
                    if let Ok(ready) = tokio::time::timeout(QUIET, socket.readable()).await {
                        ready?;
                    }
                }
            }
        }
    }

    /// Reads what there is; says how many datagrams that were. Sessions take theirs in between, lest their mailboxes overflow. Of a
    /// registered socket all is read: only then does it tell of the next.
    async fn drain(&self, inbox: &mut Inbox, registered: Option<&UdpSocket>) -> usize {
        let mut datagrams = 0;
        loop {
            let read = match registered {
                Some(socket) => socket.try_io(Interest::READABLE, || self.read(inbox)),
                None => self.read(inbox),
            };
            let Ok(reads) = read else { return datagrams };
            datagrams += inbox.metas[..reads].iter().map(|meta| meta.len.div_ceil(meta.stride.max(1))).sum::<usize>();
            if reads == BATCH {
                tokio::task::yield_now().await;
            } else if registered.is_none() {
                return datagrams;
            }
        }
    }

    /// Whether the kernel has had no room for packets since it was last asked.
    fn has_overflowed(&self, inbox: &mut Inbox) -> bool {
        let Ok(overflowed) = sys::overflowed(self.udp.as_fd()) else { return false };
        let more = overflowed.wrapping_sub(std::mem::replace(&mut inbox.overflowed, overflowed));
        self.counters.overflowed.inc_by(more.into());
        more > 0
    }

    /// Reads once, and hands to the sessions what came; says how many reads the kernel made of it.
    fn read(&self, inbox: &mut Inbox) -> io::Result<usize> {
        let Inbox { memory, metas, .. } = inbox;
        let mut chunks = memory.chunks_mut(READ);
        let mut buffers: [_; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().expect("there is one for each")));
        let count = self.state.recv(UdpSockRef::from(&self.udp), &mut buffers, metas).inspect_err(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                debug!(%error, "cannot read udp");
            }
        })?;
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
        let mut table = self.table();
        for (meta, data) in metas.iter().zip(memory.chunks(READ)).take(count) {
            let data = &data[..meta.len];
            let source = canonical(meta.addr);
            let stride = meta.stride.clamp(1, READ);
            let waited = meta.timestamp.map_or(Duration::ZERO, |at| wall.saturating_sub(at)).min(WAITED_MAX);
            let at = now.checked_sub(waited).unwrap_or(now);
            let Some(entry) = data.get(..stride.min(data.len())).and_then(|first| table.route(source, first, at))
            else {
                continue;
            };
            let destination = self.candidate(meta.dst_ip, &source);
            let data = Bytes::copy_from_slice(data);
            self.counters.bytes.inc_by(data.len() as u64);
            if entry.mail.try_send(Packets { source, destination, at, data, stride, tcp: None }).is_err() {
                self.counters.dropped.inc();
            }
        }
        Ok(count)
    }

    async fn accept_tcp(self: &Arc<Port>, stop: &CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok(_) if connections.len() >= 2 * self.max_sessions => {}
                Ok((tcp, peer)) => {
                    let local = tcp.local_addr().ok().map(|it| it.ip());
                    let source = canonical(peer);
                    let destination = self.candidate(local, &source);
                    let port = self.clone();
                    connections.spawn(async move {
                        if let Err(error) = port.carry(tcp, source, destination).await {
                            debug!(%source, %error, "ice-tcp connection ended");
                        }
                    });
                }
                // The runtime that has the socket may end before this one.
                Err(_) if stop.is_cancelled() => return,
                Err(error) => {
                    warn!(%error, "cannot accept an ice-tcp connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Carries one TCP connection: its first datagram names the session that it is for.
    async fn carry(&self, mut tcp: TcpStream, source: SocketAddr, destination: SocketAddr) -> anyhow::Result<()> {
        tcp.set_nodelay(true)?;
        let mut input = BytesMut::new();
        let first = tokio::time::timeout(TCP_PATIENCE, async {
            loop {
                if let Some(first) = framing::take(&mut input)? {
                    return anyhow::Ok(first);
                }
                anyhow::ensure!(tcp.read_buf(&mut input).await? > 0, "closed before it said what it wants");
            }
        });
        let first = first.await.context("no datagram in time")??;
        let opened = {
            let mut table = self.table();
            let id = table.open(&first, Instant::now());
            id.and_then(|id| Some((id, table.get(id)?.mail.clone())))
        };
        let (id, mail) = opened.context("it names no session")?;
        let (out, mut outgoing) = mpsc::channel::<Bytes>(TCP_QUEUE);
        let deliver = |data: Bytes, out: mpsc::Sender<Bytes>| {
            let at = Instant::now();
            self.table().heard(id, at);
            let stride = data.len();
            self.counters.bytes.inc_by(stride as u64);
            let _ = mail.try_send(Packets { source, destination, at, data, stride, tcp: Some(out) });
        };
        // The session keeps the connection from here on, or lets go of it.
        let kept = out.downgrade();
        deliver(first, out);
        let mut batch = Vec::new();
        loop {
            while let Some(datagram) = framing::take(&mut input)? {
                deliver(datagram, kept.upgrade().context("its session has newer ones")?);
            }
            tokio::select! {
                read = tcp.read_buf(&mut input) => anyhow::ensure!(read? > 0, "closed by the client"),
                count = outgoing.recv_many(&mut batch, TCP_BATCH) => {
                    anyhow::ensure!(count > 0, "its session has newer ones, or has ended");
                    let mut framed = Vec::new();
                    for datagram in batch.drain(..) {
                        framed.extend(framing::head(datagram.len()));
                        framed.extend_from_slice(&datagram);
                    }
                    tokio::time::timeout(TCP_PATIENCE, tcp.write_all(&framed)).await.context("it takes nothing")??;
                }
                () = mail.closed() => return Ok(()),
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_hears_of_the_addresses_that_the_host_has_by_then() {
        let folder = std::env::temp_dir().join(format!("bywash-port-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&folder).unwrap();
        let public_addresses = vec!["192.0.2.1".parse().unwrap()];
        let listen = "0.0.0.0:0".parse().unwrap();
        let config = config::Webrtc { listen, public_addresses, ..config::Config::default().webrtc };
        let port = Port::bind(&config, &folder).await.unwrap();
        let told = |port: &Port| port.candidates().iter().map(|it| it.addr()).collect::<Vec<_>>();
        let present = told(&port);
        assert!(present.len() > 2 && present.iter().all(|it| it.port() == port.address().port()), "{present:?}");

        let former = SocketAddr::new("198.51.100.7".parse().unwrap(), port.address().port());
        for (age, want) in [(Duration::ZERO, vec![former; 2]), (ADDRESSES_AGE, present)] {
            let read = Instant::now() - age;
            port.addresses.store(Arc::new(Addresses { told: vec![former], own: HashSet::from([former.ip()]), read }));
            assert_eq!(told(&port), want);
        }
        assert!(!port.addresses.load().own.contains(&former.ip()), "nothing is sent from there");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
