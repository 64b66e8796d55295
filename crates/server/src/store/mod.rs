//! Rows: what should be, and what is owed. All SQL of the tree lives under this folder.
//!
//! Changes go through one writer connection, one transaction at a time; looking goes through a few reader
//! connections, each on a snapshot. The text of the statements is what SQLite and PostgreSQL share.
//!
//! Invariant: what [`Tx::commit`] has answered with `Ok` is on the disk, and nothing else of a [`Tx`] ever is.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bywash_media::{Environment, StreamKey};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use sqlx::any::{Any, AnyArguments, AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{AnyPool, AssertSqlSafe, ConnectOptions, Connection, Row};
use tokio::sync::{Notify, watch};

use crate::config::{self, Vendor};

pub mod file;
pub mod forbid;
pub mod job;
pub mod outbox;
pub mod record;
pub mod rule;
pub mod sequence;
pub mod stream;

pub use file::{About, File, FileState, Listed, Search};
pub use job::{Job, JobState, Merge, Part};
pub use outbox::{Callback, Delivery, Rearm};
pub use record::{Record, RecordState, RecordStatus};
pub use rule::{Origin, Ran, Reason, Rule, State, Status};
pub use sequence::Accepted;
pub use stream::Session;

/// The rows. `clone` copies a pointer.
#[derive(Clone)]
pub struct Store {
    writer: AnyPool,
    readers: AnyPool,
    outbox_ready: Arc<Notify>,
    work: Arc<watch::Sender<()>>,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

/// When a change could not be made last, and why.
type Trouble = (Instant, String);

/// Why the store did not do it. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full or cannot be written. The store works again when there is space.
    #[error("the store cannot be written: {0}")]
    Full(String),
    /// Others were busy in it for all of five seconds.
    #[error("the store is busy")]
    Busy,
    /// Anything else; trying again does not help.
    #[error("store: {0}")]
    Other(String),
}

/// One page of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// From 0.
    pub number: u64,
    /// Rows on a page.
    pub size: u64,
}

/// The numbered schema files; a database at version n has the first n of them.
const SCHEMA: [&str; 5] = [
    include_str!("schema/0001_begin.sql"),
    include_str!("schema/0002_record.sql"),
    include_str!("schema/0003_record_over.sql"),
    include_str!("schema/0004_heard.sql"),
    include_str!("schema/0005_leaving.sql"),
];

/// How long one waits for its turn at the writer or for a reader.
const TURN: Duration = Duration::from_secs(5);

/// How long it is told that a change could not be made.
const TROUBLE: Duration = Duration::from_secs(10);

/// Connections that look; more than a few only compete for two or four cores.
const READERS: u32 = 4;

impl Store {
    /// Opens the database in `data_dir`; creates the folder, the file and what the schema lacks.
    pub async fn open(config: &config::Store, data_dir: &Path) -> Result<Store, Error> {
        if config.url != "sqlite" {
            return Err(Error::Other(format!("store.url is {:?}: only \"sqlite\" is known", config.url)));
        }
        std::fs::create_dir_all(data_dir).map_err(|e| Error::Other(format!("create {}: {e}", data_dir.display())))?;
        let file = data_dir.join("bywash.db");
        let name = file.to_str().ok_or_else(|| Error::Other(format!("{} is not UTF-8", file.display())))?;
        // The rows hold signed addresses. What SQLite puts beside the file takes over its mode.
        let mode = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&file);
        mode.map_err(|e| Error::Full(format!("{}: {e}", file.display())))?;
        let url = format!("sqlite://{}?mode=rwc", utf8_percent_encode(name, NON_ALPHANUMERIC));
        sqlx::any::install_drivers(&[sqlx::sqlite::any::DRIVER]).ok();
        let options: AnyConnectOptions = url.parse::<AnyConnectOptions>()?.disable_statement_logging();
        // A pool tries again what a connection refuses, and tells in the end only that it took too long.
        let mut first = options.connect().await?;
        sqlx::raw_sql(WRITER).execute(&mut first).await.map_err(|error| Error::at(&file, error))?;
        first.close().await?;

