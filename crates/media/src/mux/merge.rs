//! Files put one behind the other, and pieces of them, without decoding anything.
//!
//! An [`Index`] tells where each sample of a file is and when it is shown. From pieces of such files [`mp4`] makes a plan
//! of which bytes to copy and of the tables around them; [`frames`] lists a piece's frames for every other format. Memory is
//! that of the tables, about 40 bytes a sample.
//!
//! In an MP4 a piece is as exact as its edit list: what is needed to decode its first picture is in the file and not shown.
//!
//! Invariant: what of a piece is shown begins for all tracks at one moment and ends at one, so sound and picture are together
//! again at each seam.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::clock::{last_length, placed};
use super::flv::{Item, Reader};
use super::mp4::{self, Edit, FTYP, Head, MOVIE_TIMESCALE, Part, Table, packet_ticks, rate};
use super::{Source, adts, flv, mp3, ts};
use crate::{Codec, Format, Frame, Kind, Time, Track, Tracks, codec};

/// Why files cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read; trying again may help.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// They cannot, ever; in words for who asked.
    #[error("{0}")]
    Unfit(String),
}

fn unfit<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Unfit(why.into()))
}

/// What a file holds, by track.
#[derive(Clone, Debug)]
pub struct Index {
    lanes: Vec<Lane>,
}

#[derive(Clone, Debug)]
struct Lane {
    track: Arc<Track>,
    /// Ticks a second.
    rate: u32,
    /// When tick 0 is shown, on the line of what the file shows.
    zero: Time,
    /// In the order of decoding.
    samples: Vec<Sample>,
}

/// A sample. Times are in ticks of its lane.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: u64,
    dts: i64,
    size: u32,
    offset: u32,
    duration: u32,
    key: bool,
}

impl Sample {
    /// When it is shown, in ticks.
    fn pts(&self) -> i64 {
        self.dts + i64::from(self.offset)
    }
}

impl Index {
    /// Of a finished MP4 file of ours.
    pub fn mp4<S: Source + ?Sized>(file: &S) -> Result<Index, Error> {
        let Some(tracks) = mp4::read(file)? else {
            return unfit("this MP4 file was not written by a recording or a merge");
        };
        let mut lanes = Vec::with_capacity(tracks.len());
        for (track, table, Edit(edit)) in tracks {
            let mut lane = Lane::new(track);
            let [part] = edit[..] else { return unfit("an MP4 file that was trimmed before cannot be merged again") };
            let delay = Time::from_ticks(part.delay as i64, MOVIE_TIMESCALE);
            lane.zero = delay - Time::from_ticks(part.from as i64, lane.rate);
            lane.take(&table);
            lanes.push(lane);
        }
        Index::new(lanes)
    }

    /// Of the fMP4 segments of an HLS recording, one behind the other behind their initialization section.
    pub fn fragments<S: Source + ?Sized>(file: &S) -> Result<Index, Error> {
        let Some(tracks) = mp4::scan(file, 0, None)?.tracks() else { return unfit("these segments are damaged") };
        let lane = |(track, table): (Track, Table)| {
            let mut lane = Lane::new(track);
            lane.take(&table);
            lane
        };
        Index::from_zero(tracks.into_iter().map(lane).collect())
    }

    /// Of the MPEG-TS segments of an HLS recording, one behind the other. Their payloads are not in one piece there: they are written to
    /// `out`, which is then the file that the index is of.
    pub fn ts<S: Source + ?Sized>(file: &S, out: &mut impl io::Write) -> Result<Index, Error> {
        let (mut lanes, mut at): (Vec<Lane>, u64) = (Vec::new(), 0);
        ts::read(file, |track, frame| {
            let lane = match lanes.iter_mut().position(|lane| lane.track.codec.kind() == frame.track) {
                Some(nth) if codec::difference(&lanes[nth].track, track).is_some() => {
                    return unfit("a file changes its tracks on the way");
                }
                Some(nth) => &mut lanes[nth],
                None => {
                    lanes.push(Lane::new(track.clone()));
                    lanes.last_mut().expect("one was pushed")
                }
            };
            lane.push(&frame, at);
            at += frame.payload.len() as u64;
            Ok(out.write_all(&frame.payload)?)
        })?;
        lanes.sort_by_key(|lane| lane.track.codec.kind() == Kind::Audio);
        Index::from_zero(lanes)
    }

