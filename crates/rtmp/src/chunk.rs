//! Messages cut into chunks and put together again (spec 5.3).
//!
//! The reader takes input in any split and keeps no more of it than a header that has not fully
//! arrived; payload goes straight into its message's own buffer. The writer never copies payload.
//!
//! Invariant: a reader holds at most [`Limits::unfinished`] bytes of messages that have not fully
//! arrived, and no buffer is larger than twice what has arrived or [`FIRST_BUFFER`].

use std::collections::VecDeque;

use bytes::Bytes;

use crate::Error;

/// What one connection may make us hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes in one message.
    pub message: usize,
    /// Bytes in all unfinished messages together.
    pub unfinished: usize,
    /// Chunk streams.
    pub streams: usize,
}

/// One whole message of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Message type id.
    pub kind: u8,
    /// Message stream id.
    pub stream: u32,
    /// Milliseconds; wraps.
    pub timestamp: u32,
    /// The payload.
    pub body: Bytes,
}

/// Message type ids that this layer handles itself (spec 5.4.1, 5.4.2).
const SET_CHUNK_SIZE: u8 = 1;
const ABORT: u8 = 2;

/// What both sides cut into until told otherwise (spec 5.4.1).
const DEFAULT_CHUNK_SIZE: usize = 128;

/// The largest buffer that is made on the word of a header alone.
pub const FIRST_BUFFER: usize = 64 * 1024;

/// A 24-bit timestamp field of this value says that the true one follows in 32 bits.
const EXTENDED: u32 = 0xff_ffff;

/// Chunks in, messages out.
pub struct Reader {
    limits: Limits,
    chunk_size: usize,
    streams: Vec<Stream>,
    /// The start of a header whose rest has not arrived.
    held: Vec<u8>,
    /// The chunk whose payload is being taken: index of its stream, bytes still to come.
    current: Option<(usize, usize)>,
    /// Capacity of all unfinished bodies.
    unfinished: usize,
}

impl Reader {
    /// A reader at the start of the chunk layer, with the default chunk size.
    pub fn new(limits: Limits) -> Reader {
        Reader {
            limits,
            chunk_size: DEFAULT_CHUNK_SIZE,
            streams: Vec::new(),
            held: Vec::new(),
            current: None,
            unfinished: 0,
        }
    }

