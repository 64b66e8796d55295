//! Recordings: which stream should be recorded under which vendor's name, and how that goes.
//!
//! Invariant: a stream has one wished recording for a vendor; a closed one is never wished again.

use bywash_media::{Environment, StreamKey};
use rand::Rng;
use sqlx::Row;
use sqlx::any::AnyRow;

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
        let row = self.optional(bind_key(sqlx::query(sql), key).bind(vendor.name())).await?;
        row.as_ref().map(record_of).transpose()
    }

    /// The wished recordings of a stream, ordered by vendor.
    pub async fn records_wished_of(&mut self, key: &StreamKey) -> Result<Vec<Record>, Error> {
        let sql = "SELECT * FROM record \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND closed_ms = 0 ORDER BY vendor";
        self.all(bind_key(sqlx::query(sql), key)).await?.iter().map(record_of).collect()
    }

    /// One recording.
    pub async fn record(&mut self, id: &str) -> Result<Option<Record>, Error> {
        let row = self.optional(sqlx::query("SELECT * FROM record WHERE id = $1").bind(id.to_owned())).await?;
        row.as_ref().map(record_of).transpose()
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

    /// The wished recordings whose end has come.
    pub async fn records_due(&mut self, now_ms: i64) -> Result<Vec<Record>, Error> {
        let sql = "SELECT * FROM record WHERE closed_ms = 0 AND end_ms > 0 AND end_ms <= $1 ORDER BY end_ms";
        self.all(sqlx::query(sql).bind(now_ms)).await?.iter().map(record_of).collect()
    }

    /// When the next end of a wished recording is.
    pub async fn record_next_due(&mut self) -> Result<Option<i64>, Error> {
        let sql = "SELECT MIN(end_ms) AS next FROM record WHERE closed_ms = 0 AND end_ms > 0";
        Ok(self.one(sqlx::query(sql)).await?.try_get("next")?)
    }

    /// The recordings of all apps that record or pause. Right after a start: those that the stop cut.
    pub async fn records_running(&mut self) -> Result<Vec<Record>, Error> {
        let sql = "SELECT * FROM record WHERE state BETWEEN 1 AND 2 ORDER BY app, environment, stream, vendor";
        self.all(sqlx::query(sql)).await?.iter().map(record_of).collect()
    }

    /// Recordings that were ended and do not say so yet, of one stream or all.
    pub async fn records_over(&mut self, key: Option<&StreamKey>) -> Result<Vec<Record>, Error> {
        let sql = match key {
            Some(key) => bind_key(
                sqlx::query(
                    "SELECT * FROM record \
                     WHERE app = $1 AND environment = $2 AND stream = $3 AND closed_ms > 0 AND state < 3",
                ),
                key,
            ),
            None => sqlx::query("SELECT * FROM record WHERE closed_ms > 0 AND state < 3"),
        };
        self.all(sql).await?.iter().map(record_of).collect()
    }

    /// Ends the wished recordings of a stream that no call has asked for.
    pub async fn records_close_default(&mut self, key: &StreamKey, now_ms: i64) -> Result<(), Error> {
        let sql = "UPDATE record SET closed_ms = $5 \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND origin = $4 AND closed_ms = 0";
        self.run(bind_key(sqlx::query(sql), key).bind(Origin::Default as i64).bind(now_ms)).await.map(drop)
    }

    /// Notes how a recording goes; `false` if it is gone.
    pub async fn record_note(&mut self, id: &str, status: &RecordStatus) -> Result<bool, Error> {
        let sql = "UPDATE record SET state = $2, reason = $3, state_ms = $4, begun_ms = $5, last_error = $6 \
                   WHERE id = $1";
        let RecordStatus { state, reason, state_ms, begun_ms, last_error } = status.clone();
        let sql = sqlx::query(sql).bind(id.to_owned()).bind(state as i64).bind(reason).bind(state_ms);
        Ok(self.run(sql.bind(begun_ms).bind(last_error)).await? > 0)
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
        let total: i64 = self.one(scope(count)).await?.try_get("total")?;
        let rows = self.all(scope(list).bind(page.limit()).bind(page.offset())).await?;
        Ok((total.unsigned_abs(), rows.iter().map(record_of).collect::<Result<_, _>>()?))
    }

    /// The files of a recording, whatever their state, in the order of their making.
    pub async fn files_of_record(&mut self, id: &str) -> Result<Vec<File>, Error> {
        let sql = "SELECT * FROM file WHERE record = $1 ORDER BY begin_ms, path";
        self.all(sqlx::query(sql).bind(id.to_owned())).await?.iter().map(super::file::file_of).collect()
    }

    /// The keys of a recording's newest ready files, at most `limit`, in the order of their making.
    pub async fn record_keys(&mut self, id: &str, limit: i64) -> Result<Vec<String>, Error> {
        let sql = "SELECT path FROM file WHERE record = $1 AND state = 2 ORDER BY begin_ms DESC, path DESC LIMIT $2";
        let rows = self.all(sqlx::query(sql).bind(id.to_owned()).bind(limit)).await?;
        rows.iter().rev().map(|row| Ok(row.try_get("path")?)).collect()
    }

    /// Forgets recordings that were ended before `before_ms` and have no file any more.
    pub async fn records_forget(&mut self, before_ms: i64) -> Result<(), Error> {
        let sql = "DELETE FROM record WHERE closed_ms > 0 AND closed_ms < $1 AND state NOT BETWEEN 1 AND 2 \
                   AND NOT EXISTS (SELECT 1 FROM file WHERE file.record = record.id)";
        self.run(sqlx::query(sql).bind(before_ms)).await.map(drop)
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
