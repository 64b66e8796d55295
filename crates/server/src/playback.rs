//! `GET /media/…`: finished recordings, for players and downloads.
//!
//! What is served is what a row says is there: its file, and the segments beside it where that is a playlist. Bytes come
//! from the disk or, where the local copy is gone, through here from the bucket, so that an address stays good over the move.
//!
//! Invariant: a file is reached by the key of a row that is not open, not being deleted and not over its time, or by a segment's name beside it;
//! no other part of a request gets into a path.

use std::io::SeekFrom;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use headers::{
    AcceptRanges, ContentLength, ContentRange, ETag, HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfRange,
    IfUnmodifiedSince, LastModified,
};
use http_range_header::{EndPosition, StartPosition, SyntacticallyCorrectRange};
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;
use tracing::warn;

use crate::clock::unix_ms;
use crate::config::Apps;
use crate::object::{Objects, Urls, content_type};
use crate::segment::PLAYLIST;
use crate::store::{File, FileState, Store};

/// Bytes read from a file at a time, and so what a slow player holds.
const CHUNK: usize = 64 << 10;

/// How long, in seconds, who asked once need not ask again. A file never changes, but it may be deleted.
const CACHED: u64 = 3600;

/// What serves media.
pub struct Doors {
    /// Whose secrets sign addresses.
    pub apps: Arc<Apps>,
    /// Where it is said what there is.
    pub store: Store,
    /// Where it is.
    pub objects: Objects,
    /// How addresses are signed.
    pub urls: Urls,
}

/// Serves `/media`, to pages of any origin.
pub fn router(doors: Arc<Doors>) -> Router {
    Router::new().route("/media/{*path}", get(serve).options(preflight)).with_state(doors)
}

async fn preflight() -> Response {
    const ASKED: &str = "Range, If-Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since";
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, ASKED),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ];
    open_to_all((StatusCode::NO_CONTENT, headers).into_response())
}

async fn serve(
    State(doors): State<Arc<Doors>>,
    method: Method,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response {
    open_to_all(doors.answer(&method, &path, &headers).await.unwrap_or_else(IntoResponse::into_response))
}

fn open_to_all(mut answer: Response) -> Response {
    const EXPOSED: &str = "Accept-Ranges, Content-Length, Content-Range, ETag, Last-Modified";
    let headers: [(HeaderName, &str); 4] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED),
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    answer.headers_mut().extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
    answer
}

