//! FLV: tag bodies, which are also RTMP's audio and video messages, and the file around them.
//!
//! Reading takes what publishers send: the legacy form (Adobe FLV 10.1 §E.4, with the common codec id 12 for HEVC)
//! and Enhanced RTMP v2 (Veovera, "Enhanced Audio" and "Enhanced Video"). Writing gives H.264, AAC and MP3 in the legacy form,
//! which every CDN takes, and the rest in the enhanced one.
//!
//! Invariant: a payload read from a tag and written into one again is the same bytes, and is not copied.

pub mod file;

use std::fmt;
use std::ops::Deref;

use bytes::{Buf, Bytes};

use crate::codec::{self, av1, h264, nal, opus};
use crate::{Codec, Error, Frame, Kind, Time, Track};

/// What a tag body held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A track, new or changed. Comes before the frames that need it.
    Track(Track),
    /// A frame.
    Frame(Raw),
    /// The publisher says that its sequence of this kind ends. Another may follow.
    Ended(Kind),
}

/// A frame without its time, which the carrier has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The track it belongs to.
    pub track: Kind,
    /// Composition offset as it was sent: negative from encoders that stamp their pictures as they are shown, see
    /// [`Order`](crate::timeline::Order).
    pub cts: Time,
    /// Whether decoding can begin here.
    pub key: bool,
    /// The coded bytes, in the form that [`Frame`] has them.
    pub payload: Bytes,
}

/// Reads the tag bodies of one publisher. Knows its tracks, so that only changes are told.
#[derive(Debug, Default)]
pub struct Reader {
    video: Option<Picture>,
    audio: Option<Track>,
}

/// The picture track at hand.
#[derive(Debug)]
struct Picture {
    codec: Codec,
    /// The record as it was last sent. Encoders that repeat it and change their parameter sets in band
    /// would otherwise change the track back and forth.
    record: Bytes,
    /// Of H.264 and H.265 only.
    sets: Option<nal::Sets>,
    /// The record of the sequence in force, of AV1 only.
    sequence: Bytes,
    /// Whether the track has been told.
    known: bool,
}

/// The fourCC of each codec.
const FOURCC: [(&[u8; 4], Codec); 6] = [
    (b"avc1", Codec::H264),
    (b"hvc1", Codec::H265),
    (b"av01", Codec::Av1),
    (b"mp4a", Codec::Aac),
    (b".mp3", Codec::Mp3),
    (b"Opus", Codec::Opus),
];

/// What a tag says of its body: the values of `AVCPacketType`, `AACPacketType` and their enhanced kin in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    Start,
    /// Coded frames, with a composition offset if the codec has one.
    Frames,
    End,
    /// Coded frames with an offset of zero left out.
    FramesX,
}

impl Reader {
    /// For a new publisher.
    pub fn new() -> Reader {
        Reader::default()
    }

    /// Reads the body of a video tag. After [`Error::Malformed`] the next body may be good.
    pub fn video(&mut self, body: &Bytes, out: &mut Vec<Item>) -> Result<(), Error> {
        const KEY: u8 = 1;
        const COMMAND: u8 = 5;
        let Some(&head) = body.first() else { return Ok(()) };
        let enhanced = head & 0x80 != 0;
        if head >> 4 & 7 == COMMAND {
            return Ok(());
        }
        let (codec, packet, mut data) = if enhanced {
            match enhanced_head(body, Kind::Video)? {
                Some(found) => found,
                None => return Ok(()),
            }
        } else {
            let codec = match head & 15 {
                7 => Codec::H264,
                12 => Codec::H265,
                id => return Err(Error::Codec(legacy_video(id))),
            };
            let packet = match body.get(1) {
                Some(0) => Packet::Start,
                Some(1) => Packet::Frames,
                Some(2) => Packet::End,
                Some(_) => return Ok(()),
                None => return Err(CUT_OFF),
            };
            (codec, packet, body.slice(2..))
        };
        // A legacy body has the offset whatever the packet; an enhanced one only with frames that can be reordered.
        let timed = match packet {
            Packet::Frames => codec != Codec::Av1,
            Packet::Start => !enhanced,
            Packet::End | Packet::FramesX => false,
        };
        let cts = if timed { composition(&mut data)? } else { Time::ZERO };
        match packet {
            // FFmpeg sends an empty record when it does not know it yet.
            Packet::Start if data.is_empty() => Ok(()),
            Packet::Start => self.picture_track(codec, data, out),
            Packet::Frames | Packet::FramesX => self.picture_frame(codec, head >> 4 & 7 == KEY, cts, data, out),
            Packet::End => {
                // The parameter sets stay: some go on without sending them again.
                if let Some(it) = &mut self.video {
                    it.record.clear();
                }
                out.push(Item::Ended(Kind::Video));
                Ok(())
            }
        }
    }

