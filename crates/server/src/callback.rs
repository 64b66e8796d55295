//! What we tell the customer's backend: the bodies of the callbacks.
//!
//! Fields and types are ZEGO's: every scalar is a string. A body is made once and stored; each attempt to
//! deliver it sends the same bytes.

use bywash_media::{Environment, StreamKey};
use form_urlencoded::Serializer;
use rand::Rng;
use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};

use crate::config::{self, App, CallbackFormat, Vendor};
use crate::secret::Secret;
use crate::store::{File, Job, Record, Session, Status};

/// A callback to be sent, as the outbox takes it.
#[derive(Clone, PartialEq)]
pub struct Owed {
    /// Whose it is.
    pub app: u32,
    /// Of which environment.
    pub environment: Environment,
    /// ZEGO's `event`.
    pub event: &'static str,
    /// The stream it tells of.
    pub stream: String,
    /// Where it goes.
    pub url: String,
    /// How `body` is written.
    pub format: CallbackFormat,
    /// What is sent.
    pub body: String,
}

/// `type` of `stream_close`: how a publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The publisher said so.
    Normal = 0,
    /// Nothing came from it any more.
    Heartbeat = 1,
    /// The server ended it; ZEGO has no value of its own for a forbidden stream.
    Kicked = 3,
    /// Its connection broke.
    TcpDrop = 4,
}

/// All events.
pub const EVENTS: [&str; 6] = ["stream_create", "stream_close", "relay_state", "record", "record_state", "compose"];

/// Where an app takes an event now. `None` where it does not.
pub fn receiver<'a>(app: &'a App, event: &str) -> Option<&'a str> {
    let config::Callback { stream, record, compose, state, format: _ } = &app.callback;
    let url = match event {
        "stream_create" | "stream_close" => stream,
        "record" => record,
        "compose" => compose,
        _ => state,
    };
    url.as_deref()
}

/// A body in another format: the same fields, and so the same nonce and signature. `None` where it is not one of `from`.
pub fn reformat(body: &str, from: CallbackFormat, to: CallbackFormat) -> Option<String> {
    let fields = match from {
        CallbackFormat::Json => serde_json::from_str(body).ok()?,
        CallbackFormat::Form => {
            let mut fields = Fields::new();
            for (name, text) in form_urlencoded::parse(body.as_bytes()) {
                match name.split_once('[') {
                    None => drop(fields.insert(name.into(), text.into())),
                    Some((list, _)) => {
                        let list = fields.entry(list).or_insert_with(|| Value::Array(Vec::new()));
                        list.as_array_mut()?.push(text.into());
                    }
                }
            }
            fields
        }
    };
    Some(text_of(fields, to))
}

