//! The configuration: file < environment < flags, parsed once into finished values.
//!
//! Invariant: [`keys`] is the only list of keys; the reader, the reload and docs/configuration.md go by it.

mod apps;
mod check;
mod dev;
mod keys;
mod kind;
mod page;
pub mod pem;
mod read;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use apps::Apps;
pub use dev::{DevApp, load as load_dev_app};
pub use page::page;
pub use read::{Place, Problem, Problems, variable_name};

use serde::{Deserialize, Serialize};

use keys::Scope;
use kind::Kind;
use read::Source;

use crate::secret::Secret;

/// The whole configuration. Only `main` and `app` see it as a whole. What each value means is in docs/configuration.md.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Folder of the database, the recordings and `dev-app.toml`.
    pub data_dir: PathBuf,
    /// How long stopping may take.
    pub shutdown_timeout: Duration,
    /// API, WHIP/WHEP, playback, media files, console.
    pub http: Http,
    /// RTMP publishers and players.
    pub rtmp: Rtmp,
    /// Media of WHIP and WHEP.
    pub webrtc: Webrtc,
    /// Where rows are kept.
    pub store: Store,
    /// Where media files are kept.
    pub media: Media,
    /// Recordings, whoever asked for them.
    pub record: Recording,
    /// Work on recorded files.
    pub jobs: Jobs,
    /// Pushes to CDNs.
    pub relay: Relay,
    /// Streams that are published here.
    pub publish: Publish,
    /// Sending of callbacks.
    pub callback: CallbackLimits,
    /// The apps; their ids differ.
    pub apps: Vec<App>,
}

/// `[http]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What addresses that go out begin with; no slash at its end.
    pub public_url: String,
    /// Speaks HTTPS with these.
    pub tls: Option<Tls>,
}

/// Certificate and key, as paths of PEM files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `[rtmp]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rtmp {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Connections at once, publishers and players together; one more is refused. Default 2000.
    pub max_connections: usize,
}

/// `[webrtc]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Webrtc {
    /// Where UDP and ICE-TCP listen, on one port.
    pub listen: SocketAddr,
    /// Under which addresses clients reach it, where they are not its own.
    pub public_addresses: Vec<IpAddr>,
    /// STUN and TURN servers that clients are told of.
    pub ice_servers: Vec<IceServer>,
    /// Sessions at once, publishers and players together. Default 500.
    pub max_sessions: usize,
    /// The longest time between two keyframes of a publisher that makes them on demand alone. Default 4 s.
    pub keyframe_interval: Duration,
    /// How long sound waits for a packet that has not come. Default 100 ms.
    pub jitter_buffer: Duration,
}

/// One entry of `webrtc.ice_servers`: `stun:HOST:PORT`, or `turn:USER:PASSWORD@HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceServer {
    /// The URI without user and password (RFC 7064, RFC 7065).
    pub uri: String,
    /// User and password, if it asks for them.
    pub user: Option<(String, Secret)>,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// `sqlite`.
    pub url: String,
}

/// `[media]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Media {
    /// In which kind of place.
    pub url: MediaUrl,
    /// Of the bucket; absent, what `AWS_ACCESS_KEY_ID` and its like say.
    pub access_key_id: Option<Secret>,
    /// Of the bucket.
    pub secret_access_key: Option<Secret>,
}

/// Where finished media files are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MediaUrl {
    /// In `media` of `data_dir`: `file`.
    #[default]
    File,
    /// In a bucket of an S3-compatible service: `s3://bucket/prefix?endpoint=…&region=…`.
    S3(Bucket),
}

/// A bucket, or a folder in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What every key begins with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Where the service is; AWS itself without.
    pub endpoint: Option<String>,
    /// `us-east-1` without.
    pub region: String,
}

/// `[jobs]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Jobs {
    /// Merges at once. Default 2.
    pub max: usize,
}

/// `[relay]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Relay {
    /// How long a target may take from connect to accepting the stream.
    pub connect_timeout: Duration,
    /// When to connect again.
    pub retry: Retry,
    /// Whether a target may resolve to an address that is not public.
    pub allow_private_targets: bool,
    /// PEM file of more roots, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a target may acknowledge nothing while bytes wait before the session is dropped. Default 10 s.
    pub stall_timeout: Duration,
    /// Bits a second of sound that is encoded for targets. Default 128 000.
    pub audio_bitrate: u32,
}

/// The waits between attempts: each is a sixteenth of the time that the target has been gone, within these.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// The shortest, which is the first.
    pub first: Duration,
    /// The longest.
    pub max: Duration,
}

