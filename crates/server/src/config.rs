//! The configuration: file < environment < flags, parsed once into finished values.
//!
//! Invariant: [`keys`] is the only list of keys; the reader, the reload and docs/configuration.md go by it.

mod apps;
mod check;
mod dev;
mod keys;
mod kind;
mod page;
mod read;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use apps::Apps;
pub use dev::{DevApp, load as load_dev_app};
pub use page::page;
pub use read::{Place, Problem, Problems};

use keys::Scope;
use kind::Kind;
use read::Source;

use crate::secret::Secret;

/// The whole configuration. Only `main` and `app` see it as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub shutdown_timeout: Duration,
    pub http: Http,
    pub rtmp: Rtmp,
    pub webrtc: Webrtc,
    pub store: Store,
    pub media: Media,
    pub relay: Relay,
    pub publish: Publish,
    pub callback: CallbackLimits,
    pub apps: Vec<App>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    pub listen: SocketAddr,
    pub public_url: String,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rtmp {
    pub listen: SocketAddr,
    /// Connections at once, publishers and players together; one more is refused. Default 2000.
    pub max_connections: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Webrtc {
    pub listen: SocketAddr,
    pub public_addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    pub url: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Media {
    pub url: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Relay {
    pub connect_timeout: Duration,
    pub retry: Retry,
    pub allow_private_targets: bool,
    pub ca_file: Option<PathBuf>,
    /// How long a target may acknowledge nothing while bytes wait before the session is dropped. Default 10 s.
    pub stall_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    pub first: Duration,
    pub max: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    pub grace: Duration,
    /// Bytes that one stream may hold for its slowest output. Default 16 MiB.
    pub buffer: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CallbackLimits {
    /// How long a receiver may take to answer. Default 5 s.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub id: u32,
    pub server_secret: Secret,
    pub callback_secret: Secret,
    pub environment: Environment,
    pub publish_auth: PublishAuth,
    pub publish_key: Secret,
    pub play_key: Secret,
    pub callback: Callback,
    pub cdn: Cdn,
    /// By vendor name: Tencent, Ws, Huawei, Aliyun.
    pub record: BTreeMap<String, Record>,
    /// ClearCDNTransferRule clears the waiting rules of the whole app, not of the stream alone. Default false.
    pub clear_whole_app: bool,
    /// How long DescribeRTCStreamState answers 41006 with both times for a closed stream. Absent: 41004 at once.
    pub stream_history: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    Production,
    Test,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishAuth {
    None,
    Token,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Callback {
    pub stream: Option<String>,
    pub record: Option<String>,
    pub compose: Option<String>,
    pub state: Option<String>,
    pub format: CallbackFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallbackFormat {
    #[default]
    Json,
    Form,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cdn {
    pub default_target: Option<String>,
    pub relay_everything: bool,
    pub push: Vec<Push>,
}

/// Automatic push authentication for the targets of one host.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// Exact, or `*.example.com`.
    pub host: String,
    pub vendor: Vendor,
    pub key: Secret,
    pub backup_key: Option<Secret>,
    pub ttl: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vendor {
    Tencent,
    Ws,
    Huawei,
    Aliyun,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub driver: Driver,
    pub formats: Vec<Format>,
    pub interval: Duration,
    pub keep: Option<Duration>,
    pub record_everything: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Local,
    Cloud,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    M3u8,
    Flv,
    Mp4,
    Aac,
    Mp3,
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
            Err(why) => return Err(Problems(vec![Problem { place: Place::Whole(file.into()), text: format!("cannot be read: {why}") }])),
        };
        read::read(Source { file, text: &text, environment: environment.into_iter().collect(), flags })
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
            webrtc: Webrtc { listen: listen(8000), public_addresses: Vec::new() },
            store: Store { url: "sqlite".into() },
            media: Media { url: "file".into() },
            relay: Relay {
                connect_timeout: Duration::from_secs(5),
                retry: Retry { first: Duration::from_secs(1), max: Duration::from_secs(30) },
                allow_private_targets: false,
                ca_file: None,
                stall_timeout: Duration::from_secs(10),
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
            stream_history: None,
        }
    }
}

/// Not an entry yet: host and key are missing.
impl Default for Push {
    fn default() -> Push {
        Push { host: String::new(), vendor: Vendor::Tencent, key: Secret::default(), backup_key: None, ttl: Duration::from_secs(86_400) }
    }
}

impl Default for Record {
    fn default() -> Record {
        Record { driver: Driver::Local, formats: vec![Format::Mp4, Format::M3u8], interval: Duration::from_secs(7200), keep: None, record_everything: false }
    }
}
