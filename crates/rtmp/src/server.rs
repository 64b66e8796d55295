//! A publisher's or player's connection, seen from the server.
//!
//! A [`Request`] to publish or play comes out as an event and waits for [`Server::accept`] or
//! [`Server::reject`]: who may do what is the caller's business. Media that an eager publisher sends
//! in the meantime is kept and follows the acceptance.
//!
//! Invariant: until a request is accepted the peer is a stranger. It may make us hold
//! [`Config::max_message_before`] bytes a few times over, take [`Config::command_timeout`] and
//! [`MAX_COMMANDS`] commands, and no more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::amf::{self, Value};
use crate::chunk::{Limits, Raw};
use crate::link::Link;
use crate::message::{self, *};
use crate::{Error, handshake};

/// The limits and habits of a connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// The window that we announce for acknowledgements, in bytes.
    pub window: u32,
    /// The size of the chunks that we send, in bytes. SRS refuses more than 65536.
    pub chunk_size: u32,
    /// The largest message until a request is accepted, in bytes.
    pub max_message_before: usize,
    /// The largest message from then on, in bytes.
    pub max_message: usize,
    /// Chunk streams that the peer may use.
    pub max_chunk_streams: usize,
    /// From the first byte that could come to the end of the handshake.
    pub handshake_timeout: Duration,
    /// From the end of the handshake, or of the last publish, to the next request. The time that
    /// the caller takes to answer one does not count.
    pub command_timeout: Duration,
    /// A peer that was silent for so long is sent a ping.
    pub ping_interval: Duration,
    /// A publisher that was silent for so long is given up. Players have nothing to say.
    pub idle: Duration,
    /// Codecs, as enhanced RTMP names them, that we say we take.
    pub fourcc: &'static [&'static str],
}

impl Default for Config {
    fn default() -> Config {
        Config {
            window: 2_500_000,
            chunk_size: 60_000,
            max_message_before: 64 * 1024,
            max_message: 8 * 1024 * 1024,
            max_chunk_streams: 64,
            handshake_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            fourcc: &["avc1", "hvc1", "av01", "mp4a", "Opus", ".mp3"],
        }
    }
}

/// What the peer wants or did.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It wants to publish, and waits for [`Server::accept`] or [`Server::reject`].
    Publish(Request),
    /// It wants to play, and waits likewise.
    Play(Request),
    /// Media of the accepted publish. Aggregates are already split, empty messages left out.
    Message(Message),
    /// The publish is over, or withdrawn before it was answered. Another one may follow.
    Unpublish,
    /// The play is over, or withdrawn before it was answered.
    StopPlay,
}

/// What to publish or play, as the peer said it; any text may be in here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Application, without query and outer slashes.
    pub app: String,
    /// Stream name without query.
    pub name: String,
    /// The query of the name or, where that has none, of the application or the URL; without `?`.
    pub query: String,
    /// The URL that the peer says it connected to.
    pub tc_url: String,
    /// The peer's `flashVer`.
    pub agent: String,
    /// The peer's `fourCcList` of enhanced RTMP.
    pub fourcc: Vec<String>,
}

/// Commands that a stranger may send; real ones need seven.
pub const MAX_COMMANDS: usize = 1000;

/// Message streams open at a time; real clients open one.
const MAX_STREAMS: usize = 16;

/// One connection.
pub struct Server {
    config: Config,
    handshake: Option<handshake::Server>,
    link: Link,
    state: State,
    /// What `connect` said: everything of a request but the name. `None` before it.
    peer: Option<Request>,
    /// Open message streams.
    streams: Vec<u32>,
    commands: usize,
    events: VecDeque<Event>,
    /// When the peer must have come further.
    deadline: Option<Instant>,
    /// The last input, and when to ping if none follows.
    heard: Instant,
    ping: Instant,
}

