//! RTMP in: a connection publishes a stream, or plays one.
//!
//! The connection's engine knows the protocol; this loop moves its bytes and asks plan for the stream's place. Sound does
//! not even wake us while pictures flow: the kernel keeps it until the next picture comes in (SO_RCVLOWAT).
//!
//! Invariant: the publisher is told "start" only once its place in the hub is taken.

mod play;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bywash_media::mux::flv::{self, Item};
use bywash_media::timeline::Order;
use bywash_media::{Codec, Frame, Kind, StreamKey, Tracks};
use bywash_rtmp::message::{self, Message};
use bywash_rtmp::server::{self, Event, Request, Server};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, info, info_span, warn};

use super::claim;
use crate::address::canonical;
use crate::clock::{unix_s, until};
use crate::config::{App, Apps};
use crate::hub::Hub;
use crate::lane::{Lane, Lanes};
use crate::metrics::Metrics;
use crate::output::relay;
use crate::plan::{Arrival, Hold, Leave, Plan};
use crate::rendition::Renditions;
use crate::sys;
use crate::token::{self, Purpose};
use crate::webrtc::Port;
use crate::wire::{Turn, Wire};

/// More than a few audio packets, less than a picture worth waiting for.
const LOW_WATER: u32 = 2048;

/// How long a publisher may send nothing before stream_create is sent without knowing its codec.
const UNKNOWN_CODEC: Duration = Duration::from_secs(2);

/// How long a peer may take to be told why it is refused.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a connection needs.
pub struct Doors {
    /// The apps.
    pub apps: Arc<Apps>,
    /// The streams.
    pub hub: Arc<Hub>,
    /// Whom to ask for a place.
    pub plan: Plan,
    /// The threads.
    pub lanes: Arc<Lanes>,
    /// What players read where they need other sound.
    pub renditions: Arc<Renditions>,
    /// How sound is encoded for them: as for relays, with which they share it.
    pub relay: Arc<ArcSwap<relay::Settings>>,
    /// WebRTC's sessions: one of them may have the place that a publisher wants.
    pub port: Arc<Port>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Connections at once.
    pub max_connections: usize,
}

