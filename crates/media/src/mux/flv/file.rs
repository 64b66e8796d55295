//! FLV files with an index, so that players can seek them over HTTP.
//!
//! The file begins with `onMetaData`, whose length does not depend on the index: what the index does not take, an array
//! of zeros does. [`finish`] writes the tag anew and moves nothing.
//!
//! Invariant: finishing and repairing are one function that believes the tags and nothing else.

use std::io;

use bytes::Bytes;

use super::{TAG_HEAD, TagKind, file_head, frame_head, tag_head, tag_tail, track_body};
use crate::mux::{Clock, Finish, Parts, Source, Write};
use crate::{Codec, Format, Frame, Kind, Time, Tracks};

/// Key frames in the index; of fewer there is none, for readers take none with one entry; of more, every second, fourth and so on is listed. Enough for 2 h with one every 2 s.
const KEYS_MAX: usize = 3600;
/// What stands before the metadata.
const FILE_HEAD: usize = 13;

/// Writes a file from its first byte on. Tracks are those it began with.
#[derive(Debug)]
pub struct Writer {
    tracks: Tracks,
    base: Option<Time>,
}

impl Writer {
    /// Begins a file: head, metadata with nothing in the index, and sequence headers.
    pub fn new(tracks: &Tracks, out: &mut Parts) -> Writer {
        out.copy(&file_head(tracks.video.is_some(), tracks.audio.is_some()));
        out.copy(&metadata(&about(tracks), &Index::default(), 0));
        for track in [&tracks.video, &tracks.audio].into_iter().flatten() {
            let kind = tag_kind(track.codec.kind());
            track_body(track).iter().for_each(|body| tag(out, kind, 0, &[], body));
        }
        Writer { tracks: tracks.clone(), base: None }
    }

    /// Appends a frame. Times in the file count from the first frame's. A frame of a track that the file did not begin
    /// with is passed over, and one of 16 MiB, for which FLV has no number.
    pub fn push(&mut self, frame: &Frame, out: &mut Parts) {
        let Some(track) = self.tracks.get(frame.track) else { return };
        if frame.payload.len() + 8 >= 1 << 24 {
            return;
        }
        let base = *self.base.get_or_insert(frame.dts);
        let timestamp = (frame.dts - base).as_millis().max(0) as u32;
        let head = frame_head(track.codec, frame);
        tag(out, tag_kind(frame.track), timestamp, &head, &frame.payload);
    }
}

const fn tag_kind(kind: Kind) -> TagKind {
    match kind {
        Kind::Video => TagKind::Video,
        Kind::Audio => TagKind::Audio,
    }
}

fn tag(out: &mut Parts, kind: TagKind, timestamp: u32, head: &[u8], payload: &Bytes) {
    let len = head.len() + payload.len();
    out.copy(&tag_head(kind, timestamp, len));
    out.copy(head);
    out.share(payload);
    out.copy(&tag_tail(len));
}

/// What makes a file whole: the cut behind its last whole tag, and the index. `None` if there is no media in it.
pub fn finish<S: Source + ?Sized>(file: &S) -> io::Result<Option<Finish>> {
    let Some(found) = first_tag(file)? else { return Ok(None) };
    let Some(about) = told(&found) else { return Ok(None) };
    let size = file.size();
    let mut index = Index::default();
    let mut at = (FILE_HEAD + found.len()) as u64;
    // A tag's head and the first bytes of its body.
    let mut head = [0; TAG_HEAD + 2];
    while at + (head.len() as u64) + 4 <= size {
        file.read_at(at, &mut head)?;
        let [kind, l0, l1, l2, t0, t1, t2, t3, _, _, _, first, second] = head;
        let len = u32::from_be_bytes([0, l0, l1, l2]);
        let end = at + TAG_HEAD as u64 + u64::from(len) + 4;
        if !matches!(kind, 8 | 9 | 18) || end > size {
            break;
        }
        let mut tail = [0; 4];
        file.read_at(end - 4, &mut tail)?;
        if tail != tag_tail(len as usize) {
            break;
        }
        let timestamp = u32::from_be_bytes([t3, t0, t1, t2]);
        // An enhanced tag tells its packet type in the first byte, a legacy one in the second; 0 is a sequence header.
        let enhanced = first & 0x80 != 0;
        let packet = if enhanced { first & 15 } else { second };
        let time = Time::from_millis(timestamp.into());
        match kind {
            9 if packet != 0 => {
                index.clocks[Kind::Video as usize].tick(time);
                if first >> 4 & 7 == 1 {
                    index.key(at, timestamp);
                }
            }
            // The sequence header of AAC, or of what is told by the enhanced form.
            8 if first >> 4 == 10 && second == 0 || first == 0x90 => {}
            8 => index.clocks[Kind::Audio as usize].tick(time),
            _ => {}
        }
        at = end;
    }
    let Some(duration) = index.duration() else { return Ok(None) };
    let metadata = metadata(about, &index, at);
    if metadata.len() != found.len() {
        return Ok(None);
    }
    let mut writes = Vec::new();
    if at < size {
        writes.push(Write::Truncate(at));
    }
    if metadata != found {
        writes.extend([Write::At(FILE_HEAD as u64, vec![metadata.into()]), Write::Sync]);
    }
    Ok(Some(Finish { writes, len: at, duration }))
}

