//! Work on files that goes on after its call was answered: merges.

use bywash_media::Environment;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

use super::{Error, Tx, app_of, environment_of, environment_to_row, json_of, unknown, vendor_of};
use crate::config::{Format, Vendor};

/// A merge and how it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// `TaskId` as the caller was told.
    pub id: String,
    /// Whose it is.
    pub app: u32,
    /// Of which environment.
    pub environment: Environment,
    /// Under whose name.
    pub vendor: Vendor,
    /// What is to be done.
    pub request: Merge,
    /// Where it stands.
    pub state: JobState,
    /// How much of it is done, in percent.
    pub progress: i64,
    /// `FileId` of its result; empty before that.
    pub file: String,
    /// `code` of the `compose` callback; empty while it is not over.
    pub code: String,
    /// What went wrong; empty if nothing.
    pub message: String,
    /// When it was asked for, Unix milliseconds.
    pub created_ms: i64,
    /// When it was over, Unix milliseconds; 0 before that.
    pub ended_ms: i64,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// To be begun.
    Waiting = 0,
    /// Begun. After a start: to be begun again.
    Processing = 1,
    /// Done.
    Finished = 2,
    /// Given up.
    Failed = 3,
}

/// What a merge is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merge {
    /// How the result is written.
    pub format: Format,
    /// What it is made of, in order.
    pub parts: Vec<Part>,
    /// What callers call the result.
    pub name: String,
    /// When the result is deleted by itself, Unix milliseconds; 0 for never.
    pub expire_ms: i64,
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The `FileId`.
    pub file: String,
    /// Where the piece begins, in milliseconds of the file.
    pub begin_ms: i64,
    /// Where it ends, likewise; to the file's end without.
    pub end_ms: Option<i64>,
}

/// Jobs that are forgotten once `$1` is later than their end.
pub(super) const OVER: &str = "state IN (2, 3) AND ended_ms < $1";

impl Tx {
    /// Puts a job.
    pub async fn job_put(&mut self, job: &Job) -> Result<(), Error> {
        let sql = "INSERT INTO job (id, app, environment, vendor, request, state, progress, file, code, message, \
                   created_ms, ended_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
        let request = serde_json::to_string(&job.request).expect("numbers and words");
        self.works = true;
        let sql = sqlx::query(sql).bind(job.id.clone()).bind(i64::from(job.app));
        let sql = sql.bind(environment_to_row(job.environment)).bind(job.vendor.name()).bind(request);
        let sql = sql.bind(job.state as i64).bind(job.progress).bind(job.file.clone()).bind(job.code.clone());
        self.run(sql.bind(job.message.clone()).bind(job.created_ms).bind(job.ended_ms)).await.map(drop)
    }

    /// One job of an app.
    pub async fn job(&mut self, app: u32, environment: Environment, id: &str) -> Result<Option<Job>, Error> {
        let sql = "SELECT * FROM job WHERE app = $1 AND environment = $2 AND id = $3";
        let sql = sqlx::query(sql).bind(i64::from(app)).bind(environment_to_row(environment)).bind(id.to_owned());
        self.first(sql, job_of).await
    }

    /// Jobs that are not over, the oldest first.
    pub async fn jobs_due(&mut self, limit: i64) -> Result<Vec<Job>, Error> {
        let sql = "SELECT * FROM job WHERE state IN (0, 1) ORDER BY created_ms, id LIMIT $1";
        self.each(sqlx::query(sql).bind(limit), job_of).await
    }

    /// Notes how a job goes; `false` if it is gone.
    pub async fn job_note(&mut self, job: &Job) -> Result<bool, Error> {
        let sql = "UPDATE job SET state = $2, progress = $3, file = $4, code = $5, message = $6, ended_ms = $7 \
                   WHERE id = $1";
        let sql = sqlx::query(sql).bind(job.id.clone()).bind(job.state as i64).bind(job.progress);
        let sql = sql.bind(job.file.clone()).bind(job.code.clone()).bind(job.message.clone()).bind(job.ended_ms);
        Ok(self.run(sql).await? > 0)
    }

