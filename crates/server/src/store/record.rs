//! Recordings: which stream should be recorded under which vendor's name, and how that goes.
//!
//! Invariant: a stream has one wished recording for a vendor; a closed one is never wished again.

use bywash_media::{Environment, StreamKey};
use rand::Rng;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

use super::{Error, File, Origin, Page, Tx, bind_key, environment_to_row, key_of, origin_of, unknown, vendor_of};
use crate::config::Vendor;

/// The wish that a stream be recorded, from the call that asked for it to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// ZEGO's `TaskId`, see [`task_id`].
    pub id: String,
    /// The stream.
    pub key: StreamKey,
    /// Under whose name.
    pub vendor: Vendor,
    /// Who wished it.
    pub origin: Origin,
    /// When it was wished, Unix milliseconds.
    pub created_ms: i64,
    /// When it ends by itself, Unix milliseconds; 0 if never.
    pub end_ms: i64,
    /// When it was ended, Unix milliseconds; 0 while it is wished.
    pub closed_ms: i64,
    /// How it goes.
    pub status: RecordStatus,
}

/// How a recording goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordStatus {
    /// Where it stands.
    pub state: RecordState,
    /// Why it came there, in words; empty where the state says all.
    pub reason: String,
    /// Since when, Unix milliseconds.
    pub state_ms: i64,
    /// When its first media was written, Unix milliseconds; 0 before that.
    pub begun_ms: i64,
    /// What went wrong last; empty if nothing.
    pub last_error: String,
}

/// `State` of `DescribeCDNRecords`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordState {
    /// For the stream to be live.
    #[default]
    Waiting = 0,
    /// Media is written.
    Recording = 1,
    /// The stream is live, but nothing is written for now.
    Paused = 2,
    /// Over, as it was wished.
    Ended = 3,
    /// Over, because it could not be done.
    Failed = 4,
}

impl RecordState {
    /// Its word in the API and in callbacks.
    pub fn name(self) -> &'static str {
        match self {
            RecordState::Waiting => "waiting",
            RecordState::Recording => "recording",
            RecordState::Paused => "paused",
            RecordState::Ended => "ended",
            RecordState::Failed => "failed",
        }
    }
}

/// A new `TaskId`: 32 lower-case hex digits at random.
pub fn task_id() -> String {
    hex::encode(rand::rng().random::<[u8; 16]>())
}

/// Records that are forgotten once `$1` is later than their end.
pub(super) const OVER: &str = "closed_ms > 0 AND closed_ms < $1 AND state NOT BETWEEN 1 AND 2 \
                               AND NOT EXISTS (SELECT 1 FROM file WHERE file.record = record.id)";

/// For [`Tx::records_over`].
const UNSAID: &str = "SELECT * FROM record WHERE closed_ms > 0 AND state < 3 ORDER BY closed_ms LIMIT $1";

impl Tx {
    /// Puts a recording; its stream must have none wished for the vendor.
    pub async fn record_put(&mut self, record: &Record) -> Result<(), Error> {
        let sql = "INSERT INTO record (app, environment, stream, id, vendor, origin, created_ms, end_ms, closed_ms, \
                   numbers, state, reason, state_ms, begun_ms, last_error) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, $11, $12, $13, $14)";
        let sql = bind_key(sqlx::query(sql), &record.key).bind(record.id.clone()).bind(record.vendor.name());
        let sql = sql.bind(record.origin as i64).bind(record.created_ms).bind(record.end_ms).bind(record.closed_ms);
        let RecordStatus { state, reason, state_ms, begun_ms, last_error } = record.status.clone();
        let sql = sql.bind(state as i64).bind(reason).bind(state_ms).bind(begun_ms).bind(last_error);
        self.run(sql).await.map(drop)
    }

    /// The wished recording of a stream under a vendor's name.
    pub async fn record_wished(&mut self, key: &StreamKey, vendor: Vendor) -> Result<Option<Record>, Error> {
        let sql = "SELECT * FROM record \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND vendor = $4 AND closed_ms = 0";
        self.first(bind_key(sqlx::query(sql), key).bind(vendor.name()), record_of).await
    }

