//! Relay: one stream to one CDN address, as long as the rule and the stream live.
//!
//! A relay is a loop of sessions. A session connects, signs afresh, publishes, follows the stream and ends with what to do
//! next ([`End`]). The relay owns every retry; others see its [`Status`].
//!
//! Invariant: the status says "relaying" only while the target's kernel acknowledges bytes of the stream.

mod connect;

use std::cmp::Reverse;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bywash_media::{Codec, Time, Tracks, transcode};
use bywash_rtmp::client::{self, Class, Client, Phase};
use percent_encoding::percent_decode_str;
use rand::Rng;
use tokio::sync::watch;
use tracing::{Span, info, warn};

use self::connect::Socket;
use crate::clock::unix_ms;
use crate::config;
use crate::hub;
use crate::lane::{Lane, Names};
use crate::live;
use crate::output::packer::Packer;
use crate::output::source::Source;
use crate::rendition::{Renditions, Sound};
use crate::secret::Secret;
use crate::store::{Reason, State, Status};
use crate::vendor::{self, Key, Target};
use crate::wire::{Turn, Wire};

pub use self::connect::tls;

/// How far a target may fall behind before it skips to a keyframe.
const MAX_LAG: Time = Time::from_millis(8_000);

/// How long a target may take to see us off.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a session has to carry media to count as taken: some servers say yes first and look at the signature then, and
/// some take nobody for long.
const SETTLED: Duration = Duration::from_secs(10);

/// A session that the target ends sooner than this after it took the stream may be a refusal.
const BRIEF: Duration = Duration::from_secs(2);

/// After so many of them in a row it is one.
const BRIEF_IN_A_ROW: u32 = 3;

/// How long after a lost session a target that still holds it may call our name taken.
const STALE_NAME: Duration = Duration::from_secs(60);

/// How long the first connect waits for pictures where there is sound.
const SOUND_ALONE: Duration = Duration::from_millis(500);

/// What must be known to relay; a reload replaces it for the sessions that follow.
pub struct Settings {
    /// Timeouts, retries and what targets are allowed.
    pub config: config::Relay,
    /// Roots and protocol versions for rtmps://.
    pub tls: Arc<rustls::ClientConfig>,
}

/// The rule as it is now.
#[derive(Clone)]
pub struct Wish {
    /// Where to.
    pub target: Target,
    /// The app's push authentication.
    pub push: Vec<config::Push>,
    /// Grows with each RetryCDNTransferRule.
    pub retry_asked: i64,
    /// The target takes Opus sound.
    pub takes_opus: bool,
    /// The target wants sound even where there is none.
    pub wants_sound: bool,
}

/// One relay, ready to run.
pub struct Relay {
    /// The stream's id, which is no secret where it is part of the target.
    pub id: String,
    /// What to relay.
    pub stream: hub::Stream,
    /// The rule, which may change. When its sender is gone, the rule is withdrawn.
    pub wish: watch::Receiver<Wish>,
    /// Where it runs.
    pub lane: Lane,
    /// What to read where the target needs other sound.
    pub renditions: Arc<Renditions>,
    /// How.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Counters.
    pub live: Arc<live::Relay>,
    /// The marks of the servers that the stream has come through, ours included.
    pub trace: String,
    /// Where each change of status goes. It must not block.
    pub note: Box<dyn Fn(Status) + Send>,
    /// What the log tells is told of this. It is named and never entered: entering costs at each poll.
    pub span: Span,
}

/// Why a session ended, which is also what to do next.
enum End {
    /// The stream is over, or the rule was withdrawn.
    Done,
    /// The stream needs enhanced RTMP by now, which this connection has not offered.
    Anew,
    /// The target may take us later: reset, timeout, busy.
    Retry(Reason, String),
    /// The target hung up or fell silent where some do so at a wrong signature: the other key may be taken, else it is as above.
    HungUp(Reason, String),
    /// The target said no, and will say no again: name taken, wrong signature, forbidden address.
    Refused(Reason, Class, String),
}

