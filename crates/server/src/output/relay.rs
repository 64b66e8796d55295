//! Relay: one stream to one CDN address, as long as the rule and the stream live.
//!
//! A relay is a loop of sessions. A session connects, signs afresh, publishes, follows the stream and ends with what to do
//! next ([`End`]). The relay owns every retry; others see its [`Status`].
//!
//! Invariant: the status says "relaying" only while the target's kernel acknowledges bytes.

mod connect;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bywash_media::{Codec, Time, transcode};
use bywash_rtmp::client::{self, Class, Client, Phase};
use rand::Rng;
use tokio::sync::watch;
use tracing::{Span, info, warn};

use self::connect::Socket;
use crate::clock::unix_ms;
use crate::config;
use crate::hub;
use crate::lane::Lane;
use crate::live;
use crate::output::packer::Packer;
use crate::output::source::Source;
use crate::rendition::{Renditions, Sound};
use crate::store::{Reason, State, Status};
use crate::vendor::{self, Key, Target};
use crate::wire::{Turn, Wire};

pub use self::connect::tls;

/// How far a target may fall behind before it skips to a keyframe.
const MAX_LAG: Time = Time::from_millis(8_000);

/// How long a target may take to see us off.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long after a lost session a target that still holds it may call our name taken.
const STALE_NAME: Duration = Duration::from_secs(60);

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
    /// The target may take us later: reset, timeout, busy.
    Retry(Reason, String),
    /// The target said no, and will say no again: name taken, wrong signature, forbidden address.
    Refused(Reason, Class, String),
}

impl Relay {
    /// Runs until the stream ends or the rule is withdrawn.
    pub async fn run(mut self) {
        let mut attempts = Attempts::default();
        let mut status = Status::new(State::Requesting, Reason::None);
        self.note(&status);
        loop {
            let end = self.session(&mut attempts, &mut status).await;
            let (reason, error, wait) = match end {
                End::Done => break,
                End::Retry(reason, error) => (reason, error, attempts.wait(&self.settings.load().config.retry)),
                End::Refused(reason, class, error) => {
                    let wait = attempts.wait_refused(class, &self.settings.load().config.retry);
                    (reason, error, wait)
                }
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
                break;
            }
            status.next_retry_ms = 0;
        }
        info!(parent: &self.span, "relay ended");
        self.note(&Status { state: State::None, reason: Reason::ActivelyDisconnected, next_retry_ms: 0, ..status });
    }

    /// What we say of ourselves. Enhanced RTMP is mentioned only where the stream needs it: older servers may stumble over it.
    fn client(&self, sound: Sound) -> client::Config {
        let tracks = self.stream.tracks();
        let codecs = [&tracks.video, &tracks.audio].map(|track| track.as_ref().map(|track| track.codec));
        let enhanced = codecs.iter().flatten().any(|codec| match codec {
            Codec::H265 | Codec::Av1 => true,
            Codec::Opus => sound.takes(Codec::Opus),
            Codec::H264 | Codec::Aac | Codec::Mp3 => false,
        });
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
        self.live.state.store(status.state as u64, Ordering::Relaxed);
        self.live.retries.store(status.retries as u64, Ordering::Relaxed);
        (self.note)(Status { state_ms: unix_ms(), ..status.clone() });
    }

