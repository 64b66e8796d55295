//! What a value of the configuration may look like: one type for each kind of text, with its name in the manual.
//!
//! Invariant: no error quotes a secret, nor an address whose query may hold one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use toml::de::DeValue;

use super::{Bucket, CallbackFormat, Driver, Environment, Format, IceServer, MediaUrl, PublishAuth, Vendor};
use crate::secret::Secret;
use crate::vendor::Target;

/// A kind of value: how it is read from text, and shown again.
pub trait Kind: 'static {
    /// What the configuration holds.
    type T: Clone + PartialEq + Send + Sync + 'static;
    /// How TOML writes it.
    const FORM: Form = Form::Quoted;

    /// What the manual and the errors call it.
    fn name() -> String;

    /// Reads `text`; the error says what is wrong.
    fn parse(text: &str) -> Result<Self::T, String>;

    /// The value as TOML; `None` for one that is absent or secret.
    fn show(value: &Self::T) -> Option<String>;

    /// Reads a TOML value.
    fn read(value: &DeValue<'_>) -> Result<Self::T, String> {
        match (value, Self::FORM) {
            (DeValue::String(text), Form::Quoted | Form::Either) => Self::parse(text),
            (DeValue::Boolean(it), Form::Bare) => Self::parse(if *it { "true" } else { "false" }),
            (DeValue::Integer(it), Form::Bare | Form::Either) => match u64::from_str_radix(it.as_str(), it.radix()) {
                Ok(number) => Self::parse(&number.to_string()),
                Err(_) => Err(format!("expected {}", Self::name())),
            },
            (other, form) => {
                let quotes = if form == Form::Quoted { " in quotes" } else { "" };
                Err(format!("expected {}{quotes}, found a TOML {}", Self::name(), other.type_str()))
            }
        }
    }
}

/// Whether TOML writes a value in quotes.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    Quoted,
    Bare,
    Either,
}

/// `true` or `false`.
pub struct Switch;

impl Kind for Switch {
    type T = bool;
    const FORM: Form = Form::Bare;

    fn name() -> String {
        "true or false".into()
    }

    fn parse(text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| unfit::<Self>(text))
    }

    fn show(value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

/// A count.
pub struct Count;

impl Kind for Count {
    type T = usize;
    const FORM: Form = Form::Bare;

    fn name() -> String {
        "a whole number".into()
    }

    fn parse(text: &str) -> Result<usize, String> {
        text.parse().map_err(|_| unfit::<Self>(text))
    }

    fn show(value: &usize) -> Option<String> {
        Some(value.to_string())
    }
}

/// An app's id.
pub struct AppId;

impl Kind for AppId {
    type T = u32;
    const FORM: Form = Form::Bare;

    fn name() -> String {
        "a number from 1 to 4294967295".into()
    }

    fn parse(text: &str) -> Result<u32, String> {
        text.parse().ok().filter(|&id| id != 0).ok_or_else(|| unfit::<Self>(text))
    }

    fn show(_: &u32) -> Option<String> {
        None
    }
}

/// A stretch of time, to the millisecond.
pub struct Span;

impl Kind for Span {
    type T = Duration;

    fn name() -> String {
        "a duration such as \"500ms\", \"90s\", \"1h30m\" or \"30d\"".into()
    }

    fn parse(text: &str) -> Result<Duration, String> {
        units(text, &SPANS).map(Duration::from_millis).ok_or_else(|| unfit::<Self>(text))
    }

    fn show(value: &Duration) -> Option<String> {
        let ms = value.as_millis() as u64;
        // One day reads better as 24h.
        let fits = |it: &(&str, u64)| ms.is_multiple_of(it.1) && ms >= it.1 && (it.0 != "d" || ms > it.1);
        let (unit, scale) = SPANS.into_iter().find(fits).unwrap_or(("s", 1000));
        Some(format!("\"{}{unit}\"", ms / scale))
    }
}

const SPANS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A number of bytes.
pub struct Size;

impl Kind for Size {
    type T = usize;
    const FORM: Form = Form::Either;

    fn name() -> String {
        "a size such as \"512KiB\" or \"64MiB\"".into()
    }

    fn parse(text: &str) -> Result<usize, String> {
        let bytes = text.parse().ok().or_else(|| units(text, &SIZES));
        bytes.and_then(|it| usize::try_from(it).ok()).ok_or_else(|| unfit::<Self>(text))
    }

    fn show(value: &usize) -> Option<String> {
        let bytes = *value as u64;
        let fits = |it: &(&str, u64)| it.0.contains('i') && bytes >= it.1 && bytes.is_multiple_of(it.1);
        Some(match SIZES.into_iter().find(fits) {
            Some((unit, scale)) => format!("\"{}{unit}\"", bytes / scale),
            None => bytes.to_string(),
        })
    }
}

const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// Bits a second.
pub struct BitRate;

impl Kind for BitRate {
    type T = u32;
    const FORM: Form = Form::Either;

    fn name() -> String {
        "a bit rate such as \"128k\"".into()
    }

    fn parse(text: &str) -> Result<u32, String> {
        let bits = match text.strip_suffix('k') {
            Some(thousands) => thousands.parse::<u32>().ok().and_then(|it| it.checked_mul(1000)),
            None => text.parse().ok(),
        };
        bits.ok_or_else(|| unfit::<Self>(text))
    }

    fn show(value: &u32) -> Option<String> {
        Some(match value % 1000 {
            0 => format!("\"{}k\"", value / 1000),
            _ => value.to_string(),
        })
    }
}

/// The sum of `text`'s parts, each digits and one of `table`'s units.
fn units(text: &str, table: &[(&str, u64)]) -> Option<u64> {
    let mut rest = text.trim();
    let mut total = None;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (_, scale) = table.iter().find(|(unit, _)| *unit == &rest[..letters])?;
        rest = &rest[letters..];
        total = Some(number.checked_mul(*scale)?.checked_add(total.unwrap_or(0))?);
    }
    total
}

