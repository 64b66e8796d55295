//! Many WebRTC publishers and players at once, light enough to count what a server does with them: str0m with made-up pictures.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use str0m::change::SdpAnswer;
use str0m::media::{Direction, Frequency, MediaKind, MediaTime, Mid};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

use crate::publisher::{self, Pace};
use crate::server::request;
use crate::{eventually, secs};

/// The parameter sets of [`publisher::sequence_header`], as Annex B.
const SETS: &[u8] = b"\0\0\0\x01\x67\x42\xc0\x1f\xda\x01\x40\x16\xec\x04\x40\0\0\x03\0\x40\0\0\x0f\x03\xc6\x0c\xa8\0\0\0\x01\x68\xce\x0f\xc8";

/// What each session sends: pictures as [`Pace`] says, whose stamps a [`crate::Sink`] reads, and these packets of Opus, 20 ms each, over
/// and over.
#[derive(Clone)]
pub struct Media {
    /// The pictures; its sound does not count.
    pub pace: Pace,
    /// The sound.
    pub opus: Arc<[Vec<u8>]>,
}

/// Publishers or players in one thread, until dropped.
pub struct Flock {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    connected: AtomicUsize,
    ended: AtomicUsize,
    stop: AtomicBool,
    end: Mutex<End>,
    /// How many pictures each has sent, or has been sent, once all have ended.
    pictures: Mutex<Vec<u32>>,
}

/// How sessions end.
#[derive(Clone, Copy, Default)]
enum End {
    /// They close DTLS.
    #[default]
    Close,
    /// By DELETE, each behind one more picture.
    Delete,
    /// Nothing more is heard of them.
    Vanish,
}

impl Flock {
    /// Publishes to each WHIP address; without media the sessions are connected and silent. Waits until all are connected.
    #[track_caller]
    pub fn start(addresses: &[String], media: Option<Media>) -> Flock {
        Flock::open(addresses, Direction::SendOnly, media)
    }

    /// Plays each WHEP address. Waits until all are connected.
    #[track_caller]
    pub fn play(addresses: &[String]) -> Flock {
        Flock::open(addresses, Direction::RecvOnly, None)
    }

    #[track_caller]
    fn open(addresses: &[String], direction: Direction, media: Option<Media>) -> Flock {
        let shared = Arc::<Shared>::default();
        let open = |address: &String| Session::open(address, direction).expect("it is taken");
        let sessions: Vec<_> = addresses.iter().map(open).collect();
        let (count, its) = (sessions.len(), shared.clone());
        let thread = Some(thread::spawn(move || run(sessions, media.as_ref(), &its)));
        let flock = Flock { shared, thread };
        eventually("all are connected", secs(30), || (flock.shared.connected.load(Relaxed) == count).then_some(()));
        flock
    }

    /// Ends each session by closing it; says how many pictures each has sent, or has been sent.
    pub fn close(self) -> Vec<u32> {
        self.end(End::Close)
    }

    /// Ends each session by DELETE, as soon as one more picture is sent; says how many pictures each has sent, or has been sent.
    pub fn delete(self) -> Vec<u32> {
        self.end(End::Delete)
    }

    /// Ends each session without a word; says how many pictures each has sent, or has been sent.
    pub fn vanish(self) -> Vec<u32> {
        self.end(End::Vanish)
    }

