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
    /// From the end of the handshake, of the last publish or play, or from a refusal, to the next request. The time
    /// that the caller takes to answer one does not count.
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
    /// The codecs that the peer says it takes, as enhanced RTMP names them; `*` is all (Veovera, "Enhancing NetConnection connect Command").
    pub fourcc: Vec<String>,
}

impl Request {
    /// Whether the peer says that it takes this codec of enhanced RTMP.
    pub fn takes(&self, fourcc: &str) -> bool {
        self.fourcc.iter().any(|it| it == fourcc || it == "*")
    }
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
        if let Some(handshake) = &mut self.handshake
            && handshake.read(&mut input, &mut self.link.output)?
        {
            self.handshake = None;
            self.deadline = Some(now + self.config.command_timeout);
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
        [self.deadline, self.silence(), ping].into_iter().flatten().min()
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
            State::Asked { goal, stream, early, .. } => {
                self.deadline = None;
                self.link.user_control(STREAM_BEGIN, &stream.to_be_bytes());
                match goal {
                    Goal::Publish => {
                        self.link.set_limits(limits(&self.config, self.config.max_message));
                        self.link.status(stream, "status", "NetStream.Publish.Start", "publishing");
                        self.events.extend(early.into_iter().map(Event::Message));
                    }
                    Goal::Play => {
                        self.link.status(stream, "status", "NetStream.Play.Reset", "playing and resetting");
                        self.link.status(stream, "status", "NetStream.Play.Start", "playing");
                        // Flash players show nothing of a stream before this.
                        let access = Value::from("|RtmpSampleAccess");
                        let values = [access, Value::Bool(true), Value::Bool(true)];
                        self.link.data(stream, &values);
                    }
                }
                self.state = State::Active { goal, stream };
            }
            other => self.state = other,
        }
    }

    /// Says no to the waiting request, if it still waits, for example with
    /// `NetStream.Publish.BadName`. The peer may ask again until the command timeout.
    pub fn reject(&mut self, now: Instant, code: &str, description: &str) {
        if let State::Asked { stream, .. } = self.state {
            self.link.status(stream, "error", code, description);
            self.rest(now);
        }
    }

    /// Tells a publisher that its accepted publish is over, and why.
    pub fn end_publish(&mut self, now: Instant, code: &str, description: &str) {
        if let State::Active { goal: Goal::Publish, stream } = self.state {
            self.link.status(stream, "error", code, description);
            self.rest(now);
        }
    }

    /// Tells a player that the stream is over.
    pub fn end_play(&mut self, now: Instant) {
        if let State::Active { goal: Goal::Play, stream } = self.state {
            self.link.status(stream, "status", "NetStream.Play.UnpublishNotify", "unpublished");
            self.link.user_control(STREAM_EOF, &stream.to_be_bytes());
            self.link.status(stream, "status", "NetStream.Play.Stop", "stopped");
            self.rest(now);
        }
    }

    /// A media message to a player, its body being `head` and then `payload`. The bytes to send
    /// are put to `out`; `head`, which is small, is copied, `payload` is shared.
    pub fn send(&mut self, kind: Kind, timestamp: u32, head: &[u8], payload: &Bytes, out: &mut VecDeque<Bytes>) {
        if let State::Active { goal: Goal::Play, stream } = self.state {
            self.link.media(stream, kind, timestamp, head, payload, out);
        }
    }

    fn silence(&self) -> Option<Instant> {
        let publishing = matches!(self.state, State::Active { goal: Goal::Publish, .. });
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
                State::Active { goal: Goal::Publish, .. } => {
                    let events = &mut self.events;
                    message::media(raw, |it| events.push_back(Event::Message(it)));
                }
                State::Asked { goal: Goal::Publish, early, size, .. } => {
                    message::media(raw, |it| {
                        *size += it.body.len() + size_of::<Message>();
                        early.push(it);
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
                let free = (1..).find(|it| !self.streams.contains(it)).expect("the list is short");
                self.streams.push(free);
                self.link.command(0, "_result", id, &[Value::Null, (free as f64).into()]);
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
            "releaseStream" | "FCPublish" | "_checkbw" | "FCSubscribe" => self.answer(id, Value::Undefined),
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
                self.link.command(command.stream, "_error", id, &[Value::Null, info]);
            }
            _ => {}
        }
    }

    fn answer(&mut self, transaction: f64, value: Value) {
        if transaction != 0.0 {
            self.link.command(0, "_result", transaction, &[Value::Null, value]);
        }
    }

    fn connect(&mut self, command: &Command) {
        self.peer = Some(introduction(&command.object));
        let window = self.config.window;
        self.link.announce(window);
        // The 2 leaves it to the peer how to combine this with limits that it knows.
        let bandwidth = [&window.to_be_bytes()[..], &[2]].concat();
        self.link.control(PEER_BANDWIDTH, &bandwidth);
        self.link.set_chunk_size(self.config.chunk_size);

        let server = amf::object([("fmsVer", "FMS/3,0,1,123".into()), ("capabilities", 31.0.into())]);
        let mut info = vec![
            ("level".to_owned(), "status".into()),
            ("code".to_owned(), "NetConnection.Connect.Success".into()),
            ("description".to_owned(), "connected".into()),
            // AMF0, also for a peer that asks for AMF3.
            ("objectEncoding".to_owned(), 0.0.into()),
        ];
        // Enhanced RTMP is answered in the properties that it was asked in.
        for name in ["fourCcList", "videoFourCcInfoMap", "audioFourCcInfoMap"] {
            if command.object.get(name).is_some() {
                let ours = self.config.fourcc.iter().copied();
                let entry = |it: &str| (it.to_owned(), CAN_FORWARD.into());
                let answer = match name {
                    "fourCcList" => Value::StrictArray(ours.map(Value::from).collect()),
                    _ => {
                        let video = name == "videoFourCcInfoMap";
                        let ours = ours.filter(|it| VIDEO_FOURCC.contains(it) == video);
                        Value::Object(ours.map(entry).collect())
                    }
                };
                info.push((name.to_owned(), answer));
            }
        }
        let values = [server, Value::Object(info)];
        self.link.command(0, "_result", command.transaction, &values);
    }

    fn ask(&mut self, goal: Goal, command: &Command) {
        let (name, query) = split_query(command.text(0));
        let code = match goal {
            Goal::Publish => "NetStream.Publish.BadName",
            Goal::Play => "NetStream.Play.StreamNotFound",
        };
        let why = match (&self.peer, &self.state) {
            (None, _) => "connect comes first",
            (_, State::Asked { .. } | State::Active { .. }) => "this connection already publishes or plays",
            _ if name.is_empty() => "empty stream name",
            (Some(peer), State::Idle) => {
                let query = if query.is_empty() { &peer.query } else { query };
                let request = Request { name: name.to_owned(), query: query.to_owned(), ..peer.clone() };
                self.events.push_back(match goal {
                    Goal::Publish => Event::Publish(request),
                    Goal::Play => Event::Play(request),
                });
                self.state = State::Asked { goal, stream: command.stream, early: Vec::new(), size: 0 };
                self.deadline = None;
                return;
            }
        };
        self.link.status(command.stream, "error", code, why);
    }

    /// Ends what goes on, if it goes on on `stream`; each request ends at most once.
    fn stop(&mut self, stream: Option<u32>) {
        let (State::Asked { goal, stream: current, .. } | State::Active { goal, stream: current }) = self.state else {
            return;
        };
        match goal {
            _ if stream.is_some_and(|it| it != current) => return,
            Goal::Play if stream.is_none() => return,
            Goal::Play => self.events.push_back(Event::StopPlay),
            Goal::Publish => {
                self.link.status(current, "status", "NetStream.Unpublish.Success", "unpublished");
                self.events.push_back(Event::Unpublish);
            }
        }
        self.rest(self.heard);
    }

    /// Nothing goes on from `now`; the peer has its time to ask anew.
    fn rest(&mut self, now: Instant) {
        self.state = State::Idle;
        self.deadline = Some(now + self.config.command_timeout);
    }
}

