//! Recorded files on the disk: written under a name that says so, made whole, and only then called what they are.
//!
//! `<key>.part` is written by a [`Writer`]; [`Folder::finish`] makes it whole from what is on the disk alone and renames it. Of HLS
//! the folder has that name: `….part/` holds its segments, and a list of those that are whole.
//!
//! Invariant: what has a name without `.part` is whole and does not change. Whenever writing or finishing is killed,
//! finishing can be called again and loses nothing that was written whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use bywash_media::Time;
use bywash_media::mux::{Finish, Source, Write, adts, flv, fmp4, mp3, mp4, ts};
use bywash_media::playlist::{Playlist, Segment};

use crate::config::Format;

/// The playlist of an HLS recording, and so the end of its key.
pub const PLAYLIST: &str = "index.m3u8";

/// The folder of all media files. `clone` copies a path.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    sync: Option<Duration>,
}

/// A file that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Bytes; of HLS those of all its files.
    pub size: u64,
    /// How long it plays.
    pub duration: Time,
    /// The same with the gaps that do not play, as far as the file knows of them.
    pub span: Time,
}

impl Whole {
    fn of_file(done: &Finish) -> Whole {
        Whole { size: done.len, duration: done.duration, span: done.duration }
    }

    fn of_list(folder: &Path, list: &Playlist) -> io::Result<Whole> {
        Ok(Whole { size: size_of(folder)?, duration: list.duration(), span: list.span() })
    }
}

/// A change to a file that is being written.
#[derive(Debug)]
pub enum Change {
    /// Bytes behind what is there; of HLS behind what the segment has.
    Append(Vec<Bytes>),
    /// Changes at their places.
    Put(Vec<Write>),
    /// HLS: a file beside the segments, whole.
    Beside(String, Bytes),
    /// HLS: a segment begins; how long it plays is told by its end.
    Begin(Segment),
    /// HLS: the segment is over.
    End(Time),
}

