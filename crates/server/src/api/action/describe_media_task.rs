//! # DescribeMediaTask
//!
//! Says how a merge goes.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | Vendor | String | yes | `Tencent` or `Huawei`, as in the MergeMedia that made the task |
//! | TaskId | String | yes | of MergeMedia |
//!
//! Limit: 20 calls a second.
//!
//! Data has one member, named as the vendor. Status with Tencent: WAITING, PROCESSING, FINISH or FAIL, and then Message says
//! why; with Huawei: NO_TASK, WAITING, PROCESSING, SUCCEEDED or FAILED. Progress, in percent, is an extension of bywash. Times
//! are UTC. A task that is over is known for 30 days.
//!
//! Codes: 2 a parameter; 4 the app does not record as this vendor, or the vendor has no tasks; 6 too many calls; 1000
//! internal, or with Tencent a TaskId that is not known.
//!
//! ```text
//! GET /?Action=DescribeMediaTask&Vendor=Tencent&TaskId=1234567890-EditMedia-0c1f6a5293d147b88e0e5d9a3f7b2c64tt0&<common parameters>
//! {"Code":0,"Message":"success","RequestId":"4191282558729715911","Data":{"Tencent":{
//!  "TaskId":"1234567890-EditMedia-0c1f6a5293d147b88e0e5d9a3f7b2c64tt0","Event":"compose","Status":"FINISH",
//!  "FileId":"5285890784246869932","ReplayUrl":"https://live.example.com/media/…","RequestId":"70628bcd-5652-4d5c-aa04-97956a4e771a",
//!  "Message":"","ThumbnailsUrl":[],"Progress":100}}}
//! {"Huawei":{"TaskId":"112037345012345678","Status":"SUCCEEDED","CreateTime":"20241118065429","EndTime":"20241118065431",
//!  "FileName":["1234567890/cdn01/2024-11-18/065429-112037345012-1.mp4"],"Progress":100}}
//! ```

use serde_json::json;

use crate::api::cdn::{self, Clock};
use crate::api::code::{self, Fault};
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::config::Vendor;
use crate::store::{FileState, JobState, Tx};

/// The call.
pub struct DescribeMediaTask {
    vendor: Vendor,
    task: String,
}

impl Action for DescribeMediaTask {
    fn parse(params: &Params) -> Result<Self, Fault> {
        Ok(Self { vendor: cdn::vendor(params, cdn::WITH_TASKS)?, task: params.required("TaskId")?.to_owned() })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let Self { vendor, task } = self;
        let (app, environment) = (context.app.id, context.environment);
        cdn::recording(context, vendor)?;
        let job = tx.job(app, environment, &task).await?.filter(|job| job.vendor == vendor);
        let path = match &job {
            Some(job) if !job.file.is_empty() => tx.file(app, environment, &job.file).await?,
            _ => None,
        };
        let path = path.filter(|file| file.state == FileState::Ready).map(|file| file.path);
        Ok(cdn::reply(
            vendor,
            match (vendor, job) {
                (Vendor::Tencent, None) => return Err(code::REQUEST_FAILED.because("there is no such task")),
                (Vendor::Tencent, Some(job)) => json!({
                    "TaskId": task,
                    "Event": "compose",
                    "Status": match job.state {
                        JobState::Waiting => "WAITING",
                        JobState::Processing => "PROCESSING",
                        JobState::Finished => "FINISH",
                        JobState::Failed => "FAIL",
                    },
                    "FileId": job.file,
                    "ReplayUrl": path.map_or(String::new(), |path| cdn::address(context, &path)),
                    "RequestId": cdn::request_id(),
                    "Message": job.message,
                    "ThumbnailsUrl": [],
                    "Progress": job.progress,
                }),
                (_, None) => {
                    json!({ "TaskId": task, "Status": "NO_TASK", "CreateTime": "", "EndTime": "", "FileName": [] })
                }
                (_, Some(job)) => json!({
                    "TaskId": task,
                    "Status": match job.state {
                        JobState::Waiting => "WAITING",
                        JobState::Processing => "PROCESSING",
                        JobState::Finished => "SUCCEEDED",
                        JobState::Failed => "FAILED",
                    },
                    "CreateTime": Clock(job.created_ms).digits(),
                    "EndTime": if job.ended_ms > 0 { Clock(job.ended_ms).digits() } else { String::new() },
                    "FileName": Vec::from_iter(path),
                    "Progress": job.progress,
                }),
            },
        ))
    }
}
