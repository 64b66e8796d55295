//! What the messages mean: media, commands, control (spec 5.4, 6, 7).
//!
//! Invariant: a media body is never copied; what is stripped or split is a slice of it.

use bytes::{Buf, Bytes};

use crate::Error;
use crate::amf::{self, Value};
use crate::chunk::Raw;

/// What a media message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An FLV audio tag body.
    Audio,
    /// An FLV video tag body.
    Video,
    /// AMF0 values, the first being a name such as `onMetaData`.
    Data,
}

impl Kind {
    /// Message type id and chunk stream id. One chunk stream a kind, as other senders do, so that
    /// compressed headers work.
    pub(crate) fn ids(self) -> (u8, u8) {
        match self {
            Kind::Audio => (AUDIO, 4),
            Kind::Video => (VIDEO, 6),
            Kind::Data => (DATA, 5),
        }
    }
}

/// One media message. `clone` copies a pointer, not the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What the body is.
    pub kind: Kind,
    /// Milliseconds on the sender's clock; wraps after 49.7 days.
    pub timestamp: u32,
    /// The body as it was sent, but for a `@setDataFrame` wrapper.
    pub body: Bytes,
}

/// Type ids (spec 5.4, 7.1).
pub(crate) const ACKNOWLEDGEMENT: u8 = 3;
pub(crate) const USER_CONTROL: u8 = 4;
pub(crate) const WINDOW: u8 = 5;
pub(crate) const PEER_BANDWIDTH: u8 = 6;
pub(crate) const AUDIO: u8 = 8;
pub(crate) const VIDEO: u8 = 9;
pub(crate) const DATA_AMF3: u8 = 15;
pub(crate) const COMMAND_AMF3: u8 = 17;
pub(crate) const DATA: u8 = 18;
pub(crate) const COMMAND: u8 = 20;
pub(crate) const AGGREGATE: u8 = 22;

/// User control events (spec 7.1.7).
pub(crate) const STREAM_BEGIN: u16 = 0;
pub(crate) const STREAM_EOF: u16 = 1;
pub(crate) const PING_REQUEST: u16 = 6;
pub(crate) const PING_RESPONSE: u16 = 7;

/// A command of either direction: `connect`, `_result`, `onStatus`…
#[derive(Debug)]
pub(crate) struct Command {
    /// Message stream it came on.
    pub stream: u32,
    pub name: String,
    /// Echoed by the answer; 0 wants none.
    pub transaction: f64,
    /// The command object, or `Null`.
    pub object: Value,
    pub args: Vec<Value>,
}

impl Command {
    pub fn parse(raw: &Raw) -> Result<Command, Error> {
        let mut values = amf::decode(amf0(raw));
        let name = values.next().ok_or(Error::Command)??;
        let name = name.as_str().ok_or(Error::Command)?.to_owned();
        // Some clients leave the transaction id of a notification out.
        let transaction = values.next().transpose()?.and_then(|it| it.as_number()).unwrap_or(0.0);
        let object = values.next().transpose()?.unwrap_or(Value::Null);
        let mut args = Vec::new();
        for value in values {
            match value {
                Ok(value) => args.push(value),
                // An AMF3 value after the AMF0 ones: its place in the list is all that can be used.
                Err(Error::AmfType(_)) => args.push(Value::Undefined),
                Err(e) => return Err(e),
            }
        }
        Ok(Command { stream: raw.stream, name, transaction, object, args })
    }

    /// The text of an argument, or nothing.
    pub fn text(&self, arg: usize) -> &str {
        self.args.get(arg).and_then(Value::as_str).unwrap_or_default()
    }

    /// The number of an argument as an id; 0 where it is none.
    pub fn id(&self, arg: usize) -> u32 {
        self.args.get(arg).and_then(Value::as_number).unwrap_or_default() as u32
    }
}

