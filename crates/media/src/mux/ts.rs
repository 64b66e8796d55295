//! MPEG-TS (ISO/IEC 13818-1) for HLS: H.264 or H.265 pictures and AAC or MP3 sound.
//!
//! Each PES packet is written contiguously, its transport packets not mixed with those of the other track. So a torn file is
//! repaired by dropping what follows the last whole one ([`finish`]).
//!
//! Invariant: what is written is whole packets of 188 bytes, and their continuity counters go on across segments.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::adts;
use super::mp4::packet_ticks;
use super::{Clock, Finish, Source};
use crate::codec::{self, mp3, nal};
use crate::{Codec, Format, Frame, Kind, Time, Track, Tracks};

const PACKET: usize = 188;
/// What a transport packet's header leaves.
const ROOM: usize = PACKET - 4;
const PAT: u16 = 0;
const PMT: u16 = 0x1000;
const VIDEO: u16 = 0x100;
const AUDIO: u16 = 0x101;
/// Times are in ticks of 90 kHz and wrap at 33 bits.
const RATE: u32 = 90_000;
const WRAP: i64 = (1 << 33) - 1;
/// How far decoding is behind the program clock: what a decoder's buffer may hold of sound before the pictures.
const DELAY: i64 = 63_000;
/// Sound is packed into PES packets of up to this many bytes and this long, for the clock must be told every 100 ms: each costs a header and the padding of its last packet.
const SOUND_MAX: usize = 2900;
const SOUND_LENGTH: Time = Time::from_millis(70);

/// The most that [`Writer::push`] appends for a frame with a payload of `len` bytes, if its parameter sets are not unusually long:
/// its packets, and those of the sound that was held back.
pub const fn room(len: usize) -> usize {
    (len + SOUND_MAX + 2048) / ROOM * PACKET + 4 * PACKET
}

/// How much memory a writer keeps between two frames.
const SCRATCH_MAX: usize = 16 << 10;

/// Writes the segments of a stream.
#[derive(Debug)]
pub struct Writer {
    video: Option<Picture>,
    audio: Option<Sound>,
    counters: Counters,
    /// The elementary stream of the frame at hand, behind its PES header. Kept for its memory, as long as that is little.
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Picture {
    codec: Codec,
    /// The parameter sets with start codes.
    sets: Vec<u8>,
}

#[derive(Debug)]
struct Sound {
    track: Arc<Track>,
    /// Of AAC only.
    header: Option<adts::Header>,
    /// Frames for the next PES packet.
    pending: Vec<u8>,
    /// The time of the first of them.
    begun: Time,
}

/// The next continuity counter of each PID (§2.4.3.3).
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pat: u8,
    pmt: u8,
    video: u8,
    audio: u8,
}

impl Counters {
    /// Numbers the packets of a whole segment of ours so that it goes on from what was numbered before.
    pub fn renumber(&mut self, segment: &mut [u8]) {
        for packet in segment.chunks_exact_mut(PACKET) {
            let (pid, ..) = opened(packet);
            packet[3] = packet[3] & 0xf0 | self.next(pid);
        }
    }

    fn next(&mut self, pid: u16) -> u8 {
        let counter = match pid {
            PAT => &mut self.pat,
            PMT => &mut self.pmt,
            VIDEO => &mut self.video,
            _ => &mut self.audio,
        };
        let next = *counter;
        *counter = (next + 1) & 15;
        next
    }
}

/// Whether MPEG-TS has a form for this codec.
const fn carries(codec: Codec) -> bool {
    matches!(codec, Codec::H264 | Codec::H265 | Codec::Aac | Codec::Mp3)
}

/// Whether HLS players take these tracks in MPEG-TS: H.265 they take in [`fmp4`](super::fmp4) alone.
fn fits(tracks: &Tracks) -> bool {
    tracks.video.as_ref().is_none_or(|video| video.codec == Codec::H264)
        && tracks.audio.as_ref().is_none_or(|audio| carries(audio.codec))
}