/// Where a listener binds.
pub struct Listen;

impl Kind for Listen {
    type T = SocketAddr;

    fn name() -> String {
        "an IP address and a port such as \"127.0.0.1:8080\" or \"[::]:8080\"".into()
    }

    fn parse(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| unfit::<Self>(text))
    }

    fn show(value: &SocketAddr) -> Option<String> {
        Some(format!("\"{value}\""))
    }
}

/// An IP address.
pub struct Ip;

impl Kind for Ip {
    type T = IpAddr;

    fn name() -> String {
        "an IP address".into()
    }

    fn parse(text: &str) -> Result<IpAddr, String> {
        text.parse().map_err(|_| unfit::<Self>(text))
    }

    fn show(value: &IpAddr) -> Option<String> {
        Some(format!("\"{value}\""))
    }
}

/// A STUN or TURN server, with user and password where it asks for them.
pub struct Ice;

impl Kind for Ice {
    type T = IceServer;

    fn name() -> String {
        "a server such as \"stun:stun.example.com:3478\" or \"turn:USER:PASSWORD@turn.example.com:3478?transport=udp\""
            .into()
    }

    fn parse(text: &str) -> Result<IceServer, String> {
        let unfit = || format!("expected {}", Self::name());
        let (scheme, rest) = text.split_once(':').ok_or_else(unfit)?;
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user.split_once(':').ok_or_else(unfit)?), host),
            None => (None, rest),
        };
        let host_fits = !host.is_empty() && host.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._:[]?=".contains(&c));
        let user_fits = match scheme {
            "stun" | "stuns" => user.is_none(),
            "turn" | "turns" => {
                user.is_some_and(|(name, _)| name.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'"' | b'\\')))
            }
            _ => false,
        };
        let password_fits =
            user.is_none_or(|(_, it)| it.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'"' | b'\\')));
        if !host_fits || !user_fits || !password_fits {
            return Err(unfit());
        }
        let user = user.map(|(name, password)| (name.to_owned(), Secret::new(password)));
        Ok(IceServer { uri: format!("{scheme}:{host}"), user })
    }

    fn show(value: &IceServer) -> Option<String> {
        Some(format!("\"{}\"", value.uri))
    }
}