    fn end(mut self, end: End) -> Vec<u32> {
        *self.shared.end.lock().expect("no holder panics") = end;
        self.stop();
        std::mem::take(&mut self.shared.pictures.lock().expect("no holder panics"))
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// How many sessions the server has ended.
    pub fn ended(&self) -> usize {
        self.shared.ended.load(Relaxed)
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(mut sessions: Vec<Session>, media: Option<&Media>, shared: &Shared) {
    let (count, mut begin) = (sessions.len() as u32, None);
    while !shared.stop.load(Relaxed) {
        let mut rest = Duration::from_millis(5);
        for (n, session) in sessions.iter_mut().enumerate() {
            let was = (session.connected, session.rtc.is_alive());
            session.drive();
            if !was.0 && session.connected {
                shared.connected.fetch_add(1, Relaxed);
            }
            if was.1 && !session.rtc.is_alive() {
                shared.ended.fetch_add(1, Relaxed);
            }
            if let (Some(media), Some(begin)) = (media, begin) {
                // Spread over a picture's time.
                let shift = secs(1) / media.pace.frame_rate * n as u32 / count;
                rest = rest.min(session.send(media, begin + shift));
            }
        }
        if begin.is_none() && sessions.iter().all(|it| it.connected) {
            begin = Some(Instant::now());
        }
        thread::sleep(rest.min(Duration::from_millis(1)));
    }
    let end = *shared.end.lock().expect("no holder panics");
    for session in &mut sessions {
        if let End::Delete = end {
            media.inspect(|media| session.send_picture(media));
            session.drive();
            let (host, path) = &session.place;
            assert_eq!(request(host, "DELETE", path, &[], b"").expect("an answer").0, 200);
        }
        shared.pictures.lock().expect("no holder panics").push(session.count[0]);
        if !matches!(end, End::Vanish) {
            let _ = session.rtc.close();
            session.drive();
        }
    }
}

struct Session {
    /// Its host, and its path there.
    place: (String, String),
    rtc: Rtc,
    socket: UdpSocket,
    local: SocketAddr,
    video: Mid,
    audio: Mid,
    connected: bool,
    key_wanted: bool,
    /// Pictures and packets of sound that were sent or have come.
    count: [u32; 2],
}

impl Session {
    fn open(address: &str, direction: Direction) -> io::Result<Session> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let config = RtcConfig::new().clear_codecs().enable_h264(true).enable_opus(true, false);
        let mut rtc = config.build(Instant::now());
        rtc.add_local_candidate(Candidate::host(local, "udp").map_err(io::Error::other)?);
        let mut api = rtc.sdp_api();
        let audio = api.add_media(MediaKind::Audio, direction, None, None, None);
        let video = api.add_media(MediaKind::Video, direction, None, None, None);
        let (offer, pending) = api.apply().expect("there are changes");
        let (host, path) = address.trim_start_matches("http://").split_once('/').expect("an address with a path");
        let headers = ["Content-Type: application/sdp"];
        let (status, head, answer) =
            request(host, "POST", &format!("/{path}"), &headers, offer.to_sdp_string().as_bytes())?;
        let place = head.lines().find_map(|line| line.strip_prefix("location: ")).filter(|_| status == 201);
        let place = (host.to_owned(), place.ok_or_else(|| io::Error::other(answer.clone()))?.to_owned());
        let answer = SdpAnswer::from_sdp_string(&answer).map_err(io::Error::other)?;
        rtc.sdp_api().accept_answer(pending, answer).map_err(io::Error::other)?;
        Ok(Session { place, rtc, socket, local, video, audio, connected: false, key_wanted: false, count: [0; 2] })
    }

    /// Takes in what has come and sends what is to go.
    fn drive(&mut self) {
        let mut datagram = [0; 2000];
        while let Ok((length, source)) = self.socket.recv_from(&mut datagram) {
            if let Ok(receive) = Receive::new(Protocol::Udp, source, self.local, &datagram[..length]) {
                let _ = self.rtc.handle_input(Input::Receive(Instant::now(), receive));
                self.drain();
            }
        }
        let _ = self.rtc.handle_input(Input::Timeout(Instant::now()));
        self.drain();
    }

    fn drain(&mut self) {
        while let Ok(output) = self.rtc.poll_output() {
            match output {
                Output::Transmit(it) => drop(self.socket.send_to(&it.contents, it.destination)),
                Output::Event(Event::Connected) => self.connected = true,
                Output::Event(Event::KeyframeRequest(_)) => self.key_wanted = true,
                Output::Event(Event::MediaData(it)) => self.count[usize::from(it.mid == self.audio)] += 1,
                Output::Event(_) => {}
                Output::Timeout(_) => return,
            }
        }
    }

    /// Sends what is due; says how long until the next.
    fn send(&mut self, media: &Media, begin: Instant) -> Duration {
        let rates = [media.pace.frame_rate, 50];
        let now = Instant::now();
        let mut rest = secs(1);
        for (kind, rate) in rates.into_iter().enumerate() {
            let due = begin + Duration::from_secs(1) * self.count[kind] / rate;
            if due > now {
                rest = rest.min(due - now);
                continue;
            }
            rest = Duration::ZERO;
            if kind == 0 {
                self.send_picture(media);
            } else {
                let n = self.count[kind];
                self.count[kind] += 1;
                let packet = media.opus[n as usize % media.opus.len()].clone();
                self.write(self.audio, n * 960, Frequency::FORTY_EIGHT_KHZ, packet);
            }
        }
        rest
    }

    fn send_picture(&mut self, media: &Media) {
        let n = self.count[0];
        self.count[0] += 1;
        let key = std::mem::take(&mut self.key_wanted) || n.is_multiple_of(media.pace.group);
        let ticks = n * (90_000 / media.pace.frame_rate);
        self.write(self.video, ticks, Frequency::NINETY_KHZ, picture(n, key, media.pace.picture));
    }

    fn write(&mut self, mid: Mid, ticks: u32, clock: Frequency, data: Vec<u8>) {
        if let Some(writer) = self.rtc.writer(mid) {
            let pt = writer.payload_params().next().expect("a codec was agreed on").pt();
            let _ = writer.write(pt, Instant::now(), MediaTime::new(ticks.into(), clock), data);
        }
        self.drain();
    }
}

/// A picture of one slice, which begins with a stamp.
fn picture(n: u32, key: bool, size: usize) -> Vec<u8> {
    let mut picture = if key { SETS.to_vec() } else { Vec::new() };
    picture.extend([0, 0, 0, 1, if key { 0x65 } else { 0x41 }]);
    let stamp = picture.len();
    picture.resize(stamp + (size * if key { 6 } else { 1 }).max(40), 0x55);
    publisher::stamp(&mut picture[stamp..], n);
    picture
}