impl Writer {
    /// For a stream with these tracks; `None` if one of them has no form in MPEG-TS: then [`fmp4`](super::fmp4) has.
    pub fn new(tracks: &Tracks) -> Option<Writer> {
        let mut writer = Writer { video: None, audio: None, counters: Counters::default(), scratch: Vec::new() };
        if let Some(track) = &tracks.video {
            let sets = nal::Sets::parse(track.codec, &track.config).filter(|_| carries(track.codec))?;
            let mut stream = Vec::new();
            sets.iter().for_each(|set| start_code(&mut stream, set));
            writer.video = Some(Picture { codec: track.codec, sets: stream });
        }
        if let Some(track) = tracks.audio.as_ref() {
            let header = adts::Header::new(&track.config);
            if !carries(track.codec) || track.codec == Codec::Aac && header.is_none() {
                return None;
            }
            let track = track.clone();
            writer.audio = Some(Sound { track, header, pending: Vec::new(), begun: Time::ZERO });
        }
        Some(writer)
    }

    /// For a list of HLS that goes on with these tracks behind what has counted so far: readers hold to the counters even where a
    /// list tells of a discontinuity. `None` as of [`new`](Self::new), and where players do not take the tracks so.
    pub fn going_on(tracks: &Tracks, counters: Counters) -> Option<Writer> {
        Some(Writer { counters, ..Writer::new(tracks).filter(|_| fits(tracks))? })
    }

    /// With what the next segment goes on.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Begins a segment: appends the tables. A key frame should follow.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        // Transport stream 1, version 0; program 1 is told by the PMT.
        table(
            out,
            PAT,
            self.counters.next(PAT),
            &[0, 0xb0, 13, 0, 1, 0xc1, 0, 0, 0, 1, 0xe0 | (PMT >> 8) as u8, PMT as u8],
        );
        let mut streams = Vec::new();
        let mut stream = |kind: u8, pid: u16, about: &[u8]| {
            streams.extend([kind, 0xe0 | (pid >> 8) as u8, pid as u8, 0xf0, about.len() as u8]);
            streams.extend(about);
        };
        match self.video.as_ref().map(|video| video.codec) {
            Some(Codec::H265) => stream(0x24, VIDEO, b"\x05\x04HEVC"),
            Some(_) => stream(0x1b, VIDEO, &[]),
            None => {}
        }
        match self.audio.as_ref().map(|audio| (audio.track.codec, audio.track.format)) {
            Some((Codec::Aac, _)) => stream(0x0f, AUDIO, &[]),
            // Low rates are of MPEG-2 audio.
            Some((_, Format::Audio { sample_rate, .. })) if sample_rate < 32_000 => stream(0x04, AUDIO, &[]),
            Some(_) => stream(0x03, AUDIO, &[]),
            None => {}
        }
        let clock = self.clock_pid();
        let mut body = vec![2, 0xb0, streams.len() as u8 + 13, 0, 1, 0xc1, 0, 0];
        body.extend([0xe0 | (clock >> 8) as u8, clock as u8, 0xf0, 0]);
        body.extend(streams);
        table(out, PMT, self.counters.next(PMT), &body);
    }

    fn clock_pid(&self) -> u16 {
        if self.video.is_some() { VIDEO } else { AUDIO }
    }

    /// Appends a frame. Sound is held back for up to 70 ms of its own time. A frame of no known track is passed over.
    pub fn push(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        match frame.track {
            Kind::Video => self.picture(frame, out),
            Kind::Audio => self.sound(frame, out),
        }
    }

    /// Appends what is held back: the end of a segment.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        let clock = self.clock_pid();
        let Some(audio) = &mut self.audio else { return };
        if audio.pending.is_empty() {
            return;
        }
        let pts = ticks(audio.begun);
        self.scratch.clear();
        pes_head(&mut self.scratch, 0xc0, audio.pending.len(), pts, pts);
        self.scratch.append(&mut audio.pending);
        let counter = || self.counters.next(AUDIO);
        packets(out, AUDIO, counter, &self.scratch, (clock == AUDIO).then_some(pts), true);
    }

    fn picture(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        if self.audio.as_ref().is_some_and(|audio| frame.dts - audio.begun >= SOUND_LENGTH) {
            self.end(out);
        }
        let Some(video) = &self.video else { return };
        let delimiter: &[u8] = match video.codec {
            Codec::H264 => b"\0\0\0\x01\x09\xf0",
            _ => b"\0\0\0\x01\x46\x01\x50",
        };
        self.scratch.clear();
        // A picture may be longer than the length field holds, which 0 leaves open.
        pes_head(&mut self.scratch, 0xe0, usize::MAX, ticks(frame.dts + frame.cts), ticks(frame.dts));
        self.scratch.extend(delimiter);
        if frame.key {
            self.scratch.extend(&video.sets);
        }
        for unit in nal::nals(&frame.payload, 4) {
            // It must be the first, once (H.264 §7.4.1.2.3).
            if unit.get(..1) != delimiter.get(4..5) {
                start_code(&mut self.scratch, unit);
            }
        }
        let counter = || self.counters.next(VIDEO);
        packets(out, VIDEO, counter, &self.scratch, Some(ticks(frame.dts)), frame.key);
        if self.scratch.capacity() > SCRATCH_MAX {
            self.scratch = Vec::new();
        }
    }

    fn sound(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        let Some(audio) = &self.audio else { return };
        let full = audio.pending.len() + adts::HEAD + frame.payload.len() > SOUND_MAX;
        if full || frame.dts - audio.begun >= SOUND_LENGTH {
            self.end(out);
        }
        let Some(audio) = &mut self.audio else { return };
        let head = audio.header.map(|header| header.frame(frame.payload.len()));
        if head == Some(None) {
            // Longer than ADTS can say, and than AAC can be.
            return;
        }
        if audio.pending.is_empty() {
            audio.begun = frame.dts;
        }
        audio.pending.extend(head.flatten().iter().flatten());
        audio.pending.extend(&frame.payload[..]);
    }
}

