//! Moves finished files into the bucket, and announces them once they are there.
//!
//! A file in state Stored is the order to do so; as long as it is one it is tried, again and again. A large file goes up in parts,
//! and a note in the data folder says which of them the bucket has: after a restart the upload goes on behind them.
//! A note whose file is gone says which upload is to be aborted.
//!
//! Invariant: a file is Ready, and its callback owed, only after the bucket has told the size of each of its parts; the local copy
//! goes after that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{ErrorKind, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::callback;
use crate::clock::unix_ms;
use crate::config::{Apps, Format};
use crate::object::{Bucket, Objects, Urls, content_type};
use crate::segment::PLAYLIST;
use crate::store::{File, FileState, Store};

/// Files that are uploaded at once; each holds at most one part in memory.
const AT_ONCE: usize = 4;

/// Files that are looked at, a page of all that wait. When each on it was tried it is the next page's turn, after as long at least.
const LOOK_MAX: usize = 1000;
const PAGE: Duration = Duration::from_secs(60);

/// How long to wait after a failure: this, then twice as long each time, up to the other.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A file up to this many bytes is one request; a larger one is parts of this, or of more so that they do not become
/// [`PARTS_MAX`].
const PART: u64 = 8 << 20;
/// S3 takes 10 000.
const PARTS_MAX: u64 = 9_000;

/// What the job works with.
#[derive(Clone)]
pub struct Uploads {
    /// Where the files are told.
    pub store: Store,
    /// Where their bytes are.
    pub objects: Objects,
    /// Whose callbacks are owed.
    pub apps: Arc<Apps>,
    /// Under which addresses.
    pub urls: Urls,
}

/// Uploads until `stop`. What is not uploaded by then goes on at the next start. Where there is no bucket, what waited for one is
/// announced as it is.
pub async fn run(uploads: Uploads, stop: CancellationToken) {
    if uploads.objects.bucket().is_none() {
        return tokio::select! {
            () = stop.cancelled() => {}
            () = uploads.announce_all() => {}
        };
    }
    let mut work = uploads.store.work();
    let mut settled = false;
    let mut waits: HashMap<String, Wait> = HashMap::new();
    let mut under_way = FuturesUnordered::new();
    // Behind which file the page begins, which file is its last if it is full, and when the next page may come.
    let (mut after, mut last, mut page_at) = (None, None, Instant::now());
    let mut look = true;
    loop {
        if !settled {
            settled = uploads.settle().await.inspect_err(|error| warn!("notes of uploads: {error:#}")).is_ok();
        }
        if look {
            match uploads.stored(after.as_ref()).await {
                Ok(stored) => {
                    look = false;
                    last = stored.last().filter(|_| stored.len() == LOOK_MAX).cloned();
                    let ids: HashSet<_> = stored.iter().map(|file| file.id.as_str()).collect();
                    waits.retain(|id, wait| wait.running || ids.contains(id.as_str()));
                    for file in stored {
                        waits.entry(file.id.clone()).or_insert(Wait::new(file));
                    }
                }
                Err(error) => warn!(%error, "uploads wait for the store"),
            }
        }
        let now = Instant::now();
        // Who has waited for the longest comes first: what fails and fails does not hold up what was not tried yet.
        let mut due: Vec<_> = waits.values_mut().filter(|wait| !wait.running && wait.at <= now).collect();
        due.sort_by_key(|wait| (wait.at, wait.file.updated_ms));
        for wait in due.into_iter().take(AT_ONCE - under_way.len()) {
            wait.running = true;
            let (uploads, file) = (uploads.clone(), wait.file.clone());
            under_way.push(async move { (uploads.upload(&file).await, file) });
        }
        let free = under_way.len() < AT_ONCE;
        let mut next = waits.values().filter(|it| free && !it.running).map(|it| it.at).min();
        // What always fails holds up nothing else either: after it comes the next page, and after the last the first.
        let tried = || waits.values().all(|it| it.running || it.long > RETRY);
        if (last.is_some() || after.is_some()) && tried() {
            if page_at <= now {
                (after, page_at, look) = (last.take(), now + PAGE, true);
                continue;
            }
            next = next.map(|at| at.min(page_at)).or(Some(page_at));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = work.changed() => match changed {
                Ok(()) => look = true,
                Err(_) => return,
            },
            () = sleep_until(next.unwrap_or(now + RETRY_MAX).max(now + Duration::from_millis(10))) => {}
            Some((done, file)) = under_way.next() => match done {
                Ok(()) => {
                    info!(file = file.path, size = file.size, "uploaded");
                    waits.remove(&file.id);
                }
                Err(error) => {
                    if let Some(wait) = waits.get_mut(&file.id) {
                        warn!(file = file.path, again_in = ?wait.long, "not uploaded: {error:#}");
                        (wait.at, wait.running) = (Instant::now() + wait.long, false);
                        wait.long = RETRY_MAX.min(2 * wait.long);
                    }
                }
            },
        }
    }
}