/// A file or folder; relative ones begin at the working directory.
pub struct File;

impl Kind for File {
    type T = PathBuf;

    fn name() -> String {
        "a path".into()
    }

    fn parse(text: &str) -> Result<PathBuf, String> {
        match text {
            "" => Err("the path is empty".into()),
            _ => Ok(text.into()),
        }
    }

    fn show(value: &PathBuf) -> Option<String> {
        (!value.as_os_str().is_empty()).then(|| format!("{:?}", value.display().to_string()))
    }
}

/// An `http` or `https` address, kept without a slash at its end.
pub struct Web;

impl Kind for Web {
    type T = String;

    fn name() -> String {
        "an http:// or https:// address".into()
    }

    fn parse(text: &str) -> Result<String, String> {
        let url = url::Url::parse(text).map_err(|why| format!("expected {}: {why}", Self::name()))?;
        match url.scheme() {
            "http" | "https" => Ok(text.trim_end_matches('/').into()),
            _ => Err(format!("expected {}", Self::name())),
        }
    }

    fn show(value: &String) -> Option<String> {
        Some(format!("{value:?}"))
    }
}

/// A push target that still lacks its stream.
pub struct Access;

impl Kind for Access {
    type T = String;

    fn name() -> String {
        "an rtmp:// or rtmps:// address without stream such as \"rtmp://push.example.com/live\"".into()
    }

    fn parse(text: &str) -> Result<String, String> {
        let text = text.trim_end_matches('/');
        if text.contains('?') {
            return Err(format!("expected {}, and no query", Self::name()));
        }
        Target::parse(&format!("{text}/stream")).map_err(|why| format!("expected {}: {why}", Self::name()))?;
        Ok(text.into())
    }

    fn show(value: &String) -> Option<String> {
        Some(format!("{value:?}"))
    }
}

/// The host of a push target, or a domain after `*.`.
pub struct Host;

impl Kind for Host {
    type T = String;

    fn name() -> String {
        "a host such as \"push.example.com\" or \"*.example.com\"".into()
    }

    fn parse(text: &str) -> Result<String, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let label =
            |it: &str| !it.is_empty() && it.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'));
        match name.split('.').all(label) || name.parse::<IpAddr>().is_ok() {
            true => Ok(text.to_ascii_lowercase()),
            false => Err(unfit::<Self>(text)),
        }
    }

    fn show(value: &String) -> Option<String> {
        (!value.is_empty()).then(|| format!("{value:?}"))
    }
}

/// Where rows are kept.
pub struct Rows;

impl Kind for Rows {
    type T = String;

    fn name() -> String {
        "\"sqlite\"".into()
    }

    fn parse(text: &str) -> Result<String, String> {
        match text {
            "sqlite" => Ok(text.into()),
            _ if text.starts_with("postgres") => Err("PostgreSQL is not in this version: use \"sqlite\"".into()),
            _ => Err(format!("expected {}", Self::name())),
        }
    }

    fn show(value: &String) -> Option<String> {
        Some(format!("{value:?}"))
    }
}

/// Where media files are kept.
pub struct Objects;

impl Kind for Objects {
    type T = MediaUrl;

    fn name() -> String {
        "\"file\" or \"s3://bucket/prefix?endpoint=https://…&region=…\"".into()
    }

    fn parse(text: &str) -> Result<MediaUrl, String> {
        if text == "file" {
            return Ok(MediaUrl::File);
        }
        bucket(text).map(MediaUrl::S3).ok_or_else(|| format!("expected {}", Self::name()))
    }

    fn show(value: &MediaUrl) -> Option<String> {
        let MediaUrl::S3(bucket) = value else { return Some("\"file\"".into()) };
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(endpoint) = &bucket.endpoint {
            query.append_pair("endpoint", endpoint);
        }
        query.append_pair("region", &bucket.region);
        let prefix = utf8_percent_encode(&bucket.prefix, &PREFIX);
        Some(format!("\"s3://{}/{prefix}?{}\"", bucket.name, query.finish()))
    }
}

/// What a prefix cannot have in an address as it is.
const PREFIX: AsciiSet = CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'?').add(b'\\');

