//! Streams to record: the demonstration's, and small ones that FFmpeg makes.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use bywash_media::codec::{self, nal, opus};
use bywash_media::mux::flv::{Demuxer, Item, Reader, TagKind};
use bywash_media::{Codec, Frame, Kind, Time, Tracks};

/// A stream: its tracks, and its frames as they arrive.
pub struct Stream {
    pub tracks: Tracks,
    pub frames: Vec<Frame>,
    /// The file it was read from, if that can be compared with.
    pub file: Option<PathBuf>,
}

/// The demonstration's stream: 10.24 s of H.264 and AAC without B-frames.
pub fn demo() -> Stream {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/src/demo/source.flv");
    of_flv(path.into())
}

/// H.264 and AAC of which only the times count: in milliseconds, those of the pictures, all key frames, and of the packets.
pub fn timed(pictures: impl IntoIterator<Item = i64>, sound: impl IntoIterator<Item = i64>) -> Stream {
    let frame = |track, ms, payload| Frame {
        track,
        dts: Time::from_millis(ms),
        cts: Time::ZERO,
        key: true,
        payload: Bytes::from_static(payload),
    };
    let pictures = pictures.into_iter().map(|ms| frame(Kind::Video, ms, b"\0\0\0\x02\x65\x88"));
    let sound = sound.into_iter().map(|ms| frame(Kind::Audio, ms, b"\x21\x10\x04\x60\x8c\x1c"));
    let mut frames: Vec<Frame> = pictures.chain(sound).collect();
    frames.sort_by_key(|frame| frame.dts);
    Stream { tracks: demo().tracks, frames, file: None }
}

/// Times of AAC packets at 48 kHz, in milliseconds.
pub fn packets(from: i64, to: i64) -> impl Iterator<Item = i64> {
    (0..).map(|n| n * 1024 / 48).skip_while(move |&ms| ms < from).take_while(move |&ms| ms < to)
}

const PICTURES: &[&str] = &["-f", "lavfi", "-i", "testsrc2=size=192x108:rate=25:duration=3"];
const SOUND: &[&str] = &["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=3"];
const X264: &[&str] = &["-c:v", "libx264", "-preset", "veryfast", "-g", "25"];

/// H.264 with B-frames and AAC.
pub fn b_frames() -> Stream {
    let how = [PICTURES, SOUND, X264, &["-bf", "3", "-c:a", "aac", "-f", "flv"]].concat();
    of_flv(made("b_frames.flv", &how))
}

/// That, or without FFmpeg the demonstration's.
pub fn b_frames_or_demo() -> Stream {
    if crate::ffmpeg() { b_frames() } else { demo() }
}

/// H.264 alone.
pub fn pictures() -> Stream {
    of_flv(made("pictures.flv", &[PICTURES, X264, &["-bf", "2", "-f", "flv"]].concat()))
}

/// AAC alone.
pub fn sound() -> Stream {
    of_flv(made("sound.flv", &[SOUND, &["-c:a", "aac", "-f", "flv"]].concat()))
}

/// H.264 and MP3.
pub fn mp3() -> Stream {
    let how =
        [PICTURES, SOUND, X264, &["-c:a", "libmp3lame", "-ar", "44100", "-write_xing", "0", "-f", "flv"]].concat();
    of_flv(made("mp3.flv", &how))
}

/// MP3 whose bit rate varies: quiet, and then noise.
pub fn varying_mp3() -> Stream {
    let sound = ["-f", "lavfi", "-i", "anoisesrc=d=12:r=44100:seed=1,volume='if(lt(t,6),0.001,0.5)':eval=frame"];
    let how = [&sound[..], &["-c:a", "libmp3lame", "-q:a", "4", "-write_xing", "0", "-f", "flv"]].concat();
    of_flv(made("varying_mp3.flv", &how))
}

