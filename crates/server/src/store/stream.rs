//! Live streams and those closed lately: one row for each publish.

use bywash_media::StreamKey;
use rand::Rng;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Error, Tx, bind_key, key_of};

/// One publish of a stream, from accepted to gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// The stream.
    pub key: StreamKey,
    /// ZEGO's `stream_sid`, see [`sid`].
    pub sid: String,
    /// ZEGO's `stream_seq`: one more for each publish of the id.
    pub seq: i64,
    /// Who publishes, as the publisher says; may be empty.
    pub user_id: String,
    /// `RTMP`, `WHIP`.
    pub protocol: String,
    /// Where the publisher connects from.
    pub publisher: String,
    /// ZEGO's `cid` of `stream_attr`: 0 H.264, 2 VP8, 3 H.265.
    pub codec: i64,
    /// Whether a `stream_create` has told of it.
    pub heard: bool,
    /// When it was accepted, Unix milliseconds.
    pub created_ms: i64,
    /// When it was gone, Unix milliseconds; 0 while live.
    pub closed_ms: i64,
}

/// A new `stream_sid` in ZEGO's form: `s-` and 27 digits, those that begin with the time being in order.
pub fn sid(now_ms: i64) -> String {
    let random = rand::rng().random_range(0..100_000_000_000_000u64);
    format!("s-{:013}{random:014}", now_ms.clamp(0, 9_999_999_999_999))
}

impl Tx {
    /// Notes a publish. One stored again under its `seq`, a publish that goes on, takes the place of the first.
    pub async fn stream_open(&mut self, session: &Session) -> Result<(), Error> {
        let sql = "INSERT INTO stream (app, environment, stream, seq, sid, user_id, protocol, publisher, codec, \
                   heard, created_ms, closed_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
                   ON CONFLICT (app, environment, stream, seq) DO UPDATE SET sid = excluded.sid, \
                   user_id = excluded.user_id, protocol = excluded.protocol, publisher = excluded.publisher, \
                   codec = excluded.codec, heard = excluded.heard, created_ms = excluded.created_ms, closed_ms = excluded.closed_ms";
        let Session { key, sid, seq, user_id, protocol, publisher, codec, heard, created_ms, closed_ms } =
            session.clone();
        let sql = bind_key(sqlx::query(sql), &key).bind(seq).bind(sid).bind(user_id).bind(protocol).bind(publisher);
        self.run(sql.bind(codec).bind(i64::from(heard)).bind(created_ms).bind(closed_ms)).await.map(drop)
    }

    /// Closes the live publish of a stream.
    pub async fn stream_close(&mut self, key: &StreamKey, closed_ms: i64) -> Result<(), Error> {
        let sql = "UPDATE stream SET closed_ms = $4 \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND closed_ms = 0";
        self.run(bind_key(sqlx::query(sql), key).bind(closed_ms)).await.map(drop)
    }

    /// The newest publish of a stream.
    pub async fn stream(&mut self, key: &StreamKey) -> Result<Option<Session>, Error> {
        let sql = "SELECT * FROM stream WHERE app = $1 AND environment = $2 AND stream = $3 ORDER BY seq DESC LIMIT 1";
        self.first(bind_key(sqlx::query(sql), key), session_of).await
    }

    /// All live publishes. Right after a start: those that the stop cut.
    pub async fn streams_open(&mut self) -> Result<Vec<Session>, Error> {
        let sql = "SELECT * FROM stream WHERE closed_ms = 0 ORDER BY app, environment, stream, seq";
        self.each(sqlx::query(sql), session_of).await
    }

    /// The `seq` of the next publish of a stream, from 1.
    pub async fn stream_next_seq(&mut self, key: &StreamKey) -> Result<i64, Error> {
        let sql = "SELECT COALESCE(MAX(seq), 0) + 1 AS next FROM stream \
                   WHERE app = $1 AND environment = $2 AND stream = $3";
        Ok(self.one(bind_key(sqlx::query(sql), key)).await?.try_get("next")?)
    }

    /// Forgets publishes closed before `before_ms`.
    pub async fn streams_forget(&mut self, before_ms: i64) -> Result<(), Error> {
        let sql = "DELETE FROM stream WHERE closed_ms > 0 AND closed_ms < $1";
        self.run(sqlx::query(sql).bind(before_ms)).await.map(drop)
    }
}

fn session_of(row: &AnyRow) -> Result<Session, Error> {
    Ok(Session {
        key: key_of(row)?,
        sid: row.try_get("sid")?,
        seq: row.try_get("seq")?,
        user_id: row.try_get("user_id")?,
        protocol: row.try_get("protocol")?,
        publisher: row.try_get("publisher")?,
        codec: row.try_get("codec")?,
        heard: row.try_get::<i64, _>("heard")? != 0,
        created_ms: row.try_get("created_ms")?,
        closed_ms: row.try_get("closed_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Dir, key};

    fn session(id: &str, seq: i64) -> Session {
        Session {
            key: key(id),
            sid: sid(1000 * seq),
            seq,
            user_id: "u".into(),
            protocol: "RTMP".into(),
            publisher: "127.0.0.1:5".into(),
            codec: 3,
            heard: seq > 1,
            created_ms: 1000 * seq,
            closed_ms: 0,
        }
    }

    #[tokio::test]
    async fn a_publish_is_known_until_it_is_forgotten() {
        let dir = Dir::new();
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.stream_next_seq(&key("a")).await.unwrap(), 1);
        let (first, second) = (session("a", 1), session("a", 2));
        tx.stream_open(&first).await.unwrap();
        assert_eq!(tx.stream(&key("a")).await.unwrap(), Some(first));
        tx.stream_close(&key("a"), 1500).await.unwrap();
        tx.stream_close(&key("a"), 1600).await.unwrap();
        assert_eq!(tx.stream(&key("a")).await.unwrap().unwrap().closed_ms, 1500);
        assert_eq!(tx.stream_next_seq(&key("a")).await.unwrap(), 2);
        tx.stream_open(&second).await.unwrap();
        tx.stream_open(&session("b", 1)).await.unwrap();
        tx.stream_close(&key("b"), 3000).await.unwrap();
        tx.commit().await.unwrap();

        // After a kill the live one is the one that was cut.
        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        tx.streams_forget(3000).await.unwrap();
        assert_eq!(tx.stream(&key("a")).await.unwrap().as_ref(), Some(&second));
        assert_eq!(tx.streams_open().await.unwrap(), [second]);
        assert!(tx.stream(&key("b")).await.unwrap().is_some());
        tx.streams_forget(3001).await.unwrap();
        assert_eq!(tx.stream(&key("b")).await.unwrap(), None);
    }

    #[test]
    fn a_sid_has_the_form_of_zegos() {
        for now_ms in [0, 1_800_000_000_000, i64::MAX] {
            let sid = sid(now_ms);
            let digits = sid.strip_prefix("s-").unwrap();
            assert!(digits.len() == 27 && digits.bytes().all(|c| c.is_ascii_digit()), "{sid}");
        }
    }
}