    /// Other limits from the next header on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The next message that `input` completes, or `None` once all of `input` is taken.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Raw>, Error> {
        if !self.held.is_empty() {
            let mut joined = [0; 2 * MAX_HEADER];
            let old = self.held.len();
            let new = input.len().min(joined.len() - old);
            joined[..old].copy_from_slice(&self.held);
            joined[old..old + new].copy_from_slice(&input[..new]);
            let mut rest = &joined[..old + new];
            let raw = self.read_whole(&mut rest)?;
            let used = old + new - rest.len();
            self.held.clear();
            *input = if used >= old {
                &input[used - old..]
            } else {
                // What was held back for an extended timestamp can turn out to be payload and the
                // next header; short of a message, so much is unread only where input is short.
                let keep = if raw.is_some() { old - used } else { rest.len() };
                self.held.extend_from_slice(&rest[..keep]);
                if raw.is_some() { *input } else { &[] }
            };
            if raw.is_some() || input.is_empty() {
                return Ok(raw);
            }
        }
        let raw = self.read_whole(input)?;
        if raw.is_none() {
            self.held.extend_from_slice(input);
            *input = &[];
        }
        Ok(raw)
    }

    /// As [`Reader::read`], but leaves a header that is not whole in `input`.
    fn read_whole(&mut self, input: &mut &[u8]) -> Result<Option<Raw>, Error> {
        loop {
            let (index, left) = match self.current.take() {
                Some(it) => it,
                None => match self.header(input)? {
                    Some(it) => it,
                    None => return Ok(None),
                },
            };
            let left = self.payload(index, left, input)?;
            if left > 0 {
                self.current = Some((index, left));
                return Ok(None);
            }
            let stream = &mut self.streams[index];
            if stream.body.len() < stream.length {
                continue;
            }
            self.unfinished -= stream.body.capacity();
            let raw = stream.finish();
            match raw.kind {
                SET_CHUNK_SIZE => {
                    // The first bit is reserved as zero; nothing is allocated for the rest.
                    self.chunk_size = (number(&raw)? as usize & 0x7fff_ffff).max(1);
                }
                ABORT => {
                    let id = number(&raw)?;
                    if let Some(index) = self.streams.iter().position(|it| it.id == id) {
                        self.discard(index);
                    }
                }
                _ => return Ok(Some(raw)),
            }
        }
    }

    /// Takes a chunk header, if it is whole; gives its stream and the payload bytes of the chunk.
    fn header(&mut self, input: &mut &[u8]) -> Result<Option<(usize, usize)>, Error> {
        let bytes = *input;
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let (basic, id) = match (first & 0x3f, bytes) {
            (0, [_, a, ..]) => (2, 64 + *a as u32),
            (1, [_, a, b, ..]) => (3, 64 + *a as u32 + *b as u32 * 256),
            (0 | 1, _) => return Ok(None),
            (id, _) => (1, id as u32),
        };
        let format = first >> 6;
        let index = match self.streams.iter().position(|it| it.id == id) {
            Some(index) => index,
            // librtmp begins the control stream with a type 1 header.
            None if format > 1 => return Err(Error::UnknownChunkStream(id)),
            None if self.streams.len() >= self.limits.streams => {
                return Err(Error::TooManyChunkStreams(self.limits.streams));
            }
            None => self.streams.len(),
        };

        let size = [11, 7, 3, 0][format as usize];
        let Some(fields) = bytes.get(basic..basic + size) else {
            return Ok(None);
        };
        let rest = &bytes[basic + size..];
        let (time, extended, extra) = match fields.first_chunk().map(u24) {
            Some(EXTENDED) => match rest.first_chunk() {
                Some(it) => {
                    let time = Some(u32::from_be_bytes(*it));
                    (time, time, 4)
                }
                None => return Ok(None),
            },
            Some(time) => (Some(time), None, 0),
            None => {
                let before = self.streams[index].extended;
                match repeated(before, rest) {
                    Some(extra) => (None, before, extra),
                    None => return Ok(None),
                }
            }
        };
        *input = &rest[extra..];

        if index == self.streams.len() {
            self.streams.push(Stream { id, ..Stream::default() });
        }
        let stream = &mut self.streams[index];
        stream.extended = extended;
        let length = match fields {
            [_, _, _, a, b, c, ..] => u24(&[*a, *b, *c]) as usize,
            _ => stream.length,
        };
        // A header in the middle of a message goes on with it if the length agrees; otherwise the
        // peer has given the message up.
        if !(stream.begun && format > 0 && length == stream.length) {
            stream.pass_time(format, time);
            if let Some(kind) = fields.get(6) {
                stream.kind = *kind;
            }
            if let Some(id) = fields.get(7..).and_then(|it| it.first_chunk()) {
                stream.stream = u32::from_le_bytes(*id);
            }
            self.begin(index, length)?;
        }
        let stream = &self.streams[index];
        let left = stream.length - stream.body.len();
        Ok(Some((index, left.min(self.chunk_size))))
    }

    fn begin(&mut self, index: usize, length: usize) -> Result<(), Error> {
        if length > self.limits.message {
            return Err(Error::MessageTooLarge { size: length, limit: self.limits.message });
        }
        self.discard(index);
        let stream = &mut self.streams[index];
        stream.begun = true;
        stream.length = length;
        stream.body = Vec::with_capacity(length.min(FIRST_BUFFER));
        self.unfinished += stream.body.capacity();
        self.check_unfinished()
    }

    fn discard(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        stream.begun = false;
        self.unfinished -= stream.body.capacity();
        stream.body = Vec::new();
    }

    /// Moves what is there of the chunk into its message; gives how much is missing.
    fn payload(&mut self, index: usize, left: usize, input: &mut &[u8]) -> Result<usize, Error> {
        let stream = &mut self.streams[index];
        let (part, rest) = input.split_at(left.min(input.len()));
        let (old, need) = (stream.body.capacity(), stream.body.len() + part.len());
        if need > old {
            let grown = need.max(2 * old).min(stream.length);
            stream.body.reserve_exact(grown - stream.body.len());
            self.unfinished += stream.body.capacity() - old;
        }
        stream.body.extend_from_slice(part);
        *input = rest;
        self.check_unfinished()?;
        Ok(left - part.len())
    }

    fn check_unfinished(&self) -> Result<(), Error> {
        if self.unfinished > self.limits.unfinished {
            return Err(Error::TooMuchUnfinished(self.limits.unfinished));
        }
        Ok(())
    }
}

