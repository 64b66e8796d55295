//! The HTTP API: a signed call in, one transaction, a reply out.
//!
//! A call travels downwards through [`Gateway::answer`]: guard, rate, parameters, order, action, commit. The
//! answer is always HTTP 200 with `{"Code","Message","RequestId","Data"}`.
//!
//! Invariant: an action writes rows and nothing else; what runs is changed by whoever [`Wake`] wakes.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::{ALLOW, CONTENT_TYPE, HOST};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bywash_media::{Environment, StreamKey};
use prometheus_client::metrics::counter::Counter;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::unix_ms;
use crate::config::{App, Apps};
use crate::live::Live;
use crate::object::Urls;
use crate::store::{self, Store, Tx};

pub mod action;
pub mod cdn;
pub mod code;
pub mod guard;
pub mod params;

use action::*;
use code::{Code, Family, Fault};
use guard::{Caller, Order, Turn};
use params::{Params, Query};

/// The largest body of a POST, in bytes.
const BODY_MAX: usize = 1 << 20;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// An API call: typed parameters, and what they do.
pub trait Action: Send + Sized + 'static {
    /// The call that `params` describe, or what is wrong with them.
    fn parse(params: &Params) -> Result<Self, Fault>;

    /// The streams whose rows the call changes: their order is kept, and they are woken afterwards.
    fn streams(&self) -> Vec<StreamKey> {
        Vec::new()
    }

    /// Carries the call out. A fault undoes what it wrote.
    fn apply(self, tx: &mut Tx, context: &Context) -> impl Future<Output = Result<Reply, Fault>> + Send;
}

/// What an action may know beside its parameters and the rows.
pub struct Context {
    /// The calling app.
    pub app: Arc<App>,
    /// The environment that IsTest names.
    pub environment: Environment,
    /// The wall clock, Unix milliseconds.
    pub now_ms: i64,
    /// What runs now, for looking.
    pub live: Arc<Live>,
    /// What of the configuration concerns actions.
    pub settings: Arc<Settings>,
}

/// The answer of an action.
pub struct Reply {
    /// `Code`; only DescribeRTCStreamState has data with one that is not 0.
    pub code: Code,
    /// `Data`.
    pub data: Value,
    /// Streams that were changed beside those of [`Action::streams`].
    pub touched: Vec<StreamKey>,
}

impl Reply {
    /// Success, nothing to say: `Data` is null.
    pub fn done() -> Reply {
        Reply::data(Value::Null)
    }

    /// Success with `Data`.
    pub fn data(data: Value) -> Reply {
        Reply { code: code::OK, data, touched: Vec::new() }
    }
}

/// One action in the table.
pub struct Row {
    /// `Action`.
    pub name: &'static str,
    /// Its codes.
    pub family: &'static Family,
    /// Calls a second for one app: production, test.
    pub limit: (usize, usize),
    effect: Effect,
    parse: fn(&Params) -> Result<Box<dyn Parsed>, Fault>,
}

/// What an action does to the rows.
#[derive(Clone, Copy)]
enum Effect {
    /// Looks at them.
    Read,
    /// Changes them.
    Write,
    /// Changes them in the order of its streams' Sequence; the text names the actions that share the order.
    Ordered(&'static str),
}

const fn row<A: Action>(name: &'static str, family: &'static Family, limit: (usize, usize), effect: Effect) -> Row {
    Row { name, family, limit, effect, parse: |params| Ok(Box::new(A::parse(params)?)) }
}

use Effect::{Ordered, Read, Write};
use code::{CDN, DISPATCH, STREAM, TRANSFER};

/// The actions, alphabetic.
#[rustfmt::skip]
pub static ACTIONS: &[Row] = &[
    row::<ClearCdnTransferRule>("ClearCDNTransferRule", &TRANSFER, (10, 5), Ordered("transfer")),
    row::<CreatCdnTransferRule>("CreatCDNTransferRule", &TRANSFER, (10, 5), Ordered("transfer")),
    row::<DeleteCdnTransferRule>("DeleteCDNTransferRule", &TRANSFER, (10, 5), Ordered("transfer")),
    row::<DeleteMedia>("DeleteMedia", &CDN, (20, 20), Write),
    row::<DescribeCdnRecords>("DescribeCDNRecords", &TRANSFER, (20, 20), Read),
    row::<DescribeCdnTransferRules>("DescribeCDNTransferRules", &TRANSFER, (20, 20), Read),
    row::<DescribeCallbacks>("DescribeCallbacks", &TRANSFER, (20, 20), Read),
    row::<DescribeMediaTask>("DescribeMediaTask", &CDN, (20, 20), Read),
    row::<DescribeRtcStreamState>("DescribeRTCStreamState", &STREAM, (40, 10), Read),
    row::<DescribeStreams>("DescribeStreams", &TRANSFER, (20, 20), Read),
    row::<ForbidRtcStream>("ForbidRTCStream", &STREAM, (20, 5), Ordered("forbid")),
    row::<ForbidRtcStreams>("ForbidRTCStreams", &STREAM, (20, 5), Ordered("forbid")),
    row::<MergeMedia>("MergeMedia", &CDN, (20, 20), Write),
    row::<RtmpDispatch>("RTMPDispatch", &DISPATCH, (40, 40), Read),
    row::<RtmpDispatchV2>("RTMPDispatchV2", &DISPATCH, (40, 40), Read),
    row::<ResumeRtcStream>("ResumeRTCStream", &STREAM, (20, 5), Ordered("forbid")),
    row::<ResumeRtcStreams>("ResumeRTCStreams", &STREAM, (20, 5), Ordered("forbid")),
    row::<RetryCdnTransferRule>("RetryCDNTransferRule", &TRANSFER, (20, 20), Write),
    row::<RetryCallbacks>("RetryCallbacks", &TRANSFER, (20, 20), Write),
    row::<SearchMedia>("SearchMedia", &CDN, (20, 20), Read),
    row::<StartCdnRecord>("StartCDNRecord", &CDN, (20, 20), Write),
    row::<StopCdnRecord>("StopCDNRecord", &CDN, (20, 20), Write),
];

/// The row of an action.
fn row_of(name: &str) -> Option<&'static Row> {
    ACTIONS.binary_search_by(|row| row.name.cmp(name)).ok().map(|n| &ACTIONS[n])
}

