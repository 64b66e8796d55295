//! Recorded and merged files: written before the first byte, and gone after the last.
//!
//! Invariant: a file's state only grows, Open, Stored, Ready, Deleting; only a Ready one is seen from outside.

use std::collections::BTreeSet;
use std::ops::Range;

use bywash_media::transcode::{CHANNELS, RATE};
use bywash_media::{Codec, Environment, Format as Content, StreamKey, Tracks};
use md5::{Digest, Md5};
use rand::Rng;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

use super::{Error, Page, Sql, Tx, bind_key, environment_to_row, json_of, key_of, unknown, vendor_of};
use crate::config::{Format, Vendor};

/// What a search counts at most.
pub const TOTAL_MAX: i64 = 5000;

/// How many files one [`Tx::files_expire`] takes at most.
const EXPIRE_MAX: i64 = 1000;

/// Files whose time is over at `$2`.
pub(super) const EXPIRED: &str = "state = 2 AND expire_ms > 0 AND expire_ms <= $2";

/// A name that so many files have is searched by name; of a name that more have, some are found soon by time.
const NARROW: i64 = 20_000;

/// A file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// ZEGO's `FileId`, see [`file_id`].
    pub id: String,
    /// The stream it was recorded from.
    pub key: StreamKey,
    /// Under whose name.
    pub vendor: Vendor,
    /// `TaskId` of the recording; empty for a merged file.
    pub record: String,
    /// How it is written.
    pub format: Format,
    /// Its key below the media folder or in the bucket; of HLS the playlist's. One file has it, for ever.
    pub path: String,
    /// Where it stands.
    pub state: FileState,
    /// It was closed by the start after a crash.
    pub interrupted: bool,
    /// When its first media came, Unix milliseconds.
    pub begin_ms: i64,
    /// When its last media came, Unix milliseconds.
    pub end_ms: i64,
    /// How long it plays, in milliseconds.
    pub duration_ms: i64,
    /// Bytes, of HLS all of its files.
    pub size: i64,
    /// Its `ETag`, without quotes.
    pub etag: String,
    /// What is in it.
    pub about: About,
    /// What callers call it: the StreamId, or `OutputFileName` of a merge.
    pub name: String,
    /// When it became ready, Unix milliseconds, so that who asks for what is new since the last time misses none; before
    /// that, when it was opened.
    pub created_ms: i64,
    /// When its row changed last, Unix milliseconds.
    pub updated_ms: i64,
    /// When it is deleted by itself, Unix milliseconds; 0 for never.
    pub expire_ms: i64,
}

/// Where a file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Being written under its `.part` name. After a start: one that the stop cut.
    Open = 0,
    /// Complete on the local disk, to be uploaded.
    Stored = 1,
    /// Complete where it stays.
    Ready = 2,
    /// Its bytes are to be removed.
    Deleting = 3,
}

/// What is in a file. Zeros and empty words where there is no such track.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames in 1000 seconds.
    pub frame_rate_milli: u32,
    /// `H.264`, as [`bywash_media::Codec::name`] has it.
    pub video_codec: String,
    /// Likewise.
    pub audio_codec: String,
    /// Samples a second.
    pub sample_rate: u32,
    /// Channels of sound.
    pub channels: u32,
    /// Bits a second of the whole file.
    pub bit_rate: u64,
}

impl File {
    /// The file once it is whole, with this many bytes and milliseconds. It ends later where it has gaps that do not play.
    pub fn whole(mut self, size: u64, duration_ms: i64) -> File {
        self.size = size as i64;
        self.duration_ms = duration_ms;
        self.end_ms = self.end_ms.max(self.begin_ms + duration_ms);
        self.about.bit_rate = (size * 8000).checked_div(duration_ms as u64).unwrap_or(0);
        // A file does not change: what it is called and how long it is say which one it is.
        self.etag = hex::encode(Md5::digest(format!("{} {size} {duration_ms}", self.id)));
        self
    }
}

