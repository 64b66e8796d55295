//! RTMP as far as a test peer needs it: blocking, version 3 plain handshake, AMF0 commands, all chunk formats read
//! and formats 0 and 3 written.

use std::collections::HashMap;
use std::io::{self, Read, Write};

/// A message, whole.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// 8 audio, 9 video, 18 data, 20 command; below 8 protocol control.
    pub kind: u8,
    /// Milliseconds.
    pub timestamp: u32,
    /// The message stream id.
    pub stream: u32,
    /// Its bytes, without chunk headers.
    pub payload: Vec<u8>,
}

impl Message {
    /// A command or another AMF0 message.
    pub fn command(stream: u32, values: &[Amf]) -> Message {
        let mut payload = Vec::new();
        values.iter().for_each(|value| value.write(&mut payload));
        Message { kind: 20, timestamp: 0, stream, payload }
    }

    /// A protocol control message with one 32-bit value.
    pub fn control(kind: u8, value: u32) -> Message {
        Message { kind, payload: value.to_be_bytes().to_vec(), ..Message::default() }
    }

    /// A ping, which its receiver is to answer.
    pub fn ping() -> Message {
        Message { kind: 4, payload: vec![0, 6, 0, 0, 0, 9], ..Message::default() }
    }

    /// The AMF0 values of a command.
    pub fn values(&self) -> Vec<Amf> {
        let mut rest = &self.payload[..];
        std::iter::from_fn(|| Amf::read(&mut rest)).collect()
    }

    /// The chunks that carry it.
    pub fn chunks(&self, chunk_size: usize) -> Vec<u8> {
        let channel = match self.kind {
            8 => 4,
            9 => 6,
            20 => 3,
            18 => 5,
            _ => 2,
        };
        let long = self.timestamp >= 0xff_ffff;
        let mut out = Vec::with_capacity(self.payload.len() + self.payload.len() / chunk_size + 32);
        out.push(channel);
        out.extend(&if long { 0xff_ffff } else { self.timestamp }.to_be_bytes()[1..]);
        out.extend(&(self.payload.len() as u32).to_be_bytes()[1..]);
        out.push(self.kind);
        out.extend(self.stream.to_le_bytes());
        for (n, part) in self.payload.chunks(chunk_size).enumerate() {
            if n > 0 {
                out.push(0xc0 | channel);
            }
            if long {
                out.extend(self.timestamp.to_be_bytes());
            }
            out.extend(part);
        }
        out
    }
}

/// An AMF0 value.
#[derive(Clone, Debug, PartialEq)]
pub enum Amf {
    /// A number.
    Number(f64),
    /// A truth.
    Bool(bool),
    /// A short string.
    Text(String),
    /// An object or ECMA array.
    Object(Vec<(String, Amf)>),
    /// A strict array.
    List(Vec<Amf>),
    /// Null, undefined, or a type that the tests do not use.
    Null,
}

impl Amf {
    /// A text.
    pub fn text(text: &str) -> Amf {
        Amf::Text(text.to_owned())
    }

    /// An object of texts.
    pub fn object(members: &[(&str, &str)]) -> Amf {
        Amf::Object(members.iter().map(|(name, value)| ((*name).to_owned(), Amf::text(value))).collect())
    }

    /// The text, or an empty one.
    pub fn as_text(&self) -> &str {
        if let Amf::Text(text) = self { text } else { "" }
    }

    /// A text member of an object, or an empty one.
    pub fn member(&self, name: &str) -> &str {
        self.find(name).map_or("", Amf::as_text)
    }

    /// The texts of a strict array that is a member of an object.
    pub fn list(&self, name: &str) -> Vec<String> {
        let Some(Amf::List(list)) = self.find(name) else { return Vec::new() };
        list.iter().map(|it| it.as_text().to_owned()).collect()
    }