/// An answer without media.
type Refusal = (StatusCode, &'static str);

const ABSENT: Refusal = (StatusCode::NOT_FOUND, "no such media file\n");
const STORE: Refusal = (StatusCode::SERVICE_UNAVAILABLE, "the database cannot be read\n");
const BUCKET: Refusal = (StatusCode::BAD_GATEWAY, "the bucket cannot be read\n");

impl Doors {
    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
        // An AppId has no `-`, a pass has.
        let (pass, key) = match path.split_once('/') {
            Some((pass, key)) if pass.contains('-') => (Some(pass), key),
            _ => (None, path),
        };
        let (file, key) = self.find(key).await?.ok_or(ABSENT)?;
        let app = self.apps.get(file.key.app()).ok_or(ABSENT)?;
        let left = match self.urls.check(&app, &file.path, pass, unix_ms()) {
            Ok(left) => left,
            Err(why) => return Ok((StatusCode::FORBIDDEN, format!("{why}\n")).into_response()),
        };
        let cached = match left {
            Some(left) => format!("private, max-age={}", left.as_secs().min(CACHED)),
            None => format!("public, max-age={CACHED}"),
        };

        let mut media = self.open(&key).await?;
        // What SearchMedia says; on the disk and in a bucket the same.
        if key == file.path
            && let Ok(tag) = format!("\"{}\"", file.etag).parse()
        {
            media.etag = tag;
        }
        let mut about = HeaderMap::new();
        about.typed_insert(AcceptRanges::bytes());
        about.typed_insert(media.etag.clone());
        about.typed_insert(LastModified::from(media.modified));
        about.insert(header::CACHE_CONTROL, cached.try_into().expect("a number and words"));
        let (status, range) = match media.wanted(method, headers) {
            Wanted::Nothing => return Ok((StatusCode::NOT_MODIFIED, about).into_response()),
            Wanted::Another => return Ok((StatusCode::PRECONDITION_FAILED, about).into_response()),
            Wanted::Impossible => {
                about.typed_insert(ContentRange::unsatisfied_bytes(media.size));
                return Ok((StatusCode::RANGE_NOT_SATISFIABLE, about).into_response());
            }
            Wanted::Part(range) => {
                about.typed_insert(ContentRange::bytes(range.clone(), media.size).expect("the range is within"));
                (StatusCode::PARTIAL_CONTENT, *range.start()..range.end() + 1)
            }
            Wanted::All => (StatusCode::OK, 0..media.size),
        };
        about.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&key)));
        about.typed_insert(ContentLength(range.end - range.start));
        let body = match media.place {
            _ if *method == Method::HEAD || range.is_empty() => Body::empty(),
            Place::Disk(mut file) => {
                file.seek(SeekFrom::Start(range.start)).await.map_err(|_| ABSENT)?;
                Body::from_stream(ReaderStream::with_capacity(file.take(range.end - range.start), CHUNK))
            }
            Place::Bucket(path) => {
                let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
                let bucket = self.objects.bucket().ok_or(ABSENT)?;
                let found = bucket.store.get_opts(&path, options).await.map_err(refusal)?;
                Body::from_stream(found.into_stream())
            }
        };
        Ok((status, about, body).into_response())
    }

    /// The row that answers for `key`, and the key of the bytes themselves.
    async fn find(&self, key: &str) -> Result<Option<(File, String)>, Refusal> {
        let rows = async {
            let mut tx = self.store.read().await?;
            if let Some(file) = tx.file_by_path(key).await? {
                return Ok(Some((file.clone(), file.path)));
            }
            let Some((folder, name)) = key.rsplit_once('/').filter(|(_, name)| is_segment(name)) else {
                return Ok(None);
            };
            let file = tx.file_by_path(&format!("{folder}/{PLAYLIST}")).await?;
            Ok(file.map(|file| {
                // What a stream is called may end alike.
                let key = file.path.trim_end_matches(PLAYLIST).to_owned() + name;
                (file, key)
            }))
        };
        let found = rows.await.map_err(|error: crate::store::Error| {
            warn!(%error, "a media file was asked for");
            STORE
        })?;
        let now_ms = unix_ms();
        let is_there = |file: &File| {
            matches!(file.state, FileState::Stored | FileState::Ready)
                && (file.expire_ms == 0 || file.expire_ms > now_ms)
        };
        Ok(found.filter(|(file, _)| is_there(file)))
    }

    async fn open(&self, key: &str) -> Result<Media, Refusal> {
        if let Ok(file) = tokio::fs::File::open(self.objects.local(key)).await
            && let Ok(about) = file.metadata().await
            && about.is_file()
        {
            let (size, modified) = (about.len(), about.modified().unwrap_or(UNIX_EPOCH));
            return Ok(Media { size, modified, etag: etag(modified, size), place: Place::Disk(file) });
        }
        let bucket = self.objects.bucket().ok_or(ABSENT)?;
        let path = bucket.path(key);
        let found = bucket.store.head(&path).await.map_err(refusal)?;
        let (size, modified) = (found.size, found.last_modified.into());
        let told = found.e_tag.and_then(|it| it.parse().ok());
        Ok(Media { size, modified, etag: told.unwrap_or_else(|| etag(modified, size)), place: Place::Bucket(path) })
    }
}

/// A file that was changed then and has this size.
fn etag(modified: SystemTime, size: u64) -> ETag {
    let nanos = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("\"{nanos:x}-{size:x}\"").parse().expect("hexadecimal digits in quotes")
}

/// What players find beside a playlist.
fn is_segment(name: &str) -> bool {
    let plain = name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    plain && !name.starts_with('.') && [".ts", ".m4s", ".mp4"].iter().any(|end| name.ends_with(end))
}

fn refusal(error: object_store::Error) -> Refusal {
    match error {
        object_store::Error::NotFound { .. } => ABSENT,
        error => {
            warn!(%error, "the bucket does not give a file");
            BUCKET
        }
    }
}

/// A file that is there.
struct Media {
    size: u64,
    modified: SystemTime,
    etag: ETag,
    place: Place,
}

enum Place {
    Disk(tokio::fs::File),
    Bucket(object_store::path::Path),
}