/// Gives `take` the bodies of the file's picture and sound tags: kind, timestamp in milliseconds, where the body is, the body.
pub(in crate::mux) fn bodies<S: Source + ?Sized, E: From<io::Error>>(
    file: &S,
    mut take: impl FnMut(Kind, u32, u64, Bytes) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = FILE_HEAD as u64;
    let mut head = [0; TAG_HEAD];
    while at + (TAG_HEAD as u64) + 4 <= file.size() {
        file.read_at(at, &mut head)?;
        let [kind, l0, l1, l2, t0, t1, t2, t3, ..] = head;
        let len = u32::from_be_bytes([0, l0, l1, l2]);
        let (begin, end) = (at + TAG_HEAD as u64, at + TAG_HEAD as u64 + u64::from(len));
        if end + 4 > file.size() {
            break;
        }
        let kind = match kind {
            8 => Some(Kind::Audio),
            9 => Some(Kind::Video),
            _ => None,
        };
        if let Some(kind) = kind {
            let mut body = vec![0; len as usize];
            file.read_at(begin, &mut body)?;
            take(kind, u32::from_be_bytes([t3, t0, t1, t2]), begin, body.into())?;
        }
        at = end + 4;
    }
    Ok(())
}

/// Where the key frames are and when, in milliseconds; and how long it all is.
#[derive(Debug, Default)]
struct Index {
    keys: Vec<(u64, u32)>,
    /// Only every `stride`th key frame is listed.
    stride: usize,
    skipped: usize,
    /// By [`Kind`].
    clocks: [Clock; 2],
}

impl Index {
    fn key(&mut self, at: u64, timestamp: u32) {
        if self.skipped > 0 {
            self.skipped -= 1;
            return;
        }
        if self.keys.len() == KEYS_MAX {
            let mut nth = 0..;
            self.keys.retain(|_| nth.next().is_some_and(|nth: usize| nth.is_multiple_of(2)));
            self.stride = self.stride.max(1) * 2;
        }
        self.keys.push((at, timestamp));
        self.skipped = self.stride.saturating_sub(1);
    }

    /// `None` without a frame.
    fn duration(&self) -> Option<Time> {
        Clock::end(&self.clocks)
    }
}

/// The first tag of a file, whole; `None` if there is none that could be metadata.
fn first_tag<S: Source + ?Sized>(file: &S) -> io::Result<Option<Vec<u8>>> {
    const LONGEST: usize = 1 << 20;
    let mut head = [0; FILE_HEAD + TAG_HEAD];
    if file.size() < head.len() as u64 {
        return Ok(None);
    }
    file.read_at(0, &mut head)?;
    let &[kind, l0, l1, l2, ..] = &head[FILE_HEAD..] else { return Ok(None) };
    let len = TAG_HEAD + u32::from_be_bytes([0, l0, l1, l2]) as usize + 4;
    let fits = len <= LONGEST && (FILE_HEAD + len) as u64 <= file.size();
    if !head.starts_with(b"FLV") || kind != TagKind::Script.number() || !fits {
        return Ok(None);
    }
    let mut tag = vec![0; len];
    file.read_at(FILE_HEAD as u64, &mut tag)?;
    Ok(Some(tag))
}

/// What the metadata of a [`Writer`] tells of the tracks: all behind the numbers and before the index.
fn told(tag: &[u8]) -> Option<&[u8]> {
    let body = tag.get(TAG_HEAD..)?.strip_prefix(ON_META_DATA)?.get(NUMBERS..)?;
    let end = [INDEX, RESERVE].iter().filter_map(|mark| body.windows(mark.len()).position(|it| it == *mark)).min();
    Some(&body[..end?])
}