impl About {
    /// What a file of this format has of these tracks.
    pub fn of(format: Format, tracks: &Tracks) -> About {
        let mut about = About::default();
        let video = tracks.video.as_ref().filter(|_| !matches!(format, Format::Aac | Format::Mp3));
        for track in video.into_iter().chain(&tracks.audio) {
            match track.format {
                Content::Video { width, height } => {
                    (about.width, about.height, about.video_codec) = (width, height, track.codec.name().into());
                }
                Content::Audio { .. } if format == Format::Mp3 && track.codec != Codec::Mp3 => {
                    (about.sample_rate, about.channels, about.audio_codec) =
                        (RATE, CHANNELS as u32, Codec::Mp3.name().into());
                }
                Content::Audio { sample_rate, channels } => {
                    (about.sample_rate, about.channels) = (sample_rate, channels.into());
                    about.audio_codec = track.codec.name().into();
                }
            }
        }
        about
    }
}

/// What lists of keys tell of a file. They are long, and most of a row's cost is its columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// As of [`File`].
    pub path: String,
    /// Likewise.
    pub etag: String,
    /// Likewise.
    pub size: i64,
    /// Likewise.
    pub created_ms: i64,
}

/// What [`Tx::files_search`] looks for: files that have all of it.
#[derive(Clone, Debug)]
pub struct Search {
    /// What the name begins with.
    pub prefix: String,
    /// When they were created, Unix milliseconds.
    pub created: Range<i64>,
    /// One of these ids, if there are any.
    pub ids: Vec<String>,
    /// Of one of these streams, if there are any.
    pub streams: Vec<String>,
}

/// A new `FileId`: 19 decimal digits at random.
pub fn file_id() -> String {
    rand::rng().random_range(1_000_000_000_000_000_000..=i64::MAX).to_string()
}

impl Tx {
    /// Puts a file that is about to be written, or one that a merge has made.
    pub async fn file_open(&mut self, file: &File) -> Result<(), Error> {
        let sql = "INSERT INTO file (app, environment, stream, id, vendor, record, format, path, state, interrupted, \
                   begin_ms, end_ms, duration_ms, size, etag, about, name, created_ms, updated_ms, expire_ms) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)";
        let sql = bind_key(sqlx::query(sql), &file.key).bind(file.id.clone()).bind(file.vendor.name());
        let sql = sql.bind(file.record.clone()).bind(file.format.name()).bind(file.path.clone());
        self.works |= file.state != FileState::Open;
        let sql = bind_known(sql, file).bind(file.name.clone()).bind(file.created_ms).bind(file.updated_ms);
        self.run(sql.bind(file.expire_ms)).await.map(drop)
    }

    /// Notes all that is known of a file that is complete, and its state with it, Stored or Ready; says whether it was
    /// Open until now, for then a callback is owed.
    pub async fn file_close(&mut self, file: &File) -> Result<bool, Error> {
        let sql = "UPDATE file SET state = $2, interrupted = $3, begin_ms = $4, end_ms = $5, duration_ms = $6, size = $7, \
                   etag = $8, about = $9, created_ms = $10, updated_ms = $11, expire_ms = $12 WHERE id = $1 AND state = 0";
        let sql = bind_known(sqlx::query(sql).bind(file.id.clone()), file);
        self.works = true;
        Ok(self.run(sql.bind(file.created_ms).bind(file.updated_ms).bind(file.expire_ms)).await? > 0)
    }

    /// Forgets a file whose bytes are gone, or that got no media.
    pub async fn file_drop(&mut self, id: &str) -> Result<(), Error> {
        self.run(sqlx::query("DELETE FROM file WHERE id = $1").bind(id.to_owned())).await.map(drop)
    }

    /// All files that are being written. Right after a start: those that the stop cut.
    pub async fn files_open(&mut self) -> Result<Vec<File>, Error> {
        self.files_in(FileState::Open, None, i64::MAX).await
    }

    /// Files to be uploaded, the oldest first; those behind `after` if one is given.
    pub async fn files_stored(&mut self, after: Option<&File>, limit: i64) -> Result<Vec<File>, Error> {
        self.files_in(FileState::Stored, after, limit).await
    }