/// How many bytes of `rest`, which follows a type 3 header, are the extended timestamp `before`
/// once more; `None` while that cannot be told. The spec repeats it and some encoders do not, so
/// it is one if it is the same, and the first byte that is not settles it.
fn repeated(before: Option<u32>, rest: &[u8]) -> Option<usize> {
    let Some(before) = before.map(u32::to_be_bytes) else {
        return Some(0);
    };
    if rest.starts_with(&before) {
        Some(before.len())
    } else if before.starts_with(rest) {
        None
    } else {
        Some(0)
    }
}

/// Basic header, type 0 message header, extended timestamp.
const MAX_HEADER: usize = 3 + 11 + 4;

/// One chunk stream: what its next compressed header refers to, and its unfinished message.
#[derive(Default)]
struct Stream {
    id: u32,
    timestamp: u32,
    delta: u32,
    /// The last extended timestamp field, if the last header had one.
    extended: Option<u32>,
    length: usize,
    kind: u8,
    stream: u32,
    begun: bool,
    body: Vec<u8>,
}

impl Stream {
    /// Sets the time of the message that a header of type `format` begins.
    fn pass_time(&mut self, format: u8, time: Option<u32>) {
        match (format, time) {
            (0, Some(time)) => {
                self.timestamp = time;
                // By the spec the timestamp of a type 0 header is also the delta for a type 3
                // message after it, and ffmpeg counts on that; librtmp means "same time". Only a
                // small one can be a delta.
                self.delta = if time < 1000 { time } else { 0 };
                return;
            }
            (_, Some(delta)) => self.delta = delta,
            (_, None) => {}
        }
        self.timestamp = self.timestamp.wrapping_add(self.delta);
    }

    fn finish(&mut self) -> Raw {
        self.begun = false;
        let body = std::mem::take(&mut self.body).into();
        Raw { kind: self.kind, stream: self.stream, timestamp: self.timestamp, body }
    }
}

fn u24(bytes: &[u8; 3]) -> u32 {
    u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])
}

/// The number that a control message begins with.
pub(crate) fn number(raw: &Raw) -> Result<u32, Error> {
    raw.body.first_chunk().map(|it| u32::from_be_bytes(*it)).ok_or(Error::Control(raw.kind))
}

/// Messages in, chunks out.
pub struct Writer {
    chunk_size: usize,
    /// Message stream and timestamp of the last message, by chunk stream.
    last: [Option<(u32, u32)>; MAX_ID],
}

/// The chunk stream ids that we write are below this.
const MAX_ID: usize = 8;

impl Writer {
    /// A writer at the start of the chunk layer, with the default chunk size.
    #[expect(clippy::new_without_default, reason = "a default would not say that the chunk layer starts anew")]
    pub fn new() -> Writer {
        Writer { chunk_size: DEFAULT_CHUNK_SIZE, last: [None; MAX_ID] }
    }

    /// Announces this chunk size and cuts the following messages by it.
    pub fn set_chunk_size(&mut self, size: u32, out: &mut VecDeque<Bytes>) {
        let size = size.clamp(1, 0x7fff_ffff);
        self.write(2, SET_CHUNK_SIZE, 0, 0, &size.to_be_bytes(), &Bytes::new(), out);
        self.chunk_size = size as usize;
    }