impl Relay {
    /// Runs until the stream ends or the rule is withdrawn.
    pub async fn run(mut self) {
        let mut attempts = Attempts::default();
        let mut status = Status::new(State::Requesting, Reason::None);
        self.note(&status);
        let link = loop {
            let end = match self.session(&mut attempts, &mut status).await {
                Ok(link) => break Some(link),
                Err(end) => end,
            };
            let retry = self.settings.load().config.retry;
            let (reason, error, wait) = match end {
                End::Done => break None,
                End::Anew => continue,
                End::Retry(reason, error) => (reason, error, attempts.wait(&retry)),
                End::HungUp(reason, error) if attempts.brief >= BRIEF_IN_A_ROW => {
                    let times = attempts.brief;
                    let error = format!(
                        "{error}, {times} times in a row at once after it took the stream: wrong signature or name?"
                    );
                    (reason, error, attempts.wait_refused(Class::Other, &retry))
                }
                End::HungUp(reason, error) => (reason, error, attempts.wait_hung_up(&retry)),
                End::Refused(reason, class, error) => (reason, error, attempts.wait_refused(class, &retry)),
            };
            if wait > Duration::ZERO {
                warn!(parent: &self.span, reason = %reason, error, retry_in_ms = wait.as_millis() as u64, "relay interrupted");
            }
            status.retries += 1;
            status.state = State::Requesting;
            status.reason = reason;
            status.last_error = error;
            status.next_retry_ms = unix_ms() + wait.as_millis() as i64;
            self.note(&status);
            if !self.wait(wait).await {
                break None;
            }
            status.next_retry_ms = 0;
        };
        info!(parent: &self.span, "relay ended");
        self.note(&Status { state: State::None, reason: Reason::ActivelyDisconnected, next_retry_ms: 0, ..status });
        if let Some(link) = link {
            link.goodbye().await;
        }
    }

    /// What we say of ourselves. Enhanced RTMP is mentioned only where the stream needs it: older servers may stumble over it.
    fn client(&self, enhanced: bool) -> client::Config {
        client::Config {
            agent: format!("FMLE/3.0 (compatible; bywash/{}; via={})", env!("CARGO_PKG_VERSION"), self.trace),
            fourcc: if enhanced { &["hvc1", "av01", "Opus"] } else { &[] },
            ..client::Config::default()
        }
    }

    /// Waits for the next try; false if there is to be none.
    async fn wait(&mut self, wait: Duration) -> bool {
        tokio::select! { biased;
            () = self.stream.ended() => false,
            // Asked to retry, or given another address: now.
            changed = self.wish.changed() => changed.is_ok(),
            () = tokio::time::sleep(wait) => true,
        }
    }

    fn note(&self, status: &Status) {
        let status = Status { state_ms: unix_ms(), ..status.clone() };
        *self.live.status.lock().expect("no holder panics") = status.clone();
        (self.note)(status);
    }

    /// A session from its connect on; gives the connection that is to be seen off once the stream is done.
    async fn session(&mut self, attempts: &mut Attempts, status: &mut Status) -> Result<Link, End> {
        // What is not taken at all, or for longer, is no refusal.
        let brief = std::mem::take(&mut attempts.brief);
        if status.retries == 0 {
            unless_over(&self.stream, &self.wish, codecs_known(&self.stream)).await?;
        }
        let settings = self.settings.load_full();
        let wish = self.wish.borrow_and_update().clone();
        let deadline = tokio::time::Instant::now() + settings.config.connect_timeout;
        let bit_rate = settings.config.audio_bitrate;
        let sound = Sound::Aac { bit_rate, takes_opus: wish.takes_opus, silence: wish.wants_sound };
        if !sound.fits(&self.stream.tracks())
            && let Err(error) = sound.check()
        {
            return Err(End::Retry(Reason::ServerError, error.to_string()));
        }

        attempts.enhanced |= is_enhanced(&self.stream.tracks(), sound);
        let client = self.client(attempts.enhanced);
        let opening = Link::open(&self.id, &wish, attempts, self.lane.names(), &settings, client, deadline);
        let mut link = unless_over(&self.stream, &self.wish, opening).await??;
        info!(parent: &self.span, "target accepts");
        let begin = Instant::now();
        let end = self.follow(&mut link, sound, &settings, attempts, status).await;
        if matches!(end, End::HungUp(..)) && begin.elapsed() < BRIEF {
            attempts.brief = brief + 1;
        }
        match end {
            End::Done => return Ok(link),
            End::Anew => {
                info!(parent: &self.span, "the stream needs enhanced RTMP now: connecting anew");
                if status.state == State::Relaying {
                    status.state = State::Requesting;
                    self.note(status);
                }
                attempts.lost_at = Some(Instant::now());
                link.goodbye().await;
            }
            End::Retry(..) | End::HungUp(..) if link.carries_since.is_some() => attempts.lost_at = Some(Instant::now()),
            End::Retry(..) | End::HungUp(..) | End::Refused(..) => {}
        }
        Err(end)
    }

