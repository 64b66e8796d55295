//! What we tell the customer's backend: the bodies of the callbacks.
//!
//! Fields and types are ZEGO's: every scalar is a string. A body is made once and stored; each attempt to
//! deliver it sends the same bytes.

use bywash_media::{Environment, StreamKey};
use form_urlencoded::Serializer;
use rand::Rng;
use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::config::{App, CallbackFormat};
use crate::secret::Secret;
use crate::store::{Session, Status};

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
    let url = app.callback.stream.as_ref()?;
    let id = session.key.id();
    let play = format!("{}/live/{}/{id}", public_url.trim_end_matches('/'), app.id);
    let mut body = Body::new(app, "stream_create", now_ms);
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
    Some(body.owed(app, &session.key, url))
}

/// `stream_close`: a stream is live no more. `None` where the app has no URL for it.
pub fn stream_close(app: &App, session: &Session, kind: Close, now_ms: i64) -> Option<Owed> {
    let url = app.callback.stream.as_ref()?;
    let closed_ms = if session.closed_ms > 0 { session.closed_ms } else { now_ms };
    let mut body = Body::new(app, "stream_close", now_ms);
    body.stream(session);
    body.text("type", (kind as i64).to_string());
    body.text("third_define_data", "");
    body.text("destroy_timemillis", closed_ms.to_string());
    Some(body.owed(app, &session.key, url))
}

/// `relay_state`: a relay changed its state. `masked_url` is the target without its secrets; times are Unix
/// milliseconds. `None` where the app has no URL for it.
pub fn relay_state(app: &App, key: &StreamKey, masked_url: &str, status: &Status, now_ms: i64) -> Option<Owed> {
    let url = app.callback.state.as_ref()?;
    let mut body = Body::new(app, "relay_state", now_ms);
    body.text("stream_id", key.id());
    body.text("url", masked_url);
    body.text("state", (status.state as i64).to_string());
    body.text("update_reason", (status.reason as i64).to_string());
    body.text("state_time", status.state_ms.to_string());
    body.text("retries", status.retries.to_string());
    body.text("last_error", &status.last_error);
    Some(body.owed(app, key, url))
}

/// ZEGO's callback signature: SHA-1 over the secret and the two texts as sent, sorted by bytes, in hex.
pub fn signature(secret: &Secret, timestamp: &str, nonce: &str) -> String {
    let mut parts = [secret.expose(), timestamp, nonce];
    parts.sort_unstable();
    hex::encode(Sha1::digest(parts.concat()))
}

/// Fields in the order in which the body shows them.
struct Body {
    event: &'static str,
    fields: Vec<(&'static str, Field)>,
}

enum Field {
    Text(String),
    List(Vec<String>),
}

impl Body {
    /// A body with what every callback has.
    fn new(app: &App, event: &'static str, now_ms: i64) -> Body {
        let timestamp = (now_ms / 1000).to_string();
        let nonce = rand::rng().random_range(0..=i64::MAX).to_string();
        let signature = signature(&app.callback_secret, &timestamp, &nonce);
        let mut body = Body { event, fields: Vec::with_capacity(32) };
        body.text("event", event);
        body.text("appid", app.id.to_string());
        body.text("timestamp", timestamp);
        body.text("nonce", nonce);
        body.text("signature", signature);
        body
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
        self.fields.push((name, Field::Text(value.into())));
    }

    fn list(&mut self, name: &'static str, values: Vec<String>) {
        self.fields.push((name, Field::List(values)));
    }

    fn owed(self, app: &App, key: &StreamKey, url: &str) -> Owed {
        Owed {
            app: app.id,
            environment: key.environment(),
            event: self.event,
            stream: key.id().to_owned(),
            url: url.to_owned(),
            format: app.callback.format,
            body: match app.callback.format {
                CallbackFormat::Json => self.json(),
                CallbackFormat::Form => self.form(),
            },
        }
    }

    /// ZEGO's text tells receivers to URL-decode the JSON. `%` and `+` are therefore written as escapes, which
    /// that leaves alone; outside of strings, and after a backslash, JSON has neither.
    fn json(self) -> String {
        let mut json = String::from("{");
        for (name, field) in self.fields {
            let value = match field {
                Field::Text(text) => Value::from(text),
                Field::List(list) => Value::from(list),
            };
            let comma = if json.len() > 1 { "," } else { "" };
            json += &format!("{comma}\"{name}\":{value}");
        }
        json.push('}');
        json.replace('%', "\\u0025").replace('+', "\\u002b")
    }

    /// Arrays as PHP reads them: `rtmp_url[0]=…`.
    fn form(self) -> String {
        let mut form = Serializer::new(String::new());
        for (name, field) in self.fields {
            match field {
                Field::Text(text) => drop(form.append_pair(name, &text)),
                Field::List(list) => {
                    for (n, text) in list.iter().enumerate() {
                        form.append_pair(&format!("{name}[{n}]"), text);
                    }
                }
            }
        }
        form.finish()
    }
}