    /// Files whose bytes are to be removed, the oldest first; those behind `after` if one is given.
    pub async fn files_deleting(&mut self, after: Option<&File>, limit: i64) -> Result<Vec<File>, Error> {
        self.files_in(FileState::Deleting, after, limit).await
    }

    /// A stored file is where it stays; says whether it was Stored until now, for then a callback is owed.
    pub async fn file_ready(&mut self, id: &str, now_ms: i64) -> Result<bool, Error> {
        let sql = "UPDATE file SET state = 2, created_ms = $2, updated_ms = $2 WHERE id = $1 AND state = 1";
        self.works = true;
        Ok(self.run(sqlx::query(sql).bind(id.to_owned()).bind(now_ms)).await? > 0)
    }

    /// Marks ready files whose time is over for deletion, at most 1000 of them; says how many.
    pub async fn files_expire(&mut self, now_ms: i64) -> Result<u64, Error> {
        let sql = format!(
            "UPDATE file SET state = 3, updated_ms = $2 \
             WHERE id IN (SELECT id FROM file WHERE {EXPIRED} ORDER BY expire_ms LIMIT $1)"
        );
        self.run(sqlx::query(AssertSqlSafe(sql)).bind(EXPIRE_MAX).bind(now_ms)).await
    }

    /// When the time of the next ready file is over, Unix milliseconds, of those that have one.
    pub async fn next_expiry(&mut self) -> Result<Option<i64>, Error> {
        let sql = "SELECT expire_ms FROM file WHERE state = 2 AND expire_ms > 0 ORDER BY expire_ms LIMIT 1";
        self.first(sqlx::query(sql), |row| Ok(row.try_get("expire_ms")?)).await
    }

    /// One file of an app by its id, whatever its state.
    pub async fn file(&mut self, app: u32, environment: Environment, id: &str) -> Result<Option<File>, Error> {
        let sql = "SELECT * FROM file WHERE app = $1 AND environment = $2 AND id = $3";
        let sql = sqlx::query(sql).bind(i64::from(app)).bind(environment_to_row(environment)).bind(id.to_owned());
        self.first(sql, file_of).await
    }

    /// One file by its key, whatever its state.
    pub async fn file_by_path(&mut self, path: &str) -> Result<Option<File>, Error> {
        self.first(sqlx::query("SELECT * FROM file WHERE path = $1").bind(path.to_owned()), file_of).await
    }

    /// A ready file as callers name it: by its id or its key.
    pub async fn file_named(
        &mut self,
        app: u32,
        environment: Environment,
        vendor: Vendor,
        id_or_key: &str,
    ) -> Result<Option<File>, Error> {
        let file = match self.file(app, environment, id_or_key).await? {
            Some(file) => Some(file),
            None => self.file_by_path(id_or_key).await?,
        };
        let theirs = |file: &File| {
            (file.key.app(), file.key.environment(), file.vendor) == (app, environment, vendor)
                && file.state == FileState::Ready
        };
        Ok(file.filter(theirs))
    }

    /// Marks a ready file for deletion, named by its id or its key; says whether there was one.
    pub async fn file_delete(
        &mut self,
        app: u32,
        environment: Environment,
        vendor: Vendor,
        id_or_key: &str,
        now_ms: i64,
    ) -> Result<bool, Error> {
        let Some(file) = self.file_named(app, environment, vendor, id_or_key).await? else { return Ok(false) };
        let sql = "UPDATE file SET state = 3, updated_ms = $2 WHERE id = $1 AND state = 2";
        self.works = true;
        Ok(self.run(sqlx::query(sql).bind(file.id).bind(now_ms)).await? > 0)
    }

