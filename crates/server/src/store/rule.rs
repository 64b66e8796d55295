//! Relay rules: where each stream should go, and how that goes.
//!
//! Invariant: a stream has one rule for an address, however often it is put. A relay that was noted as running is found by
//! [`Tx::relays_running`] until it is noted that it has ended, whatever becomes of its rule.

use bywash_media::{Environment, StreamKey};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

use super::{Error, Page, Tx, bind_key, environment_to_row, key_of, origin_of, unknown};
use crate::secret::Secret;

/// The wish that a stream be relayed to a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The stream.
    pub key: StreamKey,
    /// `scheme://host:port/path`, normalised, without query: with `key` the rule's identity.
    pub address: String,
    /// The target in full, query included.
    pub url: Secret,
    /// Who wished it.
    pub origin: Origin,
    /// When it was first put, Unix milliseconds.
    pub created_ms: i64,
    /// How often it was asked to connect now instead of later.
    pub retry_asked: i64,
    /// How it goes.
    pub status: Status,
}

/// Who wished a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A call.
    Api,
    /// The app's `relay_everything`.
    Default,
}

/// A relay that was noted as running, and no end of it since.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    /// The stream.
    pub key: StreamKey,
    /// As in its [`Rule`], which may be gone.
    pub address: String,
    /// Likewise.
    pub url: Secret,
}

/// How a relay goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Where it stands.
    pub state: State,
    /// Why it came there.
    pub reason: Reason,
    /// Since when, Unix milliseconds.
    pub state_ms: i64,
    /// Connects that failed, over all sessions since the relay was started.
    pub retries: i64,
    /// When the next connect is, Unix milliseconds; 0 if none waits.
    pub next_retry_ms: i64,
    /// What went wrong last, in words that hold no secret; empty if nothing.
    pub last_error: String,
}

/// `State` of `DescribeCDNTransferRules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No relay.
    #[default]
    None = 0,
    /// Connecting, or waiting to.
    Requesting = 1,
    /// The target acknowledges media.
    Relaying = 2,
}

/// `UpdateReason` of `DescribeCDNTransferRules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// None.
    #[default]
    None = 0,
    /// Our own failure.
    ServerError = 1,
    /// The RTMP handshake failed.
    HandshakeFailed = 2,
    /// The access point is wrong.
    AccessPointError = 3,
    /// The target did not create the stream.
    CreateStreamFailed = 4,
    /// The target refuses the name.
    BadName = 5,
    /// The CDN's server went away.
    CdnServerDisconnected = 6,
    /// Ended by us or by the target on purpose.
    ActivelyDisconnected = 7,
}

impl Status {
    /// A state that has just been entered, without its time.
    pub fn new(state: State, reason: Reason) -> Status {
        Status { state, reason, state_ms: 0, retries: 0, next_retry_ms: 0, last_error: String::new() }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::None => "none",
            Reason::ServerError => "server error",
            Reason::HandshakeFailed => "handshake failed",
            Reason::AccessPointError => "access point error",
            Reason::CreateStreamFailed => "create stream failed",
            Reason::BadName => "bad name",
            Reason::CdnServerDisconnected => "CDN server disconnected",
            Reason::ActivelyDisconnected => "actively disconnected",
        })
    }
}

impl Tx {
    /// Puts a rule. Put again it keeps its age and status and takes the new URL; what a call has put,
    /// [`Origin::Default`] does not change.
    pub async fn rule_put(
        &mut self,
        key: &StreamKey,
        address: &str,
        url: &Secret,
        origin: Origin,
        now_ms: i64,
    ) -> Result<(), Error> {
        let sql = "INSERT INTO rule (app, environment, stream, address, url, origin, created_ms, \
                   retry_asked, state, reason, state_ms, retries, next_retry_ms, last_error) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, 0, $7, 0, 0, '') \
                   ON CONFLICT (app, environment, stream, address) DO UPDATE SET url = excluded.url, \
                   origin = excluded.origin WHERE excluded.origin <= rule.origin";
        let sql = bind_key(sqlx::query(sql), key).bind(address.to_owned()).bind(url.expose().to_owned());
        self.run(sql.bind(origin as i64).bind(now_ms)).await.map(drop)
    }

    /// One rule.
    pub async fn rule(&mut self, key: &StreamKey, address: &str) -> Result<Option<Rule>, Error> {
        let sql = "SELECT * FROM rule WHERE app = $1 AND environment = $2 AND stream = $3 AND address = $4";
        self.first(bind_key(sqlx::query(sql), key).bind(address.to_owned()), rule_of).await
    }