/// What of a file a request gets.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(RangeInclusive<u64>),
    /// The asker has it already.
    Nothing,
    /// The asker means another file than this one.
    Another,
    /// All that is asked for lies behind the end.
    Impossible,
}

impl Media {
    /// In the order of RFC 9110 §13.2.2. Of several ranges at once we make the whole file (§14.2 allows it); only GET has ranges (§14.2).
    fn wanted(&self, method: &Method, headers: &HeaderMap) -> Wanted {
        let meant = match headers.typed_get::<IfMatch>() {
            Some(it) => it.precondition_passes(&self.etag),
            None => headers.typed_get::<IfUnmodifiedSince>().is_none_or(|it| it.precondition_passes(self.modified)),
        };
        if !meant {
            return Wanted::Another;
        }
        let known = match headers.typed_get::<IfNoneMatch>() {
            Some(it) => !it.precondition_passes(&self.etag),
            None => headers.typed_get::<IfModifiedSince>().is_some_and(|it| !it.is_modified(self.modified)),
        };
        if known {
            return Wanted::Nothing;
        }
        let modified = self.modified.into();
        let same = |it: IfRange| !it.is_modified(Some(&self.etag), Some(&modified));
        if headers.contains_key(header::IF_RANGE) && !headers.typed_get::<IfRange>().is_some_and(same) {
            return Wanted::All;
        }
        let range = headers.get(header::RANGE).filter(|_| *method == Method::GET).and_then(|it| it.to_str().ok());
        let Some(Ok(ranges)) = range.map(http_range_header::parse_range_header) else { return Wanted::All };
        let mut parts = ranges.ranges.iter().filter_map(|range| self.part(range));
        match (parts.next(), ranges.ranges.len()) {
            (None, _) => Wanted::Impossible,
            (Some(part), 1) => Wanted::Part(part),
            _ => Wanted::All,
        }
    }