/// What happens on `stream`, the message stream in use.
enum State {
    Idle,
    /// The caller has to answer. `early` is media that came meanwhile, `size` what it costs.
    Asked {
        goal: Goal,
        stream: u32,
        early: Vec<Message>,
        size: usize,
    },
    Active {
        goal: Goal,
        stream: u32,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Goal {
    Publish,
    Play,
}

impl Server {
    /// A connection that was accepted at `now`. `seed` makes the random bytes of the handshake.
    pub fn new(config: Config, now: Instant, seed: u64) -> Server {
        Server {
            handshake: Some(handshake::Server::new(seed)),
            link: Link::new(limits(&config, config.max_message_before), config.window),
            state: State::Idle,
            peer: None,
            streams: Vec::new(),
            commands: 0,
            events: VecDeque::new(),
            deadline: Some(now + config.handshake_timeout),
            heard: now,
            ping: now + config.ping_interval,
            config,
        }
    }

    /// Takes all of `bytes`, which may be split anywhere. After an error only the events and
    /// outputs that are there are of use.
    pub fn handle_input(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Error> {
        self.heard = now;
        self.ping = now + self.config.ping_interval;
        let mut input = bytes;
        if let Some(handshake) = &mut self.handshake {
            if handshake.read(&mut input, &mut self.link.output)? {
                self.handshake = None;
                self.deadline = Some(now + self.config.command_timeout);
            }
        }
        if self.handshake.is_none() {
            while let Some(raw) = self.link.read(&mut input)? {
                self.message(raw)?;
            }
            self.link.count(bytes.len());
        }
        Ok(())
    }

    /// To be called when [`Server::poll_timeout`] has come; too early a call does nothing.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        if self.deadline.is_some_and(|it| it <= now) {
            return Err(match self.handshake {
                Some(_) => Error::HandshakeTimeout,
                None => Error::CommandTimeout,
            });
        }
        if self.silence().is_some_and(|it| it <= now) {
            return Err(Error::Idle);
        }
        if self.handshake.is_none() && self.ping <= now {
            self.ping = now + self.config.ping_interval;
            self.link.user_control(PING_REQUEST, &[0; 4]);
        }
        Ok(())
    }

    /// When to call [`Server::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ping = self.handshake.is_none().then_some(self.ping);
        [self.deadline, self.silence(), ping]
            .into_iter()
            .flatten()
            .min()
    }