    /// How many ready files of an app `search` finds, at most [`TOTAL_MAX`], and one page of them, the newest first.
    pub async fn files_search(
        &mut self,
        app: u32,
        environment: Environment,
        vendor: Vendor,
        search: &Search,
        page: Page,
    ) -> Result<(u64, Vec<File>), Error> {
        let place = Place { app, environment, vendor };
        if !search.ids.is_empty() {
            let mut files = Vec::new();
            for id in search.ids.iter().collect::<BTreeSet<_>>() {
                files.extend(self.file_named(app, environment, vendor, id).await?.filter(|file| search.takes(file)));
            }
            files.sort_by(|a, b| (b.created_ms, &b.id).cmp(&(a.created_ms, &a.id)));
            let total = files.len() as u64;
            let files = files.into_iter().skip(page.offset() as usize).take(page.limit() as usize);
            return Ok((total, files.collect()));
        }
        let walk = match search.streams.is_empty() {
            false => Walk::streams(&search.streams),
            true if search.prefix.is_empty() => Walk::created(),
            true => {
                let (any_time, named) = (Search { created: i64::MIN..i64::MAX, ..search.clone() }, Walk::named(search));
                let few = self.count(place, &any_time, &named, NARROW).await? < NARROW.unsigned_abs();
                if few { named } else { Walk::created() }
            }
        };
        let total = self.count(place, search, &walk, TOTAL_MAX).await?;
        let sql = walk.bind(sqlx::query(AssertSqlSafe(walk.page())), place, search);
        Ok((total, self.each(sql.bind(page.limit()).bind(page.offset()), file_of).await?))
    }

    /// At most `limit` ready files of an app whose keys begin with `prefix` and follow `marker`, in the order of keys.
    pub async fn files_after(
        &mut self,
        app: u32,
        environment: Environment,
        vendor: Vendor,
        prefix: &str,
        marker: &str,
        limit: i64,
    ) -> Result<Vec<Listed>, Error> {
        // No key has a control character, so nothing lies between the marker and the first after it.
        let first = if marker < prefix { prefix.to_owned() } else { format!("{marker}\u{1}") };
        let sql = Place { app, environment, vendor }.bind(sqlx::query(AFTER)).bind(first).bind(end_of(prefix));
        let listed = |row: &AnyRow| {
            let (path, etag) = (row.try_get("path")?, row.try_get("etag")?);
            Ok(Listed { path, etag, size: row.try_get("size")?, created_ms: row.try_get("created_ms")? })
        };
        self.each(sql.bind(limit), listed).await
    }

    async fn files_in(&mut self, state: FileState, after: Option<&File>, limit: i64) -> Result<Vec<File>, Error> {
        let sql = "SELECT * FROM file WHERE state <> 2 AND state = $1 AND (updated_ms, id) > ($2, $3) \
                   ORDER BY updated_ms, id LIMIT $4";
        let (updated_ms, id) = after.map_or((i64::MIN, ""), |it| (it.updated_ms, &it.id));
        self.each(sqlx::query(sql).bind(state as i64).bind(updated_ms).bind(id.to_owned()).bind(limit), file_of).await
    }

    /// How many files a walk finds, at most `most`.
    async fn count(&mut self, place: Place, search: &Search, walk: &Walk, most: i64) -> Result<u64, Error> {
        let sql = walk.bind(sqlx::query(AssertSqlSafe(walk.count())), place, search).bind(most);
        self.total(sql).await
    }
}

impl Search {
    fn takes(&self, file: &File) -> bool {
        file.name.starts_with(&self.prefix)
            && self.created.contains(&file.created_ms)
            && (self.streams.is_empty() || self.streams.iter().any(|id| id == file.key.id()))
    }
}

/// Whose files.
#[derive(Clone, Copy)]
struct Place {
    app: u32,
    environment: Environment,
    vendor: Vendor,
}

impl Place {
    fn bind<'q>(self, sql: Sql<'q>) -> Sql<'q> {
        sql.bind(i64::from(self.app)).bind(environment_to_row(self.environment)).bind(self.vendor.name())
    }
}

/// A list of keys, from `$4` on and before `$5`.
const AFTER: &str = "SELECT path, etag, size, created_ms FROM file WHERE state = 2 AND app = $1 AND environment = $2 AND vendor = $3 \
                     AND path >= $4 AND path < $5 ORDER BY path LIMIT $6";

/// How a search goes through an index: from its newest file on, or from that of several streams at once.
struct Walk {
    /// What leads, once for each stream. What else the search asks for is read from the index too.
    leads: Vec<String>,
    /// The values of `$7` and on.
    values: Vec<String>,
    /// How the time is written.
    time: &'static str,
}