    /// Passes the stream on until one of the two ends.
    async fn follow(
        &mut self,
        link: &mut Link,
        sound: Sound,
        settings: &Settings,
        attempts: &mut Attempts,
        status: &mut Status,
    ) -> End {
        let cannot = |error: transcode::Error| End::Retry(Reason::ServerError, error.to_string());
        let mut source = match Source::begin(&self.stream, sound, MAX_LAG, &self.renditions, &self.lane) {
            Ok(source) => source,
            Err(error) => return cannot(error),
        };
        let mut packer = Packer::to_server();
        let mut beats = self.lane.beats();
        let mut batch = Vec::new();
        let mut progress = Progress::new(link);
        loop {
            tokio::select! { biased;
                turn = link.wire.turn(|bytes| Ok(link.client.handle_input(Instant::now(), bytes)?)) => match turn {
                    Ok(Turn::Read) => {
                        link.wire.socket().listen(false);
                        if let Err(end) = link.events() { return end }
                    }
                    Ok(Turn::Flushed) => {
                        // Until the first acknowledgement, every write may bring the news.
                        if status.state != State::Relaying {
                            self.judge(&mut progress, link, attempts, status);
                        }
                    }
                    Ok(Turn::Closed) => return link.lost("the target closed the connection".into()),
                    Err(Trouble::Io(error)) => return link.lost(error.to_string()),
                    Err(Trouble::Protocol(error)) => return End::Retry(Reason::ServerError, error.to_string()),
                },
                more = source.ready(&mut batch), if link.wire.is_idle() => {
                    match more {
                        Ok(true) => {}
                        Ok(false) if self.stream.has_ended() => return End::Done,
                        Ok(false) => return End::Retry(Reason::ServerError, "the transcoder ended".into()),
                        Err(error) => return cannot(error),
                    }
                    progress.begin(link);
                    for event in batch.drain(..) {
                        if let hub::Event::Lagged { frames } = event {
                            self.live.frames_dropped.fetch_add(frames, Ordering::Relaxed);
                            warn!(parent: &self.span, frames, "target too slow: skipped to a keyframe");
                        }
                        if let hub::Event::Tracks(tracks) = &event
                            && !attempts.enhanced
                            && is_enhanced(tracks, sound)
                        {
                            attempts.enhanced = true;
                            return End::Anew;
                        }
                        let out = link.wire.out();
                        packer.pack(&event, |kind, timestamp, head, payload| {
                            link.client.send(kind, timestamp, head, payload, out);
                        });
                    }
                }
                () = &mut beats => {
                    if let Err(end) = self.look(&mut progress, link, settings, attempts, status) {
                        return end;
                    }
                    // Sound that cannot be decoded is not relayed; nobody else would know why.
                    let trouble = source.trouble().map_or_else(String::new, |error| error.to_string());
                    if status.state == State::Relaying && status.last_error != trouble {
                        status.last_error = trouble;
                        self.note(status);
                    }
                }
            }
        }
    }