    /// Of an FLV file.
    pub fn flv<S: Source + ?Sized>(file: &S) -> Result<Index, Error> {
        let mut lanes: Vec<Lane> = Vec::new();
        let (mut reader, mut items) = (Reader::new(), Vec::new());
        flv::file::bodies(file, |kind, timestamp, at, body| {
            let read = match kind {
                Kind::Video => reader.video(&body, &mut items),
                Kind::Audio => reader.audio(&body, &mut items),
            };
            if read.is_err() {
                return Ok(());
            }
            for item in items.drain(..) {
                match item {
                    Item::Track(track) => match lanes.iter().find(|lane| lane.track.codec.kind() == kind) {
                        Some(lane) if codec::difference(&lane.track, &track).is_some() => {
                            return unfit("a file changes its tracks on the way");
                        }
                        Some(_) => {}
                        None => lanes.push(Lane::new(track)),
                    },
                    Item::Frame(raw) => {
                        let Some(lane) = lanes.iter_mut().find(|lane| lane.track.codec.kind() == kind) else {
                            continue;
                        };
                        // The payload is the end of the body.
                        let at = at + (body.len() - raw.payload.len()) as u64;
                        let (dts, cts, key) = (Time::from_millis(timestamp.into()), raw.cts.max(Time::ZERO), raw.key);
                        lane.push(&Frame { track: kind, dts, cts, key, payload: raw.payload }, at);
                    }
                    Item::Ended(_) => {}
                }
            }
            Ok(())
        })?;
        lanes.sort_by_key(|lane| lane.track.codec.kind() == Kind::Audio);
        Index::from_zero(lanes)
    }

    /// Of an MP3 file.
    pub fn mp3<S: Source + ?Sized>(file: &S) -> Result<Index, Error> {
        Index::packets(file, mp3::silent(file)?, 4, |head| {
            let found = codec::mp3::Header::parse(head).filter(|it| it.len > 4)?;
            Some((usize::from(found.len), 0, codec::track(Codec::Mp3, Bytes::copy_from_slice(head)).ok()?))
        })
    }

    /// Of an AAC file in ADTS.
    pub fn adts<S: Source + ?Sized>(file: &S) -> Result<Index, Error> {
        Index::packets(file, 0, adts::HEAD, |head| {
            let (len, config) = adts::parse(head)?;
            Some((len, adts::HEAD, codec::track(Codec::Aac, config).ok()?))
        })
    }

    /// Of a file that is nothing but packets from `at` on; `parse` gives from the first `head` bytes of each its length, how much of it is
    /// header, and its track.
    fn packets<S: Source + ?Sized>(
        file: &S,
        mut at: u64,
        head: usize,
        parse: impl Fn(&[u8]) -> Option<(usize, usize, Track)>,
    ) -> Result<Index, Error> {
        let mut lanes: Vec<Lane> = Vec::new();
        let mut packet = Vec::new();
        while at + head as u64 <= file.size() {
            packet.resize(head, 0);
            file.read_at(at, &mut packet)?;
            let Some((len, skip, track)) = parse(&packet).filter(|it| at + it.0 as u64 <= file.size()) else { break };
            if lanes.is_empty() {
                lanes.push(Lane::new(track.clone()));
            }
            let lane = &mut lanes[0];
            if codec::difference(&lane.track, &track).is_some() {
                return unfit("a file changes its sound on the way");
            }
            let duration = packet_ticks(&track, &packet);
            let dts = lane.samples.last().map_or(0, |last| last.dts + i64::from(last.duration));
            let size = (len - skip) as u32;
            lane.samples.push(Sample { at: at + skip as u64, dts, size, offset: 0, duration, key: true });
            at += len as u64;
        }
        Index::from_zero(lanes)
    }

