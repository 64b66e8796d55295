//! The few calls of the kernel and of OpenSSL that no safe crate of ours offers: socket options, counters, CPU time, DTLS timers.
//!
//! The only module with unsafe code. Each function passes the kernel a buffer of the size it names, and nothing outlives the call but,
//! in OpenSSL, the address of a function.

#![allow(unsafe_code)]

use std::ffi::{CString, c_uint};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use foreign_types::ForeignTypeRef;
use openssl::ssl::SslRef;
use openssl_sys::SSL;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets OpenSSL send a flight of DTLS again that was not answered within 250 ms, and then each time after twice as long, 2 s at the most
/// (DTLS_set_timer_cb(3)). By itself it begins with a second (RFC 6347 §4.2.4.1).
pub fn hurry_dtls(ssl: &mut SslRef) {
    unsafe extern "C" {
        fn DTLS_set_timer_cb(ssl: *mut SSL, after: Option<extern "C" fn(*mut SSL, c_uint) -> c_uint>);
    }
    extern "C" fn after(_: *mut SSL, last: c_uint) -> c_uint {
        match last {
            0 => 250_000,
            last => last.saturating_mul(2).min(2_000_000),
        }
    }
    // SAFETY: the pointer is that of a live SSL, which keeps the function's address; the function touches nothing.
    unsafe { DTLS_set_timer_cb(ssl.as_ptr(), Some(after)) }
}

/// Asks the kernel to wake a reader only once `bytes` have come in (SO_RCVLOWAT, socket(7)). End of file and errors wake it as ever.
pub fn set_receive_low_water(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    set_option(socket, libc::SO_RCVLOWAT, bytes as libc::c_int)
}

/// Lets the kernel keep this many bytes of what is not read yet: beyond its own limit where we may (SO_RCVBUFFORCE, socket(7)), else
/// up to that. Gives how many they are; the kernel takes twice what is asked for.
pub fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let bytes = bytes as libc::c_int;
    let _ = set_option(socket, libc::SO_RCVBUFFORCE, bytes).or_else(|_| set_option(socket, libc::SO_RCVBUF, bytes));
    SockRef::from(&socket).recv_buffer_size()
}

fn set_option(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the options of a socket that this module sets take one c_int, and the pointer and length are those of `value`.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Packets that came to this socket since it was made and found no room (SO_MEMINFO, Linux 4.12). The count begins anew after 2^32.
pub fn overflowed(socket: BorrowedFd<'_>) -> io::Result<u32> {
    /// Where the kernel's list has them (SK_MEMINFO_DROPS, linux/sock_diag.h): the ninth of its numbers.
    const OFFSET: usize = 32;
    option_at(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, OFFSET).map(u32::from_ne_bytes)
}

/// Bytes that the peer's kernel has acknowledged on this TCP connection (tcpi_bytes_acked, Linux 4.1).
pub fn tcp_bytes_acked(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// Where the kernel's `struct tcp_info` keeps the 64-bit count (linux/tcp.h); libc's own struct ends before it.
    const OFFSET: usize = 120;
    option_at(socket, libc::IPPROTO_TCP, libc::TCP_INFO, OFFSET).map(u64::from_ne_bytes)
}

/// The `N` bytes at `offset` of what the kernel tells for an option; an error if it tells less.
fn option_at<const N: usize>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    offset: usize,
) -> io::Result<[u8; N]> {
    let mut told = [0u8; 256];
    let mut len = told.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `told` and sets `len` to what it wrote.
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, told.as_mut_ptr().cast(), &raw mut len) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let told = told.get(..len as usize).and_then(|told| told.get(offset..)?.first_chunk());
    told.copied().ok_or(io::ErrorKind::Unsupported.into())
}

/// Bytes in this socket's send queue: not yet sent, or sent and not acknowledged (SIOCOUTQ, tcp(7)).
pub fn tcp_bytes_waiting(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: the request fills one c_int.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
    if rc == 0 { Ok(waiting.max(0) as u64) } else { Err(io::Error::last_os_error()) }
}

/// The addresses of this host's interfaces that are up (getifaddrs(3)); link-local IPv6 ones, which mean nothing to a peer
/// elsewhere, are left out.
pub fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the call sets `list`, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the list is as the kernel filled it; an address is read as the family that it says it has.
    while let Some(interface) = unsafe { next.as_ref() } {
        next = interface.ifa_next;
        if interface.ifa_flags & libc::IFF_UP as libc::c_uint == 0 {
            continue;
        }
        let ip: Option<IpAddr> = unsafe {
            match interface.ifa_addr.as_ref().map(|it| libc::c_int::from(it.sa_family)) {
                Some(libc::AF_INET) => {
                    let address = &*interface.ifa_addr.cast::<libc::sockaddr_in>();
                    Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
                }
                Some(libc::AF_INET6) => {
                    let address = &*interface.ifa_addr.cast::<libc::sockaddr_in6>();
                    Some(Ipv6Addr::from(address.sin6_addr.s6_addr))
                        .filter(|it| !it.is_unicast_link_local())
                        .map(Into::into)
                }
                _ => None,
            }
        };
        found.extend(ip);
    }
    // SAFETY: nothing of the list is kept.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// Beats every so often, by the kernel's clock (timerfd_create(2)).
pub struct Metronome {
    fd: AsyncFd<OwnedFd>,
    period: Duration,
}

