//! Every key of the configuration: the one table that the reader, the reload and the manual page use.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use toml::de::DeValue;

use super::kind::*;
use super::{App, CallbackFormat, Config, Driver, Environment, Format, PublishAuth, Push, Record, Vendor};

/// One key of a scope `S`.
pub struct Key<S> {
    /// Its dotted path within the scope.
    pub path: &'static str,
    /// What it does, in one line.
    pub doc: &'static str,
    /// Whether a change takes a restart.
    pub restart: bool,
    /// Whether each scope must set it.
    pub required: bool,
    slot: Box<dyn Slot<S> + Send + Sync>,
}

/// A part of the configuration with its own keys: the server, an app, a push entry, a recording.
pub trait Scope: Clone + Default + 'static {
    /// All keys of the scope, in the order of the manual.
    fn keys() -> &'static [Key<Self>];

    /// A key of kind `K` that lives where `place` says.
    fn key<K: Kind>(path: &'static str, place: fn(&mut Self) -> &mut K::T, doc: &'static str) -> Key<Self> {
        Key { path, doc, restart: false, required: false, slot: Box::new(Field::<Self, K> { place, range: None }) }
    }

    /// Likewise, with the least and the greatest value as text.
    fn ranged<K: Kind>(
        path: &'static str,
        range: RangeInclusive<&'static str>,
        place: fn(&mut Self) -> &mut K::T,
        doc: &'static str,
    ) -> Key<Self>
    where
        K::T: PartialOrd,
    {
        let parse = |text: &str| K::parse(text).expect("a range of this table is of its key's kind");
        let range = Range {
            least: parse(range.start()),
            greatest: parse(range.end()),
            within: |value, range| (&range.least..=&range.greatest).contains(&value),
        };
        Key {
            path,
            doc,
            restart: false,
            required: false,
            slot: Box::new(Field::<Self, K> { place, range: Some(range) }),
        }
    }
}

impl<S: Scope> Key<S> {
    /// Sets the value from the text of a variable or a flag.
    pub fn set_text(&self, scope: &mut S, text: &str) -> Result<(), String> {
        self.slot.set_text(scope, text)
    }

    /// Sets the value from TOML.
    pub fn set(&self, scope: &mut S, value: &DeValue<'_>) -> Result<(), String> {
        self.slot.set(scope, value)
    }

    /// Whether the two scopes differ in this key.
    pub fn differs(&self, one: &S, other: &S) -> bool {
        self.slot.differs(&mut one.clone(), &mut other.clone())
    }

    /// Takes this key's value over.
    pub fn copy(&self, from: &S, to: &mut S) {
        self.slot.copy(&mut from.clone(), to);
    }

    /// The row of the manual's table, for the default that `scope` holds.
    pub fn row(&self, scope: &S) -> String {
        let default =
            self.slot.show(&mut scope.clone()).filter(|_| !self.required).map_or("—".into(), |it| format!("`{it}`"));
        let range = self.slot.range().map_or(String::new(), |(least, greatest)| format!(", {least} to {greatest}"));
        let mark = if self.restart {
            " *Restart.*"
        } else if self.required {
            " *Required.*"
        } else {
            ""
        };
        // Examples are for the errors; a column of the same ones is hard to read.
        let name = self.slot.name();
        let name = name.split(" such as ").next().unwrap_or_default();
        format!("| `{}` | {name}{range} | {default} | {}{mark} |\n", self.path, self.doc)
    }

    fn restart(self) -> Key<S> {
        Key { restart: true, ..self }
    }

    fn required(self) -> Key<S> {
        Key { required: true, ..self }
    }
}