    /// Of lanes whose line begins anywhere.
    fn from_zero(mut lanes: Vec<Lane>) -> Result<Index, Error> {
        let last =
            |lane: &Lane| lane.samples.last().map(|it| Time::from_ticks(it.dts + i64::from(it.duration), lane.rate));
        let until = lanes.iter().filter_map(last).max().unwrap_or_default();
        lanes.iter_mut().for_each(|lane| lane.end(until));
        let first = lanes.iter().filter_map(Lane::first).min().unwrap_or_default();
        lanes.iter_mut().for_each(|lane| lane.zero = lane.zero - first);
        Index::new(lanes)
    }

    fn new(mut lanes: Vec<Lane>) -> Result<Index, Error> {
        /// In ticks, and in bytes: what no file of ours comes near.
        const FAR: u64 = 1 << 48;
        lanes.retain(|lane| !lane.samples.is_empty());
        let far = |it: &Sample| it.dts.unsigned_abs() > FAR || it.at > FAR;
        if lanes.iter().any(|lane| lane.samples.iter().any(far)) {
            return unfit("a file is damaged");
        }
        if lanes.is_empty() {
            return unfit("a file has no media in it");
        }
        Ok(Index { lanes })
    }

    /// The tracks of the file.
    pub fn tracks(&self) -> Tracks {
        let of = |kind| self.lanes.iter().find(|lane| lane.track.codec.kind() == kind).map(|lane| lane.track.clone());
        Tracks { video: of(Kind::Video), audio: of(Kind::Audio) }
    }

    /// Its sound alone; `None` if it has none.
    pub fn sound(&self) -> Option<Index> {
        let lane = self.lanes.iter().find(|lane| lane.track.codec.kind() == Kind::Audio)?;
        Some(Index { lanes: vec![lane.clone()] })
    }

    /// How long it plays.
    pub fn duration(&self) -> Time {
        self.lanes.iter().map(|lane| lane.until(&lane.samples)).max().unwrap_or_default()
    }
}

impl Lane {
    fn new(track: Track) -> Lane {
        Lane { rate: rate(&track), track: Arc::new(track), zero: Time::ZERO, samples: Vec::new() }
    }

    fn take(&mut self, table: &Table) {
        self.samples.extend(table.samples().map(|it| Sample {
            at: it.at,
            dts: it.dts as i64,
            size: it.size,
            offset: it.offset,
            duration: it.duration,
            key: it.key,
        }));
    }

    /// Takes a frame whose payload is at `at`.
    fn push(&mut self, frame: &Frame, at: u64) {
        let duration = packet_ticks(&self.track, &frame.payload);
        let last = self.samples.last().map(|last| (last.dts, last.duration));
        let dts = placed(frame.dts.as_ticks(self.rate), duration, last);
        let offset = frame.cts.as_ticks(self.rate).clamp(0, u32::MAX.into()) as u32;
        self.samples.push(Sample { at, dts, size: frame.payload.len() as u32, offset, duration, key: frame.key });
    }

    /// Gives pictures the durations that only the next one tells, all tracks being known to go `until` then.
    fn end(&mut self, until: Time) {
        let rate = self.rate;
        let time = |ticks| Time::from_ticks(ticks, rate);
        let mut step = 0;
        for n in 0..self.samples.len() {
            let dts = self.samples[n].dts;
            let length = match self.samples.get(n + 1) {
                Some(next) => next.dts - dts,
                None => last_length(time(step), until - time(dts)).as_ticks(rate),
            };
            let sample = &mut self.samples[n];
            if sample.duration == 0 {
                sample.duration = length.clamp(0, u32::MAX.into()) as u32;
            }
            step = length;
        }
    }