    /// Once a second: does the target still take what it is sent, and do we still want it to?
    fn look(
        &mut self,
        progress: &mut Progress,
        link: &mut Link,
        settings: &Settings,
        attempts: &mut Attempts,
        status: &mut Status,
    ) -> Result<(), End> {
        match self.wish.has_changed() {
            Err(_) => return Err(End::Done),
            // New parameters of the address hold from the next connection.
            Ok(_) => self.wish.mark_unchanged(),
        }
        link.wire.socket().listen(true);
        self.judge(progress, link, attempts, status);
        self.live.bytes.measure(Instant::now());
        let quiet = progress.quiet_for();
        if quiet >= settings.config.stall_timeout {
            let error = format!("the target acknowledged nothing for {} s", quiet.as_secs());
            return Err(End::Retry(Reason::CdnServerDisconnected, error));
        }
        if quiet >= settings.config.stall_timeout / 2 && status.state == State::Relaying {
            status.state = State::Requesting;
            status.reason = Reason::ServerError;
            status.last_error = "the target acknowledges nothing".into();
            warn!(parent: &self.span, "target stalls");
            self.note(status);
        }
        let alive = link.client.handle_timeout(Instant::now());
        alive.map_err(|error| End::Retry(Reason::CdnServerDisconnected, error.to_string()))?;
        link.outputs();
        Ok(())
    }

    /// Compares what the target has acknowledged with what it had; tells where that changes the state.
    fn judge(&self, progress: &mut Progress, link: &mut Link, attempts: &mut Attempts, status: &mut Status) {
        let acknowledged = progress.update(link);
        self.live.bytes.add(acknowledged);
        if acknowledged > 0 {
            link.carries_since.get_or_insert_with(Instant::now);
            if link.has_settled() {
                attempts.settled();
            }
        }
        if acknowledged > 0 && status.state != State::Relaying {
            *status = Status { retries: status.retries, ..Status::new(State::Relaying, Reason::None) };
            info!(parent: &self.span, "relaying");
            self.note(status);
        }
    }
}

/// What comes of `work`, unless the stream ends or the rule is withdrawn before.
async fn unless_over<T>(
    stream: &hub::Stream,
    wish: &watch::Receiver<Wish>,
    work: impl Future<Output = T>,
) -> Result<T, End> {
    let mut withdrawn = wish.clone();
    tokio::select! { biased;
        _ = withdrawn.wait_for(|_| false) => Err(End::Done),
        () = stream.ended() => Err(End::Done),
        done = work => Ok(done),
    }
}

/// Comes once the stream has pictures, or sound that stays alone. What a stream is made of says whether enhanced RTMP is offered; and a
/// publisher who has said no more than that he comes would open an empty publish at each target.
async fn codecs_known(stream: &hub::Stream) {
    stream.tracks_are(|tracks| tracks.video.is_some() || tracks.audio.is_some()).await;
    let pictures = stream.tracks_are(|tracks| tracks.video.is_some());
    let _ = tokio::time::timeout(SOUND_ALONE, pictures).await;
}

/// Whether a target has to know enhanced RTMP for what it gets of these tracks.
fn is_enhanced(tracks: &Tracks, sound: Sound) -> bool {
    let mut codecs = [&tracks.video, &tracks.audio].into_iter().flatten().map(|track| track.codec);
    codecs.any(|codec| match codec {
        Codec::H265 | Codec::Av1 => true,
        Codec::Opus => sound.takes(Codec::Opus),
        Codec::H264 | Codec::Aac | Codec::Mp3 => false,
    })
}

/// A connection on which we publish.
struct Link {
    wire: Wire<Socket>,
    client: Client,
    /// The rule's address, and the stream as it was signed: a target may repeat their secrets.
    secrets: [Secret; 2],
    /// The key at the end of the address, if there is one, and what is shown of it.
    key: Option<(String, String)>,
    /// When the target first acknowledged some of the stream.
    carries_since: Option<Instant>,
}

/// Why a connection cannot go on.
enum Trouble {
    Io(std::io::Error),
    Protocol(bywash_rtmp::Error),
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        Trouble::Io(error)
    }
}

impl From<bywash_rtmp::Error> for Trouble {
    fn from(error: bywash_rtmp::Error) -> Trouble {
        Trouble::Protocol(error)
    }
}