    fn picture_track(&mut self, codec: Codec, record: Bytes, out: &mut Vec<Item>) -> Result<(), Error> {
        if self.video.as_ref().is_some_and(|it| it.codec == codec && it.record == record) {
            return Ok(());
        }
        let track = codec::track(codec, record.clone())?;
        let sets = nal::Sets::parse(codec, &record).filter(|_| codec != Codec::Av1);
        self.video = Some(Picture { codec, sequence: record.clone(), record, sets, known: true });
        out.push(Item::Track(track));
        Ok(())
    }

    fn picture_frame(
        &mut self,
        codec: Codec,
        flagged: bool,
        cts: Time,
        data: Bytes,
        out: &mut Vec<Item>,
    ) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        if self.video.as_ref().is_none_or(|it| it.codec != codec) {
            // The record may never come: then what is told in band is all there is.
            let sets = (codec != Codec::Av1).then(|| nal::Sets::new(codec));
            let (record, sequence) = (Bytes::new(), Bytes::new());
            self.video = Some(Picture { codec, record, sets, sequence, known: false });
        }
        let picture = self.video.as_mut().expect("it has just been set");
        let payload = match &mut picture.sets {
            Some(sets) => {
                let whole = nal::normalize(data, sets.length_size());
                let payload = whole.ok_or(Error::Malformed("picture: its NAL units do not fit"))?;
                let changed = nal::nals(&payload, 4).fold(false, |changed, unit| sets.absorb(unit) | changed);
                if changed && let Some(record) = sets.record() {
                    picture.known = true;
                    out.push(Item::Track(codec::track(codec, record)?));
                }
                payload
            }
            None => data.slice(av1::delimiter_len(&data)..),
        };
        if payload.is_empty() {
            return Ok(());
        }
        // What the publisher calls a keyframe may be one that pictures become whole after, bit by bit.
        let key = codec::is_key(codec, &payload)
            || flagged && codec == Codec::H264 && h264::recovery_point(&payload).is_some();
        if codec == Codec::Av1
            && key
            && let Some(record) = av1::record(&payload).filter(|it| !av1::same_sequence(it, &picture.sequence))
        {
            let track = codec::track(codec, record.clone())?;
            (picture.sequence, picture.known) = (record, true);
            out.push(Item::Track(track));
        }
        if picture.known && codec::is_picture(codec, &payload) {
            out.push(Item::Frame(Raw { track: Kind::Video, cts, key, payload }));
        }
        Ok(())
    }

    /// Reads the body of an audio tag. After [`Error::Malformed`] the next body may be good.
    pub fn audio(&mut self, body: &Bytes, out: &mut Vec<Item>) -> Result<(), Error> {
        const ENHANCED: u8 = 9;
        let Some(&head) = body.first() else { return Ok(()) };
        let (codec, packet, data) = match head >> 4 {
            ENHANCED => match enhanced_head(body, Kind::Audio)? {
                Some(found) => found,
                None => return Ok(()),
            },
            // MP3, and MP3 at 8 kHz: the packet's own header tells the rate.
            2 | 14 => (Codec::Mp3, Packet::Frames, body.slice(1..)),
            10 => match body.get(1) {
                Some(0) => (Codec::Aac, Packet::Start, body.slice(2..)),
                Some(1) => (Codec::Aac, Packet::Frames, body.slice(2..)),
                Some(_) => return Ok(()),
                None => return Err(CUT_OFF),
            },
            id => return Err(Error::Codec(legacy_audio(id))),
        };
        match packet {
            // FFmpeg sends an empty config when it does not know it yet.
            Packet::Start if data.is_empty() => Ok(()),
            Packet::Start => self.sound_track(codec, data, out),
            Packet::End => {
                out.push(Item::Ended(Kind::Audio));
                self.audio = None;
                Ok(())
            }
            Packet::Frames | Packet::FramesX => self.sound(codec, data, out),
        }
    }

    fn sound_track(&mut self, codec: Codec, config: Bytes, out: &mut Vec<Item>) -> Result<(), Error> {
        if codec == Codec::Mp3 {
            return Ok(());
        }
        let track = codec::track(codec, config)?;
        if self.audio.as_ref() != Some(&track) {
            self.audio = Some(track.clone());
            out.push(Item::Track(track));
        }
        Ok(())
    }

    fn sound(&mut self, codec: Codec, payload: Bytes, out: &mut Vec<Item>) -> Result<(), Error> {
        if payload.is_empty() {
            return Ok(());
        }
        let known = self.audio.as_ref().filter(|track| track.codec == codec);
        let told = match codec {
            // Each packet tells what it is.
            Codec::Mp3 => Some(codec::track(codec, payload.clone())?),
            Codec::Opus if known.is_none() => {
                let head = opus::Head::of_packet(&payload).ok_or(Error::Malformed("Opus packet"))?;
                Some(codec::track(codec, head.build())?)
            }
            _ if known.is_none() => return Ok(()),
            _ => None,
        };
        if let Some(track) = told.filter(|track| Some(track) != known) {
            self.audio = Some(track.clone());
            out.push(Item::Track(track));
        }
        out.push(Item::Frame(Raw { track: Kind::Audio, cts: Time::ZERO, key: true, payload }));
        Ok(())
    }
}

