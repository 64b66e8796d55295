//! Boxes (ISO/IEC 14496-12): what a track looks like in a `moov`, written and read.

use bytes::Bytes;

use super::table::{Edit, Table};
use crate::codec::{self, aac, mp3, opus};
use crate::{Codec, Format, Kind, Track};

/// Ticks a second of the movie as a whole.
pub(crate) const MOVIE_TIMESCALE: u32 = 1000;

/// Appends a box that holds what `body` appends.
pub(super) fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0; 4]);
    out.extend(kind);
    body(out);
    let size = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&size.to_be_bytes());
}

/// Appends a box that begins with version and flags.
pub(super) fn full(out: &mut Vec<u8>, kind: &[u8; 4], version: u8, flags: u32, body: impl FnOnce(&mut Vec<u8>)) {
    boxed(out, kind, |out| {
        out.extend((u32::from(version) << 24 | flags).to_be_bytes());
        body(out);
    });
}

/// The boxes among `bytes`: kind, body, and the box as a whole. Ends before one that does not fit.
pub(super) fn children(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let size = u32_at(bytes, 0)? as usize;
        let kind = *bytes.get(4..)?.first_chunk()?;
        let (whole, rest) = bytes.split_at_checked(size)?;
        bytes = rest;
        Some((kind, whole.get(8..)?, whole))
    })
}

/// The body of the first box of a kind.
pub(super) fn child<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    children(bytes).find(|(it, ..)| it == kind).map(|(_, body, _)| body)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The `moov` of a file that goes on in fragments.
pub(crate) fn fragmented_moov(heads: &[Head]) -> Vec<u8> {
    let mut out = Vec::new();
    boxed(&mut out, b"moov", |out| {
        mvhd(out, heads, 0);
        for head in heads {
            head.trak(out, None);
        }
        boxed(out, b"mvex", |out| {
            for head in heads {
                // The description is the first; each fragment tells the rest.
                full(out, b"trex", 0, 0, |out| put(out, &[head.id, 1, 0, 0, 0]));
            }
        });
    });
    out
}

/// The `moov` of a finished file, and how long it plays in ticks of the movie.
pub(crate) fn moov(heads: &[Head], tables: &[(Table, Edit)]) -> (Vec<u8>, u64) {
    let mut out = Vec::new();
    let duration = tables.iter().map(|(_, edit)| edit.total()).max().unwrap_or_default();
    boxed(&mut out, b"moov", |out| {
        mvhd(out, heads, duration);
        for (head, table) in heads.iter().zip(tables).filter(|(_, (table, _))| !table.is_empty()) {
            head.trak(out, Some(table));
        }
    });
    (out, duration)
}

/// Where a version 1 `mvhd` that is first in its `moov` keeps the duration, from the first byte of the `moov`.
pub(super) const DURATION_AT: u64 = 8 + 12 + 20;

fn mvhd(out: &mut Vec<u8>, heads: &[Head], duration: u64) {
    full(out, b"mvhd", 1, 0, |out| {
        out.extend([0; 16]);
        put(out, &[MOVIE_TIMESCALE]);
        out.extend(duration.to_be_bytes());
        // Rate 1.0, volume 1.0.
        put(out, &[0x0001_0000, 0x0100_0000, 0, 0]);
        put(out, &UNITY);
        out.extend([0; 24]);
        put(out, &[heads.iter().map(|head| head.id).max().unwrap_or_default() + 1]);
    });
}

/// The matrix that leaves a picture as it is.
const UNITY: [u32; 9] = [0x0001_0000, 0, 0, 0, 0x0001_0000, 0, 0, 0, 0x4000_0000];

fn put(out: &mut Vec<u8>, numbers: &[u32]) {
    out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

/// Ticks a second of a track's times.
pub(crate) fn rate(track: &Track) -> u32 {
    match track.format {
        Format::Video { .. } => 90_000,
        Format::Audio { sample_rate, .. } => sample_rate,
    }
}

/// What a `moov` says of a track, its samples apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) id: u32,
    /// Ticks a second of its samples' times.
    pub(crate) timescale: u32,
    pub(crate) kind: Kind,
    width: u16,
    height: u16,
    /// The whole `stsd` box.
    stsd: Bytes,
}