    fn find(&self, name: &str) -> Option<&Amf> {
        let Amf::Object(members) = self else { return None };
        members.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let name = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u16).to_be_bytes());
            out.extend(text.as_bytes());
        };
        match self {
            Amf::Number(number) => {
                out.push(0);
                out.extend(number.to_be_bytes());
            }
            Amf::Bool(truth) => out.extend([1, u8::from(*truth)]),
            Amf::Text(text) => {
                out.push(2);
                name(out, text);
            }
            Amf::Object(members) => {
                out.push(3);
                for (key, value) in members {
                    name(out, key);
                    value.write(out);
                }
                out.extend([0, 0, 9]);
            }
            Amf::List(values) => {
                out.push(10);
                out.extend((values.len() as u32).to_be_bytes());
                values.iter().for_each(|it| it.write(out));
            }
            Amf::Null => out.push(5),
        }
    }

    fn read(rest: &mut &[u8]) -> Option<Amf> {
        fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
            let (head, tail) = rest.split_at_checked(n)?;
            *rest = tail;
            Some(head)
        }
        fn text(rest: &mut &[u8]) -> Option<String> {
            let len = take(rest, 2)?;
            let len = usize::from(len[0]) << 8 | usize::from(len[1]);
            Some(String::from_utf8_lossy(take(rest, len)?).into_owned())
        }
        match take(rest, 1)?[0] {
            0 => Some(Amf::Number(f64::from_be_bytes(take(rest, 8)?.try_into().ok()?))),
            1 => Some(Amf::Bool(take(rest, 1)?[0] != 0)),
            2 => text(rest).map(Amf::Text),
            marker @ (3 | 8) => {
                if marker == 8 {
                    take(rest, 4)?;
                }
                let mut members = Vec::new();
                while !rest.starts_with(&[0, 0, 9]) {
                    members.push((text(rest)?, Amf::read(rest)?));
                }
                take(rest, 3)?;
                Some(Amf::Object(members))
            }
            10 => {
                let count = u32::from_be_bytes(take(rest, 4)?.try_into().ok()?);
                Some(Amf::List((0..count).map(|_| Amf::read(rest)).collect::<Option<_>>()?))
            }
            _ => Some(Amf::Null),
        }
    }
}

/// Reads messages out of chunks.
pub struct Reader<R> {
    input: R,
    chunk_size: usize,
    channels: HashMap<u32, Channel>,
    /// Bytes read, for acknowledgements.
    pub bytes: u64,
}

#[derive(Default)]
struct Channel {
    message: Message,
    length: usize,
    delta: u32,
    long: bool,
}

impl<R: Read> Reader<R> {
    /// Begins after the handshake.
    pub fn new(input: R) -> Reader<R> {
        Reader { input, chunk_size: 128, channels: HashMap::new(), bytes: 0 }
    }

    /// The next whole message. Set Chunk Size is obeyed here and not given out.
    pub fn message(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.chunk()? {
                if message.kind != 1 {
                    return Ok(message);
                }
                self.chunk_size = message.payload.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)).max(1);
            }
        }
    }

    fn chunk(&mut self) -> io::Result<Option<Message>> {
        let basic = self.number(1)?;
        let channel = match basic & 0x3f {
            0 => 64 + self.number(1)?,
            1 => 64 + self.number(1)? + 256 * self.number(1)?,
            small => small,
        };
        let mut state = self.channels.remove(&channel).unwrap_or_default();
        let format = basic >> 6;
        let fresh = state.message.payload.is_empty();
        if format < 3 {
            let stamp = self.number(3)?;
            if format < 2 {
                state.length = self.number(3)? as usize;
                state.message.kind = self.number(1)? as u8;
            }
            if format == 0 {
                state.message.stream = self.number(4)?.swap_bytes();
            }
            state.long = stamp == 0xff_ffff;
            let stamp = if state.long { self.number(4)? } else { stamp };
            state.delta = if format == 0 { 0 } else { stamp };
            state.message.timestamp = if format == 0 { stamp } else { state.message.timestamp.wrapping_add(stamp) };
        } else {
            if state.long {
                self.number(4)?;
            }
            if fresh {
                state.message.timestamp = state.message.timestamp.wrapping_add(state.delta);
            }
        }
        let have = state.message.payload.len();
        let part = (state.length - have).min(self.chunk_size);
        state.message.payload.resize(have + part, 0);
        self.input.read_exact(&mut state.message.payload[have..])?;
        self.bytes += part as u64;
        let whole = state.message.payload.len() == state.length;
        let message = whole.then(|| {
            let payload = std::mem::take(&mut state.message.payload);
            Message { payload, ..state.message }
        });
        self.channels.insert(channel, state);
        Ok(message)
    }

    fn number(&mut self, bytes: usize) -> io::Result<u32> {
        let mut buffer = [0; 4];
        self.input.read_exact(&mut buffer[4 - bytes..])?;
        self.bytes += bytes as u64;
        Ok(u32::from_be_bytes(buffer))
    }
}

/// The client's half of the plain handshake.
pub fn greet(socket: &mut (impl Read + Write)) -> io::Result<()> {
    let mut hello = [7; 1537];
    hello[0] = 3;
    hello[1..9].fill(0);
    socket.write_all(&hello)?;
    let mut answer = [0; 3073];
    socket.read_exact(&mut answer)?;
    socket.write_all(&answer[1..1537])
}

/// The server's half of the plain handshake.
pub fn welcome(socket: &mut (impl Read + Write)) -> io::Result<()> {
    let mut hello = [0; 1537];
    socket.read_exact(&mut hello)?;
    let mut answer = [9; 3073];
    answer[0] = 3;
    answer[1..9].fill(0);
    answer[1537..].copy_from_slice(&hello[1..]);
    socket.write_all(&answer)?;
    socket.read_exact(&mut [0; 1536])
}
