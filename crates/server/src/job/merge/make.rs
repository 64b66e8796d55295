//! One merge, on a thread of its own: reads pieces, writes the result, and waits for the disk as it must.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use bywash_media::codec::h265::break_link;
use bywash_media::mux::merge::{self, Index, Piece, Unread};
use bywash_media::mux::{fmp4, ts};
use bywash_media::playlist::{Playlist, Segment};
use bywash_media::{Codec, Frame, Kind, Time, Track, Tracks, Transcoder, transcode};
use tracing::warn;

use super::Failure;
use crate::config::Format;
use crate::segment::{Change, Folder, Whole, Writer};
use crate::space::Room;
use crate::store::{Merge, Part};

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// How often it is looked how much room the disk has left.
const LOOK: Duration = Duration::from_millis(10);

/// How long a segment becomes before the next begins with a key frame.
const SEGMENT: Time = Time::from_millis(6000);

/// Bits a second of sound that becomes MP3.
const BIT_RATE: u32 = 128_000;

/// A merge.
pub struct Merging {
    pub request: Merge,
    /// About how many bytes the result will have.
    pub bytes: u64,
    /// By FileId.
    pub sources: BTreeMap<String, Source>,
    pub folder: Folder,
    /// What of the disk is not for merges.
    pub room: Room,
    /// When it was last looked at.
    pub looked: Cell<Option<Instant>>,
    /// A folder of its own for what is needed on the way.
    pub scratch: PathBuf,
    /// The key of the result.
    pub key: String,
    /// How much is done.
    pub percent: Arc<AtomicI64>,
    /// Whether to give up.
    pub cancelled: Arc<AtomicBool>,
}

/// A file that is here.
pub struct Source {
    /// Of HLS the playlist.
    pub path: PathBuf,
    pub format: Format,
    /// When it was recorded, Unix milliseconds.
    pub begin_ms: i64,
}

/// A source as it is read.
struct Input {
    source: Chain,
    index: Index,
}

impl Merging {
    /// Writes the result; says how large and how long it is, and what is in it. If it fails nothing is left of it, nor of an attempt
    /// before this one.
    pub fn run(self) -> Result<(Whole, Tracks), Failure> {
        let remove = || self.folder.remove(&self.key, self.request.format);
        remove()?;
        let made = self.write();
        if made.is_err()
            && let Err(error) = remove()
        {
            warn!(key = self.key, %error, "what a failed merge has written stays until the next attempt");
        }
        made
    }

    fn write(&self) -> Result<(Whole, Tracks), Failure> {
        let mut writer = self.folder.create(&self.key, self.request.format)?;
        self.room.holds(self.folder.root(), self.bytes)?;
        let tracks = match self.request.format {
            Format::Mp4 => self.mp4(&mut writer)?,
            Format::M3u8 => self.m3u8(&mut writer)?,
            Format::Mp3 => self.mp3(&mut writer)?,
            Format::Flv | Format::Aac => return unfit("a merge makes MP4, M3U8 or MP3"),
        };
        drop(writer);
        let whole = self.folder.finish(&self.key, self.request.format)?;
        Ok((whole.ok_or_else(|| Failure::Unfit("there is nothing in the pieces".into()))?, tracks))
    }

    fn mp4(&self, writer: &mut Writer) -> Result<Tracks, Failure> {
        let inputs = self.inputs()?;
        let pieces: Vec<_> = self.request.parts.iter().map(|part| piece(part, &inputs[&part.file].index)).collect();
        let plan = merge::mp4(&pieces)?;
        let total: u64 = plan.copies.iter().map(|it| it.bytes.end - it.bytes.start).sum();
        let mut done = 0;
        writer.apply(Change::Append(vec![plan.head.into()]))?;
        for copy in &plan.copies {
            let source = &inputs[&self.request.parts[copy.piece].file].source;
            let mut at = copy.bytes.start;
            let chunk = if copy.breaks { u64::MAX } else { CHUNK };
            while at < copy.bytes.end {
                let mut bytes = source.read(at, chunk.min(copy.bytes.end - at))?;
                (at, done) = (at + bytes.len() as u64, done + bytes.len() as u64);
                if copy.breaks {
                    bytes = broken(bytes);
                }
                writer.apply(Change::Append(vec![bytes]))?;
                self.tell(done, total)?;
            }
        }
        writer.apply(Change::Append(vec![plan.tail.into()]))?;
        Ok(pieces[0].index.tracks())
    }