/// `[publish]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// How long a publisher that dropped may stay away before its stream ends.
    pub grace: Duration,
    /// Bytes that one stream may hold for its slowest output. Default 16 MiB.
    pub buffer: usize,
}

/// `[record]`: what all recordings have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Bytes of the disk that are kept free. Default 2 GiB, or a twentieth of the disk if that is less.
    pub low_water: usize,
    /// After what time at the latest media is on the disk; 0 leaves it to the kernel. Default 1 s.
    pub sync: Duration,
    /// How long a segment of HLS becomes. Default 6 s.
    pub segment: Duration,
    /// Bits a second of sound that is encoded for files. Default 128 000.
    pub audio_bitrate: u32,
    /// How long an address of a media file is valid; for ever, and unsigned, without.
    pub url_ttl: Option<Duration>,
}

impl Default for Recording {
    fn default() -> Recording {
        Recording {
            low_water: 2 << 30,
            sync: Duration::from_secs(1),
            segment: Duration::from_secs(6),
            audio_bitrate: 128_000,
            url_ttl: None,
        }
    }
}

/// `[callback]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CallbackLimits {
    /// How long a receiver may take to answer. Default 5 s.
    pub timeout: Duration,
}

/// `[[app]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct App {
    /// ZEGO's AppId, never 0.
    pub id: u32,
    /// Signs API calls.
    pub server_secret: Secret,
    /// Signs callbacks.
    pub callback_secret: Secret,
    /// Which environments the app has.
    pub environment: Environment,
    /// What publishers must present.
    pub publish_auth: PublishAuth,
    /// Key of the publish tokens; empty without.
    pub publish_key: Secret,
    /// Key of the play tokens; empty without.
    pub play_key: Secret,
    /// Where callbacks go.
    pub callback: Callback,
    /// Where streams go.
    pub cdn: Cdn,
    /// By vendor name: Tencent, Ws, Huawei, Aliyun.
    pub record: BTreeMap<String, Record>,
    /// ClearCDNTransferRule clears the waiting rules of the whole app, not of the stream alone. Default false.
    pub clear_whole_app: bool,
    /// DeleteMedia gives its Data as a text of JSON, as ZEGO did until the end of 2025. Default false.
    pub delete_media_string: bool,
    /// How long DescribeRTCStreamState answers 41006 with both times for a closed stream. Absent: 41004 at once.
    pub stream_history: Option<Duration>,
}

/// Which environments an app has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// Production alone.
    Production,
    /// Test alone.
    Test,
    /// Either.
    Both,
}

impl Environment {
    /// Whether an app of this kind has streams of `environment`.
    pub fn has(self, environment: bywash_media::Environment) -> bool {
        match self {
            Environment::Both => true,
            Environment::Production => environment == bywash_media::Environment::Production,
            Environment::Test => environment == bywash_media::Environment::Test,
        }
    }
}

/// What publishers must present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishAuth {
    /// Nothing.
    None,
    /// ZEGO's token, see [`crate::token`].
    Token,
}

/// The receivers of an app's callbacks; an event without one is not sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Callback {
    /// `stream_create` and `stream_close`.
    pub stream: Option<String>,
    /// `record`.
    pub record: Option<String>,
    /// `compose`.
    pub compose: Option<String>,
    /// `relay_state` and `record_state`.
    pub state: Option<String>,
    /// How the body is written.
    pub format: CallbackFormat,
}

/// How a callback's body is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallbackFormat {
    /// A JSON object.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
}

/// Where an app's streams go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cdn {
    /// Used when CDNUrl is absent; a slash and the StreamId are added.
    pub default_target: Option<String>,
    /// Every stream goes to `default_target`, which is there then.
    pub relay_everything: bool,
    /// Automatic push authentication, by host.
    pub push: Vec<Push>,
    /// Hosts of targets that take Opus; exact, or `*.example.com`.
    pub enhanced_targets: Vec<String>,
    /// Hosts of targets that want sound where there is none.
    pub silent_audio: Vec<String>,
}

/// Automatic push authentication for the targets of one host.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// Exact, or `*.example.com`; in lower case.
    pub host: String,
    /// Whose way of signing.
    pub vendor: Vendor,
    /// The main key.
    pub key: Secret,
    /// The second key.
    pub backup_key: Option<Secret>,
    /// How long a signature is valid.
    pub ttl: Duration,
}

