//! A CDN of our own: takes publishes, notes when each message arrived, and misbehaves on request.

use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};

use crate::flv::Tag;
use crate::publisher::{epoch, read_stamp, stamp_at};
use crate::rtmp::{self, Amf, Message, Reader};

/// How the sink treats whoever connects; changes hold for open connections too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    /// Takes everything, as a good CDN.
    Take,
    /// The same, and keeps all that comes.
    Keep,
    /// The same as a good one, and acknowledges each message by itself, a little later, and pings at the publish and at each keyframe.
    Chatty,
    /// Accepts the connection and never says a word.
    Silent,
    /// Stops reading: the kernel acknowledges what fits into its buffer, then nothing.
    Deaf,
    /// Drops every packet that comes in, below TCP: no acknowledgement at all.
    BlackHole,
    /// Refuses the publish with this code, and says the stream's name and each value of its query.
    Refuse(&'static str),
    /// Takes the publish, and refuses it with this code once media comes.
    Regret(&'static str),
    /// Takes what is signed with this key as Tencent has it, and hangs up on the rest.
    Checks {
        /// The key.
        key: &'static str,
        /// It says that it takes the stream before it looks.
        late: bool,
    },
    /// Reads this many bytes a second, out of a small buffer.
    Slow(u32),
    /// Closes the connection, open ones at their next message.
    Close,
}

/// A media message that came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When its last byte was read.
    pub at: Instant,
    /// Its RTMP timestamp.
    pub timestamp: u32,
    /// 8 audio, 9 video.
    pub kind: u8,
    /// Bytes of payload.
    pub size: u32,
    /// The first bytes.
    pub head: [u8; 24],
    /// What a publisher of this crate wrote into it.
    stamp: [u8; 12],
}

impl Arrival {
    /// A picture that can begin a stream.
    pub fn is_key(&self) -> bool {
        self.kind == 9 && self.head[0] >> 4 == 1 && self.head[1] == 1
    }

    /// A track's sequence header.
    pub fn is_header(&self) -> bool {
        self.head[1] == 0
    }

    /// When the publisher in this process wrote it.
    pub fn written(&self) -> Instant {
        epoch() + Duration::from_nanos(read_stamp(&self.stamp).0)
    }

    /// The publisher's count of its messages.
    pub fn count(&self) -> u32 {
        read_stamp(&self.stamp).1
    }
}

/// One publish that was taken.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// The stream's name with its query.
    pub name: String,
    /// The application with its query.
    pub app: String,
    /// Codecs of enhanced RTMP that `connect` named (`fourCcList`).
    pub fourcc: Vec<String>,
    /// Its media messages.
    pub arrivals: Vec<Arrival>,
    /// The same whole, where the manner is to keep them.
    pub kept: Vec<Tag>,
    /// FCUnpublish or deleteStream came: it was ended, not cut.
    pub unpublished: bool,
    /// Pings that were answered.
    pub pongs: u32,
    /// The connection is closed.
    pub closed: bool,
}

#[derive(Default)]
struct Seen {
    connects: Vec<Instant>,
    sessions: Vec<Session>,
}

/// A target on a port of its own.
pub struct Sink {
    port: u16,
    manner: Arc<Mutex<Manner>>,
    seen: Arc<Mutex<Seen>>,
    open: Arc<Mutex<Option<()>>>,
}

impl Sink {
    /// Listens on a new port.
    pub fn start(manner: Manner) -> Sink {
        let sink = Sink {
            port: crate::port(),
            manner: Arc::new(Mutex::new(manner)),
            seen: Arc::default(),
            open: Arc::new(Mutex::new(None)),
        };
        sink.open();
        sink
    }

