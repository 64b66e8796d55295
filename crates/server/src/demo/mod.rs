//! `bywash demo`: the main job on nothing but this program.
//!
//! A server on loopback, a built-in stream published to it or a page that publishes a browser's camera, a built-in
//! target, and two signed calls: one relays the stream there, one records it.
//!
//! Invariant: it succeeds only if pictures and sound arrived and are in the recorded file and, of the built-in stream, every frame
//! that was sent, from the one that relay and recording began with, unchanged.

mod recording;
mod source;
mod target;

use std::fs::DirBuilder;
use std::io::{IsTerminal, Write, stdout};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::source::{Clip, Sent};
use self::target::Report;
use crate::app::Server;
use crate::client;
use crate::clock::{unix_s, until};
use crate::config::{App, Config, Format};
use crate::token::{self, Privilege};

/// How long after the publisher's goodbye the last frames may take to arrive.
const LAST_FRAMES: Duration = Duration::from_secs(5);

/// Under whose name the demonstration records.
const VENDOR: &str = "Tencent";

/// The folder of recorded files in `data_dir`.
const MEDIA: &str = "media";

/// Runs the demonstration for `duration`, or until Ctrl-C or SIGTERM. With `whip` a browser publishes, else the built-in clip is.
pub async fn run(mut config: Config, duration: Option<Duration>, whip: bool) -> anyhow::Result<()> {
    // A port that is in use is no reason not to be shown how it works.
    for listen in [&mut config.http.listen, &mut config.rtmp.listen, &mut config.webrtc.listen] {
        if TcpListener::bind(*listen).await.is_err() || UdpSocket::bind(*listen).await.is_err() {
            listen.set_port(0);
        }
    }
    config.relay.allow_private_targets = true;
    let app = config.apps.first_mut().context("the configuration holds no app")?;
    // What the demonstration looks at in the end.
    app.record.entry(VENDOR.into()).or_default().formats = vec![Format::Mp4];
    let app = app.clone();
    let media = config.data_dir.join(MEDIA);
    let server = Server::start(config).await?;
    let base = format!("http://{}", server.http);
    let stream = format!("demo-{:08x}", rand::random::<u32>());

    let clip = if whip { None } else { Some(Arc::new(Clip::load()?)) };
    let report = Arc::<Mutex<Report>>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let target = format!("rtmp://{}/live/{stream}", listener.local_addr()?);
    let receiver = {
        let (clip, report) = (clip.clone(), report.clone());
        tokio::spawn(async move { target::serve(listener, clip.as_deref(), report).await })
    };

    // Where nobody reads on, nothing more is shown.
    let mut out = stdout();
    writeln!(out, "bywash {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "  API      {base}/?Action=…   metrics {base}/metrics")?;
    writeln!(out, "  console  {base}/console?app={}&stream={stream}", app.id)?;
    match whip {
        true => writeln!(out, "  publish  {}", page(&base, &app, &stream)),
        false => {
            writeln!(
                out,
                "  publish  rtmp://{}/{}/{stream}   a built-in clip: 640x360, H.264 + AAC",
                server.rtmp, app.id
            )
        }
    }?;
    writeln!(out, "  target   {target}   built in")?;
    let call = Call { base, app };
    let address = call.address("CreatCDNTransferRule", &[("StreamId", &stream), ("CDNUrl", &target)]);
    writeln!(out, "  call     {address}")?;
    let answer = call.send(&address).await?;
    writeln!(out, "  answer   {answer}")?;
    if answer["Code"] != 0 {
        bail!("the call was refused");
    }
    let address = call.address("StartCDNRecord", &[("StreamId[]", &stream), ("Vendor", VENDOR)]);
    writeln!(out, "  call     {address}")?;
    let answer = call.send(&address).await?;
    writeln!(out, "  answer   {answer}")?;
    if answer["Code"] != 0 {
        bail!("the call was refused");
    }

    let stop = CancellationToken::new();
    let kept = clip.clone();
    let publisher = clip.map(|clip| {
        let (stop, stream, rtmp, app) = (stop.clone(), stream.clone(), server.rtmp, call.app.id);
        tokio::spawn(async move { source::publish(&clip, rtmp, app, &stream, stop).await })
    });
    let (begin, mut terminate) = (Instant::now(), signal(SignalKind::terminate())?);
    tokio::select! {
        end = show(&call, &stream, &report, begin) => end?,
        () = until(duration.map(|it| begin + it)) => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    writeln!(out)?;
    stop.cancel();
    let delete = || call.address("DeleteCDNTransferRule", &[("StreamId", &stream), ("CDNUrl", &target)]);
    let sent = match publisher {
        Some(publisher) => Some(publisher.await??),
        // The browser goes on: here it is the relay that ends.
        None => {
            call.send(&delete()).await?;
            None
        }
    };
    let arrived = async {
        while !report.lock().expect("no holder panics").ended {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(LAST_FRAMES, arrived).await;
    receiver.abort();
    let _ = call.send(&delete()).await;
    let media = media.join(format!("{}/{stream}", call.app.id));
    server.stop().await;

    let report = report.lock().expect("no holder panics").clone();
    writeln!(
        out,
        "relayed  {} pictures and {} packets of sound in {:.1} s, {:.2} MB",
        report.video,
        report.audio,
        begin.elapsed().as_secs_f64(),
        report.bytes as f64 / 1e6
    )?;
    match report.verdict(sent) {
        Ok(()) if whip => writeln!(out, "arrived  pictures and sound")?,
        Ok(()) => writeln!(out, "whole    every frame arrived once, in order and unchanged")?,
        Err(faults) => bail!("what arrived at the target is not whole: {faults}"),
    }
    // A browser changes the size of its pictures as it likes, and with it begins a new file.
    let files = recording::files(&media);
    let mut found = Sent::default();
    for file in &files {
        let of = recording::check(file, kept.as_deref().zip(sent));
        let of = of.with_context(|| format!("the recorded file {} is not whole", file.display()))?;
        found = Sent { video: found.video + of.video, audio: found.audio + of.audio };
        writeln!(out, "file     {}", file.display())?;
    }
    if found.video == 0 || found.audio == 0 {
        bail!("{} pictures and {} packets of sound are in {} files", found.video, found.audio, files.len());
    }
    writeln!(out, "recorded {} pictures and {} packets of sound", found.video, found.audio)?;
    Ok(())
}

/// A folder for one demonstration, of which only the recorded files are there afterwards.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it, among the system's temporary ones; nobody else can read it.
    pub fn new() -> anyhow::Result<Scratch> {
        let path = std::env::temp_dir().join(format!("bywash-demo-{:08x}", rand::random::<u32>()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let media = self.0.join(MEDIA);
        let paths = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|it| it.path());
        for path in paths.filter(|it| *it != media) {
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
        // They stay unless they are empty.
        let _ = std::fs::remove_dir(media);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The address of the page that publishes `stream`, with a token of one day if there is a key to make it with.
fn page(base: &str, app: &App, stream: &str) -> String {
    let mut page = format!("{base}/console/publish?app={}&stream={stream}", app.id);
    if !app.publish_key.expose().is_empty() {
        let tomorrow = unix_s() + 86_400;
        let nonce = hex::encode(rand::random::<[u8; 8]>());
        let token = token::make(app.id, stream, tomorrow, &nonce, Privilege::Publish, &app.publish_key);
        page += &format!("&userId=demo&zgVer=v1&zgExpired={tomorrow}&zgNonce={nonce}&token={token}");
    }
    page
}

/// Prints how it goes, once a second, until it fails.
async fn show(call: &Call, stream: &str, report: &Mutex<Report>, begin: Instant) -> anyhow::Result<()> {
    let mut out = stdout();
    let terminal = out.is_terminal();
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // There is no stream before a browser has begun.
        let streams = call.ask("DescribeStreams", stream).await?;
        let input = streams["Data"]["Streams"][0]["Bitrate"].as_u64().unwrap_or(0);
        let rules = call.ask("DescribeCDNTransferRules", stream).await?;
        let state = match rules["Data"]["Rules"][0]["State"].as_i64() {
            Some(2) => "relaying",
            Some(1) => "requesting",
            _ => "no relay",
        };
        let (video, audio, bytes) = {
            let report = report.lock().expect("no holder panics");
            (report.video, report.audio, report.bytes)
        };
        let elapsed = begin.elapsed().as_secs();
        write!(
            out,
            "{}{:02}:{:02}  in {:>5} kbit/s  {state:<10}  out {:>5} kbit/s  at the target {video} pictures, {audio} packets of sound{}",
            if terminal { "\r\x1b[2K" } else { "" },
            elapsed / 60,
            elapsed % 60,
            input / 1000,
            (bytes - before) * 8 / 1000,
            if terminal { "" } else { "\n" },
        )?;
        out.flush()?;
        before = bytes;
    }
}

/// Calls the API as a customer's backend does.
struct Call {
    base: String,
    app: App,
}

impl Call {
    fn address(&self, action: &str, params: &[(&str, &str)]) -> String {
        let params = params.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let nonce = hex::encode(rand::random::<[u8; 8]>());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        format!("{}/?{}", self.base, client::query(&self.app, action, params, false, &nonce, now))
    }

    async fn send(&self, address: &str) -> anyhow::Result<Value> {
        let (base, query) = address.split_once("/?").context("a signed address")?;
        Ok(serde_json::from_str(&client::send(base, query).await?)?)
    }

    async fn ask(&self, action: &str, stream: &str) -> anyhow::Result<Value> {
        self.send(&self.address(action, &[("StreamId", stream)])).await
    }
}
