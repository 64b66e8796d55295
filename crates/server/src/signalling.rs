//! WHIP (RFC 9725) and WHEP over HTTP: an offer in, an answer out, and the session's address for all that follows.
//!
//! Both are one protocol with the media the other way round, so one set of routes serves them.
//!
//! Invariant: every refusal is a 4xx or 503 with its reason in plain text, and costs little: token and size before all else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, LINK,
    LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bywash_media::{Codec, StreamKey, transcode};
use tokio::sync::oneshot;
use tracing::{Instrument, info, info_span, warn};

use crate::clock::unix_s;
use crate::config::{Apps, IceServer, Webrtc};
use crate::hub::Hub;
use crate::ingest::{claim, whip};
use crate::lane::Lanes;
use crate::output::whep;
use crate::plan::{Arrival, Plan, Refusal};
use crate::rendition::{Renditions, Sound};
use crate::token::{self, Denied, Purpose};
use crate::webrtc::offer::{Fragment, Offer, TEXT_MAX, Unfit};
use crate::webrtc::peer::{Command, NotOpened, Patched};
use crate::webrtc::{Id, Peer, Port};

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a session may take to answer a PATCH.
const PATCH_TIMEOUT: Duration = Duration::from_secs(5);

/// What an endpoint and a session take. What GET and HEAD bring is empty (RFC 9725 §4.1).
const ENDPOINT: &str = "POST, GET, HEAD, OPTIONS";
const SESSION: &str = "PATCH, DELETE, GET, HEAD, OPTIONS";

const SDP: &str = "application/sdp";
const FRAGMENT: &str = "application/trickle-ice-sdpfrag";

/// What the routes need.
pub struct Doors {
    /// The apps.
    pub apps: Arc<Apps>,
    /// The streams.
    pub hub: Arc<Hub>,
    /// Whom to ask for a place.
    pub plan: Plan,
    /// The threads.
    pub lanes: Arc<Lanes>,
    /// Streams with the sound that players take.
    pub renditions: Arc<Renditions>,
    /// The sessions.
    pub port: Arc<Port>,
    /// `[webrtc]`.
    pub config: Webrtc,
}

/// Bits a second of the Opus sound that is made for players of streams with other sound.
const OPUS_BIT_RATE: u32 = 96_000;

/// The routes of WHIP and WHEP.
pub fn router(doors: &Arc<Doors>) -> Router {
    let routes = |endpoint_path: &str, purpose| {
        Router::new()
            .route(endpoint_path, any(endpoint))
            .route(&format!("{endpoint_path}/{{session}}"), any(session))
            .with_state((doors.clone(), purpose))
    };
    routes("/whip/v1/{app}/{stream}", Purpose::Publish).merge(routes("/whep/v1/{app}/{stream}", Purpose::Play))
}

type Doorway = State<(Arc<Doors>, Purpose)>;