        let store = Store {
            writer: pool(1, WRITER).connect_lazy_with(options.clone()),
            readers: pool(READERS, READER).connect_lazy_with(options),
            outbox_ready: Arc::default(),
            work: Arc::default(),
            trouble: Arc::default(),
        };
        store.upgrade().await?;
        Ok(store)
    }

    /// Begins a change. It has the writer alone until it is committed, or dropped, which undoes it.
    pub async fn begin(&self) -> Result<Tx, Error> {
        let begun = self.tx(&self.writer, "BEGIN IMMEDIATE").await;
        begun.map(|tx| Tx { trouble: Some(self.trouble.clone()), ..tx }).inspect_err(|why| note(&self.trouble, why))
    }

    /// Begins a look at one snapshot. It cannot change anything.
    pub async fn read(&self) -> Result<Tx, Error> {
        self.tx(&self.readers, "BEGIN").await
    }

    /// Is notified after a commit that added or re-armed callbacks; for the one task that sends them.
    pub fn outbox_ready(&self) -> &Notify {
        &self.outbox_ready
    }

    /// Changes after a commit that left something to do on files: uploads, deletions, merges.
    pub fn work(&self) -> watch::Receiver<()> {
        self.work.subscribe()
    }

    /// Why it cannot be written, if so: why a change was not made within the last ten seconds. One that was made since says little, as a
    /// small one finds room where a large one does not.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().expect("no holder panics");
        trouble.as_ref().filter(|(at, _)| at.elapsed() < TROUBLE).map(|(_, why)| why.clone())
    }

    /// Notes that a change could not be made which is tried again until it is.
    pub fn note_trouble(&self, why: &Error) {
        *self.trouble.lock().expect("no holder panics") = Some((Instant::now(), why.to_string()));
    }

    /// Waits until nobody uses the store, folds the log into the file and closes it.
    pub async fn close(self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn tx(&self, pool: &AnyPool, begin: &'static str) -> Result<Tx, Error> {
        let mut connection = pool.acquire().await?;
        if let Err(e) = sqlx::raw_sql(begin).execute(&mut *connection).await {
            // A fresh connection is in a known state.
            connection.close_on_drop();
            return Err(e.into());
        }
        Ok(Tx {
            connection,
            failed: false,
            owes: false,
            outbox_ready: self.outbox_ready.clone(),
            works: false,
            work: self.work.clone(),
            trouble: None,
        })
    }

    async fn upgrade(&self) -> Result<(), Error> {
        // One that is as it should be is not written: another may hold it now, and let go of it later.
        let version = sqlx::query("SELECT MAX(version) AS total FROM schema_version");
        if self.read().await?.total(version).await.is_ok_and(|version| version == SCHEMA.len() as u64) {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        tx.run(sqlx::query("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")).await?;
        let row = tx.one(sqlx::query("SELECT COALESCE(MAX(version), 0) AS version FROM schema_version")).await?;
        let version: i64 = row.try_get("version")?;
        let known = SCHEMA.len() as i64;
        if version > known {
            return Err(Error::Other(format!(
                "the database is of a newer bywash (schema {version}, this one knows {known}): start that one"
            )));
        }
        for (number, text) in (1..).zip(SCHEMA).skip(version as usize) {
            sqlx::raw_sql(text).execute(&mut *tx.connection).await?;
            tx.run(sqlx::query("INSERT INTO schema_version (version) VALUES ($1)").bind::<i64>(number)).await?;
        }
        tx.commit().await
    }
}

/// FULL, because an answered success has to survive a power cut.
const WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000; \
                      PRAGMA foreign_keys = OFF;";
const READER: &str = "PRAGMA query_only = ON; PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = OFF;";

fn pool(size: u32, prepare: &'static str) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(TURN)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move { sqlx::raw_sql(prepare).execute(connection).await.map(drop) })
        })
        // A transaction dropped half-way is undone here, before anyone else gets the connection. SQLite itself
        // ends a transaction at some errors, a full disk among them, so that there is often none left to undo.
        .after_release(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql("ROLLBACK").execute(connection).await.ok();
                Ok(true)
            })
        })
}

/// One transaction: rows and the callbacks they owe, together. Dropped without [`commit`](Tx::commit) it never was.
pub struct Tx {
    connection: PoolConnection<Any>,
    /// A statement failed. SQLite may have ended the transaction with it, so that a later statement would be
    /// durable alone: none is let through.
    failed: bool,
    owes: bool,
    outbox_ready: Arc<Notify>,
    works: bool,
    work: Arc<watch::Sender<()>>,
    /// Where a change notes that it could not be made; a look has none.
    trouble: Option<Arc<Mutex<Option<Trouble>>>>,
}

type Sql<'q> = Query<'q, Any, AnyArguments>;