impl Walk {
    fn created() -> Walk {
        Walk { leads: vec![NAMED.into()], values: Vec::new(), time: "created_ms" }
    }

    /// The time is written so that its own index does not suit the planner better.
    fn named(search: &Search) -> Walk {
        let leads = vec!["name >= $6 AND name < $7".into()];
        Walk { leads, values: vec![end_of(&search.prefix)], time: "created_ms + 0" }
    }

    fn streams(ids: &[String]) -> Walk {
        let values: Vec<String> = ids.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let leads = (7..).zip(&values).map(|(n, _)| format!("{NAMED} AND stream = ${n}")).collect();
        Walk { leads, values, time: "created_ms" }
    }

    /// Counts up to the value that follows.
    fn count(&self) -> String {
        format!("SELECT COUNT(*) AS total FROM ({} LIMIT ${}) AS hit", self.hits(), self.values.len() + 7)
    }

    /// So many of the newest, from the so-manieth on, as the two values that follow. Only these are read from more
    /// than the index.
    fn page(&self) -> String {
        let (hits, n) = (self.hits(), self.values.len() + 7);
        format!(
            "SELECT file.* FROM file JOIN ({hits} ORDER BY time DESC, id DESC LIMIT ${n} OFFSET ${}) AS hit \
             ON hit.id = file.id ORDER BY file.created_ms DESC, file.id DESC",
            n + 1
        )
    }

    fn hits(&self) -> String {
        let time = self.time;
        let hits = self.leads.iter().map(|lead| {
            format!(
                "SELECT id, {time} AS time FROM file WHERE state = 2 AND app = $1 AND environment = $2 AND vendor = $3 \
                 AND {time} >= $4 AND {time} < $5 AND {lead}"
            )
        });
        hits.collect::<Vec<_>>().join(" UNION ALL ")
    }

    fn bind<'q>(&self, sql: Sql<'q>, place: Place, search: &Search) -> Sql<'q> {
        let sql = place.bind(sql).bind(search.created.start).bind(search.created.end).bind(search.prefix.clone());
        self.values.iter().fold(sql, |sql, value| sql.bind(value.clone()))
    }
}

/// The name begins with the prefix, said so that no index by name is thought of.
const NAMED: &str = "substr(name, 1, length($6)) = $6";

/// What is greater than all that begins with `prefix`.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{10ffff}")
}

/// Binds what is known of a complete file, from its state to its content.
fn bind_known<'q>(sql: Sql<'q>, file: &File) -> Sql<'q> {
    let about = serde_json::to_string(&file.about).expect("numbers and words");
    let sql = sql.bind(file.state as i64).bind(i64::from(file.interrupted)).bind(file.begin_ms).bind(file.end_ms);
    sql.bind(file.duration_ms).bind(file.size).bind(file.etag.clone()).bind(about)
}

