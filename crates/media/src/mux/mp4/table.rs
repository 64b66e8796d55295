//! The sample tables of a finished file, grown sample by sample in about the size they will have on disk.

use super::boxes::{MOVIE_TIMESCALE, child, full, u32_at, u64_at};

/// The samples of one track. Times are in its own ticks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    first: u64,
    last: Option<Last>,
    steps: Runs,
    offsets: Runs,
    sizes: Vec<u32>,
    /// Numbers of the samples where decoding can begin, from 1.
    keys: Vec<u32>,
    /// Where each chunk begins, and how many samples each has.
    chunks: Vec<u64>,
    per_chunk: Runs,
    first_shown: Option<u64>,
    /// The sample shown last: when, and until when.
    last_shown: (u64, u64),
}

/// A sample whose duration the next one may still stretch.
#[derive(Clone, Copy, Debug)]
struct Last {
    dts: u64,
    offset: u32,
    duration: u32,
}

/// A sample and where it is. Times are in ticks of the track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) at: u64,
    pub(crate) size: u32,
    pub(crate) dts: u64,
    pub(crate) offset: u32,
    pub(crate) duration: u32,
    pub(crate) key: bool,
}

impl Table {
    /// Begins a chunk of `samples` samples at this offset of the file.
    pub(crate) fn chunk(&mut self, at: u64, samples: u32) {
        self.chunks.push(at);
        self.per_chunk.push(samples);
    }

    /// Takes the next sample. `duration` holds only for as long as none follows: then the difference of their times does.
    /// A time that falls, as no writer writes it, is taken for that of the sample before.
    pub(crate) fn sample(&mut self, dts: u64, offset: u32, duration: u32, size: u32, key: bool) {
        let dts = self.last.map_or(dts, |last| dts.max(last.dts));
        match self.last {
            Some(last) => self.settle(last, (dts - last.dts).min(u32::MAX.into()) as u32),
            None => self.first = dts,
        }
        self.last = Some(Last { dts, offset, duration });
        self.sizes.push(size);
        self.offsets.push(offset);
        if key {
            self.keys.push(self.sizes.len() as u32);
        }
    }

    /// After the last sample.
    pub(crate) fn end(&mut self) {
        if let Some(last) = self.last {
            self.settle(last, last.duration);
        }
    }

