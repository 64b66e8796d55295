//! What both ends of a connection have in common once the handshake is over: chunks both ways,
//! acknowledgements, pings.
//!
//! Invariant: what a peer makes us send is at most a small multiple of what it sent, and one answer of each sort for each read.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::Error;
use crate::amf::{self, Value};
use crate::chunk::{self, Raw};
use crate::message::*;

pub(crate) struct Link {
    reader: chunk::Reader,
    writer: chunk::Writer,
    pub output: VecDeque<Bytes>,
    /// Bytes received and the count last acknowledged. Both wrap at 4 GiB, as the field does.
    received: u32,
    acknowledged: u32,
    /// The peer wants an acknowledgement after this many bytes.
    window: u32,
    /// The window that we announced last.
    announced: u32,
    /// What the newest ping and the newest wish for a window are to be answered with.
    pong: Option<Vec<u8>>,
    wished: Option<u32>,
}

impl Link {
    /// `window` is what we acknowledge by until the peer says its own.
    pub fn new(limits: chunk::Limits, window: u32) -> Link {
        Link {
            reader: chunk::Reader::new(limits),
            writer: chunk::Writer::new(),
            output: VecDeque::new(),
            received: 0,
            acknowledged: 0,
            window,
            announced: 0,
            pong: None,
            wished: None,
        }
    }

    pub fn set_limits(&mut self, limits: chunk::Limits) {
        self.reader.set_limits(limits);
    }

    /// The next message that is not this layer's own business.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Raw>, Error> {
        while let Some(raw) = self.reader.read(input)? {
            match raw.kind {
                ACKNOWLEDGEMENT => {}
                WINDOW => self.window = chunk::number(&raw)?,
                PEER_BANDWIDTH => {
                    // The limit type says how to combine it with the present one; what the peer
                    // wants to hear in any case is a window of that size (spec 5.4.5).
                    self.wished = Some(chunk::number(&raw)?);
                }
                USER_CONTROL => {
                    if let Some((&event, data)) = raw.body.split_first_chunk()
                        && u16::from_be_bytes(event) == PING_REQUEST
                    {
                        self.pong = Some(data[..data.len().min(4)].to_vec());
                    }
                }
                _ => return Ok(Some(raw)),
            }
        }
        Ok(None)
    }

    /// Counts `len` bytes of input that were read, answers what was asked in them, and acknowledges twice a window: a peer that
    /// stops at a full window never gets there.
    pub fn count(&mut self, len: usize) {
        if let Some(data) = self.pong.take() {
            self.user_control(PING_RESPONSE, &data);
        }
        if let Some(window) = self.wished.take().filter(|wished| *wished != self.announced) {
            self.announce(window);
        }
        self.received = self.received.wrapping_add(len as u32);
        let due = (self.window / 2).max(MIN_WINDOW);
        if self.received.wrapping_sub(self.acknowledged) >= due {
            self.acknowledged = self.received;
            self.control(ACKNOWLEDGEMENT, &self.received.to_be_bytes());
        }
    }

    pub fn announce(&mut self, window: u32) {
        self.announced = window;
        self.control(WINDOW, &window.to_be_bytes());
    }

    pub fn set_chunk_size(&mut self, size: u32) {
        self.writer.set_chunk_size(size, &mut self.output);
    }

    pub fn control(&mut self, kind: u8, body: &[u8]) {
        self.writer.write(2, kind, 0, 0, body, &Bytes::new(), &mut self.output);
    }

    pub fn user_control(&mut self, event: u16, data: &[u8]) {
        self.control(USER_CONTROL, &[&event.to_be_bytes(), data].concat());
    }

    /// A command on message stream `stream`.
    pub fn command(&mut self, stream: u32, name: &str, transaction: f64, values: &[Value]) {
        let mut body = Vec::new();
        Value::from(name).encode(&mut body);
        Value::from(transaction).encode(&mut body);
        values.iter().for_each(|it| it.encode(&mut body));
        self.writer.write(3, COMMAND, stream, 0, &body, &Bytes::new(), &mut self.output);
    }

    /// A data message on message stream `stream`.
    pub fn data(&mut self, stream: u32, values: &[Value]) {
        let body = amf::encode(values);
        self.writer.write(5, DATA, stream, 0, &[], &body, &mut self.output);
    }

    /// `onStatus`, which tells the state of a message stream (spec 7.2.2).
    pub fn status(&mut self, stream: u32, level: &str, code: &str, description: &str) {
        let info = [("level", level), ("code", code), ("description", description)];
        let info = amf::object(info.map(|(key, value)| (key, value.into())));
        self.command(stream, "onStatus", 0.0, &[Value::Null, info]);
    }

    pub fn media(
        &mut self,
        stream: u32,
        kind: Kind,
        timestamp: u32,
        head: &[u8],
        payload: &Bytes,
        out: &mut VecDeque<Bytes>,
    ) {
        let (kind, id) = kind.ids();
        self.writer.write(id, kind, stream, timestamp, head, payload, out);
    }

    /// Any message at all.
    #[cfg(test)]
    pub fn raw(&mut self, id: u8, kind: u8, stream: u32, timestamp: u32, body: &Bytes) {
        self.writer.write(id, kind, stream, timestamp, &[], body, &mut self.output);
    }

    /// Sets the counters as they are after that many bytes.
    #[cfg(test)]
    pub fn set_received(&mut self, bytes: u32) {
        self.received = bytes;
        self.acknowledged = bytes;
    }
}