fn limits(config: &Config, message: usize) -> Limits {
    Limits { message, unfinished: 2 * message, streams: config.max_chunk_streams }
}

/// What the object of `connect` says of the peer: a request whose name is still to come.
fn introduction(object: &Value) -> Request {
    let text = |name| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (app, query) = split_query(text("app"));
    let (_, url_query) = split_query(text("tcUrl"));
    let listed = object.get("fourCcList").map_or(&[][..], Value::items).iter().filter_map(Value::as_str);
    let maps = ["videoFourCcInfoMap", "audioFourCcInfoMap"].into_iter().filter_map(|name| object.get(name));
    let mapped = maps.flat_map(Value::properties).map(|(name, _)| name.as_str());
    Request {
        app: app.trim_matches('/').to_owned(),
        name: String::new(),
        query: if query.is_empty() { url_query } else { query }.to_owned(),
        tc_url: text("tcUrl").to_owned(),
        agent: text("flashVer").to_owned(),
        fourcc: listed.chain(mapped).map(str::to_owned).collect(),
    }
}

/// A name and its query, which is empty where there is none.
fn split_query(text: &str) -> (&str, &str) {
    text.split_once('?').unwrap_or((text, ""))
}

/// Enhanced RTMP: that we pass this codec on, neither decoding nor encoding it.
const CAN_FORWARD: f64 = 4.0;

