//! Media files: where their bytes are, and the addresses under which they are reached.
//!
//! A file is named by its key, `<appid>/<StreamId>/<date>/<name>`. Its bytes are below `media` of the data folder; where a
//! bucket is configured they move there, under the same key, and the local ones go once the bucket has confirmed them.
//! HLS is a folder: its key is that of `index.m3u8`, and the segments are beside it.
//!
//! Invariant: a key is never taken from a request, only from a row; so no request reaches a file that is not of a row.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bywash_media::StreamKey;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use hmac::{Hmac, KeyInit, Mac};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ClientOptions, ObjectMeta, ObjectStore, RetryConfig};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{self, App, Format, MediaUrl};
use crate::segment::{self, PLAYLIST};

/// Makes and checks the addresses of media files.
///
/// `<public_url>/media/<key>`, or where addresses expire `<public_url>/media/<expires>-<signature>/<key>`. The signature
/// stands before the key, not behind it in a query, so that the segments of a playlist, which players
/// find beside it, are reached by the same one.
#[derive(Clone, Debug)]
pub struct Urls {
    /// What addresses begin with; no slash at its end.
    pub public_url: String,
    /// How long an address is valid; for ever, and unsigned, without.
    pub ttl: Option<Duration>,
}

impl Urls {
    /// The address of the file with this key, valid from `now_ms` (Unix milliseconds) on.
    pub fn replay(&self, app: &App, key: &str, now_ms: i64) -> String {
        const PATH: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');
        let (url, path) = (&self.public_url, utf8_percent_encode(key, &PATH));
        match self.ttl {
            Some(ttl) => {
                let expires = now_ms / 1000 + ttl.as_secs() as i64;
                format!("{url}/media/{expires}-{}/{path}", signature(app, key, expires))
            }
            None => format!("{url}/media/{path}"),
        }
    }

    /// Whether who comes with `pass`, the part of the address before the key, may have the file; if not, why.
    /// Else how long the pass is still valid.
    pub fn check(
        &self,
        app: &App,
        key: &str,
        pass: Option<&str>,
        now_ms: i64,
    ) -> Result<Option<Duration>, &'static str> {
        if self.ttl.is_none() {
            return Ok(None);
        }
        let (expires, signed) = pass.and_then(|it| it.split_once('-')).ok_or("the address is not signed")?;
        let expires: i64 = expires.parse().map_err(|_| "the signature is wrong")?;
        if !bool::from(signature(app, key, expires).as_bytes().ct_eq(signed.as_bytes())) {
            return Err("the signature is wrong");
        }
        let left = u64::try_from(expires - now_ms / 1000).ok().filter(|&it| it > 0);
        left.map(|it| Some(Duration::from_secs(it))).ok_or("the address has expired: ask for a new one")
    }
}

/// The first half of an HMAC-SHA256 (RFC 2104), in hex. The secret also signs API calls: the first word keeps the uses apart.
fn signature(app: &App, key: &str, expires: i64) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(app.server_secret.expose().as_bytes()).expect("any key length is fine");
    mac.update(format!("media {expires} {key}").as_bytes());
    hex::encode(&mac.finalize().into_bytes()[..16])
}

/// Where media files are. `clone` copies a pointer.
#[derive(Clone)]
pub struct Objects(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    uploads: PathBuf,
    bucket: Option<Bucket>,
}

/// A bucket, and where in it the files are.
pub struct Bucket {
    /// The client. It tries each request once: who uses it decides about the next.
    pub store: AmazonS3,
    prefix: String,
}

impl Objects {
    /// The files of a server with this data folder.
    pub fn new(config: &config::Media, data_dir: &Path) -> anyhow::Result<Objects> {
        let bucket = match &config.url {
            MediaUrl::File => None,
            MediaUrl::S3(bucket) => Some(Bucket::new(bucket, config).context("open the bucket of media.url")?),
        };
        let (folder, uploads) = (data_dir.join("media"), data_dir.join("upload"));
        for folder in [&folder, &uploads] {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        Ok(Objects(Arc::new(Inner { folder, uploads, bucket })))
    }

    /// The folder of all local files.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Where the file with this key is, if it is local.
    pub fn local(&self, key: &str) -> PathBuf {
        self.0.folder.join(key)
    }

    /// The folder of the notes about uploads, named for the ids of their files.
    pub fn uploads(&self) -> &Path {
        &self.0.uploads
    }

    /// A folder for what merges fetch from the bucket.
    pub fn scratch(&self) -> PathBuf {
        self.0.uploads.with_file_name("merge")
    }

    /// The bucket that finished files go to, if there is one.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.0.bucket.as_ref()
    }