    fn mp3(&self, writer: &mut Writer) -> Result<Tracks, Failure> {
        let inputs = self.inputs()?;
        let mut coder: Option<Transcoder> = None;
        let mut told: Option<Tracks> = None;
        let (mut line, mut coded) = (Time::ZERO, Vec::new());
        for (n, part) in self.request.parts.iter().enumerate() {
            let input = &inputs[&part.file];
            let Some(index) = input.index.sound() else { return unfit(format!("input {} has no sound", n + 1)) };
            let tracks = index.tracks();
            let track = tracks.audio.clone().expect("this index has nothing but sound");
            let one = told.get_or_insert_with(|| tracks.clone()).audio.clone().unwrap_or(track.clone());
            let plain = track.codec == Codec::Mp3;
            if plain != (one.codec == Codec::Mp3) || plain && one != track {
                let (it, one) = (merge::about(&track), merge::about(&one));
                return unfit(format!(
                    "input {} has {it}, input 1 has {one}: MP3 is joined as it is, and with nothing else",
                    n + 1
                ));
            }
            if !plain {
                let encoder = || transcode::encoder(Codec::Mp3, BIT_RATE);
                let made = match coder.take() {
                    Some(coder) => Ok(coder),
                    None => encoder().map(Transcoder::new),
                };
                let mut made = made.map_err(|error| Failure::Unfit(error.to_string()))?;
                made.set_source(Some(&track)).map_err(|error| Failure::Unfit(format!("input {}: {error}", n + 1)))?;
                coder = Some(made);
            }
            let (frames, duration) = merge::frames(&piece(part, &index))?;
            let count = frames.len();
            for (nth, unread) in frames.into_iter().enumerate() {
                let frame = input.source.frame(unread, line)?;
                match &mut coder {
                    Some(coder) => coder.push(&frame, &mut coded),
                    None => coded.push(frame),
                }
                if coded.len() >= 100 {
                    flush(writer, &mut coded)?;
                }
                self.tell((n * count + nth) as u64, (self.request.parts.len() * count) as u64)?;
            }
            line = line + duration;
        }
        if let Some(coder) = &mut coder {
            coder.finish(&mut coded);
        }
        flush(writer, &mut coded)?;
        Ok(told.unwrap_or_default())
    }

    fn m3u8(&self, writer: &mut Writer) -> Result<Tracks, Failure> {
        let mut tracks = Tracks::default();
        let mut joint = Joint::default();
        let parts = self.request.parts.len();
        for (n, part) in self.request.parts.iter().enumerate() {
            let source = &self.sources[&part.file];
            let list = match source.format {
                Format::M3u8 => Some(Playlist::parse(&fs::read_to_string(&source.path)?)),
                _ => None,
            };
            if let Some(list) = list.filter(|list| !is_one_line(list)) {
                self.copy_segments(writer, n, &mut joint, list)?;
            } else {
                let input = Input::open(source, &self.scratch, self.room)?;
                tracks = input.index.tracks();
                self.cut_segments(writer, n, &mut joint, &input)?;
            }
            self.tell(n as u64 + 1, parts as u64)?;
        }
        Ok(tracks)
    }