    /// Whether a call has stopped a recording of a stream under this vendor's name since the publish that began at `begun_ms`.
    /// What is recorded by default ends with its publish, and what a call asks for may end by itself: neither is meant.
    pub async fn record_stopped(&mut self, key: &StreamKey, vendor: Vendor, begun_ms: i64) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM record \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND vendor = $4 AND closed_ms >= $5 \
                   AND (origin = $6 OR created_ms >= $5) AND (end_ms = 0 OR closed_ms < end_ms)) AS total";
        let sql = bind_key(sqlx::query(sql), key).bind(vendor.name()).bind(begun_ms).bind(Origin::Api as i64);
        Ok(self.total(sql).await? > 0)
    }

    /// The wished recordings of a stream, ordered by vendor.
    pub async fn records_wished_of(&mut self, key: &StreamKey) -> Result<Vec<Record>, Error> {
        let sql = "SELECT * FROM record \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND closed_ms = 0 ORDER BY vendor";
        self.each(bind_key(sqlx::query(sql), key), record_of).await
    }

    /// One recording.
    pub async fn record(&mut self, id: &str) -> Result<Option<Record>, Error> {
        self.first(sqlx::query("SELECT * FROM record WHERE id = $1").bind(id.to_owned()), record_of).await
    }

    /// A call asks for a recording that is there: it takes the call's end, and is the call's from now on.
    pub async fn record_set_end(&mut self, id: &str, end_ms: i64) -> Result<(), Error> {
        let sql = "UPDATE record SET end_ms = $2, origin = $3 WHERE id = $1 AND closed_ms = 0";
        let sql = sqlx::query(sql).bind(id.to_owned()).bind(end_ms).bind(Origin::Api as i64);
        self.run(sql).await.map(drop)
    }

    /// Ends a recording; says whether it was wished.
    pub async fn record_close(&mut self, id: &str, now_ms: i64) -> Result<bool, Error> {
        let sql = "UPDATE record SET closed_ms = $2 WHERE id = $1 AND closed_ms = 0";
        Ok(self.run(sqlx::query(sql).bind(id.to_owned()).bind(now_ms)).await? > 0)
    }

    /// The wished recordings whose end has come, at most `limit`, the earliest first.
    pub async fn records_due(&mut self, now_ms: i64, limit: i64) -> Result<Vec<Record>, Error> {
        let sql = "SELECT * FROM record WHERE closed_ms = 0 AND end_ms > 0 AND end_ms <= $1 ORDER BY end_ms LIMIT $2";
        self.each(sqlx::query(sql).bind(now_ms).bind(limit), record_of).await
    }

    /// When the next end of a wished recording is.
    pub async fn record_next_due(&mut self) -> Result<Option<i64>, Error> {
        let sql = "SELECT MIN(end_ms) AS next FROM record WHERE closed_ms = 0 AND end_ms > 0";
        Ok(self.one(sqlx::query(sql)).await?.try_get("next")?)
    }

    /// The recordings of all apps that record or pause. Right after a start: those that the stop cut.
    pub async fn records_running(&mut self) -> Result<Vec<Record>, Error> {
        let sql = "SELECT * FROM record WHERE state BETWEEN 1 AND 2 ORDER BY app, environment, stream, vendor";
        self.each(sqlx::query(sql), record_of).await
    }

    /// The recordings of all apps that were ended and do not say so yet, at most `limit`, the first that was ended first.
    pub async fn records_over(&mut self, limit: i64) -> Result<Vec<Record>, Error> {
        self.each(sqlx::query(UNSAID).bind(limit), record_of).await
    }

    /// Ends the wished recordings of a stream that no call has asked for.
    pub async fn records_close_default(&mut self, key: &StreamKey, now_ms: i64) -> Result<(), Error> {
        let sql = "UPDATE record SET closed_ms = $5 \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND origin = $4 AND closed_ms = 0";
        self.run(bind_key(sqlx::query(sql), key).bind(Origin::Default as i64).bind(now_ms)).await.map(drop)
    }

    /// Notes how a recording goes.
    pub async fn record_note(&mut self, id: &str, status: &RecordStatus) -> Result<(), Error> {
        let sql = "UPDATE record SET state = $2, reason = $3, state_ms = $4, begun_ms = $5, last_error = $6 \
                   WHERE id = $1";
        let RecordStatus { state, reason, state_ms, begun_ms, last_error } = status.clone();
        let sql = sqlx::query(sql).bind(id.to_owned()).bind(state as i64).bind(reason).bind(state_ms);
        self.run(sql.bind(begun_ms).bind(last_error)).await.map(drop)
    }

    /// The number of a recording's next file, from 1; never the same again.
    pub async fn record_next_number(&mut self, id: &str) -> Result<i64, Error> {
        let sql = "UPDATE record SET numbers = numbers + 1 WHERE id = $1 RETURNING numbers";
        Ok(self.one(sqlx::query(sql).bind(id.to_owned())).await?.try_get("numbers")?)
    }

    /// How many recordings a stream, or the app, has, of one vendor or all, and one page of them, the newest first.
    pub async fn records_page(
        &mut self,
        app: u32,
        environment: Environment,
        stream: Option<&str>,
        vendor: Option<Vendor>,
        page: Page,
    ) -> Result<(u64, Vec<Record>), Error> {
        let (count, list) = match stream {
            Some(_) => (
                "SELECT COUNT(*) AS total FROM record \
                 WHERE app = $1 AND environment = $2 AND vendor BETWEEN $3 AND $4 AND stream = $5",
                "SELECT * FROM record WHERE app = $1 AND environment = $2 AND vendor BETWEEN $3 AND $4 \
                 AND stream = $5 ORDER BY created_ms DESC, id LIMIT $6 OFFSET $7",
            ),
            None => (
                "SELECT COUNT(*) AS total FROM record \
                 WHERE app = $1 AND environment = $2 AND vendor BETWEEN $3 AND $4",
                "SELECT * FROM record WHERE app = $1 AND environment = $2 AND vendor BETWEEN $3 AND $4 \
                 ORDER BY created_ms DESC, id LIMIT $5 OFFSET $6",
            ),
        };
        // Every name lies between nothing and `~`.
        let (low, high) = vendor.map_or(("", "~"), |vendor| (vendor.name(), vendor.name()));
        let scope = |sql| {
            let sql = sqlx::query(sql).bind(i64::from(app)).bind(environment_to_row(environment)).bind(low).bind(high);
            match stream {
                Some(stream) => sql.bind(stream.to_owned()),
                None => sql,
            }
        };
        let total = self.total(scope(count)).await?;
        Ok((total, self.each(scope(list).bind(page.limit()).bind(page.offset()), record_of).await?))
    }

    /// The files of a recording, whatever their state, in the order of their making.
    pub async fn files_of_record(&mut self, id: &str) -> Result<Vec<File>, Error> {
        let sql = "SELECT * FROM file WHERE record = $1 ORDER BY begin_ms, path";
        self.each(sqlx::query(sql).bind(id.to_owned()), super::file::file_of).await
    }

    /// The keys of a recording's newest ready files, at most `limit`, in the order of their making.
    pub async fn record_keys(&mut self, id: &str, limit: i64) -> Result<Vec<String>, Error> {
        let sql = "SELECT path FROM file WHERE record = $1 AND state = 2 ORDER BY begin_ms DESC, path DESC LIMIT $2";
        let rows = self.all(sqlx::query(sql).bind(id.to_owned()).bind(limit)).await?;
        rows.iter().rev().map(|row| Ok(row.try_get("path")?)).collect()
    }

    /// Forgets recordings that were ended before `before_ms` and have no file any more.
    pub async fn records_forget(&mut self, before_ms: i64) -> Result<(), Error> {
        let sql = format!("DELETE FROM record WHERE {OVER}");
        self.run(sqlx::query(AssertSqlSafe(sql)).bind(before_ms)).await.map(drop)
    }
}