/// Which of the names are pictures.
const VIDEO_FOURCC: &[&str] = &["avc1", "hvc1", "av01", "vp08", "vp09", "vvc1"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk;

    /// A peer that speaks in script lines, and the server that it speaks to.
    struct Peer {
        server: Server,
        link: Link,
        reader: chunk::Reader,
        now: Instant,
        /// Input is fed in pieces of this size.
        step: usize,
    }

    const LIMITS: Limits = Limits { message: 1 << 24, unfinished: 1 << 25, streams: 64 };

    impl Peer {
        /// A peer after the handshake.
        fn new(step: usize) -> Peer {
            let now = Instant::now();
            let server = Server::new(Config::default(), now, 1);
            let (link, reader) = (Link::new(LIMITS, 1 << 30), chunk::Reader::new(LIMITS));
            let mut peer = Peer { server, link, reader, now, step };
            peer.feed(&[&[3][..], &[0; 3072]].concat()).unwrap();
            let answer: usize = std::iter::from_fn(|| peer.server.poll_output()).map(|it| it.len()).sum();
            assert_eq!(answer, 3073);
            peer
        }

        fn feed(&mut self, bytes: &[u8]) -> Result<(), Error> {
            bytes.chunks(self.step).try_for_each(|it| self.server.handle_input(self.now, it))
        }

        /// Does one line: `accept`, `end`, `reject CODE`, `wait SECONDS`, `media TYPE TIMESTAMP
        /// TEXT`, `control TYPE TEXT`, or a command as `[STREAM:]NAME TRANSACTION VALUE…`.
        fn act(&mut self, line: &str) -> Result<(), Error> {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["accept"] => self.server.accept(),
                ["end"] => self.server.end_play(self.now),
                ["reject", code] => self.server.reject(self.now, code, "no"),
                ["wait", seconds] => {
                    self.now += Duration::from_secs(seconds.parse().unwrap());
                    self.server.handle_timeout(self.now)?;
                }
                ["media", kind, timestamp, text] => {
                    let (kind, timestamp) = (kind.parse().unwrap(), timestamp.parse().unwrap());
                    let body = Bytes::copy_from_slice(text.as_bytes());
                    self.link.raw(4, kind, 1, timestamp, &body);
                }
                ["control", kind, text] => self.link.control(kind.parse().unwrap(), text.as_bytes()),
                [name, transaction, ref values @ ..] => {
                    let (stream, name) = name.split_once(':').unwrap_or(("0", name));
                    let values: Vec<Value> = values.iter().map(|it| value(it)).collect();
                    self.link.command(stream.parse().unwrap(), name, transaction.parse().unwrap(), &values);
                }
                _ => unreachable!("{line}"),
            }
            let bytes: Vec<u8> = self.link.output.drain(..).flatten().collect();
            self.feed(&bytes)
        }

        /// What the server says to the caller and to the peer, in short.
        fn news(&mut self) -> Vec<String> {
            let mut got = Vec::new();
            while let Some(event) = self.server.poll_event() {
                got.push(match event {
                    Event::Publish(it) => format!("Publish({} {} {})", it.app, it.name, it.query),
                    Event::Play(it) => format!("Play({} {} {})", it.app, it.name, it.query),
                    Event::Message(it) => {
                        format!("{:?}@{}:{}", it.kind, it.timestamp, it.body.escape_ascii())
                    }
                    other => format!("{other:?}"),
                });
            }
            while let Some(bytes) = self.server.poll_output() {
                let mut bytes = &bytes[..];
                while let Some(raw) = self.reader.read(&mut bytes).unwrap() {
                    got.push(match raw.kind {
                        COMMAND => {
                            let it = Command::parse(&raw).unwrap();
                            let code = it.args.first().and_then(|it| it.get("code"));
                            let code = code.or(it.args.first()).and_then(Value::as_str).unwrap_or_default();
                            let id = it.args.first().and_then(Value::as_number).unwrap_or_default();
                            let tail = if id > 0.0 { id.to_string() } else { code.to_owned() };
                            format!("{}:{} {} {tail}", it.stream, it.name, it.transaction).trim_end().to_owned()
                        }
                        USER_CONTROL => format!("user{}", raw.body[1]),
                        kind => format!("[{kind}]"),
                    });
                }
            }
            got
        }
    }

    /// A number, `-` for null, `{name=text,…}`, or text.
    fn value(word: &str) -> Value {
        match word.strip_prefix('{').and_then(|it| it.strip_suffix('}')) {
            Some(list) => Value::Object(
                list.split(',')
                    .filter_map(|it| it.split_once('='))
                    .map(|(key, text)| (key.to_owned(), text.into()))
                    .collect(),
            ),
            None if word == "-" => Value::Null,
            None => word.parse().map_or_else(|_| word.into(), Value::Number),
        }
    }

    /// Plays `script` after the handshake; says what came of the lines after a `|`, or of all where
    /// there is none. The same for every split of the input.
    fn check(script: &str, want: &str) {
        for step in [1, 3, 100, 1 << 20] {
            let mut peer = Peer::new(step);
            let mut got = Vec::new();
            for line in script.lines().map(str::trim).filter(|it| !it.is_empty()) {
                match line {
                    "|" => got.clear(),
                    line => {
                        let result = peer.act(line);
                        got.extend(peer.news());
                        if let Err(e) = result {
                            got.push(e.to_string());
                        }
                    }
                }
            }
            assert_eq!(got.join(" "), want, "{script} in pieces of {step}");
        }
    }

    const CONNECT: &str = "connect 1 {app=123,tcUrl=rtmp://h/123}\ncreateStream 2 -\n";

    fn connected(script: &str, want: &str) {
        check(&format!("{CONNECT}|\n{script}"), want);
    }

    #[test]
    fn fmle_publishes() {
        check(
            "connect 1 {app=1234567890,flashVer=FMLE/3.0,swfUrl=rtmp://h/1234567890,tcUrl=rtmp://h/1234567890}
             control 5 \0&%\0
             releaseStream 2 - s1
             FCPublish 3 - s1
             createStream 4 -
             _checkbw 5 -
             1:publish 6 - s1 live
             accept
             media 18 0 onMetaData
             media 9 40 picture
             FCUnpublish 7 - s1
             deleteStream 8 - 1",
            "[5] [6] 0:_result 1 NetConnection.Connect.Success 0:_result 2 0:_result 3 0:_result 4 1 \
             0:_result 5 Publish(1234567890 s1 ) user0 1:onStatus 0 NetStream.Publish.Start \
             Data@0:onMetaData Video@40:picture Unpublish 0:_result 7 1:onStatus 0 NetStream.Unpublish.Success",
        );
    }

    #[test]
    fn obs_and_librtmp_publish() {
        check(
            "control 1 \0\0\x10\0
             connect 1 {app=123,type=nonprivate,flashVer=FMLE/3.0,swfUrl=rtmp://h/123,tcUrl=rtmp://h/123}
             releaseStream 2 - key?token=t
             FCPublish 3 - key?token=t
             createStream 4 -
             1:publish 5 - key?token=t live
             |
             accept
             media 8 0 sound
             deleteStream 6 - 1",
            "user0 1:onStatus 0 NetStream.Publish.Start Audio@0:sound Unpublish \
             1:onStatus 0 NetStream.Unpublish.Success",
        );
    }

    #[test]
    fn ffmpeg_and_librtmp_play() {
        check(
            "connect 1 {app=123,tcUrl=rtmp://h:1935/123}
             control 5 \0&%\0
             createStream 2 -
             _checkbw 3 -
             getStreamLength 4 - s1
             control 4 \0\x03\0\0\0\x01\0\0\x0b\x40
             |
             1:play 5 - s1 -2000 -1 1
             accept
             end
             closeStream 0 -",
            "Play(123 s1 ) user0 1:onStatus 0 NetStream.Play.Reset 1:onStatus 0 NetStream.Play.Start \
             [18] 1:onStatus 0 NetStream.Play.UnpublishNotify user1 1:onStatus 0 NetStream.Play.Stop",
        );
    }

    #[test]
    fn names_are_split_from_their_queries() {
        for (app, name, want) in [
            ("123", "s1", "Publish(123 s1 )"),
            ("/123/", "s1?a=b&c=d", "Publish(123 s1 a=b&c=d)"),
            ("123?x=y", "s1", "Publish(123 s1 x=y)"),
            ("123?x=y", "s1?a=b", "Publish(123 s1 a=b)"),
            ("123", "mp4:s1?", "Publish(123 mp4:s1 )"),
        ] {
            check(&format!("connect 1 {{app={app}}}\n|\n1:publish 2 - {name} live"), want);
        }
        check("connect 1 {app=1,tcUrl=rtmp://h/1?x=y}\n|\n1:publish 2 - s live", "Publish(1 s x=y)");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        check("1:publish 5 - s1 live", "1:onStatus 0 NetStream.Publish.BadName");
        connected("1:publish 5 - ?a=b live", "1:onStatus 0 NetStream.Publish.BadName");
        connected("1:play 5 -", "1:onStatus 0 NetStream.Play.StreamNotFound");
        connected("1:publish 5 - a\n1:publish 6 - b", "Publish(123 a ) 1:onStatus 0 NetStream.Publish.BadName");
        connected("whatever 5 -\nwhatever 0 -\n_error 5 -", "0:_error 5 NetConnection.Call.Failed");
        connected("connect 5 {}", "0:_error 5 NetConnection.Call.Failed");
    }

    #[test]
    fn a_refused_peer_may_ask_again_and_a_publisher_may_publish_again() {
        connected(
            "1:publish 5 - a\nreject NetStream.Publish.Denied\naccept\n1:publish 5 - b\naccept
             1:closeStream 0 -\nFCUnpublish 0 - b\nmedia 8 0 late\n1:publish 5 - c",
            "Publish(123 a ) 1:onStatus 0 NetStream.Publish.Denied Publish(123 b ) user0 \
             1:onStatus 0 NetStream.Publish.Start Unpublish 1:onStatus 0 NetStream.Unpublish.Success \
             Publish(123 c )",
        );
    }

    #[test]
    fn media_before_the_answer_follows_it() {
        connected(
            "media 8 0 ignored\n1:publish 5 - s\nmedia 8 7 early\n|\naccept\nmedia 8 8 on-time",
            "Audio@7:early user0 1:onStatus 0 NetStream.Publish.Start Audio@8:on-time",
        );
        connected("1:publish 5 - s\nmedia 8 7 early\nFCUnpublish 0 - s\n|\naccept", "");
    }

    #[test]
    fn strangers_and_the_silent_are_given_up() {
        connected("wait 9\nwait 1", "no publish or play in time");
        connected("1:publish 5 - s\nwait 60", "Publish(123 s ) user6");
        connected(
            "1:publish 5 - s\naccept\n|\nwait 10\nwait 10\nmedia 8 0 x\nwait 29\nwait 1",
            "user6 user6 Audio@0:x user6 peer is silent",
        );
        connected("1:play 5 - s\naccept\n|\nwait 100\nwait 9\nwait 1", "user6 user6");
        // Its time begins with the answer or with the end, however long the caller or the stream took.
        let late = "user6 1:onStatus 0 NetStream.Publish.BadName no publish or play in time";
        connected("1:publish 5 - s\n|\nwait 60\nreject NetStream.Publish.BadName\nwait 9\nwait 1", late);
        connected("1:play 5 - s\naccept\nwait 100\n|\nend\n|\nwait 9\nwait 1", "no publish or play in time");
        let mut server = Server::new(Config::default(), Instant::now(), 1);
        let at = server.poll_timeout().unwrap();
        assert_eq!(server.handle_timeout(at), Err(Error::HandshakeTimeout));
    }

    #[test]
    fn strangers_are_limited() {
        let flood = "FCPublish 0 -\n".repeat(MAX_COMMANDS + 1);
        connected(&flood, &["more than 1000 commands before publish or play"; 3].join(" "));
        let large = format!("media 9 0 {}", "x".repeat(65_537));
        connected(&large, "message of 65537 bytes, 65536 allowed");
        let flood = format!("media 9 0 {}\n", "x".repeat(60_000)).repeat(3);
        connected(
            &format!("1:publish 5 - s\n|\n{flood}"),
            "more than 131072 bytes of media before the publish was accepted",
        );
        let streams = "createStream 3 -\n".repeat(MAX_STREAMS - 1);
        connected(
            &format!("{streams}|\ncreateStream 9 -\ndeleteStream 0 - 4\ncreateStream 9 -"),
            "0:_error 9 NetConnection.Call.Failed 0:_result 9 4",
        );
    }

    #[test]
    fn a_publisher_may_send_large_messages() {
        let mut peer = Peer::new(1000);
        for line in CONNECT.lines().chain(["1:publish 5 - s", "accept"]) {
            peer.act(line).unwrap();
        }
        peer.news();
        peer.act(&format!("media 9 0 {}", "x".repeat(1_000_000))).unwrap();
        assert_eq!(peer.news()[0].len(), "Video@0:".len() + 1_000_000);
    }

    #[test]
    fn a_player_gets_what_is_sent_and_a_publisher_nothing() {
        for (goal, want) in [("play", "9@40/1:head-payload"), ("publish", "")] {
            let mut peer = Peer::new(1000);
            for line in CONNECT.lines().chain([&format!("1:{goal} 5 - s")[..], "accept"]) {
                peer.act(line).unwrap();
            }
            peer.news();
            let (mut out, mut got) = (VecDeque::new(), String::new());
            peer.server.send(Kind::Video, 40, b"head-", &Bytes::from_static(b"payload"), &mut out);
            for bytes in out {
                if let Some(it) = peer.reader.read(&mut &bytes[..]).unwrap() {
                    got = format!("{}@{}/{}:{}", it.kind, it.timestamp, it.stream, it.body.escape_ascii());
                }
            }
            assert_eq!(got, want);
        }
    }

    #[test]
    fn enhanced_rtmp_is_answered_where_it_is_asked_for() {
        let mut peer = Peer::new(1000);
        let list = Value::StrictArray(vec!["hvc1".into(), "av01".into()]);
        let sounds = amf::object([("Opus", 1.0.into())]);
        let (pictures, sounds) = (("videoFourCcInfoMap", amf::object([])), ("audioFourCcInfoMap", sounds));
        let object = amf::object([("app", "1".into()), ("fourCcList", list), pictures, sounds]);
        peer.link.command(0, "connect", 1.0, &[object]);
        peer.act("1:publish 2 - s").unwrap();
        let Some(Event::Publish(request)) = peer.server.poll_event() else { panic!("no request") };
        assert_eq!(request.fourcc, ["hvc1", "av01", "Opus"]);
        assert!(request.takes("Opus") && !request.takes("avc1"));
        let mut output = Vec::new();
        while let Some(bytes) = peer.server.poll_output() {
            output.extend_from_slice(&bytes);
        }
        let (mut input, mut info) = (&output[..], None);
        while let Some(raw) = peer.reader.read(&mut input).unwrap() {
            if raw.kind == COMMAND {
                info = Command::parse(&raw).unwrap().args.pop();
            }
        }
        let info = info.unwrap();
        assert_eq!(info.get("fourCcList").unwrap().items().len(), 6);
        let forwards = |map, codec| info.get(map).unwrap().get(codec) == Some(&Value::Number(4.0));
        assert!(forwards("videoFourCcInfoMap", "hvc1") && forwards("audioFourCcInfoMap", "Opus"));
        assert!(!forwards("videoFourCcInfoMap", "Opus"));
    }
}