    async fn session(&mut self, attempts: &mut Attempts, status: &mut Status) -> End {
        let settings = self.settings.load_full();
        let wish = self.wish.borrow_and_update().clone();
        let deadline = tokio::time::Instant::now() + settings.config.connect_timeout;
        let bit_rate = settings.config.audio_bitrate;
        let sound = Sound::Aac { bit_rate, takes_opus: wish.takes_opus, silence: wish.wants_sound };
        if !sound.fits(&self.stream.tracks())
            && let Err(error) = sound.check()
        {
            return End::Retry(Reason::ServerError, error.to_string());
        }

        let mut withdrawn = self.wish.clone();
        let mut link = tokio::select! { biased;
            _ = withdrawn.wait_for(|_| false) => return End::Done,
            () = self.stream.ended() => return End::Done,
            link = Link::open(&self.id, &wish, attempts, &settings, self.client(sound), deadline) => match link {
                Ok(link) => link,
                Err(end) => return end,
            },
        };
        info!(parent: &self.span, "target accepts");
        let end = self.follow(&mut link, sound, &settings, attempts, status).await;
        if matches!(end, End::Done) {
            link.goodbye().await;
        }
        end
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
                    Ok(Turn::Closed) => return End::Retry(Reason::CdnServerDisconnected, "the target closed the connection".into()),
                    Err(Trouble::Io(error)) => return End::Retry(Reason::CdnServerDisconnected, error.to_string()),
                    Err(Trouble::Protocol(error)) => return End::Retry(Reason::ServerError, error.to_string()),
                },
                more = source.ready(&mut batch), if link.wire.is_idle() => {
                    match more {
                        Ok(true) => {}
                        Ok(false) if self.stream.has_ended() => return End::Done,
                        Ok(false) => return End::Retry(Reason::ServerError, "the transcoder ended".into()),
                        Err(error) => return cannot(error),
                    }
                    for event in batch.drain(..) {
                        if let hub::Event::Lagged { frames } = event {
                            self.live.frames_dropped.fetch_add(frames, Ordering::Relaxed);
                            warn!(parent: &self.span, frames, "target too slow: skipped to a keyframe");
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
    fn judge(&self, progress: &mut Progress, link: &Link, attempts: &mut Attempts, status: &mut Status) {
        let acknowledged = progress.update(link);
        self.live.bytes.add(acknowledged);
        if acknowledged > 0 && status.state != State::Relaying {
            attempts.succeeded();
            *status = Status { retries: status.retries, ..Status::new(State::Relaying, Reason::None) };
            info!(parent: &self.span, "relaying");
            self.note(status);
        }
    }
}

/// A connection on which we publish.
struct Link {
    wire: Wire<Socket>,
    client: Client,
    /// Whose secrets the target may repeat.
    target: Target,
    /// The stream's id.
    id: String,
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
        settings: &Settings,
        config: client::Config,
        deadline: tokio::time::Instant,
    ) -> Result<Link, End> {
        let url = vendor::sign(&wish.target, &wish.push, attempts.key, unix_ms() / 1000);
        attempts.has_backup = url.has_backup();
        let late = |_| End::Retry(Reason::HandshakeFailed, "the target did not answer in time".into());
        let socket =
            tokio::time::timeout_at(deadline, connect::connect(&wish.target, settings)).await.map_err(late)??;
        let config = client::Config {
            app: url.app().to_owned(),
            stream: url.stream_with_query().expose().to_owned(),
            tc_url: url.tc_url(),
            ..config
        };
        let client = Client::new(config, Instant::now(), rand::random());
        let mut link = Link { wire: Wire::new(socket), client, target: wish.target.clone(), id: id.to_owned() };
        link.outputs();
        tokio::time::timeout_at(deadline, link.publish()).await.unwrap_or_else(|_| {
            Err(End::Retry(
                reason_of(link.client.phase()),
                format!("the target did not answer in time {}", saying(link.client.phase())),
            ))
        })?;
        Ok(link)
    }

    async fn publish(&mut self) -> Result<(), End> {
        while self.client.phase() != Phase::Publishing {
            let phase = self.client.phase();
            let turn = self.wire.turn(|bytes| Ok(self.client.handle_input(Instant::now(), bytes)?)).await;
            match turn {
                Ok(Turn::Read) => self.events()?,
                Ok(Turn::Flushed) => {}
                Ok(Turn::Closed) => {
                    return Err(End::Retry(
                        reason_of(phase),
                        format!("the target closed the connection {}", saying(phase)),
                    ));
                }
                Err(Trouble::Io(error)) => {
                    return Err(End::Retry(reason_of(phase), format!("{error} {}", saying(phase))));
                }
                Err(Trouble::Protocol(error)) => {
                    return Err(End::Retry(reason_of(phase), format!("{error} {}", saying(phase))));
                }
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
                    let error = mask(&format!("{code}: {description}"), &self.target, &self.id);
                    let reason = match (class, phase) {
                        (_, Phase::Publishing) => return Err(End::Retry(Reason::CdnServerDisconnected, error)),
                        (Class::BadName, _) | (_, Phase::Publish) => Reason::BadName,
                        (Class::App, _) | (_, Phase::Handshake | Phase::Connect) => Reason::AccessPointError,
                        (_, Phase::CreateStream) => Reason::CreateStreamFailed,
                    };
                    return Err(End::Refused(reason, class, error));
                }
            }
        }
        Ok(())
    }

    fn outputs(&mut self) {
        while let Some(bytes) = self.client.poll_output() {
            self.wire.out().push_back(bytes);
        }
    }

    /// Ends the session as the target expects it. A socket that is closed with answers unread resets the connection, and the
    /// target loses the last frames: so its answers are read until it closes too.
    async fn goodbye(&mut self) {
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

fn reason_of(phase: Phase) -> Reason {
    match phase {
        Phase::Handshake => Reason::HandshakeFailed,
        Phase::Connect => Reason::AccessPointError,
        Phase::CreateStream | Phase::Publish => Reason::CreateStreamFailed,
        Phase::Publishing => Reason::CdnServerDisconnected,
    }
}

/// Targets like to repeat the address that they refuse, with its signature and the key at its end.
fn mask(text: &str, target: &Target, id: &str) -> String {
    let mut text = text.to_owned();
    // What is shorter than any key may well be part of other words.
    if let Some(short) = target.short_key(id).filter(|_| target.stream().len() >= 8) {
        text = text.replace(target.stream(), &short);
    }
    if let Some((_, query)) = target.url().expose().split_once('?').filter(|(_, query)| !query.is_empty()) {
        text = text.replace(query, "***");
    }
    let cut: String = text.chars().take(200).collect();
    // What the vendor's signature added is not in the rule's address: hide every query.
    cut.split_whitespace()
        .map(|word| word.split_once('?').map_or_else(|| word.to_owned(), |(path, _)| format!("{path}?***")))
        .collect::<Vec<_>>()
        .join(" ")
}

/// What the target has acknowledged, and when it last did.
struct Progress {
    acknowledged: u64,
    at: Instant,
    waits: bool,
}

impl Progress {
    fn new(link: &Link) -> Progress {
        Progress { acknowledged: link.wire.socket().acknowledged(), at: Instant::now(), waits: false }
    }

    /// Bytes acknowledged since the last time.
    fn update(&mut self, link: &Link) -> u64 {
        let acknowledged = link.wire.socket().acknowledged();
        let new = acknowledged.saturating_sub(self.acknowledged);
        self.acknowledged = acknowledged;
        self.waits = !link.wire.is_idle() || link.wire.socket().waiting() > 0;
        if new > 0 || !self.waits {
            self.at = Instant::now();
        }
        new
    }

    /// How long bytes have waited without any being acknowledged.
    fn quiet_for(&self) -> Duration {
        if self.waits { self.at.elapsed() } else { Duration::ZERO }
    }
}

/// What is remembered from one session to the next.
struct Attempts {
    /// Since when the target has been unreachable.
    down_since: Option<Instant>,
    /// When a session last carried media.
    carried_at: Option<Instant>,
    key: Key,
    has_backup: bool,
    backup_tried: bool,
}

impl Default for Attempts {
    fn default() -> Attempts {
        Attempts { down_since: None, carried_at: None, key: Key::Main, has_backup: false, backup_tried: false }
    }
}

impl Attempts {
    fn succeeded(&mut self) {
        self.down_since = None;
        self.backup_tried = false;
        self.carried_at = Some(Instant::now());
    }

    /// A sixteenth of the outage so far: exponential, and an outage of 20 s is noticed to be over within 2 s.
    fn wait(&mut self, retry: &config::Retry) -> Duration {
        let outage = self.down_since.get_or_insert_with(Instant::now).elapsed();
        jitter((outage / 16).clamp(retry.first, retry.max.max(retry.first)))
    }

    /// A refusal is tried once more with the other key, then only now and then.
    fn wait_refused(&mut self, class: Class, retry: &config::Retry) -> Duration {
        // The target has not noticed yet that our last session is over.
        let stale = self.carried_at.is_some_and(|at| at.elapsed() < STALE_NAME);
        if class == Class::BadName && stale {
            return self.wait(retry);
        }
        if self.has_backup && !self.backup_tried {
            self.backup_tried = true;
            self.key = match self.key {
                Key::Main => Key::Backup,
                Key::Backup => Key::Main,
            };
            return Duration::ZERO;
        }
        self.backup_tried = false;
        jitter(retry.max)
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
    fn a_name_that_our_own_last_session_still_holds_is_tried_again_soon() {
        let mut attempts = Attempts::default();
        attempts.succeeded();
        assert!(attempts.wait_refused(Class::BadName, &RETRY) <= Duration::from_millis(1200));
        assert!(attempts.wait_refused(Class::Auth, &RETRY) >= Duration::from_secs(24));
    }

    #[test]
    fn a_targets_words_are_cut_and_lose_their_queries_and_keys() {
        let check = |url: &str, said: &str, want: &str| {
            assert_eq!(mask(said, &Target::parse(url).unwrap(), "show"), want);
        };
        let url = "rtmp://h/a/show?key=k1";
        check(url, "no such stream", "no such stream");
        check(url, "show?key=k1 refused", "show?*** refused");
        check(url, "rtmp://h/a/show?txSecret=abc&txTime=1 denied", "rtmp://h/a/show?*** denied");
        check(url, "bad key=k1", "bad ***");
        check(url, &"x".repeat(5000), &"x".repeat(200));
        let url = "rtmp://h/live2/ab12-cd34-ef56-gh78";
        check(url, "ab12-cd34-ef56-gh78: bad name", "ab12…e56ad842: bad name");
        check("rtmp://h/live2/pass", "no pass", "no pass");
    }
}
