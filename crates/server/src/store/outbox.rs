//! Callbacks that are owed: written with the change that owes them, kept until delivered or given up.
//!
//! Invariant: of the callbacks of one stream to one receiver only the oldest pending one is ever due, so that
//! a receiver hears of the beginning before the end.

use bywash_media::Environment;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Error, Page, Tx, app_of, environment_of, environment_to_row, unknown};
use crate::callback::Owed;
use crate::config::CallbackFormat;

/// A callback and how its delivery stands.
#[derive(Clone, PartialEq)]
pub struct Callback {
    /// Never given twice.
    pub id: i64,
    /// Whose it is.
    pub app: u32,
    /// Of which environment.
    pub environment: Environment,
    /// ZEGO's `event`.
    pub event: String,
    /// The stream it tells of.
    pub stream: String,
    /// Where it goes.
    pub url: String,
    /// How `body` is written.
    pub format: CallbackFormat,
    /// What is sent, the same at each attempt: receivers know a repetition by its nonce.
    pub body: String,
    /// Where it stands.
    pub state: Delivery,
    /// Attempts made.
    pub attempts: i64,
    /// When the next attempt is if pending, else when the last one was; Unix milliseconds.
    pub due_ms: i64,
    /// HTTP status of the last answer; 0 if none came.
    pub last_status: i64,
    /// What went wrong last; empty if nothing.
    pub last_error: String,
    /// When it was owed, Unix milliseconds.
    pub created_ms: i64,
}

/// Where a callback stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To be sent.
    Pending = 0,
    /// The receiver took it.
    Delivered = 1,
    /// Given up; can be re-armed.
    Dead = 2,
}

/// Which callbacks to send anew.
#[derive(Clone, Copy, Debug)]
pub enum Rearm<'a> {
    /// These, whatever came of them.
    Ids(&'a [i64]),
    /// All that were given up.
    Dead,
}

impl Tx {
    /// Owes a callback, if there is one: `None` is an event without a URL.
    pub async fn owe(&mut self, owed: Option<Owed>, now_ms: i64) -> Result<(), Error> {
        match owed {
            Some(owed) => self.outbox_add(&owed, now_ms).await.map(drop),
            None => Ok(()),
        }
    }

    /// Owes a callback, due now; its id.
    pub async fn outbox_add(&mut self, owed: &Owed, now_ms: i64) -> Result<i64, Error> {
        let sql = "UPDATE counter SET value = value + 1 WHERE name = 'outbox' RETURNING value";
        let id: i64 = self.one(sqlx::query(sql)).await?.try_get("value")?;
        let sql = "INSERT INTO outbox (id, app, environment, event, stream, url, format, body, \
                   state, attempts, due_ms, last_status, last_error, created_ms) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, $9, 0, '', $9)";
        let sql = sqlx::query(sql).bind(id).bind(i64::from(owed.app)).bind(environment_to_row(owed.environment));
        let sql = sql.bind(owed.event.to_owned()).bind(owed.stream.clone()).bind(owed.url.clone());
        self.run(sql.bind(owed.format as i64).bind(owed.body.clone()).bind(now_ms)).await?;
        self.owes = true;
        Ok(id)
    }

    /// What is due, at most `limit`, and at most `per_receiver` for an app's URL so that a long queue to one
    /// leaves room for the others; the longest due first.
    pub async fn outbox_due(&mut self, now_ms: i64, per_receiver: i64, limit: i64) -> Result<Vec<Callback>, Error> {
        let sql = "SELECT * FROM outbox WHERE id IN (SELECT id FROM \
                   (SELECT id, ROW_NUMBER() OVER (PARTITION BY app, url ORDER BY due_ms, id) AS place \
                   FROM outbox AS it WHERE state = 0 AND due_ms <= $1 AND NOT EXISTS \
                   (SELECT 1 FROM outbox AS older WHERE older.state = 0 AND older.app = it.app \
                   AND older.environment = it.environment AND older.stream = it.stream AND older.url = it.url \
                   AND older.id < it.id)) AS due WHERE place <= $2) ORDER BY due_ms, id LIMIT $3";
        let sql = sqlx::query(sql).bind(now_ms).bind(per_receiver).bind(limit);
        self.all(sql).await?.iter().map(callback_of).collect()
    }

    /// When the next callback becomes due after `now_ms`.
    pub async fn outbox_next_due(&mut self, now_ms: i64) -> Result<Option<i64>, Error> {
        let sql = "SELECT MIN(due_ms) AS next FROM outbox WHERE state = 0 AND due_ms > $1";
        Ok(self.one(sqlx::query(sql).bind(now_ms)).await?.try_get("next")?)
    }