fn start_code(out: &mut Vec<u8>, unit: &[u8]) {
    out.extend([0, 0, 0, 1]);
    out.extend(unit);
}

fn ticks(time: Time) -> i64 {
    (time.as_ticks(RATE) + DELAY) & WRAP
}

/// A PES header (§2.4.3.6) for `len` bytes of elementary stream.
fn pes_head(out: &mut Vec<u8>, stream: u8, len: usize, pts: i64, dts: i64) {
    let reordered = pts != dts;
    let times: u8 = if reordered { 10 } else { 5 };
    let len = u16::try_from(len.saturating_add(3 + usize::from(times))).unwrap_or(0);
    out.extend([0, 0, 1, stream]);
    out.extend(len.to_be_bytes());
    // The data is aligned: a frame begins here.
    out.extend([0x84, if reordered { 0xc0 } else { 0x80 }, times]);
    let mut stamp = |mark: u8, time: i64| {
        let part = |shift: u32| (time >> shift) as u8;
        let (high, middle, low) = (part(29) & 0x0e | 1, part(14) & 0xfe | 1, (part(0) << 1) | 1);
        out.extend([mark << 4 | high, part(22), middle, part(7), low]);
    };
    if reordered {
        stamp(3, pts);
        stamp(1, dts);
    } else {
        stamp(2, pts);
    }
}