    /// What the peer wants or did; to be called until there is nothing.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes to send; to be called until there are none, and before what [`Server::send`] gave.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.link.output.pop_front()
    }

    /// Says yes to the waiting request, if it still waits.
    pub fn accept(&mut self) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Asked {
                goal,
                stream,
                early,
                ..
            } => {
                self.deadline = None;
                self.link.user_control(STREAM_BEGIN, &stream.to_be_bytes());
                match goal {
                    Goal::Publish => {
                        self.link
                            .set_limits(limits(&self.config, self.config.max_message));
                        self.link
                            .status(stream, "status", "NetStream.Publish.Start", "publishing");
                        self.events.extend(early.into_iter().map(Event::Message));
                    }
                    Goal::Play => {
                        self.link.status(
                            stream,
                            "status",
                            "NetStream.Play.Reset",
                            "playing and resetting",
                        );
                        self.link
                            .status(stream, "status", "NetStream.Play.Start", "playing");
                        // Flash players show nothing of a stream before this.
                        let access = [
                            Value::from("|RtmpSampleAccess"),
                            Value::Bool(true),
                            Value::Bool(true),
                        ];
                        let mut out = std::mem::take(&mut self.link.output);
                        self.link.media(
                            stream,
                            Kind::Data,
                            0,
                            &[],
                            &amf::encode(&access),
                            &mut out,
                        );
                        self.link.output = out;
                    }
                }
                self.state = State::Active { goal, stream };
            }
            other => self.state = other,
        }
    }

    /// Says no to the waiting request, if it still waits, for example with
    /// `NetStream.Publish.BadName`. The peer may ask again until the command timeout.
    pub fn reject(&mut self, code: &str, description: &str) {
        if let State::Asked { stream, .. } = self.state {
            self.link.status(stream, "error", code, description);
            self.state = State::Idle;
            self.deadline = Some(self.heard + self.config.command_timeout);
        }
    }

    /// Tells a publisher that its accepted publish is over, and why.
    pub fn end_publish(&mut self, code: &str, description: &str) {
        if let State::Active {
            goal: Goal::Publish,
            stream,
        } = self.state
        {
            self.link.status(stream, "error", code, description);
            self.rest();
        }
    }

    /// Tells a player that the stream is over.
    pub fn end_play(&mut self) {
        if let State::Active {
            goal: Goal::Play,
            stream,
        } = self.state
        {
            self.link.status(
                stream,
                "status",
                "NetStream.Play.UnpublishNotify",
                "unpublished",
            );
            self.link.user_control(STREAM_EOF, &stream.to_be_bytes());
            self.link
                .status(stream, "status", "NetStream.Play.Stop", "stopped");
            self.rest();
        }
    }

    /// A media message to a player, its body being `head` and then `payload`. The bytes to send
    /// are put to `out`; `head`, which is small, is copied, `payload` is shared.
    pub fn send(
        &mut self,
        kind: Kind,
        timestamp: u32,
        head: &[u8],
        payload: &Bytes,
        out: &mut VecDeque<Bytes>,
    ) {
        if let State::Active {
            goal: Goal::Play,
            stream,
        } = self.state
        {
            self.link.media(stream, kind, timestamp, head, payload, out);
        }
    }

    fn silence(&self) -> Option<Instant> {
        let publishing = matches!(
            self.state,
            State::Active {
                goal: Goal::Publish,
                ..
            }
        );
        publishing.then_some(self.heard + self.config.idle)
    }

    fn message(&mut self, raw: Raw) -> Result<(), Error> {
        match raw.kind {
            COMMAND | COMMAND_AMF3 => {
                if !matches!(self.state, State::Active { .. }) {
                    self.commands += 1;
                    if self.commands > MAX_COMMANDS {
                        return Err(Error::TooManyCommands(MAX_COMMANDS));
                    }
                }
                self.command(Command::parse(&raw)?);
            }
            // The message stream is not compared: some encoders send metadata on stream 0.
            _ => match &mut self.state {
                State::Active {
                    goal: Goal::Publish,
                    ..
                } => {
                    let events = &mut self.events;
                    message::media(raw, |it| {
                        if !it.body.is_empty() {
                            events.push_back(Event::Message(it));
                        }
                    });
                }
                State::Asked {
                    goal: Goal::Publish,
                    early,
                    size,
                    ..
                } => {
                    message::media(raw, |it| {
                        if !it.body.is_empty() {
                            *size += it.body.len() + size_of::<Message>();
                            early.push(it);
                        }
                    });
                    let limit = 2 * self.config.max_message_before;
                    if *size > limit {
                        return Err(Error::TooMuchEarlyMedia(limit));
                    }
                }
                _ => {}
            },
        }
        Ok(())
    }

    fn command(&mut self, command: Command) {
        let id = command.transaction;
        match &command.name[..] {
            "connect" if self.peer.is_none() => self.connect(&command),
            "createStream" if self.streams.len() < MAX_STREAMS => {
                let free = (1..)
                    .find(|it| !self.streams.contains(it))
                    .expect("the list is short");
                self.streams.push(free);
                self.link
                    .command(0, "_result", id, &[Value::Null, (free as f64).into()]);
            }
            "publish" => self.ask(Goal::Publish, &command),
            "play" => self.ask(Goal::Play, &command),
            "deleteStream" => {
                let stream = command.id(0);
                self.streams.retain(|it| *it != stream);
                self.stop(Some(stream));
            }
            "closeStream" => self.stop(Some(command.stream)),
            "FCUnpublish" => {
                self.answer(id, Value::Undefined);
                self.stop(None);
            }
            // FMLE, OBS and ffmpeg send these before createStream and only want some answer.
            "releaseStream" | "FCPublish" | "_checkbw" | "FCSubscribe" => {
                self.answer(id, Value::Undefined)
            }
            // A live stream has no length.
            "getStreamLength" => self.answer(id, Value::Number(0.0)),
            // Answers are not answered.
            "_result" | "_error" | "onStatus" => {}
            _ if id != 0.0 => {
                let info = amf::object([
                    ("level", "error".into()),
                    ("code", "NetConnection.Call.Failed".into()),
                    ("description", "unknown command".into()),
                ]);
                self.link
                    .command(command.stream, "_error", id, &[Value::Null, info]);
            }
            _ => {}
        }
    }

    fn answer(&mut self, transaction: f64, value: Value) {
        if transaction != 0.0 {
            self.link
                .command(0, "_result", transaction, &[Value::Null, value]);
        }
    }

    fn connect(&mut self, command: &Command) {
        let text = |name| {
            command
                .object
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (app, query) = split_query(text("app"));
        let (_, url_query) = split_query(text("tcUrl"));
        let fourcc = command.object.get("fourCcList");
        self.peer = Some(Request {
            app: app.trim_matches('/').to_owned(),
            name: String::new(),
            query: if query.is_empty() { url_query } else { query }.to_owned(),
            tc_url: text("tcUrl").to_owned(),
            agent: text("flashVer").to_owned(),
            fourcc: fourcc
                .map(Value::items)
                .unwrap_or_default()
                .iter()
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect(),
        });

        self.link.announce(self.config.window);
        // The 2 leaves it to the peer how to combine this with limits that it knows.
        self.link.control(
            PEER_BANDWIDTH,
            &[&self.config.window.to_be_bytes()[..], &[2]].concat(),
        );
        self.link.set_chunk_size(self.config.chunk_size);
        let server = amf::object([
            ("fmsVer", "FMS/3,0,1,123".into()),
            ("capabilities", 31.0.into()),
        ]);
        let mut info = vec![
            ("level", "status".into()),
            ("code", "NetConnection.Connect.Success".into()),
            ("description", "connected".into()),
            // AMF0, also for a peer that asks for AMF3.
            ("objectEncoding", 0.0.into()),
        ];
        let ours = || self.config.fourcc.iter();
        if fourcc.is_some() {
            info.push((
                "fourCcList",
                Value::StrictArray(ours().map(|it| (*it).into()).collect()),
            ));
        }
        for (name, video) in [("videoFourCcInfoMap", true), ("audioFourCcInfoMap", false)] {
            if command.object.get(name).is_some() {
                let of_kind = ours().filter(|it| VIDEO_FOURCC.contains(it) == video);
                let map = of_kind
                    .map(|it| ((*it).to_owned(), CAN_FORWARD.into()))
                    .collect();
                info.push((name, Value::Object(map)));
            }
        }
        let info = info
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        self.link.command(
            0,
            "_result",
            command.transaction,
            &[server, Value::Object(info)],
        );
    }

    fn ask(&mut self, goal: Goal, command: &Command) {
        let (name, query) = split_query(command.text(0));
        let code = match goal {
            Goal::Publish => "NetStream.Publish.BadName",
            Goal::Play => "NetStream.Play.StreamNotFound",
        };
        let why = match (&self.peer, &self.state) {
            (None, _) => "connect comes first",
            (_, State::Asked { .. } | State::Active { .. }) => {
                "this connection already publishes or plays"
            }
            _ if name.is_empty() => "empty stream name",
            (Some(peer), State::Idle) => {
                let query = if query.is_empty() { &peer.query } else { query };
                let request = Request {
                    name: name.to_owned(),
                    query: query.to_owned(),
                    ..peer.clone()
                };
                self.events.push_back(match goal {
                    Goal::Publish => Event::Publish(request),
                    Goal::Play => Event::Play(request),
                });
                self.state = State::Asked {
                    goal,
                    stream: command.stream,
                    early: Vec::new(),
                    size: 0,
                };
                self.deadline = None;
                return;
            }
        };
        self.link.status(command.stream, "error", code, why);
    }

    /// Ends what goes on, if it goes on on `stream`; each request ends at most once.
    fn stop(&mut self, stream: Option<u32>) {
        let (State::Asked {
            goal,
            stream: current,
            ..
        }
        | State::Active {
            goal,
            stream: current,
        }) = self.state
        else {
            return;
        };
        match goal {
            _ if stream.is_some_and(|it| it != current) => return,
            Goal::Play if stream.is_none() => return,
            Goal::Play => self.events.push_back(Event::StopPlay),
            Goal::Publish => {
                self.link.status(
                    current,
                    "status",
                    "NetStream.Unpublish.Success",
                    "unpublished",
                );
                self.events.push_back(Event::Unpublish);
            }
        }
        self.rest();
    }

    /// Nothing goes on; the peer has its time to ask anew.
    fn rest(&mut self) {
        self.state = State::Idle;
        self.deadline = Some(self.heard + self.config.command_timeout);
    }
}

fn limits(config: &Config, message: usize) -> Limits {
    Limits {
        message,
        unfinished: 2 * message,
        streams: config.max_chunk_streams,
    }
}

/// A name and its query. A question mark at its start or end is no query.
fn split_query(text: &str) -> (&str, &str) {
    text.split_once('?').unwrap_or((text, ""))
}

/// Enhanced RTMP: that we pass this codec on, neither decoding nor encoding it.
const CAN_FORWARD: f64 = 4.0;

/// Which of the names are pictures.
const VIDEO_FOURCC: &[&str] = &["avc1", "hvc1", "av01", "vp08", "vp09", "vvc1"];