pub(super) fn file_of(row: &AnyRow) -> Result<File, Error> {
    let format: &str = row.try_get("format")?;
    Ok(File {
        id: row.try_get("id")?,
        key: key_of(row)?,
        vendor: vendor_of(row)?,
        record: row.try_get("record")?,
        format: Format::named(format).ok_or_else(|| Error::Other(format!("a row has the format {format:?}")))?,
        path: row.try_get("path")?,
        state: match row.try_get("state")? {
            0i64 => FileState::Open,
            1 => FileState::Stored,
            2 => FileState::Ready,
            3 => FileState::Deleting,
            other => return Err(unknown("state", other)),
        },
        interrupted: row.try_get::<i64, _>("interrupted")? != 0,
        begin_ms: row.try_get("begin_ms")?,
        end_ms: row.try_get("end_ms")?,
        duration_ms: row.try_get("duration_ms")?,
        size: row.try_get("size")?,
        etag: row.try_get("etag")?,
        about: json_of(row, "about")?,
        name: row.try_get("name")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
        expire_ms: row.try_get("expire_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::store::Store;
    use crate::store::tests::{Dir, file};

    fn open(stream: &str, n: i64) -> File {
        File { record: "task".into(), created_ms: n, updated_ms: n, ..file(stream, &n.to_string()) }
    }

    #[tokio::test]
    async fn a_file_is_announced_once_and_seen_only_while_it_is_ready() {
        let dir = Dir::new();
        let store = dir.open().await;
        let production = Environment::Production;
        let mut tx = store.begin().await.unwrap();
        for n in 1..=4 {
            tx.file_open(&open("s", n)).await.unwrap();
        }
        tx.commit().await.unwrap();

        // After a kill all of it is known.
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.files_open().await.unwrap(), [1, 2, 3, 4].map(|n| open("s", n)));
        let about = About { width: 640, video_codec: "H.264".into(), ..About::default() };
        let ready = File { state: FileState::Ready, size: 5, etag: "e".into(), about, created_ms: 50, ..open("s", 1) };
        let stored = File { state: FileState::Stored, interrupted: true, ..open("s", 2) };
        for (file, was_open) in [(&ready, true), (&ready, false), (&stored, true), (&stored, false)] {
            assert_eq!(tx.file_close(file).await.unwrap(), was_open);
        }
        tx.file_drop("3").await.unwrap();
        assert_eq!(tx.file(7, production, "1").await.unwrap(), Some(ready.clone()));
        assert_eq!(tx.file(7, Environment::Test, "1").await.unwrap(), None);
        assert_eq!(tx.file(8, production, "1").await.unwrap(), None);
        assert_eq!(tx.file_by_path("7/s/3.mp4").await.unwrap(), None);
        assert_eq!(tx.files_stored(None, 10).await.unwrap(), [stored]);
        assert_eq!(tx.files_open().await.unwrap().len(), 1);
        assert!(!tx.file_ready("4", 60).await.unwrap(), "not before it is complete");
        assert!(tx.file_ready("2", 60).await.unwrap() && !tx.file_ready("2", 70).await.unwrap());
        let seen = tx.file(7, production, "2").await.unwrap().unwrap();
        assert_eq!((seen.state, seen.created_ms, seen.interrupted), (FileState::Ready, 60, true));

        for (vendor, name, there) in [
            (Vendor::Ws, "1", false),
            (Vendor::Tencent, "4", false),
            (Vendor::Tencent, "7/s/4.mp4", false),
            (Vendor::Tencent, "7/s/1.mp4", true),
            (Vendor::Tencent, "7/s/1.mp4", false),
            (Vendor::Tencent, "2", true),
        ] {
            assert_eq!(tx.file_delete(7, production, vendor, name, 80).await.unwrap(), there, "{name}");
        }
        assert_eq!(tx.file_named(7, production, Vendor::Tencent, "1").await.unwrap(), None);
        let gone = tx.files_deleting(None, 10).await.unwrap();
        assert!(gone.iter().map(|file| &file.id).eq(["1", "2"]), "{gone:?}");
        assert_eq!(tx.files_deleting(None, 1).await.unwrap(), gone[..1]);
        assert_eq!(tx.files_deleting(Some(&gone[0]), 1).await.unwrap(), gone[1..]);
    }

    #[test]
    fn a_file_ends_when_its_last_media_came_and_plays_without_its_gaps() {
        // It was closed after 23 s, or a crash has cut it.
        for (end_ms, want) in [(33_000, 33_000), (10_000, 25_500)] {
            let file = File { begin_ms: 10_000, end_ms, ..open("s", 1) }.whole(1, 15_500);
            assert_eq!((file.end_ms, file.duration_ms), (want, 15_500));
        }
    }

    #[tokio::test]
    async fn only_ready_files_whose_time_is_over_expire() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        for (n, state, expire_ms) in [
            (1, FileState::Ready, 100),
            (2, FileState::Ready, 101),
            (3, FileState::Ready, 0),
            (4, FileState::Stored, 100),
            (5, FileState::Open, 100),
        ] {
            tx.file_open(&File { state, expire_ms, ..open("s", n) }).await.unwrap();
        }
        assert_eq!(tx.files_expire(99).await.unwrap(), 0);
        assert_eq!(tx.next_expiry().await.unwrap(), Some(100));
        assert_eq!(tx.files_expire(100).await.unwrap(), 1);
        assert_eq!(tx.files_deleting(None, 10).await.unwrap()[0].id, "1");
    }

    /// Puts `count` files of many streams and one large one in the order of a shuffled deck.
    async fn fill(store: &Store, count: i64) {
        let sql = "WITH RECURSIVE deck (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM deck WHERE n < $1), \
                   card AS (SELECT n, n * 2654435761 % 1000000007 AS shuffled, \
                   CASE WHEN n % 10 = 3 THEN 'large' ELSE 'cam' || (n % 2003) END AS stream FROM deck) \
                   INSERT INTO file SELECT CAST(1000000000000000000 + shuffled AS TEXT), 7, 0, stream, \
                   CASE WHEN n % 5 = 0 THEN 'Huawei' ELSE 'Tencent' END, 'task' || (n % 5000), 'mp4', \
                   '7/' || stream || '/2026-01-02/030405-0123456789ab-' || n || '.mp4', 2, 0, \
                   n * 1000, n * 1000 + 5, 5, 6, 'e', $2, \
                   CASE WHEN n % 100 = 7 THEN 'merged ' || n ELSE stream END, n * 1000, n * 1000, 0 FROM card";
        let about = serde_json::to_string(&About::default()).unwrap();
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.run(sqlx::query(sql).bind(count).bind(about)).await.unwrap(), count as u64);
        tx.commit().await.unwrap();
    }

    /// With `BYWASH_SOAK` a million files, and the time counts.
    #[tokio::test]
    async fn a_search_in_a_million_files_is_quick() {
        let soak = std::env::var_os("BYWASH_SOAK").is_some();
        let count: i64 = if soak { 1_000_000 } else { 20_000 };
        let dir = Dir::new();
        let store = dir.open().await;
        fill(&store, count).await;
        let place = Place { app: 7, environment: Environment::Production, vendor: Vendor::Tencent };
        let all = Search { prefix: String::new(), created: i64::MIN..i64::MAX, ids: Vec::new(), streams: Vec::new() };

        // No statement looks at rows that its index does not lead to.
        let mut tx = store.read().await.unwrap();
        let prefixed = Search { prefix: "cam1".into(), ..all.clone() };
        for (walk, index) in [
            (Walk::created(), "file_created (app=? AND environment=? AND vendor=? AND created_ms>? AND created_ms<?)"),
            (Walk::named(&prefixed), "file_name (app=? AND environment=? AND vendor=? AND name>? AND name<?)"),
            (
                Walk::streams(&["cam1".into(), "cam2".into()]),
                "file_stream (app=? AND environment=? AND vendor=? AND stream=? AND created_ms>? AND created_ms<?)",
            ),
        ] {
            for sql in [walk.count(), walk.page()] {
                let explain = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
                let mut explain = walk.bind(explain, place, &prefixed).bind(10i64);
                if sql.contains("OFFSET") {
                    explain = explain.bind(0i64);
                }
                let plan = tx.all(explain).await.unwrap();
                let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
                let covered = format!("SEARCH file USING COVERING INDEX {index}");
                assert!(plan.contains(&covered) && !plan.iter().any(|it| it.contains("SCAN file")), "{sql}: {plan:?}");
            }
        }
        let explain = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {AFTER}")));
        let plan = tx.all(place.bind(explain).bind("7/").bind("8").bind(10i64)).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
        assert_eq!(
            plan,
            ["SEARCH file USING INDEX file_key (app=? AND environment=? AND vendor=? AND path>? AND path<?)"]
        );

        let mut dice = 1u64;
        let mut roll = |sides: i64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as i64 % sides
        };
        let id = |n: i64| (1_000_000_000_000_000_000 + n * 2_654_435_761 % 1_000_000_007).to_string();
        let mut took: Vec<(Duration, String)> = Vec::new();
        for round in 0..if soak { 100 } else { 3 } {
            let (from, last) = (roll(count) * 1000, Page { number: 499, size: 10 });
            let (ten, deep) = (Page { number: 0, size: 10 }, Page { number: roll(500) as u64, size: 10 });
            let created = from..from + 3_600_000;
            let (streams, ids): (Vec<_>, Vec<_>) =
                (0..10).map(|_| (format!("cam{}", roll(2003)), id(1 + roll(count)))).unzip();
            let named = |prefix: String| Search { prefix, ..all.clone() };
            let of = |streams| Search { streams, ..all.clone() };
            let searches = [
                (all.clone(), ten),
                (all.clone(), Page { number: 0, size: 100 }),
                (all.clone(), deep),
                (all.clone(), last),
                (Search { created: created.clone(), ..all.clone() }, ten),
                (Search { created: from..i64::MAX, ..all.clone() }, last),
                (named("cam".into()), deep),
                (named("cam1".into()), last),
                (named(format!("cam{}", roll(2003))), ten),
                (named("merged".into()), last),
                (named("none".into()), ten),
                (Search { created: created.clone(), ..named("cam".into()) }, ten),
                (Search { created: 0..from, ..named("merged".into()) }, deep),
                (Search { created: created.clone(), ..named("merged 1".into()) }, ten),
                (of(streams.clone()), ten),
                (of(streams.clone()), Page { number: 4, size: 10 }),
                (of(vec!["large".into()]), last),
                (of([streams[..9].to_vec(), vec!["large".into()]].concat()), deep),
                (Search { created, ..of(vec!["large".into()]) }, ten),
                (Search { ids, ..all.clone() }, ten),
            ];
            for (search, page) in searches {
                let begin = Instant::now();
                let (total, files) =
                    tx.files_search(7, Environment::Production, Vendor::Tencent, &search, page).await.unwrap();
                took.push((begin.elapsed(), format!("{search:?} {page:?}")));
                assert!(files.len() as u64 <= page.size && files.len() as u64 <= total && total <= TOTAL_MAX as u64);
                assert!(files.is_sorted_by_key(|file| std::cmp::Reverse((file.created_ms, file.id.clone()))));
                assert!(files.iter().all(|file| search.takes(file)), "{search:?}");
                if search.ids.is_empty() && search.streams.is_empty() && round == 0 {
                    assert_eq!((total, newest(&files)), slowly(&mut tx, &search, page).await, "{search:?} {page:?}");
                }
            }
            for (prefix, limit) in [("7/", 1001), ("7/cam1", 1001), ("7/large", 101)] {
                let marker = format!("7/cam{}", roll(2003));
                let begin = Instant::now();
                let files =
                    tx.files_after(7, Environment::Production, Vendor::Huawei, prefix, &marker, limit).await.unwrap();
                took.push((begin.elapsed(), format!("{prefix} {marker}")));
                assert!(files.is_sorted_by_key(|file| file.path.clone()));
                assert!(files.iter().all(|file| file.path.starts_with(prefix) && file.path > marker));
            }
        }
        took.sort();
        let at = |percent: usize| &took[(took.len() * percent).div_ceil(100) - 1];
        println!(
            "{count} files, {} searches: median {:?}, p99 {:?}, worst {:?}",
            took.len(),
            at(50).0,
            at(99),
            at(100)
        );
        assert!(!soak || at(99).0 < Duration::from_millis(50));
    }

    fn newest(files: &[File]) -> Vec<String> {
        files.iter().map(|file| file.id.clone()).collect()
    }

    /// What a search by all rows finds.
    async fn slowly(tx: &mut Tx, search: &Search, page: Page) -> (u64, Vec<String>) {
        let sql = "SELECT id FROM file NOT INDEXED WHERE vendor = 'Tencent' AND created_ms >= $1 AND created_ms < $2 \
                   AND substr(name, 1, length($3)) = $3 ORDER BY created_ms DESC, id DESC";
        let sql = sqlx::query(sql).bind(search.created.start).bind(search.created.end).bind(search.prefix.clone());
        let ids: Vec<String> = tx.all(sql).await.unwrap().iter().map(|row| row.get("id")).collect();
        let total = (ids.len() as u64).min(TOTAL_MAX as u64);
        (total, ids.into_iter().skip(page.offset() as usize).take(page.size as usize).collect())
    }
}