/// Appends a PES packet as transport packets (§2.4.3.2). The first tells the clock, if its time `dts` is given, and whether decoding can begin there.
fn packets(out: &mut Vec<u8>, pid: u16, mut counter: impl FnMut() -> u8, pes: &[u8], dts: Option<i64>, key: bool) {
    let (mut rest, mut first) = (pes, true);
    out.reserve(pes.len() / ROOM * PACKET + 2 * PACKET);
    while !rest.is_empty() {
        // The adaptation field behind its length byte.
        let mut field = [0xff; 7];
        let mut len = 0;
        if first && (dts.is_some() || key) {
            const RANDOM_ACCESS: u8 = 0x40;
            const CLOCK: u8 = 0x10;
            field[0] = if key { RANDOM_ACCESS } else { 0 };
            len = 2;
            if let Some(dts) = dts {
                let clock = (dts - DELAY) & WRAP;
                field[0] |= CLOCK;
                field[1..5].copy_from_slice(&((clock >> 1) as u32).to_be_bytes());
                field[5..].copy_from_slice(&[(clock << 7) as u8 | 0x7e, 0]);
                len = 8;
            }
        }
        let (now, later) = rest.split_at(rest.len().min(ROOM - len));
        let padding = ROOM - len - now.len();
        let adapted = len + padding > 0;
        let start = if first { 0x40 } else { 0 };
        let control = if adapted { 0x30 } else { 0x10 };
        out.extend([0x47, start | (pid >> 8) as u8, pid as u8, control | counter()]);
        if adapted {
            let size = len + padding - 1;
            out.push(size as u8);
            if len == 0 && size > 0 {
                field[0] = 0;
            }
            let told = size.min(len.max(2) - 1);
            out.extend(&field[..told]);
            out.resize(out.len() + size - told, 0xff);
        }
        out.extend(now);
        (rest, first) = (later, false);
    }
}

/// Appends a packet with a table (§2.4.4).
fn table(out: &mut Vec<u8>, pid: u16, counter: u8, body: &[u8]) {
    let end = out.len() + PACKET;
    out.extend([0x47, 0x40 | (pid >> 8) as u8, pid as u8, 0x10 | counter, 0]);
    out.extend(body);
    out.extend(crc(body).to_be_bytes());
    out.resize(end, 0xff);
}

/// The CRC of tables (§ annex A).
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte) << 24, |crc, _| {
            let carry = crc >> 31 == 1;
            crc << 1 ^ if carry { 0x04c1_1db7 } else { 0 }
        })
    })
}

/// What makes a torn segment whole: the cut behind the last PES packet that is whole for certain, which its padding tells. `None` if there is none.
pub fn finish<S: Source + ?Sized>(file: &S) -> io::Result<Option<Finish>> {
    const WINDOW: u64 = 348 * PACKET as u64;
    let size = file.size() / PACKET as u64 * PACKET as u64;
    let mut window = Vec::new();
    let mut clocks = [Clock::default(); 2];
    // Times count from the first stamp; sound that was held back may be told behind it and be earlier.
    let (mut zero, mut first) = (None, Time::ZERO);
    // Where what is whole ends, and how far the tracks have come there.
    let mut whole = None;
    let mut at = 0;
    'file: while at < size {
        window.resize(WINDOW.min(size - at) as usize, 0);
        file.read_at(at, &mut window)?;
        for packet in window.chunks(PACKET) {
            if packet[0] != 0x47 {
                break 'file;
            }
            let (pid, start, payload) = opened(packet);
            if let (VIDEO | AUDIO, true, Some(stamp)) = (pid, start, stamp(payload)) {
                let time = Time::from_ticks(step(*zero.get_or_insert(stamp), stamp), RATE);
                clocks[usize::from(pid == AUDIO)].tick(time);
                first = first.min(time);
            }
            at += PACKET as u64;
            if is_padded(packet) {
                whole = Some((at, clocks, first));
            }
        }
    }
    Ok(whole.and_then(|(end, clocks, first)| Finish::cut(file.size(), end, Clock::end(&clocks)? - first)))
}