impl Head {
    pub(crate) fn new(id: u32, track: &Track) -> Head {
        let mut stsd = Vec::new();
        full(&mut stsd, b"stsd", 0, 0, |out| {
            put(out, &[1]);
            sample_entry(out, track);
        });
        let (width, height) = match track.format {
            Format::Video { width, height } => (width as u16, height as u16),
            Format::Audio { .. } => (0, 0),
        };
        Head { id, timescale: rate(track), kind: track.codec.kind(), width, height, stsd: stsd.into() }
    }

    /// A `trak` of a finished file with its samples and its edit list, from its body.
    pub(super) fn parse_whole(trak: &[u8]) -> Option<(Head, Table, Edit)> {
        let stbl = child(child(child(trak, b"mdia")?, b"minf")?, b"stbl")?;
        let edit = child(trak, b"edts").and_then(|edts| child(edts, b"elst"));
        Some((Head::parse(trak)?, Table::parse(stbl)?, edit.map_or(Some(Edit::default()), Edit::parse)?))
    }

    /// Those of a `moov`, from its body; `None` if one of them is not as [`Head`] writes it.
    pub(crate) fn parse_all(moov: &[u8]) -> Option<Vec<Head>> {
        children(moov).filter(|(kind, ..)| kind == b"trak").map(|(_, trak, _)| Head::parse(trak)).collect()
    }

    fn parse(trak: &[u8]) -> Option<Head> {
        let tkhd = child(trak, b"tkhd")?;
        let mdia = child(trak, b"mdia")?;
        let stbl = child(child(mdia, b"minf")?, b"stbl")?;
        let (.., stsd) = children(stbl).find(|(kind, ..)| kind == b"stsd")?;
        let kind = match child(mdia, b"hdlr")?.get(8..12)? {
            b"vide" => Kind::Video,
            b"soun" => Kind::Audio,
            _ => return None,
        };
        let side = |at| Some((u32_at(tkhd, at)? >> 16) as u16);
        Some(Head {
            id: u32_at(tkhd, 20)?,
            timescale: u32_at(child(mdia, b"mdhd")?, 20).filter(|&it| it > 0)?,
            kind,
            width: side(88)?,
            height: side(92)?,
            stsd: Bytes::copy_from_slice(stsd),
        })
    }

    /// How many ticks a decoder drops at the start, where the description tells it: Opus alone does.
    pub(super) fn priming(&self) -> u64 {
        // The first entry begins behind version and count; `dOps` behind the fixed fields of the entry.
        match (self.stsd.get(20..24), self.stsd.get(62..64)) {
            (Some(b"Opus"), Some(&[high, low])) => u64::from(u16::from_be_bytes([high, low])),
            _ => 0,
        }
    }

    /// The track that it describes; `None` if its sample entry is not as [`Head`] writes it.
    pub(super) fn track(&self) -> Option<Track> {
        // Behind version and count.
        let (kind, entry, _) = children(self.stsd.get(16..)?).next()?;
        let fields = if self.kind == Kind::Video { 78 } else { 28 };
        let (record, body, _) = children(entry.get(fields..)?).next()?;
        let of = |codec, config: Vec<u8>| codec::track(codec, config.into()).ok();
        match (&kind, &record) {
            (b"avc1", b"avcC") => of(Codec::H264, body.into()),
            (b"hvc1", b"hvcC") => of(Codec::H265, body.into()),
            (b"av01", b"av1C") => of(Codec::Av1, body.into()),
            (b"Opus", b"dOps") => of(Codec::Opus, opus_head(body)?),
            (b"mp4a", b"esds") => match elementary_config(body.get(4..)?)? {
                (0x40, config) => of(Codec::Aac, config.into()),
                _ => {
                    let (channels, sample_rate) = (*entry.get(17)?, self.timescale);
                    let format = Format::Audio { sample_rate, channels };
                    Some(Track { codec: Codec::Mp3, config: Bytes::new(), format })
                }
            },
            _ => None,
        }
    }