    /// How many rules a stream has.
    pub async fn rule_count(&mut self, key: &StreamKey) -> Result<u64, Error> {
        let sql = "SELECT COUNT(*) AS total FROM rule WHERE app = $1 AND environment = $2 AND stream = $3";
        self.total(bind_key(sqlx::query(sql), key)).await
    }

    /// Takes a rule away; says whether there was one.
    pub async fn rule_delete(&mut self, key: &StreamKey, address: &str) -> Result<bool, Error> {
        let which = "app = $1 AND environment = $2 AND stream = $3 AND address = $4";
        let gone = self.rules_take(which, |sql| bind_key(sql, key).bind(address.to_owned())).await?;
        Ok(!gone.is_empty())
    }

    /// Takes away all rules of a stream, or of the app, that do not relay; the streams that lost one.
    pub async fn rules_clear_waiting(
        &mut self,
        app: u32,
        environment: Environment,
        stream: Option<&str>,
    ) -> Result<Vec<StreamKey>, Error> {
        let which = match stream {
            Some(_) => "app = $1 AND environment = $2 AND state <> 2 AND stream = $3",
            None => "app = $1 AND environment = $2 AND state <> 2",
        };
        let mut keys = self.rules_take(which, |sql| bind_scope(sql, app, environment, stream)).await?;
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    /// Takes away the rules of a stream that no call has put.
    pub async fn rules_delete_default(&mut self, key: &StreamKey) -> Result<(), Error> {
        let which = "app = $1 AND environment = $2 AND stream = $3 AND origin = $4";
        self.rules_take(which, |sql| bind_key(sql, key).bind(Origin::Default as i64)).await.map(drop)
    }

    /// Takes rules away, and keeps in mind which of them run; the stream of each.
    async fn rules_take(
        &mut self,
        which: &str,
        bind: impl Fn(super::Sql<'static>) -> super::Sql<'static>,
    ) -> Result<Vec<StreamKey>, Error> {
        let keep = format!(
            "INSERT INTO leaving (app, environment, stream, address, url) \
             SELECT app, environment, stream, address, url FROM rule WHERE {which} AND state <> 0 ON CONFLICT DO NOTHING"
        );
        self.run(bind(sqlx::query(AssertSqlSafe(keep)))).await?;
        let take = format!("DELETE FROM rule WHERE {which} RETURNING app, environment, stream");
        self.each(bind(sqlx::query(AssertSqlSafe(take))), key_of).await
    }

    /// The rules of a stream, ordered by address.
    pub async fn rules_of(&mut self, key: &StreamKey) -> Result<Vec<Rule>, Error> {
        let sql = "SELECT * FROM rule WHERE app = $1 AND environment = $2 AND stream = $3 ORDER BY address";
        self.each(bind_key(sqlx::query(sql), key), rule_of).await
    }

    /// How many rules a stream, or the app, has, and one page of them, ordered by stream and address.
    pub async fn rules_page(
        &mut self,
        app: u32,
        environment: Environment,
        stream: Option<&str>,
        page: Page,
    ) -> Result<(u64, Vec<Rule>), Error> {
        let (count, list) = match stream {
            Some(_) => (
                "SELECT COUNT(*) AS total FROM rule WHERE app = $1 AND environment = $2 AND stream = $3",
                "SELECT * FROM rule WHERE app = $1 AND environment = $2 AND stream = $3 \
                 ORDER BY address LIMIT $4 OFFSET $5",
            ),
            None => (
                "SELECT COUNT(*) AS total FROM rule WHERE app = $1 AND environment = $2",
                "SELECT * FROM rule WHERE app = $1 AND environment = $2 \
                 ORDER BY stream, address LIMIT $3 OFFSET $4",
            ),
        };
        let total = self.total(bind_scope(sqlx::query(count), app, environment, stream)).await?;
        let list = bind_scope(sqlx::query(list), app, environment, stream).bind(page.limit()).bind(page.offset());
        Ok((total, self.each(list, rule_of).await?))
    }

    /// Notes how a relay goes; `false` if its rule is gone.
    pub async fn rule_note(&mut self, key: &StreamKey, address: &str, status: &Status) -> Result<bool, Error> {
        let sql = "UPDATE rule SET state = $5, reason = $6, state_ms = $7, retries = $8, next_retry_ms = $9, \
                   last_error = $10 WHERE app = $1 AND environment = $2 AND stream = $3 AND address = $4";
        let sql = bind_key(sqlx::query(sql), key).bind(address.to_owned());
        let sql = sql.bind(status.state as i64).bind(status.reason as i64).bind(status.state_ms);
        let sql = sql.bind(status.retries).bind(status.next_retry_ms).bind(status.last_error.clone());
        Ok(self.run(sql).await? > 0)
    }

    /// Notes how the relay to `url` goes, in its rule or, where that is gone, until it has ended; `false` if it was not known to run.
    pub async fn relay_note(
        &mut self,
        key: &StreamKey,
        address: &str,
        url: &Secret,
        status: &Status,
    ) -> Result<bool, Error> {
        let ruled = self.rule_note(key, address, status).await?;
        if !ruled && status.state != State::None {
            let sql = "INSERT INTO leaving (app, environment, stream, address, url) VALUES ($1, $2, $3, $4, $5) \
                       ON CONFLICT DO NOTHING";
            let sql = bind_key(sqlx::query(sql), key).bind(address.to_owned()).bind(url.expose().to_owned());
            return self.run(sql).await.map(|_| true);
        }
        let sql = "DELETE FROM leaving WHERE app = $1 AND environment = $2 AND stream = $3 AND address = $4";
        let left = self.run(bind_key(sqlx::query(sql), key).bind(address.to_owned())).await? > 0;
        Ok(ruled || left)
    }

    /// Asks a rule to connect now; `false` if there is none.
    pub async fn rule_retry(&mut self, key: &StreamKey, address: &str) -> Result<bool, Error> {
        let sql = "UPDATE rule SET retry_asked = retry_asked + 1 \
                   WHERE app = $1 AND environment = $2 AND stream = $3 AND address = $4";
        Ok(self.run(bind_key(sqlx::query(sql), key).bind(address.to_owned())).await? > 0)
    }

    /// The rules of all apps that no call has put.
    pub async fn rules_default(&mut self) -> Result<Vec<Rule>, Error> {
        let sql = "SELECT * FROM rule WHERE origin = $1 ORDER BY app, environment, stream, address";
        self.each(sqlx::query(sql).bind(Origin::Default as i64), rule_of).await
    }

    /// The relays of all apps whose last note is not [`State::None`], ordered by stream and address. Right after a start: those whose
    /// end is not told.
    pub async fn relays_running(&mut self) -> Result<Vec<Ran>, Error> {
        let sql = "SELECT app, environment, stream, address, url FROM rule WHERE state <> 0 \
                   UNION ALL SELECT app, environment, stream, address, url FROM leaving \
                   ORDER BY app, environment, stream, address";
        let mut relays = self.each(sqlx::query(sql), ran_of).await?;
        // One whose rule was put again may be in both.
        relays.dedup_by(|a, b| (&a.key, &a.address) == (&b.key, &b.address));
        Ok(relays)
    }
}

/// Binds an app and an environment, and a stream if there is one, as the next two or three parameters.
fn bind_scope<'q>(sql: super::Sql<'q>, app: u32, environment: Environment, stream: Option<&str>) -> super::Sql<'q> {
    let sql = sql.bind(i64::from(app)).bind(environment_to_row(environment));
    match stream {
        Some(stream) => sql.bind(stream.to_owned()),
        None => sql,
    }
}

