//! AMF0, the values that RTMP commands and metadata are made of (Adobe AMF0 specification, 2007).
//!
//! Invariant: decoding costs at most the length of its input, [`MAX_DEPTH`] stack frames and
//! [`MAX_VALUES`] values, whatever the input claims.

use bytes::Bytes;

use crate::Error;

/// Objects and arrays within each other; real commands use two levels.
pub const MAX_DEPTH: usize = 16;

/// Values in one message, all levels together; the longest real `connect` has about forty.
pub const MAX_VALUES: usize = 512;

/// One AMF0 value. Text that is not UTF-8 is decoded with replacement characters.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Every number of AMF0 is a double.
    Number(f64),
    /// A truth value.
    Bool(bool),
    /// Text of at most 65535 bytes; longer text is encoded as a long string.
    String(String),
    /// An anonymous object, in order. A typed object is read as one, without its class name.
    Object(Vec<(String, Value)>),
    /// Nothing.
    Null,
    /// Nothing, said differently.
    Undefined,
    /// An object that some encoders send for metadata; its announced count is ignored.
    EcmaArray(Vec<(String, Value)>),
    /// A plain array.
    StrictArray(Vec<Value>),
    /// Milliseconds since 1970 in UTC; the reserved time zone is ignored.
    Date(f64),
    /// Text with a 32-bit length. An XML document is read as one.
    LongString(String),
}

impl Value {
    /// The number, if it is one.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Value::Number(n) => Some(*n),
            _ => None,
        }
    }

    /// The text, short or long, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) | Value::LongString(s) => Some(s),
            _ => None,
        }
    }

    /// The properties of an object or an ECMA array; empty for anything else.
    pub fn properties(&self) -> &[(String, Value)] {
        match self {
            Value::Object(list) | Value::EcmaArray(list) => list,
            _ => &[],
        }
    }

    /// The items of a strict array; empty for anything else.
    pub fn items(&self) -> &[Value] {
        match self {
            Value::StrictArray(list) => list,
            _ => &[],
        }
    }

    /// The first property of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.properties().iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Appends the AMF0 form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Number(n) => {
                out.push(NUMBER);
                out.extend_from_slice(&n.to_be_bytes());
            }
            Value::Bool(b) => out.extend_from_slice(&[BOOL, *b as u8]),
            Value::String(s) if s.len() <= u16::MAX as usize => {
                out.push(STRING);
                encode_key(s, out);
            }
            Value::String(s) | Value::LongString(s) => {
                out.push(LONG_STRING);
                out.extend_from_slice(&(s.len() as u32).to_be_bytes());
                out.extend_from_slice(s.as_bytes());
            }
            Value::Object(list) => {
                out.push(OBJECT);
                encode_properties(list, out);
            }
            Value::EcmaArray(list) => {
                out.push(ECMA_ARRAY);
                out.extend_from_slice(&(list.len() as u32).to_be_bytes());
                encode_properties(list, out);
            }
            Value::StrictArray(list) => {
                out.push(STRICT_ARRAY);
                out.extend_from_slice(&(list.len() as u32).to_be_bytes());
                list.iter().for_each(|it| it.encode(out));
            }
            Value::Null => out.push(NULL),
            Value::Undefined => out.push(UNDEFINED),
            Value::Date(ms) => {
                out.push(DATE);
                out.extend_from_slice(&ms.to_be_bytes());
                out.extend_from_slice(&[0, 0]);
            }
        }
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Value {
        Value::String(s.to_owned())
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Value {
        Value::Number(n)
    }
}

/// An object from names and values.
pub fn object<const N: usize>(list: [(&str, Value); N]) -> Value {
    Value::Object(list.map(|(key, value)| (key.to_owned(), value)).into())
}

/// The values one after the other, as the body of a command or data message.
pub fn encode(values: &[Value]) -> Bytes {
    let mut out = Vec::new();
    values.iter().for_each(|it| it.encode(&mut out));
    out.into()
}

/// The values of a message body, one by one. Ends after the first error.
pub fn decode(body: &[u8]) -> Decoder<'_> {
    Decoder { rest: body, values: 0 }
}

/// The iterator of [`decode`].
pub struct Decoder<'a> {
    rest: &'a [u8],
    values: usize,
}

impl Iterator for Decoder<'_> {
    type Item = Result<Value, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let value = self.value(0);
        if value.is_err() {
            self.rest = &[];
        }
        Some(value)
    }
}