/// A CDN vendor, by ZEGO's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vendor {
    /// Tencent Cloud CSS.
    Tencent,
    /// Wangsu.
    Ws,
    /// Huawei Cloud Live.
    Huawei,
    /// Alibaba Cloud Live.
    Aliyun,
}

impl Vendor {
    /// All of them.
    pub const ALL: [Vendor; 4] = [Vendor::Tencent, Vendor::Ws, Vendor::Huawei, Vendor::Aliyun];

    /// ZEGO's name.
    pub fn name(self) -> &'static str {
        match self {
            Vendor::Tencent => "Tencent",
            Vendor::Ws => "Ws",
            Vendor::Huawei => "Huawei",
            Vendor::Aliyun => "Aliyun",
        }
    }

    /// The vendor of a name, in upper or lower case.
    pub fn named(name: &str) -> Option<Vendor> {
        Vendor::ALL.into_iter().find(|vendor| vendor.name().eq_ignore_ascii_case(name))
    }
}

/// What recordings under one vendor's name are like.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Who records.
    pub driver: Driver,
    /// What is written; one at least.
    pub formats: Vec<Format>,
    /// How long a file becomes, 300 s to 7200 s; not for m3u8.
    pub interval: Duration,
    /// How long files are kept; for ever without.
    pub keep: Option<Duration>,
    /// Every stream is recorded without a call.
    pub record_everything: bool,
}

/// Who records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// bywash.
    Local,
    /// The vendor.
    Cloud,
}

/// A format of recorded files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// HLS: a folder with a playlist and its segments.
    M3u8,
    /// FLV.
    Flv,
    /// MP4.
    Mp4,
    /// AAC in ADTS, sound alone.
    Aac,
    /// MP3, sound alone.
    Mp3,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 5] = [Format::M3u8, Format::Flv, Format::Mp4, Format::Aac, Format::Mp3];

    /// Its name, which is also what its files end with.
    pub fn name(self) -> &'static str {
        match self {
            Format::M3u8 => "m3u8",
            Format::Flv => "flv",
            Format::Mp4 => "mp4",
            Format::Aac => "aac",
            Format::Mp3 => "mp3",
        }
    }

    /// The format of a name, in upper or lower case.
    pub fn named(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name))
    }
}

impl Config {
    /// Reads the file at `path`, or `bywash.toml` in the working directory if it is there; then the variables `BYWASH_…` of
    /// `environment`; then `flags`, pairs of key and value. The problems are all there are.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Config, Problems> {
        let file = path.unwrap_or(Path::new("bywash.toml"));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound && path.is_none() => String::new(),
            Err(why) => {
                return Err(Problems(vec![Problem {
                    place: Place::Whole(file.into()),
                    text: format!("cannot be read: {why}"),
                }]));
            }
        };
        read::read(Source { file, text: &text, environment: environment.into_iter().collect(), flags })
    }

    /// The defaults, and `flags` on top.
    pub fn of(flags: &[(String, String)]) -> Result<Config, Problems> {
        read::read(Source { file: Path::new(""), text: "", environment: Vec::new(), flags })
    }

    /// `rtmp://host:port` for who comes from elsewhere: `listen`, or the public host if that is a wildcard.
    pub fn rtmp_base(&self, listen: SocketAddr) -> String {
        let public = url::Url::parse(&self.http.public_url).ok();
        match public.as_ref().and_then(url::Url::host_str).filter(|_| listen.ip().is_unspecified()) {
            Some(host) => format!("rtmp://{host}:{}", listen.port()),
            None => format!("rtmp://{listen}"),
        }
    }

    /// What is allowed, but hardly meant.
    pub fn warnings(&self) -> Vec<String> {
        let here = match url::Url::parse(&self.http.public_url).ok().as_ref().and_then(url::Url::host) {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let everywhere = [("http.listen", self.http.listen), ("rtmp.listen", self.rtmp.listen)];
        let everywhere = everywhere.iter().find(|(_, listen)| here && listen.ip().is_unspecified());
        let warning = everywhere.map(|(key, listen)| {
            format!(
                "`{key}` is {listen}, but `http.public_url` is {}: replay_url and the addresses of RTMPDispatchV2 lead whoever \
                 is elsewhere to his own machine; set it to what he reaches this one by",
                self.http.public_url
            )
        });
        // As examples/bywash.toml has them.
        let example = |app: &&App| {
            let push = app.cdn.push.iter().map(|it| &it.key);
            let mut secrets = [&app.server_secret, &app.callback_secret, &app.publish_key].into_iter().chain(push);
            secrets.any(|it| it.expose().starts_with("change-me"))
        };
        let examples = self.apps.iter().filter(example).map(|app| {
            format!(
                "app {} has a secret of the example, which everybody knows: make one with `openssl rand -hex 16`",
                app.id
            )
        });
        warning.into_iter().chain(examples).collect()
    }

    /// What a reload makes of `new`, the configuration as it is written now.
    pub fn difference(&self, new: Config) -> Reload {
        let mut reload = Reload { config: new, changed: Vec::new(), restart: Vec::new() };
        for key in Config::keys() {
            if !key.differs(self, &reload.config) {
                continue;
            }
            if key.restart {
                key.copy(self, &mut reload.config);
                reload.restart.push(key.path.into());
            } else {
                reload.changed.push(key.path.into());
            }
        }
        reload.config.http.tls = self.http.tls.clone();
        let by_id = |apps: &[App]| apps.iter().map(|app| (app.id, app.clone())).collect::<BTreeMap<_, _>>();
        let (old, now) = (by_id(&self.apps), by_id(&reload.config.apps));
        let ids = old.keys().chain(now.keys().filter(|id| !old.contains_key(id)));
        reload.changed.extend(ids.filter(|id| old.get(id) != now.get(id)).map(|id| format!("app {id}")));
        reload
    }
}