/// A file, and when it is tried again.
struct Wait {
    file: File,
    at: Instant,
    /// How long the next wait is; more than [`RETRY`] once it was tried.
    long: Duration,
    running: bool,
}

impl Wait {
    fn new(file: File) -> Wait {
        Wait { file, at: Instant::now(), long: RETRY, running: false }
    }
}

impl Uploads {
    async fn stored(&self, after: Option<&File>) -> Result<Vec<File>, crate::store::Error> {
        self.store.read().await?.files_stored(after, LOOK_MAX as i64).await
    }

    /// Ends what a crash has left half-way beside the rows: local copies of files that are in the bucket, uploads of files
    /// that are gone.
    async fn settle(&self) -> anyhow::Result<()> {
        let bucket = self.objects.bucket().context("no bucket")?;
        let mut notes = tokio::fs::read_dir(self.objects.uploads()).await?;
        while let Some(entry) = notes.next_entry().await? {
            let Some(note) = Note::read(entry.path()).await? else { continue };
            let file = self.store.read().await?.file_by_path(&note.key).await?;
            match file.map(|file| file.state) {
                Some(FileState::Stored) => continue,
                Some(FileState::Ready) => self.objects.remove_local(&note.key).await?,
                _ => note.abort(bucket).await,
            }
            note.remove().await?;
        }
        Ok(())
    }

    async fn upload(&self, file: &File) -> anyhow::Result<()> {
        let bucket = self.objects.bucket().context("no bucket")?;
        let note = self.objects.uploads().join(&file.id);
        let note = match Note::read(note.clone()).await? {
            Some(note) if note.key == file.path => note,
            _ => Note::begin(note, &file.path).await?,
        };
        let note = match file.format {
            Format::M3u8 => folder(bucket, &self.objects, &file.path).await.map(|()| note)?,
            _ => single(bucket, &self.objects.local(&file.path), note).await?,
        };
        self.announce(file).await?;
        // Only now, and only then the note: until then it says that there is a local copy to be deleted.
        self.objects.remove_local(&file.path).await.context("delete the local copy")?;
        note.remove().await
    }

    /// Announces what waits, however long the store fails meanwhile.
    async fn announce_all(&self) {
        let mut wait = RETRY;
        loop {
            let batch = async {
                let stored = self.stored(None).await?;
                for file in &stored {
                    self.announce(file).await?;
                }
                anyhow::Ok(stored.is_empty())
            };
            match batch.await {
                Ok(true) => return,
                Ok(false) => wait = RETRY,
                Err(error) => {
                    warn!(again_in = ?wait, "files that waited for a bucket: {error:#}");
                    tokio::time::sleep(wait).await;
                    wait = RETRY_MAX.min(2 * wait);
                }
            }
        }
    }

