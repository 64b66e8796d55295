//! # RetryCallbacks
//!
//! Sends callbacks again, now, as if they had never been tried, to the URL and in the format that the app has now. One whose attempt
//! is under way is sent once more after it. An extension of bywash.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | Id[] | Number list | one of the two | 1 to 1000 ids of DescribeCallbacks; those of others are passed over |
//! | State | String | one of the two | `dead`: all that could not be delivered |
//!
//! Limit: 20 calls a second.
//!
//! Data: `Count`, how many were armed. Codes: 5005 Id or State; 30002 too many calls; 30003 internal; 30004 IsTest.
//!
//! ```text
//! GET /?Action=RetryCallbacks&State=dead&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":{"Count":1}}
//! ```

use serde_json::json;

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::{Rearm, Tx};

/// Ids that one call may name.
const IDS_MAX: usize = 1000;

/// The call: these ids, or all dead ones if there are none.
pub struct RetryCallbacks {
    ids: Vec<i64>,
}

impl Action for RetryCallbacks {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let ids = params.list("Id")?.into_iter().map(str::parse).collect::<Result<Vec<i64>, _>>();
        let mut ids = ids.map_err(|_| params.bad("Id[] takes numbers"))?;
        // One that is named twice is one.
        ids.sort_unstable();
        ids.dedup();
        match params.text("State") {
            Some("dead") if ids.is_empty() => Ok(Self { ids }),
            None if (1..=IDS_MAX).contains(&ids.len()) => Ok(Self { ids }),
            _ => Err(params.bad(format!("give either Id[], 1 to {IDS_MAX} of them, or State=dead"))),
        }
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let which = if self.ids.is_empty() { Rearm::Dead } else { Rearm::Ids(&self.ids) };
        let count = tx.outbox_retry(context.app.id, context.environment, which, context.now_ms).await?;
        tx.outbox_readdress(&context.app, context.environment).await?;
        Ok(Reply::data(json!({ "Count": count })))
    }
}
