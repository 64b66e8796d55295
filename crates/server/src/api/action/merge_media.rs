//! # MergeMedia
//!
//! Joins files, or pieces of them, to a new one. The work is done after the answer: DescribeMediaTask says how far it is, and
//! the `compose` callback that it is over.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | Vendor | String | yes | `Tencent` or `Huawei`, one that the app records as |
//! | Format | String | no | `MP4` (default) or `M3U8`, with Tencent also `MP3`; in upper or lower case |
//! | Type | Number | no | 0 (default): whole files; 1: pieces of files, Tencent only |
//! | InputFileId[] | String list | Type 0 | FileIds or Keys of SearchMedia in their order, 1 to 10 with Tencent and 20 with Huawei |
//! | HandleMediaArgs | Object list | Type 1 | 1 to 10: `HandleMediaArgs.N.FileId`, `.StartTime` and `.EndTime` in seconds; from the beginning and to the end without |
//! | OutputFileName | String | Tencent | what the new file is called, at most 64 characters. An ending that says the format is cut off |
//! | ExpireTime | Number | no | Tencent only: hours until the new file is deleted; 0 (default): it is kept |
//!
//! Limit: 20 calls a second. An app has at most 1000 merges that are not over.
//!
//! Data has one member, named as the vendor, with the TaskId.
//!
//! Codes: 2 a parameter; 4 the app does not record as this vendor, or the vendor has no merge; 6 too many calls, or too
//! many merges that are not over; 1000 internal; 41003 a file that is not there.
//!
//! ```text
//! GET /?Action=MergeMedia&Vendor=Tencent&Format=MP4&InputFileId[]=5285890784246869930&InputFileId[]=5285890784246869931&OutputFileName=show&<common parameters>
//! {"Code":0,"Message":"success","RequestId":"4191282558729715911","Data":{"Tencent":{
//!  "TaskId":"1234567890-EditMedia-0c1f6a5293d147b88e0e5d9a3f7b2c64tt0","RequestId":"70628bcd-5652-4d5c-aa04-97956a4e771a"}}}
//! {"Huawei":{"TaskId":"112037345012345678"}}
//! ```

use rand::Rng;
use serde_json::json;

use crate::api::cdn;
use crate::api::code::{self, Fault};
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::config::{Format, Vendor};
use crate::store::record::task_id;
use crate::store::{Job, JobState, Merge, Part, Tx};

/// Merges of one app that are not over.
const JOBS_MAX: u64 = 1000;

/// The longest OutputFileName, in characters.
const NAME_MAX: usize = 64;

/// The call; its parts name files as the caller does.
pub struct MergeMedia {
    vendor: Vendor,
    format: Format,
    parts: Vec<Part>,
    name: Option<String>,
    expire_hours: u32,
}

impl Action for MergeMedia {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let vendor = cdn::vendor(params, cdn::WITH_TASKS)?;
        let tencent = vendor == Vendor::Tencent;
        let format = Format::named(params.text("Format").unwrap_or("MP4"));
        let format = format.filter(|it| matches!(it, Format::Mp4 | Format::M3u8) || tencent && *it == Format::Mp3);
        let format = format.ok_or_else(|| params.bad("Format is MP4 or M3U8, with Tencent also MP3"))?;
        let (parts, most) = match params.text("Type").unwrap_or("0") {
            "0" => {
                let whole = |id: &str| Part { file: id.to_owned(), begin_ms: 0, end_ms: None };
                (params.list("InputFileId")?.into_iter().map(whole).collect(), if tencent { 10 } else { 20 })
            }
            "1" if tencent => {
                let pieces = params.objects("HandleMediaArgs")?;
                (pieces.iter().map(piece).collect::<Result<Vec<_>, _>>()?, 10)
            }
            _ => return Err(params.bad("Type is 0, or with Tencent 1")),
        };
        if !(1..=most).contains(&parts.len()) || parts.iter().any(|part| part.file.is_empty()) {
            return Err(params.bad(format!("1 to {most} files can be merged")));
        }
        let name = params.text("OutputFileName").map(|name| stem(name, format));
        if tencent && name.is_none() {
            return Err(params.bad("OutputFileName is required"));
        }
        let fits = |name: &&str| (1..=NAME_MAX).contains(&name.chars().count()) && !name.contains(char::is_control);
        if name.is_some_and(|name| !fits(&name)) {
            return Err(params.bad(format!("OutputFileName has 1 to {NAME_MAX} characters")));
        }
        let expire_hours = if tencent { params.number("ExpireTime")?.unwrap_or(0) } else { 0 };
        Ok(Self { vendor, format, parts, name: name.map(str::to_owned), expire_hours })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let Self { vendor, format, mut parts, name, expire_hours } = self;
        let (app, environment) = (context.app.id, context.environment);
        cdn::recording(context, vendor)?;
        if tx.jobs_count(app).await? >= JOBS_MAX {
            return Err(code::TOO_FREQUENT.because(format!("{JOBS_MAX} merges of the app are not over")));
        }
        let mut first = None;
        for part in &mut parts {
            let named = part.file.trim_start_matches('/');
            let Some(file) = tx.file_named(app, environment, vendor, named).await? else {
                return Err(code::NO_FILE.because(format!("there is no file {named:?}")));
            };
            part.file = file.id;
            first.get_or_insert(file.name);
        }
        let expire_ms = match expire_hours {
            0 => 0,
            hours => context.now_ms + i64::from(hours) * 3_600_000,
        };
        let id = match vendor {
            Vendor::Tencent => format!("{app}-EditMedia-{}tt0", task_id()),
            _ => rand::rng().random_range(100_000_000_000_000_000u64..1_000_000_000_000_000_000).to_string(),
        };
        let job = Job {
            id: id.clone(),
            app,
            environment,
            vendor,
            request: Merge { format, parts, name: name.or(first).unwrap_or_default(), expire_ms },
            state: JobState::Waiting,
            progress: 0,
            file: String::new(),
            code: String::new(),
            message: String::new(),
            created_ms: context.now_ms,
            ended_ms: 0,
        };
        tx.job_put(&job).await?;
        Ok(cdn::reply(
            vendor,
            match vendor {
                Vendor::Tencent => json!({ "TaskId": id, "RequestId": cdn::request_id() }),
                _ => json!({ "TaskId": id }),
            },
        ))
    }
}

fn piece(params: &Params) -> Result<Part, Fault> {
    let ms = |name: &str| match params.number::<f64>(name)? {
        None => Ok(None),
        Some(s) if (0.0..=1e9).contains(&s) => Ok(Some((s * 1000.0).round() as i64)),
        Some(_) => Err(params.bad(format!("{name} is in seconds, from 0"))),
    };
    let (begin_ms, end_ms) = (ms("StartTime")?.unwrap_or(0), ms("EndTime")?.filter(|&it| it > 0));
    if end_ms.is_some_and(|end_ms| end_ms <= begin_ms) {
        return Err(params.bad("EndTime of a piece is after its StartTime"));
    }
    Ok(Part { file: params.required("FileId")?.to_owned(), begin_ms, end_ms })
}

/// The name without an ending that says the format.
fn stem(name: &str, format: Format) -> &str {
    match name.rsplit_once('.') {
        Some((stem, end)) if !stem.is_empty() && end.eq_ignore_ascii_case(format.name()) => stem,
        _ => name,
    }
}
