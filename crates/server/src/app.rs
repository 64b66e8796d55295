//! Builds the parts of the server and joins them, in order; takes them apart in the reverse order.
//!
//! Invariant: nothing below this module knows the configuration as a whole.

use std::fs::{File, TryLockError};
use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use bywash_media::transcode;
use futures_util::future::select_all;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use crate::api::{self, Gateway, Wake};
use crate::config::{Apps, Config, Problems};
use crate::hub::Hub;
use crate::ingest;
use crate::lane::Lanes;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::object::{Objects, Urls};
use crate::output::relay;
use crate::plan::{self, Plan};
use crate::rendition::Renditions;
use crate::segment::Folder;
use crate::space::{Room, Space};
use crate::store::Store;
use crate::webrtc::Port;
use crate::{console, http, job, playback, signalling};

/// How long callbacks that became due at the very end may still be sent. What is not sent is sent after the next start.
const LAST_CALLBACKS: Duration = Duration::from_secs(1);

/// Signals that follow each other so closely are one: `timeout` signals its child, and then the group that the child is in.
const ONE_SIGNAL: Duration = Duration::from_millis(500);

/// Runs the server until SIGTERM or SIGINT. `reread` gives the configuration as it is written now, for SIGHUP.
pub async fn run(config: Config, mut reread: impl FnMut() -> Result<Config, Problems>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;

    let encoders: Vec<_> = transcode::encoders().iter().map(|it| it.name()).collect();
    info!(encoders = encoders.join(", "), "sound");
    let mut server = Server::start(config).await?;
    let scheme = if server.config.http.tls.is_some() { "https" } else { "http" };
    let Server { http, rtmp, webrtc, .. } = &server;
    // A server runs as well where nobody reads this.
    let _ = writeln!(stdout(), "{scheme} on {http}\nrtmp on {rtmp}\nwebrtc on {webrtc}\nready");
    let broken = loop {
        tokio::select! {
            _ = hang_up.recv() => match reread() {
                Ok(config) => server.reload(config).await,
                Err(problems) => error!(%problems, "the configuration has problems: nothing was reloaded"),
            },
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            part = server.broken() => break Some(part),
        }
    };
    if let Some(part) = broken {
        error!(part, "a part of the server has panicked: it ends, to be started again");
    }
    info!("stopping; a second signal stops at once");
    let first = Instant::now();
    let again = async {
        while first.elapsed() < ONE_SIGNAL {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
    };
    tokio::select! {
        () = server.stop() => {}
        () = again => anyhow::bail!("stopped at once"),
    }
    match broken {
        Some(part) => anyhow::bail!("{part} panicked, which is a bug: the log has where"),
        None => Ok(()),
    }
}

/// A server that runs.
pub struct Server {
    /// Where it really listens.
    pub http: SocketAddr,
    /// Likewise.
    pub rtmp: SocketAddr,
    /// Likewise, over UDP and TCP.
    pub webrtc: SocketAddr,
    config: Config,
    apps: Arc<Apps>,
    relay: Arc<ArcSwap<relay::Settings>>,
    grace: Arc<ArcSwap<Duration>>,
    settings: Arc<ArcSwap<api::Settings>>,
    plan: Plan,
    store: Store,
    draining: Arc<AtomicBool>,
    /// Stops all that takes from outside, also where the server is dropped without an orderly end.
    stop: DropGuard,
    callbacks_stop: CancellationToken,
    /// The tasks that there is one of, by their names.
    parts: Vec<(&'static str, JoinHandle<()>)>,
    /// Cancelled when a media thread ends.
    media_ended: CancellationToken,
    /// Of `data_dir`.
    _lock: File,
}

impl Server {
    /// Starts all parts; once this returns, calls and publishers are taken.
    pub async fn start(config: Config) -> anyhow::Result<Server> {
        // A port that is taken or a file that is missing ends the start before anything has been touched.
        let bind = async |listen: SocketAddr, key: &str| {
            let hint = || format!("cannot listen on {listen} (set {key} to another address, or stop who has it)");
            TcpListener::bind(listen).await.with_context(hint)
        };
        let http_listener = bind(config.http.listen, "http.listen").await?;
        let rtmp_listener = bind(config.rtmp.listen, "rtmp.listen").await?;
        let (http, rtmp) = (http_listener.local_addr()?, rtmp_listener.local_addr()?);
        let relay = Arc::new(ArcSwap::from_pointee(relay_settings(&config)?));
        config.create_data_dir()?;
        let lock = lock(&config.data_dir)?;
        let objects = Objects::new(&config.media, &config.data_dir)?;
        let port = Port::bind(&config.webrtc, &config.data_dir).await?;

        // What runs is built from the inside out: rows and counters, the hub, then who uses them.
        let store = Store::open(&config.store, &config.data_dir).await.context("open the database")?;
        let apps = Arc::new(Apps::new(config.apps.clone()));
        let live = Arc::<Live>::default();
        let metrics = Metrics::new(live.clone(), port.counters());
        let hub = Arc::new(Hub::new(live.clone(), config.publish.buffer));
        let lanes = Arc::new(Lanes::start(std::thread::available_parallelism().map_or(1, usize::from))?);
        let grace = Arc::new(ArcSwap::from_pointee(config.publish.grace));
        let urls = Urls { public_url: config.http.public_url.clone(), ttl: config.record.url_ttl };
        let folder = Folder::new(objects.folder().into(), Some(config.record.sync).filter(|it| !it.is_zero()));

        let renditions = Arc::<Renditions>::default();

        // Plan's first pass comes before the listeners are served: publishers find the rows in order.
        let (plan, keeper) = Plan::start(plan::Parts {
            store: store.clone(),
            hub: hub.clone(),
            live: live.clone(),
            apps: apps.clone(),
            renditions: renditions.clone(),
            relay: relay.clone(),
            grace: grace.clone(),
            public_url: config.http.public_url.clone(),
            rtmp_base: config.rtmp_base(rtmp),
            record: plan::RecordSettings {
                folder: folder.clone(),
                space: Space::new(objects.folder().into(), config.record.low_water as u64),
                urls: urls.clone(),
                bucket: objects.bucket().is_some(),
                segment: config.record.segment,
                bit_rate: config.record.audio_bitrate,
            },
        })
        .await
        .context("read what ran before")?;
        let mut parts = vec![("plan", tokio::spawn(keeper))];

        let callbacks_stop = CancellationToken::new();
        let callbacks = job::callback::run(
            store.clone(),
            config.callback.clone(),
            metrics.callbacks.clone(),
            callbacks_stop.clone(),
        );
        parts.push(("callbacks", tokio::spawn(callbacks)));

        let stop = CancellationToken::new();
        let uploads = job::upload::Uploads {
            store: store.clone(),
            objects: objects.clone(),
            apps: apps.clone(),
            urls: urls.clone(),
        };
        let merges = job::merge::Merges {
            store: store.clone(),
            objects: objects.clone(),
            apps: apps.clone(),
            urls: urls.clone(),
            folder: folder.clone(),
            room: Room::new(config.record.low_water as u64),
            max: config.jobs.max,
        };
        parts.extend([
            ("merges", tokio::spawn(job::merge::run(merges, stop.clone()))),
            ("uploads", tokio::spawn(job::upload::run(uploads, stop.clone()))),
            ("deletions", tokio::spawn(job::retention::run(store.clone(), objects.clone(), stop.clone()))),
        ]);
        let doors = ingest::rtmp::Doors {
            apps: apps.clone(),
            hub: hub.clone(),
            plan: plan.clone(),
            lanes: lanes.clone(),
            renditions: renditions.clone(),
            relay: relay.clone(),
            port: port.clone(),
            metrics: metrics.clone(),
            max_connections: config.rtmp.max_connections,
        };
        parts.push(("rtmp", tokio::spawn(ingest::rtmp::serve(rtmp_listener, Arc::new(doors), stop.clone()))));

        let webrtc = port.address();
        // Where sessions live, as long as there is room: what is read there wakes no other thread.
        let serving = lanes.pick().spawn({
            let (port, stop, lanes) = (port.clone(), stop.clone(), lanes.clone());
            async move {
                port.serve(stop).await;
                drop(lanes);
            }
        });
        parts.push(("webrtc", serving));
        let media_ended = lanes.ended();
        let doors = Arc::new(signalling::Doors {
            apps: apps.clone(),
            hub,
            plan: plan.clone(),
            lanes,
            renditions,
            port,
            config: config.webrtc.clone(),
        });

        let settings = Arc::new(ArcSwap::from_pointee(api_settings(&config, urls.clone(), rtmp)));
        let wake = plan.clone();
        let wake = Arc::new(move |Wake::Stream(key)| wake.wake(key));
        let gateway =
            Gateway::new(apps.clone(), store.clone(), live, wake, settings.clone(), metrics.api_calls.clone());
        let draining = Arc::<AtomicBool>::default();
        let media = playback::Doors { apps: apps.clone(), store: store.clone(), objects, urls };
        let router = Arc::new(gateway)
            .router()
            .merge(playback::router(Arc::new(media)))
            .merge(signalling::router(&doors))
            .merge(console::router())
            .merge(watch_routes(metrics, store.clone(), draining.clone()));
        let serving = http::serve(http_listener, config.http.tls.clone(), router, stop.clone());
        let serving = async move {
            // The configuration's check has read the certificate; it can have changed only since.
            serving.await.unwrap_or_else(|error| panic!("http ended: {error:#}"));
        };
        parts.push(("http", tokio::spawn(serving)));
        Ok(Server {
            http,
            rtmp,
            webrtc,
            config,
            apps,
            relay,
            grace,
            settings,
            plan,
            store,
            draining,
            stop: stop.drop_guard(),
            callbacks_stop,
            parts,
            media_ended,
            _lock: lock,
        })
    }

    /// Takes what can be taken of a new configuration without cutting a stream, and says what could not.
    pub async fn reload(&mut self, config: Config) {
        let reload = self.config.difference(config);
        for key in &reload.restart {
            warn!(key, "changed, but holds only after a restart");
        }
        match relay_settings(&reload.config) {
            Ok(settings) => self.relay.store(Arc::new(settings)),
            Err(error) => error!(error = format!("{error:#}"), "relay settings stay as they were"),
        }
        self.grace.store(Arc::new(reload.config.publish.grace));
        // Addresses of media change with a restart, for all who give them at once.
        let urls = self.settings.load().urls.clone();
        self.settings.store(Arc::new(api_settings(&reload.config, urls, self.rtmp)));
        self.apps.replace(reload.config.apps.clone());
        self.config = reload.config;
        self.plan.reload().await;
        info!(changed = reload.changed.join(", "), "configuration reloaded");
    }

    /// Waits until a part that the others need has panicked, and names it. What then still runs would go on without it, and
    /// nobody would see why.
    pub async fn broken(&mut self) -> &'static str {
        loop {
            let ended = select_all(self.parts.iter_mut().map(|(_, task)| task));
            let (ended, part, _) = tokio::select! {
                ended = ended => ended,
                () = self.media_ended.cancelled() => return "a media thread",
            };
            let (name, _) = self.parts.swap_remove(part);
            // One that has nothing more to do is none to miss.
            if ended.is_err() {
                return name;
            }
        }
    }

    /// Ends every stream in order, writes what is owed, and stops; within `shutdown_timeout`.
    pub async fn stop(self) {
        self.draining.store(true, Ordering::Relaxed);
        let limit = self.config.shutdown_timeout;
        let end = tokio::time::Instant::now() + limit;
        let rest = (2 * LAST_CALLBACKS).min(limit / 2);
        if tokio::time::timeout_at(end - rest, self.plan.drain()).await.is_err() {
            warn!("not all relays ended in time");
        }
        tokio::time::sleep(rest / 2).await;
        drop(self.stop);
        self.callbacks_stop.cancel();
        let rest = async {
            for (_, task) in self.parts {
                let _ = task.await;
            }
        };
        if tokio::time::timeout_at(end - limit / 10, rest).await.is_err() {
            warn!("not all connections ended in time");
        }
        // What is committed is safe without it.
        let _ = tokio::time::timeout_at(end, self.store.close()).await;
        info!("stopped");
    }
}

/// Takes `data_dir` for this process alone: another would finish, as after a crash, the files that this one still writes. The kernel
/// gives it back however the process ends (flock(2)).
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("lock");
    let failed = || format!("lock {}", path.display());
    let file = File::options().create(true).append(true).open(&path).with_context(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "another bywash uses the folder {}: stop it, or set data_dir (--data-dir) to a folder of its own",
            data_dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(failed),
    }
}