/// What a key does, whatever its kind.
trait Slot<S> {
    fn name(&self) -> String;
    fn range(&self) -> Option<(String, String)>;
    fn show(&self, scope: &mut S) -> Option<String>;
    fn set(&self, scope: &mut S, value: &DeValue<'_>) -> Result<(), String>;
    fn set_text(&self, scope: &mut S, text: &str) -> Result<(), String>;
    fn differs(&self, one: &mut S, other: &mut S) -> bool;
    fn copy(&self, from: &mut S, to: &mut S);
}

struct Field<S, K: Kind> {
    place: fn(&mut S) -> &mut K::T,
    range: Option<Range<K::T>>,
}

struct Range<T> {
    least: T,
    greatest: T,
    within: fn(&T, &Range<T>) -> bool,
}

impl<S, K: Kind> Field<S, K> {
    fn put(&self, scope: &mut S, value: K::T) -> Result<(), String> {
        if let Some(range) = &self.range
            && !(range.within)(&value, range)
        {
            let show = |it| K::show(it).unwrap_or_default();
            return Err(format!("{} is not within {} to {}", show(&value), show(&range.least), show(&range.greatest)));
        }
        *(self.place)(scope) = value;
        Ok(())
    }
}

impl<S, K: Kind> Slot<S> for Field<S, K> {
    fn name(&self) -> String {
        K::name()
    }

    fn range(&self) -> Option<(String, String)> {
        let range = self.range.as_ref()?;
        Some((K::show(&range.least)?, K::show(&range.greatest)?))
    }

    fn show(&self, scope: &mut S) -> Option<String> {
        K::show((self.place)(scope))
    }

    fn set(&self, scope: &mut S, value: &DeValue<'_>) -> Result<(), String> {
        self.put(scope, K::read(value)?)
    }

    fn set_text(&self, scope: &mut S, text: &str) -> Result<(), String> {
        self.put(scope, K::parse(text)?)
    }

    fn differs(&self, one: &mut S, other: &mut S) -> bool {
        (self.place)(one) != (self.place)(other)
    }

