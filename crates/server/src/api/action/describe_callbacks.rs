//! # DescribeCallbacks
//!
//! Lists the callbacks owed to the app's backend, also those that could not be delivered. An extension of bywash.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | State | String | no | only `pending`, `delivered` or `dead` ones |
//! | PageNumber | Number | no | from 0 |
//! | PageSize | Number | no | 1 to 1000, default 100 |
//!
//! Limit: 20 calls a second.
//!
//! Data: `Total` and `Callbacks`. Times are Unix milliseconds. A dead one was tried six times; RetryCallbacks
//! arms it again. LastStatus is the receiver's last HTTP status, 0 if it never answered.
//!
//! Codes: 5005 State or a page parameter; 30002 too many calls; 30003 internal; 30004 IsTest.
//!
//! ```text
//! GET /?Action=DescribeCallbacks&State=dead&<common parameters>
//! {"Code":0,"Message":"ok","RequestId":"4315169065145771656","Data":{"Total":1,"Callbacks":[{"Id":7,
//!  "Event":"stream_create","StreamId":"rtc01","State":"dead","Attempts":6,"NextAttemptTime":0,"LastStatus":500,
//!  "LastError":"","CreateTime":1617249600001}]}}
//! ```

use serde_json::{Value, json};

use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::store::{Callback, Delivery, Page, Tx};

/// The call.
pub struct DescribeCallbacks {
    state: Option<Delivery>,
    page: Page,
}

impl Action for DescribeCallbacks {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let state = match params.text("State") {
            None => None,
            Some("pending") => Some(Delivery::Pending),
            Some("delivered") => Some(Delivery::Delivered),
            Some("dead") => Some(Delivery::Dead),
            Some(_) => return Err(params.bad("State is neither pending, delivered nor dead")),
        };
        Ok(Self { state, page: params.page()? })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let page = tx.outbox_page(context.app.id, context.environment, self.state, self.page).await?;
        let callbacks: Vec<Value> = page.1.iter().map(describe).collect();
        Ok(Reply::data(json!({ "Total": page.0, "Callbacks": callbacks })))
    }
}

fn describe(callback: &Callback) -> Value {
    let (state, next) = match callback.state {
        Delivery::Pending => ("pending", callback.due_ms),
        Delivery::Delivered => ("delivered", 0),
        Delivery::Dead => ("dead", 0),
    };
    json!({
        "Id": callback.id,
        "Event": callback.event,
        "StreamId": callback.stream,
        "State": state,
        "Attempts": callback.attempts,
        "NextAttemptTime": next,
        "LastStatus": callback.last_status,
        "LastError": callback.last_error,
        "CreateTime": callback.created_ms,
    })
}