impl<'a> Decoder<'a> {
    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(Error::AmfValues);
        }
        if depth > MAX_DEPTH {
            return Err(Error::AmfDepth);
        }
        let [kind] = self.array()?;
        Ok(match kind {
            NUMBER => Value::Number(f64::from_be_bytes(self.array()?)),
            BOOL => Value::Bool(self.array::<1>()? != [0]),
            STRING => Value::String(self.key()?),
            OBJECT => Value::Object(self.properties(depth)?),
            NULL => Value::Null,
            UNDEFINED | UNSUPPORTED => Value::Undefined,
            ECMA_ARRAY => {
                let _count: [u8; 4] = self.array()?;
                Value::EcmaArray(self.properties(depth)?)
            }
            STRICT_ARRAY => {
                // The count is the peer's claim: nothing is allocated for it, and each item counts
                // against the limit of values.
                let count = u32::from_be_bytes(self.array()?);
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.value(depth + 1)?);
                }
                Value::StrictArray(list)
            }
            DATE => {
                let ms = f64::from_be_bytes(self.array()?);
                let _zone: [u8; 2] = self.array()?;
                Value::Date(ms)
            }
            LONG_STRING | XML => {
                let len = u32::from_be_bytes(self.array()?) as usize;
                Value::LongString(text(self.take(len)?))
            }
            TYPED_OBJECT => {
                let _class = self.key()?;
                Value::Object(self.properties(depth)?)
            }
            _ => return Err(Error::AmfType(kind)),
        })
    }

    /// Properties up to the end marker. An array that is simply cut off at the end of the body, as
    /// some encoders write their metadata, is taken as complete.
    fn properties(&mut self, depth: usize) -> Result<Vec<(String, Value)>, Error> {
        let mut list = Vec::new();
        while !self.rest.is_empty() {
            let key = self.key()?;
            if key.is_empty() && self.rest.first() == Some(&OBJECT_END) {
                self.rest = &self.rest[1..];
                break;
            }
            list.push((key, self.value(depth + 1)?));
        }
        Ok(list)
    }

    fn key(&mut self) -> Result<String, Error> {
        let len = u16::from_be_bytes(self.array()?) as usize;
        Ok(text(self.take(len)?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Error::AmfTruncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Error::AmfTruncated)?;
        self.rest = rest;
        Ok(head)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn encode_properties(list: &[(String, Value)], out: &mut Vec<u8>) {
    for (key, value) in list {
        encode_key(key, out);
        value.encode(out);
    }
    out.extend_from_slice(&[0, 0, OBJECT_END]);
}

/// A name with its 16-bit length; a longer one, which nobody has, is cut.
fn encode_key(key: &str, out: &mut Vec<u8>) {
    let key = &key[..key.floor_char_boundary(u16::MAX as usize)];
    out.extend_from_slice(&(key.len() as u16).to_be_bytes());
    out.extend_from_slice(key.as_bytes());
}

const NUMBER: u8 = 0x00;
const BOOL: u8 = 0x01;
const STRING: u8 = 0x02;
const OBJECT: u8 = 0x03;
const NULL: u8 = 0x05;
const UNDEFINED: u8 = 0x06;
const ECMA_ARRAY: u8 = 0x08;
const OBJECT_END: u8 = 0x09;
const STRICT_ARRAY: u8 = 0x0a;
const DATE: u8 = 0x0b;
const LONG_STRING: u8 = 0x0c;
const UNSUPPORTED: u8 = 0x0d;
const XML: u8 = 0x0f;
const TYPED_OBJECT: u8 = 0x10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes all of `body`; the values as debug text, or the error's text.
    fn check(body: &[u8], want: &str) {
        let got = decode(body).collect::<Result<Vec<_>, _>>();
        let got = got.map_or_else(|e| e.to_string(), |it| format!("{it:?}"));
        assert_eq!(got, want, "{body:02x?}");
    }

    #[test]
    fn every_type_is_read() {
        check(b"", "[]");
        check(b"\x00\x40\x08\0\0\0\0\0\0\x01\x07\x05\x06", "[Number(3.0), Bool(true), Null, Undefined]");
        check(b"\x02\0\x02hi\x0c\0\0\0\x02ho", r#"[String("hi"), LongString("ho")]"#);
        check(b"\x03\0\x01a\x05\0\0\x09", r#"[Object([("a", Null)])]"#);
        check(b"\x10\0\x01C\0\x01a\x05\0\0\x09", r#"[Object([("a", Null)])]"#);
        check(b"\x08\0\0\0\x63\0\x01a\x01\0\0\0\x09", r#"[EcmaArray([("a", Bool(false))])]"#);
        check(b"\x0a\0\0\0\x02\x05\x06", "[StrictArray([Null, Undefined])]");
        check(b"\x0b\0\0\0\0\0\0\0\0\0\0", "[Date(0.0)]");
        check(b"\x02\0\x01\xff", r#"[String("�")]"#);
    }

    #[test]
    fn an_array_cut_at_the_end_of_the_body_is_complete() {
        check(b"\x08\0\0\0\x01\0\x01a\x05", r#"[EcmaArray([("a", Null)])]"#);
    }

    #[test]
    fn hostile_input_is_an_error_and_costs_little() {
        check(b"\x00\x40", "truncated amf value");
        check(b"\x02\xff\xffx", "truncated amf value");
        check(b"\x0c\xff\xff\xff\xffx", "truncated amf value");
        check(b"\x11\x0a", "unsupported amf type 0x11");
        check(b"\x07\0\0", "unsupported amf type 0x07");
        check(&b"\x0a\0\0\0\x01".repeat(10_000), "amf nested deeper than 16 levels");
        check(&b"\x03\0\x01a".repeat(10_000), "amf nested deeper than 16 levels");
        check(&[5; 10_000], "more than 512 amf values");
        check(&[&b"\x0a\xff\xff\xff\xff"[..], &[5; 10_000]].concat(), "more than 512 amf values");
    }

    #[test]
    fn what_is_encoded_reads_back_the_same() {
        let long = "x".repeat(70_000);
        let values = [
            Value::Number(-1.5),
            Value::Bool(true),
            Value::from("text"),
            object([("a", Value::Null), ("b", Value::StrictArray(vec![Value::Undefined, Value::Date(1e12)]))]),
            Value::EcmaArray(vec![("k".into(), Value::from(2.0))]),
            Value::LongString(long.clone()),
        ];
        let back: Vec<Value> = decode(&encode(&values)).collect::<Result<_, _>>().unwrap();
        assert_eq!(back, values);
        let back: Vec<Value> = decode(&encode(&[Value::String(long.clone())])).collect::<Result<_, _>>().unwrap();
        assert_eq!(back, [Value::LongString(long)]);
    }
}