    fn copy(&self, from: &mut S, to: &mut S) {
        *(self.place)(to) = (self.place)(from).clone();
    }
}

impl Scope for Config {
    fn keys() -> &'static [Key<Config>] {
        static KEYS: LazyLock<Vec<Key<Config>>> = LazyLock::new(|| {
            vec![
                Config::key::<File>(
                    "data_dir",
                    |c| &mut c.data_dir,
                    "Folder of the database, the recordings and `dev-app.toml`.",
                )
                .restart(),
                Config::ranged::<Span>(
                    "shutdown_timeout",
                    "1s"..="10m",
                    |c| &mut c.shutdown_timeout,
                    "How long stopping may take.",
                ),
                Config::key::<Listen>(
                    "http.listen",
                    |c| &mut c.http.listen,
                    "API, WHIP and WHEP, recorded files, the pages of `/console`, `/metrics`, `/health`, `/ready`.",
                )
                .restart(),
                Config::key::<Web>(
                    "http.public_url",
                    |c| &mut c.http.public_url,
                    "What `replay_url`, `hls_url` and the like begin with. Absent: made from `http.listen`.",
                )
                .restart(),
                Config::key::<File>(
                    "http.tls.certificate",
                    |c| &mut c.http.tls.get_or_insert_default().certificate,
                    "PEM file of the certificate chain; with it `http.listen` speaks HTTPS.",
                )
                .restart(),
                Config::key::<File>(
                    "http.tls.key",
                    |c| &mut c.http.tls.get_or_insert_default().key,
                    "PEM file of the certificate's private key.",
                )
                .restart(),
                Config::key::<Listen>("rtmp.listen", |c| &mut c.rtmp.listen, "RTMP publishers and players.").restart(),
                Config::ranged::<Count>(
                    "rtmp.max_connections",
                    "1"..="100000",
                    |c| &mut c.rtmp.max_connections,
                    "Connections at once, publishers and players together; one more is refused.",
                )
                .restart(),
                Config::key::<Listen>(
                    "webrtc.listen",
                    |c| &mut c.webrtc.listen,
                    "WHIP and WHEP media: UDP and ICE-TCP on one port.",
                )
                .restart(),
                Config::key::<List<Ip>>(
                    "webrtc.public_addresses",
                    |c| &mut c.webrtc.public_addresses,
                    "Addresses under which clients reach `webrtc.listen`, where they are not its own.",
                )
                .restart(),
                Config::key::<List<Ice>>(
                    "webrtc.ice_servers",
                    |c| &mut c.webrtc.ice_servers,
                    "STUN and TURN servers that WHIP and WHEP clients are told of: `stun:HOST:PORT`, or `turn:USER:PASSWORD@HOST:PORT`, behind it `?transport=tcp` if need be; `stuns:` and `turns:` likewise.",
                )
                .restart(),
                Config::ranged::<Count>(
                    "webrtc.max_sessions",
                    "1"..="100000",
                    |c| &mut c.webrtc.max_sessions,
                    "WebRTC sessions at once, publishers and players together; one more is refused.",
                )
                .restart(),
                Config::ranged::<Span>(
                    "webrtc.keyframe_interval",
                    "500ms"..="1m",
                    |c| &mut c.webrtc.keyframe_interval,
                    "The longest time between two keyframes: browsers make them on demand alone.",
                )
                .restart(),
                Config::ranged::<Span>(
                    "webrtc.jitter_buffer",
                    "10ms"..="1s",
                    |c| &mut c.webrtc.jitter_buffer,
                    "How long sound waits for a packet that is late or lost; where none is, nothing waits.",
                )
                .restart(),
                Config::key::<Rows>("store.url", |c| &mut c.store.url, "Where rows are kept: SQLite in `data_dir`.")
                    .restart(),
                Config::key::<Objects>(
                    "media.url",
                    |c| &mut c.media.url,
                    "Where finished media files are kept: `media` in `data_dir`, or a bucket of an S3-compatible service.",
                )
                .restart(),
                Config::key::<Maybe<Hidden>>(
                    "media.access_key_id",
                    |c| &mut c.media.access_key_id,
                    "Key id for the bucket. Absent: from the environment, as AWS's own tools take it.",
                )
                .restart(),
                Config::key::<Maybe<Hidden>>(
                    "media.secret_access_key",
                    |c| &mut c.media.secret_access_key,
                    "The key of that id.",
                )
                .restart(),
                Config::ranged::<Maybe<Span>>(
                    "record.url_ttl",
                    "1m"..="3650d",
                    |c| &mut c.record.url_ttl,
                    "How long an address of a media file is valid. Absent: unsigned, and valid as long as the file is there.",
                )
                .restart(),
                Config::ranged::<Count>("jobs.max", "1"..="64", |c| &mut c.jobs.max, "Merges at once.").restart(),
                Config::ranged::<Span>(
                    "relay.connect_timeout",
                    "100ms"..="1m",
                    |c| &mut c.relay.connect_timeout,
                    "How long a target may take from connect to accepting the stream.",
                ),
                Config::ranged::<Span>(
                    "relay.retry.first",
                    "100ms"..="10m",
                    |c| &mut c.relay.retry.first,
                    "The shortest wait before a relay connects again; it is a sixteenth of the outage so far, with jitter.",
                ),
                Config::ranged::<Span>(
                    "relay.retry.max",
                    "100ms"..="1h",
                    |c| &mut c.relay.retry.max,
                    "The longest wait. Relays try as long as rule and stream live.",
                ),
                Config::key::<Switch>(
                    "relay.allow_private_targets",
                    |c| &mut c.relay.allow_private_targets,
                    "Whether a target may resolve to a loopback, private or link-local address.",
                ),
                Config::key::<Maybe<File>>(
                    "relay.ca_file",
                    |c| &mut c.relay.ca_file,
                    "PEM file of more roots for `rtmps://` targets, beside the system's.",
                ),
                Config::ranged::<Span>(
                    "relay.stall_timeout",
                    "1s"..="5m",
                    |c| &mut c.relay.stall_timeout,
                    "How long a target may acknowledge nothing while bytes wait before the session is dropped.",
                ),
                Config::ranged::<BitRate>(
                    "relay.audio_bitrate",
                    "32k"..="320k",
                    |c| &mut c.relay.audio_bitrate,
                    "Bits a second of the AAC that Opus sound becomes for targets and RTMP players; in quotes or as a plain number. The Opus that AAC becomes for WHEP players has 96 kbit/s.",
                ),
                Config::ranged::<Span>(
                    "publish.grace",
                    "0s"..="10m",
                    |c| &mut c.publish.grace,
                    "A publisher that drops and comes back within this keeps CDN session and recording.",
                ),
                Config::ranged::<Size>(
                    "publish.buffer",
                    "1MiB"..="1GiB",
                    |c| &mut c.publish.buffer,
                    "Bytes that one stream may hold for its slowest output.",
                )
                .restart(),
                Config::ranged::<Size>(
                    "record.low_water",
                    "0"..="1024GiB",
                    |c| &mut c.record.low_water,
                    "Recordings pause while less of the disk is free than this, or than a twentieth of it if that is less.",
                )
                .restart(),
                Config::ranged::<Span>(
                    "record.sync",
                    "0s"..="1m",
                    |c| &mut c.record.sync,
                    "After what time media is on the disk at the latest, whatever happens to the power; with 0 the kernel decides.",
                )
                .restart(),
                Config::ranged::<Span>(
                    "record.segment",
                    "1s"..="1m",
                    |c| &mut c.record.segment,
                    "How long a segment of m3u8 becomes; it ends at the next keyframe. A merge cuts by 6 s, whatever this says.",
                )
                .restart(),
                Config::ranged::<BitRate>(
                    "record.audio_bitrate",
                    "32k"..="320k",
                    |c| &mut c.record.audio_bitrate,
                    "Bits a second of the AAC that Opus sound becomes in files, and of MP3 files. MP3 that a merge encodes has 128 kbit/s.",
                )
                .restart(),
                Config::ranged::<Span>(
                    "callback.timeout",
                    "100ms"..="1m",
                    |c| &mut c.callback.timeout,
                    "How long a callback's receiver may take to answer.",
                )
                .restart(),
            ]
        });
        &KEYS
    }
}