    fn shown(&self, sample: &Sample) -> Time {
        self.zero + Time::from_ticks(sample.pts(), self.rate)
    }

    fn first(&self) -> Option<Time> {
        self.samples.iter().map(|it| self.shown(it)).min()
    }

    fn shown_until(&self, sample: &Sample) -> Time {
        self.zero + Time::from_ticks(sample.pts() + i64::from(sample.duration), self.rate)
    }

    /// When the last of `samples` has been shown.
    fn until(&self, samples: &[Sample]) -> Time {
        samples.iter().map(|it| self.shown_until(it)).max().unwrap_or_default()
    }

    fn is_picture(&self) -> bool {
        self.track.codec.kind() == Kind::Video
    }

    /// Whether a sample is shown. Of sound a part of a packet can be; readers differ about a part of a picture.
    fn is_in(&self, sample: &Sample, cut: &Cut<'_>) -> bool {
        let begins =
            if self.is_picture() { self.shown(sample) >= cut.begin } else { self.shown_until(sample) > cut.begin };
        begins && self.shown(sample) < cut.end
    }

    /// How long before the first picture of a cut is shown the first one is decoded, of those that are shown.
    fn lead(&self, range: &Range<usize>, cut: &Cut<'_>) -> i64 {
        let visible = self.samples[range.clone()].iter().filter(|it| self.is_picture() && self.is_in(it, cut));
        let shown = visible.clone().map(Sample::pts).min();
        shown.zip(visible.map(|it| it.dts).next()).map_or(0, |(shown, decoded)| shown - decoded)
    }

    /// What must be decoded to show what is between `begin` and `end`.
    fn range(&self, begin: Time, end: Time) -> Range<usize> {
        let needed = |it: &Sample| match self.is_picture() {
            true => it.key && self.shown(it) <= begin,
            false => self.shown(it) <= begin,
        };
        let from = self.samples.iter().rposition(needed);
        let from = match from {
            // A decoder of sound needs the packet before.
            Some(from) if !self.is_picture() && self.shown(&self.samples[from]) < begin => from.saturating_sub(1),
            Some(from) => from,
            None => self.samples.iter().position(|it| it.key).unwrap_or_default(),
        };
        let to = self.samples.iter().rposition(|it| self.shown(it) < end).map_or(0, |last| last + 1);
        from..to.max(from)
    }
}

/// A piece of a file.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The file.
    pub index: &'a Index,
    /// Where it begins, from the first moment that the file shows.
    pub begin: Time,
    /// Where it ends; at the file's end without.
    pub end: Option<Time>,
}

/// What of a file a piece takes.
struct Cut<'a> {
    lanes: Vec<(&'a Lane, Range<usize>)>,
    /// What is shown.
    begin: Time,
    end: Time,
    /// The first moment that is in what must be decoded, and the last.
    first: Time,
    last: Time,
}

impl<'a> Piece<'a> {
    fn cut(&self) -> Result<Cut<'a>, Error> {
        let length = self.index.duration();
        let (begin, end) = (self.begin.max(Time::ZERO), self.end.unwrap_or(length).min(length));
        if begin >= end {
            let seconds = |time: Time| time.as_millis() as f64 / 1000.0;
            let (from, to) = (seconds(self.begin), seconds(self.end.unwrap_or(length)));
            return unfit(format!("nothing lies between {from} s and {to} s of a file of {} s", seconds(length)));
        }
        let lanes: Vec<_> = self.index.lanes.iter().map(|lane| (lane, lane.range(begin, end))).collect();
        let samples = lanes.iter().map(|(lane, range)| (lane, &lane.samples[range.clone()]));
        let first = samples.clone().filter_map(|(lane, them)| them.iter().map(|it| lane.shown(it)).min()).min();
        let last = samples.map(|(lane, them)| lane.until(them)).max();
        let (first, last) = (first.unwrap_or(begin).min(begin), last.unwrap_or(end).max(end));
        Ok(Cut { lanes, begin, end, first, last })
    }
}