    fn settle(&mut self, sample: Last, duration: u32) {
        self.steps.push(duration);
        let shown = sample.dts - self.first + u64::from(sample.offset);
        self.first_shown = Some(self.first_shown.map_or(shown, |first| first.min(shown)));
        if shown >= self.last_shown.0 {
            self.last_shown = (shown, shown + u64::from(duration));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// The sum of all durations.
    pub(crate) fn duration(&self) -> u64 {
        self.steps.0.iter().map(|&(count, step)| u64::from(count) * u64::from(step)).sum()
    }

    /// Ticks from which on, and until which, the track is presented, on the line of its decoding times.
    fn span(&self, priming: u64) -> (u64, u64) {
        let from = self.first_shown.unwrap_or_default().max(priming);
        (self.first + from, self.first + self.last_shown.1.max(from))
    }

    /// Reads back what [`write`](Self::write) has written, from the body of `stbl`.
    pub(crate) fn parse(stbl: &[u8]) -> Option<Table> {
        // Behind version, flags and count.
        let numbers = |kind: &[u8; 4], skip: usize| {
            let body = child(stbl, kind)?.get(skip..)?;
            Some(body.chunks_exact(4).map(|it| u32::from_be_bytes([it[0], it[1], it[2], it[3]])).collect::<Vec<_>>())
        };
        let runs = |numbers: Vec<u32>| Runs(numbers.chunks_exact(2).map(|it| (it[0], it[1])).collect());
        // Sizes that are all one have no list; a recording has none such.
        let sizes = numbers(b"stsz", 12)?;
        if u32_at(child(stbl, b"stsz")?, 4) != Some(0) {
            return None;
        }
        let count = sizes.len() as u32;
        let chunks: Vec<u64> = match numbers(b"stco", 8) {
            Some(near) => near.into_iter().map(u64::from).collect(),
            None => child(stbl, b"co64")?.get(8..)?.chunks_exact(8).filter_map(|it| u64_at(it, 0)).collect(),
        };
        let begins = numbers(b"stsc", 8)?;
        let ends = begins.chunks_exact(3).skip(1).map(|it| it[0]).chain([chunks.len() as u32 + 1]);
        let per_chunk = begins.chunks_exact(3).zip(ends).map(|(it, end)| (end.saturating_sub(it[0]), it[1])).collect();
        Some(Table {
            steps: runs(numbers(b"stts", 8)?),
            offsets: numbers(b"ctts", 8).map_or(Runs(vec![(count, 0)]), runs),
            keys: numbers(b"stss", 8).unwrap_or_else(|| (1..=count).collect()),
            per_chunk: Runs(per_chunk),
            sizes,
            chunks,
            ..Table::default()
        })
    }

    /// Every sample, in the order of decoding.
    pub(crate) fn samples(&self) -> impl Iterator<Item = Sample> {
        let chunks = self.chunks.iter().zip(self.per_chunk.iter());
        let (mut left, mut at) = (0, 0);
        let mut chunks = chunks.filter(|(_, samples)| *samples > 0);
        let mut dts = self.first;
        let (mut keys, mut steps, mut offsets) = (self.keys.iter().peekable(), self.steps.iter(), self.offsets.iter());
        (1..).zip(&self.sizes).map_while(move |(number, &size)| {
            if left == 0 {
                (at, left) = chunks.next().map(|(&at, samples)| (at, samples))?;
            }
            let (duration, offset) = (steps.next()?, offsets.next()?);
            let key = keys.next_if(|&&key| key == number).is_some();
            let sample = Sample { at, size, dts, offset, duration, key };
            (at, left, dts) = (at.saturating_add(size.into()), left - 1, dts.saturating_add(duration.into()));
            Some(sample)
        })
    }

    /// What `stbl` holds behind `stsd`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let count = |n: usize| (n as u32).to_be_bytes();
        full(out, b"stts", 0, 0, |out| self.steps.write(out));
        if self.offsets.0.iter().any(|&(_, offset)| offset > 0) {
            full(out, b"ctts", 0, 0, |out| self.offsets.write(out));
        }
        if self.keys.len() < self.sizes.len() {
            full(out, b"stss", 0, 0, |out| {
                out.extend(count(self.keys.len()));
                out.extend(self.keys.iter().flat_map(|key| key.to_be_bytes()));
            });
        }
        full(out, b"stsc", 0, 0, |out| {
            out.extend(count(self.per_chunk.0.len()));
            let mut chunk = 1;
            for &(chunks, samples) in &self.per_chunk.0 {
                // The last number is that of the sample description.
                out.extend([chunk, samples, 1].iter().flat_map(|it: &u32| it.to_be_bytes()));
                chunk += chunks;
            }
        });
        full(out, b"stsz", 0, 0, |out| {
            out.extend([0; 4]);
            out.extend(count(self.sizes.len()));
            out.extend(self.sizes.iter().flat_map(|size| size.to_be_bytes()));
        });
        let near = self.chunks.last().is_none_or(|&at| at <= u32::MAX.into());
        full(out, if near { b"stco" } else { b"co64" }, 0, 0, |out| {
            out.extend(count(self.chunks.len()));
            match near {
                true => out.extend(self.chunks.iter().flat_map(|&at| (at as u32).to_be_bytes())),
                false => out.extend(self.chunks.iter().flat_map(|at| at.to_be_bytes())),
            }
        });
    }
}

/// Equal numbers in a row: how many, and which.
#[derive(Clone, Debug, Default)]
struct Runs(Vec<(u32, u32)>);

impl Runs {
    fn push(&mut self, value: u32) {
        match self.0.last_mut() {
            Some((count, it)) if *it == value => *count += 1,
            _ => self.0.push((1, value)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(|&(count, value)| std::iter::repeat_n(value, count as usize))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.0.len() as u32).to_be_bytes());
        out.extend(self.0.iter().flat_map(|&(count, value)| [count, value]).flat_map(u32::to_be_bytes));
    }
}

/// The edit list of a track: what of it is presented, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit(pub(crate) Vec<Part>);

/// A stretch of a track that is presented at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// How long nothing is presented before it, in ticks of the movie.
    pub(crate) delay: u64,
    /// Likewise.
    pub(crate) length: u64,
    /// Ticks of the track, from its first sample's decoding time.
    pub(crate) from: u64,
}

impl Edit {
    /// One for each track, of tables with the timescale and the priming of the track.
    pub(crate) fn list(tables: &[(&Table, u32, u64)]) -> Vec<Edit> {
        let movie = |ticks: u64, timescale: u32| {
            let exact = u128::from(ticks) * u128::from(MOVIE_TIMESCALE) + u128::from(timescale / 2);
            (exact / u128::from(timescale)) as u64
        };
        let spans = tables.iter().map(|&(table, timescale, priming)| {
            let (from, to) = table.span(priming);
            (movie(from, timescale), movie(to, timescale), from - table.first)
        });
        let present = spans.clone().zip(tables).filter(|(_, (table, ..))| !table.is_empty());
        let start = present.map(|((from, ..), _)| from).min().unwrap_or_default();
        let part = |(at, end, from): (u64, u64, u64)| Part { delay: at.saturating_sub(start), length: end - at, from };
        spans.map(|span| Edit(vec![part(span)])).collect()
    }

