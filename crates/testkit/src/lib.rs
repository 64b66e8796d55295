//! The server's surroundings: a customer, a publisher, a CDN and a callback receiver, each as a test needs it.
//!
//! Nothing here shares code with the server. A test whose peer runs our own engines agrees with itself about
//! a mistake, so signatures, RTMP and FLV are written a second time, and only as far as the tests go.
//!
//! Everything is blocking and owned: whoever holds a value keeps its process or thread alive, and dropping it
//! ends that one process by its id.

pub mod browser;
pub mod bucket;
pub mod firefox;
pub mod flash;
pub mod flv;
pub mod machine;
pub mod media;
pub mod names;
pub mod nginx;
pub mod players;
pub mod publisher;
pub mod receiver;
pub mod rtc;
pub mod rtmp;
pub mod server;
pub mod sink;
pub mod tls;
pub mod udp;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

pub use browser::Browser;
pub use bucket::Bucket;
pub use firefox::Firefox;
pub use machine::Machine;
pub use media::Media;
pub use names::Names;
pub use nginx::Nginx;
pub use publisher::Publisher;
pub use receiver::{Answer, Receiver};
pub use rtc::Flock;
pub use server::{Log, Recorded, Server, Setup};
pub use sink::{Manner, Sink};
pub use udp::{Forwarder, Way};

/// Polls `probe` until it gives something; panics with `what` after `limit`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(60));
    }
}

/// Watches for `span` that `probe` stays true: for promises that something does not happen.
#[track_caller]
pub fn stays(what: &str, span: Duration, mut probe: impl FnMut() -> bool) {
    let begin = Instant::now();
    while begin.elapsed() < span {
        assert!(probe(), "after {:?} no longer: {what}", begin.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
}

/// Seconds, because every test speaks of them.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Keeps the machine for the caller among the tests that measure time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A port that is free and stays so: below the range that the kernel hands to outgoing connections, given once, and of a block that
/// no other test program has while this one runs.
pub fn port() -> u16 {
    static BLOCK: Mutex<Range<u16>> = Mutex::new(0..0);
    let mut block = BLOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    loop {
        if let Some(port) = block.by_ref().find(|port| !is_taken(*port)) {
            return port;
        }
        *block = ports();
    }
}

/// Whether a socket has the port, by the kernel's tables. To bind to it in order to see would take it for longer than one looks: a child
/// that another thread begins at that moment has the socket as well, until its program runs.
fn is_taken(port: u16) -> bool {
    let has = |line: &str| {
        let (_, number) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(number, 16).ok()
    };
    ["tcp", "tcp6", "udp", "udp6"].into_iter().any(|name| {
        let table = fs::read_to_string(Path::new("/proc/thread-self/net").join(name));
        table.is_ok_and(|table| table.lines().any(|line| has(line) == Some(port)))
    })
}

/// The next block of ports for this process alone, between 11 000 and 31 000.
fn ports() -> Range<u16> {
    const PORTS: u16 = 200;
    const BLOCKS: u16 = 100;
    // Locked until the process has ended: ports of a block that is used up may be in use.
    static LOCKS: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let first = (std::process::id() % u32::from(BLOCKS)) as u16;
    for number in (first..BLOCKS).chain(0..first) {
        let path = std::env::temp_dir().join(format!("bywash-ports-{number}.lock"));
        // Another user's file can be locked as well.
        let Ok(lock) = File::create(&path).or_else(|_| File::open(&path)) else { continue };
        if lock.try_lock().is_ok() {
            LOCKS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(lock);
            let first = 11_000 + number * PORTS;
            return first..first + PORTS;
        }
    }
    panic!("all blocks of ports are taken");
}

/// A port where a connect is never answered: the queue of waiting connections is full, so the kernel drops each
/// further SYN.
pub struct Unanswered {
    _listener: socket2::Socket,
    _waiting: Vec<socket2::Socket>,
    /// The port.
    pub port: u16,
}

impl Unanswered {
    /// Fills the queue of a new port.
    pub fn start() -> Unanswered {
        let port = port();
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let at = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into();
        let listener = socket();
        listener.bind(&at).expect("our own port");
        listener.listen(0).expect("a socket of ours");
        let waiting = (0..4).map(|_| {
            let one = socket();
            one.set_nonblocking(true).expect("a socket of ours");
            let _ = one.connect(&at);
            one
        });
        Unanswered { _waiting: waiting.collect(), _listener: listener, port }
    }
}

/// A folder of one test, gone when the test has passed.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty folder.
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bywash-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a temporary folder");
        Scratch(path)
    }

    /// A path inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("kept for a look: {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A child process that ends with its owner.
pub struct Process(Child);

impl Process {
    /// Starts `command`.
    #[track_caller]
    pub fn start(command: &mut Command) -> Process {
        Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; run `make setup`")))
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal by name, as `TERM` or `STOP`.
    pub fn signal(&self, name: &str) {
        let kill = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.id())).status();
        assert!(kill.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Its exit code once it has ended; -1 for a signal.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.0.try_wait().expect("a child of ours").map(|status| status.code().unwrap_or(-1))
    }

    /// The underlying child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// How often the thread of that name, which there is one of, has waited for something to do.
    pub fn waits(&self, name: &str) -> u64 {
        let called = |thread: &PathBuf| fs::read_to_string(thread.join("comm")).is_ok_and(|it| it.trim() == name);
        let thread = self.threads().find(called).expect("such a thread");
        let status = fs::read_to_string(thread.join("status")).expect("it runs");
        let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a count");
        waits.trim().parse().expect("a number")
    }

    /// Processor time of all its threads, user and system. The scheduler's nanoseconds: ticks of 10 ms are too
    /// coarse for what one stream costs.
    pub fn cpu(&self) -> Duration {
        let nanos = self.threads().filter_map(|thread| {
            let stat = fs::read_to_string(thread.join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Where the kernel tells of its threads; nowhere once it has ended.
    fn threads(&self) -> impl Iterator<Item = PathBuf> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        threads.map(|it| it.path())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_port_that_a_socket_has_is_not_given() {
        let free = port();
        assert!(!is_taken(free));
        let (tcp, udp) =
            (TcpListener::bind((Ipv6Addr::LOCALHOST, free)), UdpSocket::bind((Ipv4Addr::LOCALHOST, port())));
        let (tcp, udp) = (tcp.expect("it is free"), udp.expect("it is free"));
        let udp_port = udp.local_addr().expect("it is bound").port();
        assert!(is_taken(free) && is_taken(udp_port));
        drop((tcp, udp));
        eventually("both are free", secs(5), || (!is_taken(free) && !is_taken(udp_port)).then_some(()));
    }

    #[test]
    fn a_port_is_free_though_children_are_begun_meanwhile() {
        let begin = Instant::now();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while begin.elapsed() < secs(1) {
                        drop(Command::new("true").status());
                    }
                });
            }
            while begin.elapsed() < secs(1) {
                drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port())).expect("it is free"));
                thread::sleep(Duration::from_millis(10));
            }
        });
    }
}
