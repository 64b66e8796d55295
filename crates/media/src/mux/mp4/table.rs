//! The sample tables of a finished file, grown sample by sample in about the size they will have on disk.

use super::boxes::{MOVIE_TIMESCALE, full};

/// The samples of one track. Times are in its own ticks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    first: u64,
    last: Option<Sample>,
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
struct Sample {
    dts: u64,
    offset: u32,
    duration: u32,
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
        self.last = Some(Sample { dts, offset, duration });
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

    fn settle(&mut self, sample: Sample, duration: u32) {
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

    fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.0.len() as u32).to_be_bytes());
        out.extend(self.0.iter().flat_map(|&(count, value)| [count, value]).flat_map(u32::to_be_bytes));
    }
}

/// The edit list of a track: what of it is presented, and how long after the first track it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// Ticks of the movie.
    delay: u64,
    length: u64,
    /// Ticks of the track, from its first sample's decoding time.
    from: u64,
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
        spans.map(|(at, end, from)| Edit { delay: at.saturating_sub(start), length: end - at, from }).collect()
    }

    /// Ticks of the movie that the track takes, its delay included.
    pub(crate) fn total(&self) -> u64 {
        self.delay + self.length
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        const RATE_1: [u8; 4] = [0, 1, 0, 0];
        full(out, b"elst", 1, 0, |out| {
            let delayed = self.delay > 0;
            out.extend((1 + u32::from(delayed)).to_be_bytes());
            if delayed {
                out.extend(self.delay.to_be_bytes());
                out.extend((-1i64).to_be_bytes());
                out.extend(RATE_1);
            }
            out.extend(self.length.to_be_bytes());
            out.extend(self.from.to_be_bytes());
            out.extend(RATE_1);
        });
    }
}