    /// Notes what came of an attempt.
    pub async fn outbox_note(
        &mut self,
        id: i64,
        state: Delivery,
        attempts: i64,
        due_ms: i64,
        last_status: i64,
        last_error: &str,
    ) -> Result<(), Error> {
        let sql = "UPDATE outbox SET state = $2, attempts = $3, due_ms = $4, last_status = $5, last_error = $6 \
                   WHERE id = $1";
        let sql = sqlx::query(sql).bind(id).bind(state as i64).bind(attempts).bind(due_ms);
        self.run(sql.bind(last_status).bind(last_error.to_owned())).await.map(drop)
    }

    /// How many callbacks an app has, and one page of them, the newest first.
    pub async fn outbox_page(
        &mut self,
        app: u32,
        environment: Environment,
        state: Option<Delivery>,
        page: Page,
    ) -> Result<(u64, Vec<Callback>), Error> {
        let (low, high) = match state {
            Some(state) => (state as i64, state as i64),
            None => (Delivery::Pending as i64, Delivery::Dead as i64),
        };
        let sql = "SELECT COUNT(*) AS total FROM outbox \
                   WHERE app = $1 AND environment = $2 AND state BETWEEN $3 AND $4";
        let scope = |sql| {
            let sql = sqlx::query(sql).bind(i64::from(app)).bind(environment_to_row(environment));
            sql.bind(low).bind(high)
        };
        let total: i64 = self.one(scope(sql)).await?.try_get("total")?;
        let sql = "SELECT * FROM outbox WHERE app = $1 AND environment = $2 AND state BETWEEN $3 AND $4 \
                   ORDER BY id DESC LIMIT $5 OFFSET $6";
        let rows = self.all(scope(sql).bind(page.limit()).bind(page.offset())).await?;
        Ok((total.unsigned_abs(), rows.iter().map(callback_of).collect::<Result<_, _>>()?))
    }

    /// Makes callbacks of an app due now with all their attempts before them; says how many.
    pub async fn outbox_retry(
        &mut self,
        app: u32,
        environment: Environment,
        which: Rearm<'_>,
        now_ms: i64,
    ) -> Result<u64, Error> {
        let change = |sql| {
            let sql = sqlx::query(sql).bind(i64::from(app)).bind(environment_to_row(environment));
            sql.bind(now_ms)
        };
        let mut count = 0;
        match which {
            Rearm::Dead => {
                let sql = "UPDATE outbox SET state = 0, attempts = 0, due_ms = $3 \
                           WHERE app = $1 AND environment = $2 AND state = 2";
                count = self.run(change(sql)).await?;
            }
            Rearm::Ids(ids) => {
                let sql = "UPDATE outbox SET state = 0, attempts = 0, due_ms = $3 \
                           WHERE app = $1 AND environment = $2 AND id = $4";
                for id in ids {
                    count += self.run(change(sql).bind(*id)).await?;
                }
            }
        }
        self.owes |= count > 0;
        Ok(count)
    }

    /// Forgets callbacks delivered, and given up, before these times.
    pub async fn outbox_forget(&mut self, delivered_before_ms: i64, dead_before_ms: i64) -> Result<(), Error> {
        let sql = "DELETE FROM outbox WHERE (state = 1 AND due_ms < $1) OR (state = 2 AND due_ms < $2)";
        self.run(sqlx::query(sql).bind(delivered_before_ms).bind(dead_before_ms)).await.map(drop)
    }
}

fn callback_of(row: &AnyRow) -> Result<Callback, Error> {
    Ok(Callback {
        id: row.try_get("id")?,
        app: app_of(row)?,
        environment: environment_of(row)?,
        event: row.try_get("event")?,
        stream: row.try_get("stream")?,
        url: row.try_get("url")?,
        format: match row.try_get("format")? {
            0i64 => CallbackFormat::Json,
            1 => CallbackFormat::Form,
            other => return Err(unknown("format", other)),
        },
        body: row.try_get("body")?,
        state: match row.try_get("state")? {
            0i64 => Delivery::Pending,
            1 => Delivery::Delivered,
            2 => Delivery::Dead,
            other => return Err(unknown("state", other)),
        },
        attempts: row.try_get("attempts")?,
        due_ms: row.try_get("due_ms")?,
        last_status: row.try_get("last_status")?,
        last_error: row.try_get("last_error")?,
        created_ms: row.try_get("created_ms")?,
    })
}