    /// Takes over the segments of an HLS recording that a piece touches.
    fn copy_segments(&self, writer: &mut Writer, n: usize, joint: &mut Joint, list: Playlist) -> Result<(), Failure> {
        let part = &self.request.parts[n];
        let source = &self.sources[&part.file];
        let folder = source.path.parent().unwrap_or(Path::new(""));
        let (begin, end) = (Time::from_millis(part.begin_ms), part.end_ms.map(Time::from_millis));
        let (mut at, mut taken, mut maps) = (Time::ZERO, 0, Vec::new());
        for segment in list.segments {
            let (from, until) = (at, at + segment.duration);
            at = until;
            if until <= begin || end.is_some_and(|end| from >= end) {
                continue;
            }
            let mut init = None;
            let map = match &segment.map {
                Some(map) => {
                    let nth = maps.iter().position(|it| it == map).unwrap_or(maps.len());
                    let name = format!("{n}-{nth}.mp4");
                    if nth == maps.len() {
                        let bytes = Bytes::from(fs::read(folder.join(map))?);
                        init = Some(bytes.clone());
                        writer.apply(Change::Beside(name.clone(), bytes))?;
                        maps.push(map.clone());
                    }
                    Some(name)
                }
                None => None,
            };
            let uri = format!("{n}-{taken}.{}", if map.is_some() { "m4s" } else { "ts" });
            let discontinuity = segment.discontinuity || taken == 0;
            let mut bytes = fs::read(folder.join(&segment.uri))?;
            if taken == 0 {
                joint.begin(n, init.as_deref(), &mut bytes)?;
            }
            if map.is_none() {
                joint.counters.renumber(&mut bytes);
            }
            writer.apply(Change::Begin(Segment { uri, map, discontinuity, ..segment }))?;
            writer.apply(Change::Append(vec![bytes.into()]))?;
            writer.apply(Change::End(segment.duration))?;
            taken += 1;
            self.tell(0, 1)?;
        }
        if taken == 0 {
            return unfit(format!("input {} has nothing there", n + 1));
        }
        Ok(())
    }

    /// Makes segments of a piece of a file, whose times go on.
    fn cut_segments(&self, writer: &mut Writer, n: usize, joint: &mut Joint, input: &Input) -> Result<(), Failure> {
        let part = &self.request.parts[n];
        let source = &self.sources[&part.file];
        let tracks = input.index.tracks();
        let (frames, duration) = merge::frames(&piece(part, &input.index))?;
        let mut mux = match ts::Writer::going_on(&tracks, joint.counters) {
            Some(mux) => Mux::Ts(mux),
            None => Mux::Fragments(fmp4::Writer::going_on(&tracks)),
        };
        joint.takes(n, &tracks, matches!(mux, Mux::Fragments(_)))?;
        let map = match &mux {
            Mux::Ts(_) => None,
            Mux::Fragments(mux) => {
                let name = format!("{n}-0.mp4");
                writer.apply(Change::Beside(name.clone(), mux.init()))?;
                Some(name)
            }
        };
        // Pictures that are decoded before the first moment that is shown would have times before the last piece's end, or before zero.
        let lead = frames.iter().map(|it| it.frame.dts).min().unwrap_or_default().min(Time::ZERO);
        let from = joint.line - lead;
        let end = if map.is_some() { "m4s" } else { "ts" };
        let segment = |number: usize, at: Time| Segment {
            uri: format!("{n}-{number}.{end}"),
            duration: Time::ZERO,
            wall_ms: source.begin_ms + part.begin_ms + (at - from).as_millis(),
            discontinuity: number == 0,
            map: map.clone(),
        };
        let main = if tracks.video.is_some() { Kind::Video } else { Kind::Audio };
        let (mut begun, mut number) = (from, 0);
        let mut breaks = n > 0 && is_h265(&tracks);
        writer.apply(Change::Begin(segment(0, begun)))?;
        writer.apply(Change::Append(mux.start()))?;
        let total = frames.len() as u64;
        for (nth, unread) in frames.into_iter().enumerate() {
            let mut frame = input.source.frame(unread, from)?;
            if frame.track == Kind::Video && std::mem::take(&mut breaks) {
                frame.payload = broken(frame.payload);
            }
            let shown = frame.dts + frame.cts;
            if frame.track == main && frame.key && shown - begun >= SEGMENT {
                writer.apply(Change::Append(mux.cut(&frame)))?;
                writer.apply(Change::End(shown - begun))?;
                (begun, number) = (shown, number + 1);
                writer.apply(Change::Begin(segment(number, begun)))?;
                writer.apply(Change::Append(mux.start()))?;
                mux.after_cut(&frame, writer)?;
            } else {
                writer.apply(Change::Append(mux.push(&frame)))?;
            }
            let parts = self.request.parts.len() as u64;
            self.tell(n as u64 * total + nth as u64, parts * total)?;
        }
        writer.apply(Change::Append(mux.finish(joint)))?;
        joint.line = from + duration;
        writer.apply(Change::End(joint.line - begun))?;
        Ok(())
    }

