//! Our publishing side: one stream to one server.
//!
//! It goes through handshake, `connect`, `createStream` and `publish` by itself, in the order and
//! with the side commands of FMLE, which every CDN is tested with; then the caller sends media.
//!
//! Invariant: each event comes at most once, and nothing comes after a rejection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::amf::Value;
use crate::chunk::{Limits, Raw};
use crate::link::Link;
use crate::message::*;
use crate::{Error, handshake};

/// Where to publish, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Application.
    pub app: String,
    /// Stream name with its query.
    pub stream: String,
    /// `rtmp://host[:port]/app`.
    pub tc_url: String,
    /// `flashVer`; some CDNs look for `FMLE`.
    pub agent: String,
    /// The size of the chunks that we send, in bytes. SRS refuses more than 65536.
    pub chunk_size: u32,
    /// Codecs of enhanced RTMP that the stream may use; none to hide the extension.
    pub fourcc: &'static [&'static str],
    /// From the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// From then to the start of the publish.
    pub command_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            app: String::new(),
            stream: String::new(),
            tc_url: String::new(),
            agent: "FMLE/3.0 (compatible; bywash)".to_owned(),
            chunk_size: 60_000,
            fourcc: &[],
            handshake_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(10),
        }
    }
}

/// What the server said.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Media may be sent.
    Publishing,
    /// The server refuses, or ends the publish later. The connection is of no more use.
    Rejected {
        /// Such as `NetStream.Publish.BadName`.
        code: String,
        /// The server's words.
        description: String,
        /// What to do about it.
        class: Class,
    },
}

/// What a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The name is refused, mostly since somebody publishes it already.
    BadName,
    /// The signature is wrong or too old, or publishing is not allowed.
    Auth,
    /// The application (access point) does not exist or refuses us.
    App,
    /// Anything else.
    Other,
}

/// How far it got, which names what failed when the server just hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The handshake is not finished.
    Handshake,
    /// `connect` is not answered.
    Connect,
    /// `createStream` is not answered.
    CreateStream,
    /// `publish` is not answered. nginx-rtmp and SRS hang up here for a wrong signature.
    Publish,
    /// Media flows.
    Publishing,
}

/// One connection.
pub struct Client {
    config: Config,
    handshake: Option<handshake::Client>,
    link: Link,
    phase: Phase,
    stream: u32,
    /// Rejected or finished: nothing more is told or sent.
    over: bool,
    events: VecDeque<Event>,
    deadline: Option<Instant>,
}

/// Transaction ids of the commands in the order that they are sent.
const CONNECT: f64 = 1.0;
const RELEASE_STREAM: f64 = 2.0;
const FC_PUBLISH: f64 = 3.0;
const CREATE_STREAM: f64 = 4.0;
const PUBLISH: f64 = 5.0;
const FC_UNPUBLISH: f64 = 6.0;
const DELETE_STREAM: f64 = 7.0;

/// A server has nothing large to say to a publisher.
const LIMITS: Limits = Limits { message: 64 * 1024, unfinished: 128 * 1024, streams: 64 };

/// What we acknowledge by until the server says its own window.
const WINDOW: u32 = 2_500_000;

impl Client {
    /// A connection that was made at `now`. `seed` makes the random bytes of the handshake.
    pub fn new(config: Config, now: Instant, seed: u64) -> Client {
        let mut link = Link::new(LIMITS, WINDOW);
        Client {
            handshake: Some(handshake::Client::new(seed, &mut link.output)),
            link,
            phase: Phase::Handshake,
            stream: 0,
            over: false,
            events: VecDeque::new(),
            deadline: Some(now + config.handshake_timeout),
            config,
        }
    }