fn relay_settings(config: &Config) -> anyhow::Result<relay::Settings> {
    let tls = relay::tls(config.relay.ca_file.as_deref())?;
    Ok(relay::Settings { config: config.relay.clone(), tls })
}

fn api_settings(config: &Config, urls: Urls, rtmp: SocketAddr) -> api::Settings {
    api::Settings {
        urls,
        rtmp_listen: rtmp,
        allow_private_targets: config.relay.allow_private_targets,
        own_addresses: vec![rtmp],
    }
}

/// `/metrics`, `/health` and `/ready`.
fn watch_routes(metrics: Arc<Metrics>, store: Store, draining: Arc<AtomicBool>) -> Router {
    let page = move || async move {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], metrics.page())
    };
    let ready = move || async move {
        let mut reasons = Vec::new();
        if draining.load(Ordering::Relaxed) {
            reasons.push("the server is shutting down".to_owned());
        }
        match tokio::time::timeout(Duration::from_secs(1), store.read()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => reasons.push(format!("the database cannot be read: {error}")),
            Err(_) => reasons.push("the database does not answer".to_owned()),
        }
        reasons.extend(store.trouble());
        let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons });
        (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    };
    Router::new()
        .route("/metrics", get(page))
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(ready))
        .fallback(async || (StatusCode::NOT_FOUND, "nothing here: the API is at /?Action=…\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_named_and_one_that_is_done_is_not() {
        let data_dir = std::env::temp_dir().join(format!("bywash-app-{}", rand::random::<u64>()));
        let mut config = Config { data_dir: data_dir.clone(), ..Config::default() };
        for listen in [&mut config.http.listen, &mut config.rtmp.listen, &mut config.webrtc.listen] {
            listen.set_port(0);
        }
        let mut server = Server::start(config).await.unwrap();
        server.parts.push(("done", tokio::spawn(async {})));
        let quiet = tokio::time::timeout(Duration::from_millis(200), server.broken()).await;
        assert!(quiet.is_err(), "{quiet:?} broke");
        server.parts.push(("bug", tokio::spawn(async { panic!("as meant") })));
        assert_eq!(server.broken().await, "bug");
        server.stop().await;
        std::fs::remove_dir_all(data_dir).unwrap();
    }
}