/// H.265, and Opus that is silent.
pub fn hevc() -> Stream {
    let x265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:bframes=0:keyint=25"];
    let file = made("hevc.mp4", &[PICTURES, &x265, &["-tag:v", "hvc1", "-f", "mp4"]].concat());
    let stream = made("hevc.h265", &[&["-i", file.to_str().unwrap()], &["-c", "copy", "-f", "hevc"][..]].concat());
    let units = std::fs::read(stream).unwrap();
    let mut pictures: Vec<Vec<u8>> = Vec::new();
    for unit in nal::nals(&nal::from_annex_b(&units), 4).filter(|unit| codec::h265::is_slice(unit)) {
        let first_of_picture = unit[2] & 0x80 != 0;
        if first_of_picture {
            pictures.push(Vec::new());
        }
        let picture = pictures.last_mut().unwrap();
        picture.extend((unit.len() as u32).to_be_bytes());
        picture.extend(unit);
    }
    with_opus(Codec::H265, &file, b"hvcC", pictures)
}

/// H.265 alone, whose groups are open: pictures that are shown before a key frame are coded from those before it.
pub fn open_groups() -> Stream {
    let x265 = "log-level=none:keyint=50:bframes=4:open-gop=1";
    let pictures =
        ["-f", "lavfi", "-i", "testsrc2=size=192x108:rate=25:duration=9", "-c:v", "libx265", "-preset", "ultrafast"];
    let file =
        made("open_groups.mp4", &[&pictures[..], &["-x265-params", x265, "-tag:v", "hvc1", "-f", "mp4"]].concat());
    let told = crate::run("ffprobe", &[], &file, &["-show_entries", "packet=pts,dts,size,pos,flags", "-of", "csv=p=0"]);
    let bytes = std::fs::read(&file).unwrap();
    let timescale = 12_800;
    let frame = |line: &str| {
        let number = |nth: usize| line.split(',').nth(nth).unwrap().parse::<i64>().unwrap();
        let (pts, dts, size, at) = (number(0), number(1), number(2) as usize, number(3) as usize);
        Frame {
            track: Kind::Video,
            dts: Time::from_ticks(dts, timescale),
            cts: Time::from_ticks(pts - dts, timescale),
            key: line.contains('K'),
            payload: Bytes::copy_from_slice(&bytes[at..at + size]),
        }
    };
    let frames = told.lines().map(frame).collect();
    let mut tracks = Tracks::default();
    tracks.set(codec::track(Codec::H265, record_in(&bytes, b"hvcC")).unwrap());
    Stream { tracks, frames, file: Some(file) }
}

/// AV1, and Opus that is silent.
pub fn av1() -> Stream {
    let svt = ["-c:v", "libsvtav1", "-preset", "12", "-g", "25", "-svtav1-params", "pred-struct=1"];
    let file = made("av1.mp4", &[PICTURES, &svt, &["-f", "mp4"]].concat());
    let ivf = made("av1.ivf", &[&["-i", file.to_str().unwrap()], &["-c", "copy", "-f", "ivf"][..]].concat());
    let ivf = std::fs::read(ivf).unwrap();
    let (mut rest, mut pictures) = (&ivf[32..], Vec::new());
    while let Some(len) = rest.first_chunk() {
        let (unit, after) = rest[12..].split_at(u32::from_le_bytes(*len) as usize);
        pictures.push(unit[codec::av1::delimiter_len(unit)..].to_vec());
        rest = after;
    }
    with_opus(Codec::Av1, &file, b"av1C", pictures)
}