/// Reads a duration as the configuration writes it: `90s`, `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    kind::Span::parse(text)
}

/// What a reload does.
#[derive(Debug)]
pub struct Reload {
    /// What is in force from now on: the new values, but the old ones of `restart`.
    pub config: Config,
    /// The keys, and `app <id>`, whose new values are in force.
    pub changed: Vec<String>,
    /// The keys whose new values wait for a restart.
    pub restart: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        let listen = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            data_dir: "data".into(),
            shutdown_timeout: Duration::from_secs(30),
            http: Http { listen: listen(8080), public_url: "http://127.0.0.1:8080".into(), tls: None },
            rtmp: Rtmp { listen: listen(1935), max_connections: 2000 },
            webrtc: Webrtc {
                listen: listen(8000),
                public_addresses: Vec::new(),
                ice_servers: Vec::new(),
                max_sessions: 500,
                keyframe_interval: Duration::from_secs(4),
                jitter_buffer: Duration::from_millis(100),
            },
            store: Store { url: "sqlite".into() },
            media: Media::default(),
            record: Recording::default(),
            jobs: Jobs { max: 2 },
            relay: Relay {
                connect_timeout: Duration::from_secs(5),
                retry: Retry { first: Duration::from_secs(1), max: Duration::from_secs(30) },
                allow_private_targets: false,
                ca_file: None,
                stall_timeout: Duration::from_secs(10),
                audio_bitrate: 128_000,
            },
            publish: Publish { grace: Duration::from_secs(10), buffer: 16 << 20 },
            callback: CallbackLimits { timeout: Duration::from_secs(5) },
            apps: Vec::new(),
        }
    }
}

/// Not an app yet: id and secrets are missing.
impl Default for App {
    fn default() -> App {
        App {
            id: 0,
            server_secret: Secret::default(),
            callback_secret: Secret::default(),
            environment: Environment::Both,
            publish_auth: PublishAuth::None,
            publish_key: Secret::default(),
            play_key: Secret::default(),
            callback: Callback::default(),
            cdn: Cdn::default(),
            record: BTreeMap::new(),
            clear_whole_app: false,
            delete_media_string: false,
            stream_history: None,
        }
    }
}

/// Not an entry yet: host and key are missing.
impl Default for Push {
    fn default() -> Push {
        Push {
            host: String::new(),
            vendor: Vendor::Tencent,
            key: Secret::default(),
            backup_key: None,
            ttl: Duration::from_secs(86_400),
        }
    }
}

