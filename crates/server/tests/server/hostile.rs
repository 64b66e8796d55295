//! Peers that break the protocol, wait for ever or ask for too much get a clear end; the rest go on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bywash_testkit::publisher::{Flow, Pace, dial};
use bywash_testkit::rtmp::{self, Amf, Message};
use bywash_testkit::{Manner, Publisher, Server, Setup, Sink, eventually, secs};

/// Waits until the server has closed the connection.
#[track_caller]
fn closed(what: &str, socket: &TcpStream) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket of ours");
    let mut buffer = [0; 4096];
    eventually(&format!("the server ends it: {what}"), secs(20), || match (&mut &*socket).read(&mut buffer) {
        Ok(0) => Some(()),
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(_) => Some(()),
    });
}

/// A connection after its handshake.
fn greeted(server: &Server) -> TcpStream {
    let mut socket = dial(&server.rtmp("x")).expect("a connection");
    rtmp::greet(&mut socket).expect("a handshake");
    socket
}

#[test]
fn hostile_peers_are_bounded() {
    let (sink, server) = (Sink::start(Manner::Take), Server::start(Setup::default()));
    server.relay("show", &sink.url("show"));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    sink.wait_for("show", secs(5));
    let before = server.process().rss();

    // Half-open and slow handshakes.
    let half: Vec<TcpStream> = (0..100).map(|_| dial(&server.rtmp("x")).expect("a connection")).collect();
    let slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut socket = dial(&server.rtmp("x")).expect("a connection");
            socket.write_all(&[3, 0, 0]).expect("three bytes");
            socket
        })
        .collect();

    // Not RTMP at all.
    let mut http = dial(&server.rtmp("x")).expect("a connection");
    let _ = http.write_all("GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100).as_bytes());
    closed("another protocol", &http);

    // A message said to be 16 MiB, sent in a trickle of large chunks.
    let mut giant = greeted(&server);
    let _ = giant.write_all(&Message::control(1, 0x7fff_ffff).chunks(128));
    let header = [0x03, 0, 0, 0, 0xff, 0xff, 0xff, 20, 0, 0, 0, 0];
    let _ = giant.write_all(&header);
    for _ in 0..256 {
        if giant.write_all(&[0; 65_536]).is_err() {
            break;
        }
    }
    closed("a giant command", &giant);

    // A message begun on each of 65 000 chunk streams.
    let mut flood = greeted(&server);
    for channel in 0..65_000_u32 {
        let mut chunk = vec![0x01, (channel % 256) as u8, (channel / 256) as u8];
        chunk.extend([0, 0, 0, 0, 0x10, 0, 9, 1, 0, 0, 0]);
        chunk.extend([0; 128]);
        if flood.write_all(&chunk).is_err() {
            break;
        }
    }
    closed("a flood of chunk streams", &flood);

    // AMF nested without end.
    let mut deep = greeted(&server);
    let mut payload = vec![2, 0, 7];
    payload.extend(b"connect");
    payload.extend([0, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]);
    for _ in 0..15_000 {
        payload.extend([3, 0, 1, b'a']);
    }
    let _ = deep.write_all(&Message { kind: 20, payload, ..Message::default() }.chunks(128));
    closed("deep AMF", &deep);

    // Commands without end, none of them of use.
    let mut chatty = greeted(&server);
    let nonsense = Message::command(0, &[Amf::text("createStream"), Amf::Number(2.0), Amf::Null]).chunks(128);
    for _ in 0..20_000 {
        if chatty.write_all(&nonsense).is_err() {
            break;
        }
    }

    for socket in half.iter().chain(&slow) {
        closed("a handshake that never ends", socket);
    }
    let after = server.process().rss();
    assert!(after < before + (24 << 20), "memory grew by {} KiB", (after - before) / 1024);
    sink.wait_for("show", secs(2));
    assert_eq!(sink.sessions().len(), 1, "the stream was not disturbed");
    assert_eq!(server.get("/health").expect("an answer").0, 200);
}

#[test]
fn http_peers_are_bounded() {
    let server = Server::start(Setup::default());
    for path in ["/", "/?Action=", "/?Action=Nope&AppId=x", "/nope", "/%00", "/?%ff=%zz"] {
        let (status, body) = server.get(path).expect("an answer");
        assert!(status < 500, "{path}: {status} {body}");
    }
    let long = format!("/?Action=DescribeStreams&x={}", "y".repeat(1 << 20));
    assert!(server.get(&long).map_or(true, |(status, _)| (400..500).contains(&status)));

    // Request heads that are nearly as long as they may be and never end.
    let before = server.process().rss();
    let head = format!("GET /?{}", "y".repeat(60 << 10));
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut socket = TcpStream::connect(("127.0.0.1", server.http_port())).expect("a connection");
            socket.write_all(head.as_bytes()).expect("it is read");
            socket
        })
        .collect();
    assert_eq!(server.get("/health").expect("an answer").0, 200);
    let after = server.process().rss();
    assert!(after < before + 200 * (64 << 10) + (8 << 20), "memory grew by {} KiB", (after - before) / 1024);
    for socket in &slow {
        closed("a request that never ends", socket);
    }
    assert_eq!(server.get("/health").expect("an answer").0, 200);
}