impl Change {
    /// Bytes that it holds, about.
    pub fn len(&self) -> usize {
        let sum = |parts: &[Bytes]| parts.iter().map(Bytes::len).sum();
        match self {
            Change::Append(parts) => sum(parts),
            Change::Put(writes) => {
                writes.iter().map(|it| if let Write::At(_, parts) = it { sum(parts) } else { 0 }).sum()
            }
            Change::Beside(_, bytes) => bytes.len(),
            Change::Begin(_) | Change::End(_) => 0,
        }
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Folder {
    /// Media files below `root`. What is written comes to the disk after `sync` at the latest; none leaves that to the kernel,
    /// which is enough wherever the machine goes on.
    pub fn new(root: PathBuf, sync: Option<Duration>) -> Folder {
        Folder { root, sync }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins the file of this key.
    pub fn create(&self, key: &str, format: Format) -> io::Result<Writer> {
        let part = self.part(key, format);
        let folder = if format == Format::M3u8 { part.as_path() } else { part.parent().unwrap_or(&self.root) };
        let file = if format == Format::M3u8 { part.join(PLAYLIST) } else { part.clone() };
        // Whoever removes empty folders may come in between.
        let mut tries = 0..5;
        let file = loop {
            fs::create_dir_all(folder)?;
            match OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries.next().is_some() => continue,
                opened => break opened?,
            }
        };
        let hls =
            (format == Format::M3u8).then(|| Hls { folder: part, list: Playlist::new(Time::ZERO), segment: None });
        let mut writer = Writer { file, end: 0, mp3: format == Format::Mp3, unsynced: None, sync: self.sync, hls };
        if let Some(hls) = &writer.hls {
            let head = hls.list.to_string();
            writer.append(head.as_bytes())?;
        }
        Ok(writer)
    }

    /// Makes the file of this key whole, wherever its writer stopped, and gives it its name. `None` if there is no media in
    /// it; then nothing is left of it.
    pub fn finish(&self, key: &str, format: Format) -> io::Result<Option<Whole>> {
        let (part, path) = (self.part(key, format), self.path(key, format));
        if !part.exists() {
            // Killed behind the renaming, or before there was anything.
            return if path.exists() { self.measure(&path, format).map(Some) } else { Ok(None) };
        }
        let whole = if format == Format::M3u8 { self.finish_hls(&part)? } else { self.finish_file(&part, format)? };
        if whole.is_none() {
            return remove(&self.root, &part, format == Format::M3u8).map(|()| None);
        }
        fs::rename(&part, &path)?;
        if self.sync.is_some() {
            for folder in path.ancestors().skip(1).take_while(|it| it.starts_with(&self.root)) {
                File::open(folder)?.sync_all()?;
            }
        }
        Ok(whole)
    }

    /// Deletes what there is of the file of this key, whole or not, and the folders above that are empty then. That nothing is
    /// there is fine.
    pub fn remove(&self, key: &str, format: Format) -> io::Result<()> {
        for path in [self.part(key, format), self.path(key, format)] {
            remove(&self.root, &path, format == Format::M3u8)?;
        }
        Ok(())
    }

    /// The file of a key, or the folder of HLS.
    fn path(&self, key: &str, format: Format) -> PathBuf {
        let path = self.root.join(key);
        if format == Format::M3u8 { path.parent().unwrap_or(&self.root).to_owned() } else { path }
    }

    /// The same while it is being written.
    fn part(&self, key: &str, format: Format) -> PathBuf {
        let mut path = self.path(key, format).into_os_string();
        path.push(".part");
        path.into()
    }

    fn measure(&self, path: &Path, format: Format) -> io::Result<Whole> {
        if format == Format::M3u8 {
            return Whole::of_list(path, &Playlist::parse(&fs::read_to_string(path.join(PLAYLIST))?));
        }
        let file = OnDisk::open(path)?;
        let done = finish(&file, format)?.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Whole::of_file(&done))
    }

    fn finish_file(&self, part: &Path, format: Format) -> io::Result<Option<Whole>> {
        let file = OnDisk::open(part)?;
        let Some(done) = finish(&file, format)? else { return Ok(None) };
        carry_out(&file.file, &done.writes, self.sync.is_some())?;
        Ok(Some(Whole::of_file(&done)))
    }

    fn finish_hls(&self, part: &Path) -> io::Result<Option<Whole>> {
        let Some((steps, list)) = self.steps(part)? else { return Ok(None) };
        steps.into_iter().try_for_each(|step| self.take(part, step))?;
        if self.sync.is_some() {
            File::open(part)?.sync_all()?;
        }
        Whole::of_list(part, &list).map(Some)
    }

    /// What makes an HLS folder whole, and its list then: segments that it does not know are repaired, then listed, and only then called
    /// what they are.
    fn steps(&self, part: &Path) -> io::Result<Option<(Vec<Step>, Playlist)>> {
        let text = match fs::read_to_string(part.join(PLAYLIST)) {
            // Killed before there was a list.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        // A line that was being written is none.
        let mut list = Playlist::parse(&text[..text.rfind('\n').map_or(0, |end| end + 1)]);
        let (mut steps, mut renames) = (Vec::new(), Vec::new());
        let mut names = names(part)?;
        names.sort_by_key(|name| number(name));
        for name in names {
            let uri = name.strip_suffix(".part").unwrap_or(&name);
            if !uri.ends_with(".ts") && !uri.ends_with(".m4s") {
                continue;
            }
            if !list.segments.iter().any(|it| it.uri == uri) {
                let Some((segment, writes)) = unlisted(part, &name, uri, &list)? else {
                    steps.push(Step::Remove(name));
                    continue;
                };
                list.segments.push(segment);
                steps.push(Step::Repair(name.clone(), writes));
            }
            if name != uri {
                renames.push(Step::Rename(name.clone(), uri.into()));
            }
        }
        if list.segments.is_empty() {
            return Ok(None);
        }
        list.ended = true;
        list.target = Playlist::new(Time::ZERO).target;
        steps.push(Step::List(list.to_string()));
        steps.push(Step::Rename(NEW.into(), PLAYLIST.into()));
        steps.append(&mut renames);
        Ok(Some((steps, list)))
    }

    /// Takes a step.
    fn take(&self, part: &Path, step: Step) -> io::Result<()> {
        match step {
            Step::Repair(name, writes) => {
                carry_out(&OnDisk::open(&part.join(name))?.file, &writes, self.sync.is_some())
            }
            Step::Remove(name) => fs::remove_file(part.join(name)),
            Step::List(text) => {
                let mut file = File::create(part.join(NEW))?;
                file.write_all(text.as_bytes())?;
                if self.sync.is_some() { file.sync_all() } else { Ok(()) }
            }
            Step::Rename(from, to) => fs::rename(part.join(from), part.join(to)),
        }
    }
}

/// The list while it is written anew.
const NEW: &str = "index.new";

/// What is done to a file of an HLS folder. Each step may be the last, or stop in the midst.
enum Step {
    /// What is torn of a segment goes.
    Repair(String, Vec<Write>),
    /// There is nothing in it.
    Remove(String),
    /// The list, whole, beside the one that is there.
    List(String),
    /// It is called what it is.
    Rename(String, String),
}

/// The segment in the file `name`, which the list does not know, and what makes it whole. `None` if there is no media in it.
fn unlisted(part: &Path, name: &str, uri: &str, list: &Playlist) -> io::Result<Option<(Segment, Vec<Write>)>> {
    let stretch = uri.split('-').next().unwrap_or_default();
    let file = OnDisk::open(&part.join(name))?;
    let map = uri.ends_with(".m4s").then(|| format!("{stretch}.mp4"));
    let done = match &map {
        Some(map) => fmp4::finish(&fs::read(part.join(map))?, &file)?,
        None => ts::finish(&file)?,
    };
    let Some(done) = done else { return Ok(None) };
    let last = list.segments.last().filter(|last| last.uri.split('-').next() == Some(stretch));
    let wall_ms = last.map_or_else(|| created_ms(&file.file), |last| last.wall_ms + last.duration.as_millis());
    let segment = Segment { uri: uri.into(), duration: done.duration, wall_ms, discontinuity: last.is_none(), map };
    Ok(Some((segment, done.writes)))
}

/// The number in a segment's name.
fn number(name: &str) -> Option<u32> {
    name.split_once('-')?.1.split('.').next()?.parse().ok()
}

/// When a file was created, Unix milliseconds, where the file system knows.
fn created_ms(file: &File) -> i64 {
    let created = file.metadata().and_then(|it| it.created().or_else(|_| it.modified())).ok();
    created.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_millis() as i64)
}

fn finish(file: &OnDisk, format: Format) -> io::Result<Option<Finish>> {
    match format {
        Format::Mp4 => mp4::finish(file),
        Format::Flv => flv::file::finish(file),
        Format::Aac => adts::finish(file),
        Format::Mp3 => mp3::finish(file),
        Format::M3u8 => ts::finish(file),
    }
}

/// The names in a folder, in order.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn size_of(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

fn carry_out(file: &File, writes: &[Write], sync: bool) -> io::Result<()> {
    for write in writes {
        match write {
            Write::At(at, parts) => write_parts_at(file, *at, parts)?,
            Write::Sync if sync => file.sync_data()?,
            Write::Sync => {}
            Write::Truncate(len) => file.set_len(*len)?,
        }
    }
    if sync { file.sync_all() } else { Ok(()) }
}

fn write_parts_at(mut file: &File, at: u64, parts: &[Bytes]) -> io::Result<()> {
    if let [part] = parts {
        return file.write_all_at(part, at);
    }
    file.seek(SeekFrom::Start(at))?;
    write_parts(file, parts)
}

/// Writes one part behind the other, where the file is at, without a copy of them.
fn write_parts(mut file: &File, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Deletes a file or a folder with all that is in it, and the folders above, below `root`, that are empty then. That nothing is there
/// is fine. It blocks.
pub fn remove(root: &Path, path: &Path, is_folder: bool) -> io::Result<()> {
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for folder in path.ancestors().skip(1).take_while(|it| *it != root && it.starts_with(root)) {
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

/// A file as finishing reads it. What walks it reads a few bytes here and there.
struct OnDisk {
    file: File,
    size: u64,
}

impl OnDisk {
    fn open(path: &Path) -> io::Result<OnDisk> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(OnDisk { file, size })
    }
}

impl Source for OnDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }
}

/// A file that is being written. All of it blocks: it belongs on a thread of its own.
#[derive(Debug)]
pub struct Writer {
    /// Of HLS the list.
    file: File,
    end: u64,
    /// Whether the first packet is to be told of by a frame before it.
    mp3: bool,
    /// Since when there is something that may not be on the disk.
    unsynced: Option<Instant>,
    sync: Option<Duration>,
    hls: Option<Hls>,
}

#[derive(Debug)]
struct Hls {
    folder: PathBuf,
    list: Playlist,
    segment: Option<(Segment, File)>,
}

impl Writer {
    /// Makes a change.
    pub fn apply(&mut self, change: Change) -> io::Result<()> {
        match change {
            Change::Append(parts) => match &mut self.hls {
                Some(hls) => hls.segment.as_mut().map_or(Ok(()), |(_, file)| write_parts(file, &parts))?,
                None => {
                    let first = parts.iter().find(|part| !part.is_empty()).filter(|_| self.mp3 && self.end == 0);
                    if let Some(frame) = first.and_then(|packet| mp3::reserve(packet)) {
                        self.append(&frame)?;
                    }
                    write_parts_at(&self.file, self.end, &parts)?;
                    self.end += parts.iter().map(|part| part.len() as u64).sum::<u64>();
                }
            },
            Change::Put(writes) => self.put(&writes)?,
            Change::Beside(name, bytes) => {
                if let Some(hls) = &self.hls {
                    let mut file = File::create(hls.folder.join(name))?;
                    file.write_all(&bytes)?;
                    if self.sync.is_some() {
                        file.sync_all()?;
                    }
                }
            }
            Change::Begin(segment) => {
                if let Some(hls) = &mut self.hls {
                    let file = File::create(hls.folder.join(format!("{}.part", segment.uri)))?;
                    hls.segment = Some((segment, file));
                }
            }
            Change::End(duration) => self.end_segment(duration)?,
        }
        self.unsynced.get_or_insert_with(Instant::now);
        self.sync_if_due()
    }