    fn trak(&self, out: &mut Vec<u8>, table: Option<&(Table, Edit)>) {
        boxed(out, b"trak", |out| {
            // Enabled, in the movie.
            full(out, b"tkhd", 1, 3, |out| {
                out.extend([0; 16]);
                put(out, &[self.id, 0]);
                out.extend(table.map_or(0, |(_, edit)| edit.total()).to_be_bytes());
                let volume = if self.kind == Kind::Audio { 0x0100_0000 } else { 0 };
                put(out, &[0, 0, 0, volume]);
                put(out, &UNITY);
                put(out, &[u32::from(self.width) << 16, u32::from(self.height) << 16]);
            });
            if let Some((_, edit)) = table {
                boxed(out, b"edts", |out| edit.write(out));
            }
            boxed(out, b"mdia", |out| self.mdia(out, table.map(|(table, _)| table)));
        });
    }

    fn mdia(&self, out: &mut Vec<u8>, table: Option<&Table>) {
        const UNDETERMINED: u32 = 0x55c4_0000;
        let (handler, name): (&[u8; 4], &[u8]) = match self.kind {
            Kind::Video => (b"vide", b"VideoHandler\0"),
            Kind::Audio => (b"soun", b"SoundHandler\0"),
        };
        full(out, b"mdhd", 1, 0, |out| {
            out.extend([0; 16]);
            put(out, &[self.timescale]);
            out.extend(table.map_or(0, Table::duration).to_be_bytes());
            put(out, &[UNDETERMINED]);
        });
        full(out, b"hdlr", 0, 0, |out| {
            put(out, &[0]);
            out.extend(handler);
            put(out, &[0, 0, 0]);
            out.extend(name);
        });
        boxed(out, b"minf", |out| {
            match self.kind {
                Kind::Video => full(out, b"vmhd", 0, 1, |out| put(out, &[0, 0])),
                Kind::Audio => full(out, b"smhd", 0, 0, |out| put(out, &[0])),
            }
            boxed(out, b"dinf", |out| {
                full(out, b"dref", 0, 0, |out| {
                    put(out, &[1]);
                    // In this file.
                    full(out, b"url ", 0, 1, |_| ());
                });
            });
            boxed(out, b"stbl", |out| {
                out.extend(&self.stsd[..]);
                match table {
                    Some(table) => table.write(out),
                    None => Table::default().write(out),
                }
            });
        });
    }
}

/// The sample entry of each codec: ISO/IEC 14496-15 §5.4.2.1, §8.4.1; AV1 ISOBMFF §2.2; ISO/IEC 14496-14 §6.7; Opus in ISOBMFF §4.3.
fn sample_entry(out: &mut Vec<u8>, track: &Track) {
    let (kind, record): (&[u8; 4], &[u8; 4]) = match track.codec {
        Codec::H264 => (b"avc1", b"avcC"),
        // Not hev1, which players of Apple do not take.
        Codec::H265 => (b"hvc1", b"hvcC"),
        Codec::Av1 => (b"av01", b"av1C"),
        Codec::Aac | Codec::Mp3 => (b"mp4a", b"esds"),
        Codec::Opus => (b"Opus", b"dOps"),
    };
    boxed(out, kind, |out| {
        // The entry's data is that of the first `dref`.
        out.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        match track.format {
            Format::Video { width, height } => {
                out.extend([0; 16]);
                put(out, &[width << 16 | height & 0xffff, 0x0048_0000, 0x0048_0000, 0]);
                out.extend([0, 1]);
                out.extend([0; 32]);
                out.extend([0, 24, 0xff, 0xff]);
            }
            Format::Audio { sample_rate, channels } => {
                // 16 bit. A rate that does not fit is told by the record alone.
                let rate = if sample_rate < 1 << 16 { sample_rate << 16 } else { 0 };
                put(out, &[0, 0, u32::from(channels) << 16 | 16, 0, rate]);
            }
        }
        match track.codec {
            Codec::Aac | Codec::Mp3 => full(out, record, 0, 0, |out| elementary_stream(out, track)),
            Codec::Opus => boxed(out, record, |out| opus_specific(out, &track.config)),
            _ => boxed(out, record, |out| out.extend(&track.config[..])),
        }
    });
}

