//! A publisher under full control: what it sends, when, and with which timestamps.
//!
//! Each payload carries the moment it was written, so that a [`crate::Sink`] in the same process can tell how late
//! it arrives.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::rtmp::{self, Amf, Message, Reader};

const CHUNK_SIZE: usize = 4096;

/// Where the stamp of what is sent here begins, for audio and video.
const STAMP_AT: usize = 10;

/// A live RTMP publish.
pub struct Publisher {
    socket: TcpStream,
    heard: Arc<Mutex<Heard>>,
    count: u32,
}

/// What the server has said since the publish began.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Bytes acknowledged.
    pub acknowledged: u32,
    /// Answers to pings.
    pub pongs: u32,
    /// The code of the last status.
    pub status: String,
    /// The connection is closed.
    pub closed: bool,
}

impl Publisher {
    /// Connects to `rtmp://host:port/app/name[?query]` and publishes; the error says how the server put its refusal.
    pub fn connect(url: &str) -> io::Result<Publisher> {
        let mut socket = dial(url)?;
        let rest = url.strip_prefix("rtmp://").expect("a plain RTMP address");
        let (host, path) = rest.split_once('/').expect("an address with a path");
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let (app, name) = path.rsplit_once('/').expect("an application and a stream");
        let name = query.map_or(name.to_owned(), |query| format!("{name}?{query}"));
        rtmp::greet(&mut socket)?;
        let tc_url = format!("rtmp://{host}/{app}");
        let opening = [
            Message::control(1, CHUNK_SIZE as u32).chunks(128),
            Message::command(
                0,
                &[
                    Amf::text("connect"),
                    Amf::Number(1.0),
                    Amf::object(&[("app", app), ("type", "nonprivate"), ("flashVer", "test"), ("tcUrl", &tc_url)]),
                ],
            )
            .chunks(CHUNK_SIZE),
        ];
        socket.write_all(&opening.concat())?;
        let mut reader = Reader::new(socket.try_clone()?);
        answer(&mut reader, "_result")?;
        let create = [Amf::text("createStream"), Amf::Number(2.0), Amf::Null];
        socket.write_all(&Message::command(0, &create).chunks(CHUNK_SIZE))?;
        let stream = match answer(&mut reader, "_result")?.get(3) {
            Some(Amf::Number(id)) => *id as u32,
            _ => return Err(io::Error::other("createStream gave no id")),
        };
        let publish = [Amf::text("publish"), Amf::Number(3.0), Amf::Null, Amf::text(&name), Amf::text("live")];
        socket.write_all(&Message::command(stream, &publish).chunks(CHUNK_SIZE))?;
        let status = answer(&mut reader, "onStatus")?;
        let code = status.get(3).map_or("", |info| info.member("code"));
        if code != "NetStream.Publish.Start" {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, code));
        }
        socket.set_read_timeout(None)?;
        let heard = Arc::<Mutex<Heard>>::default();
        let noted = heard.clone();
        thread::spawn(move || {
            while let Ok(message) = reader.message() {
                let mut noted = noted.lock().expect("no holder panics");
                match (message.kind, &message.payload[..]) {
                    (3, &[a, b, c, d]) => noted.acknowledged = u32::from_be_bytes([a, b, c, d]),
                    (4, [0, 7, ..]) => noted.pongs += 1,
                    (20, _) => {
                        if let Some(info) = message.values().get(3) {
                            noted.status = info.member("code").to_owned();
                        }
                    }
                    _ => {}
                }
            }
            noted.lock().expect("no holder panics").closed = true;
        });
        Ok(Publisher { socket, heard, count: 0 })
    }

    /// Sends the sequence headers of a 1280×720 H.264 and a 48 kHz stereo AAC track.
    pub fn begin(&mut self, audio: bool) -> io::Result<()> {
        self.raw(9, 0, sequence_header())?;
        if audio { self.raw(8, 0, vec![0xaf, 0, 0x11, 0x90]) } else { Ok(()) }
    }

    /// Sends a picture of `size` bytes.
    pub fn video(&mut self, timestamp: u32, key: bool, size: usize) -> io::Result<()> {
        let mut payload = vec![0x55; size.max(40)];
        payload[..5].copy_from_slice(&[if key { 0x17 } else { 0x27 }, 1, 0, 0, 0]);
        let nal = payload.len() as u32 - 9;
        payload[5..9].copy_from_slice(&nal.to_be_bytes());
        payload[9] = if key { 0x65 } else { 0x41 };
        self.stamp(&mut payload);
        self.raw(9, timestamp, payload)
    }

    /// Sends an audio packet of `size` bytes.
    pub fn audio(&mut self, timestamp: u32, size: usize) -> io::Result<()> {
        let mut payload = vec![0x55; size.max(40)];
        payload[..3].copy_from_slice(&[0xaf, 1, 0x21]);
        self.stamp(&mut payload);
        self.raw(8, timestamp, payload)
    }

    /// Sends any message.
    pub fn raw(&mut self, kind: u8, timestamp: u32, payload: Vec<u8>) -> io::Result<()> {
        self.socket.write_all(&Message { kind, timestamp, stream: 1, payload }.chunks(CHUNK_SIZE))
    }

    /// Sends bytes that need not be RTMP.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// What the server has said.
    pub fn heard(&self) -> Heard {
        self.heard.lock().expect("no holder panics").clone()
    }

    fn stamp(&mut self, payload: &mut [u8]) {
        self.count += 1;
        stamp(&mut payload[STAMP_AT..], self.count);
    }
}