    /// Deletes the local bytes of a file, all of a folder, and the folders above that are empty then. That nothing is there is fine.
    pub async fn remove_local(&self, key: &str) -> std::io::Result<()> {
        let at = self.local(key);
        let is_folder = at.ends_with(PLAYLIST);
        let gone = at.parent().filter(|_| is_folder).unwrap_or(&at).to_owned();
        let root = self.folder().to_owned();
        let remove = move || segment::remove(&root, &gone, is_folder);
        tokio::task::spawn_blocking(remove).await.map_err(std::io::Error::other)?
    }
}

impl Bucket {
    fn new(bucket: &config::Bucket, config: &config::Media) -> anyhow::Result<Bucket> {
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&bucket.name).with_region(&bucket.region);
        if let Some(endpoint) = &bucket.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let (Some(id), Some(key)) = (&config.access_key_id, &config.secret_access_key) {
            builder = builder.with_access_key_id(id.expose()).with_secret_access_key(key.expose());
        }
        let plain = bucket.endpoint.as_ref().is_some_and(|it| it.starts_with("http:"));
        // A part of 8 MiB over a thin line takes its time; one that brings nothing is dead sooner.
        let client = ClientOptions::new()
            .with_allow_http(plain)
            .with_connect_timeout(Duration::from_secs(5))
            .with_timeout(Duration::from_secs(300));
        let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let store = builder.with_client_options(client).with_retry(once).build()?;
        Ok(Bucket { store, prefix: bucket.prefix.clone() })
    }

    /// The object of the file with this key.
    pub fn path(&self, key: &str) -> object_store::path::Path {
        let parts: Vec<_> = self.prefix.split('/').chain(key.split('/')).filter(|it| !it.is_empty()).collect();
        let path = parts.join("/");
        // As it stands: the client encodes it for the address. What no object can be called so is encoded here.
        object_store::path::Path::parse(&path).unwrap_or_else(|_| path.into())
    }

    /// The objects of the file with this key; of HLS the playlist and what is beside it.
    pub fn objects(&self, key: &str) -> BoxStream<'static, object_store::Result<object_store::path::Path>> {
        match key.ends_with(PLAYLIST) {
            true => self.beside(key).map_ok(|it| it.location).boxed(),
            false => futures_util::stream::iter([Ok(self.path(key))]).boxed(),
        }
    }

    /// What the bucket has of the HLS recording whose playlist has this key.
    pub fn beside(&self, playlist: &str) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(Some(&self.path(playlist.trim_end_matches(PLAYLIST))))
    }
}

/// How long the name of a file or folder may be, in bytes, on Linux.
const NAME_MAX: usize = 255;

/// The key of a file of `stream` that begins at `begin_ms` (Unix milliseconds), the `number`th of `task`:
/// `<appid>/<StreamId>/<yyyy-mm-dd>/<hhmmss>-<task>-<number>.<ext>`, in UTC; of HLS the playlist in a folder of that name.
/// A StreamId that is too long for a folder's name is its beginning and a hash there.
pub fn key(stream: &StreamKey, begin_ms: i64, task: &str, number: i64, format: Format) -> String {
    let utc = bywash_media::playlist::utc(begin_ms);
    let (date, time) = (&utc[..10], utc[11..19].replace(':', ""));
    let end = match format {
        Format::M3u8 => "/index.m3u8",
        Format::Flv => ".flv",
        Format::Mp4 => ".mp4",
        Format::Aac => ".aac",
        Format::Mp3 => ".mp3",
    };
    format!("{}/{}/{date}/{time}-{task}-{number}{end}", stream.app(), component(stream.id()))
}

/// A StreamId as the name of a folder. It may have one byte more than that.
fn component(id: &str) -> Cow<'_, str> {
    if id.len() <= NAME_MAX {
        return id.into();
    }
    let hash = hex::encode(&Sha256::digest(id)[..8]);
    format!("{}-{hash}", &id[..NAME_MAX - 1 - hash.len()]).into()
}