async fn endpoint(
    State((doors, purpose)): Doorway,
    Path((app, stream)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request<Body>,
) -> Response {
    let query = query.unwrap_or_default();
    let answer = match *request.method() {
        Method::POST => {
            let span = info_span!("whip", stream = format!("{app:.20}/{stream:.80}"), %peer, ?purpose);
            let opened = doors.open(purpose, (&app, &stream), &query, peer, request);
            let opened = opened.instrument(span.clone()).await;
            if let Err(Refused { status, reason, .. }) = &opened {
                info!(parent: &span, status = status.as_u16(), reason, "refused");
            }
            opened
        }
        Method::OPTIONS => {
            let trusted = doors.admit(purpose, (&app, &stream), &query, request.headers()).is_ok();
            Ok(doors.options(ENDPOINT, &[("accept-post", SDP)], trusted))
        }
        Method::GET | Method::HEAD => Ok(StatusCode::NO_CONTENT.into_response()),
        _ => Err(not_allowed(ENDPOINT)),
    };
    for_pages(answer)
}

async fn session(
    State((doors, purpose)): Doorway,
    Path((app, stream, id)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    request: Request<Body>,
) -> Response {
    let answer = match *request.method() {
        Method::PATCH => doors.patch((&app, &stream, &id), request).await,
        Method::DELETE => doors.delete((&app, &stream, &id)).await,
        Method::OPTIONS => {
            let query = query.unwrap_or_default();
            let trusted = doors.admit(purpose, (&app, &stream), &query, request.headers()).is_ok();
            Ok(doors.options(SESSION, &[("accept-patch", FRAGMENT)], trusted))
        }
        Method::GET | Method::HEAD => doors.find((&app, &stream, &id)).and_then(|(id, key)| {
            if doors.port.knows(id, &key) { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(gone()) }
        }),
        _ => Err(not_allowed(SESSION)),
    };
    for_pages(answer)
}

/// Why not, for the client and for people.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    reason: String,
    header: Option<(HeaderName, &'static str)>,
}

fn refused(status: StatusCode, reason: impl ToString) -> Refused {
    Refused { status, reason: reason.to_string(), header: None }
}

fn not_allowed(methods: &'static str) -> Refused {
    let reason = format!("this address takes {methods}");
    Refused { header: Some((ALLOW, methods)), ..refused(StatusCode::METHOD_NOT_ALLOWED, reason) }
}

impl From<Unfit> for Refused {
    fn from(unfit: Unfit) -> Refused {
        let status = match unfit {
            Unfit::Malformed(_) => StatusCode::BAD_REQUEST,
            Unfit::Unacceptable(_) => StatusCode::NOT_ACCEPTABLE,
        };
        refused(status, unfit)
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Refused {
        match denied {
            Denied::Missing => {
                Refused { header: Some((WWW_AUTHENTICATE, "Bearer")), ..refused(StatusCode::UNAUTHORIZED, denied) }
            }
            Denied::Malformed(_) | Denied::Wrong | Denied::Expired => refused(StatusCode::FORBIDDEN, denied),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        match refusal {
            Refusal::Occupied => refused(StatusCode::CONFLICT, refusal),
            Refusal::Forbidden => refused(StatusCode::FORBIDDEN, refusal),
            Refusal::Loop => refused(StatusCode::CONFLICT, refusal),
            Refusal::Draining => later(refusal),
        }
    }
}

impl From<NotOpened> for Refused {
    fn from(not: NotOpened) -> Refused {
        match not {
            NotOpened::Full(full) => later(full),
            NotOpened::Unfit(unfit) => unfit.into(),
        }
    }
}

fn later(reason: impl ToString) -> Refused {
    Refused { header: Some((RETRY_AFTER, "5")), ..refused(StatusCode::SERVICE_UNAVAILABLE, reason) }
}

/// Writes a refusal out, and lets pages of other origins read the answer.
fn for_pages(answer: Result<Response, Refused>) -> Response {
    let mut response = answer.unwrap_or_else(|Refused { status, reason, header }| {
        let mut response = (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], reason + "\n").into_response();
        response.headers_mut().extend(header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        response
    });
    let exposed = HeaderValue::from_static("Location, ETag, Link, Accept-Patch, Retry-After");
    response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response.headers_mut().insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    response
}

impl Doors {
    /// Whose stream an address names, and whether who comes with this query and head may have it.
    fn admit(
        &self,
        purpose: Purpose,
        (app, stream): (&str, &str),
        query: &str,
        headers: &HeaderMap,
    ) -> Result<(StreamKey, token::User), Refused> {
        let app = app.parse().ok().and_then(|id| self.apps.get(id));
        let app = app
            .ok_or_else(|| refused(StatusCode::NOT_FOUND, "unknown app: the address is /whip/v1/<AppId>/<StreamId>"))?;
        let key = StreamKey::published(app.id, stream);
        let rule = || refused(StatusCode::BAD_REQUEST, format!("invalid stream id: {}", StreamKey::RULE));
        let key = key.ok_or_else(rule)?;
        if !app.environment.has(key.environment()) {
            let reason = format!("the app has no {:?} environment", key.environment()).to_lowercase();
            return Err(refused(StatusCode::FORBIDDEN, reason));
        }
        let bearer = headers.get(AUTHORIZATION).and_then(|it| it.to_str().ok());
        let user = token::verify(&app, key.id(), &token::Params::parse(query).bearer(bearer), purpose, unix_s())?;
        Ok((key, user))
    }

    /// POST: opens a session.
    async fn open(
        self: &Arc<Doors>,
        purpose: Purpose,
        path: (&str, &str),
        query: &str,
        peer: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let (head, body) = request.into_parts();
        let (key, user) = self.admit(purpose, path, query, &head.headers)?;
        of_type(&head.headers, SDP)?;
        let offer = Offer::parse(&read(body).await?, purpose)?;
        if !self.port.reaches(peer.ip()) {
            warn!(stream = %key, from = %peer, "WebRTC listens on this machine's own addresses alone: set `webrtc.listen`, as \"0.0.0.0:8000\"");
        }

        let lane = self.lanes.pick().clone();
        let (id, tag, answer) = match purpose {
            Purpose::Publish => {
                // The place comes last: a stream whose session cannot be would be told of as one that came and went.
                let (mut session, answer) = Peer::open(&self.port, key.clone(), offer, purpose, &lane)?;
                let arrival = Arrival {
                    key: key.clone(),
                    protocol: "WHIP",
                    address: peer,
                    user: user.id.clone(),
                    trace: Vec::new(),
                    lane: lane.clone(),
                };
                let hold = claim(&self.plan, &self.port, arrival).await?;
                let (id, tag) = (session.id(), session.tag());
                let run = whip::run(session, hold, lane.clone(), self.config.keyframe_interval);
                self.port.spawn(&lane, run.in_current_span());
                (id, tag, answer)
            }
            Purpose::Play => {
                let stream =
                    self.hub.get(&key).ok_or_else(|| refused(StatusCode::NOT_FOUND, "the stream is not live"))?;
                let tracks = stream.tracks();
                let video = tracks.video.as_ref().map(|track| track.codec);
                if let Some(codec) = video.filter(|codec| *codec != Codec::H264) {
                    let reason = format!("the stream has {codec} pictures: WHEP plays H.264");
                    return Err(refused(StatusCode::NOT_ACCEPTABLE, reason));
                }
                let sound = Sound::Opus { bit_rate: OPUS_BIT_RATE };
                if !sound.fits(&tracks) {
                    sound.check().map_err(|error| refused(StatusCode::NOT_ACCEPTABLE, error))?;
                }
                // Beside pictures it is left out.
                if let (None, Some(track)) = (&tracks.video, &tracks.audio)
                    && !sound.takes(track.codec)
                {
                    let reason = |error| format!("{error}; WHEP plays Opus, and AAC as Opus");
                    transcode::decoder(track).map_err(|error| refused(StatusCode::NOT_ACCEPTABLE, reason(error)))?;
                }
                let (mut session, answer) = Peer::open(&self.port, key.clone(), offer, purpose, &lane)?;
                let (id, tag) = (session.id(), session.tag());
                let run = whep::run(session, stream, sound, self.renditions.clone(), lane.clone());
                self.port.spawn(&lane, run.in_current_span());
                (id, tag, answer)
            }
        };
        let place = if purpose == Purpose::Publish { "whip" } else { "whep" };
        let location = format!("/{place}/v1/{}/{}/{id}", key.app(), key.id());
        let mut response =
            (StatusCode::CREATED, [(CONTENT_TYPE, SDP), (HeaderName::from_static("accept-patch"), FRAGMENT)], answer)
                .into_response();
        let headers = response.headers_mut();
        headers.insert(LOCATION, text(&location));
        headers.insert(ETAG, text(&tag));
        self.link(headers, true);
        Ok(response)
    }

    /// PATCH: candidates as the client finds them, or a restart of ICE.
    async fn patch(&self, path: (&str, &str, &str), request: Request<Body>) -> Result<Response, Refused> {
        let (head, body) = request.into_parts();
        of_type(&head.headers, FRAGMENT)?;
        let fragment = Fragment::parse(&read(body).await?)?;
        let tag = head.headers.get(IF_MATCH).and_then(|it| it.to_str().ok()).map(str::to_owned);
        let (reply, answer) = oneshot::channel();
        self.order(path, Command::Patch(fragment, tag, reply)).await?;
        let answer = tokio::time::timeout(PATCH_TIMEOUT, answer).await;
        match answer {
            Ok(Ok(Patched::Trickled)) => Ok(StatusCode::NO_CONTENT.into_response()),
            Ok(Ok(Patched::Restarted(fragment, tag))) => {
                let mut response = ([(CONTENT_TYPE, FRAGMENT)], fragment).into_response();
                response.headers_mut().insert(ETAG, text(&tag));
                Ok(response)
            }
            Ok(Ok(Patched::Stale)) => {
                Err(refused(StatusCode::PRECONDITION_FAILED, "If-Match names an earlier ICE session"))
            }
            Ok(Ok(Patched::Unconditional)) => {
                Err(refused(StatusCode::PRECONDITION_REQUIRED, "a restart of ICE needs If-Match: *"))
            }
            Ok(Ok(Patched::Unfit(unfit))) => Err(unfit.into()),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(later("the session does not answer")),
        }
    }

    /// DELETE: ends a session.
    async fn delete(&self, path: (&str, &str, &str)) -> Result<Response, Refused> {
        self.order(path, Command::End(true)).await?;
        Ok(StatusCode::OK.into_response())
    }

    /// What a session's address names.
    fn find(&self, (app, stream, id): (&str, &str, &str)) -> Result<(Id, StreamKey), Refused> {
        let app = app.parse().map_err(|_| gone())?;
        let key = StreamKey::published(app, stream).ok_or_else(gone)?;
        Ok((id.parse().map_err(|()| gone())?, key))
    }

    async fn order(&self, path: (&str, &str, &str), command: Command) -> Result<(), Refused> {
        let (id, key) = self.find(path)?;
        if self.port.order(id, &key, command).await { Ok(()) } else { Err(gone()) }
    }

    /// OPTIONS: what a page may send, and the servers that help with ICE.
    fn options(&self, methods: &'static str, accept: &[(&'static str, &'static str)], trusted: bool) -> Response {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        for (name, value) in [
            (ACCESS_CONTROL_ALLOW_METHODS, methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, "Authorization, Content-Type, If-Match"),
            (ACCESS_CONTROL_MAX_AGE, "86400"),
            (ALLOW, methods),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        for (name, value) in accept {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        self.link(headers, trusted);
        response
    }

    /// Names the servers that help with ICE: those with a password only to whom the stream is open, or everybody could relay through them.
    fn link(&self, headers: &mut HeaderMap, trusted: bool) {
        for server in self.config.ice_servers.iter().filter(|server| trusted || server.user.is_none()) {
            headers.append(LINK, text(&link(server)));
        }
    }
}

/// A server as a `Link` (RFC 9725 §4.6).
fn link(server: &IceServer) -> String {
    let user = server.user.as_ref().map_or_else(String::new, |(name, password)| {
        let password = password.expose();
        format!("; username=\"{name}\"; credential=\"{password}\"; credential-type=\"password\"")
    });
    format!("<{}>; rel=\"ice-server\"{user}", server.uri)
}

fn gone() -> Refused {
    refused(StatusCode::NOT_FOUND, "there is no such session: it has ended, or the address is wrong")
}

/// A header of our own making or of a configuration that was checked.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

fn of_type(headers: &HeaderMap, want: &str) -> Result<(), Refused> {
    let found = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let kind = found.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case(want) {
        return Ok(());
    }
    Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("the Content-Type must be {want}")))
}

async fn read(body: Body) -> Result<axum::body::Bytes, Refused> {
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, TEXT_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let reason = format!("the body is larger than {TEXT_MAX} bytes or broke off");
            Err(refused(StatusCode::PAYLOAD_TOO_LARGE, reason))
        }
        Err(_) => Err(refused(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}