fn ran_of(row: &AnyRow) -> Result<Ran, Error> {
    let (address, url) = (row.try_get("address")?, Secret::new(row.try_get::<String, _>("url")?));
    Ok(Ran { key: key_of(row)?, address, url })
}

fn rule_of(row: &AnyRow) -> Result<Rule, Error> {
    Ok(Rule {
        key: key_of(row)?,
        address: row.try_get("address")?,
        url: Secret::new(row.try_get::<String, _>("url")?),
        origin: origin_of(row)?,
        created_ms: row.try_get("created_ms")?,
        retry_asked: row.try_get("retry_asked")?,
        status: Status {
            state: match row.try_get("state")? {
                0i64 => State::None,
                1 => State::Requesting,
                2 => State::Relaying,
                other => return Err(unknown("state", other)),
            },
            reason: match row.try_get("reason")? {
                0i64 => Reason::None,
                1 => Reason::ServerError,
                2 => Reason::HandshakeFailed,
                3 => Reason::AccessPointError,
                4 => Reason::CreateStreamFailed,
                5 => Reason::BadName,
                6 => Reason::CdnServerDisconnected,
                7 => Reason::ActivelyDisconnected,
                other => return Err(unknown("reason", other)),
            },
            state_ms: row.try_get("state_ms")?,
            retries: row.try_get("retries")?,
            next_retry_ms: row.try_get("next_retry_ms")?,
            last_error: row.try_get("last_error")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::tests::{Dir, key};

    const A: &str = "rtmp://cdn.example.com/live/a";
    const B: &str = "rtmp://cdn.example.com/live/b";

    async fn put(store: &Store, id: &str, address: &str, query: &str, origin: Origin, now_ms: i64) {
        let mut tx = store.begin().await.unwrap();
        tx.rule_put(&key(id), address, &Secret::new(format!("{address}{query}")), origin, now_ms).await.unwrap();
        tx.commit().await.unwrap();
    }

    fn relaying(now_ms: i64) -> Status {
        Status {
            state: State::Relaying,
            reason: Reason::CdnServerDisconnected,
            state_ms: now_ms,
            retries: 3,
            next_retry_ms: now_ms + 5,
            last_error: "reset".into(),
        }
    }

    #[tokio::test]
    async fn a_rule_put_twice_is_one_rule_that_keeps_its_age_and_status() {
        let dir = Dir::new();
        let store = dir.open().await;
        put(&store, "a", A, "?k=1", Origin::Api, 10).await;
        let mut tx = store.begin().await.unwrap();
        assert!(tx.rule_note(&key("a"), A, &relaying(20)).await.unwrap());
        assert!(tx.rule_retry(&key("a"), A).await.unwrap());
        assert!(!tx.rule_note(&key("a"), B, &relaying(20)).await.unwrap());
        assert!(!tx.rule_retry(&key("a"), B).await.unwrap());
        tx.commit().await.unwrap();
        put(&store, "a", A, "?k=2", Origin::Api, 30).await;

        let want = Rule {
            key: key("a"),
            address: A.into(),
            url: Secret::new(format!("{A}?k=2")),
            origin: Origin::Api,
            created_ms: 10,
            retry_asked: 1,
            status: relaying(20),
        };
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.rule(&key("a"), A).await.unwrap().as_ref(), Some(&want));
        assert_eq!(tx.rules_of(&key("a")).await.unwrap(), [want]);

        // Deleted and put again it is a new one.
        assert!(tx.rule_delete(&key("a"), A).await.unwrap());
        assert!(!tx.rule_delete(&key("a"), A).await.unwrap());
        tx.commit().await.unwrap();
        put(&store, "a", A, "", Origin::Api, 40).await;
        let rule = store.read().await.unwrap().rule(&key("a"), A).await.unwrap().unwrap();
        assert_eq!((rule.created_ms, rule.retry_asked, rule.status.state), (40, 0, State::None));
    }

    #[tokio::test]
    async fn what_a_call_has_put_wins_over_the_default() {
        for order in [[Origin::Api, Origin::Default], [Origin::Default, Origin::Api]] {
            let dir = Dir::new();
            let store = dir.open().await;
            for origin in order {
                put(&store, "a", A, &format!("?{origin:?}"), origin, 1).await;
            }
            put(&store, "a", B, "", Origin::Default, 1).await;
            let mut tx = store.begin().await.unwrap();
            let rule = tx.rule(&key("a"), A).await.unwrap().unwrap();
            assert_eq!((rule.origin, rule.url.expose()), (Origin::Api, format!("{A}?Api").as_str()));
            tx.rules_delete_default(&key("a")).await.unwrap();
            assert_eq!(tx.rule_count(&key("a")).await.unwrap(), 1);
        }
    }

    /// Clears the waiting rules of `stream`, or all; says what was touched and what is left.
    async fn check_clear(stream: Option<&str>, want_touched: &str, want_left: &str) {
        let dir = Dir::new();
        let store = dir.open().await;
        for (id, address) in [("a", A), ("a", B), ("b", A), ("b", B), ("zegotest-7-a", A)] {
            put(&store, id, address, "", Origin::Api, 1).await;
        }
        let mut tx = store.begin().await.unwrap();
        tx.rule_note(&key("b"), B, &relaying(1)).await.unwrap();
        let requesting = Status { state: State::Requesting, ..Status::default() };
        tx.rule_note(&key("a"), B, &requesting).await.unwrap();
        let touched = tx.rules_clear_waiting(7, Environment::Production, stream).await.unwrap();
        assert_eq!(touched.iter().map(|key| key.id()).collect::<String>(), want_touched);
        let mut left = String::new();
        for id in ["a", "b", "zegotest-7-a"] {
            left += &format!("{id}:{} ", tx.rule_count(&key(id)).await.unwrap());
        }
        assert_eq!(left.trim_end(), want_left);
    }

    #[tokio::test]
    async fn clear_takes_what_does_not_relay() {
        check_clear(Some("a"), "a", "a:0 b:2 zegotest-7-a:1").await;
        check_clear(Some("none"), "", "a:2 b:2 zegotest-7-a:1").await;
        check_clear(None, "ab", "a:0 b:1 zegotest-7-a:1").await;
    }

    #[tokio::test]
    async fn a_relay_is_known_to_run_until_its_end_is_noted_whatever_becomes_of_its_rule() {
        let dir = Dir::new();
        let store = dir.open().await;
        let url = Secret::new(format!("{A}?secret"));
        put(&store, "s", A, "?secret", Origin::Default, 1).await;
        let mut tx = store.begin().await.unwrap();
        let (key, none) = (key("s"), Status::default());
        let ran = Ran { key: key.clone(), address: A.into(), url: url.clone() };
        for number in 0..4 {
            tx.rule_put(&key, A, &url, Origin::Default, 1).await.unwrap();
            assert!(tx.relay_note(&key, A, &url, &relaying(1)).await.unwrap());
            // It is deleted by a call, with its stream, and put again, or cleared.
            match number {
                0 => assert!(tx.rule_delete(&key, A).await.unwrap()),
                1 => tx.rules_delete_default(&key).await.unwrap(),
                2 => {
                    assert!(tx.rule_delete(&key, A).await.unwrap());
                    tx.rule_put(&key, A, &url, Origin::Api, 1).await.unwrap();
                    tx.rule_note(&key, A, &relaying(2)).await.unwrap();
                }
                _ => {
                    tx.rule_note(&key, A, &Status::new(State::Requesting, Reason::None)).await.unwrap();
                    tx.rules_clear_waiting(7, Environment::Production, None).await.unwrap();
                }
            }
            assert_eq!(tx.relays_running().await.unwrap(), std::slice::from_ref(&ran), "{number}");
            assert!(tx.relay_note(&key, A, &url, &none).await.unwrap());
            assert_eq!(tx.relays_running().await.unwrap(), [], "{number}");
            tx.rule_delete(&key, A).await.unwrap();
            assert!(!tx.relay_note(&key, A, &url, &none).await.unwrap());
            assert_eq!(tx.relays_running().await.unwrap(), [], "{number}");
        }
    }

    #[tokio::test]
    async fn pages_join_to_the_whole_in_order() {
        let dir = Dir::new();
        let store = dir.open().await;
        for id in ["b", "a", "c"] {
            for address in [B, A] {
                put(&store, id, address, "", Origin::Api, 1).await;
            }
        }
        let mut tx = store.read().await.unwrap();
        for (stream, size, want) in [(None, 4, "aabb cc "), (None, 1000, "aabbcc "), (Some("b"), 1, "b b ")] {
            let (mut pages, mut seen) = (String::new(), Vec::new());
            for number in 0.. {
                let page = Page { number, size };
                let (total, rules) = tx.rules_page(7, Environment::Production, stream, page).await.unwrap();
                assert_eq!(total, if stream.is_some() { 2 } else { 6 });
                if rules.is_empty() {
                    break;
                }
                pages.extend(rules.iter().map(|rule| rule.key.id()));
                pages.push(' ');
                seen.extend(rules.into_iter().map(|rule| (rule.key.id().to_owned(), rule.address)));
            }
            assert_eq!(pages, want);
            assert!(seen.is_sorted(), "{seen:?}");
        }
        let far = Page { number: u64::MAX, size: 1000 };
        assert_eq!(tx.rules_page(7, Environment::Production, None, far).await.unwrap(), (6, vec![]));
        assert_eq!(tx.rules_page(8, Environment::Production, None, far).await.unwrap(), (0, vec![]));
    }

    #[tokio::test]
    async fn rules_survive_a_reopen_and_those_that_ran_are_known() {
        let dir = Dir::new();
        let store = dir.open().await;
        put(&store, "a", A, "?secret", Origin::Api, 1).await;
        put(&store, "b", A, "", Origin::Default, 2).await;
        let mut tx = store.begin().await.unwrap();
        tx.rule_note(&key("a"), A, &relaying(9)).await.unwrap();
        tx.commit().await.unwrap();
        let before = store.read().await.unwrap().rules_of(&key("a")).await.unwrap();

        let store = dir.open().await;
        let mut tx = store.read().await.unwrap();
        let running: Vec<_> =
            before.into_iter().map(|it| Ran { key: it.key, address: it.address, url: it.url }).collect();
        assert_eq!(tx.relays_running().await.unwrap(), running);
        assert_eq!(tx.rules_of(&key("b")).await.unwrap()[0].origin, Origin::Default);
    }
}