/// Codec, packet and what follows of a body with an enhanced head (`ExVideoTagHeader`, `ExAudioTagHeader`); `None`
/// for what bywash passes over: metadata, channel maps, and the further tracks of a multitrack publisher.
fn enhanced_head(body: &Bytes, kind: Kind) -> Result<Option<(Codec, Packet, Bytes)>, Error> {
    const MULTITRACK: u8 = 5;
    const MULTITRACK_VIDEO: u8 = 6;
    const MOD_EX: u8 = 7;
    const MANY_TRACKS: u8 = 1;
    const MANY_TRACKS_MANY_CODECS: u8 = 2;
    let mut rest = Cursor(body.clone());
    let mut packet = rest.u8()? & 15;
    // Modifiers of the packet, such as nanoseconds to add to its time.
    while packet == MOD_EX {
        let mut size = usize::from(rest.u8()?) + 1;
        if size == 256 {
            size = usize::from(rest.u16()?) + 1;
        }
        rest.take(size)?;
        packet = rest.u8()? & 15;
    }
    let mut fourcc = None;
    if packet == if kind == Kind::Video { MULTITRACK_VIDEO } else { MULTITRACK } {
        let head = rest.u8()?;
        packet = head & 15;
        let layout = head >> 4;
        if layout != MANY_TRACKS_MANY_CODECS {
            fourcc = Some(rest.take(4)?);
        }
        loop {
            if layout == MANY_TRACKS_MANY_CODECS {
                fourcc = Some(rest.take(4)?);
            }
            let first = rest.u8()? == 0;
            let data = match layout {
                MANY_TRACKS | MANY_TRACKS_MANY_CODECS => rest.u24().and_then(|size| rest.take(size))?,
                _ => rest.take(rest.0.len())?,
            };
            if first {
                rest = Cursor(data);
                break;
            }
            if rest.0.is_empty() {
                return Ok(None);
            }
        }
    }
    let packet = match (kind, packet) {
        (_, 0) => Packet::Start,
        (_, 1) => Packet::Frames,
        (_, 2) => Packet::End,
        (Kind::Video, 3) => Packet::FramesX,
        _ => return Ok(None),
    };
    let fourcc = match fourcc {
        Some(fourcc) => fourcc,
        None => rest.take(4)?,
    };
    let codec = FOURCC.iter().find(|(name, codec)| name[..] == fourcc && codec.kind() == kind);
    let &(_, codec) = codec.ok_or_else(|| Error::Codec(fourcc.escape_ascii().to_string()))?;
    Ok(Some((codec, packet, rest.0)))
}

/// Takes the composition offset, 24 bits with a sign, in milliseconds, off the front.
fn composition(data: &mut Bytes) -> Result<Time, Error> {
    let mut rest = Cursor(data.split_off(0));
    let offset = rest.u24()?;
    *data = rest.0;
    let sign = if offset < 1 << 23 { 0 } else { 1 << 24 };
    Ok(Time::from_millis(offset as i64 - sign))
}

const CUT_OFF: Error = Error::Malformed("FLV tag: cut off");

/// Big-endian numbers and slices off the front of a body.
struct Cursor(Bytes);

impl Cursor {
    fn take(&mut self, n: usize) -> Result<Bytes, Error> {
        if n > self.0.len() {
            return Err(CUT_OFF);
        }
        Ok(self.0.split_to(n))
    }

    fn u8(&mut self) -> Result<u8, Error> {
        self.0.try_get_u8().or(Err(CUT_OFF))
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.0.try_get_u16().or(Err(CUT_OFF))
    }

    fn u24(&mut self) -> Result<usize, Error> {
        self.take(3).map(|b| usize::from(b[0]) << 16 | usize::from(b[1]) << 8 | usize::from(b[2]))
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({} bytes)", self.0.len())
    }
}

/// The name of a legacy codec id (FLV 10.1 §E.4.3.1).
fn legacy_video(id: u8) -> String {
    match id {
        2 => "Sorenson H.263".into(),
        3 | 6 => "Screen Video".into(),
        4 | 5 => "VP6".into(),
        id => format!("with FLV video id {id}"),
    }
}

/// The name of a legacy sound format (FLV 10.1 §E.4.2.1).
fn legacy_audio(id: u8) -> String {
    match id {
        0 | 3 => "PCM".into(),
        1 => "ADPCM".into(),
        4..=6 => "Nellymoser".into(),
        7 | 8 => "G.711".into(),
        11 => "Speex".into(),
        id => format!("with FLV sound id {id}"),
    }
}

/// The first bytes of a frame's tag body; the payload follows. Lives on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; 8],
    len: u8,
}