fn bucket(text: &str) -> Option<Bucket> {
    let url = url::Url::parse(text).ok()?;
    let bare = url.username().is_empty() && url.password().is_none() && url.port().is_none();
    if url.scheme() != "s3" || !bare || url.fragment().is_some() {
        return None;
    }
    let prefix = percent_decode_str(url.path()).decode_utf8().ok()?.trim_matches('/').to_owned();
    if prefix.split('/').any(|it| matches!(it, "." | "..") || it.contains(|c: char| c.is_control())) {
        return None;
    }
    let name = url.host_str().filter(|it| !it.is_empty())?.to_owned();
    let mut bucket = Bucket { name, prefix, endpoint: None, region: "us-east-1".into() };
    for (key, value) in url.query_pairs() {
        match &*key {
            "endpoint" => {
                Web::parse(&value).ok()?;
                bucket.endpoint = Some(value.trim_end_matches('/').into());
            }
            "region" if !value.is_empty() => bucket.region = value.into(),
            _ => return None,
        }
    }
    Some(bucket)
}

/// A key or other secret.
pub struct Hidden;

impl Kind for Hidden {
    type T = Secret;

    fn name() -> String {
        "a secret".into()
    }

    fn parse(text: &str) -> Result<Secret, String> {
        match text {
            "" => Err("the secret is empty".into()),
            _ => Ok(Secret::new(text)),
        }
    }

    fn show(_: &Secret) -> Option<String> {
        None
    }
}

/// ZEGO's ServerSecret.
pub struct ServerSecret;

impl Kind for ServerSecret {
    type T = Secret;

    fn name() -> String {
        "a secret of 32 characters".into()
    }

    fn parse(text: &str) -> Result<Secret, String> {
        match text.chars().count() {
            32 => Ok(Secret::new(text)),
            n => Err(format!("expected {}, found {n}", Self::name())),
        }
    }

    fn show(_: &Secret) -> Option<String> {
        None
    }
}

/// A value that need not be there.
pub struct Maybe<K>(K);

impl<K: Kind> Kind for Maybe<K> {
    type T = Option<K::T>;
    const FORM: Form = K::FORM;

    fn name() -> String {
        K::name()
    }

    fn parse(text: &str) -> Result<Self::T, String> {
        K::parse(text).map(Some)
    }

    fn show(value: &Self::T) -> Option<String> {
        value.as_ref().and_then(K::show)
    }
}

/// A list of different values; in the environment and in flags with commas between them.
pub struct List<K>(K);

impl<K: Kind> Kind for List<K> {
    type T = Vec<K::T>;

    fn name() -> String {
        format!("a list, each {}", K::name())
    }

    fn parse(text: &str) -> Result<Self::T, String> {
        distinct(text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(K::parse))
    }

    fn show(value: &Self::T) -> Option<String> {
        let parts: Vec<_> = value.iter().filter_map(K::show).collect();
        (!parts.is_empty()).then(|| format!("[{}]", parts.join(", ")))
    }

    fn read(value: &DeValue<'_>) -> Result<Self::T, String> {
        match value {
            DeValue::Array(parts) => distinct(parts.iter().map(|it| K::read(it.get_ref()))),
            other => Err(format!("expected {} in brackets, found a TOML {}", Self::name(), other.type_str())),
        }
    }
}

fn distinct<T: PartialEq>(parts: impl Iterator<Item = Result<T, String>>) -> Result<Vec<T>, String> {
    let mut all = Vec::new();
    for part in parts {
        let part = part?;
        if all.contains(&part) {
            return Err("the list names a value twice".into());
        }
        all.push(part);
    }
    Ok(all)
}

/// The enums whose variants are words.
macro_rules! choice {
    ($type:ty: $($word:literal => $variant:ident),+) => {
        impl Kind for $type {
            type T = $type;

            fn name() -> String {
                [$(concat!("\"", $word, "\"")),+].join(" or ")
            }

            fn parse(text: &str) -> Result<$type, String> {
                match text {
                    $($word => Ok(<$type>::$variant),)+
                    _ => Err(format!("expected {}; did you mean {:?}?", <$type as Kind>::name(), nearest(text, [$($word),+]))),
                }
            }

            fn show(value: &$type) -> Option<String> {
                Some(match value { $(<$type>::$variant => concat!("\"", $word, "\"").into()),+ })
            }
        }
    };
}

