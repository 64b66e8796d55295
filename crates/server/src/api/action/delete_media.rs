//! # DeleteMedia
//!
//! Deletes files. From the answer on no search finds them and no address has them; their bytes are gone moments later.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | Vendor | String | yes | `Tencent`, `Ws` or `Huawei`, one that the app records as |
//! | FileId[] | String list | one of the two | 1 to 100 FileIds or Keys of SearchMedia, or what `record` calls FileID, PersistentId or ObsObject; with Ws also persistentIds of StartCDNRecord, each for all files of its task and format |
//! | Media | Object list | one of the two | Tencent only, 1 to 100: `Media.N.FileId`, and `Media.N.Resolution.M` of `360p`, `540p`, `720p` for these transcodes of the file alone. bywash has none, so these are an error each |
//! | ClearCache | Bool | no | Ws only: also from the caches of the CDN. There are none |
//!
//! Limit: 20 calls a second.
//!
//! Data has what was deleted and what was not: Code is 0 also if nothing was.
//! A file that is not there is an error, `ResourceNotFound.FileNotExist` with Tencent and `NoSuchKey` with the others.
//! With Ws there is WsItemIdReceiverResp too. With the app's `delete_media_string` Data is that as a text, as ZEGO's was until the end of
//! 2025: `"{\"Deleted\":[…],\"Errors\":[…]}"`.
//!
//! Codes: 2 a parameter, or both or none of FileId and Media; 4 the app does not record as this vendor, or the vendor is
//! Aliyun; 6 too many calls; 1000 internal.
//!
//! ```text
//! GET /?Action=DeleteMedia&Vendor=Tencent&FileId[]=5285890784246869930&FileId[]=1&<common parameters>
//! {"Code":0,"Message":"success","RequestId":"4191282558729715911","Data":{"Deleted":["5285890784246869930"],
//!  "Errors":[{"Code":"ResourceNotFound.FileNotExist","Message":"there is no such file","Key":"1",
//!  "RequestId":"70628bcd-5652-4d5c-aa04-97956a4e771a"}]}}
//! ```

use serde_json::json;

use crate::api::cdn;
use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::config::Vendor;
use crate::store::{FileState, Tx};

/// Files that one call may name.
const FILES_MAX: usize = 100;

/// The transcodes that ZEGO's API knows.
const RESOLUTIONS: [&str; 3] = ["360p", "540p", "720p"];

/// The call.
pub struct DeleteMedia {
    vendor: Vendor,
    items: Vec<Item>,
    clear_cache: bool,
}

/// What is to be deleted: a file, or transcodes of it.
struct Item {
    id: String,
    transcodes: bool,
}

impl Action for DeleteMedia {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let vendor = cdn::vendor(params, cdn::WITH_FILES)?;
        let whole = params.list("FileId")?.into_iter().map(|id| Ok(Item { id: id.to_owned(), transcodes: false }));
        let mut items = whole.collect::<Result<Vec<_>, Fault>>()?;
        if vendor == Vendor::Tencent {
            let media = params.objects("Media")?;
            if !media.is_empty() && !items.is_empty() {
                return Err(params.bad("give either FileId[] or Media"));
            }
            items.extend(media.iter().map(item).collect::<Result<Vec<_>, _>>()?);
        }
        if !(1..=FILES_MAX).contains(&items.len()) || items.iter().any(|item| item.id.is_empty()) {
            return Err(params.bad(format!("1 to {FILES_MAX} files can be deleted")));
        }
        let clear_cache = match params.text("ClearCache").filter(|_| vendor == Vendor::Ws) {
            Some(text) if text.eq_ignore_ascii_case("true") => true,
            Some(text) if !text.eq_ignore_ascii_case("false") => {
                return Err(params.bad("ClearCache is neither true nor false"));
            }
            _ => false,
        };
        Ok(Self { vendor, items, clear_cache })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let vendor = self.vendor;
        cdn::recording(context, vendor)?;
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for Item { id, transcodes } in &self.items {
            let why = match transcodes {
                true => "the file has no such transcode",
                false if delete(tx, context, vendor, id).await? => {
                    deleted.push(json!(id));
                    continue;
                }
                false => "there is no such file",
            };
            let code = if vendor == Vendor::Tencent { "ResourceNotFound.FileNotExist" } else { "NoSuchKey" };
            errors.push(json!({ "Code": code, "Message": why, "Key": id, "RequestId": cdn::request_id() }));
        }
        let mut data = json!({ "Deleted": deleted, "Errors": errors });
        if vendor == Vendor::Ws {
            let (code, message) = if self.clear_cache { (1, "handle success") } else { (0, "") };
            data["WsItemIdReceiverResp"] = json!({ "Code": code, "Message": message });
        }
        Ok(Reply::data(if context.app.delete_media_string { json!(data.to_string()) } else { data }))
    }
}

fn item(params: &Params) -> Result<Item, Fault> {
    let resolutions = params.list("Resolution")?;
    let known = resolutions.iter().all(|it| RESOLUTIONS.contains(it));
    let repeated = (1..resolutions.len()).any(|n| resolutions[n..].contains(&resolutions[n - 1]));
    if !known || repeated {
        return Err(params.bad("a Resolution is 360p, 540p or 720p, each once"));
    }
    Ok(Item { id: params.required("FileId")?.to_owned(), transcodes: !resolutions.is_empty() })
}

/// Deletes what the caller calls `id`; says whether there was anything.
async fn delete(tx: &mut Tx, context: &Context, vendor: Vendor, id: &str) -> Result<bool, Fault> {
    let (app, environment, now_ms) = (context.app.id, context.environment, context.now_ms);
    // Some of ZEGO's examples begin keys with a slash.
    if tx.file_delete(app, environment, vendor, id.trim_start_matches('/'), now_ms).await? {
        return Ok(true);
    }
    let Some((task, format)) = cdn::of_persistent_id(id).filter(|_| vendor == Vendor::Ws) else { return Ok(false) };
    let mut any = false;
    for file in tx.files_of_record(task).await? {
        if file.format == format && file.state == FileState::Ready {
            any |= tx.file_delete(app, environment, vendor, &file.id, now_ms).await?;
        }
    }
    Ok(any)
}