/// Gives `each` the media messages of `raw`: itself, or the parts of an aggregate, unless empty.
pub(crate) fn media(raw: Raw, mut each: impl FnMut(Message)) {
    if raw.body.is_empty() {
        return;
    }
    match raw.kind {
        AUDIO => each(Message { kind: Kind::Audio, timestamp: raw.timestamp, body: raw.body }),
        VIDEO => each(Message { kind: Kind::Video, timestamp: raw.timestamp, body: raw.body }),
        DATA | DATA_AMF3 => {
            let body = raw.body.slice_ref(amf0(&raw));
            let body = match body.strip_prefix(SET_DATA_FRAME) {
                Some(inner) => body.slice_ref(inner),
                None => body,
            };
            each(Message { kind: Kind::Data, timestamp: raw.timestamp, body });
        }
        AGGREGATE => {
            // The times within count from any origin; the first one stands for the message's own
            // (spec 7.1.6). A part that is cut off ends it.
            let mut rest = raw.body;
            let mut origin = None;
            while let Some([kind, a, b, c, t2, t1, t0, t3, _, _, _]) = rest.first_chunk().copied() {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                let time = u32::from_be_bytes([t3, t2, t1, t0]);
                rest.advance(11);
                if rest.len() < length {
                    return;
                }
                let body = rest.split_to(length);
                let offset = time.wrapping_sub(*origin.get_or_insert(time));
                let timestamp = raw.timestamp.wrapping_add(offset);
                if kind != AGGREGATE {
                    media(Raw { kind, stream: raw.stream, timestamp, body }, &mut each as &mut dyn FnMut(_));
                }
                // The back pointer; it may be missing after the last part.
                rest.advance(rest.len().min(4));
            }
        }
        _ => {}
    }
}

/// The wrapper that publishers put around metadata, as an AMF0 string.
const SET_DATA_FRAME: &[u8] = b"\x02\0\x0d@setDataFrame";

/// The AMF0 values of a data or command message. The AMF3 types begin with one zero byte, which
/// no AMF0 name does, and some clients forget it.
fn amf0(raw: &Raw) -> &[u8] {
    match (raw.kind, &raw.body[..]) {
        (DATA_AMF3 | COMMAND_AMF3, [0, rest @ ..]) => rest,
        (_, body) => body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The media messages of a raw one, as `kind@timestamp:body`.
    fn check(kind: u8, timestamp: u32, body: &'static [u8], want: &str) {
        let mut got = Vec::new();
        media(Raw { kind, stream: 1, timestamp, body: Bytes::from_static(body) }, |it| {
            got.push(format!("{:?}@{}:{}", it.kind, it.timestamp, it.body.escape_ascii()));
        });
        assert_eq!(got.join(" "), want);
    }

    #[test]
    fn the_metadata_wrapper_is_stripped() {
        check(DATA, 5, b"\x02\0\x0d@setDataFrame\x02\0\x02hi", r"Data@5:\x02\x00\x02hi");
        check(DATA, 5, b"\x02\0\x02hi", r"Data@5:\x02\x00\x02hi");
        check(DATA_AMF3, 5, b"\0\x02\0\x0d@setDataFrame\x02\0\x02hi", r"Data@5:\x02\x00\x02hi");
        check(DATA_AMF3, 5, b"\x02\0\x02hi", r"Data@5:\x02\x00\x02hi");
        check(DATA, 5, b"", "");
    }

    #[test]
    fn an_aggregate_is_split_and_its_times_rebased() {
        check(
            AGGREGATE,
            1000,
            b"\x08\0\0\x01\0\0\x64\0\0\0\0a\0\0\0\x0c\x09\0\0\x02\0\0\x6e\0\0\0\0bc\0\0\0\x0d",
            "Audio@1000:a Video@1010:bc",
        );
    }

    #[test]
    fn a_damaged_aggregate_ends_at_the_damage() {
        check(AGGREGATE, 0, b"\x08\0\0\x01\0\0\0\0\0\0\0a", "Audio@0:a");
        check(AGGREGATE, 0, b"\x08\0\0\x01\0\0\0\0\0\0\0a\0\0\0\0\x09\xff\xff\xff\0\0\0\0\0\0\0b", "Audio@0:a");
        check(AGGREGATE, 0, b"\x16\0\0\x01\0\0\0\0\0\0\0a\0\0\0\0", "");
        check(AGGREGATE, 0, b"\x08\0", "");
    }

    #[test]
    fn a_command_needs_a_name_and_bears_the_rest_missing() {
        let parse = |kind, body: &'static [u8]| {
            let got = Command::parse(&Raw { kind, stream: 0, timestamp: 0, body: Bytes::from_static(body) });
            got.map_or_else(|e| e.to_string(), |it| format!("{} {} {:?}", it.name, it.transaction, it.args))
        };
        assert_eq!(parse(COMMAND, b"\x02\0\x01x"), "x 0 []");
        assert_eq!(parse(COMMAND_AMF3, b"\0\x02\0\x01x\0\x40\x08\0\0\0\0\0\0\x05\x11\x0a"), "x 3 [Undefined]");
        assert_eq!(parse(COMMAND, b""), "malformed command");
        assert_eq!(parse(COMMAND, b"\x05"), "malformed command");
        assert_eq!(parse(COMMAND, b"\x02\0\x09x"), "truncated amf value");
    }
}