/// `stream_create`: a stream is live. `public_url` and `rtmp_base` (`rtmp://host:port`) begin the addresses at
/// which it plays; `recreate` says that it goes on after a break. `None` where the app has no URL for it.
pub fn stream_create(
    app: &App,
    public_url: &str,
    rtmp_base: &str,
    session: &Session,
    recreate: bool,
    now_ms: i64,
) -> Option<Owed> {
    let id = session.key.id();
    let play = format!("{}/live/{}/{id}", public_url.trim_end_matches('/'), app.id);
    let mut body = Body::new(app, "stream_create", now_ms)?;
    body.stream(session);
    body.text("title", "");
    body.text("stream_attr", format!(r#"{{"cid":{}}}"#, session.codec));
    body.text("create_time", (session.created_ms / 1000).to_string());
    body.text("extra_info", "");
    body.text("recreate", if recreate { "1" } else { "0" });
    body.text("publish_id", &session.user_id);
    body.text("publish_name", &session.user_id);
    body.list("rtmp_url", vec![format!("{}/{}/{id}", rtmp_base.trim_end_matches('/'), app.id)]);
    body.list("hls_url", vec![format!("{play}/index.m3u8")]);
    body.list("hdl_url", vec![format!("{play}.flv")]);
    body.list("pic_url", vec![]);
    Some(body.owed(app, &session.key))
}

/// `stream_close`: a stream is live no more. `None` where the app has no URL for it.
pub fn stream_close(app: &App, session: &Session, kind: Close, now_ms: i64) -> Option<Owed> {
    let closed_ms = if session.closed_ms > 0 { session.closed_ms } else { now_ms };
    let mut body = Body::new(app, "stream_close", now_ms)?;
    body.stream(session);
    body.text("type", (kind as i64).to_string());
    body.text("third_define_data", "");
    body.text("destroy_timemillis", closed_ms.to_string());
    Some(body.owed(app, &session.key))
}

/// `relay_state`: a relay changed its state. `masked_url` is the target without its secrets; times are Unix
/// milliseconds. `None` where the app has no URL for it.
pub fn relay_state(app: &App, key: &StreamKey, masked_url: &str, status: &Status, now_ms: i64) -> Option<Owed> {
    let mut body = Body::new(app, "relay_state", now_ms)?;
    body.text("stream_id", key.id());
    body.text("url", masked_url);
    body.text("state", (status.state as i64).to_string());
    body.text("update_reason", (status.reason as i64).to_string());
    body.text("state_time", status.state_ms.to_string());
    body.text("retries", status.retries.to_string());
    body.text("last_error", &status.last_error);
    Some(body.owed(app, key))
}

/// `record`: a recorded file is there, at `replay_url`. `None` where the app has no URL for it.
pub fn record(app: &App, replay_url: &str, file: &File, now_ms: i64) -> Option<Owed> {
    let duration = file.duration_ms as f64 / 1000.0;
    let extra = match file.vendor {
        Vendor::Tencent => json!({ "TaskId": file.record, "FileID": file.id, "Duration": duration }),
        Vendor::Ws => json!({ "PersistentId": file.path, "Duration": duration }),
        Vendor::Huawei => json!({ "Duration": duration, "ObsObject": file.path, "FileSize": file.size }),
        Vendor::Aliyun => json!({ "Duration": duration, "OssObject": file.path }),
    };
    let mut body = Body::new(app, "record", now_ms)?;
    body.text("stream_alias", file.key.id());
    body.text("replay_url", replay_url);
    body.text("begin_time", (file.begin_ms / 1000).to_string());
    body.text("end_time", (file.end_ms / 1000).to_string());
    body.text("extra_params", extra.to_string());
    if file.interrupted {
        body.text("interrupted", "1");
    }
    Some(body.owed(app, &file.key))
}

/// `record_state`: a recording changed its state. `None` where the app has no URL for it.
pub fn record_state(app: &App, record: &Record, now_ms: i64) -> Option<Owed> {
    let mut body = Body::new(app, "record_state", now_ms)?;
    body.text("stream_id", record.key.id());
    body.text("task_id", &record.id);
    body.text("vendor", record.vendor.name());
    body.text("state", record.status.state.name());
    body.text("reason", &record.status.reason);
    body.text("state_time", record.status.state_ms.to_string());
    Some(body.owed(app, &record.key))
}

/// `compose`: a merge is over, well or not. `replay_url` is that of its result, empty without. `None` where the app has no URL for it.
pub fn compose(app: &App, replay_url: &str, job: &Job, now_ms: i64) -> Option<Owed> {
    let mut body = Body::new(app, "compose", now_ms)?;
    body.text("replay_url", replay_url);
    body.text("task_id", &job.id);
    if job.vendor == Vendor::Tencent {
        body.text("file_id", &job.file);
        body.text("code", &job.code);
    }
    body.text("message", &job.message);
    Some(body.owed_for(app, job.environment, &job.request.name))
}

/// ZEGO's callback signature: SHA-1 over the secret and the two texts as sent, sorted by bytes, in hex.
pub fn signature(secret: &Secret, timestamp: &str, nonce: &str) -> String {
    let mut parts = [secret.expose(), timestamp, nonce];
    parts.sort_unstable();
    hex::encode(Sha1::digest(parts.concat()))
}

/// What a callback tells: texts and lists of texts, in the order in which the body shows them.
type Fields = Map<String, Value>;

/// A callback that is being made.
struct Body<'a> {
    event: &'static str,
    url: &'a str,
    fields: Fields,
}

impl<'a> Body<'a> {
    /// A body with what every callback has. `None` where the app does not take the event.
    fn new(app: &'a App, event: &'static str, now_ms: i64) -> Option<Body<'a>> {
        let url = receiver(app, event)?;
        let timestamp = (now_ms / 1000).to_string();
        let nonce = rand::rng().random_range(0..=i64::MAX).to_string();
        let signature = signature(&app.callback_secret, &timestamp, &nonce);
        let mut body = Body { event, url, fields: Fields::with_capacity(32) };
        body.text("event", event);
        body.text("appid", app.id.to_string());
        body.text("timestamp", timestamp);
        body.text("nonce", nonce);
        body.text("signature", signature);
        Some(body)
    }

    /// What `stream_create` and `stream_close` say alike. A publisher that is in no room has no room's id.
    fn stream(&mut self, session: &Session) {
        self.text("room_id", "");
        self.text("room_session_id", "");
        self.text("channel_id", "");
        self.text("user_id", &session.user_id);
        self.text("user_name", &session.user_id);
        self.text("stream_id", session.key.id());
        self.text("stream_alias", session.key.id());
        self.text("stream_sid", &session.sid);
        self.text("stream_seq", session.seq.to_string());
        self.text("create_time_ms", session.created_ms.to_string());
    }

    fn text(&mut self, name: &'static str, value: impl Into<String>) {
        self.fields.insert(name.into(), Value::String(value.into()));
    }

    fn list(&mut self, name: &'static str, values: Vec<String>) {
        self.fields.insert(name.into(), values.into());
    }

    fn owed(self, app: &App, key: &StreamKey) -> Owed {
        self.owed_for(app, key.environment(), key.id())
    }

    /// A callback that tells of what is called `name`, a stream or not.
    fn owed_for(self, app: &App, environment: Environment, name: &str) -> Owed {
        Owed {
            app: app.id,
            environment,
            event: self.event,
            stream: name.to_owned(),
            url: self.url.to_owned(),
            format: app.callback.format,
            body: text_of(self.fields, app.callback.format),
        }
    }
}

