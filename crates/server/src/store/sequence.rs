//! The last accepted `Sequence` of each stream and family of actions, with what was answered to it.

use bywash_media::StreamKey;
use sqlx::Row;

use super::{Error, Tx, bind_key};

/// A call that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Its `Sequence`.
    pub sequence: i64,
    /// A hash of action and parameters: the same call again has the same.
    pub fingerprint: String,
    /// What was answered, to answer it again.
    pub reply: String,
    /// When, Unix milliseconds.
    pub at_ms: i64,
}

impl Tx {
    /// The last accepted call of `family` on a stream.
    pub async fn sequence(&mut self, key: &StreamKey, family: &str) -> Result<Option<Accepted>, Error> {
        let sql = "SELECT number, fingerprint, reply, at_ms FROM sequence \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND family = $4";
        let Some(row) = self.optional(bind_key(sqlx::query(sql), key).bind(family.to_owned())).await? else {
            return Ok(None);
        };
        Ok(Some(Accepted {
            sequence: row.try_get("number")?,
            fingerprint: row.try_get("fingerprint")?,
            reply: row.try_get("reply")?,
            at_ms: row.try_get("at_ms")?,
        }))
    }

    /// Notes an accepted call in place of the one before it.
    pub async fn sequence_put(&mut self, key: &StreamKey, family: &str, accepted: &Accepted) -> Result<(), Error> {
        let sql = "INSERT INTO sequence (app, environment, stream, family, number, fingerprint, reply, at_ms) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                   ON CONFLICT (app, environment, stream, family) DO UPDATE SET number = excluded.number, \
                   fingerprint = excluded.fingerprint, reply = excluded.reply, at_ms = excluded.at_ms";
        let sql = bind_key(sqlx::query(sql), key).bind(family.to_owned()).bind(accepted.sequence);
        let sql = sql.bind(accepted.fingerprint.clone()).bind(accepted.reply.clone()).bind(accepted.at_ms);
        self.run(sql).await.map(drop)
    }

    /// Forgets calls accepted before `before_ms`.
    pub async fn sequences_forget(&mut self, before_ms: i64) -> Result<(), Error> {
        self.run(sqlx::query("DELETE FROM sequence WHERE at_ms < $1").bind(before_ms)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Dir, key};

    #[tokio::test]
    async fn each_stream_and_family_has_its_last_accepted_call() {
        let dir = Dir::new();
        let store = dir.open().await;
        let accepted =
            |sequence, at_ms| Accepted { sequence, fingerprint: format!("f{sequence}"), reply: "{}".into(), at_ms };
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.sequence(&key("a"), "transfer").await.unwrap(), None);
        tx.sequence_put(&key("a"), "transfer", &accepted(5, 1000)).await.unwrap();
        tx.sequence_put(&key("a"), "transfer", &accepted(6, 2000)).await.unwrap();
        tx.sequence_put(&key("a"), "forbid", &accepted(-1, 3000)).await.unwrap();
        assert_eq!(tx.sequence(&key("a"), "transfer").await.unwrap(), Some(accepted(6, 2000)));
        assert_eq!(tx.sequence(&key("a"), "forbid").await.unwrap(), Some(accepted(-1, 3000)));
        assert_eq!(tx.sequence(&key("b"), "transfer").await.unwrap(), None);
        tx.sequences_forget(3000).await.unwrap();
        assert_eq!(tx.sequence(&key("a"), "transfer").await.unwrap(), None);
        assert!(tx.sequence(&key("a"), "forbid").await.unwrap().is_some());
    }
}
