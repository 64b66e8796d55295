//! From a target's name to a connected socket, plain or TLS.
//!
//! Invariant: the address that is checked is the address that is connected to.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bywash_rtmp::client::Class;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{End, Settings};
use crate::address;
use crate::config::pem;
use crate::lane::Names;
use crate::store::Reason;
use crate::vendor::Target;
use crate::{sys, tls};

/// Bytes that the kernel may hold unsent.
const UNSENT: u32 = 256 * 1024;

/// Bytes that a target may say before we look at them. An acknowledgement has 16.
const SMALL_TALK: u32 = 1024;

/// How long an address has to answer before the next is tried beside it (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

/// A connection to a target.
pub enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects to the first address of `target` that answers, once `names` has found one by `deadline`.
pub async fn connect(
    target: &Target,
    names: &Arc<Names>,
    settings: &Settings,
    deadline: tokio::time::Instant,
) -> Result<Socket, End> {
    let unreachable = |error: String| End::Retry(Reason::HandshakeFailed, error);
    let found = names.find(target.host(), target.port(), deadline).await.map_err(unreachable)?;
    let allowed = |addr: &SocketAddr| settings.config.allow_private_targets || address::is_public(addr.ip());
    let addresses: Vec<_> = found.iter().copied().filter(allowed).collect();
    if addresses.is_empty() {
        let error = format!(
            "{} is a private address ({}); relay.allow_private_targets permits it",
            target.host(),
            found.first().map_or("none".to_owned(), |addr| addr.ip().to_string())
        );
        return Err(End::Refused(Reason::AccessPointError, Class::Other, error));
    }

    let tcp = first_of(addresses).await.map_err(unreachable)?;
    // A frame goes out in one write; Nagle would only hold back its end.
    let _ = tcp.set_nodelay(true);
    // What the network does not take stays with us, where it is skipped to a keyframe, not in the kernel.
    let _ = socket2::SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT);
    match target.tls() {
        false => Ok(Socket::Plain(tcp)),
        true => secure(target, tcp, settings).await.map_err(unreachable),
    }
}

/// A connection to the first of `addresses` that answers; each but the first is tried once those before it have failed or have had
/// their head start. The others are let go.
async fn first_of(addresses: Vec<SocketAddr>) -> Result<TcpStream, String> {
    let (mut tries, mut addresses) = (JoinSet::new(), addresses.into_iter());
    let mut error = "no address".to_owned();
    loop {
        if let Some(addr) = addresses.next() {
            tries.spawn(async move { TcpStream::connect(addr).await.map_err(|error| format!("{addr}: {error}")) });
        }
        tokio::select! {
            done = tries.join_next() => match done {
                Some(Ok(Ok(tcp))) => return Ok(tcp),
                Some(Ok(Err(failed))) => error = failed,
                Some(Err(failed)) => error = failed.to_string(),
                None => return Err(error),
            },
            () = tokio::time::sleep(HEAD_START), if addresses.len() > 0 => {}
        }
    }
}

async fn secure(target: &Target, tcp: TcpStream, settings: &Settings) -> Result<Socket, String> {
    let name = target.host().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(settings.tls.clone()).connect(name, tcp).await;
    Ok(Socket::Tls(Box::new(stream.map_err(|error| format!("TLS: {error}"))?)))
}

/// What rtmps:// targets are trusted by: the system's roots, and those of `ca_file`.
pub fn tls(ca_file: Option<&Path>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut own = Vec::new();
    if let Some(path) = ca_file {
        let file = || format!("relay.ca_file {}", path.display());
        let text = std::fs::read(path).with_context(file)?;
        own = pem::certificates(&text).map_err(|why| anyhow!("{} {why}", file()))?;
    }
    Ok(Arc::new(tls::client(own)?))
}

impl Socket {
    fn tcp(&self) -> &TcpStream {
        match self {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Whether what the target says is to wake us. While it takes a stream, it says little but how much it has taken, some of
    /// them many times a second, and that can wait for the next beat; that it closes wakes us as ever.
    pub fn listen(&self, at_once: bool) {
        let _ = sys::set_receive_low_water(self.tcp().as_fd(), if at_once { 1 } else { SMALL_TALK });
    }

    /// Bytes that the target's kernel has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        sys::tcp_bytes_acked(self.tcp().as_fd()).unwrap_or(0)
    }

    /// Bytes that wait in our kernel for an acknowledgement.
    pub fn waiting(&self) -> u64 {
        sys::tcp_bytes_waiting(self.tcp().as_fd()).unwrap_or(0)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Socket::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Socket::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Socket::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Connects to listeners, each of which is dead (d: every packet is dropped), closed (c) or live (l).
    async fn check(script: &str, reached: Option<usize>) {
        let listeners: Vec<_> = script.chars().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
        let mut open = Vec::new();
        for (kind, listener) in script.chars().zip(listeners) {
            match kind {
                'd' => {
                    // A filter that takes no byte (BPF_RET of 0).
                    let nothing = socket2::SockFilter::new(0x06, 0, 0, 0);
                    socket2::SockRef::from(&listener).attach_filter(&[nothing]).unwrap();
                    open.push(listener);
                }
                'c' => drop(listener),
                _ => open.push(listener),
            }
        }
        let connected = tokio::time::timeout(Duration::from_secs(5), first_of(addresses.clone())).await;
        let connected = connected.expect("within relay.connect_timeout").ok();
        let peer = connected.map(|tcp| tcp.peer_addr().unwrap());
        assert_eq!(peer, reached.map(|n| addresses[n]), "{script}");
    }

    #[tokio::test]
    async fn a_dead_address_of_a_target_does_not_keep_us_from_the_others() {
        for (script, reached) in [("l", 0), ("dl", 1), ("cl", 1), ("ddcl", 3), ("ld", 0)] {
            check(script, Some(reached)).await;
        }
        check("cc", None).await;
        check("", None).await;
    }
}