    /// Brings to the disk what has waited for as long as it may.
    pub fn sync_if_due(&mut self) -> io::Result<()> {
        if let (Some(since), Some(sync)) = (self.unsynced, self.sync)
            && since.elapsed() >= sync
        {
            self.unsynced = None;
            match &self.hls {
                Some(Hls { segment: Some((_, file)), .. }) => file.sync_data()?,
                Some(_) => {}
                None => self.file.sync_data()?,
            }
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// What asks for a sync gets one if it is due; what comes behind must then be on the disk later than what came before.
    fn put(&mut self, writes: &[Write]) -> io::Result<()> {
        for write in writes {
            match write {
                Write::At(at, parts) => write_parts_at(&self.file, *at, parts)?,
                Write::Truncate(len) => self.file.set_len(*len)?,
                Write::Sync => {
                    self.unsynced.get_or_insert_with(Instant::now);
                    self.sync_if_due()?;
                }
            }
        }
        Ok(())
    }

    /// Lists the segment and gives it its name, in this order: what is listed is whole.
    fn end_segment(&mut self, duration: Time) -> io::Result<()> {
        let Some(hls) = &mut self.hls else { return Ok(()) };
        let Some((segment, file)) = hls.segment.take() else { return Ok(()) };
        if self.sync.is_some() {
            file.sync_data()?;
        }
        let path = hls.folder.join(&segment.uri);
        let lines = hls.list.push(Segment { duration, ..segment });
        let part = hls.folder.join(format!("{}.part", hls.list.segments[hls.list.segments.len() - 1].uri));
        self.append(lines.as_bytes())?;
        if self.sync.is_some() {
            self.file.sync_data()?;
        }
        fs::rename(part, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use bywash_media::{Codec, Frame, Kind, Tracks, codec};

    const AVCC: &str = "0142c01fffe100176742c01fda014016ec0440000003004000000f03c60ca801000468ce0fc8";
    const SEGMENT: &[u8] = &[0x47; 188];

    fn folder(name: &str) -> Folder {
        let root = std::env::temp_dir().join(format!("bywash-segment-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        Folder::new(root, None)
    }

    fn segment(uri: &str) -> Segment {
        let (duration, wall_ms) = (Time::ZERO, 0);
        Segment { uri: uri.into(), duration, wall_ms, discontinuity: false, map: None }
    }

    /// Writes an AAC file of so many frames and some bytes of another; finishes it, and then again.
    fn check(frames: usize, more: usize, want: Option<Whole>) {
        let folder = folder(&format!("aac-{frames}-{more}"));
        let header = adts::Header::new(&[0x11, 0x90]).unwrap();
        let frame = [&header.frame(300).unwrap()[..], &[7; 300]].concat();
        let mut writer = folder.create("7/s/2024-02-29/1.aac", Format::Aac).unwrap();
        let bytes = [frame.repeat(frames), frame[..more].to_vec()].concat();
        writer.apply(Change::Append(vec![bytes.into()])).unwrap();
        drop(writer);
        for _ in 0..2 {
            assert_eq!(folder.finish("7/s/2024-02-29/1.aac", Format::Aac).unwrap(), want);
        }
        let there = folder.root().join("7/s/2024-02-29/1.aac").exists();
        // Of what had no media nothing is left, not even its folders.
        assert_eq!((there, folder.root().join("7").exists()), (want.is_some(), want.is_some()));
        let _ = fs::remove_dir_all(folder.root());
    }

    #[test]
    fn a_file_is_whole_or_nothing() {
        let whole = |frames: i64| {
            let duration = Time::from_ticks(1024 * frames, 48_000);
            Whole { size: 307 * frames as u64, duration, span: duration }
        };
        check(3, 0, Some(whole(3)));
        check(3, 200, Some(whole(3)));
        check(0, 200, None);
        check(0, 0, None);
    }

    #[test]
    fn a_list_names_what_is_whole_wherever_its_writer_stopped() {
        const KEY: &str = "7/s/2024-02-29/1/index.m3u8";
        let folder = folder("hls");
        let mut writer = folder.create(KEY, Format::M3u8).unwrap();
        // With a gap of eight seconds between them.
        for (uri, wall_ms) in [("0-0.ts", 0), ("0-1.ts", 10_000)] {
            writer.apply(Change::Begin(Segment { wall_ms, discontinuity: wall_ms > 0, ..segment(uri) })).unwrap();
            writer.apply(Change::Append(vec![SEGMENT.into()])).unwrap();
            writer.apply(Change::End(Time::from_millis(2_000))).unwrap();
        }
        writer.apply(Change::Begin(segment("0-2.ts"))).unwrap();
        drop(writer);
        let part = folder.root().join("7/s/2024-02-29/1.part");
        // Killed between the list and the name; and while the list was being written.
        fs::rename(part.join("0-1.ts"), part.join("0-1.ts.part")).unwrap();
        let mut list = OpenOptions::new().append(true).open(part.join(PLAYLIST)).unwrap();
        list.write_all(b"#EXTINF:2.000,\n0-").unwrap();
        let whole = folder.finish(KEY, Format::M3u8).unwrap().unwrap();
        assert_eq!((whole.duration, whole.span), (Time::from_millis(4_000), Time::from_millis(12_000)));
        let path = folder.root().join("7/s/2024-02-29/1");
        assert_eq!(names(&path).unwrap(), ["0-0.ts", "0-1.ts", "index.m3u8"]);
        let text = fs::read_to_string(path.join(PLAYLIST)).unwrap();
        assert!(text.ends_with("0-1.ts\n#EXT-X-ENDLIST\n"), "{text}");
        assert_eq!(folder.finish(KEY, Format::M3u8).unwrap(), Some(whole));
        // Before there was a list, or a segment.
        fs::create_dir_all(&part).unwrap();
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(folder.finish(KEY, Format::M3u8).unwrap(), None);
        let _ = fs::remove_dir_all(folder.root());
    }

    /// A folder as a recorder that was killed leaves it: a segment that is whole, one that is listed and has not its name yet, one that
    /// has its name and is not listed, one that is torn and one with nothing in it. `from` is the first segment that there is.
    fn torn(folder: &Folder, key: &str, from: usize, fmp4: bool) -> PathBuf {
        let _ = fs::remove_dir_all(folder.root());
        let mut tracks = Tracks::default();
        for (codec, config) in [(Codec::H264, AVCC), (Codec::Aac, "1190")] {
            tracks.set(codec::track(codec, hex::decode(config).unwrap().into()).unwrap());
        }
        let frame = |track, ms, key| {
            let payload = Bytes::from_static(&[0, 0, 1, 246, 0x65]).iter().copied().chain([7; 501]).collect();
            Frame { track, dts: Time::from_millis(ms), cts: Time::ZERO, key, payload }
        };
        let mut ts = ts::Writer::new(&tracks).unwrap();
        let mut m4s = fmp4::Writer::new(&tracks);
        let mut writer = folder.create(key, Format::M3u8).unwrap();
        let end = if fmp4 { "m4s" } else { "ts" };
        if fmp4 {
            writer.apply(Change::Beside("0.mp4".into(), m4s.init())).unwrap();
        }
        let part = folder.part(key, Format::M3u8);
        for n in from..12 {
            let map = fmp4.then(|| "0.mp4".to_owned());
            writer.apply(Change::Begin(Segment { map, ..segment(&format!("0-{n}.{end}")) })).unwrap();
            let (mut bytes, mut fragments) = (Vec::new(), Vec::new());
            ts.start(&mut bytes);
            for ms in (0..2_000).step_by(40) {
                for track in [Kind::Video, Kind::Audio] {
                    let frame = frame(track, 2_000 * n as i64 + ms, ms == 0);
                    ts.push(&frame, &mut bytes);
                    m4s.push(&frame, &mut fragments);
                }
            }
            ts.end(&mut bytes);
            m4s.cut(&mut fragments);
            let mut bytes = if fmp4 { fragments.concat() } else { bytes };
            match n {
                10 => bytes.truncate(bytes.len() - 200),
                11 => bytes.truncate(100),
                _ => {}
            }
            writer.apply(Change::Append(vec![bytes.into()])).unwrap();
            match n {
                0..9 => writer.apply(Change::End(Time::from_millis(2_000))).unwrap(),
                9 => fs::rename(part.join(format!("0-9.{end}.part")), part.join(format!("0-9.{end}"))).unwrap(),
                _ => {}
            }
        }
        let whole = part.join(format!("0-8.{end}"));
        if whole.exists() {
            fs::rename(&whole, part.join(format!("0-8.{end}.part"))).unwrap();
        }
        part
    }

    /// Stops finishing before each of its steps or in the midst of it, once and then again when it is called a second time; the call after that
    /// comes to the same as if nothing had stopped it.
    fn check_stops(from: usize, fmp4: bool) {
        const KEY: &str = "7/s/2024-02-29/3/index.m3u8";
        let folder = folder(&format!("stops-{from}-{fmp4}"));
        let steps = |part: &Path| folder.steps(part).unwrap().unwrap().0;
        let stop = |part: &Path, at: usize| {
            for (n, step) in steps(part).into_iter().enumerate().take(at + 1) {
                match step {
                    step if n < at => folder.take(part, step).unwrap(),
                    Step::List(text) => fs::write(part.join(NEW), &text[..text.len() / 2]).unwrap(),
                    _ => {}
                }
            }
        };
        // When a segment was begun is another time each time.
        let same = |name: &String| name != PLAYLIST;
        let content = || {
            let path = folder.path(KEY, Format::M3u8);
            let list = Playlist::parse(&fs::read_to_string(path.join(PLAYLIST)).unwrap());
            let files =
                names(&path).unwrap().into_iter().filter(same).map(|name| (fs::read(path.join(&name)).unwrap(), name));
            (list.segments.into_iter().map(|it| (it.uri, it.duration)).collect::<Vec<_>>(), files.collect::<Vec<_>>())
        };
        let count = steps(&torn(&folder, KEY, from, fmp4)).len();
        let want = (folder.finish(KEY, Format::M3u8).unwrap().unwrap(), content());
        let end = if fmp4 { "m4s" } else { "ts" };
        assert!(want.1.0.iter().map(|(uri, _)| uri.clone()).eq((from..11).map(|n| format!("0-{n}.{end}"))));
        let lost = 2_000 * (11 - from as i64) - want.0.duration.as_millis();
        // The last fragment of fMP4 is torn.
        assert!((0..1_200).contains(&lost), "{lost} ms");
        for (first, second) in (0..=count).flat_map(|at| [(at, 0), (at, at)]) {
            let part = torn(&folder, KEY, from, fmp4);
            stop(&part, first);
            stop(&part, second);
            let whole = folder.finish(KEY, Format::M3u8).unwrap().unwrap();
            assert!((whole, content()) == want, "{first} {second}: {whole:?}");
        }
        let _ = fs::remove_dir_all(folder.root());
    }

    #[test]
    fn finishing_that_is_killed_at_any_step_loses_nothing_when_it_is_called_again() {
        for fmp4 in [false, true] {
            check_stops(7, fmp4);
            // There is none in the list.
            check_stops(9, fmp4);
            check_stops(10, fmp4);
        }
    }

    /// What [`write_long`] writes.
    const LONG: &str = "7/s/2024-02-29/2.mp4";

    /// An MP4 as a recorder leaves it, of 30 pictures a second with 2.6 Mbit/s and sound.
    fn write_long(folder: &Folder, seconds: i64) {
        let mut tracks = Tracks::default();
        for (codec, config) in [(Codec::H264, AVCC), (Codec::Aac, "1190")] {
            tracks.set(codec::track(codec, hex::decode(config).unwrap().into()).unwrap());
        }
        let frame = |track, ns, key, len: usize| Frame {
            track,
            dts: Time::from_nanos(ns),
            cts: Time::ZERO,
            key,
            payload: Bytes::from_static(&[0; 60_000]).slice(..len),
        };
        let mut file = folder.create(LONG, Format::Mp4).unwrap();
        let mut writes = Vec::new();
        let mut muxer = mp4::Writer::new(&tracks, &mut writes);
        let mut packets = (0..).map(|n| n * 1024 * 1_000_000_000 / 48_000).peekable();
        for n in 0..30 * seconds {
            // In milliseconds, as RTMP has them: no two steps are alike.
            let at = n * 1000 / 30 * 1_000_000;
            while let Some(packet) = packets.next_if(|packet| *packet <= at) {
                muxer.push(&frame(Kind::Audio, packet, true, 341), &mut writes);
            }
            let key = n % 60 == 0;
            muxer.push(&frame(Kind::Video, at, key, if key { 57_600 } else { 9_600 }), &mut writes);
            file.apply(Change::Put(std::mem::take(&mut writes))).unwrap();
        }
        muxer.flush(&mut writes);
        file.apply(Change::Put(writes)).unwrap();
        file.file.sync_all().unwrap();
    }

    /// Bytes that a line of the kernel's about this process tells.
    fn memory(line: &str) -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix(line)).unwrap();
        line.split_whitespace().find_map(|kib| kib.parse::<u64>().ok()).unwrap() << 10
    }

    /// With `BYWASH_SOAK` two hours. It is finished in a process of its own, whose memory is nobody else's.
    #[test]
    fn finishing_two_hours_takes_a_moment_and_little_memory() {
        const CHILD: &str = "BYWASH_TEST_FINISH";
        if let Some(root) = std::env::var_os(CHILD) {
            let folder = Folder::new(root.into(), Some(Duration::from_secs(1)));
            let (before, begin) = (memory("VmRSS:"), Instant::now());
            let whole = folder.finish(LONG, Format::Mp4).unwrap().unwrap();
            let (took, more) = (begin.elapsed(), memory("VmHWM:") - before);
            println!("{} bytes: {took:?}, {} KiB", whole.size, more >> 10);
            assert!(took < Duration::from_secs(2) && more < 64 << 20, "{took:?}, {more} bytes");
            return;
        }
        let soak = std::env::var_os("BYWASH_SOAK").is_some();
        let seconds = if soak { 7_200 } else { 60 };
        let folder = folder("long");
        write_long(&folder, seconds);
        let this = std::env::current_exe().unwrap();
        let name = "segment::tests::finishing_two_hours_takes_a_moment_and_little_memory";
        let mut child = std::process::Command::new(this);
        let done = child.args(["--exact", name, "--nocapture"]).env(CHILD, folder.root()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        println!("{said}");
        assert!(done.status.success(), "{said}");
        let whole = folder.finish(LONG, Format::Mp4).unwrap().unwrap();
        assert!((whole.duration - Time::from_millis(seconds * 1000)).as_millis().abs() < 50, "{whole:?}");
        let _ = fs::remove_dir_all(folder.root());
    }
}
