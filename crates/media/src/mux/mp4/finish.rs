//! Finishing and repairing: from what the fragments say to the tables of an ordinary file.
//!
//! One pass over the fragments' heads; memory is that of the tables, about 20 bytes a sample at most.

use std::io;
use std::ops::Range;
use std::slice::Chunks;

use super::boxes::{self, Head, children, rate, u32_at, u64_at};
use super::table::{Edit, Table};
use super::{PLACEHOLDER, withhold};
use crate::mux::{Finish, Source, Write};
use crate::{Time, Track};

/// The largest `moov` or `moof` of a file in the making that is believed. A fragment's is 1 to 2 KB as a rule.
const HEAD_MAX: u64 = 4 << 20;

/// What makes an ordinary file of one that [`Writer`](super::Writer) began, wherever that stopped. `None` if there is no media
/// in it: keep it aside, never publish it. A finished file stays as it is.
///
/// The writes are in the one order that leaves the file playable after each of them.
pub fn finish<S: Source + ?Sized>(file: &S) -> io::Result<Option<Finish>> {
    let Some(placeholder) = placeholder(file)? else { return Ok(None) };
    if let Some(duration) = finished(file, placeholder.at)? {
        return Ok(Some(Finish { writes: Vec::new(), len: file.size(), duration }));
    }
    // Whatever the placeholder says: a crash may have torn it.
    let scan = scan(file, placeholder.at + PLACEHOLDER.len() as u64, None)?;
    if !scan.has_media() {
        return Ok(None);
    }
    let end = scan.end;
    let (moov, duration) = scan.moov();
    let len = end + moov.len() as u64;
    let mut writes = Vec::new();
    if end < file.size() {
        writes.push(Write::Truncate(end));
    }
    let mut parts = vec![moov.into()];
    let word = withhold(&mut parts);
    let size = (end - placeholder.at).to_be_bytes().to_vec();
    writes.extend([Write::At(end, parts), Write::Sync, Write::At(end, vec![word]), Write::Sync]);
    // While the box is still `free`, its payload means nothing.
    writes.extend([Write::At(placeholder.at + 8, vec![size.into()]), Write::Sync]);
    writes.extend([Write::At(placeholder.at, vec![(&b"\0\0\0\x01mdat"[..]).into()]), Write::Sync]);
    let duration = Time::from_ticks(duration as i64, boxes::MOVIE_TIMESCALE);
    Ok(Some(Finish { writes, len, duration }))
}

/// A box of the file: its kind, and where it begins, where its body does and where it ends.
struct Place {
    kind: [u8; 4],
    at: u64,
    body: u64,
    end: u64,
}

/// The box at `at`; `None` if there is none that is whole.
fn place<S: Source + ?Sized>(file: &S, at: u64) -> io::Result<Option<Place>> {
    let room = file.size().saturating_sub(at);
    let mut head = [0; 16];
    file.read_at(at, &mut head[..room.min(16) as usize])?;
    let kind = [head[4], head[5], head[6], head[7]];
    let (size, body) = match u32_at(&head, 0) {
        Some(1) => (u64_at(&head, 8).unwrap_or_default(), 16),
        size => (size.unwrap_or_default().into(), 8),
    };
    Ok((body <= size && size <= room).then(|| Place { kind, at, body: at + body, end: at + size }))
}

/// The tracks of a finished file: each with its description, its samples and its edit list; `None` if it is not finished,
/// or not by us.
pub(crate) fn read<S: Source + ?Sized>(file: &S) -> io::Result<Option<Vec<(Track, Table, Edit)>>> {
    const MOOV_MAX: u64 = 256 << 20;
    let mut at = 0;
    while let Some(it) = place(file, at)? {
        at = it.end;
        if &it.kind != b"moov" || it.end - it.at > MOOV_MAX {
            continue;
        }
        let mut moov = vec![0; (it.end - it.body) as usize];
        file.read_at(it.body, &mut moov)?;
        let traks = children(&moov).filter(|(kind, ..)| kind == b"trak");
        let whole = |trak| {
            let (head, table, edit) = Head::parse_whole(trak)?;
            Some((head.track().filter(|track| rate(track) == head.timescale)?, table, edit))
        };
        return Ok(traks.map(|(_, trak, _)| whole(trak)).collect());
    }
    Ok(None)
}