impl Head {
    fn new(parts: &[&[u8]]) -> Head {
        let mut head = Head { bytes: [0; 8], len: 0 };
        for part in parts {
            let at = usize::from(head.len);
            head.bytes[at..at + part.len()].copy_from_slice(part);
            head.len += part.len() as u8;
        }
        head
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

const PACKET_START: u8 = 0;
const PACKET_FRAMES: u8 = 1;
const PACKET_FRAMES_X: u8 = 3;
const ENHANCED_VIDEO: u8 = 0x80;
const ENHANCED_AUDIO: u8 = 0x90;
/// Sound in the legacy form says 44 kHz, 16 bit, stereo whatever it is; for AAC that is the rule, and MP3 packets know better.
const LEGACY_AAC: u8 = 0xaf;
const LEGACY_MP3: u8 = 0x2f;

/// What goes before `frame.payload` to make a tag body.
pub fn frame_head(codec: Codec, frame: &Frame) -> Head {
    let kind = if frame.key { 0x10 } else { 0x20 };
    let [_, cts @ ..] = (frame.cts.as_millis().clamp(0, (1 << 23) - 1) as u32).to_be_bytes();
    match codec {
        Codec::H264 => Head::new(&[&[kind | 7, PACKET_FRAMES], &cts]),
        Codec::H265 if cts == [0; 3] => Head::new(&[&[ENHANCED_VIDEO | kind | PACKET_FRAMES_X], b"hvc1"]),
        Codec::H265 => Head::new(&[&[ENHANCED_VIDEO | kind | PACKET_FRAMES], b"hvc1", &cts]),
        Codec::Av1 => Head::new(&[&[ENHANCED_VIDEO | kind | PACKET_FRAMES], b"av01"]),
        Codec::Aac => Head::new(&[&[LEGACY_AAC, PACKET_FRAMES]]),
        Codec::Mp3 => Head::new(&[&[LEGACY_MP3]]),
        Codec::Opus => Head::new(&[&[ENHANCED_AUDIO | PACKET_FRAMES], b"Opus"]),
    }
}

/// The tag body that tells a track: its sequence header. `None` for MP3, which has none.
pub fn track_body(track: &Track) -> Option<Bytes> {
    let head: &[u8] = match track.codec {
        Codec::H264 => &[0x17, PACKET_START, 0, 0, 0],
        Codec::H265 => b"\x90hvc1",
        Codec::Av1 => b"\x90av01",
        Codec::Aac => &[LEGACY_AAC, PACKET_START],
        Codec::Opus => b"\x90Opus",
        Codec::Mp3 => return None,
    };
    Some([head, &track.config].concat().into())
}

/// What a tag of a file carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagKind {
    /// A body for [`Reader::audio`].
    Audio,
    /// A body for [`Reader::video`].
    Video,
    /// AMF0 values such as `onMetaData`.
    Script,
}

impl TagKind {
    const fn number(self) -> u8 {
        match self {
            TagKind::Audio => 8,
            TagKind::Video => 9,
            TagKind::Script => 18,
        }
    }
}

/// One tag of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// What the body is.
    pub kind: TagKind,
    /// Decoding time in milliseconds; wraps.
    pub timestamp: u32,
    /// The body.
    pub body: Bytes,
}

/// The first bytes of a file (FLV 10.1 §E.2 and the empty tag before the first).
pub const fn file_head(video: bool, audio: bool) -> [u8; 13] {
    let flags = (audio as u8) << 2 | video as u8;
    [b'F', b'L', b'V', 1, flags, 0, 0, 0, 9, 0, 0, 0, 0]
}

/// How long a tag's head is.
const TAG_HEAD: usize = 11;

/// What goes before a body of `len` bytes, less than 16 MiB.
pub const fn tag_head(kind: TagKind, timestamp: u32, len: usize) -> [u8; TAG_HEAD] {
    let [_, s0, s1, s2] = (len as u32).to_be_bytes();
    // The top byte of the time comes last: FLV once had 24 bits.
    let [t3, t0, t1, t2] = timestamp.to_be_bytes();
    [kind.number(), s0, s1, s2, t0, t1, t2, t3, 0, 0, 0]
}

/// What goes behind a body of `len` bytes: the size of the tag.
pub const fn tag_tail(len: usize) -> [u8; 4] {
    ((len + TAG_HEAD) as u32).to_be_bytes()
}

/// The tags of a whole file, in order. Ends after the first error; a file cut off within a tag is one.
#[derive(Debug)]
pub struct Demuxer {
    rest: Cursor,
}

impl Demuxer {
    /// Of a file's bytes.
    pub fn new(file: Bytes) -> Result<Demuxer, Error> {
        let mut rest = Cursor(file);
        let head = rest.take(9)?;
        let size = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if !head.starts_with(b"FLV") || size < 9 {
            return Err(Error::Malformed("FLV file head"));
        }
        // To the end of the head, and past the size of the tag before the first.
        rest.take(size as usize - 9)?;
        rest.take(4)?;
        Ok(Demuxer { rest })
    }

