//! Streams that may not be published, until they are resumed.

use bywash_media::StreamKey;

use super::{Error, Tx, bind_key};

impl Tx {
    /// Forbids a stream, live or not; the first time stays.
    pub async fn forbid_put(&mut self, key: &StreamKey, now_ms: i64) -> Result<(), Error> {
        let sql = "INSERT INTO forbid (app, environment, stream, since_ms) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (app, environment, stream) DO NOTHING";
        self.run(bind_key(sqlx::query(sql), key).bind(now_ms)).await.map(drop)
    }

    /// Resumes a stream; says whether it was forbidden.
    pub async fn forbid_delete(&mut self, key: &StreamKey) -> Result<bool, Error> {
        let sql = "DELETE FROM forbid WHERE app = $1 AND environment = $2 AND stream = $3";
        Ok(self.run(bind_key(sqlx::query(sql), key)).await? > 0)
    }

    /// Whether a stream may not be published.
    pub async fn forbidden(&mut self, key: &StreamKey) -> Result<bool, Error> {
        let sql = "SELECT since_ms FROM forbid WHERE app = $1 AND environment = $2 AND stream = $3";
        Ok(self.optional(bind_key(sqlx::query(sql), key)).await?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use crate::store::tests::{Dir, key};

    #[tokio::test]
    async fn a_stream_is_forbidden_until_it_is_resumed_however_often_it_was_forbidden() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        assert!(!tx.forbid_delete(&key("a")).await.unwrap());
        tx.forbid_put(&key("a"), 1).await.unwrap();
        tx.forbid_put(&key("a"), 2).await.unwrap();
        assert!(tx.forbidden(&key("a")).await.unwrap());
        assert!(!tx.forbidden(&key("b")).await.unwrap());
        assert!(!tx.forbidden(&key("zegotest-7-a")).await.unwrap());
        assert!(tx.forbid_delete(&key("a")).await.unwrap());
        assert!(!tx.forbidden(&key("a")).await.unwrap());
    }
}