    fn inputs(&self) -> Result<BTreeMap<&String, Input>, Failure> {
        self.sources.iter().map(|(id, source)| Ok((id, Input::open(source, &self.scratch, self.room)?))).collect()
    }

    /// Notes how far it is; an error if nobody waits for it any more, or if the disk has no room for more of it.
    fn tell(&self, done: u64, total: u64) -> Result<(), Failure> {
        // The last percent is that of the row.
        self.percent.fetch_max((done * 99 / total.max(1)) as i64, Relaxed);
        if self.cancelled.load(Relaxed) {
            return Err(io::Error::from(io::ErrorKind::Interrupted).into());
        }
        if self.looked.get().is_none_or(|at| at.elapsed() >= LOOK) {
            self.room.holds(self.folder.root(), 0)?;
            self.looked.set(Some(Instant::now()));
        }
        Ok(())
    }
}

fn unfit<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Unfit(why.into()))
}

fn piece<'a>(part: &Part, index: &'a Index) -> Piece<'a> {
    Piece { index, begin: Time::from_millis(part.begin_ms), end: part.end_ms.map(Time::from_millis) }
}

/// Whether this list is of fMP4 whose times rise from its beginning to its end. They are to go on in a merge: where they begin anew FFmpeg
/// drops the first pictures, though a discontinuity tells of it.
fn is_one_line(list: &Playlist) -> bool {
    let map = list.segments.first().and_then(|it| it.map.as_ref());
    map.is_some() && list.segments.iter().skip(1).all(|it| it.map.as_ref() == map && !it.discontinuity)
}

fn is_h265(tracks: &Tracks) -> bool {
    tracks.video.as_ref().is_some_and(|track| track.codec == Codec::H265)
}

/// The first picture of a piece in H.265 that is not the first piece.
fn broken(payload: Bytes) -> Bytes {
    let mut payload = BytesMut::from(payload);
    break_link(&mut payload);
    payload.freeze()
}

fn flush(writer: &mut Writer, frames: &mut Vec<Frame>) -> io::Result<()> {
    writer.apply(Change::Append(frames.drain(..).map(|frame| frame.payload).collect()))
}

/// What goes on from piece to piece of a playlist.
#[derive(Default)]
struct Joint {
    /// Where the next piece that is cut begins.
    line: Time,
    /// Of MPEG-TS.
    counters: ts::Counters,
    /// The tracks that it began with, and whether its segments are fMP4.
    first: Option<(Tracks, bool)>,
}

impl Joint {
    /// Whether a piece can go on behind the first one: players do not change decoders within a list.
    fn takes(&mut self, n: usize, tracks: &Tracks, fragments: bool) -> Result<(), Failure> {
        let Some((first, kind)) = &self.first else {
            self.first = Some((tracks.clone(), fragments));
            return Ok(());
        };
        let other = |of: fn(&Tracks) -> &Option<Arc<Track>>| {
            of(first).as_ref().zip(of(tracks).as_ref()).is_some_and(|(one, it)| one.codec != it.codec)
        };
        if *kind == fragments && !other(|it| &it.video) && !other(|it| &it.audio) {
            return Ok(());
        }
        let about = |tracks: &Tracks, fragments: bool| {
            let codecs = [&tracks.video, &tracks.audio].into_iter().flatten().map(|it| it.codec.name());
            let kind = if fragments { "fMP4" } else { "MPEG-TS" };
            format!("{} in {kind}", codecs.collect::<Vec<_>>().join(" and "))
        };
        let (it, one) = (about(tracks, fragments), about(first, *kind));
        unfit(format!("input {} is {it}, input 1 is {one}: they do not go into one playlist", n + 1))
    }