    /// The next tag, if it is of a kind that is known.
    fn tag(&mut self) -> Result<Option<Tag>, Error> {
        let number = self.rest.u8()? & 0x1f;
        let len = self.rest.u24()?;
        let low = self.rest.u24()? as u32;
        let timestamp = u32::from(self.rest.u8()?) << 24 | low;
        self.rest.take(3)?;
        let body = self.rest.take(len)?;
        // Whoever wrote the file may have stopped before the last tag's size.
        self.rest.take(self.rest.0.len().min(4))?;
        let kinds = [TagKind::Audio, TagKind::Video, TagKind::Script];
        let kind = kinds.into_iter().find(|kind| kind.number() == number);
        Ok(kind.map(|kind| Tag { kind, timestamp, body }))
    }
}

impl Iterator for Demuxer {
    type Item = Result<Tag, Error>;

    fn next(&mut self) -> Option<Result<Tag, Error>> {
        while !self.rest.0.is_empty() {
            let tag = self.tag();
            if tag.is_err() {
                self.rest.0.clear();
            }
            if let Some(tag) = tag.transpose() {
                return Some(tag);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;
    use crate::codec::{av1, h265};

    const AVCC: &[u8] = b"\x01\x64\x00\x1e\xff\xe1\x00\x1a\x67\x64\x00\x1e\xac\xd9\x40\xa0\x2f\xf9\x70\x11\x00\x00\x03\x00\x01\x00\x00\x03\x00\x32\x0f\x16\x2d\x96\
        \x01\x00\x06\x68\xeb\xe3\xcb\x22\xc0\xfd\xf8\xf8\x00";
    /// A length, the SPS of 1920x1080 and the same PPS.
    const SETS_1080: &[u8] = b"\x00\x00\x00\x1b\x67\x64\x00\x28\xac\xd9\x40\x78\x02\x27\xe5\xc0\x44\x00\x00\x03\x00\x04\x00\x00\x03\x00\xc8\x3c\x60\xc6\x58\
        \x00\x00\x00\x06\x68\xeb\xe3\xcb\x22\xc0";
    const IDR: &[u8] = b"\0\0\0\x02\x65\x88";
    const SLICE: &[u8] = b"\0\0\0\x02\x41\x9a";
    const ASC: &[u8] = b"\x11\x90";
    const OPUS_HEAD: &[u8] = b"OpusHead\x01\x02\x38\x01\x80\xbb\x00\x00\x00\x00\x00";

    /// Reads `bodies`, video where the letter is `v` and sound where it is `a`; says what came out: a codec
    /// and its size or rate, `K` or `p` with offset and payload length, `end`, or the error.
    fn check(bodies: &[(char, Vec<u8>)], want: &str) {
        let mut reader = Reader::new();
        let mut got = Vec::new();
        for (kind, body) in bodies {
            let body = Bytes::copy_from_slice(body);
            let mut items = Vec::new();
            let done = match kind {
                'v' => reader.video(&body, &mut items),
                _ => reader.audio(&body, &mut items),
            };
            got.extend(items.iter().map(tell));
            got.extend(done.err().map(|error| match error {
                Error::Codec(name) => format!("no {name}"),
                Error::Malformed(_) => "bad".into(),
            }));
        }
        assert_eq!(got.join(" "), want);
    }

    fn tell(item: &Item) -> String {
        match item {
            Item::Track(Track { codec, format: Format::Video { width, height }, .. }) => {
                format!("{codec}:{width}x{height}")
            }
            Item::Track(Track { codec, format: Format::Audio { sample_rate, channels }, .. }) => {
                format!("{codec}:{sample_rate}/{channels}")
            }
            Item::Frame(raw) => {
                let kind = if raw.key { 'K' } else { 'p' };
                format!("{kind}{}+{}", raw.payload.len(), raw.cts.as_millis())
            }
            Item::Ended(_) => "end".into(),
        }
    }

    fn v(parts: &[&[u8]]) -> (char, Vec<u8>) {
        ('v', parts.concat())
    }

    fn a(parts: &[&[u8]]) -> (char, Vec<u8>) {
        ('a', parts.concat())
    }

    #[test]
    fn the_legacy_form_is_read() {
        let start = v(&[&[0x17, 0, 0, 0, 0], AVCC]);
        check(
            &[
                start.clone(),
                v(&[&[0x17, 1, 0, 0, 80], IDR]),
                v(&[&[0x27, 1, 0, 0, 0], SLICE]),
                start,
                v(&[&[0x17, 2, 0, 0, 0]]),
            ],
            "H.264:640x360 K6+80 p6+0 end",
        );
        check(
            &[v(&[&[0x1c, 0, 0, 0, 0], h265::tests::RECORD_360]), v(&[&[0x1c, 1, 0, 0, 0], b"\0\0\0\x02\x28\x01"])],
            "H.265:640x360 K6+0",
        );
        check(
            &[a(&[&[0xaf, 0], ASC]), a(&[&[0xaf, 1], &[7; 9]]), a(&[&[0xaf, 0], ASC]), a(&[&[0xaf, 0], &[0x12, 0x10]])],
            "AAC:48000/2 K9+0 AAC:44100/2",
        );
        check(
            &[a(&[&[0x2f], &[0xff, 0xfb, 0x90, 0x44]]), a(&[&[0xe2], &[0xff, 0xe3, 0x88, 0xc4]])],
            "MP3:44100/2 K4+0 MP3:8000/1 K4+0",
        );
    }

    #[test]
    fn the_enhanced_form_is_read() {
        let hevc = b"\0\0\0\x02\x28\x01";
        check(
            &[
                v(&[b"\x90hvc1", h265::tests::RECORD_360]),
                v(&[b"\x91hvc1\0\0\x28", hevc]),
                v(&[b"\x93hvc1", hevc]),
                v(&[b"\x92hvc1"]),
            ],
            "H.265:640x360 K6+40 K6+0 end",
        );
        check(
            &[v(&[b"\x90avc1", AVCC]), v(&[b"\xa1avc1\0\0\x28", SLICE]), v(&[b"\x93avc1", IDR])],
            "H.264:640x360 p6+40 K6+0",
        );
        let unit = av1::tests::KEY_360;
        check(
            &[v(&[b"\x90av01", av1::tests::RECORD_OF_KEY]), v(&[b"\x91av01", unit]), v(&[b"\x91av01\x12\0", unit])],
            "AV1:640x360 K19+0 K19+0",
        );
        // The sequence is told in band alone; its record is of another encoder; it is another than that of the record, which is repeated.
        let record = |it| v(&[b"\x90av01", it]);
        let frame = || v(&[b"\x91av01", unit]);
        check(&[frame(), frame()], "AV1:640x360 K19+0 K19+0");
        check(&[record(av1::tests::RECORD_360), frame()], "AV1:640x360 K19+0");
        let other = || record(av1::tests::RECORD_1080);
        check(&[other(), frame(), other(), frame()], "AV1:1920x1080 AV1:640x360 K19+0 K19+0");
        check(&[a(&[b"\x90Opus", OPUS_HEAD]), a(&[b"\x91Opus\xfc12"]), a(&[b"\x92Opus"])], "Opus:48000/2 K3+0 end");
        check(&[a(&[b"\x90mp4a", ASC]), a(&[b"\x91mp4a123"])], "AAC:48000/2 K3+0");
        check(&[a(&[b"\x91.mp3\xff\xfb\x90\x44"])], "MP3:44100/2 K4+0");
    }

    #[test]
    fn modifiers_metadata_and_further_tracks_are_passed_over() {
        let start = v(&[b"\x90avc1", AVCC]);
        // A nanosecond offset before the frame.
        check(&[start.clone(), v(&[b"\x97\x02\x00\x01\x02\x03avc1", IDR])], "H.264:640x360 K6+0");
        // Metadata, and an MPEG-2 TS start of AV1.
        check(&[v(&[b"\x94avc1\x02\x00\x09colorInfo"]), v(&[b"\x95av01\x80"])], "");
        // One track: the second, then the first.
        check(&[start.clone(), v(&[b"\x96\x03avc1\x01", IDR]), v(&[b"\x96\x03avc1\x00", IDR])], "H.264:640x360 K6+0");
        // Many tracks of one codec, and of many.
        check(&[start.clone(), v(&[b"\x96\x13avc1\x01\0\0\x06", IDR, b"\x00\0\0\x06", IDR])], "H.264:640x360 K6+0");
        check(&[start, v(&[b"\x96\x23hvc1\x01\0\0\x01x", b"avc1\x00\0\0\x06", IDR])], "H.264:640x360 K6+0");
        // A channel map.
        check(&[a(&[b"\x94Opus\x01\x02"])], "");
        check(&[a(&[b"\x95\x01Opus\x00\xfc1"]), a(&[b"\x95\x01Opus\x01\xfc1"])], "Opus:48000/2 K2+0");
    }

    #[test]
    fn new_parameter_sets_in_band_become_a_new_track() {
        let start = v(&[&[0x17, 0, 0, 0, 0], AVCC]);
        let frame = v(&[&[0x17, 1, 0, 0, 0], SETS_1080, IDR]);
        let again = [start.clone(), v(&[&[0x17, 1, 0, 0, 0], IDR]), frame.clone(), frame.clone(), start, frame.clone()];
        check(&again, "H.264:640x360 K6+0 H.264:1920x1080 K47+0 K47+0 K47+0");
        // Sets in a frame of their own, without a picture.
        let alone = v(&[&[0x17, 1, 0, 0, 0], SETS_1080]);
        check(&[v(&[&[0x17, 0, 0, 0, 0], AVCC]), alone], "H.264:640x360 H.264:1920x1080");
        // Without any sequence header.
        check(&[v(&[&[0x27, 1, 0, 0, 0], SLICE]), frame], "H.264:1920x1080 K47+0");
        let sps = [b"\0\0\0\x2a", h265::tests::SPS_1080, b"\0\0\0\x02\x28\x01"].concat();
        let length = [0, 0, 0, h265::tests::SPS_1080.len() as u8];
        let sps = [&length, &sps[4..]].concat();
        let want = format!("H.265:640x360 H.265:1920x1080 K{}+0", sps.len());
        check(&[v(&[b"\x90hvc1", h265::tests::RECORD_360]), v(&[b"\x93hvc1", &sps])], &want);
    }

    #[test]
    fn short_lengths_become_long_ones_in_record_and_frames() {
        let mut record = AVCC.to_vec();
        record[4] = 0xfd;
        let mut reader = Reader::new();
        let mut out = Vec::new();
        reader.video(&[&[0x17, 0, 0, 0, 0], &record[..]].concat().into(), &mut out).unwrap();
        reader.video(&Bytes::from_static(b"\x17\x01\0\0\0\0\x02\x65\x88"), &mut out).unwrap();
        let [Item::Track(track), Item::Frame(raw)] = &out[..] else { panic!("{out:?}") };
        assert_eq!((&track.config[..], &raw.payload[..]), (AVCC, IDR));
    }

    #[test]
    fn what_says_nothing_is_nothing() {
        check(&[v(&[]), a(&[]), v(&[&[0x57, 0]]), v(&[&[0xd1, 0]])], "");
        check(&[a(&[&[0xaf, 0]]), v(&[&[0x17, 0, 0, 0, 0]]), v(&[b"\x90hvc1"])], "");
        check(&[a(&[&[0xaf, 1, 2, 3]]), v(&[&[0x17, 1, 0, 0, 0], IDR])], "");
        check(
            &[v(&[&[0x17, 0, 0, 0, 0], AVCC]), v(&[&[0x17, 1, 0, 0, 0]]), a(&[&[0xaf, 0], ASC]), a(&[&[0xaf, 1]])],
            "H.264:640x360 AAC:48000/2",
        );
    }

    #[test]
    fn a_negative_offset_stays_what_it_is() {
        check(&[v(&[&[0x17, 0, 0, 0, 0], AVCC]), v(&[&[0x27, 1, 0xff, 0xff, 0xd8], SLICE])], "H.264:640x360 p6+-40");
    }

    #[test]
    fn what_is_not_carried_is_named() {
        check(
            &[v(&[&[0x12, 0]]), v(&[&[0x14, 0]]), v(&[b"\x90vp09"]), v(&[b"\x90Opus"])],
            "no Sorenson H.263 no VP6 no vp09 no Opus",
        );
        check(
            &[a(&[&[0xb2, 0]]), a(&[&[0x3e, 0]]), a(&[b"\x90fLaC"]), a(&[b"\x90av01"])],
            "no Speex no PCM no fLaC no av01",
        );
        check(&[v(&[b"\x90\0\xffxy"])], r"no \x00\xffxy");
    }

    #[test]
    fn a_malformed_body_costs_only_itself() {
        let start = v(&[&[0x17, 0, 0, 0, 0], AVCC]);
        let bad = v(&[&[0x27, 1, 0, 0, 0], b"\0\0\x09\x09\x41"]);
        check(
            &[v(&[&[0x17]]), v(&[&[0x17, 0, 0, 0, 0], &AVCC[..20]]), start, bad, v(&[&[0x17, 1, 0, 0, 0], IDR])],
            "bad bad H.264:640x360 bad K6+0",
        );
        for short in [
            &b"\x97"[..],
            b"\x97\xff",
            b"\x97\xff\xff\xff",
            b"\x96",
            b"\x96\x10avc1\x01\xff\xff\xff",
            b"\x90av",
            b"\x91avc1\0",
        ] {
            check(&[v(&[short])], "bad");
        }
    }

    /// Writes the track and a frame of it; says the bodies' first bytes, and that reading gives both back.
    fn check_written(
        codec: Codec,
        config: &[u8],
        payload: &'static [u8],
        cts: i64,
        want_track: &[u8],
        want_frame: &[u8],
    ) {
        let of = if codec == Codec::Mp3 { payload } else { config };
        let track = codec::track(codec, Bytes::copy_from_slice(of)).unwrap();
        let frame = Frame {
            track: codec.kind(),
            dts: Time::ZERO,
            cts: Time::from_millis(cts),
            key: true,
            payload: Bytes::from_static(payload),
        };
        let head = frame_head(codec, &frame);
        assert_eq!(&head[..], want_frame, "{codec}");
        let start = track_body(&track);
        assert!(start.as_deref().unwrap_or_default().starts_with(want_track), "{codec}");

        let mut reader = Reader::new();
        let mut out = Vec::new();
        let body = Bytes::from([&head[..], payload].concat());
        for body in start.into_iter().chain([body]) {
            match codec.kind() {
                Kind::Video => reader.video(&body, &mut out).unwrap(),
                Kind::Audio => reader.audio(&body, &mut out).unwrap(),
            }
        }
        let raw = Raw { track: frame.track, cts: frame.cts, key: true, payload: frame.payload };
        assert_eq!(out, [Item::Track(track), Item::Frame(raw)]);
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        check_written(Codec::H264, AVCC, IDR, 80, &[0x17, 0, 0, 0, 0, 1], &[0x17, 1, 0, 0, 80]);
        check_written(Codec::H265, h265::tests::RECORD_360, b"\0\0\0\x02\x28\x01", 0, b"\x90hvc1\x01", b"\x93hvc1");
        check_written(
            Codec::H265,
            h265::tests::RECORD_360,
            b"\0\0\0\x02\x28\x01",
            40,
            b"\x90hvc1\x01",
            b"\x91hvc1\0\0\x28",
        );
        check_written(Codec::Av1, av1::tests::RECORD_OF_KEY, av1::tests::KEY_360, 0, b"\x90av01\x81", b"\x91av01");
        check_written(Codec::Aac, ASC, b"\x21\x10", 0, &[0xaf, 0, 0x11], &[0xaf, 1]);
        check_written(Codec::Opus, OPUS_HEAD, b"\xfc12", 0, b"\x90OpusOpusHead", b"\x91Opus");
        check_written(Codec::Mp3, b"", b"\xff\xfb\x90\x44", 0, b"", &[0x2f]);
    }

    #[test]
    fn a_payload_is_a_slice_of_its_body() {
        let mut reader = Reader::new();
        let mut out = Vec::new();
        reader.video(&[&[0x17, 0, 0, 0, 0], AVCC].concat().into(), &mut out).unwrap();
        let body = Bytes::from([&[0x17, 1, 0, 0, 0], IDR].concat());
        reader.video(&body, &mut out).unwrap();
        let Some(Item::Frame(raw)) = out.last() else { panic!("{out:?}") };
        assert_eq!(raw.payload.as_ptr(), body[5..].as_ptr());
    }

    #[test]
    fn a_file_written_tag_by_tag_reads_back() {
        let tags = [
            Tag { kind: TagKind::Script, timestamp: 0, body: Bytes::from_static(b"x") },
            Tag { kind: TagKind::Video, timestamp: 0x0102_0304, body: Bytes::from_static(b"yy") },
            Tag { kind: TagKind::Audio, timestamp: u32::MAX, body: Bytes::new() },
        ];
        let mut file = file_head(true, true).to_vec();
        for tag in &tags {
            file.extend(tag_head(tag.kind, tag.timestamp, tag.body.len()));
            file.extend(&tag.body[..]);
            file.extend(tag_tail(tag.body.len()));
        }
        let read = |file: &[u8]| Demuxer::new(Bytes::copy_from_slice(file)).unwrap().collect::<Vec<_>>();
        assert_eq!(read(&file), tags.clone().map(Ok));
        let cut = read(&file[..file.len() - 5]);
        assert_eq!(cut.last(), Some(&Err(CUT_OFF)));
        assert_eq!(cut.len(), 3);
        assert!(Demuxer::new(Bytes::from_static(b"FLV\x01")).is_err());
        assert!(Demuxer::new(Bytes::from_static(b"RIFF\0\0\0\0\0\0\0\0\0")).is_err());
    }

    #[test]
    fn the_demo_stream_loops_without_a_seam() {
        let file = include_bytes!("../../../server/src/demo/source.flv");
        let mut reader = Reader::new();
        let (mut tracks, mut pictures, mut sounds) = (Vec::new(), Vec::new(), Vec::new());
        for tag in Demuxer::new(Bytes::from_static(file)).unwrap() {
            let tag = tag.unwrap();
            let mut items = Vec::new();
            match tag.kind {
                TagKind::Video => reader.video(&tag.body, &mut items).unwrap(),
                TagKind::Audio => reader.audio(&tag.body, &mut items).unwrap(),
                TagKind::Script => continue,
            }
            for item in items {
                match &item {
                    Item::Track(track) => {
                        tracks.push(tell(&item));
                        assert_eq!(track_body(track), Some(tag.body.clone()));
                    }
                    Item::Frame(raw) => {
                        let Raw { track, cts, key, payload } = raw.clone();
                        let (codec, times) = match track {
                            Kind::Video => (Codec::H264, &mut pictures),
                            Kind::Audio => (Codec::Aac, &mut sounds),
                        };
                        times.push((tag.timestamp, key));
                        let frame = Frame { track, dts: Time::ZERO, cts, key, payload };
                        let body = [&frame_head(codec, &frame)[..], &frame.payload].concat();
                        assert_eq!(body, tag.body);
                    }
                    Item::Ended(_) => {}
                }
            }
        }
        assert_eq!(tracks, ["H.264:640x360", "AAC:48000/2"]);
        let want = (0..256).map(|n| (n * 40, n % 32 == 0)).collect::<Vec<_>>();
        assert_eq!(pictures, want);
        assert_eq!((sounds.len(), sounds[0].0), (480, 0));
        // 256 pictures of 40 ms and 480 frames of 1024 samples are both 10.24 s.
        assert!((10_240 - 22..=10_240 - 21).contains(&sounds[479].0));
    }
}