    /// Reads back what [`write`](Self::write) has written, from the body of `elst`.
    pub(crate) fn parse(elst: &[u8]) -> Option<Edit> {
        let entries = elst.get(8..).filter(|_| elst[0] == 1)?.chunks_exact(20);
        let (mut edit, mut delay) = (Edit::default(), 0);
        for entry in entries {
            match (u64_at(entry, 0)?, u64_at(entry, 8)? as i64) {
                (length, -1) => delay += length,
                (length, from) => {
                    edit.0.push(Part { delay: std::mem::take(&mut delay), length, from: from.try_into().ok()? });
                }
            }
        }
        Some(edit)
    }

    /// Ticks of the movie that the track takes, its delays included.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|part| part.delay + part.length).sum()
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        const RATE_1: [u8; 4] = [0, 1, 0, 0];
        full(out, b"elst", 1, 0, |out| {
            let count = self.0.iter().map(|part| 1 + u32::from(part.delay > 0)).sum::<u32>();
            out.extend(count.to_be_bytes());
            for part in &self.0 {
                if part.delay > 0 {
                    out.extend(part.delay.to_be_bytes());
                    out.extend((-1i64).to_be_bytes());
                    out.extend(RATE_1);
                }
                out.extend(part.length.to_be_bytes());
                out.extend(part.from.to_be_bytes());
                out.extend(RATE_1);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables of samples, each with decoding time and offset in milliseconds and 40 ms long by itself, and with a
    /// priming; gives delay, length and start of each edit.
    fn check(tracks: &[(&[(u64, u32)], u64)], want: &[(u64, u64, u64)]) {
        let table = |samples: &[(u64, u32)]| {
            let mut table = Table::default();
            samples.iter().for_each(|&(dts, offset)| table.sample(dts, offset, 40, 1, true));
            table.end();
            table
        };
        let tables: Vec<_> = tracks.iter().map(|&(samples, priming)| (table(samples), priming)).collect();
        let list: Vec<_> = tables.iter().map(|(table, priming)| (table, 1000, *priming)).collect();
        let got: Vec<_> =
            Edit::list(&list).into_iter().map(|it| (it.0[0].delay, it.0[0].length, it.0[0].from)).collect();
        assert_eq!(got, want, "{tracks:?}");
    }

    const SOUND: (&[(u64, u32)], u64) = (&[(0, 0), (40, 0), (80, 0), (120, 0)], 0);
    /// Shown at 80, 200, 120 and 160.
    const REORDERED: &[(u64, u32)] = &[(0, 80), (40, 160), (80, 40), (120, 40)];

    #[test]
    fn what_is_presented_keeps_its_offset_to_the_first_of_all() {
        check(&[SOUND], &[(0, 160, 0)]);
        check(&[(REORDERED, 0)], &[(0, 160, 80)]);
        check(&[(REORDERED, 0), SOUND], &[(80, 160, 80), (0, 160, 0)]);
        check(&[(&[(3000, 80), (3040, 80)], 0), SOUND], &[(3080, 80, 80), (0, 160, 0)]);
    }

    #[test]
    fn priming_is_not_presented() {
        check(&[(SOUND.0, 6), (REORDERED, 0)], &[(0, 154, 6), (74, 160, 80)]);
    }

    #[test]
    fn the_end_is_that_of_the_picture_shown_last() {
        // The frame before the stall is decoded for 400 ms, and long shown when the last one ends.
        check(&[(&[(0, 0), (40, 80), (440, 0)], 0)], &[(0, 480, 0)]);
    }

    #[test]
    fn a_track_without_samples_does_not_count() {
        check(&[(&[], 0), (&[(500, 0)], 0)], &[(0, 0, 0), (0, 40, 0)]);
    }

    #[test]
    fn equal_steps_are_one_run_and_far_chunks_take_64_bits() {
        let mut table = Table::default();
        for (dts, at) in [(0, 100), (40, 200), (80, 1 << 32)] {
            table.chunk(at, 1);
            table.sample(dts, 0, 40, 7, true);
        }
        table.end();
        assert_eq!((table.duration(), &table.steps.0[..]), (120, &[(3, 40)][..]));
        let mut out = Vec::new();
        table.write(&mut out);
        assert_eq!(Table::parse(&out).unwrap().samples().collect::<Vec<_>>(), table.samples().collect::<Vec<_>>());
        let has = |kind: &[u8]| out.windows(4).any(|it| it == kind);
        assert!(has(b"stts") && has(b"co64") && !has(b"stco") && !has(b"ctts") && !has(b"stss"));
    }
}
