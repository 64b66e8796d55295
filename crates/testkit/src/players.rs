//! A web page with players of recordings, of another origin than the server's: hls.js, the browser's own, and the MP4 parser mp4box.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::browser::Page;
use crate::{Browser, secs};

const PAGE: &str = r#"<!doctype html><title>players</title>
<script src="hls.js"></script>
<script type="module">
import { createFile } from './mp4box.js';

// An element of this kind that plays what is at `url`; trouble is told in `told`.
const open = (url, kind, told) => {
  const it = document.createElement(kind);
  it.muted = true;
  it.crossOrigin = 'anonymous';
  document.body.append(it);
  it.addEventListener('error', () => told.trouble.push(it.error.message));
  if (url.endsWith('.m3u8')) {
    const hls = new Hls();
    // A busy machine stalls; and until its first B-frame has been put in order, there is sound alone to begin with.
    const calm = ['bufferStalledError', 'bufferNudgeOnStall'];
    const begins = ({ details }) => details === 'bufferSeekOverHole' && it.currentTime <= 0.1;
    const trouble = (data) => told.trouble.push(`${data.details}: ${data.error?.message}`);
    hls.on(Hls.Events.ERROR, (_, data) => calm.includes(data.details) || begins(data) || trouble(data));
    hls.loadSource(url);
    hls.attachMedia(it);
  } else {
    it.src = url;
  }
  return it;
};

// Goes through steps, each of which is waited for, for at most a minute.
const walk = async (it, told, steps) => {
  const until = async (step, is) => {
    told.step = step;
    while (!is()) await new Promise((done) => setTimeout(done, 20));
  };
  const failed = steps(until).catch((error) => told.trouble.push(String(error)));
  await Promise.race([failed, new Promise((done) => setTimeout(done, 60000))]);
  it.remove();
  return told;
};

// Plays the beginning, seeks to the middle, then plays the last second to the end.
window.play = (url, kind) => {
  const told = { trouble: [], step: 'load' };
  const it = open(url, kind, told);
  return walk(it, told, async (until) => {
    await until('metadata', () => it.readyState > 0 && isFinite(it.duration));
    told.duration = it.duration;
    await it.play();
    await until('begin', () => it.currentTime > 0.5);
    it.pause();
    it.currentTime = it.duration / 2;
    await until('seek', () => !it.seeking && it.readyState > 1);
    told.sought = it.currentTime;
    it.currentTime = it.duration - 1;
    await until('seek to the end', () => !it.seeking && it.readyState > 1);
    await it.play();
    await until('end', () => it.ended);
    told.end = it.currentTime;
    told.width = it.videoWidth ?? 0;
    told.step = 'done';
  });
};

// Plays all of it, and tells how wide its pictures were and how many there were.
window.watch = (url) => {
  const told = { trouble: [], step: 'load', widths: [] };
  const it = open(url, 'video', told);
  it.addEventListener('resize', () => told.widths.push(it.videoWidth));
  return walk(it, told, async (until) => {
    await it.play();
    await until('end', () => it.ended);
    told.end = it.currentTime;
    told.pictures = it.getVideoPlaybackQuality().totalVideoFrames;
    told.step = 'done';
  });
};

// What mp4box finds in an MP4, and that it finds each sample's bytes.
window.parse = async (url) => {
  const bytes = await (await fetch(url)).arrayBuffer();
  bytes.fileStart = 0;
  const file = createFile();
  const told = { trouble: [], tracks: [] };
  file.onError = (module, message) => told.trouble.push(`${module}: ${message}`);
  file.onReady = (info) => {
    told.fragmented = info.isFragmented;
    told.duration = info.duration / info.timescale;
    told.tracks = info.tracks.map(({ id, codec, nb_samples }) => ({ id, codec, samples: nb_samples, whole: 0 }));
  };
  file.appendBuffer(bytes);
  file.flush();
  for (const track of told.tracks) {
    const samples = file.getTrackSamplesInfo(track.id);
    track.whole = samples.filter(({ offset, size }) => size > 0 && offset + size <= bytes.byteLength).length;
  }
  told.boxes = file.boxes.map((box) => box.type);
  return told;
};
window.ready = true;
</script>
<body></body>"#;