/// Reads segments, one behind the other, back to what [`Writer`] got: gives `take` each frame with its track. A track's record is
/// made of the parameter sets, the same for the same encoder.
pub(super) fn read<S: Source + ?Sized, E: From<io::Error>>(
    file: &S,
    mut take: impl FnMut(&Track, Frame) -> Result<(), E>,
) -> Result<(), E> {
    const WINDOW: u64 = 348 * PACKET as u64;
    let whole = file.size() / PACKET as u64 * PACKET as u64;
    let mut streams = [Stream::default(), Stream::default()];
    let (mut window, mut at) = (Vec::new(), 0);
    while at < whole {
        window.resize(WINDOW.min(whole - at) as usize, 0);
        file.read_at(at, &mut window)?;
        at += window.len() as u64;
        for packet in window.chunks_exact(PACKET) {
            let (pid, start, payload) = opened(packet);
            match pid {
                PMT if start => codecs(payload, &mut streams),
                VIDEO | AUDIO => {
                    let stream = &mut streams[usize::from(pid == AUDIO)];
                    if start {
                        stream.end(&mut take)?;
                    }
                    if stream.pes.len() < PES_MAX {
                        stream.pes.extend(payload);
                    }
                }
                _ => {}
            }
        }
    }
    streams.iter_mut().try_for_each(|stream| stream.end(&mut take))
}

/// The PID of a packet, whether a table or a PES packet begins in it, and what it carries of that.
fn opened(packet: &[u8]) -> (u16, bool, &[u8]) {
    let pid = u16::from_be_bytes([packet[1] & 0x1f, packet[2]]);
    let field = if packet[3] & 0x20 != 0 { 1 + usize::from(packet[4]) } else { 0 };
    (pid, packet[1] & 0x40 != 0, packet.get(4 + field..).unwrap_or_default())
}

/// Whether the PES packet that this packet is of ends with it for certain: there is more in its adaptation field than is told there
/// where one begins (§2.4.3.5). One in some 184 ends without.
fn is_padded(packet: &[u8]) -> bool {
    let (begins, clock) = (packet[1] & 0x40 != 0, packet[5] & 0x10 != 0);
    let told = if clock { 7 } else { 1 };
    packet[3] & 0x20 != 0 && (!begins || packet[4] > told)
}

/// More than any picture.
const PES_MAX: usize = 64 << 20;

/// A stream that is being read.
#[derive(Default)]
struct Stream {
    codec: Option<Codec>,
    /// Of pictures only.
    sets: Option<nal::Sets>,
    track: Option<Track>,
    pes: Vec<u8>,
    /// The last decoding time, as told and with what has wrapped.
    clock: Option<(i64, i64)>,
}

impl Stream {
    /// Takes the PES packet at hand for whole.
    fn end<E>(&mut self, take: &mut impl FnMut(&Track, Frame) -> Result<(), E>) -> Result<(), E> {
        let pes = std::mem::take(&mut self.pes);
        let parts = |pes: &[u8]| {
            let data = pes.len().min(9 + usize::from(*pes.get(8)?));
            Some((stamp(pes)?, stamp_at(pes, 9)?, data))
        };
        let (Some(codec), Some((told, pts, data))) = (self.codec, parts(&pes)) else { return Ok(()) };
        // Sound before the first time is told as a time that has wrapped.
        let dts = self.clock.map_or(told - DELAY, |(before, dts)| dts + step(before, told));
        self.clock = Some((told, dts));
        let (dts, cts) = (Time::from_ticks(dts, RATE), Time::from_ticks((pts - told) & WRAP, RATE));
        match codec.kind() {
            Kind::Video => self.picture(codec, dts, cts, &pes[data..], take),
            Kind::Audio => self.sound(codec, dts, &pes[data..], take),
        }
    }