    /// Listens again after [`Sink::shut`].
    pub fn open(&self) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).expect("our own port");
        *self.lock_open() = Some(());
        let (manner, seen, open) = (self.manner.clone(), self.seen.clone(), self.open.clone());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if open.lock().expect("no holder panics").is_none() {
                    return;
                }
                lock(&seen).connects.push(Instant::now());
                let (manner, seen) = (manner.clone(), seen.clone());
                let serve = move || {
                    let mut place = None;
                    let _ = serve(socket, &manner, &seen, &mut place);
                    if let Some(place) = place {
                        lock(&seen).sessions[place as usize].closed = true;
                    }
                };
                thread::Builder::new().stack_size(256 << 10).spawn(serve).expect("a thread");
            }
        });
    }

    /// Closes the port: connects are refused, open sessions are closed.
    pub fn shut(&self) {
        let before = self.manner();
        self.set(Manner::Close);
        *self.lock_open() = None;
        // The listener sits in accept: one last connection lets it see that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        crate::eventually("the port closes", crate::secs(5), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).err()
        });
        crate::eventually("the sessions close", crate::secs(5), || {
            self.sessions().iter().all(|session| session.closed).then_some(())
        });
        self.set(before);
    }

    /// Changes the manner.
    pub fn set(&self, manner: Manner) {
        *lock(&self.manner) = manner;
    }

    fn manner(&self) -> Manner {
        *lock(&self.manner)
    }

    fn lock_open(&self) -> std::sync::MutexGuard<'_, Option<()>> {
        lock(&self.open)
    }

    /// The address of a stream here.
    pub fn url(&self, stream: &str) -> String {
        format!("rtmp://127.0.0.1:{}/live/{stream}", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// When connections came.
    pub fn connects(&self) -> Vec<Instant> {
        lock(&self.seen).connects.clone()
    }

    /// Everything that was taken.
    pub fn sessions(&self) -> Vec<Session> {
        lock(&self.seen).sessions.clone()
    }

    /// The newest session of the stream `name`, query aside.
    pub fn session(&self, name: &str) -> Option<Session> {
        let seen = lock(&self.seen);
        seen.sessions.iter().rev().find(|it| it.name.split('?').next() == Some(name)).cloned()
    }

    /// How many pictures of the stream came in, over all its sessions.
    pub fn pictures(&self, name: &str) -> usize {
        let seen = lock(&self.seen);
        let sessions = seen.sessions.iter().filter(|it| it.name.split('?').next() == Some(name));
        sessions.map(|it| it.arrivals.iter().filter(|frame| frame.kind == 9 && !frame.is_header()).count()).sum()
    }

    /// Waits until pictures of the stream come in.
    #[track_caller]
    pub fn wait_for(&self, name: &str, limit: Duration) {
        let had = self.pictures(name);
        crate::eventually(&format!("pictures of {name}"), limit, || (self.pictures(name) > had + 5).then_some(()));
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.set(Manner::Close);
        *self.lock_open() = None;
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// The latencies of the pictures among `arrivals`, in milliseconds, sorted; `took` is what lies between two moments.
pub fn latencies<'a>(
    arrivals: impl IntoIterator<Item = &'a Arrival>,
    took: impl Fn(Instant, Instant) -> Duration,
) -> Vec<f64> {
    let pictures = arrivals.into_iter().filter(|it| it.kind == 9 && !it.is_header());
    let mut all: Vec<f64> = pictures.map(|it| took(it.written(), it.at).as_secs_f64() * 1e3).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// The value below which the share `p` of the sorted `values` lies; 0 of none.
pub fn quantile(values: &[f64], p: f64) -> f64 {
    values.get(((values.len() as f64 * p) as usize).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn serve(mut socket: TcpStream, manner: &Mutex<Manner>, seen: &Mutex<Seen>, place: &mut Option<u32>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    if matches!(*lock(manner), Manner::Slow(_)) {
        socket2::SockRef::from(&socket).set_recv_buffer_size(64 << 10)?;
    }
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut patient = Patient { socket: socket.try_clone()?, manner };
    rtmp::welcome(&mut patient)?;
    let mut reader = Reader::new(BufReader::with_capacity(64 << 10, patient));
    let (mut app, mut fourcc) = (String::new(), Vec::new());
    let mut acknowledged = 0;
    loop {
        let message = reader.message()?;
        let now = *lock(manner);
        let chatty = now == Manner::Chatty;
        if chatty || reader.bytes - acknowledged > 100_000 {
            acknowledged = reader.bytes;
            if chatty {
                // Its sender has gone to sleep by then.
                thread::sleep(Duration::from_millis(5));
            }
            socket.write_all(&Message::control(3, acknowledged as u32).chunks(4096))?;
        }
        match (message.kind, *place) {
            (20, _) => {}
            (8 | 9, Some(place)) => {
                if let Manner::Regret(code) = now {
                    socket.write_all(&status("error", code, "by the test").chunks(4096))?;
                }
                let mut head = [0; 24];
                let have = message.payload.len().min(24);
                head[..have].copy_from_slice(&message.payload[..have]);
                let (timestamp, kind) = (message.timestamp, message.kind);
                let size = message.payload.len() as u32;
                let mut stamp = [0; 12];
                let at = stamp_at(kind, &message.payload);
                stamp.iter_mut().zip(message.payload.iter().skip(at)).for_each(|(to, from)| *to = *from);
                let arrival = Arrival { at: Instant::now(), timestamp, kind, size, head, stamp };
                if chatty && arrival.is_key() {
                    socket.write_all(&Message::ping().chunks(4096))?;
                }
                let session = &mut lock(seen).sessions[place as usize];
                session.arrivals.push(arrival);
                if now == Manner::Keep {
                    session.kept.push(Tag { kind, timestamp: timestamp.into(), body: message.payload });
                }
                continue;
            }
            (4, Some(place)) if message.payload.starts_with(&[0, 7]) => {
                lock(seen).sessions[place as usize].pongs += 1;
                continue;
            }
            _ => continue,
        }
        let values = message.values();
        let id = values.get(1).cloned().unwrap_or(Amf::Number(0.0));
        let mut send = |stream, values: &[Amf]| socket.write_all(&Message::command(stream, values).chunks(4096));
        match values.first().map_or("", Amf::as_text) {
            "connect" => {
                let object = values.get(2).cloned().unwrap_or(Amf::Null);
                (app, fourcc) = (object.member("app").to_owned(), object.list("fourCcList"));
                let opening = [
                    Message::control(5, 2_500_000).chunks(128),
                    Message { kind: 6, payload: vec![0, 0x26, 0x25, 0xa0, 2], ..Message::default() }.chunks(128),
                    Message::control(1, 4096).chunks(128),
                ];
                socket.write_all(&opening.concat())?;
                let info = [("level", "status"), ("code", "NetConnection.Connect.Success")];
                let reply = [Amf::text("_result"), id, Amf::object(&[("fmsVer", "FMS/3,0,1,123")]), Amf::object(&info)];
                socket.write_all(&Message::command(0, &reply).chunks(4096))?;
            }
            "createStream" => send(0, &[Amf::text("_result"), id, Amf::Null, Amf::Number(1.0)])?,
            "publish" => {
                let name = values.get(3).map_or("", Amf::as_text).to_owned();
                let (refusal, hangs_up) = match *lock(manner) {
                    Manner::Refuse(code) => (Some(code), None),
                    Manner::Checks { key, late } if !is_signed(&name, key) => (None, Some(late)),
                    _ => (None, None),
                };
                if hangs_up == Some(false) {
                    return Ok(());
                }
                let words = name.replace(['?', '&', '='], " ");
                let (level, code) = refusal.map_or(("status", "NetStream.Publish.Start"), |code| ("error", code));
                if refusal.is_none() && hangs_up.is_none() {
                    let mut seen = lock(seen);
                    *place = Some(seen.sessions.len() as u32);
                    seen.sessions.push(Session {
                        name,
                        app: app.clone(),
                        fourcc: fourcc.clone(),
                        ..Session::default()
                    });
                }
                socket.write_all(&status(level, code, &words).chunks(4096))?;
                if *lock(manner) == Manner::Chatty {
                    // It takes the stream before it is pinged.
                    thread::sleep(Duration::from_millis(100));
                    socket.write_all(&Message::ping().chunks(4096))?;
                }
                if hangs_up.is_some() {
                    return Ok(());
                }
            }
            "FCUnpublish" | "deleteStream" | "closeStream" => {
                if let Some(place) = *place {
                    lock(seen).sessions[place as usize].unpublished = true;
                }
            }
            _ => {}
        }
    }
}

fn status(level: &str, code: &str, description: &str) -> Message {
    let info = Amf::object(&[("level", level), ("code", code), ("description", description)]);
    Message::command(1, &[Amf::text("onStatus"), Amf::Number(0.0), Amf::Null, info])
}

/// Whether `txSecret` is the digest of the key, the stream and `txTime`.
fn is_signed(name: &str, key: &str) -> bool {
    let (stream, query) = name.split_once('?').unwrap_or((name, ""));
    let value = |name| query.split('&').find_map(|pair| pair.split_once('=').filter(|it| it.0 == name)).map(|it| it.1);
    let (Some(secret), Some(time)) = (value("txSecret"), value("txTime")) else { return false };
    hex::encode(Md5::digest(format!("{key}{stream}{time}"))) == secret
}

/// A socket that reads as the manner allows.
struct Patient<'a> {
    socket: TcpStream,
    manner: &'a Mutex<Manner>,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            obey(&self.socket, self.manner)?;
            let rate = match *lock(self.manner) {
                Manner::Slow(rate) => Some(rate),
                _ => None,
            };
            let most = rate.map_or(buffer.len(), |rate| buffer.len().min(rate as usize / 20).max(1));
            match self.socket.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    if let (Some(rate), Ok(read)) = (rate, &done) {
                        thread::sleep(Duration::from_secs_f64(*read as f64 / f64::from(rate)));
                    }
                    return done;
                }
            }
        }
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Waits as long as the manner is to do nothing.
fn obey(socket: &TcpStream, manner: &Mutex<Manner>) -> io::Result<()> {
    let mut dropping = false;
    loop {
        let now = *lock(manner);
        if now == Manner::BlackHole && !dropping {
            // A filter that takes no byte: the segment is gone before TCP can acknowledge it.
            let nothing = socket2::SockFilter::new(0x06, 0, 0, 0);
            socket2::SockRef::from(socket).attach_filter(&[nothing])?;
            dropping = true;
        }
        match now {
            Manner::Take
            | Manner::Keep
            | Manner::Chatty
            | Manner::Slow(_)
            | Manner::Refuse(_)
            | Manner::Regret(_)
            | Manner::Checks { .. } => {
                return if dropping { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) };
            }
            Manner::Close => {
                let _ = socket.shutdown(std::net::Shutdown::Both);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Manner::Silent | Manner::Deaf | Manner::BlackHole => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}