impl Tx {
    /// Makes it so, durably.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.run(sqlx::query("COMMIT")).await?;
        if self.owes {
            self.outbox_ready.notify_one();
        }
        if self.works {
            self.work.send_replace(());
        }
        Ok(())
    }

    /// Whether there is something for [`files_expire`](Tx::files_expire) at `now_ms`, or something to forget from before `before_ms`.
    pub async fn anything_over(&mut self, now_ms: i64, before_ms: i64) -> Result<bool, Error> {
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM file WHERE {}) OR EXISTS (SELECT 1 FROM record WHERE {}) \
             OR EXISTS (SELECT 1 FROM job WHERE {}) AS total",
            file::EXPIRED,
            record::OVER,
            job::OVER
        );
        Ok(self.total(sqlx::query(AssertSqlSafe(sql)).bind(before_ms).bind(now_ms)).await? > 0)
    }

    /// Runs a change; says how many rows it touched.
    async fn run(&mut self, sql: Sql<'_>) -> Result<u64, Error> {
        self.usable()?;
        let done = sql.execute(&mut *self.connection).await;
        Ok(self.note(done)?.rows_affected())
    }

    async fn all(&mut self, sql: Sql<'_>) -> Result<Vec<AnyRow>, Error> {
        self.usable()?;
        let rows = sql.fetch_all(&mut *self.connection).await;
        self.note(rows)
    }

    async fn optional(&mut self, sql: Sql<'_>) -> Result<Option<AnyRow>, Error> {
        Ok(self.all(sql).await?.pop())
    }

    async fn first<T>(&mut self, sql: Sql<'_>, of: fn(&AnyRow) -> Result<T, Error>) -> Result<Option<T>, Error> {
        self.optional(sql).await?.as_ref().map(of).transpose()
    }

    async fn each<T>(&mut self, sql: Sql<'_>, of: fn(&AnyRow) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        self.all(sql).await?.iter().map(of).collect()
    }

    /// What a statement counts as `total`.
    async fn total(&mut self, sql: Sql<'_>) -> Result<u64, Error> {
        Ok(self.one(sql).await?.try_get::<i64, _>("total")?.unsigned_abs())
    }

    async fn one(&mut self, sql: Sql<'_>) -> Result<AnyRow, Error> {
        self.optional(sql).await?.ok_or_else(|| Error::Other("an answer without a row".into()))
    }

    fn usable(&self) -> Result<(), Error> {
        match self.failed {
            true => Err(Error::Other("the transaction has ended with an earlier error".into())),
            false => Ok(()),
        }
    }

    fn note<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, Error> {
        self.failed |= result.is_err();
        result.map_err(Error::from).inspect_err(|why| {
            if let Some(trouble) = &self.trouble {
                note(trouble, why);
            }
        })
    }
}

/// That a disk is full, or that others hold the store, concerns all who write; another error only who made it.
fn note(trouble: &Mutex<Option<Trouble>>, why: &Error) {
    if matches!(why, Error::Full(_) | Error::Busy) {
        *trouble.lock().expect("no holder panics") = Some((Instant::now(), why.to_string()));
    }
}

