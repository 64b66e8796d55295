//! The HTTP and HTTPS listener: sockets in, requests to the router.
//!
//! Invariant: a peer holds a connection only while it uses it. Connections, headers and silence have limits.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow};
use axum::Router;
use axum::extract::ConnectInfo;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::address::canonical;
use crate::config::{self, pem};

/// Connections at once; one more is answered 503.
const CONNECTIONS_MAX: usize = 1000;

/// How long a peer may take from connect to its first whole request head, TLS included.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How long a connection may be silent between two requests.
const IDLE: Duration = Duration::from_secs(75);

/// Likewise where half of the places are taken: those who ask again and again are served, and make room.
const IDLE_CROWDED: Duration = Duration::from_secs(5);

/// How long a peer may take nothing of what waits for it: one that stopped reading holds a place, a socket and perhaps a file.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });

/// The largest request head, in bytes: the longest call that the manual allows as a GET, DeleteMedia of 100 keys with a StreamId of
/// 256 characters, takes 40 KiB. It is also all that a connection reads ahead, so peers that only begin to ask cost 64 MiB at most.
const HEAD_MAX: usize = 64 << 10;

/// How often, at most, the certificate's files are looked at.
const RELOAD: Duration = Duration::from_secs(2);

/// Serves `router` until `stop`, then lets running requests end; a caller who waits no longer drops it. Each request
/// carries the peer's address as [`ConnectInfo`].
pub async fn serve(
    listener: TcpListener,
    tls: Option<config::Tls>,
    router: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut certificate = match tls {
        Some(files) => Some(Certificate::load(files).await?),
        None => None,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
        };
        let (socket, peer) = match accepted {
            Ok((socket, peer)) => (socket, canonical(peer)),
            Err(error) => {
                // Out of descriptors, most of all: those that end make room.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "connection refused: {CONNECTIONS_MAX} are open");
            if certificate.is_none() {
                socket
                    .try_write(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                    .ok();
            }
            continue;
        };
        let acceptor = match &mut certificate {
            Some(certificate) => Some(certificate.newest().await),
            None => None,
        };
        let (router, stop) = (router.clone(), stop.clone());
        let idle = if places.available_permits() < CONNECTIONS_MAX / 2 { IDLE_CROWDED } else { IDLE };
        connections.spawn(async move {
            if let Err(error) = connection(socket, peer, acceptor, router, idle, stop).await {
                tracing::debug!(%peer, %error, "connection");
            }
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn connection(
    socket: TcpStream,
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    idle: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + FIRST_REQUEST;
    socket.set_nodelay(true)?;
    // The kernel sees what the peer takes, where a write sees room in a buffer of megabytes. A window that stays shut counts as
    // a peer that does not answer (TCP_USER_TIMEOUT, tcp(7); Linux 5.11).
    SockRef::from(&socket).set_tcp_user_timeout(Some(STALL))?;
    match acceptor {
        Some(acceptor) => {
            let accepted = tokio::time::timeout_at(deadline, acceptor.accept(socket)).await;
            let stream = accepted.context("no TLS handshake in time")?.context("TLS handshake")?;
            requests(stream, peer, router, (deadline, idle), stop).await
        }
        None => requests(socket, peer, router, (deadline, idle), stop).await,
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    router: Router,
    (deadline, idle): (tokio::time::Instant, Duration),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let asked = AtomicBool::new(false);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = router.clone();
        async move {
            let mut response = router.oneshot(request).await?;
            // axum tells the length of any body, and a 204 has none to tell (RFC 9110 §8.6): in the answer to HEAD it would stay.
            if response.status() == StatusCode::NO_CONTENT {
                response.headers_mut().remove(CONTENT_LENGTH);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper counts from the end of the last response, so this is also the limit of silence.
        .header_read_timeout(idle)
        .max_header_size(HEAD_MAX)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let (mut first, mut stopping) = (true, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = tokio::time::sleep_until(deadline), if first => {
                first = false;
                anyhow::ensure!(asked.load(Ordering::Relaxed), "no request in time");
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The server's certificate, read again when its files change.
struct Certificate {
    files: config::Tls,
    acceptor: TlsAcceptor,
    stamps: [Stamp; 2],
    looked: Instant,
}

/// What tells a file from an earlier one of its name.
type Stamp = Option<(SystemTime, u64)>;

impl Certificate {
    async fn load(files: config::Tls) -> anyhow::Result<Certificate> {
        let stamps = stamps(&files).await;
        let acceptor = acceptor(&files).await?;
        Ok(Certificate { files, acceptor, stamps, looked: Instant::now() })
    }

    /// What the next connection is given. Files that cannot be used leave the old certificate in its place.
    async fn newest(&mut self) -> TlsAcceptor {
        if self.looked.elapsed() >= RELOAD {
            self.looked = Instant::now();
            let stamps = stamps(&self.files).await;
            if stamps != self.stamps {
                // Noted even when the files are bad, so that they are complained of once.
                self.stamps = stamps;
                match acceptor(&self.files).await {
                    Ok(acceptor) => {
                        self.acceptor = acceptor;
                        tracing::info!("certificate reloaded");
                    }
                    Err(error) => tracing::error!("certificate not reloaded, the old one stays: {error:#}"),
                }
            }
        }
        self.acceptor.clone()
    }
}

async fn stamps(files: &config::Tls) -> [Stamp; 2] {
    let mut stamps = [None; 2];
    for (stamp, file) in stamps.iter_mut().zip([&files.certificate, &files.key]) {
        let found = tokio::fs::metadata(file).await;
        *stamp = found.ok().and_then(|it| Some((it.modified().ok()?, it.len())));
    }
    stamps
}

async fn acceptor(files: &config::Tls) -> anyhow::Result<TlsAcceptor> {
    async fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
        tokio::fs::read(file).await.with_context(|| format!("read {}", file.display()))
    }
    let (chain, key) = (read(&files.certificate).await?, read(&files.key).await?);
    let chain = pem::certificates(&chain).map_err(|why| anyhow!("{} {why}", files.certificate.display()))?;
    let key = pem::private_key(&key).map_err(|why| anyhow!("{} {why}", files.key.display()))?;
    let mut config = pem::server(chain, key).context("the certificate and its key do not go together")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use axum::body::Body;
    use axum::routing::get;
    use bytes::Bytes;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A server on loopback that answers `/`, with `hello` if not told otherwise; stopped when dropped.
    struct Server {
        address: SocketAddr,
        stop: CancellationToken,
        served: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    }

    impl Server {
        async fn start(tls: Option<config::Tls>) -> Server {
            let hello = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move {
                assert!(peer.ip().is_loopback());
                "hello"
            };
            Server::of(tls, Router::new().route("/", get(hello))).await
        }

        async fn of(tls: Option<config::Tls>, router: Router) -> Server {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let served = tokio::spawn(serve(listener, tls, router, stop.clone()));
            Server { address, stop, served: Some(served) }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

    /// Sends one request and reads until its body is there or the connection ends.
    async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> String {
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") && stream.read_buf(&mut answer).await.unwrap_or(0) > 0 {}
        String::from_utf8(answer).unwrap()
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("bywash-http-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }

        fn files(&self) -> config::Tls {
            config::Tls { certificate: self.0.join("cert.pem"), key: self.0.join("key.pem") }
        }

        /// Writes a fresh certificate; gives its bytes.
        fn renew(&self) -> CertificateDer<'static> {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            std::fs::write(self.files().certificate, made.cert.pem()).unwrap();
            std::fs::write(self.files().key, made.signing_key.serialize_pem()).unwrap();
            made.cert.der().clone()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    /// A request over TLS that trusts `root` alone: the answer, or `refused`.
    async fn ask(address: SocketAddr, root: &CertificateDer<'static>) -> String {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let socket = TcpStream::connect(address).await.unwrap();
        match connector.connect(ServerName::try_from("localhost").unwrap(), socket).await {
            Ok(mut stream) => exchange(&mut stream, GET).await.lines().last().unwrap_or("").to_owned(),
            Err(_) => "refused".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_new_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
        let folder = Folder::new("renew");
        let old = folder.renew();
        let server = Server::start(Some(folder.files())).await;
        assert_eq!(ask(server.address, &old).await, "hello");

        std::fs::write(folder.files().certificate, "broken").unwrap();
        tokio::time::sleep(RELOAD).await;
        assert_eq!(ask(server.address, &old).await, "hello");

        let new = folder.renew();
        tokio::time::sleep(RELOAD).await;
        assert_eq!(ask(server.address, &new).await, "hello");
        assert_eq!(ask(server.address, &old).await, "refused");
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_used_is_told_at_the_start() {
        let folder = Folder::new("absent");
        let mut server = Server::start(Some(folder.files())).await;
        let error = server.served.take().unwrap().await.unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("cert.pem"), "{error:#}");
    }

    #[tokio::test]
    async fn stop_ends_idle_connections_and_the_listener() {
        let mut server = Server::start(None).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        assert!(exchange(&mut stream, GET).await.ends_with("hello"));
        assert!(exchange(&mut stream, GET).await.ends_with("hello"), "kept alive");
        server.stop.cancel();
        server.served.take().unwrap().await.unwrap().unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert!(TcpStream::connect(server.address).await.is_err());
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let server = Server::start(None).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX));
        let answer = exchange(&mut stream, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    #[tokio::test]
    async fn a_peer_that_asks_nothing_is_dropped_at_its_deadline() {
        let (mut peer, stream) = tokio::io::duplex(1024);
        peer.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(20);
        let from = ([127, 0, 0, 1], 1).into();
        let ended = requests(stream, from, Router::new(), (deadline, IDLE), CancellationToken::new()).await;
        assert_eq!(ended.unwrap_err().to_string(), "no request in time");
    }

    #[tokio::test]
    async fn a_peer_that_reads_slowly_is_served_and_one_that_stops_is_dropped() {
        let gone = CancellationToken::new();
        let guard = Arc::new(std::sync::Mutex::new(Some(gone.clone().drop_guard())));
        let endless = async move || {
            let held = guard.lock().unwrap().take().unwrap();
            Body::from_stream(futures_util::stream::unfold(held, async |held| {
                Some((Ok::<_, Infallible>(Bytes::from_static(&[7; 1 << 16])), held))
            }))
        };
        let server = Server::of(None, Router::new().route("/", get(endless))).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let begin = Instant::now();
        while begin.elapsed() < 3 * STALL {
            stream.read_exact(&mut vec![0; 1 << 18]).await.unwrap();
            tokio::time::sleep(STALL / 4).await;
        }
        assert!(!gone.is_cancelled(), "it was dropped while it read");
        tokio::time::timeout(10 * STALL, gone.cancelled()).await.expect("the body is let go of");
    }
}