    fn picture<E>(
        &mut self,
        codec: Codec,
        dts: Time,
        cts: Time,
        data: &[u8],
        take: &mut impl FnMut(&Track, Frame) -> Result<(), E>,
    ) -> Result<(), E> {
        let sets = self.sets.get_or_insert_with(|| nal::Sets::new(codec));
        let mut payload = Vec::with_capacity(data.len());
        for unit in nal::nals(&nal::from_annex_b(data), 4) {
            let Some(first) = unit.first() else { continue };
            let delimiter = match codec {
                Codec::H264 => first & 31 == 9,
                _ => first >> 1 & 63 == 35,
            };
            if sets.absorb(unit) {
                self.track = None;
            } else if !delimiter && !sets.has_kind_of(unit) {
                payload.extend((unit.len() as u32).to_be_bytes());
                payload.extend(unit);
            }
        }
        if self.track.is_none() {
            self.track = sets.record().and_then(|record| codec::track(codec, record).ok());
        }
        let key = codec::is_key(codec, &payload);
        match &self.track {
            Some(track) => take(track, Frame { track: Kind::Video, dts, cts, key, payload: payload.into() }),
            None => Ok(()),
        }
    }

    fn sound<E>(
        &mut self,
        codec: Codec,
        dts: Time,
        mut data: &[u8],
        take: &mut impl FnMut(&Track, Frame) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut samples, mut rate) = (0, RATE);
        loop {
            let found = match codec {
                Codec::Aac => adts::parse(data).map(|(len, config)| (len, adts::HEAD, config)),
                _ => mp3::Header::parse(data).map(|it| (it.len.into(), 0, Bytes::copy_from_slice(data))),
            };
            let Some((len, head, config)) = found.filter(|it| it.1 < it.0 && it.0 <= data.len()) else { return Ok(()) };
            let Ok(track) = codec::track(codec, config) else { return Ok(()) };
            if let Format::Audio { sample_rate, .. } = track.format {
                rate = sample_rate;
            }
            let payload = Bytes::copy_from_slice(&data[head..len]);
            let at = dts + Time::from_ticks(samples, rate);
            samples += i64::from(packet_ticks(&track, &payload));
            take(&track, Frame { track: Kind::Audio, dts: at, cts: Time::ZERO, key: true, payload })?;
            data = &data[len..];
        }
    }
}

/// Notes what the PMT says is in each stream, behind its pointer.
fn codecs(pmt: &[u8], streams: &mut [Stream; 2]) {
    let mut rest = pmt.get(1 + 12..).unwrap_or_default();
    while let &[kind, p0, p1, l0, l1, ..] = rest {
        let codec = match kind {
            0x1b => Codec::H264,
            0x24 => Codec::H265,
            0x0f => Codec::Aac,
            0x03 | 0x04 => Codec::Mp3,
            // What follows is the CRC, or nothing of ours.
            _ => return,
        };
        match u16::from_be_bytes([p0 & 0x1f, p1]) {
            VIDEO => streams[0].codec = Some(codec),
            AUDIO => streams[1].codec = Some(codec),
            _ => return,
        }
        rest = rest.get(5 + usize::from(u16::from_be_bytes([l0 & 15, l1]))..).unwrap_or_default();
    }
}

/// The decoding time in a PES header.
fn stamp(pes: &[u8]) -> Option<i64> {
    stamp_at(pes, if pes.get(7)? & 0x40 != 0 { 14 } else { 9 })
}

fn stamp_at(pes: &[u8], at: usize) -> Option<i64> {
    let byte = |n: usize| pes.get(at + n).map(|&byte| i64::from(byte));
    Some((byte(0)? >> 1 & 7) << 30 | byte(1)? << 22 | (byte(2)? >> 1) << 15 | byte(3)? << 7 | byte(4)? >> 1)
}

/// Ticks from one stamp to another, which may have wrapped or be the earlier one.
fn step(from: i64, to: i64) -> i64 {
    let step = (to - from) & WRAP;
    if step > WRAP / 2 { step - WRAP - 1 } else { step }
}