impl Link {
    /// Connects and publishes; returns once the target has said that it takes the stream.
    async fn open(
        id: &str,
        wish: &Wish,
        attempts: &mut Attempts,
        names: &Arc<Names>,
        settings: &Settings,
        config: client::Config,
        deadline: tokio::time::Instant,
    ) -> Result<Link, End> {
        let url = vendor::sign(&wish.target, &wish.push, attempts.key, unix_ms() / 1000);
        attempts.has_backup = url.has_backup();
        let late = |_| End::Retry(Reason::HandshakeFailed, "the target did not answer in time".into());
        let connecting = connect::connect(&wish.target, names, settings, deadline);
        let socket = tokio::time::timeout_at(deadline, connecting).await.map_err(late)??;
        let config = client::Config {
            app: url.app().to_owned(),
            stream: url.stream_with_query().expose().to_owned(),
            tc_url: url.tc_url(),
            ..config
        };
        let secrets = [wish.target.url().clone(), url.stream_with_query().clone()];
        let client = Client::new(config, Instant::now(), rand::random());
        // What is shorter than any key may well be part of other words.
        let key = wish.target.short_key(id).map(|short| (wish.target.stream().to_owned(), short));
        let key = key.filter(|(key, _)| key.len() >= 8);
        let mut link = Link { wire: Wire::new(socket), client, secrets, key, carries_since: None };
        link.outputs();
        let published = tokio::time::timeout_at(deadline, link.publish()).await;
        published.unwrap_or_else(|_| Err(unanswered(link.client.phase(), "the target did not answer in time")))?;
        Ok(link)
    }

    async fn publish(&mut self) -> Result<(), End> {
        while self.client.phase() != Phase::Publishing {
            let phase = self.client.phase();
            let turn = self.wire.turn(|bytes| Ok(self.client.handle_input(Instant::now(), bytes)?)).await;
            match turn {
                Ok(Turn::Read) => self.events()?,
                Ok(Turn::Flushed) => {}
                Ok(Turn::Closed) => return Err(unanswered(phase, "the target closed the connection")),
                Err(Trouble::Io(error)) => return Err(unanswered(phase, error)),
                Err(Trouble::Protocol(error)) => return Err(unanswered(phase, error)),
            }
        }
        Ok(())
    }

    /// Takes what the engine made of the input.
    fn events(&mut self) -> Result<(), End> {
        self.outputs();
        while let Some(event) = self.client.poll_event() {
            match event {
                client::Event::Publishing => {}
                client::Event::Rejected { code, description, class } => {
                    let phase = self.client.phase();
                    let error = mask(&said(&code, &description), &self.secrets, self.key.as_ref());
                    let reason = match (class, phase) {
                        (_, Phase::Publishing) if class == Class::Other || self.has_settled() => {
                            return Err(self.lost(error));
                        }
                        (Class::BadName, _) | (_, Phase::Publish | Phase::Publishing) => Reason::BadName,
                        (Class::App, _) | (_, Phase::Handshake | Phase::Connect) => Reason::AccessPointError,
                        (_, Phase::CreateStream) => Reason::CreateStreamFailed,
                    };
                    return Err(End::Refused(reason, class, error));
                }
            }
        }
        Ok(())
    }

    /// The connection is gone while it took the stream.
    fn lost(&self, error: String) -> End {
        match self.has_settled() {
            true => End::Retry(Reason::CdnServerDisconnected, error),
            false => End::HungUp(Reason::CdnServerDisconnected, error),
        }
    }

    fn has_settled(&self) -> bool {
        self.carries_since.is_some_and(|since| since.elapsed() >= SETTLED)
    }

    fn outputs(&mut self) {
        while let Some(bytes) = self.client.poll_output() {
            self.wire.out().push_back(bytes);
        }
    }

    /// Ends the session as the target expects it. A socket that is closed with answers unread resets the connection, and the
    /// target loses the last frames: so its answers are read until it closes too.
    async fn goodbye(mut self) {
        self.wire.socket().listen(true);
        self.client.finish();
        self.outputs();
        let farewell = async {
            self.wire.shut_down().await?;
            while self.wire.turn(|_| Ok::<_, std::io::Error>(())).await? != Turn::Closed {}
            Ok::<_, std::io::Error>(())
        };
        let _ = tokio::time::timeout(GOODBYE, farewell).await;
    }
}