/// The box behind `ftyp`, of which only the place counts.
fn placeholder<S: Source + ?Sized>(file: &S) -> io::Result<Option<Place>> {
    let Some(ftyp) = place(file, 0)?.filter(|it| &it.kind == b"ftyp") else { return Ok(None) };
    if ftyp.end + PLACEHOLDER.len() as u64 > file.size() {
        return Ok(None);
    }
    let mut head = [0; 8];
    file.read_at(ftyp.end, &mut head)?;
    let kind = [head[4], head[5], head[6], head[7]];
    let is_one = matches!(&kind, b"free" | b"mdat");
    Ok(is_one.then(|| Place { kind, at: ftyp.end, body: ftyp.end + 8, end: ftyp.end + 16 }))
}

/// How long a finished file plays; `None` if it is not finished.
fn finished<S: Source + ?Sized>(file: &S, at: u64) -> io::Result<Option<Time>> {
    let Some(mdat) = place(file, at)?.filter(|it| &it.kind == b"mdat") else { return Ok(None) };
    let Some(moov) = place(file, mdat.end)?.filter(|it| &it.kind == b"moov") else { return Ok(None) };
    if moov.end != file.size() || moov.end - moov.at < boxes::DURATION_AT + 8 {
        return Ok(None);
    }
    let mut duration = [0; 8];
    file.read_at(moov.at + boxes::DURATION_AT, &mut duration)?;
    Ok(Some(Time::from_ticks(u64::from_be_bytes(duration) as i64, boxes::MOVIE_TIMESCALE)))
}

/// What the fragments of a file hold.
#[derive(Debug)]
pub(crate) struct Scan {
    heads: Vec<Head>,
    tables: Vec<Table>,
    /// Behind the last whole fragment.
    pub(crate) end: u64,
}

impl Scan {
    pub(crate) fn has_media(&self) -> bool {
        self.tables.iter().any(|table| !table.is_empty())
    }

    /// How long the longest track lasts.
    pub(crate) fn duration(&self) -> Time {
        let of = |(head, table): (&Head, &Table)| Time::from_ticks(table.duration() as i64, head.timescale);
        self.heads.iter().zip(&self.tables).map(of).max().unwrap_or_default()
    }

    /// The tracks with their samples; `None` if one is not as we write it.
    pub(crate) fn tracks(self) -> Option<Vec<(Track, Table)>> {
        self.heads.iter().map(Head::track).zip(self.tables).map(|(track, table)| Some((track?, table))).collect()
    }

    fn moov(self) -> (Vec<u8>, u64) {
        let spans = self.heads.iter().zip(&self.tables).map(|(head, table)| (table, head.timescale, head.priming()));
        let edits = Edit::list(&spans.collect::<Vec<_>>());
        let tables = self.tables.into_iter().zip(edits).collect::<Vec<_>>();
        boxes::moov(&self.heads, &tables)
    }
}