/// Pictures at 25 a second with the record that an MP4 file has, and packets of silence between them.
fn with_opus(codec: Codec, file: &PathBuf, record: &[u8; 4], pictures: Vec<Vec<u8>>) -> Stream {
    const SILENCE: &[u8] = &[0xf8, 0xff, 0xfe];
    let mut tracks = Tracks::default();
    tracks.set(codec::track(codec, record_in(&std::fs::read(file).unwrap(), record)).unwrap());
    let head = opus::Head { channels: 1, pre_skip: 312, source_rate: 48_000, gain: 0 };
    tracks.set(codec::track(Codec::Opus, head.build()).unwrap());
    let mut frames = Vec::new();
    for (payload, n) in pictures.into_iter().zip(0..) {
        let payload = Bytes::from(payload);
        let key = codec::is_key(codec, &payload);
        frames.push(Frame { track: Kind::Video, dts: Time::from_millis(40 * n), cts: Time::ZERO, key, payload });
        for dts in [40 * n, 40 * n + 20].map(Time::from_millis) {
            let payload = Bytes::from_static(SILENCE);
            frames.push(Frame { track: Kind::Audio, dts, cts: Time::ZERO, key: true, payload });
        }
    }
    Stream { tracks, frames, file: Some(file.clone()) }
}

/// The body of the first box of this kind in an MP4 file.
fn record_in(bytes: &[u8], kind: &[u8; 4]) -> Bytes {
    let at = bytes.windows(4).position(|it| it == kind).unwrap();
    let size = u32::from_be_bytes(*bytes[at - 4..].first_chunk().unwrap()) as usize;
    Bytes::copy_from_slice(&bytes[at + 4..at - 4 + size])
}

/// Has FFmpeg make a file, once.
fn made(name: &str, how: &[&str]) -> PathBuf {
    let path = crate::path(name);
    if !path.exists() {
        // Under another name until it is whole: tests run side by side.
        let part = crate::path(&format!("{name}.{:?}", std::thread::current().id()));
        let output = Command::new("ffmpeg").args(["-v", "error", "-y"]).args(how).arg(&part).output().unwrap();
        assert!(output.status.success(), "{how:?}: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(part, &path).unwrap();
    }
    path
}

fn of_flv(file: PathBuf) -> Stream {
    let bytes = std::fs::read(&file).unwrap();
    let mut reader = Reader::new();
    let (mut tracks, mut frames) = (Tracks::default(), Vec::new());
    for tag in Demuxer::new(bytes.into()).unwrap() {
        let tag = tag.unwrap();
        let mut items = Vec::new();
        match tag.kind {
            TagKind::Video => reader.video(&tag.body, &mut items).unwrap(),
            TagKind::Audio => reader.audio(&tag.body, &mut items).unwrap(),
            TagKind::Script => {}
        }
        for item in items {
            match item {
                Item::Track(track) => assert!(tracks.set(track)),
                Item::Frame(raw) => {
                    let dts = Time::from_millis(tag.timestamp.into());
                    let (track, cts, key, payload) = (raw.track, raw.cts, raw.key, raw.payload);
                    frames.push(Frame { track, dts, cts, key, payload });
                }
                Item::Ended(_) => {}
            }
        }
    }
    Stream { tracks, frames, file: Some(file) }
}

impl Stream {
    /// The same, as if it had begun at another time; and one kind of it later still.
    pub fn moved(mut self, by: Time, kind: Kind, further: Time) -> Stream {
        for frame in &mut self.frames {
            frame.dts = frame.dts + by + if frame.track == kind { further } else { Time::ZERO };
        }
        self.frames.sort_by_key(|frame| frame.dts);
        self.file = None;
        self
    }

    /// The times at which the frames of one kind are shown, in seconds from the stream's first.
    pub fn shown(&self, kind: Kind) -> Vec<f64> {
        let time = |frame: &Frame| (frame.dts + frame.cts).as_nanos() as f64 / 1e9;
        let base = self.frames.iter().map(time).min_by(f64::total_cmp).unwrap();
        let mut times: Vec<f64> =
            self.frames.iter().filter(|frame| frame.track == kind).map(|frame| time(frame) - base).collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The kinds that the stream has.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let tracks = self.tracks.clone();
        [Kind::Video, Kind::Audio].into_iter().filter(move |&kind| tracks.get(kind).is_some())
    }

    /// Whether one of its tracks is of this codec.
    pub fn has(&self, codec: Codec) -> bool {
        [&self.tracks.video, &self.tracks.audio].into_iter().flatten().any(|track: &Arc<_>| track.codec == codec)
    }
}