impl Scope for App {
    fn keys() -> &'static [Key<App>] {
        static KEYS: LazyLock<Vec<Key<App>>> = LazyLock::new(|| {
            vec![
                App::key::<AppId>("id", |a| &mut a.id, "ZEGO's AppId.").required(),
                App::key::<ServerSecret>("server_secret", |a| &mut a.server_secret, "Signs API calls.").required(),
                App::key::<Hidden>(
                    "callback_secret",
                    |a| &mut a.callback_secret,
                    "Signs callbacks. Required with a callback URL.",
                ),
                App::key::<Environment>(
                    "environment",
                    |a| &mut a.environment,
                    "Which of the environments the app has.",
                ),
                App::key::<PublishAuth>(
                    "publish_auth",
                    |a| &mut a.publish_auth,
                    "With `\"token\"`, publishers must present ZEGO's token, and so must players if there is a `play_key`.",
                ),
                App::key::<Hidden>("publish_key", |a| &mut a.publish_key, "Key of the publish tokens."),
                App::key::<Hidden>("play_key", |a| &mut a.play_key, "Key of the play tokens."),
                App::key::<Switch>(
                    "clear_whole_app",
                    |a| &mut a.clear_whole_app,
                    "`ClearCDNTransferRule` clears the waiting rules of the whole app, not of the stream alone.",
                ),
                App::key::<Switch>(
                    "delete_media_string",
                    |a| &mut a.delete_media_string,
                    "`DeleteMedia` gives its Data as a text of JSON, as ZEGO did until the end of 2025.",
                ),
                App::ranged::<Maybe<Span>>(
                    "stream_history",
                    "1s"..="30d",
                    |a| &mut a.stream_history,
                    "How long `DescribeRTCStreamState` answers 41006 with both times for a closed stream. Absent: 41004 at once.",
                ),
                App::key::<Maybe<Web>>(
                    "callback.stream",
                    |a| &mut a.callback.stream,
                    "Receiver of `stream_create` and `stream_close`.",
                ),
                App::key::<Maybe<Web>>("callback.record", |a| &mut a.callback.record, "Receiver of `record`."),
                App::key::<Maybe<Web>>("callback.compose", |a| &mut a.callback.compose, "Receiver of `compose`."),
                App::key::<Maybe<Web>>(
                    "callback.state",
                    |a| &mut a.callback.state,
                    "Receiver of `relay_state` and `record_state`.",
                ),
                App::key::<CallbackFormat>(
                    "callback.format",
                    |a| &mut a.callback.format,
                    "How a callback's body is written.",
                ),
                App::key::<Maybe<Access>>(
                    "cdn.default_target",
                    |a| &mut a.cdn.default_target,
                    "Where a rule without `CDNUrl` pushes to: this, a slash and the StreamId.",
                ),
                App::key::<Switch>(
                    "cdn.relay_everything",
                    |a| &mut a.cdn.relay_everything,
                    "Every stream is relayed to `cdn.default_target`.",
                ),
                App::key::<List<Host>>(
                    "cdn.enhanced_targets",
                    |a| &mut a.cdn.enhanced_targets,
                    "Hosts of targets that speak enhanced RTMP and are given Opus sound as it is; all others get AAC. `push.example.com`, or `*.example.com` for all hosts below it.",
                ),
                App::key::<List<Host>>(
                    "cdn.silent_audio",
                    |a| &mut a.cdn.silent_audio,
                    "Hosts of targets that are given a silent AAC track where a stream has pictures only; written likewise.",
                ),
            ]
        });
        &KEYS
    }
}