/// Accepts connections until `stop` is cancelled; then waits for those that are open.
pub async fn serve(listener: TcpListener, doors: Arc<Doors>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! { biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok((tcp, peer)) => (tcp, canonical(peer)),
            Err(error) => {
                // Out of file descriptors, most likely: those that are open will free some.
                warn!(%error, "cannot accept an rtmp connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if connections.len() >= doors.max_connections {
            warn!(%peer, limit = doors.max_connections, "rtmp.max_connections reached: connection refused");
            doors.metrics.rtmp_refused.inc();
            continue;
        }
        let Ok(tcp) = tcp.into_std() else { continue };
        let lane = doors.lanes.pick().clone();
        let (doors, stop) = (doors.clone(), stop.clone());
        let handle = lane.handle().clone();
        let task = async move {
            // The socket belongs to the lane's own reactor.
            let Ok(tcp) = TcpStream::from_std(tcp) else { return };
            let mut connection = Connection::new(tcp, peer, lane, doors);
            if let Err(error) = connection.run(stop).await {
                info!(parent: &connection.span, error = format!("{error:#}"), "connection ended");
            }
        };
        connections.spawn_on(task, &handle);
    }
    while connections.join_next().await.is_some() {}
}

struct Connection {
    wire: Wire<TcpStream>,
    engine: Server,
    peer: SocketAddr,
    lane: Lane,
    doors: Arc<Doors>,
    /// What the log tells is told of this. It is named and never entered: entering costs at each poll.
    span: Span,
}

impl Connection {
    fn new(tcp: TcpStream, peer: SocketAddr, lane: Lane, doors: Arc<Doors>) -> Connection {
        let _ = tcp.set_nodelay(true);
        let config = server::Config { idle: Duration::from_secs(15), ..server::Config::default() };
        let engine = Server::new(config, Instant::now(), rand::random());
        Connection { wire: Wire::new(tcp), engine, peer, lane, doors, span: info_span!("rtmp", %peer) }
    }

    async fn run(&mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let event = tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                event = self.event() => event?,
            };
            match event {
                None => return Ok(()),
                Some(Event::Publish(request)) => {
                    self.span = info_span!("publish", stream = %label(&request), peer = %self.peer);
                    if !self.publish(request).await? {
                        return Ok(());
                    }
                }
                Some(Event::Play(request)) => {
                    self.span = info_span!("play", stream = %label(&request), peer = %self.peer);
                    if !self.play(request, &stop).await? {
                        return Ok(());
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// The engine's next event while nothing is published or played; `None` once the peer is gone.
    async fn event(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            self.outputs();
            if let Some(event) = self.engine.poll_event() {
                return Ok(Some(event));
            }
            let timeout = self.engine.poll_timeout();
            let turn = self.wire.turn(|bytes| Ok::<_, anyhow::Error>(self.engine.handle_input(Instant::now(), bytes)?));
            tokio::select! {
                turn = turn => if turn? == Turn::Closed { return Ok(None) },
                () = until(timeout) => self.engine.handle_timeout(Instant::now())?,
            }
        }
    }

    fn outputs(&mut self) {
        while let Some(bytes) = self.engine.poll_output() {
            self.wire.out().push_back(bytes);
        }
    }

    /// Tells the peer why not, and lets it read that.
    async fn refuse(&mut self, code: &str, why: &str) {
        warn!(parent: &self.span, code, why, "refused");
        self.doors.metrics.rtmp_refused.inc();
        self.engine.reject(Instant::now(), code, why);
        self.outputs();
        let _ = tokio::time::timeout(GOODBYE, self.wire.flush()).await;
    }

    /// Carries a publish from its request to its end; false if the connection is of no more use.
    async fn publish(&mut self, request: Request) -> anyhow::Result<bool> {
        let (key, user) = match self.admit(&request, Purpose::Publish) {
            Ok(admitted) => admitted,
            Err((code, why)) => {
                self.refuse(code, &why).await;
                return Ok(false);
            }
        };
        let arrival = Arrival {
            key,
            protocol: "RTMP",
            address: self.peer,
            user,
            trace: trace(&request.agent),
            lane: self.lane.clone(),
        };
        let hold = match claim(&self.doors.plan, &self.doors.port, arrival).await {
            Ok(hold) => hold,
            Err(refusal) => {
                self.refuse("NetStream.Publish.BadName", &refusal.to_string()).await;
                return Ok(false);
            }
        };
        self.engine.accept();
        let mut ingest = Ingest {
            hold,
            reader: flv::Reader::default(),
            items: Vec::new(),
            tracks: Tracks::default(),
            order: Order::default(),
            began: false,
            since: Instant::now(),
            seen: false,
            flowing: false,
            low_water: 1,
            span: self.span.clone(),
        };
        let end = self.take_in(&mut ingest).await;
        let how = match &end {
            Ok(how) => *how,
            Err(error) if error.downcast_ref() == Some(&bywash_rtmp::Error::Idle) => Leave::Silent,
            Err(_) => Leave::Lost,
        };
        ingest.hold.leave(how);
        let _ = sys::set_receive_low_water(self.wire.socket().as_fd(), 1);
        Ok(end? == Leave::Finished)
    }

    /// Feeds the publisher's frames to the hub until it ends.
    async fn take_in(&mut self, ingest: &mut Ingest) -> anyhow::Result<Leave> {
        let mut beats = self.lane.beats();
        let mut mark = 1;
        let cut = ingest.hold.cut.clone();
        let mut cut = std::pin::pin!(cut.cancelled());
        loop {
            while let Some(event) = self.engine.poll_event() {
                match event {
                    Event::Message(message) => {
                        if let Err(error) = ingest.message(message) {
                            self.dismiss("NetStream.Publish.Failed", &error.to_string()).await;
                            return Err(error.into());
                        }
                    }
                    Event::Unpublish => return Ok(Leave::Finished),
                    _ => {}
                }
            }
            if !ingest.flowing && ingest.hold.publisher.holds() {
                ingest.hold.publisher.flush();
            }
            self.outputs();
            if ingest.low_water != mark
                && sys::set_receive_low_water(self.wire.socket().as_fd(), ingest.low_water).is_ok()
            {
                mark = ingest.low_water;
            }
            let turn = self.wire.turn(|bytes| Ok::<_, anyhow::Error>(self.engine.handle_input(Instant::now(), bytes)?));
            tokio::select! { biased;
                turn = turn => if turn? == Turn::Closed { return Ok(Leave::Lost) },
                () = &mut beats => {
                    ingest.beat();
                    self.engine.handle_timeout(Instant::now())?;
                }
                () = &mut cut => {
                    self.dismiss("NetStream.Publish.Denied", "ended by the server").await;
                    return Ok(Leave::Lost);
                }
            }
        }
    }

    /// Tells a publisher that its publish is over, and lets it read that.
    async fn dismiss(&mut self, code: &str, why: &str) {
        self.engine.end_publish(Instant::now(), code, why);
        self.outputs();
        let _ = tokio::time::timeout(GOODBYE, self.wire.flush()).await;
    }

    /// Whose stream this is, and whether the peer may have it; else a code and a reason for the peer.
    fn admit(&self, request: &Request, purpose: Purpose) -> Result<(StreamKey, String), (&'static str, String)> {
        let (denied, bad_name) = match purpose {
            Purpose::Publish => ("NetStream.Publish.Denied", "NetStream.Publish.BadName"),
            Purpose::Play => ("NetStream.Play.Failed", "NetStream.Play.StreamNotFound"),
        };
        let app: Option<Arc<App>> = request.app.parse().ok().and_then(|id| self.doors.apps.get(id));
        let app = app.ok_or((denied, "unknown app: the address is rtmp://HOST/<AppId>/<StreamId>".to_owned()))?;
        // FFmpeg says `mp4:` before names that end in .mp4, as Flash wanted it; no stream id has a colon.
        let name = request.name.strip_prefix("mp4:").unwrap_or(&request.name);
        let key = StreamKey::published(app.id, name);
        let key = key.ok_or_else(|| (bad_name, format!("invalid stream id: {}", StreamKey::RULE)))?;
        if !app.environment.has(key.environment()) {
            return Err((denied, format!("the app has no {:?} environment", key.environment()).to_lowercase()));
        }
        match token::verify(&app, key.id(), &token::Params::parse(&request.query), purpose, unix_s()) {
            Ok(user) => Ok((key, user.id)),
            Err(why) => Err((denied, why.to_string())),
        }
    }
}

/// A publish under way.
struct Ingest {
    hold: Hold,
    reader: flv::Reader,
    items: Vec<Item>,
    tracks: Tracks,
    order: Order,
    /// stream_create may go out.
    began: bool,
    since: Instant,
    /// A picture came since the last beat.
    seen: bool,
    /// Pictures come: sound may wait for them.
    flowing: bool,
    /// How much must come in before we want to be woken.
    low_water: u32,
    span: Span,
}

impl Ingest {
    fn message(&mut self, message: Message) -> Result<(), bywash_media::Error> {
        let mut items = std::mem::take(&mut self.items);
        let read = match message.kind {
            message::Kind::Video => self.reader.video(&message.body, &mut items),
            message::Kind::Audio => self.reader.audio(&message.body, &mut items),
            // What onMetaData says is in the tracks too, and true there.
            message::Kind::Data => Ok(()),
        };
        let now = Instant::now();
        for item in items.drain(..) {
            match item {
                Item::Track(track) => {
                    info!(parent: &self.span, codec = %track.codec, format = ?track.format, "track");
                    if self.tracks.set(track) {
                        self.hold.publisher.set_tracks(self.tracks.clone());
                    }
                }
                Item::Frame(raw) => self.frame(raw, message.timestamp, now),
                Item::Ended(kind) => debug!(parent: &self.span, ?kind, "end of sequence"),
            }
        }
        self.items = items;
        match read {
            Err(error @ bywash_media::Error::Malformed(_)) => {
                debug!(parent: &self.span, %error, "dropped");
                Ok(())
            }
            read => read,
        }
    }

    fn frame(&mut self, raw: flv::Raw, timestamp: u32, now: Instant) {
        if raw.track == Kind::Video {
            (self.seen, self.flowing) = (true, true);
            self.low_water = if raw.payload.len() > LOW_WATER as usize { LOW_WATER } else { 1 };
        }
        self.begin();
        let dts = self.hold.publisher.stamp(raw.track, timestamp, now);
        let (dts, cts) = match raw.track {
            Kind::Video => self.order.place(dts, raw.cts),
            Kind::Audio => (dts, raw.cts),
        };
        self.hold.publisher.push(Frame { track: raw.track, dts, cts, key: raw.key, payload: raw.payload });
    }

    /// Where no picture came between two beats, nothing is held back for one. Until then the kernel keeps sound by the
    /// [`LOW_WATER`]: an eighth of a second of it at 128 kbit/s.
    fn beat(&mut self) {
        self.flowing = std::mem::take(&mut self.seen);
        if !self.flowing {
            self.low_water = 1;
        }
        if self.since.elapsed() > UNKNOWN_CODEC {
            self.begin();
        }
        self.hold.publisher.measure();
    }

    /// stream_create says which codec the pictures have, so it waits for the first frame.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.began, true) {
            return;
        }
        // 0 stands for H.264, and for streams without pictures.
        let cid = match self.tracks.video.as_ref().map(|track| track.codec) {
            Some(Codec::H265) => 3,
            _ => 0,
        };
        self.hold.began(cid);
    }
}

/// The marks of the servers that a stream has come through, as our own relays write them.
fn trace(agent: &str) -> Vec<String> {
    let marks = agent.split_once("via=").map_or("", |(_, marks)| marks);
    let mark = |text: &str| text.chars().take_while(char::is_ascii_hexdigit).take(16).collect::<String>();
    marks.split(',').map(mark).filter(|mark| !mark.is_empty()).take(16).collect()
}

/// How a request is called in the log: what the peer wrote, bounded, without its query.
fn label(request: &Request) -> String {
    format!("{}/{}", request.app, request.name).chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_from_our_own_relays_and_nothing_else() {
        for (agent, want) in [
            ("FMLE/3.0 (compatible; bywash/0.1.0; via=00ab,ffffffffffffffff)", &["00ab", "ffffffffffffffff"][..]),
            ("FMLE/3.0 (compatible; FMSc/1.0)", &[]),
            ("via=", &[]),
            ("via=zz,,1", &["1"]),
        ] {
            assert_eq!(trace(agent), want, "{agent}");
        }
    }
}