    /// One message, its body being `head` and then `payload`, on chunk stream `id` (2 to 7). `head`
    /// is copied next to the header, `payload` is shared. A body over 16 MiB has no RTMP form and
    /// is left out.
    #[expect(clippy::too_many_arguments, reason = "the fields of a header, in its order")]
    pub fn write(
        &mut self,
        id: u8,
        kind: u8,
        stream: u32,
        timestamp: u32,
        head: &[u8],
        payload: &Bytes,
        out: &mut VecDeque<Bytes>,
    ) {
        let length = head.len() + payload.len();
        let id = id.clamp(2, MAX_ID as u8 - 1);
        if length > 0xff_ffff {
            return;
        }
        let delta = match self.last[id as usize] {
            Some((before, time)) if before == stream => Some(timestamp.wrapping_sub(time)).filter(|it| *it < EXTENDED),
            _ => None,
        };
        self.last[id as usize] = Some((stream, timestamp));

        let extended = delta.is_none() && timestamp >= EXTENDED;
        let cuts = head.len().saturating_sub(1) / self.chunk_size;
        let mut buffer = Vec::with_capacity(
            if delta.is_some() { 8 } else { 12 }
                + if extended { 4 } else { 0 }
                + head.len()
                + cuts * if extended { 5 } else { 1 },
        );
        let length_field = &(length as u32).to_be_bytes()[1..];
        match delta {
            Some(delta) => {
                buffer.push(0x40 | id);
                buffer.extend_from_slice(&delta.to_be_bytes()[1..]);
                buffer.extend_from_slice(length_field);
                buffer.push(kind);
            }
            None => {
                buffer.push(id);
                buffer.extend_from_slice(&timestamp.min(EXTENDED).to_be_bytes()[1..]);
                buffer.extend_from_slice(length_field);
                buffer.push(kind);
                buffer.extend_from_slice(&stream.to_le_bytes());
            }
        }
        let next = |buffer: &mut Vec<u8>| {
            buffer.push(0xc0 | id);
            if extended {
                buffer.extend_from_slice(&timestamp.to_be_bytes());
            }
        };
        if extended {
            buffer.extend_from_slice(&timestamp.to_be_bytes());
        }
        for (n, part) in head.chunks(self.chunk_size).enumerate() {
            if n > 0 {
                next(&mut buffer);
            }
            buffer.extend_from_slice(part);
        }
        out.push_back(buffer.into());

        // The first payload bytes fill the chunk that `head` has begun.
        let mut room = match head.len() % self.chunk_size {
            0 if !head.is_empty() => 0,
            used => self.chunk_size - used,
        };
        let between = match extended {
            // One byte that is always the same needs no allocation.
            false => Bytes::from_static(&TYPE_3[id as usize..][..1]),
            true if room < payload.len() => {
                let mut header = Vec::with_capacity(5);
                next(&mut header);
                header.into()
            }
            true => Bytes::new(),
        };
        let mut at = 0;
        while at < payload.len() {
            if room == 0 {
                out.push_back(between.clone());
                room = self.chunk_size;
            }
            let end = payload.len().min(at + room);
            out.push_back(payload.slice(at..end));
            (at, room) = (end, 0);
        }
    }
}

