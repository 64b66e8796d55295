//! Callbacks that are owed: written with the change that owes them, kept until delivered or given up.
//!
//! Invariant: of the callbacks of one stream to one receiver only the oldest pending one is ever due, so that
//! a receiver hears of the beginning before the end.

use bywash_media::Environment;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Error, Page, Tx, app_of, environment_of, environment_to_row, unknown};
use crate::callback::{self, Owed};
use crate::config::{App, CallbackFormat};

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
    /// What is sent, the same at each attempt in one format: receivers know a repetition by its nonce.
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

    /// What is due, at most `limit` and at most `per_receiver` for an app's URL: the longest due for each first,
    /// then the second for each, so that a long queue to one leaves room for the others.
    pub async fn outbox_due(&mut self, now_ms: i64, per_receiver: i64, limit: i64) -> Result<Vec<Callback>, Error> {
        let sql = "SELECT outbox.* FROM outbox JOIN \
                   (SELECT id, ROW_NUMBER() OVER (PARTITION BY app, url ORDER BY due_ms, id) AS place \
                   FROM outbox AS it WHERE state = 0 AND due_ms <= $1 AND NOT EXISTS \
                   (SELECT 1 FROM outbox AS older WHERE older.state = 0 AND older.app = it.app \
                   AND older.environment = it.environment AND older.stream = it.stream AND older.url = it.url \
                   AND older.id < it.id)) AS due ON due.id = outbox.id \
                   WHERE place <= $2 ORDER BY place, due_ms, outbox.id LIMIT $3";
        let sql = sqlx::query(sql).bind(now_ms).bind(per_receiver).bind(limit);
        self.each(sql, callback_of).await
    }

    /// When the next callback becomes due after `now_ms`.
    pub async fn outbox_next_due(&mut self, now_ms: i64) -> Result<Option<i64>, Error> {
        let sql = "SELECT MIN(due_ms) AS next FROM outbox WHERE state = 0 AND due_ms > $1";
        Ok(self.one(sqlx::query(sql).bind(now_ms)).await?.try_get("next")?)
    }

    /// Notes what came of an attempt, unless the callback was armed again while it was under way: then it is sent once more.
    pub async fn outbox_note(&mut self, was: &Callback, is: &Callback) -> Result<(), Error> {
        let sql = "UPDATE outbox SET state = $4, attempts = $5, due_ms = $6, last_status = $7, last_error = $8 \
                   WHERE id = $1 AND state = 0 AND attempts = $2 AND due_ms = $3";
        let sql = sqlx::query(sql).bind(was.id).bind(was.attempts).bind(was.due_ms);
        let sql = sql.bind(is.state as i64).bind(is.attempts).bind(is.due_ms).bind(is.last_status);
        self.run(sql.bind(is.last_error.clone())).await.map(drop)
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
        let total = self.total(scope(sql)).await?;
        let sql = "SELECT * FROM outbox WHERE app = $1 AND environment = $2 AND state BETWEEN $3 AND $4 \
                   ORDER BY id DESC LIMIT $5 OFFSET $6";
        Ok((total, self.each(scope(sql).bind(page.limit()).bind(page.offset()), callback_of).await?))
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

    /// Has what is pending go to where its app takes it now, in the app's format. An event that the app takes no more goes where it
    /// was to go.
    pub async fn outbox_readdress(&mut self, app: &App, environment: Environment) -> Result<(), Error> {
        let format = app.callback.format;
        for event in callback::EVENTS {
            let Some(url) = callback::receiver(app, event) else { continue };
            let of_event =
                |sql| sqlx::query(sql).bind(i64::from(app.id)).bind(environment_to_row(environment)).bind(event);
            let sql = "UPDATE outbox SET url = $4 \
                       WHERE app = $1 AND environment = $2 AND state = 0 AND event = $3 AND url <> $4";
            self.owes |= self.run(of_event(sql).bind(url.to_owned())).await? > 0;
            let mut last = 0;
            loop {
                let sql = "SELECT * FROM outbox WHERE app = $1 AND environment = $2 AND state = 0 AND event = $3 \
                           AND format <> $4 AND id > $5 ORDER BY id LIMIT 100";
                let rows = self.each(of_event(sql).bind(format as i64).bind(last), callback_of).await?;
                let Some(row) = rows.last() else { break };
                last = row.id;
                for row in rows {
                    let body = callback::reformat(&row.body, row.format, format).unwrap_or(row.body);
                    let sql = "UPDATE outbox SET format = $2, body = $3 WHERE id = $1";
                    self.run(sqlx::query(sql).bind(row.id).bind(format as i64).bind(body)).await?;
                }
                self.owes = true;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::Store;
    use crate::store::tests::Dir;

    fn owed(app: u32, stream: &str, url: &str) -> Owed {
        Owed {
            app,
            environment: Environment::Production,
            event: "stream_create",
            stream: stream.into(),
            url: url.into(),
            format: CallbackFormat::Form,
            body: "a=b".into(),
        }
    }

    async fn add(store: &Store, owed: &Owed, now_ms: i64) -> i64 {
        let mut tx = store.begin().await.unwrap();
        let id = tx.outbox_add(owed, now_ms).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    async fn due(store: &Store, now_ms: i64, per_receiver: i64) -> Vec<i64> {
        let mut tx = store.read().await.unwrap();
        tx.outbox_due(now_ms, per_receiver, 100).await.unwrap().iter().map(|it| it.id).collect()
    }

    async fn note(store: &Store, id: i64, state: Delivery, due_ms: i64) {
        let mut tx = store.begin().await.unwrap();
        let was =
            tx.first(sqlx::query("SELECT * FROM outbox WHERE id = $1").bind(id), callback_of).await.unwrap().unwrap();
        tx.outbox_note(&was, &Callback { state, attempts: 1, due_ms, ..was.clone() }).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_stream_waits_for_its_beginning_and_for_nothing_else() {
        let dir = Dir::new();
        let store = dir.open().await;
        let create = add(&store, &owed(7, "a", "u"), 100).await;
        let close = add(&store, &owed(7, "a", "u"), 101).await;
        let other = add(&store, &owed(7, "b", "u"), 102).await;
        assert!(due(&store, 99, 9).await.is_empty());
        assert_eq!(due(&store, 200, 9).await, [create, other]);
        note(&store, create, Delivery::Pending, 2200).await;
        assert_eq!(due(&store, 300, 9).await, [other]);
        assert_eq!(store.read().await.unwrap().outbox_next_due(300).await.unwrap(), Some(2200));
        note(&store, create, Delivery::Dead, 2200).await;
        assert_eq!(due(&store, 2300, 9).await, [close, other]);
        assert_eq!(store.read().await.unwrap().outbox_next_due(2300).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_long_queue_to_one_receiver_leaves_room_for_the_others() {
        let dir = Dir::new();
        let store = dir.open().await;
        for n in 0..20 {
            add(&store, &owed(7, &n.to_string(), "u"), n).await;
        }
        let other = add(&store, &owed(8, "a", "u"), 50).await;
        let more = add(&store, &owed(7, "a", "v"), 51).await;
        assert_eq!(due(&store, 100, 3).await, [1, other, more, 2, 3]);
    }

    #[tokio::test]
    async fn only_the_apps_own_callbacks_are_armed_again() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut ids = Vec::new();
        for (app, stream) in [(7, "a"), (7, "b"), (7, "c"), (8, "a")] {
            ids.push(add(&store, &owed(app, stream, "u"), 1).await);
        }
        for (id, state) in ids.iter().zip([Delivery::Dead, Delivery::Delivered, Delivery::Dead, Delivery::Dead]) {
            note(&store, *id, state, 10).await;
        }
        // Those of the commits above.
        store.outbox_ready().notified().await;
        let production = Environment::Production;
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.outbox_retry(7, production, Rearm::Ids(&[ids[3], 1000]), 20).await.unwrap(), 0);
        assert_eq!(tx.outbox_retry(7, Environment::Test, Rearm::Dead, 20).await.unwrap(), 0);
        assert_eq!(tx.outbox_retry(7, production, Rearm::Ids(&ids[1..]), 20).await.unwrap(), 2);
        assert_eq!(tx.outbox_retry(7, production, Rearm::Dead, 30).await.unwrap(), 1);
        assert!(store.outbox_ready().notified().now_or_never().is_none(), "not before the commit");
        tx.commit().await.unwrap();
        store.outbox_ready().notified().await;

        let mut tx = store.read().await.unwrap();
        let all = Page { number: 0, size: 10 };
        let (total, pending) = tx.outbox_page(7, production, Some(Delivery::Pending), all).await.unwrap();
        assert_eq!(total, 3);
        let seen: Vec<_> = pending.iter().map(|it| (it.id, it.attempts, it.due_ms)).collect();
        assert_eq!(seen, [(ids[2], 0, 20), (ids[1], 0, 20), (ids[0], 0, 30)]);
        assert_eq!(tx.outbox_page(8, production, Some(Delivery::Dead), all).await.unwrap().0, 1);
        let (total, second) = tx.outbox_page(7, production, None, Page { number: 1, size: 2 }).await.unwrap();
        assert_eq!((total, second.len(), second[0].id), (3, 1, ids[0]));
    }

    #[tokio::test]
    async fn what_is_forgotten_was_finished_long_ago_and_its_id_is_not_given_again() {
        let dir = Dir::new();
        let store = dir.open().await;
        for (id, state) in [(1, Delivery::Pending), (2, Delivery::Delivered), (3, Delivery::Dead)] {
            assert_eq!(add(&store, &owed(7, &id.to_string(), "u"), 1).await, id);
            note(&store, id, state, 10).await;
        }
        let mut tx = store.begin().await.unwrap();
        let page = Page { number: 0, size: 10 };
        for (delivered_before_ms, dead_before_ms, left) in [(10, 10, 3), (11, 10, 2), (11, 11, 1)] {
            tx.outbox_forget(delivered_before_ms, dead_before_ms).await.unwrap();
            assert_eq!(tx.outbox_page(7, Environment::Production, None, page).await.unwrap().0, left);
        }
        assert_eq!(tx.outbox_add(&owed(7, "a", "u"), 1).await.unwrap(), 4);
    }
}