/// A peer that asks for an acknowledgement after each byte does not get it.
const MIN_WINDOW: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: chunk::Limits = chunk::Limits { message: 1000, unfinished: 1000, streams: 4 };

    /// Feeds `input` as one message of type `kind` on chunk stream 2; what we answer, as
    /// `type:body` in hex.
    fn check(kind: u8, body: &[u8], want: &str) {
        let mut link = Link::new(LIMITS, 100_000);
        let input = [&[2, 0, 0, 0, 0, 0, body.len() as u8, kind, 0, 0, 0, 0], body].concat();
        let got = match link.read(&mut &input[..]) {
            Ok(None) => {
                link.count(0);
                answers(&mut link)
            }
            other => format!("{other:?}"),
        };
        assert_eq!(got, want);
    }

    fn answers(link: &mut Link) -> String {
        let bytes: Vec<u8> = link.output.drain(..).flatten().collect();
        let (mut input, mut got) = (&bytes[..], Vec::new());
        let mut reader = chunk::Reader::new(LIMITS);
        while let Some(raw) = reader.read(&mut input).unwrap() {
            let hex: String = raw.body.iter().map(|b| format!("{b:02x}")).collect();
            got.push(format!("{}:{hex}", raw.kind));
        }
        got.join(" ")
    }

    #[test]
    fn pings_and_windows_are_answered_and_the_rest_is_ignored() {
        check(USER_CONTROL, b"\0\x06\x01\x02\x03\x04", "4:000701020304");
        check(USER_CONTROL, b"\0\x07\x01\x02\x03\x04", "");
        check(USER_CONTROL, b"\0", "");
        check(ACKNOWLEDGEMENT, b"\xff\xff\xff\xff", "");
        check(PEER_BANDWIDTH, b"\0\0\x10\0\x02", "5:00001000");
        check(PEER_BANDWIDTH, b"\0\0\0\0\x02", "");
        check(WINDOW, b"\0", "Err(Control(5))");
    }

    #[test]
    fn a_flood_of_pings_gets_one_answer_for_each_read() {
        let mut link = Link::new(LIMITS, 100_000);
        let ping = |n| [2, 0, 0, 0, 0, 0, 6, USER_CONTROL, 0, 0, 0, 0, 0, 6, 0, 0, 0, n];
        let flood: Vec<u8> = (0..100).flat_map(ping).collect();
        assert!(matches!(link.read(&mut &flood[..]), Ok(None)));
        link.count(0);
        assert_eq!(answers(&mut link), "4:000700000063");
    }

    #[test]
    fn acknowledgements_go_on_across_the_wrap_of_the_counter() {
        let mut link = Link::new(LIMITS, 100_000);
        link.set_received(u32::MAX - 59_999);
        link.count(49_999);
        assert_eq!(answers(&mut link), "");
        link.count(1);
        assert_eq!(answers(&mut link), "3:ffffd8f0");
        link.count(50_000);
        assert_eq!(answers(&mut link), "3:00009c40");
        link.count(49_999);
        assert_eq!(answers(&mut link), "");
    }

    #[test]
    fn a_tiny_window_does_not_make_a_flood() {
        let mut link = Link::new(LIMITS, 1);
        (0..4095).for_each(|_| link.count(1));
        assert_eq!(answers(&mut link), "");
        link.count(1);
        assert_eq!(answers(&mut link), "3:00001000");
    }
}