/// The page's server.
pub struct Players {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Players {
    /// Starts it.
    pub fn start() -> Players {
        let players = Players { port: crate::port(), stop: Arc::default() };
        let listener = TcpListener::bind(("127.0.0.1", players.port)).expect("our own port");
        let stop = players.stop.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().take_while(|_| !stop.load(Relaxed)).flatten() {
                std::thread::spawn(move || answer(socket));
            }
        });
        players
    }

    /// The page, opened.
    #[track_caller]
    pub fn open<'a>(&self, browser: &'a Browser) -> Page<'a> {
        let page = browser.open(&format!("http://127.0.0.1:{}/", self.port), "");
        page.wait("window.ready && window.Hls", secs(30));
        page
    }
}

impl Drop for Players {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(mut socket: TcpStream) {
    let _ = socket.set_read_timeout(Some(secs(5)));
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 1 << 14 {
        let mut byte = [0];
        if !socket.read(&mut byte).is_ok_and(|read| read == 1) {
            return;
        }
        head.push(byte[0]);
    }
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/players/node_modules");
    let (kind, body) = match String::from_utf8_lossy(&head).split(' ').nth(1) {
        Some("/") => ("text/html", Ok(PAGE.into())),
        Some("/hls.js") => ("text/javascript", std::fs::read(modules.join("hls.js/dist/hls.min.js"))),
        Some("/mp4box.js") => ("text/javascript", std::fs::read(modules.join("mp4box/dist/mp4box.all.js"))),
        _ => ("text/plain", Err(std::io::ErrorKind::NotFound.into())),
    };
    let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    let _ =
        socket.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).and_then(|()| socket.write_all(&body));
}

/// Plays what is at `url` in an element of this `kind`, `video` or `audio`, and gives its duration in seconds. Panics if it does not
/// play from the beginning, after a seek, and to its end.
#[track_caller]
pub fn play(page: &Page<'_>, url: &str, kind: &str) -> f64 {
    let told = page.eval(&format!("play({}, '{kind}')", json!(url)));
    let number = |name: &str| told[name].as_f64().unwrap_or(-1.0);
    let (duration, sought, end) = (number("duration"), number("sought"), number("end"));
    assert!(told["trouble"] == json!([]) && told["step"] == "done", "{url}: {told}");
    assert!((sought - duration / 2.0).abs() < 0.1 && (end - duration).abs() < 0.3, "{url}: {told}");
    assert_eq!(number("width") > 0.0, kind == "video", "{url}: {told}");
    duration
}

/// What came out of a player.
#[derive(Debug)]
pub struct Seen {
    /// How wide its pictures were, one after the other.
    pub widths: Vec<u64>,
    /// How many there were.
    pub pictures: u64,
    /// Where it ended, in seconds.
    pub end: f64,
}

/// Plays all of the pictures at `url` without a seek. Panics if they do not play to their end.
#[track_caller]
pub fn watch(page: &Page<'_>, url: &str) -> Seen {
    let told = page.eval(&format!("watch({})", json!(url)));
    assert!(told["trouble"] == json!([]) && told["step"] == "done", "{url}: {told}");
    let widths = told["widths"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let (pictures, end) = (told["pictures"].as_u64(), told["end"].as_f64());
    Seen { widths, pictures: pictures.expect("a number"), end: end.expect("seconds") }
}

/// What mp4box finds in the MP4 at `url`: `fragmented`, `duration` in seconds, `boxes`, `tracks` with `codec`, `samples`, and how many of
/// them are `whole`. Panics if it complains.
#[track_caller]
pub fn parse(page: &Page<'_>, url: &str) -> Value {
    let told = page.eval(&format!("parse({})", json!(url)));
    assert!(told["trouble"] == json!([]) && told["tracks"] != json!([]), "{url}: {told}");
    told
}