choice!(Environment: "production" => Production, "test" => Test, "both" => Both);
choice!(PublishAuth: "none" => None, "token" => Token);
choice!(CallbackFormat: "json" => Json, "form" => Form);
choice!(Vendor: "Tencent" => Tencent, "Ws" => Ws, "Huawei" => Huawei, "Aliyun" => Aliyun);
choice!(Driver: "local" => Local, "cloud" => Cloud);
choice!(Format: "m3u8" => M3u8, "flv" => Flv, "mp4" => Mp4, "aac" => Aac, "mp3" => Mp3);

/// The one of `known` that `word` was most likely meant to be: as a whole, or by its last segment alone.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> &'a str {
    let word = word.to_ascii_lowercase();
    let last = |it: &str| it.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |it: &&str| {
        let it = it.to_ascii_lowercase();
        strsim::osa_distance(&word, &it).min(strsim::osa_distance(&last(&word), &last(&it)) + 1)
    };
    known.into_iter().min_by_key(distance).unwrap_or_default()
}

fn unfit<K: Kind>(text: &str) -> String {
    format!("expected {}, found {text:?}", K::name())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_and_sizes_are_human_text() {
        let ms = |text: &str| Span::parse(text).ok().map(|it| it.as_millis());
        for (text, want) in [
            ("500ms", 500),
            ("2s", 2000),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("2h", 7_200_000),
            ("30d", 2_592_000_000),
            ("0s", 0),
        ] {
            assert_eq!(ms(text), Some(want), "{text}");
        }
        for text in ["", "5", "s", "5 s", "-5s", "5x", "1.5h", "99999999999999999999s", "999999999999999d", "5s3"] {
            assert_eq!(ms(text), None, "{text}");
        }
        for (text, want) in [
            ("64MiB", Some(64 << 20)),
            ("512KiB", Some(512 << 10)),
            ("1MB", Some(1_000_000)),
            ("77", Some(77)),
            ("7B", Some(7)),
            ("1TiB", None),
            ("", None),
        ] {
            assert_eq!(Size::parse(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for text in ["500ms", "90s", "2h", "30d", "0s"] {
            assert_eq!(Span::show(&Span::parse(text).unwrap()).unwrap(), format!("\"{text}\""));
        }
        for text in ["\"64MiB\"", "\"1GiB\"", "1000"] {
            assert_eq!(Size::show(&Size::parse(text.trim_matches('"')).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn the_prefix_of_a_bucket_is_what_its_address_says_decoded() {
        let check = |path: &str, want: Option<&str>| {
            let prefix = |text: &str| match Objects::parse(text) {
                Ok(MediaUrl::S3(bucket)) => Some(bucket.prefix),
                _ => None,
            };
            let address = format!("s3://b/{path}?region=r");
            assert_eq!(prefix(&address).as_deref(), want, "{address}");
            if let Ok(url) = Objects::parse(&address) {
                let shown = Objects::show(&url).unwrap();
                assert_eq!(prefix(shown.trim_matches('"')).as_deref(), want, "{shown}");
            }
        };
        check("", Some(""));
        check("a/b/", Some("a/b"));
        check("my rec+x~", Some("my rec+x~"));
        check("my%20rec%2Bx%7E", Some("my rec+x~"));
        check("100%25%3F%22%23", Some("100%?\"#"));
        check("日本", Some("日本"));
        for path in ["a%2F..%2Fb", "%0a", "%ff"] {
            check(path, None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_text_is_a_value_or_an_error(text in "\\PC{0,24}|[0-9a-zA-Z.:/*]{0,24}") {
            let _ = (Span::parse(&text), Size::parse(&text), Listen::parse(&text), Web::parse(&text), Access::parse(&text), Host::parse(&text));
            let _ = (List::<Format>::parse(&text), nearest(&text, ["a", "b.c"]));
        }
    }
}