/// Where the stamp of a message is: behind the head of its sound or first slice, of which parameter sets may stand before.
pub fn stamp_at(kind: u8, payload: &[u8]) -> usize {
    let mut slice = 5;
    while let (9, Some([a, b, c, d, nal])) = (kind, payload.get(slice..slice + 5)) {
        if !matches!(nal & 0x1f, 6..=9) {
            break;
        }
        slice += 4 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    }
    slice + STAMP_AT - 5
}

/// Writes the time and a count into the first twelve bytes, seven bits in each: none is zero, so that no start code appears.
pub fn stamp(bytes: &mut [u8], count: u32) {
    let mut write = |from: usize, wide: usize, value: u64| {
        for n in 0..wide {
            bytes[from + n] = 0x80 | (value >> (7 * (wide - 1 - n))) as u8;
        }
    };
    write(0, 8, epoch().elapsed().as_nanos() as u64);
    write(8, 4, count.into());
}

/// The time, in nanoseconds since [`epoch`], and the count that [`stamp`] wrote.
pub fn read_stamp(bytes: &[u8]) -> (u64, u32) {
    let read = |bytes: &[u8]| bytes.iter().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    (read(&bytes[..8]), read(&bytes[8..12]) as u32)
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// Connects to the host of an RTMP address, with timeouts so that a test cannot hang on it.
pub fn dial(url: &str) -> io::Result<TcpStream> {
    let host = url.strip_prefix("rtmp://").and_then(|rest| rest.split('/').next()).expect("an RTMP address");
    let socket = TcpStream::connect(host)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

/// The moment that stamps count from.
pub fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// An AVC sequence header, 1280×720, constrained baseline, as x264 writes it.
pub fn sequence_header() -> Vec<u8> {
    hex::decode("17000000000142c01fffe100176742c01fda014016ec0440000003004000000f03c60ca801000468ce0fc8")
        .expect("hex of ours")
}

/// The same for 640×360: another picture size in mid-stream.
pub fn smaller_sequence_header() -> Vec<u8> {
    hex::decode("17000000000142c01effe100196742c01eda0280bfe5c044000003000400000300f03c58ba8001000468ce0fc8")
        .expect("hex of ours")
}

/// What a paced publisher sends.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pictures a second.
    pub frame_rate: u32,
    /// Bytes of an ordinary picture; a keyframe has six times as many.
    pub picture: usize,
    /// Bytes of an audio packet; none is sent where this is 0. 48 kHz AAC: 46.9 packets a second.
    pub audio: usize,
    /// Pictures from keyframe to keyframe.
    pub group: u32,
}

impl Pace {
    /// 15 pictures a second, 100 kbit/s, no audio: many of these fit into one machine.
    pub const SMALL: Pace = Pace { frame_rate: 15, picture: 700, audio: 0, group: 30 };
    /// 30 pictures a second, 2.5 Mbit/s, and 128 kbit/s of audio.
    pub const FULL: Pace = Pace { frame_rate: 30, picture: 9600, audio: 341, group: 60 };

    /// Bytes of pictures and sound that a second has, about.
    pub fn bytes_per_second(self) -> f64 {
        let packets = if self.audio > 0 { 48_000.0 / 1024.0 } else { 0.0 };
        // The five more of each keyframe.
        let pictures = f64::from(self.frame_rate) * (1.0 + 5.0 / f64::from(self.group));
        pictures * self.picture as f64 + packets * self.audio as f64
    }

    /// The messages in order: time in milliseconds, and for a picture whether it is a keyframe.
    fn script(self) -> impl Iterator<Item = (u32, Option<bool>)> {
        let pictures = (0u64..)
            .map(move |n| ((n * 1000 / u64::from(self.frame_rate)) as u32, Some(n % u64::from(self.group) == 0)));
        let packets = (0u64..).map(|n| ((n * 1024 / 48) as u32, None));
        let (mut pictures, mut packets) = (pictures.peekable(), packets.peekable());
        std::iter::from_fn(move || {
            let audio_first = self.audio > 0 && packets.peek()?.0 < pictures.peek()?.0;
            if audio_first { packets.next() } else { pictures.next() }
        })
    }
}

/// Publishers that send in real time from one thread until dropped.
pub struct Flow {
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<Vec<Publisher>>>,
}

impl Flow {
    /// Takes connected publishers, sends their sequence headers and paces them, spread over a picture's time.
    pub fn start(mut publishers: Vec<Publisher>, pace: Pace) -> Flow {
        epoch();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let shift = Duration::from_secs(1) / pace.frame_rate / publishers.len().max(1) as u32;
            publishers.retain_mut(|it| it.begin(pace.audio > 0).is_ok());
            let begin = Instant::now();
            let mut alive = vec![true; publishers.len()];
            for (time, picture) in pace.script() {
                for (n, publisher) in publishers.iter_mut().enumerate() {
                    let due = begin + Duration::from_millis(u64::from(time)) + shift * n as u32;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                        return publishers;
                    }
                    alive[n] = alive[n]
                        && match picture {
                            Some(key) => publisher.video(time, key, pace.picture * if key { 6 } else { 1 }),
                            None => publisher.audio(time, pace.audio),
                        }
                        .is_ok();
                }
            }
            publishers
        });
        Flow { stop, thread: Some(thread) }
    }

    /// Ends the pacing and gives the publishers back, still connected.
    pub fn stop(mut self) -> Vec<Publisher> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.take().expect("stopped once").join().expect("the pacing thread does not panic")
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for the command `name`; `_error` and `onStatus` errors come as errors.
fn answer(reader: &mut Reader<TcpStream>, name: &str) -> io::Result<Vec<Amf>> {
    loop {
        let message = reader.message()?;
        if message.kind != 20 {
            continue;
        }
        let values = message.values();
        let is = values.first().map_or("", Amf::as_text);
        if is == name {
            return Ok(values);
        }
        if is == "_error" || is == "onStatus" {
            let code = values.get(3).map_or("", |info| info.member("code"));
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, code));
        }
    }
}