/// The end of a connection before the target took the stream.
fn unanswered(phase: Phase, error: impl Display) -> End {
    let error = format!("{error} {}", saying(phase));
    match phase {
        Phase::Publish => End::HungUp(reason_of(phase), error),
        _ => End::Retry(reason_of(phase), error),
    }
}

/// What a target was doing when it failed us.
fn saying(phase: Phase) -> &'static str {
    match phase {
        Phase::Handshake => "during the handshake",
        Phase::Connect => "instead of an answer to connect",
        Phase::CreateStream => "instead of an answer to createStream",
        Phase::Publish => "instead of an answer to publish: wrong signature or name?",
        Phase::Publishing => "while it took the stream",
    }
}

/// A refusal's code and words; some servers give neither.
fn said(code: &str, description: &str) -> String {
    match [code, description].map(str::trim) {
        ["", ""] => "refused without a word".to_owned(),
        ["", it] | [it, ""] => it.to_owned(),
        [code, description] => format!("{code}: {description}"),
    }
}

fn reason_of(phase: Phase) -> Reason {
    match phase {
        Phase::Handshake => Reason::HandshakeFailed,
        Phase::Connect => Reason::AccessPointError,
        Phase::CreateStream | Phase::Publish => Reason::CreateStreamFailed,
        Phase::Publishing => Reason::CdnServerDisconnected,
    }
}