    /// Takes a piece that begins with this whole segment, and its initialization section if it is fMP4.
    fn begin(&mut self, n: usize, init: Option<&[u8]>, segment: &mut [u8]) -> Result<(), Failure> {
        let index = match init {
            Some(init) => Index::fragments(&[init, segment].concat()[..]),
            None => Index::ts(segment, &mut io::sink()),
        };
        // One with nothing in it that we know goes on as it is.
        let Ok(index) = index else { return self.takes(n, &Tracks::default(), init.is_some()) };
        self.takes(n, &index.tracks(), init.is_some())?;
        let Some(init) = init.filter(|_| n > 0 && is_h265(&index.tracks())) else { return Ok(()) };
        let (frames, _) = merge::frames(&Piece { index: &index, begin: Time::ZERO, end: None })?;
        if let Some(first) = frames.iter().find(|it| it.frame.track == Kind::Video) {
            let [from, to] = [first.bytes.start, first.bytes.end].map(|at| at as usize - init.len());
            break_link(&mut segment[from..to]);
        }
        Ok(())
    }
}

/// The kinds of segments.
enum Mux {
    Ts(ts::Writer),
    Fragments(fmp4::Writer),
}

impl Mux {
    /// The first bytes of a segment.
    fn start(&mut self) -> Vec<Bytes> {
        let mut out = Vec::new();
        if let Mux::Ts(mux) = self {
            mux.start(&mut out);
        }
        vec![out.into()]
    }

    fn push(&mut self, frame: &Frame) -> Vec<Bytes> {
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        match self {
            Mux::Ts(mux) => mux.push(frame, &mut bytes),
            Mux::Fragments(mux) => mux.push(frame, &mut parts),
        }
        if !bytes.is_empty() {
            parts.push(bytes.into());
        }
        parts
    }

    /// The last bytes of a segment before `frame`.
    fn cut(&mut self, frame: &Frame) -> Vec<Bytes> {
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        match self {
            Mux::Ts(mux) => mux.end(&mut bytes),
            // It holds the frame back for the next one.
            Mux::Fragments(mux) => {
                mux.push(frame, &mut parts);
                mux.cut(&mut parts);
            }
        }
        if !bytes.is_empty() {
            parts.push(bytes.into());
        }
        parts
    }

    /// Writes the frame that a segment begins with, unless it was given to [`cut`](Self::cut).
    fn after_cut(&mut self, frame: &Frame, writer: &mut Writer) -> io::Result<()> {
        match self {
            Mux::Ts(_) => writer.apply(Change::Append(self.push(frame))),
            Mux::Fragments(_) => Ok(()),
        }
    }

    fn finish(self, joint: &mut Joint) -> Vec<Bytes> {
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        match self {
            Mux::Ts(mut mux) => {
                mux.end(&mut bytes);
                joint.counters = mux.counters();
                parts.push(bytes.into());
            }
            Mux::Fragments(mux) => mux.flush(&mut parts),
        }
        parts
    }
}

impl Input {
    fn open(source: &Source, scratch: &Path, room: Room) -> Result<Input, Failure> {
        if source.format == Format::M3u8 {
            return Input::open_hls(&source.path, scratch, room);
        }
        let file = Chain::open([&source.path])?;
        let index = match source.format {
            Format::Mp4 => Index::mp4(&file),
            Format::Flv => Index::flv(&file),
            Format::Aac => Index::adts(&file),
            Format::Mp3 | Format::M3u8 => Index::mp3(&file),
        };
        Ok(Input { index: index?, source: file })
    }

    fn open_hls(path: &Path, scratch: &Path, room: Room) -> Result<Input, Failure> {
        let list = Playlist::parse(&fs::read_to_string(path)?);
        let folder = path.parent().unwrap_or(Path::new(""));
        let map = list.segments.first().and_then(|it| it.map.clone());
        if list.segments.iter().any(|it| it.map != map) {
            return unfit("an HLS recording that changes its tracks on the way can only become M3U8");
        }
        let names = map.iter().chain(list.segments.iter().map(|it| &it.uri));
        let source = Chain::open(names.map(|name| folder.join(name)))?;
        if map.is_some() {
            return Ok(Input { index: Index::fragments(&source)?, source });
        }
        fs::create_dir_all(scratch)?;
        room.holds(scratch, bywash_media::mux::Source::size(&source))?;
        let frames = scratch.join("frames");
        let mut out = io::BufWriter::new(fs::File::create(&frames)?);
        let index = Index::ts(&source, &mut out)?;
        out.flush()?;
        let source = Chain::open([&frames])?;
        // Open, as the only one of its chain is, it stays as long as it is needed.
        fs::remove_file(frames)?;
        Ok(Input { index, source })
    }
}