static TYPE_3: [u8; MAX_ID] = [0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message: 200_000, unfinished: 300_000, streams: 4 };

    /// Reads `input` in pieces of `step` bytes; each message as `type@timestamp/stream:body`.
    fn read(input: &[u8], step: usize) -> String {
        let mut reader = Reader::new(LIMITS);
        let mut got = Vec::new();
        for mut piece in input.chunks(step) {
            loop {
                match reader.read(&mut piece) {
                    Ok(None) => break,
                    Ok(Some(it)) => {
                        let body = match it.body.len() {
                            0..20 => it.body.escape_ascii().to_string(),
                            len => format!("{len} bytes"),
                        };
                        got.push(format!("{}@{}/{}:{body}", it.kind, it.timestamp, it.stream));
                    }
                    Err(e) => {
                        got.push(e.to_string());
                        return got.join(" ");
                    }
                }
            }
            assert!(piece.is_empty());
        }
        got.join(" ")
    }

    /// The same answer for every split of the concatenated `input`.
    fn check(input: &[&[u8]], want: &str) {
        let input = input.concat();
        for step in [1, 2, 3, 5, 17, 19, 1 << 20] {
            assert_eq!(read(&input, step), want, "in pieces of {step}");
        }
    }

    #[test]
    fn headers_of_all_types_refer_to_the_one_before() {
        check(
            &[
                b"\x04\0\0\x0a\0\0\x01\x08\x01\0\0\0a", // type 0 at 10
                b"\x44\0\0\x05\0\0\x02\x09bc",          // type 1, 5 later
                b"\x84\0\0\x07de",                      // type 2, 7 later
                b"\xc4fg",                              // type 3, 7 later again
            ],
            "8@10/1:a 9@15/1:bc 9@22/1:de 9@29/1:fg",
        );
    }

    #[test]
    fn chunk_stream_ids_come_in_three_sizes() {
        check(
            &[
                b"\0\x05\0\0\x01\0\0\x01\x08\0\0\0\0a",
                b"\x01\xff\xff\0\0\x02\0\0\x01\x08\0\0\0\0b",
                b"\xc0\x05c",
                b"\xc1\xff\xffd",
            ],
            "8@1/0:a 8@2/0:b 8@2/0:c 8@4/0:d",
        );
    }

    #[test]
    fn a_type_3_message_after_type_0_repeats_a_small_timestamp_as_delta_and_not_a_large_one() {
        check(&[b"\x04\0\0\x17\0\0\x01\x08\0\0\0\0a\xc4b"], "8@23/0:a 8@46/0:b");
        check(&[b"\x04\0\xff\xff\0\0\x01\x08\0\0\0\0a\xc4b"], "8@65535/0:a 8@65535/0:b");
    }

    #[test]
    fn interleaved_streams_and_any_chunk_size_are_joined() {
        check(
            &[
                b"\x02\0\0\0\0\0\x04\x01\0\0\0\0\0\0\0\x02", // chunk size 2
                b"\x04\0\0\0\0\0\x03\x08\0\0\0\0ab",
                b"\x06\0\0\0\0\0\x04\x09\0\0\0\0AB",
                b"\xc4c",
                b"\xc6CD",
            ],
            "8@0/0:abc 9@0/0:ABCD",
        );
    }

    #[test]
    fn abort_and_a_new_header_drop_the_unfinished_message() {
        let size: &[u8] = b"\x02\0\0\0\0\0\x04\x01\0\0\0\0\0\0\0\x02";
        let part: &[u8] = b"\x04\0\0\0\0\0\x03\x08\0\0\0\0ab";
        check(&[size, part, b"\x42\0\0\0\0\0\x04\x02\0\0", b"\xc2\0\x04", part, b"\xc4c"], "8@0/0:abc");
        check(&[size, part, b"\x04\0\0\x01\0\0\x02\x09\0\0\0\0xy"], "9@1/0:xy");
        check(&[size, part, b"\x44\0\0\x01\0\0\x03\x08c"], "8@0/0:abc");
    }

    #[test]
    fn empty_messages_are_messages() {
        check(&[b"\x04\0\0\x01\0\0\0\x08\0\0\0\0\xc4\xc4"], "8@1/0: 8@2/0: 8@3/0:");
    }

    #[test]
    fn an_extended_timestamp_is_understood_with_and_without_repetition() {
        let size: &[u8] = b"\x02\0\0\0\0\0\x04\x01\0\0\0\0\0\0\0\x02";
        let first: &[u8] = b"\x04\xff\xff\xff\0\0\x05\x08\0\0\0\0\x01\x02\x03\x04ab";
        let want = "8@16909060/0:abcde";
        check(&[size, first, b"\xc4\x01\x02\x03\x04cd\xc4\x01\x02\x03\x04e"], want);
        check(&[size, first, b"\xc4cd\xc4e"], want);
        // Payload that begins like the timestamp, then the next header.
        check(&[size, first, b"\xc4\x01\x02\xc4\x01\xc4xy"], r"8@16909060/0:ab\x01\x02\x01");
    }

    #[test]
    fn hostile_input_is_an_error() {
        check(&[b"\xc4"], "chunk stream 4 begins with a compressed header");
        check(&[b"\x04\0\0\0\x03\x0d\x41\x08\0\0\0\0"], "message of 200001 bytes, 200000 allowed");
        check(&[b"\x02\0\0\0\0\0\x01\x01\0\0\0\0\0"], "malformed control message of type 1");
        let open = |id: u8| [&[id], &b"\0\0\0\x02\0\0\x08\0\0\0\0"[..], &[0; 128]].concat();
        check(&[&open(3), &open(4), &open(5), &open(6)], "");
        check(&[&open(3), &open(4), &open(5), &open(6), &open(7)], "more than 4 chunk streams");
        let open = |id: u8| [&[id], &b"\0\0\0\x03\0\0\x08\0\0\0\0"[..], &[0; 128]].concat();
        let mut input = vec![b"\x02\0\0\0\0\0\x04\x01\0\0\0\0\x7f\xff\xff\xff".to_vec()];
        input.extend((3..5).map(|id| [&open(id)[..12], &[0; 0x30000]].concat()));
        let input: Vec<&[u8]> = input.iter().map(|it| &it[..]).collect();
        check(&input, "8@0/0:196608 bytes 8@0/0:196608 bytes");
        let limits = Limits { unfinished: 100_000, ..LIMITS };
        let mut reader = Reader::new(limits);
        let got = reader.read(&mut &input.concat()[..]);
        assert_eq!(got, Err(Error::TooMuchUnfinished(100_000)));
    }

    /// Writes messages of `(timestamp, head, payload)` sizes by `chunk_size`; the reader must give
    /// the same ones back.
    fn round_trip(chunk_size: u32, messages: &[(u32, usize, usize)]) {
        let (mut writer, mut out) = (Writer::new(), VecDeque::new());
        writer.set_chunk_size(chunk_size, &mut out);
        let mut want = Vec::new();
        for &(timestamp, head, payload) in messages {
            let body: Vec<u8> = (0..head + payload).map(|n| n as u8).collect();
            let payload = Bytes::copy_from_slice(&body[head..]);
            writer.write(6, 9, 1, timestamp, &body[..head], &payload, &mut out);
            want.push(Raw { kind: 9, stream: 1, timestamp, body: body.into() });
        }
        let (mut reader, mut got) = (Reader::new(LIMITS), Vec::new());
        for piece in out {
            let mut piece = &piece[..];
            while let Some(raw) = reader.read(&mut piece).unwrap() {
                got.push(raw);
            }
        }
        assert_eq!(got, want, "chunks of {chunk_size}");
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for chunk_size in [1, 2, 5, 128, 4096, 60_000] {
            for (head, payload) in [(0, 0), (5, 0), (0, 5), (5, 5), (5, 300), (10, 1), (2, 150_000)] {
                round_trip(chunk_size, &[(0, head, payload), (40, head, payload), (40, head, payload)]);
                round_trip(chunk_size, &[(0xff_fffe, head, payload), (0xff_ffff, head, payload)]);
                round_trip(chunk_size, &[(u32::MAX, head, payload), (10, head, payload), (5, head, payload)]);
            }
        }
    }

    #[test]
    fn payload_is_shared_and_not_copied() {
        let (mut writer, mut out) = (Writer::new(), VecDeque::new());
        let payload = Bytes::from(vec![0; 300]);
        writer.write(6, 9, 1, 0, b"head!", &payload, &mut out);
        let sizes: Vec<usize> = out.iter().map(Bytes::len).collect();
        assert_eq!(sizes, [17, 123, 1, 128, 1, 49]);
        assert_eq!(out[1].as_ptr(), payload.as_ptr());
    }
}