impl Scope for Push {
    fn keys() -> &'static [Key<Push>] {
        static KEYS: LazyLock<Vec<Key<Push>>> = LazyLock::new(|| {
            vec![
                Push::key::<Host>(
                    "host",
                    |p| &mut p.host,
                    "Host of the targets that are signed: `push.example.com`, or `*.example.com` for all hosts below it. The most exact entry decides.",
                )
                .required(),
                Push::key::<Vendor>("vendor", |p| &mut p.vendor, "Whose way of signing.").required(),
                Push::key::<Hidden>("key", |p| &mut p.key, "The domain's main key.").required(),
                Push::key::<Maybe<Hidden>>(
                    "backup_key",
                    |p| &mut p.backup_key,
                    "The domain's second key, tried when a push with the main one is refused.",
                ),
                Push::ranged::<Span>(
                    "ttl",
                    "1m"..="30d",
                    |p| &mut p.ttl,
                    "How long a signed address is valid; each connect signs anew.",
                ),
            ]
        });
        &KEYS
    }
}

impl Scope for Record {
    fn keys() -> &'static [Key<Record>] {
        static KEYS: LazyLock<Vec<Key<Record>>> = LazyLock::new(|| {
            vec![
                Record::key::<Driver>(
                    "driver",
                    |r| &mut r.driver,
                    "Who records. Only `\"local\"` is there, bywash itself; `\"cloud\"` is for a later version, and refused.",
                ),
                Record::key::<List<Format>>("formats", |r| &mut r.formats, "What is written."),
                Record::ranged::<Span>(
                    "interval",
                    "300s"..="7200s",
                    |r| &mut r.interval,
                    "How long a file becomes before the next begins; not for m3u8.",
                ),
                Record::ranged::<Maybe<Span>>(
                    "keep",
                    "1h"..="3650d",
                    |r| &mut r.keep,
                    "How long files are kept. Absent: for ever.",
                ),
                Record::key::<Switch>(
                    "record_everything",
                    |r| &mut r.record_everything,
                    "Every stream is recorded without a call.",
                ),
            ]
        });
        &KEYS
    }
}