    async fn announce(&self, file: &File) -> anyhow::Result<()> {
        let now_ms = unix_ms();
        let mut tx = self.store.begin().await?;
        if tx.file_ready(&file.id, now_ms).await? {
            // A merged file has no recording: the end of its job has told of it.
            if !file.record.is_empty()
                && let Some(app) = self.apps.get(file.key.app())
            {
                let url = self.urls.replay(&app, &file.path, now_ms);
                tx.owe(callback::record(&app, &url, file, now_ms), now_ms).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Uploads one file; gives the note as it is afterwards.
async fn single(bucket: &Bucket, local: &Path, mut note: Note) -> anyhow::Result<Note> {
    let path = bucket.path(&note.key);
    let size = tokio::fs::metadata(local).await.with_context(|| format!("find {}", local.display()))?.len();
    // A crash may have come between the bucket's answer and its being written down.
    if is_there(bucket, &path, size).await? {
        return Ok(note);
    }
    if size <= PART {
        let bytes = tokio::fs::read(local).await?;
        let options = PutOptions { attributes: attributes(&note.key), ..PutOptions::default() };
        bucket.store.put_opts(&path, bytes.into(), options).await?;
    } else if let Err(error) = parts(bucket, local, size, &mut note).await {
        // The bucket forgets uploads that nobody completes.
        if matches!(error.downcast_ref(), Some(object_store::Error::NotFound { .. })) {
            note.remove().await?;
        }
        return Err(error);
    }
    ensure!(is_there(bucket, &path, size).await?, "the bucket does not have it whole");
    Ok(note)
}

async fn parts(bucket: &Bucket, local: &Path, size: u64, note: &mut Note) -> anyhow::Result<()> {
    let path = bucket.path(&note.key);
    let id = match &note.id {
        Some(id) => {
            info!(file = note.key, parts = note.parts.len(), "the upload goes on");
            id.clone()
        }
        None => {
            let options = PutMultipartOptions { attributes: attributes(&note.key), ..PutMultipartOptions::default() };
            let id = bucket.store.create_multipart_opts(&path, options).await?;
            note.add(&id).await?;
            note.id = Some(id.clone());
            id
        }
    };
    let part = PART.max(size.div_ceil(PARTS_MAX).next_multiple_of(1 << 20));
    let mut file = tokio::fs::File::open(local).await?;
    for number in note.parts.len()..size.div_ceil(part) as usize {
        let at = number as u64 * part;
        let mut bytes = vec![0; part.min(size - at) as usize];
        file.seek(SeekFrom::Start(at)).await?;
        file.read_exact(&mut bytes).await?;
        let done = bucket.store.put_part(&path, &id, number, Bytes::from(bytes).into()).await?;
        note.add(&done.content_id).await?;
        note.parts.push(done.content_id);
    }
    let parts = note.parts.iter().map(|it| PartId { content_id: it.clone() }).collect();
    if let Err(error) = bucket.store.complete_multipart(&path, &id, parts).await {
        // With the same parts it would be refused for ever.
        if is_final(&error) {
            note.abort(bucket).await;
            note.remove().await?;
        }
        return Err(error.into());
    }
    Ok(())
}

/// Whether the bucket will never make a file of these parts: a refusal that neither other credentials nor a quieter moment change.
fn is_final(error: &object_store::Error) -> bool {
    use object_store::Error::{AlreadyExists, Generic, Precondition};
    match error {
        AlreadyExists { .. } | Precondition { .. } => true,
        Generic { source, .. } => {
            status(&**source).is_some_and(|it| (400..500).contains(&it) && !matches!(it, 401 | 403 | 408 | 429))
        }
        _ => false,
    }
}

/// The status of an answer that the client has no kind of error for. The type that has it cannot be named; its text can be read.
fn status(error: &(dyn std::error::Error + 'static)) -> Option<u16> {
    let mut chain = std::iter::successors(Some(error), |it| it.source());
    chain.find_map(|it| {
        it.to_string().strip_prefix("Server returned non-2xx status code: ")?.split(' ').next()?.parse().ok()
    })
}

/// Uploads an HLS folder: segments first, so that the playlist names nothing that is not there.
async fn folder(bucket: &Bucket, objects: &Objects, key: &str) -> anyhow::Result<()> {
    let folder = key.strip_suffix(PLAYLIST).context("an HLS recording without a playlist")?.trim_end_matches('/');
    let mut local = BTreeMap::new();
    let mut entries = tokio::fs::read_dir(objects.local(folder)).await.with_context(|| format!("read {folder}"))?;
    while let Some(entry) = entries.next_entry().await? {
        if let Ok(name) = entry.file_name().into_string() {
            local.insert(name, entry.metadata().await?.len());
        }
    }
    ensure!(local.contains_key(PLAYLIST), "{folder} has no {PLAYLIST}");
    let there = sizes(bucket, key).await?;
    let segments = local.keys().filter(|name| *name != PLAYLIST && there.get(*name) != local.get(*name));
    for name in segments.map(String::as_str).chain([PLAYLIST]) {
        let key = format!("{folder}/{name}");
        let bytes = tokio::fs::read(objects.local(&key)).await?;
        let options = PutOptions { attributes: attributes(&key), ..PutOptions::default() };
        bucket.store.put_opts(&bucket.path(&key), bytes.into(), options).await?;
    }
    let there = sizes(bucket, key).await?;
    ensure!(local.iter().all(|(name, size)| there.get(name) == Some(size)), "the bucket does not have it whole");
    Ok(())
}

/// The objects of an HLS recording and their sizes, by name.
async fn sizes(bucket: &Bucket, playlist: &str) -> anyhow::Result<HashMap<String, u64>> {
    let sizes = bucket.beside(playlist).map_ok(|it| (it.location.filename().unwrap_or_default().to_owned(), it.size));
    Ok(sizes.try_collect().await?)
}

async fn is_there(bucket: &Bucket, path: &object_store::path::Path, size: u64) -> anyhow::Result<bool> {
    match bucket.store.head(path).await {
        Ok(found) => Ok(found.size == size),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn attributes(key: &str) -> Attributes {
    Attributes::from_iter([(Attribute::ContentType, content_type(key))])
}

/// How far an upload is, in a file of lines: the key, the bucket's id of the upload, and what it calls each part that it has.
struct Note {
    at: PathBuf,
    key: String,
    id: Option<String>,
    parts: Vec<String>,
}

impl Note {
    async fn begin(at: PathBuf, key: &str) -> anyhow::Result<Note> {
        tokio::fs::write(&at, format!("{key}\n")).await.context("note an upload")?;
        Ok(Note { at, key: key.into(), id: None, parts: Vec::new() })
    }

    /// `None` if there is none, or none that was begun whole. A last line that was torn is cut off, so that the next is one; so are zeros,
    /// which a power cut leaves of a line on some disks.
    async fn read(at: PathBuf) -> anyhow::Result<Option<Note>> {
        let text = match tokio::fs::read_to_string(&at).await {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let written = text.split('\0').next().unwrap_or_default();
        let whole = &written[..written.rfind('\n').map_or(0, |end| end + 1)];
        if whole.len() < text.len() {
            let file = tokio::fs::File::options().write(true).open(&at).await?;
            file.set_len(whole.len() as u64).await.context("mend the note of an upload")?;
        }
        let mut lines = whole.lines().map(str::to_owned);
        let Some(key) = lines.next() else { return Ok(None) };
        Ok(Some(Note { at, key, id: lines.next(), parts: lines.collect() }))
    }

    async fn add(&self, line: &str) -> anyhow::Result<()> {
        let mut file = tokio::fs::File::options().append(true).open(&self.at).await?;
        file.write_all(format!("{line}\n").as_bytes()).await?;
        file.flush().await?;
        // Before anything builds on it.
        file.sync_all().await.context("note an upload")
    }

    async fn remove(&self) -> anyhow::Result<()> {
        match tokio::fs::remove_file(&self.at).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Drops the parts that the bucket has. If that fails, the bucket's own rule about unfinished uploads does.
    async fn abort(&self, bucket: &Bucket) {
        if let Some(id) = &self.id
            && let Err(error) = bucket.store.abort_multipart(&bucket.path(&self.key), id).await
        {
            warn!(%error, file = self.key, "an upload that is of no use was not aborted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
    use bywash_media::Environment;

    use super::*;
    use crate::config::{self, MediaUrl};
    use crate::secret::Secret;
    use crate::store::tests::{Dir, file};

    fn stored(id: &str, updated_ms: i64) -> File {
        let record = "task".into();
        File { state: FileState::Stored, record, size: 5, created_ms: updated_ms, updated_ms, ..file("show", id) }
    }

    /// Uploads of a server in `dir` with these files, whose bytes are not there.
    async fn uploads(dir: &Dir, media: &config::Media, files: impl IntoIterator<Item = File>) -> Uploads {
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        for file in files {
            tx.file_open(&file).await.unwrap();
        }
        tx.commit().await.unwrap();
        let objects = Objects::new(media, dir.path()).unwrap();
        let urls = Urls { public_url: "http://h".into(), ttl: None };
        Uploads { store, objects, apps: Arc::new(Apps::new(Vec::new())), urls }
    }

    /// Media in the bucket at this address.
    fn media(endpoint: String) -> config::Media {
        let bucket = config::Bucket {
            name: "media".into(),
            prefix: String::new(),
            endpoint: Some(endpoint),
            region: "us-east-1".into(),
        };
        config::Media {
            url: MediaUrl::S3(bucket),
            access_key_id: Some(Secret::new("id")),
            secret_access_key: Some(Secret::new("key")),
        }
    }

    async fn until_ready(store: &Store, id: &str) {
        for _ in 0..3000 {
            let file = store.read().await.unwrap().file(7, Environment::Production, id).await.unwrap().unwrap();
            if file.state == FileState::Ready {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{id} is not ready");
    }

    /// A bucket that takes what it is given, and has one object then; its address.
    async fn bucket() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let has: Arc<Mutex<Option<(Uri, usize)>>> = Arc::default();
        let router = axum::Router::new().fallback(async move |method: Method, uri: Uri, body: axum::body::Bytes| {
            let mut has = has.lock().unwrap();
            if method == Method::PUT {
                *has = Some((uri.clone(), body.len()));
            }
            let size = has.as_ref().filter(|it| it.0.path() == uri.path()).map(|it| it.1);
            let Some(size) = size else { return (StatusCode::NOT_FOUND, HeaderMap::new()) };
            let size = if method == Method::HEAD { size } else { 0 };
            let headers = [
                (header::ETAG, "\"a\"".to_owned()),
                (header::LAST_MODIFIED, "Sun, 09 Sep 2001 01:46:40 GMT".to_owned()),
                (header::CONTENT_LENGTH, size.to_string()),
            ];
            let headers = headers.into_iter().map(|(name, value)| (name, value.parse().unwrap())).collect();
            (StatusCode::OK, headers)
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn what_can_be_uploaded_does_not_wait_for_what_cannot() {
        let dir = Dir::new();
        let media = media(bucket().await);
        let lost = (0..LOOK_MAX as i64).map(|n| stored(&format!("lost-{n}"), n));
        let uploads = uploads(&dir, &media, lost.chain([stored("there", 5000)])).await;
        let local = uploads.objects.local("7/show/there.mp4");
        std::fs::create_dir_all(local.parent().unwrap()).unwrap();
        std::fs::write(&local, "media").unwrap();
        let (store, stop) = (uploads.store.clone(), CancellationToken::new());
        let task = tokio::spawn(run(uploads, stop.clone()));
        until_ready(&store, "there").await;
        stop.cancel();
        task.await.unwrap();
        assert_eq!(store.read().await.unwrap().files_stored(None, 5000).await.unwrap().len(), LOOK_MAX);
    }

    /// What a bucket of uploads in parts was asked for.
    #[derive(Default)]
    struct Asked {
        begun: usize,
        parts: usize,
        completed: usize,
        aborted: Vec<String>,
    }

    /// A bucket that answers `status` when the first upload in parts is to be completed for the first time; its address.
    async fn refusing(status: StatusCode, asked: Arc<Mutex<Asked>>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(async move |method: Method, uri: Uri, body: axum::body::Bytes| {
            let mut asked = asked.lock().unwrap();
            let of = |name: &str| uri.query()?.split('&').find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
            let whole = asked.completed > 1 && method == Method::HEAD;
            let mut headers = HeaderMap::new();
            headers.insert(header::ETAG, "\"a\"".parse().unwrap());
            headers.insert(header::LAST_MODIFIED, "Sun, 09 Sep 2001 01:46:40 GMT".parse().unwrap());
            let (status, text) = match (&method, of("uploadId")) {
                (&Method::POST, None) => {
                    asked.begun += 1;
                    let id = asked.begun;
                    (StatusCode::OK, format!("<R><UploadId>{id}</UploadId></R>"))
                }
                (&Method::PUT, Some(_)) => {
                    asked.parts += body.len();
                    (StatusCode::OK, String::new())
                }
                (&Method::POST, Some(_)) => {
                    asked.completed += 1;
                    let status = if asked.completed == 1 { status } else { StatusCode::OK };
                    (status, "<R><ETag>a</ETag></R>".into())
                }
                (&Method::DELETE, Some(id)) => {
                    asked.aborted.push(id.into());
                    (StatusCode::NO_CONTENT, String::new())
                }
                _ if whole => {
                    headers.insert(header::CONTENT_LENGTH, LARGE.into());
                    (StatusCode::OK, String::new())
                }
                _ => (StatusCode::NOT_FOUND, String::new()),
            };
            (status, headers, text)
        });
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    /// Bytes of a file that goes up in two parts.
    const LARGE: u64 = PART + 5;

    #[tokio::test]
    async fn parts_that_the_bucket_refuses_for_good_are_sent_anew_and_others_are_not() {
        let check = async |status: u16, anew: bool, aborted: &[&str]| {
            let (dir, asked) = (Dir::new(), Arc::<Mutex<Asked>>::default());
            let media = media(refusing(StatusCode::from_u16(status).unwrap(), asked.clone()).await);
            let uploads = uploads(&dir, &media, [stored("1", 1)]).await;
            let local = uploads.objects.local("7/show/1.mp4");
            std::fs::create_dir_all(local.parent().unwrap()).unwrap();
            std::fs::File::create(&local).unwrap().set_len(LARGE).unwrap();
            assert!(uploads.upload(&stored("1", 1)).await.is_err());
            assert_eq!(uploads.objects.uploads().join("1").exists(), !anew, "{status}");
            uploads.upload(&stored("1", 1)).await.unwrap();
            let asked = asked.lock().unwrap();
            let times = if anew { 2 } else { 1 };
            assert_eq!(
                (asked.begun, asked.parts as u64, asked.completed),
                (times, times as u64 * LARGE, 2),
                "{status}"
            );
            assert_eq!(asked.aborted, aborted, "{status}");
            assert!(!local.exists());
        };
        check(400, true, &["1"]).await;
        check(404, true, &[]).await;
        check(409, true, &["1"]).await;
        check(412, true, &["1"]).await;
        for kept in [401, 403, 408, 429, 500, 503] {
            check(kept, false, &[]).await;
        }
    }

    #[tokio::test]
    async fn files_that_waited_for_a_bucket_are_announced_once_the_store_works_again() {
        let dir = Dir::new();
        let uploads = uploads(&dir, &config::Media::default(), [stored("1", 1), stored("2", 2)]).await;
        let (store, stop) = (uploads.store.clone(), CancellationToken::new());
        let busy = store.begin().await.unwrap();
        let task = tokio::spawn(run(uploads, stop.clone()));
        // Longer than the store lets anybody wait.
        assert!(store.begin().await.is_err());
        drop(busy);
        until_ready(&store, "2").await;
        until_ready(&store, "1").await;
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_torn_line_of_a_note_is_none_and_the_next_is_one() {
        let dir = Dir::new();
        std::fs::create_dir_all(dir.path()).unwrap();
        let at = dir.path().join("note");
        let check = async |text: &str, want: Option<(&str, Option<&str>, &[&str])>| {
            std::fs::write(&at, text).unwrap();
            let found = Note::read(at.clone()).await.unwrap();
            if let Some(note) = &found {
                note.add("next").await.unwrap();
            }
            let again = Note::read(at.clone()).await.unwrap();
            let fields = again
                .as_ref()
                .map(|it| (it.key.as_str(), it.id.as_deref(), it.parts.iter().map(String::as_str).collect::<Vec<_>>()));
            assert_eq!(fields, want.map(|(key, id, parts)| (key, id, parts.to_vec())), "{text:?}");
        };
        check("key", None).await;
        check("key\n", Some(("key", Some("next"), &[]))).await;
        check("key\nid\n", Some(("key", Some("id"), &["next"]))).await;
        check("key\nid\none\ntw", Some(("key", Some("id"), &["one", "next"]))).await;
        check("key\ni", Some(("key", Some("next"), &[]))).await;
        check("key\nid\none\n\0\0\0\0", Some(("key", Some("id"), &["one", "next"]))).await;
        check("key\nid\n\0\0\0\n", Some(("key", Some("id"), &["next"]))).await;
    }
}