/// An `ES_Descriptor` (ISO/IEC 14496-1 §7.2.6.5).
fn elementary_stream(out: &mut Vec<u8>, track: &Track) {
    let object = match (track.codec, track.format) {
        (Codec::Mp3, Format::Audio { sample_rate, .. }) if sample_rate < 32_000 => 0x69,
        (Codec::Mp3, _) => 0x6b,
        _ => 0x40,
    };
    let mut decoder = vec![object, 0x15];
    decoder.extend([0; 11]);
    if !track.config.is_empty() {
        descriptor(&mut decoder, 5, &track.config);
    }
    let mut stream = vec![0, 0, 0];
    descriptor(&mut stream, 4, &decoder);
    descriptor(&mut stream, 6, &[2]);
    descriptor(out, 3, &stream);
}

fn descriptor(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    let len = body.len() as u32;
    out.push(tag);
    out.extend([0x80 | (len >> 21) as u8, 0x80 | (len >> 14) as u8, 0x80 | (len >> 7) as u8, len as u8 & 0x7f]);
    out.extend(body);
}

/// `OpusHead` in the order and endianness of MP4.
fn opus_specific(out: &mut Vec<u8>, config: &[u8]) {
    let Some(head) = opus::Head::parse(config) else { return };
    out.extend([0, head.channels]);
    out.extend(head.pre_skip.to_be_bytes());
    out.extend(head.source_rate.to_be_bytes());
    out.extend(head.gain.to_be_bytes());
    // The mapping family and its table are bytes in both.
    out.extend(&config[18..]);
}

/// What [`opus_specific`] was written from.
fn opus_head(body: &[u8]) -> Option<Vec<u8>> {
    let &[_, channels, s0, s1, r0, r1, r2, r3, g0, g1, ref rest @ ..] = body else { return None };
    let head = [b"OpusHead\x01".as_slice(), &[channels, s1, s0, r3, r2, r1, r0, g1, g0], rest];
    Some(head.concat())
}

/// The object type and the configuration in an `ES_Descriptor` as [`elementary_stream`] writes it.
fn elementary_config(body: &[u8]) -> Option<(u8, &[u8])> {
    // A tag and four bytes of length each: the stream, the decoder, its configuration.
    const HEAD: usize = 5;
    let decoder = body.get(HEAD + 3..).filter(|it| it.first() == Some(&4))?.get(HEAD..)?;
    let config = decoder.get(13..).filter(|it| it.first() == Some(&5));
    let config = config.and_then(|it| {
        let length = it.get(1..HEAD)?.iter().fold(0, |length, byte| length << 7 | usize::from(byte & 0x7f));
        it.get(HEAD..HEAD + length)
    });
    Some((*decoder.first()?, config.unwrap_or_default()))
}

/// How many ticks of a track's clock a packet of sound lasts; 0 for pictures and for what tells no length.
pub(crate) fn packet_ticks(track: &Track, payload: &[u8]) -> u32 {
    match track.codec {
        Codec::Aac => aac::Config::parse(&track.config)
            .map_or(0, |asc| u32::from(asc.frame_length) * (asc.sample_rate / asc.core_rate).max(1)),
        Codec::Mp3 => mp3::Header::parse(payload).map_or(0, |head| head.samples.into()),
        Codec::Opus => opus::duration(payload).map_or(0, |it| it.as_ticks(48_000) as u32),
        _ => 0,
    }
}