/// Files one behind the other, as one. Of an HLS recording they are a thousand: only the one that was read last is open.
struct Chain {
    /// Each with where it ends.
    files: Vec<(PathBuf, u64)>,
    open: RefCell<Option<(usize, fs::File)>>,
}

impl Chain {
    fn open(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> io::Result<Chain> {
        let (mut files, mut open, mut end) = (Vec::new(), None, 0);
        for (nth, path) in paths.into_iter().enumerate() {
            let file = fs::File::open(&path)?;
            end += file.metadata()?.len();
            files.push((path.as_ref().to_owned(), end));
            open = Some((nth, file));
        }
        Ok(Chain { files, open: open.into() })
    }

    fn read(&self, at: u64, len: u64) -> io::Result<Bytes> {
        let mut bytes = vec![0; len as usize];
        bywash_media::mux::Source::read_at(self, at, &mut bytes)?;
        Ok(bytes.into())
    }

    /// Reads a frame, so much later.
    fn frame(&self, unread: Unread, later: Time) -> io::Result<Frame> {
        let payload = self.read(unread.bytes.start, unread.bytes.end - unread.bytes.start)?;
        Ok(Frame { payload, dts: unread.frame.dts + later, ..unread.frame })
    }
}

impl bywash_media::mux::Source for Chain {
    fn size(&self) -> u64 {
        self.files.last().map_or(0, |(_, end)| *end)
    }