/// Walks the boxes from `at` on, as far as they make sense: a `moov` unless its tracks are given, then fragments.
pub(crate) fn scan<S: Source + ?Sized>(file: &S, at: u64, heads: Option<Vec<Head>>) -> io::Result<Scan> {
    let mut found = heads.is_some();
    let heads = heads.unwrap_or_default();
    let mut scan = Scan { tables: vec![Table::default(); heads.len()], heads, end: at };
    let mut at = at;
    let mut moof = Vec::new();
    let mut moof_at = None;
    while let Some(it) = place(file, at)? {
        let small = it.end - it.at <= HEAD_MAX;
        match &it.kind {
            b"moov" if !found && small => {
                let mut moov = vec![0; (it.end - it.body) as usize];
                file.read_at(it.body, &mut moov)?;
                let Some(heads) = Head::parse_all(&moov) else { break };
                scan.tables = vec![Table::default(); heads.len()];
                scan.heads = heads;
                found = true;
            }
            b"moof" if found && small => {
                moof.resize((it.end - it.body) as usize, 0);
                file.read_at(it.body, &mut moof)?;
                moof_at = Some(it.at);
            }
            b"mdat" => {
                let runs = moof_at.take().and_then(|at| Run::parse_all(&moof, at, &scan.heads));
                let Some(runs) = runs.filter(|runs| runs.iter().all(|run| run.is_within(&it))) else { break };
                for run in runs {
                    let table = &mut scan.tables[run.lane];
                    run.add(table);
                }
                scan.end = it.end;
            }
            b"ftyp" | b"free" | b"skip" | b"uuid" | b"sidx" | b"styp" | b"prft" | b"emsg" => {}
            _ => break,
        }
        at = it.end;
    }
    scan.tables.iter_mut().for_each(Table::end);
    Ok(scan)
}

/// The latest time that is believed, in ticks: a hundred years at 90 kHz.
const START_MAX: u64 = 1 << 48;

/// A `trun` of the form that [`Fragments`](super::Fragments) writes.
struct Run<'a> {
    lane: usize,
    /// The decoding time of its first sample.
    start: u64,
    /// Where its samples lie in the file.
    data: Range<u64>,
    /// Duration, size, flags and perhaps offset of each sample.
    entries: Chunks<'a, u8>,
}

impl Run<'_> {
    /// Those of a `moof`, from its body; `None` if one is of another form or of no known track.
    fn parse_all<'a>(moof: &'a [u8], moof_at: u64, heads: &[Head]) -> Option<Vec<Run<'a>>> {
        let trafs = children(moof).filter(|(kind, ..)| kind == b"traf");
        let mut runs = Vec::with_capacity(heads.len());
        for (_, traf, _) in trafs {
            let mut parts = children(traf);
            let mut next = |kind: &[u8; 4]| parts.next().filter(|(it, ..)| it == kind).map(|(_, body, _)| body);
            let (tfhd, tfdt, trun) = (next(b"tfhd")?, next(b"tfdt")?, next(b"trun")?);
            let id = u32_at(tfhd, 4).filter(|_| tfhd.starts_with(&[0, 2, 0, 0]))?;
            let lane = heads.iter().position(|head| head.id == id)?;
            let start = u64_at(tfdt, 4).filter(|&start| tfdt[0] == 1 && start < START_MAX)?;
            let entry_size = match u32_at(trun, 0)? {
                0x701 => 12,
                0xf01 => 16,
                _ => return None,
            };
            let count = u32_at(trun, 4)? as usize;
            let from = moof_at + u64::from(u32_at(trun, 8)?);
            let body = trun.get(12..)?;
            if count == 0 || Some(body.len()) != count.checked_mul(entry_size) {
                return None;
            }
            let entries = body.chunks(entry_size);
            let bytes: u64 = entries.clone().map(|it| u64::from(u32_at(it, 4).unwrap_or_default())).sum();
            runs.push(Run { lane, start, data: from..from + bytes, entries });
        }
        (!runs.is_empty()).then_some(runs)
    }

    fn is_within(&self, mdat: &Place) -> bool {
        mdat.body <= self.data.start && self.data.end <= mdat.end
    }

    fn add(self, table: &mut Table) {
        const NOT_SYNC: u32 = 0x0001_0000;
        table.chunk(self.data.start, self.entries.len() as u32);
        let mut dts = self.start;
        for entry in self.entries {
            let number = |at: usize| u32_at(entry, 4 * at).unwrap_or_default();
            let (duration, size, flags, offset) = (number(0), number(1), number(2), number(3));
            table.sample(dts, offset, duration, size, flags & NOT_SYNC == 0);
            dts += u64::from(duration);
        }
    }
}