fn record_of(row: &AnyRow) -> Result<Record, Error> {
    Ok(Record {
        id: row.try_get("id")?,
        key: key_of(row)?,
        vendor: vendor_of(row)?,
        origin: origin_of(row)?,
        created_ms: row.try_get("created_ms")?,
        end_ms: row.try_get("end_ms")?,
        closed_ms: row.try_get("closed_ms")?,
        status: RecordStatus {
            state: match row.try_get("state")? {
                0i64 => RecordState::Waiting,
                1 => RecordState::Recording,
                2 => RecordState::Paused,
                3 => RecordState::Ended,
                4 => RecordState::Failed,
                other => return Err(unknown("state", other)),
            },
            reason: row.try_get("reason")?,
            state_ms: row.try_get("state_ms")?,
            begun_ms: row.try_get("begun_ms")?,
            last_error: row.try_get("last_error")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FileState;
    use crate::store::tests::{Dir, file, key};

    fn record(id: &str, stream: &str, vendor: Vendor, origin: Origin, end_ms: i64) -> Record {
        let status = RecordStatus { state_ms: 1, ..RecordStatus::default() };
        Record { id: id.into(), key: key(stream), vendor, origin, created_ms: end_ms, end_ms, closed_ms: 0, status }
    }

    #[tokio::test]
    async fn a_stream_has_one_wished_recording_for_a_vendor() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        let first = record("1", "s", Vendor::Ws, Origin::Api, 0);
        let other = record("2", "s", Vendor::Huawei, Origin::Default, 0);
        tx.record_put(&first).await.unwrap();
        tx.record_put(&other).await.unwrap();
        assert_eq!(tx.record_wished(&key("s"), Vendor::Ws).await.unwrap(), Some(first.clone()));
        assert_eq!(tx.record_wished(&key("zegotest-7-s"), Vendor::Ws).await.unwrap(), None);
        assert_eq!(tx.records_wished_of(&key("s")).await.unwrap(), [other, first]);
        assert!(tx.record_close("1", 5).await.unwrap() && !tx.record_close("1", 6).await.unwrap());
        assert_eq!(tx.record("1").await.unwrap().unwrap().closed_ms, 5);
        tx.record_put(&record("3", "s", Vendor::Ws, Origin::Api, 0)).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        tx.record_put(&record("4", "s", Vendor::Ws, Origin::Api, 0)).await.unwrap_err();
        drop(tx);
        let store = dir.open().await;
        let wished = store.read().await.unwrap().records_wished_of(&key("s")).await.unwrap();
        assert_eq!(wished.iter().map(|it| it.id.as_str()).collect::<String>(), "23");
    }

    #[tokio::test]
    async fn what_was_stopped_is_known_as_such_until_the_next_publish() {
        let dir = Dir::new();
        let store = dir.open().await;
        // Put and closed then, and to end then; what is said of the publish that began at 100.
        for (origin, created_ms, closed_ms, end_ms, want) in [
            (Origin::Default, 110, 120, 0, true),
            (Origin::Default, 110, 0, 0, false),
            (Origin::Default, 50, 90, 0, false),
            (Origin::Default, 50, 101, 0, false),
            (Origin::Api, 50, 120, 0, true),
            (Origin::Api, 50, 90, 0, false),
            (Origin::Api, 50, 120, 200, true),
            (Origin::Api, 50, 120, 120, false),
        ] {
            let mut tx = store.begin().await.unwrap();
            let it = record("1", "s", Vendor::Ws, origin, end_ms);
            tx.record_put(&Record { created_ms, closed_ms, ..it }).await.unwrap();
            let got = tx.record_stopped(&key("s"), Vendor::Ws, 100).await.unwrap();
            assert_eq!(got, want, "{origin:?} {created_ms} {closed_ms}");
            assert!(!tx.record_stopped(&key("s"), Vendor::Huawei, 100).await.unwrap());
        }
    }

    #[tokio::test]
    async fn what_a_call_asks_for_is_not_ended_with_the_default() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        tx.record_put(&record("1", "s", Vendor::Ws, Origin::Default, 0)).await.unwrap();
        tx.record_put(&record("2", "s", Vendor::Tencent, Origin::Default, 0)).await.unwrap();
        tx.record_set_end("1", 99).await.unwrap();
        tx.records_close_default(&key("s"), 50).await.unwrap();
        let wished = tx.records_wished_of(&key("s")).await.unwrap();
        assert_eq!(wished.iter().map(|it| (it.id.as_str(), it.end_ms)).collect::<Vec<_>>(), [("1", 99)]);
        tx.record_set_end("2", 99).await.unwrap();
        assert_eq!(tx.record("2").await.unwrap().unwrap().end_ms, 0, "what is ended stays so");
    }

    #[tokio::test]
    async fn ends_come_due_in_order() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.record_next_due().await.unwrap(), None);
        for (id, end_ms) in [("1", 30), ("2", 10), ("3", 0), ("4", 20)] {
            tx.record_put(&record(id, id, Vendor::Ws, Origin::Api, end_ms)).await.unwrap();
        }
        assert_eq!(tx.record_next_due().await.unwrap(), Some(10));
        for (limit, want) in [(1, "2"), (9, "24")] {
            let due = tx.records_due(20, limit).await.unwrap();
            assert_eq!(due.iter().map(|it| it.id.as_str()).collect::<String>(), want);
        }
        tx.record_close("2", 20).await.unwrap();
        assert_eq!(tx.record_next_due().await.unwrap(), Some(20));
    }

    #[tokio::test]
    async fn a_status_is_noted_and_what_ran_is_known_after_a_kill() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        for (id, state) in ["0", "1", "2", "3", "4"].into_iter().zip([
            RecordState::Waiting,
            RecordState::Recording,
            RecordState::Paused,
            RecordState::Ended,
            RecordState::Failed,
        ]) {
            tx.record_put(&record(id, id, Vendor::Ws, Origin::Api, 0)).await.unwrap();
            let status = RecordStatus { state, reason: id.into(), state_ms: 7, begun_ms: 8, last_error: "e".into() };
            tx.record_note(id, &status).await.unwrap();
            assert_eq!(tx.record(id).await.unwrap().unwrap().status, status);
        }
        assert_eq!([1, 2], [tx.record_next_number("1").await.unwrap(), tx.record_next_number("1").await.unwrap()]);
        tx.commit().await.unwrap();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        let ran = tx.records_running().await.unwrap();
        assert_eq!(ran.iter().map(|it| it.id.as_str()).collect::<String>(), "12");
        assert_eq!(tx.record_next_number("1").await.unwrap(), 3);
    }

    #[tokio::test]
    async fn what_was_ended_and_does_not_say_so_is_found_without_a_walk_through_the_past() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        let states = [RecordState::Waiting, RecordState::Recording, RecordState::Ended, RecordState::Failed];
        for (id, state, closed_ms) in
            ["1", "2", "3", "4"].into_iter().zip(states).zip([30, 20, 10, 5]).map(|((id, state), at)| (id, state, at))
        {
            tx.record_put(&record(id, id, Vendor::Ws, Origin::Api, 0)).await.unwrap();
            tx.record_note(id, &RecordStatus { state, ..RecordStatus::default() }).await.unwrap();
            tx.record_close(id, closed_ms).await.unwrap();
        }
        tx.record_put(&record("5", "5", Vendor::Ws, Origin::Api, 0)).await.unwrap();
        for (limit, want) in [(1, "2"), (9, "21")] {
            let over = tx.records_over(limit).await.unwrap();
            assert_eq!(over.iter().map(|it| it.id.as_str()).collect::<String>(), want);
        }
        let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {UNSAID}"))).bind(1i64);
        let plan: String = tx.one(plan).await.unwrap().try_get("detail").unwrap();
        assert!(plan.contains("USING INDEX record_over"), "{plan}");
    }

    #[tokio::test]
    async fn a_recording_is_forgotten_after_its_files() {
        let dir = Dir::new();
        let store = dir.open().await;
        let file = |n: i64, state| File { record: "1".into(), begin_ms: n, state, ..file("1", &n.to_string()) };
        let mut tx = store.begin().await.unwrap();
        for id in ["1", "2", "3"] {
            tx.record_put(&record(id, id, Vendor::Ws, Origin::Api, id.parse().unwrap())).await.unwrap();
        }
        for (n, state) in [(3, FileState::Ready), (1, FileState::Ready), (2, FileState::Ready), (4, FileState::Open)] {
            tx.file_open(&file(n, state)).await.unwrap();
        }
        assert_eq!(tx.record_keys("1", 2).await.unwrap(), ["7/1/2.mp4", "7/1/3.mp4"], "the newest that are ready");
        assert_eq!(tx.files_of_record("1").await.unwrap().len(), 4);
        tx.record_close("1", 10).await.unwrap();
        tx.record_close("2", 10).await.unwrap();
        let page = Page { number: 0, size: 2 };
        for (before_ms, left) in [(10, "321"), (11, "31")] {
            assert_eq!(tx.anything_over(0, before_ms).await.unwrap(), left.len() < 3);
            tx.records_forget(before_ms).await.unwrap();
            let (total, page) = tx.records_page(7, Environment::Production, None, None, page).await.unwrap();
            assert_eq!(total, left.len() as u64);
            assert_eq!(page.iter().map(|it| it.id.as_str()).collect::<String>(), left[..2]);
        }
        for n in 1..=4 {
            tx.file_drop(&n.to_string()).await.unwrap();
        }
        tx.records_forget(11).await.unwrap();
        assert_eq!(tx.record("1").await.unwrap(), None);
    }
}