/// The name, and an array that does not say how many values it has: readers go by its end.
const ON_META_DATA: &[u8] = b"\x02\0\x0aonMetaData\x08\0\0\0\0";
const INDEX: &[u8] = b"\0\x09keyframes\x03";
/// What stands there as long as there is no index: zeros, as many as make the tag as long.
const RESERVE: &[u8] = b"\0\x08reserved\x0a";
const KEYS_MIN: usize = 2;
const OBJECT_END: [u8; 3] = [0, 0, 9];
/// How long the numbers before what is told of the tracks are.
const NUMBERS: usize = (2 + 8 + 9) + (2 + 8 + 9) + (2 + 13 + 9) + (2 + 12 + 2) + (2 + 12 + 2);

/// The tag `onMetaData`, as long for each index.
fn metadata(about: &[u8], index: &Index, filesize: u64) -> Vec<u8> {
    let mut body = ON_META_DATA.to_vec();
    number(&mut body, "duration", seconds(index.duration()));
    number(&mut body, "filesize", filesize as f64);
    number(&mut body, "lasttimestamp", seconds(index.clocks.iter().filter_map(Clock::last).max()));
    truth(&mut body, "canSeekToEnd", true);
    let indexed = index.keys.len() >= KEYS_MIN;
    truth(&mut body, "hasKeyframes", indexed);
    body.extend(about);
    // The rest is not a tag of its own, which FFmpeg takes for a stream, nor a long string, of which it complains.
    if indexed {
        body.extend(INDEX);
        array(&mut body, "filepositions", index.keys.iter().map(|&(at, _)| at as f64));
        array(&mut body, "times", index.keys.iter().map(|&(_, time)| f64::from(time) / 1000.0));
        body.extend(OBJECT_END);
        array(&mut body, "spacer", (0..2 * (KEYS_MAX - index.keys.len())).map(|_| 0.0));
    } else {
        // Names and ends of the index are five numbers and two bytes long.
        array(&mut body, "reserved", (0..2 * KEYS_MAX + 5).map(|_| 0.0));
    }
    body.extend(OBJECT_END);
    [&tag_head(TagKind::Script, 0, body.len())[..], &body, &tag_tail(body.len())].concat()
}

fn seconds(time: Option<Time>) -> f64 {
    time.unwrap_or_default().as_millis() as f64 / 1000.0
}

/// What the metadata tells of the tracks.
fn about(tracks: &Tracks) -> Vec<u8> {
    let mut out = Vec::new();
    for track in [&tracks.video, &tracks.audio].into_iter().flatten() {
        let fourcc = |name: &[u8; 4]| f64::from(u32::from_be_bytes(*name));
        let codec = match track.codec {
            Codec::H264 => 7.0,
            Codec::H265 => fourcc(b"hvc1"),
            Codec::Av1 => fourcc(b"av01"),
            Codec::Aac => 10.0,
            Codec::Mp3 => 2.0,
            Codec::Opus => fourcc(b"Opus"),
        };
        match track.format {
            Format::Video { width, height } => {
                number(&mut out, "width", width.into());
                number(&mut out, "height", height.into());
                number(&mut out, "videocodecid", codec);
            }
            Format::Audio { sample_rate, channels } => {
                number(&mut out, "audiosamplerate", sample_rate.into());
                number(&mut out, "audiosamplesize", 16.0);
                truth(&mut out, "stereo", channels > 1);
                number(&mut out, "audiocodecid", codec);
            }
        }
    }
    out
}

fn name(out: &mut Vec<u8>, name: &str) {
    out.extend((name.len() as u16).to_be_bytes());
    out.extend(name.as_bytes());
}

fn number(out: &mut Vec<u8>, key: &str, value: f64) {
    name(out, key);
    out.push(0);
    out.extend(value.to_be_bytes());
}

fn truth(out: &mut Vec<u8>, key: &str, value: bool) {
    name(out, key);
    out.extend([1, value.into()]);
}

fn array(out: &mut Vec<u8>, key: &str, values: impl ExactSizeIterator<Item = f64>) {
    name(out, key);
    out.push(10);
    out.extend((values.len() as u32).to_be_bytes());
    for value in values {
        out.push(0);
        out.extend(value.to_be_bytes());
    }
}