fn text_of(fields: Fields, format: CallbackFormat) -> String {
    match format {
        // ZEGO's text tells receivers to URL-decode the JSON. `%` and `+` are therefore written as escapes, which that leaves
        // alone; outside of strings, and after a backslash, JSON has neither.
        CallbackFormat::Json => Value::Object(fields).to_string().replace('%', "\\u0025").replace('+', "\\u002b"),
        CallbackFormat::Form => {
            let mut form = Serializer::new(String::new());
            for (name, value) in &fields {
                // Arrays as PHP reads them: `rtmp_url[0]=…`.
                for (n, text) in value.as_array().into_iter().flatten().enumerate() {
                    form.append_pair(&format!("{name}[{n}]"), text.as_str().unwrap_or_default());
                }
                if let Value::String(text) = value {
                    form.append_pair(name, text);
                }
            }
            form.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Callback, Cdn, PublishAuth};
    use crate::store::{Reason, State};

    fn app(format: CallbackFormat) -> App {
        App {
            id: 7,
            server_secret: Secret::default(),
            callback_secret: Secret::new("secret"),
            environment: config::Environment::Both,
            publish_auth: PublishAuth::None,
            publish_key: Secret::default(),
            play_key: Secret::default(),
            callback: Callback {
                stream: Some("http://receiver/stream".into()),
                state: Some("http://receiver/state".into()),
                format,
                ..Callback::default()
            },
            cdn: Cdn::default(),
            record: BTreeMap::new(),
            clear_whole_app: false,
            delete_media_string: false,
            stream_history: None,
        }
    }

    fn session() -> Session {
        Session {
            key: StreamKey::published(7, "zegotest-7-a").unwrap(),
            sid: "s-1".into(),
            seq: 4,
            user_id: "50% + 1 \"流\\%".into(),
            protocol: "RTMP".into(),
            publisher: "127.0.0.1:5".into(),
            codec: 3,
            heard: true,
            created_ms: 1_470_820_100_123,
            closed_ms: 0,
        }
    }

    const NOW_MS: i64 = 1_470_820_198_999;

    /// Reads a JSON body as a receiver does; says `name=value`, sorted, for all but the random fields, whose signature it
    /// checks.
    fn read(owed: &Owed) -> Vec<String> {
        let Value::Object(fields) = serde_json::from_str(&owed.body).unwrap() else { panic!("{}", owed.body) };
        let text = |name: &str| fields[name].as_str().unwrap();
        assert_eq!(text("signature"), signature(&Secret::new("secret"), text("timestamp"), text("nonce")));
        assert!(text("nonce").parse::<u64>().is_ok());
        let random = ["signature", "nonce"];
        let fields = fields.iter().filter(|(name, _)| !random.contains(&name.as_str()));
        let mut told: Vec<_> =
            fields.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or(&value.to_string()))).collect();
        told.sort();
        told
    }

    #[test]
    fn the_signature_is_zegos() {
        let secret = Secret::new("secret");
        assert_eq!(signature(&secret, "1470820198", "123412"), "5bd59fd62953a8059fb7eaba95720f66d19e4517");
    }

    #[test]
    fn stream_create_has_zegos_fields() {
        let owed =
            stream_create(&app(CallbackFormat::Json), "http://h:8080/", "rtmp://h:1935", &session(), true, NOW_MS);
        let owed = owed.unwrap();
        assert_eq!(
            (owed.event, &*owed.stream, &*owed.url),
            ("stream_create", "zegotest-7-a", "http://receiver/stream")
        );
        assert_eq!(owed.environment, Environment::Test);
        let want = r#"appid=7 channel_id= create_time=1470820100 create_time_ms=1470820100123
            event=stream_create extra_info= hdl_url=["http://h:8080/live/7/zegotest-7-a.flv"]
            hls_url=["http://h:8080/live/7/zegotest-7-a/index.m3u8"] pic_url=[] publish_id=U publish_name=U
            recreate=1 room_id= room_session_id= rtmp_url=["rtmp://h:1935/7/zegotest-7-a"]
            stream_alias=zegotest-7-a stream_attr={"cid":3} stream_id=zegotest-7-a stream_seq=4 stream_sid=s-1
            timestamp=1470820198 title= user_id=U user_name=U"#;
        let got: Vec<String> = read(&owed).iter().map(|it| it.replace(&session().user_id, "U")).collect();
        assert_eq!(got, want.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn stream_close_has_zegos_fields() {
        let owed = stream_close(&app(CallbackFormat::Json), &session(), Close::TcpDrop, NOW_MS).unwrap();
        let want = "appid=7 channel_id= create_time_ms=1470820100123 destroy_timemillis=1470820198999 \
            event=stream_close room_id= room_session_id= stream_alias=zegotest-7-a stream_id=zegotest-7-a \
            stream_seq=4 stream_sid=s-1 third_define_data= timestamp=1470820198 type=4 user_id=U user_name=U";
        let got: Vec<String> = read(&owed).iter().map(|it| it.replace(&session().user_id, "U")).collect();
        assert_eq!(got, want.split_whitespace().collect::<Vec<_>>());
        let closed = Session { closed_ms: 5, ..session() };
        let owed = stream_close(&app(CallbackFormat::Json), &closed, Close::Kicked, NOW_MS).unwrap();
        assert!(owed.body.contains(r#""destroy_timemillis":"5""#) && owed.body.contains(r#""type":"3""#));
    }

    #[test]
    fn relay_state_tells_how_a_relay_goes() {
        let status = Status {
            state: State::Requesting,
            reason: Reason::BadName,
            state_ms: 3,
            retries: 2,
            next_retry_ms: 9,
            last_error: "no".into(),
        };
        let app = app(CallbackFormat::Json);
        let owed = relay_state(&app, &session().key, "rtmp://cdn/live/a?***", &status, NOW_MS).unwrap();
        assert_eq!(owed.url, "http://receiver/state");
        let want = "appid=7 event=relay_state last_error=no retries=2 state=1 state_time=3 stream_id=zegotest-7-a \
            timestamp=1470820198 update_reason=5 url=rtmp://cdn/live/a?***";
        assert_eq!(read(&owed), want.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn a_json_body_survives_a_url_decode() {
        let owed = stream_close(&app(CallbackFormat::Json), &session(), Close::Normal, NOW_MS).unwrap();
        assert!(!owed.body.contains(['%', '+']), "{}", owed.body);
        let fields: Value = serde_json::from_str(&owed.body).unwrap();
        assert_eq!(fields["user_id"], session().user_id);
    }

    #[test]
    fn a_form_body_has_arrays_as_php_reads_them() {
        let app = app(CallbackFormat::Form);
        let owed = stream_create(&app, "http://h:8080", "rtmp://h:1935", &session(), false, NOW_MS).unwrap();
        let fields: BTreeMap<_, _> = form_urlencoded::parse(owed.body.as_bytes()).collect();
        assert_eq!(fields["rtmp_url[0]"], "rtmp://h:1935/7/zegotest-7-a");
        assert_eq!(fields["hls_url[0]"], "http://h:8080/live/7/zegotest-7-a/index.m3u8");
        assert_eq!((&*fields["recreate"], &*fields["user_id"]), ("0", &*session().user_id));
    }

    #[test]
    fn a_body_says_the_same_in_the_other_format() {
        let forms = [CallbackFormat::Json, CallbackFormat::Form];
        for (from, to) in [(forms[0], forms[1]), (forms[1], forms[0])] {
            let mut owed =
                stream_create(&app(from), "http://h:8080", "rtmp://h:1935", &session(), false, NOW_MS).unwrap();
            // A form has no empty lists.
            owed.body = owed.body.replace(",\"pic_url\":[]", "");
            let other = reformat(&owed.body, from, to).unwrap();
            assert_ne!(other, owed.body);
            assert_eq!(reformat(&other, to, from).unwrap(), owed.body);
        }
        assert_eq!(reformat("a=b", forms[0], forms[1]), None);
        assert_eq!(reformat("a=b&a[0]=c", forms[1], forms[0]), None);
    }

    #[test]
    fn an_event_without_a_url_is_not_owed() {
        let mut app = app(CallbackFormat::Json);
        app.callback = Callback::default();
        assert!(stream_create(&app, "", "", &session(), false, NOW_MS).is_none());
        assert!(stream_close(&app, &session(), Close::Normal, NOW_MS).is_none());
        assert!(relay_state(&app, &session().key, "", &Status::default(), NOW_MS).is_none());
    }
}