/// An [`Action`] whose type is forgotten.
trait Parsed: Send {
    fn streams(&self) -> Vec<StreamKey>;
    fn apply<'a>(self: Box<Self>, tx: &'a mut Tx, context: &'a Context) -> Applied<'a>;
}

type Applied<'a> = Pin<Box<dyn Future<Output = Result<Reply, Fault>> + Send + 'a>>;

impl<A: Action> Parsed for A {
    fn streams(&self) -> Vec<StreamKey> {
        Action::streams(self)
    }

    fn apply<'a>(self: Box<Self>, tx: &'a mut Tx, context: &'a Context) -> Applied<'a> {
        Box::pin(Action::apply(*self, tx, context))
    }
}

/// What of the configuration concerns the API.
pub struct Settings {
    /// The addresses of media files; they begin with the public URL, as others given to callers do.
    pub urls: Urls,
    /// Where RTMP is taken in.
    pub rtmp_listen: SocketAddr,
    /// Whether rules may push to loopback, private and link-local addresses.
    pub allow_private_targets: bool,
    /// Where this server takes RTMP in, to tell a relay to ourselves.
    pub own_addresses: Vec<SocketAddr>,
}

/// What a committed call asks the rest of the server to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Rows of this stream changed.
    Stream(StreamKey),
}

/// The moment of a call.
#[derive(Clone, Copy)]
struct Now {
    wall_ms: i64,
    instant: Instant,
}

impl Now {
    fn read() -> Now {
        Now { wall_ms: unix_ms(), instant: Instant::now() }
    }
}

/// The API's front door.
pub struct Gateway {
    apps: Arc<Apps>,
    store: Store,
    live: Arc<Live>,
    wake: Arc<dyn Fn(Wake) + Send + Sync>,
    settings: Arc<ArcSwap<Settings>>,
    calls: Counter,
    limits: guard::Limits,
}

impl Gateway {
    /// A gateway that tells `wake` what its calls changed.
    pub fn new(
        apps: Arc<Apps>,
        store: Store,
        live: Arc<Live>,
        wake: Arc<dyn Fn(Wake) + Send + Sync>,
        settings: Arc<ArcSwap<Settings>>,
        calls: Counter,
    ) -> Gateway {
        Gateway { apps, store, live, wake, settings, calls, limits: guard::Limits::default() }
    }

