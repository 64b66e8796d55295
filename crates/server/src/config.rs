//! The configuration: file < environment < flags, parsed once into finished values.

mod apps;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use apps::Apps;

use crate::secret::Secret;

/// The whole configuration. Only `main` and `app` see it as a whole.
#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
pub struct Http {
    pub listen: SocketAddr,
    pub public_url: String,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Rtmp {
    pub listen: SocketAddr,
    /// Connections at once, publishers and players together; one more is refused. Default 2000.
    pub max_connections: usize,
}

#[derive(Clone, Debug)]
pub struct Webrtc {
    pub listen: SocketAddr,
    pub public_addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct Store {
    pub url: String,
}

#[derive(Clone, Debug)]
pub struct Media {
    pub url: String,
}

#[derive(Clone, Debug)]
pub struct Relay {
    pub connect_timeout: Duration,
    pub retry: Retry,
    pub allow_private_targets: bool,
    pub ca_file: Option<PathBuf>,
    /// How long a target may acknowledge nothing while bytes wait before the session is dropped. Default 10 s.
    pub stall_timeout: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct Retry {
    pub first: Duration,
    pub max: Duration,
}

#[derive(Clone, Debug)]
pub struct Publish {
    pub grace: Duration,
    /// Bytes that one stream may hold for its slowest output. Default 16 MiB.
    pub buffer: usize,
}

#[derive(Clone, Debug)]
pub struct CallbackLimits {
    /// How long a receiver may take to answer. Default 5 s.
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
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

#[derive(Clone, Debug, Default)]
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

#[derive(Clone, Debug, Default)]
pub struct Cdn {
    pub default_target: Option<String>,
    pub relay_everything: bool,
    pub push: Vec<Push>,
}

/// Automatic push authentication for the targets of one host.
#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
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