/// The beginning of what a target says, on one line. Targets like to repeat the address that they refuse, its query or a part of
/// that, the key at its end, or to say what they would have had in its place.
fn mask(text: &str, addresses: &[Secret], key: Option<&(String, String)>) -> String {
    let queries = addresses.iter().filter_map(|it| it.expose().split_once('?'));
    let pairs: Vec<_> = queries
        .flat_map(|(_, query)| query.split('&'))
        .map(|pair| pair.split_once('=').unwrap_or(("", pair)))
        .collect();
    let mut values = Vec::new();
    for (_, value) in &pairs {
        // Aliyun's digest is a part of its value.
        for part in [*value].into_iter().chain(value.split('-').filter(|part| part.len() >= 16)) {
            let plain = percent_decode_str(part).decode_utf8_lossy();
            values.extend([plain.to_string(), part.to_owned(), part.to_ascii_lowercase(), part.to_ascii_uppercase()]);
        }
    }
    // Shorter ones are words and numbers.
    values.retain(|value| value.len() >= 4);
    values.sort_by_key(|value| Reverse(value.len()));

    let mut text: String = text.chars().take(4096).collect();
    if let Some((key, short)) = key {
        text = text.replace(key, short);
    }
    for value in &values {
        text = text.replace(value, "***");
    }
    for (name, _) in pairs.iter().filter(|(name, _)| !name.is_empty()) {
        text = without_value(&text, &format!("{name}="));
    }
    // Whatever else is in a query.
    let words = text.split_whitespace().map(|word| match word.split_once('?') {
        Some((path, query)) if !query.is_empty() => format!("{path}?***"),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// `text` without what follows each `name`, which ends with `=`.
fn without_value(text: &str, name: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(name) {
        let end = after.find(|c: char| c.is_whitespace() || r#"&,;)]}>"'"#.contains(c)).unwrap_or(after.len());
        out.extend([before, name, "***"]);
        rest = &after[end..];
    }
    out + rest
}

/// What the target has acknowledged, and when it last did.
struct Progress {
    acknowledged: u64,
    /// Where the stream begins: what was sent before, such as answers to pings, is none of it.
    begins: Option<u64>,
    at: Instant,
    waits: bool,
}

impl Progress {
    fn new(link: &Link) -> Progress {
        let acknowledged = link.wire.socket().acknowledged();
        Progress { acknowledged, begins: None, at: Instant::now(), waits: false }
    }

    /// What is sent from now on is of the stream, if it is not so already. Nothing may wait in `link`.
    fn begin(&mut self, link: &Link) {
        self.begins.get_or_insert_with(|| link.wire.socket().acknowledged() + link.wire.socket().waiting());
    }

    /// Bytes acknowledged since the last time, from the beginning of the stream on.
    fn update(&mut self, link: &Link) -> u64 {
        let acknowledged = link.wire.socket().acknowledged();
        self.waits = !link.wire.is_idle() || link.wire.socket().waiting() > 0;
        if acknowledged > self.acknowledged || !self.waits {
            self.at = Instant::now();
        }
        let begins = self.begins.unwrap_or(u64::MAX).max(self.acknowledged);
        self.acknowledged = acknowledged;
        acknowledged.saturating_sub(begins)
    }

    /// How long bytes have waited without any being acknowledged.
    fn quiet_for(&self) -> Duration {
        if self.waits { self.at.elapsed() } else { Duration::ZERO }
    }
}

/// What is remembered from one session to the next.
#[derive(Default)]
struct Attempts {
    /// Since when the target has taken no stream for as long as [`SETTLED`].
    down_since: Option<Instant>,
    /// When a session was lost that had carried media.
    lost_at: Option<Instant>,
    key: Key,
    has_backup: bool,
    backup_tried: bool,
    /// Sessions in a row that the target took and ended within [`BRIEF`].
    brief: u32,
    /// The target is told of enhanced RTMP, once the stream has needed it.
    enhanced: bool,
}

impl Attempts {
    fn settled(&mut self) {
        self.down_since = None;
        self.backup_tried = false;
    }

    /// A sixteenth of the outage so far: exponential, and an outage of 20 s is noticed to be over within 2 s.
    fn wait(&mut self, retry: &config::Retry) -> Duration {
        let outage = self.down_since.get_or_insert_with(Instant::now).elapsed();
        jitter((outage / 16).clamp(retry.first, retry.max.max(retry.first)))
    }

    /// What may be a refusal is tried once more with the other key, then as any outage is.
    fn wait_hung_up(&mut self, retry: &config::Retry) -> Duration {
        if self.take_other_key() { Duration::ZERO } else { self.wait(retry) }
    }

    /// A refusal is tried once more with the other key, then only now and then.
    fn wait_refused(&mut self, class: Class, retry: &config::Retry) -> Duration {
        // The target has not noticed yet that our last session is over.
        let stale = self.lost_at.is_some_and(|at| at.elapsed() < STALE_NAME);
        if class == Class::BadName && stale {
            return self.wait(retry);
        }
        if self.take_other_key() { Duration::ZERO } else { jitter(retry.max) }
    }

    /// Changes keys; false where there is no other, or where it has been tried just now.
    fn take_other_key(&mut self) -> bool {
        self.backup_tried = self.has_backup && !self.backup_tried;
        if self.backup_tried {
            self.key = match self.key {
                Key::Main => Key::Backup,
                Key::Backup => Key::Main,
            };
        }
        self.backup_tried
    }
}

/// Between four and six fifths, so that a thousand relays do not come back in one second.
fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: config::Retry = config::Retry { first: Duration::from_secs(1), max: Duration::from_secs(30) };

    fn down_for(seconds: u64) -> Attempts {
        let down_since = Instant::now().checked_sub(Duration::from_secs(seconds));
        Attempts { down_since, ..Attempts::default() }
    }

    #[test]
    fn the_wait_grows_with_the_outage_and_an_outage_of_20_s_is_over_within_2_s() {
        for (outage, least, most) in
            [(0, 0.8, 1.2), (10, 0.8, 1.2), (20, 1.0, 1.6), (160, 8.0, 12.1), (3600, 24.0, 36.0)]
        {
            for _ in 0..100 {
                let wait = down_for(outage).wait(&RETRY).as_secs_f64();
                assert!((least..=most).contains(&wait), "after {outage} s: {wait} s");
            }
        }
    }

    #[test]
    fn only_a_session_that_settled_ends_an_outage() {
        let mut attempts = down_for(160);
        assert!(attempts.wait(&RETRY) >= Duration::from_secs(8));
        attempts.settled();
        assert!(attempts.wait(&RETRY) <= Duration::from_millis(1200));
    }

    #[test]
    fn a_refusal_is_tried_once_with_the_other_key_and_then_slowly() {
        let mut attempts = Attempts { has_backup: true, ..Attempts::default() };
        assert_eq!(attempts.wait_refused(Class::Auth, &RETRY), Duration::ZERO);
        assert_eq!(attempts.key, Key::Backup);
        assert!(attempts.wait_refused(Class::Auth, &RETRY) >= Duration::from_secs(24));
        // The next round begins with the key that was refused last: either may be the one that is put right.
        assert_eq!(attempts.wait_refused(Class::Auth, &RETRY), Duration::ZERO);
        assert_eq!(attempts.key, Key::Main);

        let mut attempts = Attempts::default();
        assert!(attempts.wait_refused(Class::BadName, &RETRY) >= Duration::from_secs(24));
    }

    #[test]
    fn a_hang_up_is_tried_once_with_the_other_key_and_then_as_an_outage() {
        let mut attempts = Attempts { has_backup: true, ..Attempts::default() };
        for key in [Key::Backup, Key::Main, Key::Backup] {
            assert_eq!((attempts.wait_hung_up(&RETRY), attempts.key), (Duration::ZERO, key));
            let wait = attempts.wait_hung_up(&RETRY).as_secs_f64();
            assert!((0.8..1.2).contains(&wait) && attempts.key == key, "{wait} s with the {:?} key", attempts.key);
        }
        assert!(Attempts::default().wait_hung_up(&RETRY) > Duration::ZERO);
    }

    #[test]
    fn a_name_that_our_own_last_session_still_holds_is_tried_again_soon() {
        let mut attempts = Attempts { lost_at: Some(Instant::now()), ..Attempts::default() };
        assert!(attempts.wait_refused(Class::BadName, &RETRY) <= Duration::from_millis(1200));
        assert!(attempts.wait_refused(Class::Auth, &RETRY) >= Duration::from_secs(24));
    }

    #[test]
    fn a_refusal_has_words_whatever_the_target_leaves_out() {
        for (code, description, want) in [
            ("NetStream.Publish.BadName", "in use", "NetStream.Publish.BadName: in use"),
            ("NetStream.Publish.BadName", "", "NetStream.Publish.BadName"),
            ("", "closed by the server", "closed by the server"),
            ("", " ", "refused without a word"),
        ] {
            assert_eq!(said(code, description), want);
        }
    }

    #[test]
    fn a_targets_words_are_cut_and_lose_their_secrets() {
        let addresses = ["rtmp://h/a/s?key=k1&pass=a%2Fbc", "s?key=k1&auth_key=66-0-0-c0ffee00c0ffee00&txTime=66"];
        let addresses = addresses.map(Secret::new);
        for (said, want) in [
            ("no such stream, is there?", "no such stream, is there?"),
            ("s?key=k1 refused", "s?*** refused"),
            ("rtmp://h/a/s?wsSecret=abc&x=1 denied", "rtmp://h/a/s?*** denied"),
            ("bad key=k1", "bad key=***"),
            ("at 66: invalid 66-0-0-c0ffee00c0ffee00", "at 66: invalid ***"),
            ("c0ffee00c0ffee00 or C0FFEE00C0FFEE00", "*** or ***"),
            ("Denied (auth_key=deadbeef, txTime=66) now", "Denied (auth_key=***, txTime=***) now"),
            ("a%2Fbc is a/bc,\nthat is a%2fbc", "*** is ***, that is ***"),
        ] {
            assert_eq!(mask(said, &addresses, None), want);
        }
        assert_eq!(mask("of no query", &[Secret::new("rtmp://h/a/s")], None), "of no query");
        assert_eq!(mask(&"x".repeat(5000), &addresses, None).len(), 200);
        let key = ("ab12-cd34-ef56-gh78".to_owned(), "ab12…e56ad842".to_owned());
        assert_eq!(mask("ab12-cd34-ef56-gh78: bad name", &[], Some(&key)), "ab12…e56ad842: bad name");
    }
}