/// How to make an MP4 file of pieces: `head`, then the bytes of each copy, then `tail`.
#[derive(Debug)]
pub struct Mp4 {
    /// The file's first bytes.
    pub head: Vec<u8>,
    /// What is copied, in this order.
    pub copies: Vec<Copy>,
    /// The file's last bytes.
    pub tail: Vec<u8>,
    /// How long it plays.
    pub duration: Time,
}

/// Bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The piece whose file it is.
    pub piece: usize,
    /// Which.
    pub bytes: Range<u64>,
    /// They are an H.265 picture that follows others than it was coded behind: [`break_link`](codec::h265::break_link) is to change them.
    pub breaks: bool,
}

/// A track of the file in the making.
struct Out {
    table: Table,
    /// The decoding time of its first sample and behind its last one.
    first: Option<i64>,
    next: i64,
}

/// A stretch of the line of decoding that is shown without a break; and for each track, what of it that has.
struct Run {
    begin: Time,
    end: Time,
    shown: Vec<Option<Shown>>,
}

/// What a track shows in a run.
#[derive(Clone, Copy)]
struct Shown {
    /// When its first sample is shown, in ticks of the track.
    ticks: i64,
    from: Time,
    until: Time,
    /// How long the last picture may stay where nothing follows: until a hidden one would be shown, or one of the next run.
    hold: Time,
}