    /// What there is of a range. A suffix that is longer than the file is all of it (§14.1.2).
    fn part(&self, range: &SyntacticallyCorrectRange) -> Option<RangeInclusive<u64>> {
        let end = self.size.checked_sub(1)?;
        let first = match range.start {
            StartPosition::Index(first) => first,
            StartPosition::FromLast(count) => self.size.saturating_sub(count),
        };
        let last = match range.end {
            EndPosition::Index(last) => last.min(end),
            EndPosition::LastByte => end,
        };
        (first <= last).then_some(first..=last)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config;
    use crate::store::tests::{Dir, file};

    /// What a file of 1000 bytes with the tag `"a"`, changed in the second 1 000 000 000, gives to these headers.
    fn check(headers: &[(HeaderName, &str)], want: Wanted) {
        check_method(&Method::GET, headers, want);
    }

    fn check_method(method: &Method, headers: &[(HeaderName, &str)], want: Wanted) {
        let media = Media {
            size: 1000,
            modified: UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            etag: "\"a\"".parse().unwrap(),
            place: Place::Bucket(object_store::path::Path::default()),
        };
        let map = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
        assert_eq!(media.wanted(method, &map), want, "{method} {headers:?}");
    }

    #[test]
    fn a_range_is_served_alone_and_only_of_the_file_that_is_meant() {
        use header::{IF_RANGE, RANGE};
        check(&[], Wanted::All);
        check(&[(RANGE, "bytes=0-0")], Wanted::Part(0..=0));
        check_method(&Method::HEAD, &[(RANGE, "bytes=0-0")], Wanted::All);
        check(&[(RANGE, "bytes=990-")], Wanted::Part(990..=999));
        check(&[(RANGE, "bytes=990-5000")], Wanted::Part(990..=999));
        check(&[(RANGE, "bytes=-10")], Wanted::Part(990..=999));
        check(&[(RANGE, "bytes=1000-")], Wanted::Impossible);
        check(&[(RANGE, "bytes=-1000")], Wanted::Part(0..=999));
        check(&[(RANGE, "bytes=-1001")], Wanted::Part(0..=999));
        check(&[(RANGE, "bytes=0-1,5-6")], Wanted::All);
        check(&[(RANGE, "bytes=0-,-1")], Wanted::All);
        check(&[(RANGE, "bytes=1000-,0-1")], Wanted::All);
        check(&[(RANGE, "bytes=1000-,2000-2001")], Wanted::Impossible);
        check(&[(RANGE, "lines=1-2")], Wanted::All);
        check(&[(RANGE, "bytes=0-9"), (IF_RANGE, "\"a\"")], Wanted::Part(0..=9));
        check(&[(RANGE, "bytes=0-9"), (IF_RANGE, "\"b\"")], Wanted::All);
        check(&[(RANGE, "bytes=0-9"), (IF_RANGE, "Sun, 09 Sep 2001 01:46:40 GMT")], Wanted::Part(0..=9));
        check(&[(RANGE, "bytes=0-9"), (IF_RANGE, "Sun, 09 Sep 2001 01:46:39 GMT")], Wanted::All);
        check(&[(RANGE, "bytes=0-9"), (IF_RANGE, "nonsense")], Wanted::All);
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        use header::{IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE};
        check(&[(IF_NONE_MATCH, "\"b\", \"a\"")], Wanted::Nothing);
        check(&[(IF_NONE_MATCH, "*"), (RANGE, "bytes=0-1")], Wanted::Nothing);
        check(&[(IF_NONE_MATCH, "\"b\"")], Wanted::All);
        check(&[(IF_MODIFIED_SINCE, "Sun, 09 Sep 2001 01:46:40 GMT")], Wanted::Nothing);
        check(&[(IF_MODIFIED_SINCE, "Sun, 09 Sep 2001 01:46:39 GMT")], Wanted::All);
        let both = [(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, "Sun, 09 Sep 2001 01:46:40 GMT")];
        check(&both, Wanted::All);
    }

    #[test]
    fn nothing_is_sent_of_another_file_than_is_meant() {
        use header::{IF_MATCH, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};
        check(&[(IF_MATCH, "\"b\", \"a\"")], Wanted::All);
        check(&[(IF_MATCH, "*"), (RANGE, "bytes=0-1")], Wanted::Part(0..=1));
        check(&[(IF_MATCH, "\"b\"")], Wanted::Another);
        check(&[(IF_MATCH, "W/\"a\"")], Wanted::Another);
        check(&[(IF_MATCH, "\"b\""), (RANGE, "bytes=0-1"), (IF_RANGE, "\"a\"")], Wanted::Another);
        check(&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")], Wanted::Another);
        check(&[(IF_UNMODIFIED_SINCE, "Sun, 09 Sep 2001 01:46:40 GMT")], Wanted::All);
        check(&[(IF_UNMODIFIED_SINCE, "Sun, 09 Sep 2001 01:46:39 GMT")], Wanted::Another);
        check(&[(IF_UNMODIFIED_SINCE, "nonsense")], Wanted::All);
        check(&[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, "Sun, 09 Sep 2001 01:46:39 GMT")], Wanted::All);
    }

    #[tokio::test]
    async fn a_file_whose_time_is_over_is_not_there_though_its_row_is() {
        let dir = Dir::new();
        let store = dir.open().await;
        let doors = Doors {
            apps: Arc::new(Apps::new(Vec::new())),
            objects: Objects::new(&config::Media::default(), dir.path()).unwrap(),
            urls: Urls { public_url: "http://h".into(), ttl: None },
            store: store.clone(),
        };
        for (id, expire_ms, want) in [("0", 0, true), ("1", unix_ms() - 1, false), ("2", unix_ms() + 3_600_000, true)] {
            let file =
                File { state: FileState::Ready, expire_ms, path: format!("7/{id}/index.m3u8"), ..file("show", id) };
            let mut tx = store.begin().await.unwrap();
            tx.file_open(&file).await.unwrap();
            tx.commit().await.unwrap();
            for key in [file.path.clone(), format!("7/{id}/0.ts")] {
                assert_eq!(doors.find(&key).await.unwrap().is_some(), want, "{key}");
            }
        }
    }

    #[test]
    fn only_names_of_segments_stand_beside_a_playlist() {
        let check = |name: &str, want: bool| assert_eq!(is_segment(name), want, "{name}");
        check("0.ts", true);
        check("init-1.mp4", true);
        check("12.m4s", true);
        for name in ["0.ts.part", ".ts", "..", "index.m3u8", "a/0.ts", "a\\0.ts", "é.ts", "bywash.db", ""] {
            check(name, false);
        }
    }
}