    fn read_at(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        let mut nth = self.files.partition_point(|(_, end)| *end <= at);
        while !buf.is_empty() {
            let (path, end) = self.files.get(nth).ok_or(io::ErrorKind::UnexpectedEof)?;
            let mut open = self.open.borrow_mut();
            let file = match open.take() {
                Some((it, file)) if it == nth => file,
                _ => fs::File::open(path)?,
            };
            let (_, file) = open.insert((nth, file));
            let start = if nth > 0 { self.files[nth - 1].1 } else { 0 };
            let (now, later) = buf.split_at_mut((buf.len() as u64).min(end - at) as usize);
            file.read_exact_at(now, at - start)?;
            at += now.len() as u64;
            (buf, nth) = (later, nth + 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bywash_media::mux::{Source as _, adts};

    use super::*;
    use crate::store::tests::Dir;

    #[test]
    fn of_many_segments_one_is_open_at_a_time() {
        let dir = Dir::new();
        fs::create_dir_all(dir.path()).unwrap();
        let paths: Vec<_> = (0..1000).map(|n| dir.path().join(n.to_string())).collect();
        paths.iter().for_each(|path| fs::write(path, path.file_name().unwrap().as_encoded_bytes()).unwrap());
        let chain = Chain::open(&paths).unwrap();
        let check = |at: u64, want: &str| {
            assert_eq!(chain.read(at, want.len() as u64).unwrap(), want);
            let open = fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|it| fs::read_link(it.path()).ok());
            assert_eq!(open.filter(|it| it.starts_with(dir.path())).count(), 1, "{want}");
        };
        assert_eq!(chain.size(), 10 + 90 * 2 + 900 * 3);
        check(0, "0123456789101112");
        check(chain.size() - 5, "98999");
        check(5, "5");
        assert!(chain.read(chain.size() - 2, 3).is_err());
    }

    /// Joins all of the sources that are named, under `key`, with what it needs below `dir`.
    fn merging(dir: &Dir, parts: &[&str], sources: BTreeMap<String, Source>, key: &str) -> Merging {
        let part = |file: &&str| Part { file: (*file).into(), begin_ms: 0, end_ms: None };
        let parts = parts.iter().map(part).collect();
        Merging {
            request: Merge { format: Format::M3u8, parts, name: String::new(), expire_ms: 0 },
            bytes: 0,
            sources,
            room: Room::new(0),
            looked: Cell::default(),
            folder: Folder::new(dir.path().join("media"), None),
            scratch: dir.path().join("scratch"),
            key: key.into(),
            percent: Arc::default(),
            cancelled: Arc::default(),
        }
    }

    #[test]
    fn a_merge_that_fails_leaves_nothing_behind() {
        let check = |second: &[u8], room: Room, bytes: u64, fails: Option<&str>| {
            let dir = Dir::new();
            fs::create_dir_all(dir.path()).unwrap();
            let header = adts::Header::new(&[0x11, 0x90]).unwrap();
            let sound = [&header.frame(300).unwrap()[..], &[7; 300]].concat().repeat(100);
            let mut sources = BTreeMap::new();
            for (id, bytes) in [("a", &sound[..]), ("b", second)] {
                let path = dir.path().join(id);
                fs::write(&path, bytes).unwrap();
                sources.insert(id.to_owned(), Source { path, format: Format::Aac, begin_ms: 0 });
            }
            let merging = merging(&dir, &["a", "b"], sources, "7/s/day/1/index.m3u8");
            let merging = Merging { bytes, room, ..merging };
            let root = merging.folder.root().to_owned();
            // Of an attempt before, that was killed; and of one that was made and not told of.
            for name in ["7/s/day/1.part/9-9.ts", "7/s/day/1/8-8.ts"] {
                fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
                fs::write(root.join(name), "media").unwrap();
            }
            let made = merging.run();
            let why = made.as_ref().err().map(ToString::to_string);
            let told = why.as_deref().zip(fails).is_some_and(|(why, fails)| why.starts_with(fails));
            assert!(told || why.is_none() && fails.is_none(), "{made:?}");
            assert_eq!(root.join("7").exists(), fails.is_none());
            assert!(!root.join("7/s/day/1.part").exists() && !root.join("7/s/day/1/8-8.ts").exists());
            sound
        };
        let wide = Room::by(|_| Ok((1 << 30, 20 << 30)), 0);
        let sound = check(b"noise", wide, 0, Some("a file has no media in it"));
        check(&sound, wide, 1 << 30, None);
        // It is not begun where it cannot end, and ended where others have taken the room.
        check(&sound, wide, (1 << 30) + 1, Some("disk full"));
        let narrow = |folder: &Path| {
            let of = |path: &Path| fs::metadata(path).map_or(0, |it| it.len());
            let begun = folder.join("7/s/day/1.part/0-0.ts.part");
            Ok((1300 - of(&begun), 20_000))
        };
        check(&sound, Room::by(narrow, 2000), 0, Some("disk full"));
    }

    const AVCC: &str = "0142c01fffe100176742c01fda014016ec0440000003004000000f03c60ca801000468ce0fc8";
    const HVCC: &str = "0101600000009000000000003ff000fcfdf8f800000f03a00001001840010c01ffff01600000030090000003000003003f95\
                        9809a10001002a42010101600000030090000003000003003fa00502016965959a4932bc05a02000000300200000030321a2\
                        000100074401c172b46240";
    const CRA: &[u8] = &[0, 0, 0, 3, 21 << 1, 1, 0x80];
    const BLA: &[u8] = &[0, 0, 0, 3, 16 << 1, 1, 0x80];

    /// Records 20 s of pictures to an MP4, a key frame each 2 s; each is decoded 80 ms before it is shown.
    fn record(folder: &Folder, name: &str, codec: Codec, config: &str, payload: &'static [u8]) {
        let mut tracks = Tracks::default();
        tracks.set(bywash_media::codec::track(codec, hex::decode(config).unwrap().into()).unwrap());
        let mut writes = Vec::new();
        let mut muxer = bywash_media::mux::mp4::Writer::new(&tracks, &mut writes);
        for n in 0..500 {
            let (dts, cts) = (Time::from_millis(n * 40), Time::from_millis(80));
            let payload = Bytes::from_static(payload);
            muxer.push(&Frame { track: Kind::Video, dts, cts, key: n % 50 == 0, payload }, &mut writes);
        }
        muxer.flush(&mut writes);
        folder.create(name, Format::Mp4).unwrap().apply(Change::Put(writes)).unwrap();
        folder.finish(name, Format::Mp4).unwrap().unwrap();
    }

    /// Joins these files of the folder, all of each, to a list under `key`.
    fn joined(dir: &Dir, folder: &Folder, parts: &[&str], key: &str) -> Result<Playlist, Failure> {
        let source = |file: &&str| {
            let format = if file.ends_with(".mp4") { Format::Mp4 } else { Format::M3u8 };
            ((*file).to_owned(), Source { path: folder.root().join(file), format, begin_ms: 0 })
        };
        merging(dir, parts, parts.iter().map(source).collect(), key).run()?;
        Ok(Playlist::parse(&fs::read_to_string(folder.root().join(key)).unwrap()))
    }

    #[test]
    fn h265_goes_into_fmp4_alone_and_begins_a_sequence_at_each_seam() {
        let dir = Dir::new();
        let folder = Folder::new(dir.path().join("media"), None);
        record(&folder, "1.mp4", Codec::H265, HVCC, CRA);
        record(&folder, "2.mp4", Codec::H264, AVCC, &[0, 0, 0, 2, 0x65, 0x88]);
        let check = |parts: &[&str], key: &str, seams: usize, rises: bool| {
            let list = joined(&dir, &folder, parts, key).unwrap();
            let (mut all, mut broken, mut time) = (0, Vec::new(), 0);
            for segment in list.segments {
                assert!(segment.uri.ends_with(".m4s") && segment.map.is_some(), "{segment:?}");
                let bytes = fs::read(folder.root().join(key).with_file_name(segment.uri)).unwrap();
                for at in (0..bytes.len() - 16).filter(|at| rises && bytes[*at..].starts_with(b"tfdt")) {
                    let told = u64::from_be_bytes(bytes[at + 8..at + 16].try_into().unwrap());
                    assert!(told > time || time == 0, "{parts:?}: {told} {time}");
                    time = told;
                }
                for picture in bytes.windows(CRA.len()).filter(|it| *it == CRA || *it == BLA) {
                    if picture == BLA {
                        broken.push(all % 500);
                    }
                    all += 1;
                }
            }
            assert_eq!((all % 500, broken), (0, vec![0; seams]), "{parts:?}");
        };
        check(&["1.mp4"], "a/index.m3u8", 0, true);
        check(&["1.mp4", "a/index.m3u8", "1.mp4"], "b/index.m3u8", 2, true);
        check(&["a/index.m3u8", "b/index.m3u8"], "c/index.m3u8", 3, false);
        for parts in [["2.mp4", "1.mp4"], ["2.mp4", "a/index.m3u8"]] {
            let told = joined(&dir, &folder, &parts, "d/index.m3u8").unwrap_err().to_string();
            assert!(told.starts_with("input 2 is H.265 in fMP4, input 1 is H.264 in MPEG-TS"), "{told}");
        }
    }

    #[test]
    fn the_packets_of_pieces_are_counted_on_and_their_clock_never_goes_back_before_zero() {
        let dir = Dir::new();
        let folder = Folder::new(dir.path().join("media"), None);
        record(&folder, "1.mp4", Codec::H264, AVCC, &[0, 0, 0, 2, 0x65, 0x88]);

        let check = |parts: &[&str], key: &str, rising: bool| {
            let list = joined(&dir, &folder, parts, key).unwrap();
            let (mut counters, mut clock) = (BTreeMap::new(), 0);
            for segment in list.segments {
                for packet in fs::read(folder.root().join(key).with_file_name(segment.uri)).unwrap().chunks(188) {
                    let counter = counters.entry([packet[1] & 0x1f, packet[2]]).or_insert(packet[3] & 15);
                    assert_eq!(packet[3] & 15, *counter, "{parts:?}");
                    *counter = (*counter + 1) & 15;
                    if packet[3] & 0x20 != 0 && packet[4] > 0 && packet[5] & 0x10 != 0 {
                        let told = u32::from_be_bytes(packet[6..10].try_into().unwrap());
                        assert!(!rising || told >= clock, "{parts:?}: {told} {clock}");
                        clock = told;
                    }
                }
            }
            // Two pieces of 20 s, in ticks of 45 kHz.
            assert!(!rising || (1_790_000..1_810_000).contains(&clock), "{clock}");
        };
        check(&["1.mp4", "1.mp4"], "a/index.m3u8", true);
        check(&["a/index.m3u8", "1.mp4", "a/index.m3u8"], "b/index.m3u8", false);
    }
}