impl Default for Record {
    fn default() -> Record {
        Record {
            driver: Driver::Local,
            formats: vec![Format::Mp4, Format::M3u8],
            interval: Duration::from_secs(7200),
            keep: None,
            record_everything: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// `[[app]]` as short as it may be: four lines.
    fn app(id: u32) -> String {
        format!("[[app]]\nid = {id}\nserver_secret = \"{SECRET}\"\ncallback_secret = \"c\"\n")
    }

    fn read(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, Problems> {
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>()
        };
        read::read(Source { file: Path::new("f"), text, environment: own(environment), flags: &own(flags) })
    }

    /// The problems of `text`, one a line.
    fn check(text: &str, want: &str) {
        let got = read(text, &[], &[]).map_or_else(|it| it.to_string(), |_| String::new());
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn the_whole_file_is_read_into_its_values() {
        let text = r#"
            data_dir = "d"
            shutdown_timeout = "40s"
            [http]
            listen = "[::]:81"
            public_url = "https://live.example.com/"
            [rtmp]
            listen = "0.0.0.0:1936"
            max_connections = 3
            [webrtc]
            listen = "127.0.0.1:8001"
            public_addresses = ["203.0.113.7"]
            ice_servers = ["stun:stun.example.com:3478", "turn:u:p@turn.example.com:3478?transport=udp"]
            max_sessions = 7
            keyframe_interval = "2s"
            jitter_buffer = "50ms"
            [store]
            url = "sqlite"
            [media]
            url = "s3://bucket/a/b/?endpoint=http://127.0.0.1:9000&region=eu-1"
            access_key_id = "i"
            secret_access_key = "s"
            [record]
            url_ttl = "1h"
            low_water = "1GiB"
            sync = "0s"
            segment = "4s"
            audio_bitrate = "96k"
            [jobs]
            max = 3
            [relay]
            connect_timeout = "6s"
            retry = { first = "500ms", max = "1m" }
            allow_private_targets = true
            stall_timeout = "11s"
            audio_bitrate = "96k"
            [publish]
            grace = "0s"
            buffer = "64MiB"
            [callback]
            timeout = "4s"
            [[app]]
            id = 1234567890
            server_secret = "0123456789abcdef0123456789abcdef"
            callback_secret = "c"
            environment = "test"
            publish_auth = "token"
            publish_key = "k"
            play_key = "p"
            clear_whole_app = true
            delete_media_string = true
            stream_history = "1h"
            [app.callback]
            stream = "https://a.example/s?x=1"
            record = "https://a.example/r"
            compose = "https://a.example/c"
            state = "https://a.example/t"
            format = "form"
            [app.cdn]
            default_target = "rtmp://push.example.com/live/"
            relay_everything = true
            enhanced_targets = ["a.example", "*.b.example"]
            silent_audio = ["c.example"]
            [[app.cdn.push]]
            host = "*.Example.com"
            vendor = "Ws"
            key = "k"
            backup_key = "b"
            ttl = "24h"
            [app.record.Tencent]
            driver = "local"
            formats = ["flv", "aac"]
            interval = "300s"
            keep = "30d"
            record_everything = true
        "#;
        let got = read(text, &[], &[]).unwrap();
        let seconds = Duration::from_secs;
        let url = |path: &str| Some(format!("https://a.example/{path}"));
        let want = Config {
            data_dir: "d".into(),
            shutdown_timeout: seconds(40),
            http: Http { listen: "[::]:81".parse().unwrap(), public_url: "https://live.example.com".into(), tls: None },
            rtmp: Rtmp { listen: "0.0.0.0:1936".parse().unwrap(), max_connections: 3 },
            webrtc: Webrtc {
                listen: "127.0.0.1:8001".parse().unwrap(),
                public_addresses: vec!["203.0.113.7".parse().unwrap()],
                ice_servers: vec![
                    IceServer { uri: "stun:stun.example.com:3478".into(), user: None },
                    IceServer {
                        uri: "turn:turn.example.com:3478?transport=udp".into(),
                        user: Some(("u".into(), Secret::new("p"))),
                    },
                ],
                max_sessions: 7,
                keyframe_interval: seconds(2),
                jitter_buffer: Duration::from_millis(50),
            },
            relay: Relay {
                connect_timeout: seconds(6),
                retry: Retry { first: Duration::from_millis(500), max: seconds(60) },
                allow_private_targets: true,
                ca_file: None,
                stall_timeout: seconds(11),
                audio_bitrate: 96_000,
            },
            publish: Publish { grace: seconds(0), buffer: 64 << 20 },
            callback: CallbackLimits { timeout: seconds(4) },
            media: Media {
                url: MediaUrl::S3(Bucket {
                    name: "bucket".into(),
                    prefix: "a/b".into(),
                    endpoint: Some("http://127.0.0.1:9000".into()),
                    region: "eu-1".into(),
                }),
                access_key_id: Some(Secret::new("i")),
                secret_access_key: Some(Secret::new("s")),
            },
            record: Recording {
                low_water: 1 << 30,
                sync: Duration::ZERO,
                segment: seconds(4),
                audio_bitrate: 96_000,
                url_ttl: Some(seconds(3600)),
            },
            jobs: Jobs { max: 3 },
            apps: vec![App {
                id: 1_234_567_890,
                server_secret: Secret::new(SECRET),
                callback_secret: Secret::new("c"),
                environment: Environment::Test,
                publish_auth: PublishAuth::Token,
                publish_key: Secret::new("k"),
                play_key: Secret::new("p"),
                callback: Callback {
                    stream: url("s?x=1"),
                    record: url("r"),
                    compose: url("c"),
                    state: url("t"),
                    format: CallbackFormat::Form,
                },
                cdn: Cdn {
                    default_target: Some("rtmp://push.example.com/live".into()),
                    relay_everything: true,
                    push: vec![Push {
                        host: "*.example.com".into(),
                        vendor: Vendor::Ws,
                        key: Secret::new("k"),
                        backup_key: Some(Secret::new("b")),
                        ttl: seconds(86_400),
                    }],
                    enhanced_targets: vec!["a.example".into(), "*.b.example".into()],
                    silent_audio: vec!["c.example".into()],
                },
                record: BTreeMap::from([(
                    "Tencent".into(),
                    Record {
                        driver: Driver::Local,
                        formats: vec![Format::Flv, Format::Aac],
                        interval: seconds(300),
                        keep: Some(seconds(30 * 86_400)),
                        record_everything: true,
                    },
                )]),
                clear_whole_app: true,
                delete_media_string: true,
                stream_history: Some(seconds(3600)),
            }],
            ..Config::default()
        };
        assert_eq!(got, want);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        check("data_dri = \"d\"", "f:1: unknown key `data_dri`; did you mean `data_dir`?");
        check("\n[http]\nlisen = \"x\"", "f:3: unknown key `http.lisen`; did you mean `http.listen`?");
        check("[htp]\nlisten = \"x\"", "f:1: unknown key `htp`; did you mean `http`?");
        check("[relay]\nretri = \"1s\"", "f:2: unknown key `relay.retri`; did you mean `relay.retry`?");
        check("public_url = \"x\"", "f:1: unknown key `public_url`; did you mean `http.public_url`?");
        check(
            "[relay]\nretry = { fist = \"1s\" }",
            "f:2: unknown key `relay.retry.fist`; did you mean `relay.retry.first`?",
        );
        check(
            &(app(1) + "[app.cdn]\ndefault_targt = \"x\""),
            "f:6: unknown key `cdn.default_targt`; did you mean `cdn.default_target`?",
        );
        check(
            &(app(1) + "[app.record.tencent]"),
            "f:5: unknown vendor `tencent`: expected \"Tencent\" or \"Ws\" or \"Huawei\" or \"Aliyun\"; did you mean \"Tencent\"?",
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_or_beyond_its_range_says_what_is_expected() {
        check(
            "[publish]\ngrace = 10",
            "f:2: `publish.grace`: expected a duration such as \"500ms\", \"90s\", \"1h30m\" or \"30d\" in quotes, found a TOML integer",
        );
        check("[publish]\ngrace = \"11m\"", "f:2: `publish.grace`: \"11m\" is not within \"0s\" to \"10m\"");
        check("[rtmp]\nmax_connections = 0", "f:2: `rtmp.max_connections`: 0 is not within 1 to 100000");
        check("http = 1", "f:1: `http`: expected a table, found a TOML integer");
        check("[app]\nid = 1", "f:1: there may be several: write [[app]]");
        check(
            "[store]\nurl = \"postgres://u:p@h/d\"",
            "f:2: `store.url`: PostgreSQL is not in this version: use \"sqlite\"",
        );
        let want = "f:2: `media.url`: expected \"file\" or \"s3://bucket/prefix?endpoint=https://…&region=…\"";
        check("[media]\nurl = \"s3:b/p\"", want);
        check("[media]\nurl = \"s3://k:s@b/p\"", want);
        check("[media]\nurl = \"s3://b/p?endpont=http://a\"", want);
        check(
            &(app(1) + "[app.record.Ws]\ninterval = \"299s\""),
            "f:6: `interval`: \"299s\" is not within \"5m\" to \"2h\"",
        );
        check(
            &(app(1) + "[app.callback]\nstream = \"ftp://a/\""),
            "f:6: `callback.stream`: expected an http:// or https:// address",
        );
    }

    #[test]
    fn keys_that_do_not_fit_together_are_found() {
        check(&(app(7) + &app(7)), "f:6: app 7 is there already in line 2: give each app its own id");
        check("[[app]]\nid = 1", "f:1: the app needs `server_secret`");
        check(
            &(app(1) + "publish_auth = \"token\""),
            "f:5: `publish_auth = \"token\"` needs `publish_key`, the key of the tokens",
        );
        check(
            &(app(1) + "[app.record.Huawei]\ndriver = \"cloud\""),
            "f:6: recording by the vendor's cloud is not in this version: use `driver = \"local\"`",
        );
        check(
            &(app(1) + "[[app.cdn.push]]\nhost = \"*.a\""),
            "f:5: the push entry needs `key`\nf:5: the push entry needs `vendor`",
        );
        check(
            &(app(1) + "[app.cdn]\nrelay_everything = true"),
            "f:6: `cdn.relay_everything` needs `cdn.default_target`",
        );
        check("[relay.retry]\nfirst = \"40s\"", "f:2: `relay.retry.first` is longer than `relay.retry.max`");
        check(
            "[rtmp]\nlisten = \"127.0.0.1:8080\"",
            "f:2: `rtmp.listen` and `http.listen` are both 127.0.0.1:8080: choose another port for one",
        );
        check(
            "[http]\ntls = { key = \"/none\" }",
            "f:2: `http.tls.certificate` is missing: TLS needs certificate and key\nf:2: `http.tls.key`: cannot read /none: No such file or directory (os error 2)",
        );
    }

    #[test]
    fn all_problems_come_at_once_and_none_holds_a_secret() {
        let text = "data = 1\n[[app]]\nid = 0\nserver_secret = \"SECRET\"\nplay_key = 7\n[app.callback]\nstate = \"SECRET\"\n[[app.cdn.push]]\nhost = \"a b\"\nvendor = \"SW\"\nkey = \"\"\n";
        let problems = read(text, &[], &[]).unwrap_err();
        let lines: Vec<_> = problems.0.iter().map(|it| it.place.clone()).collect();
        assert_eq!(lines, [1, 3, 4, 5, 7, 9, 10, 11].map(|line| Place::Line("f".into(), line)));
        assert!(!problems.to_string().contains("SECRET"), "{problems}");
        check(
            "data_dir = d\nb = 1",
            "f:1: string values must be quoted, expected literal string\nf:2: unknown key `b`; did you mean `app`?",
        );
    }

    #[test]
    fn variables_override_the_file_and_flags_override_both() {
        let text = "[http]\nlisten = \"127.0.0.1:1\"\n[rtmp]\nlisten = \"127.0.0.1:2\"\n".to_owned() + &app(7);
        let variables = [
            ("BYWASH_HTTP__LISTEN", "0.0.0.0:3"),
            ("BYWASH_RTMP__LISTEN", "127.0.0.1:4"),
            ("BYWASH_RELAY__RETRY__FIRST", "2s"),
            ("BYWASH_WEBRTC__PUBLIC_ADDRESSES", "203.0.113.7, 203.0.113.8"),
            ("BYWASH_APP__7__PUBLISH_KEY", "k"),
            ("BYWASH_APP__8__SERVER_SECRET", SECRET),
            ("BYWASH_LOG", "debug"),
            ("PATH", "/bin"),
        ];
        let got = read(&text, &variables, &[("rtmp.listen", "127.0.0.1:5")]).unwrap();
        assert_eq!(
            (got.http.listen.port(), got.rtmp.listen.port(), got.http.public_url.as_str()),
            (3, 5, "http://127.0.0.1:3")
        );
        assert_eq!((got.relay.retry.first.as_secs(), got.webrtc.public_addresses.len()), (2, 2));
        assert_eq!(
            (got.apps[0].publish_key.expose(), got.apps[1].id, got.apps[1].server_secret.expose()),
            ("k", 8, SECRET)
        );

        let check = |variable: &str, flag: &str, want: &str| {
            let problems = read("", &[(variable, "x")], &[(flag, "x")]).unwrap_err();
            assert_eq!(problems.to_string(), want);
        };
        check(
            "BYWASH_APP__7__PLAY_KEE",
            "app.7.cdn.default_targe",
            "BYWASH_APP__7__PLAY_KEE: unknown variable; did you mean BYWASH_APP__7__PLAY_KEY?\n\
             flag for app.7.cdn.default_targe: unknown key; did you mean `app.7.cdn.default_target`?",
        );
        check(
            "BYWASH_HTP__LISTEN",
            "data_dir",
            "BYWASH_HTP__LISTEN: unknown variable; did you mean BYWASH_HTTP__LISTEN?",
        );
        for name in ["BYWASH_PORT", "BYWASH_HTTP_PORT", "BYWASH_PORT_X_TCP", "BYWASH_SERVICE_HOSTS"] {
            assert!(read("", &[(name, "8080")], &[]).is_err(), "{name} is none of Kubernetes'");
        }
        check(
            "BYWASH_PUBLISH__GRACE",
            "gracee",
            "BYWASH_PUBLISH__GRACE: expected a duration such as \"500ms\", \"90s\", \"1h30m\" or \"30d\", found \"x\"\nflag for gracee: unknown key; did you mean `publish.grace`?",
        );
    }

    #[test]
    fn what_kubernetes_tells_of_a_service_of_our_name_is_no_setting() {
        let links = [
            ("BYWASH_SERVICE_HOST", "10.0.0.1"),
            ("BYWASH_SERVICE_PORT", "8080"),
            ("BYWASH_SERVICE_PORT_HTTP", "8080"),
            ("BYWASH_PORT", "tcp://10.0.0.1:8080"),
            ("BYWASH_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("BYWASH_PORT_8080_TCP_PROTO", "tcp"),
            ("BYWASH_PORT_8000_UDP_PORT", "8000"),
            ("BYWASH_RTMP_SERVICE_HOST", "10.0.0.2"),
            ("BYWASH_RTMP_PORT_1935_TCP_ADDR", "10.0.0.2"),
        ];
        assert_eq!(read("", &links, &[]).unwrap(), Config::default());
    }

    #[test]
    fn two_listeners_that_need_one_port_are_a_problem() {
        let check = |http: &str, rtmp: &str, collide: bool| {
            let found = read("", &[], &[("http.listen", http), ("rtmp.listen", rtmp)]);
            assert_eq!(found.is_err(), collide, "{http} {rtmp}: {found:?}");
        };
        check("127.0.0.1:80", "127.0.0.1:80", true);
        check("0.0.0.0:80", "127.0.0.1:80", true);
        check("127.0.0.1:80", "0.0.0.0:80", true);
        check("[::]:80", "127.0.0.1:80", true);
        check("[::]:80", "0.0.0.0:80", true);
        check("127.0.0.1:80", "127.0.0.2:80", false);
        check("0.0.0.0:80", "[::1]:80", false);
        check("0.0.0.0:80", "127.0.0.1:81", false);
        check("127.0.0.1:0", "127.0.0.1:0", false);
    }

    #[test]
    fn a_reload_applies_what_it_can_and_names_what_it_cannot() {
        let old = read(&app(7), &[], &[]).unwrap();
        let text = "[http]\nlisten = \"127.0.0.1:9\"\n[publish]\ngrace = \"9s\"\n".to_owned()
            + &app(7)
            + "play_key = \"p\"\n"
            + &app(8);
        let got = old.difference(read(&text, &[], &[]).unwrap());
        assert_eq!(got.restart, ["http.listen", "http.public_url"]);
        assert_eq!(got.changed, ["publish.grace", "app 7", "app 8"]);
        assert_eq!((&got.config.http, got.config.publish.grace.as_secs(), got.config.apps.len()), (&old.http, 9, 2));
        let same = old.difference(old.clone());
        assert!(same.changed.is_empty() && same.restart.is_empty() && same.config == old);
    }

    #[test]
    fn a_first_start_makes_an_app_and_later_ones_find_it() {
        let folder = std::env::temp_dir().join(format!("bywash-dev-{}", rand::random::<u64>()));
        let start = || {
            let mut config = Config { data_dir: folder.clone(), ..Config::default() };
            let dev = config.dev_app().unwrap().unwrap();
            (config, dev)
        };
        let ((first, made), (second, found)) = (start(), start());
        assert_eq!((made.created, found.created, made.id), (true, false, found.id));
        assert_eq!(first, second);
        assert!(first.relay.allow_private_targets && first.apps[0].server_secret.expose().len() == 32);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&made.file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first.apps[0].record["Tencent"], Record::default(), "its first StartCDNRecord works");
        assert!(second.clone().dev_app().unwrap().is_none());
        std::fs::remove_dir_all(folder).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_text_is_a_configuration_or_problems(text in "(\\PC|\n|\\[\\[app\\]\\]\n|\\[app.cdn\\]\n|id = |http.listen = |\"){0,20}", name in "BYWASH_[A-Z0-9_]{0,12}") {
            if let Err(problems) = read(&text, &[(&name, &text)], &[(&text, &name)]) {
                prop_assert!(!problems.0.is_empty());
            }
        }
    }
}