impl Error {
    /// Of the file itself: that it is no database (SQLITE_NOTADB) or a damaged one (SQLITE_CORRUPT) is nothing that passes.
    fn at(file: &Path, error: sqlx::Error) -> Error {
        let code = error.as_database_error().and_then(|it| it.code()?.parse::<i32>().ok());
        match code.map(|it| it & 0xff) {
            Some(11 | 26) => Error::Other(format!(
                "{} is not a database, or damaged: put a backup in its place, or move it away to begin with an empty one ({error})",
                file.display()
            )),
            _ => error.into(),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Error {
        if matches!(error, sqlx::Error::PoolTimedOut) {
            return Error::Busy;
        }
        let code = error.as_database_error().and_then(|it| it.code()?.parse::<i32>().ok());
        match code {
            // SQLite's extended result codes. READONLY, FULL, CANTOPEN (the log cannot be created) …
            Some(code) if matches!(code & 0xff, 8 | 13 | 14) => Error::Full(error.to_string()),
            // … and IOERR at write, fsync, directory fsync, truncate, shared-memory size and map.
            Some(778 | 1034 | 1290 | 1546 | 4874 | 5386) => Error::Full(error.to_string()),
            // BUSY and LOCKED.
            Some(code) if matches!(code & 0xff, 5 | 6) => Error::Busy,
            _ => Error::Other(error.to_string()),
        }
    }
}

impl Page {
    fn limit(self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX)
    }

    fn offset(self) -> i64 {
        i64::try_from(self.number.saturating_mul(self.size)).unwrap_or(i64::MAX)
    }
}

/// How an environment is written in a row.
fn environment_to_row(environment: Environment) -> i64 {
    match environment {
        Environment::Production => 0,
        Environment::Test => 1,
    }
}

fn environment_of(row: &AnyRow) -> Result<Environment, Error> {
    match row.try_get("environment")? {
        0i64 => Ok(Environment::Production),
        1 => Ok(Environment::Test),
        other => Err(unknown("environment", other)),
    }
}

fn app_of(row: &AnyRow) -> Result<u32, Error> {
    let app: i64 = row.try_get("app")?;
    u32::try_from(app).map_err(|_| unknown("app", app))
}

fn key_of(row: &AnyRow) -> Result<StreamKey, Error> {
    let (app, environment, id) = (app_of(row)?, environment_of(row)?, row.try_get::<&str, _>("stream")?);
    StreamKey::parse(app, environment, id).ok_or_else(|| Error::Other(format!("a row has the stream id {id:?}")))
}

fn origin_of(row: &AnyRow) -> Result<Origin, Error> {
    match row.try_get("origin")? {
        0i64 => Ok(Origin::Api),
        1 => Ok(Origin::Default),
        other => Err(unknown("origin", other)),
    }
}

fn vendor_of(row: &AnyRow) -> Result<Vendor, Error> {
    let name: &str = row.try_get("vendor")?;
    Vendor::named(name).ok_or_else(|| Error::Other(format!("a row has the vendor {name:?}")))
}

/// A column that holds JSON.
fn json_of<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T, Error> {
    serde_json::from_str(row.try_get(column)?).map_err(|why| Error::Other(format!("a row has a bad {column}: {why}")))
}

fn unknown(column: &str, value: i64) -> Error {
    Error::Other(format!("a row has the {column} {value}"))
}

/// Binds the three columns that name a stream, as the next three parameters.
fn bind_key<'q>(sql: Sql<'q>, key: &StreamKey) -> Sql<'q> {
    sql.bind(i64::from(key.app())).bind(environment_to_row(key.environment())).bind(key.id().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::config::Format;
    use crate::secret::Secret;

    /// A folder of its own, gone when dropped.
    pub(crate) struct Dir(PathBuf);

    impl Dir {
        pub(crate) fn new() -> Dir {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let name = format!("bywash-store %?#-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            Dir(std::env::temp_dir().join(name))
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        pub(crate) async fn open(&self) -> Store {
            self.try_open().await.unwrap()
        }

        pub(crate) async fn try_open(&self) -> Result<Store, Error> {
            Store::open(&config::Store { url: "sqlite".into() }, &self.0).await
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    /// From now on the rows that plan writes can be written no more, as on a full disk; or they can again.
    pub(crate) async fn set_full(store: &Store, full: bool) {
        let mut tx = store.begin().await.unwrap();
        for table in ["rule", "stream", "record", "file", "outbox"] {
            for change in ["INSERT", "UPDATE", "DELETE"] {
                let name = format!("full_{table}_{change}");
                let text = match full {
                    true => format!(
                        "CREATE TRIGGER {name} BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END"
                    ),
                    false => format!("DROP TRIGGER {name}"),
                };
                tx.run(sqlx::query(AssertSqlSafe(text))).await.unwrap();
            }
        }
        tx.commit().await.unwrap();
    }

    pub(crate) fn key(id: &str) -> StreamKey {
        StreamKey::published(7, id).unwrap()
    }

    /// A file that is open, of no recording.
    pub(crate) fn file(stream: &str, id: &str) -> File {
        File {
            id: id.into(),
            key: key(stream),
            vendor: Vendor::Tencent,
            record: String::new(),
            format: Format::Mp4,
            path: format!("7/{stream}/{id}.mp4"),
            state: FileState::Open,
            interrupted: false,
            begin_ms: 0,
            end_ms: 0,
            duration_ms: 0,
            size: 0,
            etag: String::new(),
            about: About::default(),
            name: stream.into(),
            created_ms: 0,
            updated_ms: 0,
            expire_ms: 0,
        }
    }

    async fn put(store: &Store, id: &str) -> Result<(), Error> {
        let mut tx = store.begin().await?;
        tx.rule_put(&key(id), "rtmp://cdn/live/a", &Secret::new("x".repeat(4000)), Origin::Api, 1).await?;
        tx.commit().await
    }

    async fn count(store: &Store, id: &str) -> u64 {
        store.read().await.unwrap().rule_count(&key(id)).await.unwrap()
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_called_that() {
        let dir = Dir::new();
        std::fs::create_dir_all(dir.path()).unwrap();
        std::fs::write(dir.path().join("bywash.db"), "not a database, ".repeat(100)).unwrap();
        let error = dir.try_open().await.err().unwrap().to_string();
        assert!(error.contains("bywash.db is not a database"), "{error}");
    }

    #[tokio::test]
    async fn what_is_committed_survives_a_reopen_and_the_rest_never_was() {
        let dir = Dir::new();
        let store = dir.open().await;
        put(&store, "kept").await.unwrap();
        let mut tx = store.begin().await.unwrap();
        tx.rule_put(&key("dropped"), "rtmp://cdn/live/a", &Secret::default(), Origin::Api, 1).await.unwrap();
        drop(tx);
        assert_eq!((count(&store, "kept").await, count(&store, "dropped").await), (1, 0));
        // Not closed in order, as after a kill.
        let store = dir.open().await;
        assert_eq!((count(&store, "kept").await, count(&store, "dropped").await), (1, 0));
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused_by_name() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        tx.run(sqlx::query("INSERT INTO schema_version (version) VALUES (99)")).await.unwrap();
        tx.commit().await.unwrap();
        store.close().await;
        let refusal = dir.try_open().await.err().unwrap().to_string();
        assert!(refusal.contains("newer bywash (schema 99"), "{refusal}");
    }

    #[tokio::test]
    async fn a_database_that_another_writes_to_opens() {
        let dir = Dir::new();
        let other = dir.open().await;
        let _writes = other.begin().await.unwrap();
        let begun = Instant::now();
        let store = dir.open().await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(count(&store, "s").await, 0);
    }

    #[tokio::test]
    async fn a_full_disk_changes_nothing_and_is_over_when_there_is_space() {
        let dir = Dir::new();
        let store = dir.open().await;
        let limit = async |text| {
            let mut tx = store.begin().await.unwrap();
            tx.run(sqlx::query(text)).await.unwrap();
            tx.commit().await.unwrap();
        };
        limit("PRAGMA max_page_count = 40").await;
        let mut stored = 0;
        let error = loop {
            match put(&store, &stored.to_string()).await {
                Ok(()) => stored += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Full(_)), "{error}");
        // A transaction that goes on after the failure adds nothing either.
        let mut tx = store.begin().await.unwrap();
        let large = Secret::new("x".repeat(400_000));
        tx.rule_put(&key("large"), "rtmp://cdn/live/a", &large, Origin::Api, 1).await.unwrap_err();
        tx.forbid_put(&key("after"), 1).await.unwrap_err();
        tx.commit().await.unwrap_err();
        assert!(!store.read().await.unwrap().forbidden(&key("after")).await.unwrap());
        assert_eq!(count(&store, &stored.to_string()).await, 0);

        limit("PRAGMA max_page_count = 4000").await;
        put(&store, &stored.to_string()).await.unwrap();
        assert_eq!(count(&store, &stored.to_string()).await, 1);
    }

    #[tokio::test]
    async fn a_look_cannot_change_and_sees_one_moment() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut look = store.read().await.unwrap();
        assert_eq!(look.rule_count(&key("a")).await.unwrap(), 0);
        put(&store, "a").await.unwrap();
        assert_eq!(look.rule_count(&key("a")).await.unwrap(), 0);
        look.forbid_put(&key("a"), 1).await.unwrap_err();
        assert_eq!(count(&store, "a").await, 1);
    }

    #[tokio::test]
    async fn a_change_given_up_at_any_point_is_whole_or_never_was() {
        let dir = Dir::new();
        let store = dir.open().await;
        for n in 0..100 {
            let change = async {
                let mut tx = store.begin().await.unwrap();
                tx.forbid_put(&key(&n.to_string()), 1).await.unwrap();
                tx.forbid_put(&key(&format!("{n}-too")), 1).await.unwrap();
                tx.commit().await.unwrap();
            };
            tokio::time::timeout(Duration::from_micros(50 * n), change).await.ok();
            let mut tx = store.begin().await.unwrap();
            let first = tx.forbidden(&key(&n.to_string())).await.unwrap();
            assert_eq!(tx.forbidden(&key(&format!("{n}-too"))).await.unwrap(), first);
        }
    }

    #[tokio::test]
    async fn changes_made_at_once_take_turns() {
        let dir = Dir::new();
        let store = dir.open().await;
        let changes = (0..50).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, &n.to_string()).await })
        });
        for change in changes.collect::<Vec<_>>() {
            change.await.unwrap().unwrap();
        }
        let mut tx = store.read().await.unwrap();
        let page = Page { number: 0, size: 0 };
        assert_eq!(tx.rules_page(7, Environment::Production, None, page).await.unwrap().0, 50);
    }
}
