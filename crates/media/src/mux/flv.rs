//! FLV: tag bodies, which are also RTMP's audio and video messages, and the file around them.
//!
//! Reading takes what publishers send: the legacy form (Adobe FLV 10.1 §E.4, with the common codec id 12 for HEVC)
//! and Enhanced RTMP v2 (Veovera, "Enhanced Audio" and "Enhanced Video"). Writing gives H.264, AAC and MP3 in the legacy form,
//! which every CDN takes, and the rest in the enhanced one.
//!
//! Invariant: a payload read from a tag and written into one again is the same bytes, and is not copied.

use std::ops::Deref;

use bytes::{Buf, Bytes};

use crate::codec::{self, av1, nal, opus};
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
    /// Composition offset; never negative.
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
    /// Whether the track has been told.
    known: bool,
}

/// The fourCC of a codec, and what there is to a tag with it.
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
        const COMMAND: u8 = 5;
        let Some(&head) = body.first() else { return Ok(()) };
        let enhanced = head & 0x80 != 0;
        if head >> 4 & 7 == COMMAND {
            return Ok(());
        }
        let (codec, packet, data) = if enhanced {
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
                None => return Err(Error::Malformed("video tag")),
            };
            (codec, packet, body.slice(2..))
        };
        self.picture(codec, packet, data, enhanced, out)
    }

    fn picture(&mut self, codec: Codec, packet: Packet, mut data: Bytes, enhanced: bool, out: &mut Vec<Item>) -> Result<(), Error> {
        // A legacy body has the offset whatever the packet; an enhanced one only with frames that can be reordered.
        let timed = if enhanced { packet == Packet::Frames && codec != Codec::Av1 } else { packet != Packet::End };
        let cts = if timed { composition(&mut data)? } else { Time::ZERO };
        match packet {
            Packet::Start => self.picture_track(codec, data, out),
            Packet::Frames | Packet::FramesX => self.picture_frame(codec, cts, data, out),
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
        self.video = Some(Picture { codec, record, sets, known: true });
        out.push(Item::Track(track));
        Ok(())
    }

    fn picture_frame(&mut self, codec: Codec, cts: Time, data: Bytes, out: &mut Vec<Item>) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        if self.video.as_ref().is_none_or(|it| it.codec != codec) {
            // The record may never come: then parameter sets in band are all there is.
            let sets = (codec != Codec::Av1).then(|| nal::Sets::new(codec));
            self.video = Some(Picture { codec, record: Bytes::new(), sets, known: false });
        }
        let picture = self.video.as_mut().expect("it has just been set");
        let payload = match &mut picture.sets {
            Some(sets) => {
                let whole = nal::normalize(data, sets.length_size());
                let payload = whole.ok_or(Error::Malformed("picture: its NAL units do not fit"))?;
                let changed = nal::nals(&payload, 4).fold(false, |changed, unit| sets.absorb(unit) | changed);
                if let Some(record) = sets.record().filter(|_| changed) {
                    picture.known = true;
                    out.push(Item::Track(codec::track(codec, record)?));
                }
                payload
            }
            None => data.slice(av1::delimiter_len(&data)..),
        };
        if picture.known && !payload.is_empty() {
            let key = codec::is_key(codec, &payload);
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
                None => return Err(Error::Malformed("audio tag")),
            },
            id => return Err(Error::Codec(legacy_audio(id))),
        };
        match packet {
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
    let short = Error::Malformed("enhanced tag head");
    let mut rest = Cursor(body.clone());
    let mut packet = rest.u8().ok_or(short.clone())? & 15;
    // Modifiers of the packet, such as nanoseconds to add to its time.
    while packet == MOD_EX {
        let mut size = usize::from(rest.u8().ok_or(short.clone())?) + 1;
        if size == 256 {
            size = usize::from(rest.u16().ok_or(short.clone())?) + 1;
        }
        rest.take(size).ok_or(short.clone())?;
        packet = rest.u8().ok_or(short.clone())? & 15;
    }
    let mut fourcc = None;
    let multitrack = packet == if kind == Kind::Video { MULTITRACK_VIDEO } else { MULTITRACK };
    if multitrack {
        const MANY_TRACKS: u8 = 1;
        const MANY_TRACKS_MANY_CODECS: u8 = 2;
        let head = rest.u8().ok_or(short.clone())?;
        packet = head & 15;
        let layout = head >> 4;
        if layout != MANY_TRACKS_MANY_CODECS {
            fourcc = Some(rest.take(4).ok_or(short.clone())?);
        }
        loop {
            if layout == MANY_TRACKS_MANY_CODECS {
                fourcc = Some(rest.take(4).ok_or(short.clone())?);
            }
            let track = rest.u8().ok_or(short.clone())?;
            if matches!(layout, MANY_TRACKS | MANY_TRACKS_MANY_CODECS) {
                let size = rest.u24().ok_or(short.clone())?;
                let data = rest.take(size).ok_or(short.clone())?;
                if track == 0 {
                    rest = Cursor(data);
                    break;
                }
                if rest.0.is_empty() {
                    return Ok(None);
                }
            } else if track == 0 {
                break;
            } else {
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
    let fourcc = fourcc.or_else(|| rest.take(4)).ok_or(short)?;
    let codec = FOURCC.iter().find(|(name, codec)| name[..] == fourcc && codec.kind() == kind);
    let &(_, codec) = codec.ok_or_else(|| Error::Codec(fourcc.escape_ascii().to_string()))?;
    Ok(Some((codec, packet, rest.0)))
}

/// Takes the 24-bit composition offset, in milliseconds, off the front. Negative ones become 0.
fn composition(data: &mut Bytes) -> Result<Time, Error> {
    let mut rest = Cursor(data.split_off(0));
    let offset = rest.u24().ok_or(Error::Malformed("composition offset"))?;
    *data = rest.0;
    let negative = offset >= 1 << 23;
    Ok(Time::from_millis(if negative { 0 } else { offset as i64 }))
}

/// Big-endian numbers and slices off the front of a body.
struct Cursor(Bytes);

impl Cursor {
    fn take(&mut self, n: usize) -> Option<Bytes> {
        (n <= self.0.len()).then(|| self.0.split_to(n))
    }

    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.0.try_get_u16().ok()
    }

    fn u24(&mut self) -> Option<usize> {
        self.0.try_get_uint(3).ok().map(|n| n as usize)
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

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cursor({} bytes)", self.0.len())
    }
}

impl Demuxer {
    /// Of a file's bytes.
    pub fn new(file: Bytes) -> Result<Demuxer, Error> {
        let not_flv = Error::Malformed("FLV file head");
        let mut rest = Cursor(file);
        let head = rest.take(9).filter(|head| head.starts_with(b"FLV")).ok_or(not_flv.clone())?;
        let size = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
        // To the end of the head, and past the size of the tag before the first.
        size.checked_sub(9).and_then(|more| rest.take(more.checked_add(4)?)).ok_or(not_flv)?;
        Ok(Demuxer { rest })
    }

    fn tag(&mut self) -> Option<Option<Tag>> {
        let number = self.rest.u8()? & 0x1f;
        let len = self.rest.u24()?;
        let low = self.rest.u24()? as u32;
        let timestamp = u32::from(self.rest.u8()?) << 24 | low;
        self.rest.take(3)?;
        let body = self.rest.take(len)?;
        // Whoever wrote the file may have stopped before the last tag's size.
        self.rest.take(self.rest.0.len().min(4))?;
        let kind = [TagKind::Audio, TagKind::Video, TagKind::Script].into_iter().find(|kind| kind.number() == number);
        Some(kind.map(|kind| Tag { kind, timestamp, body }))
    }
}

impl Iterator for Demuxer {
    type Item = Result<Tag, Error>;

    fn next(&mut self) -> Option<Result<Tag, Error>> {
        while !self.rest.0.is_empty() {
            match self.tag() {
                Some(Some(tag)) => return Some(Ok(tag)),
                // A tag of a kind that is not known.
                Some(None) => continue,
                None => {
                    self.rest.0.clear();
                    return Some(Err(Error::Malformed("FLV tag: cut off")));
                }
            }
        }
        None
    }
}