/// The content type of a media file, by the end of its key.
pub fn content_type(key: &str) -> &'static str {
    match key.rsplit('.').next().unwrap_or_default() {
        "mp4" | "m4s" => "video/mp4",
        "m3u8" => "application/vnd.apple.mpegurl",
        "ts" => "video/mp2t",
        "flv" => "video/x-flv",
        "aac" => "audio/aac",
        "mp3" => "audio/mpeg",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const KEY: &str = "7/rtc01/2026-01-02/030405-0123456789ab-1/index.m3u8";

    fn app(secret: &str) -> App {
        App { id: 7, server_secret: Secret::new(secret), ..App::default() }
    }

    /// What becomes of an address made at second 1000 with `ttl` when it is used at `at`, by the file `key`.
    fn check(ttl: Option<u64>, key: &str, at: i64, forge: fn(String) -> String, want: Result<Option<u64>, &str>) {
        let urls = Urls { public_url: "http://h".into(), ttl: ttl.map(Duration::from_secs) };
        let url = forge(urls.replay(&app("s"), KEY, 1_000_000));
        let path = url.strip_prefix("http://h/media/").unwrap();
        let pass = path.split_once('/').unwrap().0;
        let got = urls.check(&app("s"), key, Some(pass).filter(|it| it.contains('-')), at * 1000);
        assert_eq!(got.map(|it| it.map(|it| it.as_secs())), want, "{url}");
    }

    #[test]
    fn a_signed_address_opens_its_file_until_it_expires() {
        check(None, KEY, 5000, |it| it, Ok(None));
        check(Some(60), KEY, 1000, |it| it, Ok(Some(60)));
        check(Some(60), KEY, 1059, |it| it, Ok(Some(1)));
        check(Some(60), KEY, 1060, |it| it, Err("the address has expired: ask for a new one"));
        check(Some(60), "7/a.mp4", 1000, |it| it, Err("the signature is wrong"));
        check(Some(60), KEY, 1000, |it| it.replace("1060-", "1061-"), Err("the signature is wrong"));
        check(Some(60), KEY, 1000, |_| format!("http://h/media/{KEY}"), Err("the address is not signed"));
    }

    #[test]
    fn a_key_has_the_stream_id_as_it_is_unless_no_folder_can_be_called_so() {
        let folder = |id: &str| {
            let stream = StreamKey::published(7, id).unwrap();
            let key = key(&stream, 1_767_323_045_000, "0123456789ab", 1, Format::M3u8);
            let (folder, rest) = key.strip_prefix("7/").unwrap().split_once('/').unwrap();
            assert_eq!(rest, "2026-01-02/030405-0123456789ab-1/index.m3u8");
            folder.to_owned()
        };
        let check = |id: &str, same: bool| assert_eq!(folder(id) == id, same, "{id}: {}", folder(id));
        let long = "z".repeat(255);
        check("a", true);
        check(&long, true);
        let (one, two) = (format!("{long}1"), format!("{long}2"));
        check(&one, false);
        assert_ne!(folder(&one), folder(&two));
        for name in [folder(&one), folder(&two)] {
            assert!(name.len() == 255 && name.starts_with(&long[..238]), "{name}");
        }
    }

    #[test]
    fn an_object_is_called_as_its_prefix_and_key_are() {
        let check = |prefix: &str, key: &str, want: &str| {
            let url = MediaUrl::S3(config::Bucket {
                name: "b".into(),
                prefix: prefix.into(),
                endpoint: Some("http://127.0.0.1:9".into()),
                region: "us-east-1".into(),
            });
            let data = std::env::temp_dir().join(format!("bywash-object-path-{}", std::process::id()));
            let objects = Objects::new(&config::Media { url, ..config::Media::default() }, &data).unwrap();
            assert_eq!(objects.bucket().unwrap().path(key).as_ref(), want);
            std::fs::remove_dir_all(data).unwrap();
        };
        check("", "7/s/a.mp4", "7/s/a.mp4");
        check("my rec+x~", "7/s~[1]%20/a.mp4", "my rec+x~/7/s~[1]%20/a.mp4");
        check("a//b/", "7/日本/a.mp4", "a/b/7/日本/a.mp4");
    }

    #[tokio::test]
    async fn what_is_deleted_takes_empty_folders_along_and_no_others() {
        let data = std::env::temp_dir().join(format!("bywash-object-{}", std::process::id()));
        let objects = Objects::new(&config::Media::default(), &data).unwrap();
        for key in ["7/a/day/1.mp4", "7/a/day/2/index.m3u8", "7/a/day/2/0.ts", "7/b/day/1.flv"] {
            std::fs::create_dir_all(objects.local(key).parent().unwrap()).unwrap();
            std::fs::write(objects.local(key), "media").unwrap();
        }
        let check = async |key: &str, want: &[(&str, bool)]| {
            objects.remove_local(key).await.unwrap();
            want.iter().for_each(|&(path, there)| assert_eq!(objects.local(path).exists(), there, "{key}: {path}"));
        };
        check("7/a/day/2/index.m3u8", &[("7/a/day/2", false), ("7/a/day/1.mp4", true)]).await;
        check("7/a/day/1.mp4", &[("7/a", false), ("7/b/day/1.flv", true)]).await;
        check("7/a/day/1.mp4", &[("7/b/day/1.flv", true)]).await;
        check("7/b/day/1.flv", &[("7", false), ("", true)]).await;
        std::fs::remove_dir_all(data).unwrap();
    }
}