/// Makes one file of `pieces`, which must be of the same codecs and settings.
pub fn mp4(pieces: &[Piece<'_>]) -> Result<Mp4, Error> {
    let Some(one) = pieces.first() else { return unfit("there is nothing to merge") };
    let tracks: Vec<_> = one.index.lanes.iter().map(|lane| lane.track.clone()).collect();
    for (number, piece) in (1..).zip(pieces) {
        agree(&tracks, piece.index, number)?;
    }
    let heads: Vec<Head> = (1..).zip(&tracks).map(|(id, track)| Head::new(id, track)).collect();
    let mut outs: Vec<_> =
        tracks.iter().map(|_| Out { table: Table::default(), first: None, next: i64::MIN }).collect();
    let (mut copies, mut runs): (Vec<Copy>, Vec<Run>) = (Vec::new(), Vec::new());
    let start = FTYP.len() as u64 + 16;
    let (mut at, mut line) = (start, Time::ZERO);
    let cuts = pieces.iter().map(Piece::cut).collect::<Result<Vec<_>, _>>()?;
    // FFmpeg begins each edit with the decoding time of the first picture that it shows of it, and mends the distance to when that is
    // shown for the first edit alone: it has to be the same for all.
    let lead = |cut: &Cut<'_>| cut.lanes.iter().map(|(lane, range)| lane.lead(range, cut)).collect::<Vec<_>>();
    let leads: Vec<_> = cuts.iter().map(lead).collect();
    let most = |nth| leads.iter().map(|it| it[nth]).max().unwrap_or_default();
    let most: Vec<_> = (0..outs.len()).map(most).collect();
    for (number, (cut, leads)) in cuts.iter().zip(&leads).enumerate() {
        let early = |nth: usize| most[nth] - leads[nth];
        // Where the cut's first moment comes to be: not so early that a track would go back.
        let shift = |line: Time, lane: &Lane| (line - cut.first + lane.zero).as_ticks(lane.rate);
        for (nth, ((lane, range), out)) in cut.lanes.iter().zip(&outs).enumerate() {
            let Some(first) = lane.samples[range.clone()].first() else { continue };
            let short = out.next.saturating_sub(shift(line, lane) + first.dts - early(nth));
            if short > 0 {
                line = line + Time::from_ticks(short, lane.rate);
            }
        }
        let (begin, end) = (line + (cut.begin - cut.first), line + (cut.end - cut.first));
        if runs.last().is_none_or(|run| run.end != begin) {
            runs.push(Run { begin, end, shown: vec![None; outs.len()] });
        }
        let run = runs.last_mut().expect("one was there or was pushed");
        run.end = end;

        let mut order: Vec<(usize, Sample)> = Vec::new();
        for (nth, (lane, range)) in cut.lanes.iter().enumerate() {
            let (samples, shift) = (&lane.samples[range.clone()], shift(line, lane));
            let visible = samples.iter().filter(|it| lane.is_in(it, cut));
            if let Some(from) = visible.clone().min_by_key(|it| it.pts()) {
                let moved = |time: Time| line + (time - cut.first);
                let until = moved(lane.until(&visible.copied().collect::<Vec<_>>()).min(cut.end));
                let at = lane.shown(from);
                // A first sample that is shown whole is told in its own ticks: one less would be a sample too many.
                let inside = if at >= cut.begin { 0 } else { (cut.begin - at).as_ticks(lane.rate) };
                let ticks = from.pts() + shift + inside;
                let slot =
                    run.shown[nth].get_or_insert(Shown { ticks, from: moved(at.max(cut.begin)), until, hold: until });
                slot.until = slot.until.max(until);
                let hidden = samples.iter().map(|it| lane.shown(it)).filter(|at| *at >= cut.end).min().map(moved);
                slot.hold = if lane.is_picture() { hidden.unwrap_or(moved(cut.last)) } else { slot.until };
            }
            let early = early(nth);
            order.extend(samples.iter().map(|it| {
                let offset = it.offset.saturating_add(early as u32);
                (nth, Sample { dts: it.dts + shift - early, offset, ..*it })
            }));
        }
        let h265 = |lane: &Lane| lane.track.codec == Codec::H265;
        let joins = cut.lanes.iter().find(|(lane, range)| number > 0 && h265(lane) && !range.is_empty());
        let joins = joins.map(|(lane, range)| lane.samples[range.start].at);
        order.sort_by_key(|(_, sample)| sample.at);
        for chunk in order.chunk_by(|a, b| a.0 == b.0) {
            let out = &mut outs[chunk[0].0];
            out.table.chunk(at, chunk.len() as u32);
            for (_, sample) in chunk {
                let first = *out.first.get_or_insert(sample.dts);
                let dts = (sample.dts - first).max(0) as u64;
                out.table.sample(dts, sample.offset, sample.duration, sample.size, sample.key);
                out.next = sample.dts + 1;
                let bytes = sample.at..sample.at + u64::from(sample.size);
                at += u64::from(sample.size);
                let breaks = joins == Some(sample.at);
                match copies.last_mut().filter(|last| last.piece == number && last.bytes.end == bytes.start) {
                    Some(last) if !breaks && !last.breaks => last.bytes.end = bytes.end,
                    _ => copies.push(Copy { piece: number, bytes, breaks }),
                }
            }
        }
        line = line + (cut.last - cut.first);
    }
    outs.iter_mut().for_each(|out| out.table.end());
    let edits = (0..outs.len()).map(|nth| edit(&runs, nth, outs[nth].first.unwrap_or_default()));
    let tables: Vec<_> = edits.collect::<Vec<_>>().into_iter().zip(outs).map(|(edit, out)| (out.table, edit)).collect();
    let (tail, duration) = mp4::moov(&heads, &tables);
    let mut head = FTYP.to_vec();
    head.extend(b"\0\0\0\x01mdat");
    head.extend((at - start + 16).to_be_bytes());
    Ok(Mp4 { head, copies, tail, duration: Time::from_ticks(duration as i64, MOVIE_TIMESCALE) })
}

/// The edit list of a track whose first sample is decoded at `first`.
fn edit(runs: &[Run], nth: usize, first: i64) -> Edit {
    // Moments are rounded, not lengths, so that rounding does not add up.
    let movie = |time: Time| time.as_ticks(MOVIE_TIMESCALE).max(0) as u64;
    let (mut parts, mut presented, mut told, mut hold) = (Vec::<Part>::new(), Time::ZERO, 0, 0);
    for run in runs {
        if let Some(Shown { ticks, from, until, hold: last }) = run.shown[nth] {
            let (begin, end) = (movie(presented + (from - run.begin)), movie(presented + (until - run.begin)));
            // FFmpeg knows empty edits at the beginning alone.
            if let Some(before) = parts.last_mut().filter(|_| begin <= hold) {
                before.length += begin.saturating_sub(told);
                told = told.max(begin);
            }
            parts.push(Part {
                delay: begin.saturating_sub(told),
                length: end.saturating_sub(begin),
                from: (ticks - first).max(0) as u64,
            });
            (told, hold) = (end, movie(presented + (last - run.begin)));
        }
        presented = presented + (run.end - run.begin);
    }
    Edit(parts)
}

/// Whether `index` has just these tracks; else says how it differs.
fn agree(tracks: &[Arc<Track>], index: &Index, number: usize) -> Result<(), Error> {
    let has: Vec<_> = index.lanes.iter().map(|lane| &lane.track).collect();
    let kinds = has.iter().map(|it| it.codec.kind()).eq(tracks.iter().map(|it| it.codec.kind()));
    let differ = |(one, it): (&Arc<Track>, &&Arc<Track>)| {
        let what = if it.codec.kind() == Kind::Video { "pictures" } else { "sound" };
        Some(format!("the {} of the {what}", codec::difference(one, it)?))
    };
    let differ: Vec<_> = match kinds {
        true => tracks.iter().zip(&has).filter_map(differ).collect(),
        false => vec!["the tracks".into()],
    };
    if differ.is_empty() {
        return Ok(());
    }
    let all = |lanes: &[&Arc<Track>]| lanes.iter().map(|it| about(it)).collect::<Vec<_>>().join(" and ");
    let (one, other, what) = (all(&tracks.iter().collect::<Vec<_>>()), all(&has), differ.join(" and "));
    unfit(format!("input {number} has {other}, input 1 has {one}; they differ in {what}: merging does not re-encode"))
}

/// A track in words: its codec, and what it says of the pictures or the sound.
pub fn about(track: &Track) -> String {
    match track.format {
        Format::Video { width, height } => format!("{} {width}x{height}", track.codec),
        Format::Audio { sample_rate, channels } => format!("{} {sample_rate} Hz x{channels}", track.codec),
    }
}

/// A frame that is still in its file.
#[derive(Clone, Debug)]
pub struct Unread {
    /// The frame, without its payload. Times count from the first moment of the piece.
    pub frame: Frame,
    /// Where the payload is.
    pub bytes: Range<u64>,
}

/// The frames of a piece in the order of decoding, from the key frame at or before its beginning on; and how long
/// they play.
pub fn frames(piece: &Piece<'_>) -> Result<(Vec<Unread>, Time), Error> {
    let cut = piece.cut()?;
    let mut all = Vec::new();
    // Pictures begin at their key frame, and sound with them.
    let pictures = cut.lanes.iter().find(|(lane, _)| lane.track.codec.kind() == Kind::Video);
    let begin = pictures.and_then(|(lane, range)| lane.samples[range.clone()].iter().map(|it| lane.shown(it)).min());
    let begin = begin.unwrap_or(cut.begin).min(cut.begin);
    for (lane, _) in &cut.lanes {
        let kind = lane.track.codec.kind();
        let range = lane.range(begin, cut.end);
        for it in lane.samples[range].iter().filter(|it| kind == Kind::Video || lane.shown(it) >= begin) {
            let dts = lane.zero + Time::from_ticks(it.dts, lane.rate) - begin;
            let cts = Time::from_ticks(it.offset.into(), lane.rate);
            let frame = Frame { track: kind, dts, cts, key: it.key, payload: Bytes::new() };
            all.push(Unread { frame, bytes: it.at..it.at + u64::from(it.size) });
        }
    }
    all.sort_by_key(|it| it.frame.dts);
    Ok((all, cut.end - begin))
}