    /// How many jobs of an app are not over.
    pub async fn jobs_count(&mut self, app: u32) -> Result<u64, Error> {
        let sql = "SELECT COUNT(*) AS total FROM job WHERE app = $1 AND state IN (0, 1)";
        self.total(sqlx::query(sql).bind(i64::from(app))).await
    }

    /// Forgets jobs that were over before `before_ms`.
    pub async fn jobs_forget(&mut self, before_ms: i64) -> Result<(), Error> {
        let sql = format!("DELETE FROM job WHERE {OVER}");
        self.run(sqlx::query(AssertSqlSafe(sql)).bind(before_ms)).await.map(drop)
    }
}

fn job_of(row: &AnyRow) -> Result<Job, Error> {
    Ok(Job {
        id: row.try_get("id")?,
        app: app_of(row)?,
        environment: environment_of(row)?,
        vendor: vendor_of(row)?,
        request: json_of(row, "request")?,
        state: match row.try_get("state")? {
            0i64 => JobState::Waiting,
            1 => JobState::Processing,
            2 => JobState::Finished,
            3 => JobState::Failed,
            other => return Err(unknown("state", other)),
        },
        progress: row.try_get("progress")?,
        file: row.try_get("file")?,
        code: row.try_get("code")?,
        message: row.try_get("message")?,
        created_ms: row.try_get("created_ms")?,
        ended_ms: row.try_get("ended_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Dir;

    #[tokio::test]
    async fn a_job_is_due_until_it_is_over_and_then_known_for_a_while() {
        let dir = Dir::new();
        let store = dir.open().await;
        let parts = vec![Part { file: "5".into(), begin_ms: 7, end_ms: Some(9) }];
        let job = |id: &str, created_ms| Job {
            id: id.into(),
            app: 7,
            environment: Environment::Production,
            vendor: Vendor::Tencent,
            request: Merge { format: Format::M3u8, parts: parts.clone(), name: "a \"b\"".into(), expire_ms: 3 },
            state: JobState::Waiting,
            progress: 0,
            file: String::new(),
            code: String::new(),
            message: String::new(),
            created_ms,
            ended_ms: 0,
        };
        let mut tx = store.begin().await.unwrap();
        for (id, created_ms) in [("a", 3), ("b", 1), ("c", 2)] {
            tx.job_put(&job(id, created_ms)).await.unwrap();
        }
        let over = Job {
            state: JobState::Finished,
            progress: 100,
            file: "6".into(),
            code: "0".into(),
            message: "m".into(),
            ended_ms: 50,
            ..job("b", 1)
        };
        assert!(tx.job_note(&over).await.unwrap() && !tx.job_note(&job("d", 1)).await.unwrap());
        assert!(tx.job_note(&Job { state: JobState::Processing, ..job("c", 2) }).await.unwrap());
        tx.commit().await.unwrap();

        let store = dir.open().await;
        let mut tx = store.begin().await.unwrap();
        let due: Vec<_> = tx.jobs_due(10).await.unwrap().into_iter().map(|it| it.id).collect();
        assert_eq!((due.concat().as_str(), tx.jobs_due(1).await.unwrap().len()), ("ca", 1));
        assert_eq!((tx.jobs_count(7).await.unwrap(), tx.jobs_count(8).await.unwrap()), (2, 0));
        assert_eq!(tx.job(7, Environment::Test, "b").await.unwrap(), None);
        for (before_ms, there) in [(50, Some(over)), (51, None)] {
            assert_eq!(tx.anything_over(0, before_ms).await.unwrap(), there.is_none());
            tx.jobs_forget(before_ms).await.unwrap();
            assert_eq!(tx.job(7, Environment::Production, "b").await.unwrap(), there);
        }
        assert_eq!(tx.jobs_count(7).await.unwrap(), 2);
    }
}