    /// Takes all of `bytes`, which may be split anywhere.
    pub fn handle_input(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Error> {
        let mut input = bytes;
        if let Some(handshake) = &mut self.handshake
            && handshake.read(&mut input, &mut self.link.output)?
        {
            self.handshake = None;
            self.deadline = Some(now + self.config.command_timeout);
            self.connect();
        }
        if self.handshake.is_none() {
            while let Some(raw) = self.link.read(&mut input)? {
                self.message(raw)?;
            }
            self.link.count(bytes.len());
        }
        Ok(())
    }

    /// To be called when [`Client::poll_timeout`] has come; too early a call does nothing.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        match self.deadline {
            Some(deadline) if deadline <= now => Err(match self.phase {
                Phase::Handshake => Error::HandshakeTimeout,
                _ => Error::CommandTimeout,
            }),
            _ => Ok(()),
        }
    }

    /// When to call [`Client::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// What the server said; to be called until there is nothing.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes to send; to be called until there are none, and before what [`Client::send`] gave.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.link.output.pop_front()
    }

    /// How far it got.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// A media message, its body being `head` and then `payload`. The bytes to send are put to
    /// `out`; `head`, which is small, is copied, `payload` is shared. Metadata is [`Kind::Data`]
    /// that begins with `@setDataFrame`. Nothing is sent unless publishing.
    pub fn send(&mut self, kind: Kind, timestamp: u32, head: &[u8], payload: &Bytes, out: &mut VecDeque<Bytes>) {
        if self.phase == Phase::Publishing && !self.over {
            self.link.media(self.stream, kind, timestamp, head, payload, out);
        }
    }

    /// Says goodbye: the output then holds the last bytes to send.
    pub fn finish(&mut self) {
        if self.phase >= Phase::Publish && !self.over {
            let name = Value::from(&self.config.stream[..]);
            self.link.command(0, "FCUnpublish", FC_UNPUBLISH, &[Value::Null, name]);
            self.link.command(0, "deleteStream", DELETE_STREAM, &[Value::Null, (self.stream as f64).into()]);
        }
        self.over = true;
        self.deadline = None;
    }

    fn connect(&mut self) {
        self.phase = Phase::Connect;
        let mut object = vec![
            ("app", self.config.app[..].into()),
            ("type", "nonprivate".into()),
            ("flashVer", self.config.agent[..].into()),
            ("swfUrl", self.config.tc_url[..].into()),
            ("tcUrl", self.config.tc_url[..].into()),
        ];
        if !self.config.fourcc.is_empty() {
            let list = self.config.fourcc.iter().map(|it| (*it).into()).collect();
            object.push(("fourCcList", Value::StrictArray(list)));
        }
        let object = object.into_iter().map(|(key, value): (&str, Value)| (key.to_owned(), value)).collect();
        // Before the first command, as OBS does.
        self.link.set_chunk_size(self.config.chunk_size);
        self.link.command(0, "connect", CONNECT, &[Value::Object(object)]);
    }

    fn message(&mut self, raw: Raw) -> Result<(), Error> {
        if !matches!(raw.kind, COMMAND | COMMAND_AMF3) {
            return Ok(());
        }
        let command = Command::parse(&raw)?;
        if self.over {
            return Ok(());
        }
        let info = command.args.first();
        let text = |name| info.and_then(|it| it.get(name)).and_then(Value::as_str).unwrap_or_default();
        match (&command.name[..], self.phase) {
            ("_result", Phase::Connect) if command.transaction == CONNECT => {
                self.phase = Phase::CreateStream;
                let name = Value::from(&self.config.stream[..]);
                self.link.command(0, "releaseStream", RELEASE_STREAM, &[Value::Null, name.clone()]);
                self.link.command(0, "FCPublish", FC_PUBLISH, &[Value::Null, name]);
                self.link.command(0, "createStream", CREATE_STREAM, &[Value::Null]);
            }
            ("_result", Phase::CreateStream) if command.transaction == CREATE_STREAM => {
                self.phase = Phase::Publish;
                self.stream = command.id(0);
                let name = Value::from(&self.config.stream[..]);
                self.link.command(self.stream, "publish", PUBLISH, &[Value::Null, name, "live".into()]);
            }
            // Servers that do not know releaseStream and FCPublish say so, and it does not matter.
            ("_error", _) if [RELEASE_STREAM, FC_PUBLISH].contains(&command.transaction) => {}
            // While it takes the stream, an error answers some side command unless it names our publish: some servers give no number.
            ("_error", Phase::Publishing) if command.transaction != PUBLISH => {}
            ("onStatus", Phase::Publish) if text("code") == "NetStream.Publish.Start" => self.start(),
            // Some servers answer publish as any other command.
            ("_result", Phase::Publish) if command.transaction == PUBLISH => self.start(),
            ("onStatus", _) if text("level") == "error" || is_end(text("code")) => {
                self.reject(text("code").to_owned(), text("description").to_owned());
            }
            ("_error", _) => self.reject(text("code").to_owned(), text("description").to_owned()),
            ("close", _) => self.reject(text("code").to_owned(), "closed by the server".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn start(&mut self) {
        self.phase = Phase::Publishing;
        self.deadline = None;
        self.events.push_back(Event::Publishing);
    }

    fn reject(&mut self, code: String, description: String) {
        let class = classify(self.phase, &code, &description);
        self.events.push_back(Event::Rejected { code, description, class });
        self.over = true;
        self.deadline = None;
    }
}

/// Codes that end a publish whatever their level says: servers are careless with levels.
fn is_end(code: &str) -> bool {
    ["Failed", "Rejected", "Denied", "BadName", "InvalidApp", "Closed", "Unpublish.Success"]
        .iter()
        .any(|it| code.ends_with(it))
}

fn classify(phase: Phase, code: &str, description: &str) -> Class {
    let text = format!("{code} {description}").to_ascii_lowercase();
    match WORDS.iter().find(|(word, _)| text.contains(word)) {
        Some((_, class)) => *class,
        None if phase == Phase::Connect => Class::App,
        None => Class::Other,
    }
}

/// What servers say, in lower case; the first row found in code and description decides. Tencent,
/// Wangsu, Huawei and Aliyun publish no texts and often only hang up, so for them there are the
/// parameters of their signed URLs and the words that such texts are made of. Bare numbers such as
/// 403 are no words: descriptions quote stream names, which are often digits.
const WORDS: &[(&str, Class)] = &[
    ("already", Class::BadName), // nginx-rtmp: NetStream.Publish.BadName, "Already publishing"; SRS, Wowza
    ("in use", Class::BadName),  // Wowza: "Stream name is already in use"
    ("busy", Class::BadName),    // SRS: "stream busy"
    ("authmod", Class::Auth),    // FMS, Wowza, Akamai: "[ code=403 need auth; authmod=adobe ]"
    ("accessmanager.reject", Class::Auth), // FMS: "[ AccessManager.Reject ] : …"
    ("netstream.publish.denied", Class::Auth), // FMS; Twitch
    ("txsecret", Class::Auth),   // Tencent's URL parameters
    ("txtime", Class::Auth),
    ("wssecret", Class::Auth), // Wangsu's
    ("wsabstime", Class::Auth),
    ("hwsecret", Class::Auth), // Huawei's
    ("hwtime", Class::Auth),
    ("auth", Class::Auth), // Aliyun's auth_key; "unauthorized", "authentication failed"
    ("signature", Class::Auth),
    ("expire", Class::Auth),
    ("token", Class::Auth),
    ("forbid", Class::Auth),
    ("denied", Class::Auth),
    ("permission", Class::Auth),
    ("netstream.publish.badname", Class::BadName), // RTMP's own code, without words
    ("invalidapp", Class::App),                    // FMS, Wowza: NetConnection.Connect.InvalidApp
    ("connect.rejected", Class::App),              // SRS: NetConnection.Connect.Rejected
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amf;
    use crate::chunk::Reader;

    /// Plays the server's lines, `NAME TRANSACTION (ID | CODE DESCRIPTION…)`, after the handshake;
    /// says what the client sends and tells, and how far it got.
    fn check(script: &str, want: &str) {
        let config =
            Config { app: "live".into(), stream: "s?k=v".into(), tc_url: "rtmp://h/live".into(), ..Config::default() };
        let now = Instant::now();
        let (mut client, mut server) = (Client::new(config, now, 1), Link::new(LIMITS, WINDOW));
        while client.poll_output().is_some() {}
        client.handle_input(now, &[&[3][..], &[0; 3072]].concat()).unwrap();
        assert_eq!(client.poll_output().unwrap().len(), 1536);

        let (mut reader, mut got) = (Reader::new(LIMITS), Vec::new());
        for line in [""].into_iter().chain(script.lines().map(str::trim)) {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["finish"] => client.finish(),
                [name, transaction, id] if id.parse::<f64>().is_ok() => {
                    let id = Value::Number(id.parse().unwrap());
                    server.command(0, name, transaction.parse().unwrap(), &[Value::Null, id]);
                }
                [name, transaction, code, ref description @ ..] => {
                    let level = if code.ends_with("Start") { "status" } else { "error" };
                    let description = description.first().copied().unwrap_or_default();
                    let info = amf::object([
                        ("level", level.into()),
                        ("code", code.into()),
                        ("description", description.into()),
                    ]);
                    server.command(0, name, transaction.parse().unwrap(), &[Value::Null, info]);
                }
                _ => assert_eq!(line, ""),
            }
            while let Some(bytes) = server.output.pop_front() {
                client.handle_input(now, &bytes).unwrap();
            }
            while let Some(event) = client.poll_event() {
                got.push(match event {
                    Event::Publishing => "Publishing".to_owned(),
                    Event::Rejected { code, class, .. } => format!("{class:?}({code})"),
                });
            }
            while let Some(bytes) = client.poll_output() {
                let mut bytes = &bytes[..];
                while let Some(raw) = reader.read(&mut bytes).unwrap() {
                    let it = Command::parse(&raw).unwrap();
                    got.push(format!("{}:{}", it.stream, it.name));
                }
            }
        }
        got.push(format!("[{:?}]", client.phase()));
        assert_eq!(got.join(" "), want, "{script}");
    }

    #[test]
    fn it_publishes_in_the_order_of_fmle_and_says_goodbye() {
        check("", "0:connect [Connect]");
        check(
            "_result 1 NetConnection.Connect.Success\n_error 2 x\n_result 4 7",
            "0:connect 0:releaseStream 0:FCPublish 0:createStream 7:publish [Publish]",
        );
        check(
            "_result 1 x\n_result 4 1\nonStatus 0 NetStream.Publish.Start\nfinish\nonStatus 0 NetStream.Unpublish.Success",
            "0:connect 0:releaseStream 0:FCPublish 0:createStream 1:publish Publishing \
             0:FCUnpublish 0:deleteStream [Publishing]",
        );
    }

    #[test]
    fn a_refusal_is_told_once_and_named() {
        for (line, want) in [
            ("_error 1 NetConnection.Connect.Rejected no such app", "App(NetConnection.Connect.Rejected)"),
            ("_error 1 NetConnection.Connect.InvalidApp", "App(NetConnection.Connect.InvalidApp)"),
            ("_error 1 strange", "App(strange)"),
            (
                "_error 1 NetConnection.Connect.Rejected [ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : ",
                "Auth(NetConnection.Connect.Rejected)",
            ),
            ("close 0 x", "App(x)"),
        ] {
            check(&format!("{line}\n{line}"), &format!("0:connect {want} [Connect]"));
        }
        for (line, want) in [
            ("onStatus 0 NetStream.Publish.BadName Already publishing", "BadName(NetStream.Publish.BadName)"),
            ("onStatus 0 NetStream.Publish.BadName", "BadName(NetStream.Publish.BadName)"),
            ("onStatus 0 NetStream.Publish.BadName auth_key is wrong", "Auth(NetStream.Publish.BadName)"),
            ("onStatus 0 NetStream.Publish.Denied", "Auth(NetStream.Publish.Denied)"),
            ("onStatus 0 NetStream.Publish.Failed txSecret expired", "Auth(NetStream.Publish.Failed)"),
            ("onStatus 0 NetStream.Publish.Failed disk full", "Other(NetStream.Publish.Failed)"),
            ("_error 5 NetStream.Failed", "Other(NetStream.Failed)"),
        ] {
            check(
                &format!("_result 1 x\n_result 4 1\n{line}\n{line}"),
                &format!("0:connect 0:releaseStream 0:FCPublish 0:createStream 1:publish {want} [Publish]"),
            );
        }
    }

    #[test]
    fn a_publish_that_the_server_ends_is_told() {
        check(
            "_result 1 x\n_result 4 1\nonStatus 0 NetStream.Publish.Start\nonStatus 0 NetStream.Unpublish.Success",
            "0:connect 0:releaseStream 0:FCPublish 0:createStream 1:publish Publishing \
             Other(NetStream.Unpublish.Success) [Publishing]",
        );
    }

    #[test]
    fn a_result_takes_a_publish_and_an_error_to_no_command_of_ours_ends_none() {
        let published = "0:connect 0:releaseStream 0:FCPublish 0:createStream 1:publish Publishing";
        for (script, want) in [
            ("_result 5 1\nonStatus 0 NetStream.Publish.Start\n_error 0 NetConnection.Call.Failed", ""),
            ("_result 5 1\n_error 5 NetStream.Failed", " Other(NetStream.Failed)"),
        ] {
            check(&format!("_result 1 x\n_result 4 1\n{script}"), &format!("{published}{want} [Publishing]"));
        }
    }

    #[test]
    fn each_phase_has_its_timeout() {
        let now = Instant::now();
        let mut client = Client::new(Config::default(), now, 1);
        let at = client.poll_timeout().unwrap();
        assert_eq!(client.handle_timeout(now), Ok(()));
        assert_eq!(client.handle_timeout(at), Err(Error::HandshakeTimeout));
        client.handle_input(now, &[&[3][..], &[0; 3072]].concat()).unwrap();
        let at = client.poll_timeout().unwrap();
        assert_eq!(client.handle_timeout(at), Err(Error::CommandTimeout));
    }
}