    /// `GET /?Action=…` and `POST /?Action=…`. A HEAD would carry the call out and keep what came of it: there is none.
    pub fn router(self: Arc<Self>) -> Router {
        let answer = move |request: Request| {
            let gateway = self.clone();
            async move { gateway.answer(request, Now::read()).await }
        };
        let no_head = async || (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET,POST")]);
        Router::new().route("/", get(answer.clone()).post(answer).head(no_head))
    }

    async fn answer(&self, request: Request, now: Now) -> Response {
        self.calls.inc();
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let caller = host(request.headers()).and_then(|()| guard::caller(&query, &self.apps, now.wall_ms));
        let outcome = match caller {
            // A fault of the guard has its code whatever the action.
            Err(fault) => Outcome::of(code::TRANSFER.tell(fault), Value::Null),
            Ok(caller) => self.call(&caller, query, request, now).await.unwrap_or_else(|fault| {
                if let Fault::Store(error) = &fault {
                    tracing::error!(app = caller.app.id, action = caller.row.name, %error, "call failed");
                }
                Outcome::of(caller.row.family.tell(fault), Value::Null)
            }),
        };
        outcome.into_response()
    }

    async fn call(&self, caller: &Caller, mut query: Query, request: Request, now: Now) -> Result<Outcome, Fault> {
        let Caller { app, row } = caller;
        let environment = caller.environment(&query)?;
        self.limits.admit(app.id, environment, row, now.instant)?;
        if request.method() == Method::POST {
            query.overlay(body(request).await.map_err(|why| row.family.parameter.because(why))?);
        }
        let params = Params { app: app.id, environment, family: row.family, values: query };
        let action = (row.parse)(&params)?;
        let streams = action.streams();
        let context = Context {
            app: app.clone(),
            environment,
            now_ms: now.wall_ms,
            live: self.live.clone(),
            settings: self.settings.load_full(),
        };

        let mut tx = match row.effect {
            Read => self.store.read().await?,
            Write | Ordered(_) => self.store.begin().await?,
        };
        let order = match row.effect {
            Ordered(family) => {
                match Order::check(&mut tx, &params, row.name, family, streams.clone(), now.wall_ms).await? {
                    Turn::Next(order) => Some(order),
                    Turn::Again(outcome) => return Ok(outcome),
                }
            }
            Read | Write => None,
        };
        let Reply { code, data, touched } = action.apply(&mut tx, &context).await?;
        let message = if code == code::OK { row.family.ok } else { code.message };
        let outcome = Outcome::of((code, message.into()), data);
        if let Some(order) = order {
            order.accept(&mut tx, &outcome, now.wall_ms).await?;
        }
        if !matches!(row.effect, Read) {
            let touched = streams.into_iter().chain(touched).collect();
            self.commit(tx, row.name, touched).await?;
        }
        Ok(outcome)
    }

    /// Commits and wakes as one: a caller who hangs up, and with that drops our future, does not come in between.
    async fn commit(&self, tx: Tx, action: &'static str, touched: Vec<StreamKey>) -> Result<(), store::Error> {
        let wake = self.wake.clone();
        let task = tokio::spawn(async move {
            tx.commit().await?;
            for key in touched {
                tracing::info!(stream = %key, action, "called");
                wake(Wake::Stream(key));
            }
            Ok(())
        });
        task.await.unwrap_or_else(|error| Err(store::Error::Other(error.to_string())))
    }
}

/// A request names its host once, and as a host.
fn host(headers: &HeaderMap) -> Result<(), Fault> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(code::BAD_HOST.into()) };
    let host = Authority::try_from(host.as_bytes()).map_err(|_| code::BAD_HOST)?;
    let rest = host.as_str().strip_prefix(host.host()).filter(|_| !host.host().is_empty());
    match rest {
        Some("") => Ok(()),
        Some(_) if host.port_u16().is_some() => Ok(()),
        _ => Err(code::BAD_HOST.into()),
    }
}

/// The parameters in the body of a POST: a JSON object whatever it is called, or a form that is called one. Nothing but white space is
/// an empty object.
async fn body(request: Request) -> Result<Map<String, Value>, &'static str> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is_form = kind.eq_ignore_ascii_case("application/x-www-form-urlencoded");
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, to_bytes(request.into_body(), BODY_MAX)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return Err("the body is larger than 1 MiB or broke off"),
        Err(_) => return Err("the body did not arrive within 10 s"),
    };
    // Some clients begin UTF-8 with a byte order mark.
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes).trim_ascii();
    if text.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(text) {
        Ok(object) => Ok(object),
        Err(_) if is_form => Ok(params::form(text)),
        Err(_) => Err("the body is neither a JSON object nor a form with its Content-Type"),
    }
}

/// What a call came to: the answer but for its RequestId. Kept to answer the same call again.
#[derive(Serialize, Deserialize)]
pub struct Outcome {
    code: u32,
    message: String,
    data: Value,
}

impl Outcome {
    fn of((code, message): (Code, std::borrow::Cow<'static, str>), data: Value) -> Outcome {
        Outcome { code: code.number, message: message.into_owned(), data }
    }

    fn into_response(self) -> Response {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Envelope {
            code: u32,
            message: String,
            request_id: String,
            data: Value,
        }
        let request_id = rand::rng().random_range(1..=i64::MAX).to_string();
        let envelope = Envelope { code: self.code, message: self.message, request_id, data: self.data };
        let text = serde_json::to_string(&envelope).expect("an envelope has text keys only");
        ([(CONTENT_TYPE, "application/json")], text).into_response()
    }
}

#[cfg(test)]
mod tests;