impl Metronome {
    /// Beats at the whole multiples of `period` since the kernel's clock began: those of several metronomes that fall together
    /// wake a thread once.
    pub fn new(period: Duration) -> io::Result<Metronome> {
        // SAFETY: the call takes no pointer; a descriptor that it returns is ours alone.
        let fd = unsafe {
            let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: the descriptor moves into the AsyncFd, which closes it only after it is no longer registered.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        let mut metronome = Metronome { fd, period: Duration::ZERO };
        metronome.set(period)?;
        Ok(metronome)
    }

    /// Beats at the multiples of another period from now on.
    pub fn set(&mut self, period: Duration) -> io::Result<()> {
        if period == self.period {
            return Ok(());
        }
        let span = |nanos: u128| libc::timespec {
            tv_sec: (nanos / 1_000_000_000) as libc::time_t,
            tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
        };
        let nanos = period.as_nanos().max(1);
        let first = (clock(libc::CLOCK_MONOTONIC).as_nanos() / nanos + 1) * nanos;
        let spec = libc::itimerspec { it_interval: span(nanos), it_value: span(first) };
        // SAFETY: `spec` outlives the call, and no old value is asked for.
        let rc = unsafe {
            libc::timerfd_settime(self.fd.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &raw const spec, std::ptr::null_mut())
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        self.period = period;
        Ok(())
    }

    /// Waits for the next beat. Beats that were missed are one.
    pub async fn beat(&self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            // The kernel sets the timer again when its count is read.
            let mut count = [0u8; 8];
            // SAFETY: the kernel writes at most the eight bytes of `count`.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
            ready.clear_ready();
            if read > 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
        }
    }
}

/// Keeps freed memory for so long before it goes back to the kernel. A stream frees its pictures at each keyframe and takes as much
/// again until the next: given back after mimalloc's own 10 ms, the same pages are taken and cleared again for each.
pub fn keep_freed_memory(delay: Duration) {
    /// mi_option_purge_delay of mimalloc.h, in milliseconds; the crate does not name it.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it sets a number of the allocator, which may be done at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, delay.as_millis() as _) };
}

/// Takes memory in pages of 4 KiB, never of 2 MiB (prctl(2)): each thread has some of its own for each size of allocation, of which
/// it uses a little. Ten recordings take a third less so.
pub fn use_small_pages() {
    // SAFETY: no pointer is passed, and what is allocated already stays as it is.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Lets this process open as many files and sockets as it may ask for (getrlimit(2)); says how many. Shells and services begin with 1024,
/// for programs that use select(2).
pub fn raise_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills `limit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads `limit`.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(limit.rlim_max),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a command end quietly when whoever reads its output has gone (`bywash call … | head`); Rust ignores SIGPIPE.
pub fn end_on_broken_pipe() {
    // SAFETY: no handler is installed, the default action is.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Whether a write to `file` would not have to wait, or would fail at once; waits up to `patience` for it (poll(2)).
pub fn writable(file: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut asked = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    loop {
        // SAFETY: the kernel reads and writes the one `asked`.
        let rc = unsafe { libc::poll(&raw mut asked, 1, patience.as_millis() as libc::c_int) };
        if rc >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return rc > 0;
        }
    }
}

/// Bytes that a user without privileges may still write to the file system of `path`, and its size (statvfs(3)).
pub fn disk_space(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all of it is integers, for which zeros are values.
    let mut told: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: the path ends in a zero byte, and the kernel fills `told`.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut told) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize))
}

/// CPU time that the calling thread has used.
pub fn thread_cpu_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(which: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn as_many_files_are_open_as_may_be() {
        let told = raise_file_limit().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let told = if told == libc::RLIM_INFINITY { "unlimited".into() } else { told.to_string() };
        assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), [&told; 2]);
    }

    #[test]
    fn the_kernel_counts_what_the_peer_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let before = tcp_bytes_acked(ours.as_fd()).unwrap();
        ours.write_all(&[7; 5000]).unwrap();
        theirs.read_exact(&mut [0; 5000]).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while tcp_bytes_acked(ours.as_fd()).unwrap() - before != 5000 || tcp_bytes_waiting(ours.as_fd()).unwrap() != 0 {
            assert!(std::time::Instant::now() < deadline, "the count never came to 5000");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_kernel_counts_the_datagrams_that_found_no_room() {
        let [to, from] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let room = set_receive_buffer(to.as_fd(), 20_000).unwrap();
        assert!((20_000..=40_000).contains(&room), "{room}");
        assert_eq!(overflowed(to.as_fd()).unwrap(), 0);
        for _ in 0..100 {
            from.send_to(&[7; 1000], to.local_addr().unwrap()).unwrap();
        }
        to.set_nonblocking(true).unwrap();
        let kept = std::iter::from_fn(|| to.recv(&mut [0; 1000]).ok()).count();
        assert!((1..100).contains(&kept), "{kept} of 100 are kept");
        assert_eq!(overflowed(to.as_fd()).unwrap() as usize, 100 - kept);
    }

    #[tokio::test]
    async fn a_metronome_goes_on() {
        let metronome = Metronome::new(Duration::from_millis(5)).unwrap();
        for _ in 0..5 {
            tokio::time::timeout(Duration::from_secs(5), metronome.beat()).await.unwrap().unwrap();
        }
    }

    #[test]
    fn a_disk_has_space() {
        let (free, size) = disk_space(Path::new("/")).unwrap();
        assert!(free <= size && size > 0);
        assert!(disk_space(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn loopback_is_among_this_hosts_addresses() {
        assert!(interface_addresses().unwrap().contains(&Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn the_low_water_mark_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_receive_low_water(ours.as_fd(), 2048).unwrap();
        set_receive_low_water(ours.as_fd(), 1).unwrap();
    }
}
