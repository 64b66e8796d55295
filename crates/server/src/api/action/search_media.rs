//! # SearchMedia
//!
//! Lists the files that were recorded or merged under a vendor's name and are ready to be fetched.
//!
//! | parameter | type | required | |
//! |---|---|---|---|
//! | Vendor | String | yes | `Tencent`, `Ws` or `Huawei`, one that the app records as |
//! | NamePrefix | String | no | at most 20 bytes. Tencent: what Name begins with. Ws, Huawei: what Key begins with, its `<AppId>/` left out or not |
//! | StartTime, EndTime | String | no | Tencent: Unix seconds between which the files became ready, both included |
//! | PageNumber | Number | no | Tencent: from 0 |
//! | PageSize | Number | no | Tencent: default 10; no page ends beyond the 5000th file |
//! | FileId[] | String list | no | Tencent: at most 10, of at most 40 characters |
//! | StreamId[] | String list | no | Tencent: at most 10 |
//! | Marker | String | no | Ws, Huawei: NextMarker of the page before; the first page is without |
//! | MaxKeys | Number | no | Ws, Huawei: 1 to 1000, default 1000 |
//!
//! Limit: 20 calls a second. What is not of the vendor is ignored. Several conditions are met together; of a list one is enough.
//!
//! Data has one member, named as the vendor. Tencent: the newest file first; TotalCount is 5000 at most. Name is the
//! StreamId, or OutputFileName of MergeMedia. Times are UTC. Members for which bywash has no value are there and empty. Ws and
//! Huawei: ordered by Key; NextMarker is empty on the last page. ETag is that of the file's address under `/media`, with quotes for
//! Huawei; it is no MD5 of the bytes. Fps of a merged file is that of its first input.
//!
//! Codes: 2 a parameter; 4 the app does not record as this vendor, or the vendor is Aliyun; 6 too many calls; 1000 internal.
//!
//! ```text
//! GET /?Action=SearchMedia&Vendor=Tencent&StreamId[]=cdn01&PageSize=1&<common parameters>
//! {"Code":0,"Message":"success","RequestId":"4191282558729715911","Data":{"Tencent":{"RequestId":"70628bcd-5652-4d5c-aa04-97956a4e771a",
//!  "TotalCount":2,"MediaInfoSet":[{"FileId":"5285890784246869930","BasicInfo":{"Name":"cdn01","Description":"",
//!  "CreateTime":"2026-01-02T03:04:05Z","UpdateTime":"2026-01-02T03:04:05Z","ExpireTime":"9999-12-31T23:59:59Z","ClassId":0,
//!  "ClassName":"","ClassPath":"","CoverUrl":"","Type":"mp4","IntranetMediaUrl":"",
//!  "MediaUrl":"https://live.example.com/media/1234567890/cdn01/2026-01-02/010203-5f1d7a84c4a8-1.mp4",
//!  "SourceInfo":{"SourceType":"Record","SourceContext":""},"StorageRegion":"","Vid":"5f1d7a84c4a8d7de8f7e5c1a6b3f9d02",
//!  "Category":"Video","Status":"Normal","StorageClass":"STANDARD"},"TranscodeInfo":{"TranscodeSet":[{
//!  "Url":"https://live.example.com/media/1234567890/cdn01/2026-01-02/010203-5f1d7a84c4a8-1.mp4","Definition":0,"Bitrate":2600000,
//!  "Height":720,"Width":1280,"Size":2340000000,"Duration":7200.0,"Md5":"","Container":"mp4","VideoStreamSet":[{"Bitrate":2600000,
//!  "Height":720,"Width":1280,"Codec":"h264","Fps":30,"CodecTag":"","DynamicRangeInfo":{"Type":"","HDRType":""}}],
//!  "AudioStreamSet":[{"Bitrate":0,"SamplingRate":48000,"Codec":"aac"}],"DigitalWatermarkType":"","CopyRightWatermarkText":""}]}}]}}}
//! {"Huawei":{"NextMarker":"","Keys":[{"ETag":"\"6b3f9d02\"","Key":"1234567890/cdn01/2026-01-02/010203-5f1d7a84c4a8-1.mp4",
//!  "LastModified":"2026-01-02T03:04:05.678Z","Size":2340000000,"MediaUrl":"https://live.example.com/media/…"}]}}
//! ```

use serde_json::{Value, json};

use crate::api::cdn::{self, Clock};
use crate::api::code::Fault;
use crate::api::params::Params;
use crate::api::{Action, Context, Reply};
use crate::config::Vendor;
use crate::store::file::TOTAL_MAX;
use crate::store::{About, File, Listed, Page, Search, Tx};

/// The longest NamePrefix, in bytes.
const PREFIX_MAX: usize = 20;

/// FileIds and StreamIds that one call may name.
const LIST_MAX: usize = 10;

/// The longest FileId, in bytes.
const ID_MAX: usize = 40;

/// The call.
pub struct SearchMedia {
    vendor: Vendor,
    by: By,
}

/// How the vendor's lists are asked for.
enum By {
    Page(Search, Page),
    Marker { prefix: String, marker: String, limit: usize },
}

impl Action for SearchMedia {
    fn parse(params: &Params) -> Result<Self, Fault> {
        let vendor = cdn::vendor(params, cdn::WITH_FILES)?;
        let prefix = params.text("NamePrefix").unwrap_or_default().to_owned();
        if prefix.len() > PREFIX_MAX {
            return Err(params.bad(format!("NamePrefix has at most {PREFIX_MAX} bytes")));
        }
        if vendor != Vendor::Tencent {
            let own = format!("{}/", params.app);
            let prefix = if prefix.starts_with(&own) { prefix } else { own + &prefix };
            let limit = params.number("MaxKeys")?.unwrap_or(1000);
            if !(1..=1000).contains(&limit) {
                return Err(params.bad("MaxKeys is 1 to 1000"));
            }
            let marker = params.text("Marker").unwrap_or_default().to_owned();
            return Ok(Self { vendor, by: By::Marker { prefix, marker, limit } });
        }

        let list = |name: &str| {
            let list: Vec<String> =
                params.list(name)?.into_iter().filter(|it| !it.is_empty()).map(str::to_owned).collect();
            let fits = list.len() <= LIST_MAX;
            fits.then_some(list).ok_or_else(|| params.bad(format!("{name}[] takes at most {LIST_MAX}")))
        };
        let (ids, streams) = (list("FileId")?, list("StreamId")?);
        if ids.iter().any(|id| id.len() > ID_MAX) {
            return Err(params.bad(format!("a FileId has at most {ID_MAX} characters")));
        }
        let ms = |seconds: i64| seconds.saturating_mul(1000);
        let start = params.number("StartTime")?.map_or(i64::MIN, ms);
        let end = params.number("EndTime")?.map_or(i64::MAX, |it: i64| ms(it.saturating_add(1)));
        if start >= end {
            return Err(params.bad("EndTime is before StartTime"));
        }
        let page = Page {
            number: params.number::<u32>("PageNumber")?.unwrap_or(0).into(),
            size: params.number::<u32>("PageSize")?.unwrap_or(10).into(),
        };
        if page.size == 0 || (page.number + 1) * page.size > TOTAL_MAX as u64 {
            return Err(params.bad(format!("PageSize is 1 or more, and no page ends beyond {TOTAL_MAX}")));
        }
        Ok(Self { vendor, by: By::Page(Search { prefix, created: start..end, ids, streams }, page) })
    }

    async fn apply(self, tx: &mut Tx, context: &Context) -> Result<Reply, Fault> {
        let Self { vendor, by } = self;
        let (app, environment) = (context.app.id, context.environment);
        cdn::recording(context, vendor)?;
        let part = match by {
            By::Page(search, page) => {
                let (total, files) = tx.files_search(app, environment, vendor, &search, page).await?;
                let files: Value = files.iter().map(|file| media_info(file, context)).collect();
                json!({ "RequestId": cdn::request_id(), "TotalCount": total, "MediaInfoSet": files })
            }
            By::Marker { prefix, marker, limit } => {
                let more = limit as i64 + 1;
                let mut files = tx.files_after(app, environment, vendor, &prefix, &marker, more).await?;
                let last = files.len() <= limit;
                files.truncate(limit);
                let next = files.last().filter(|_| !last).map_or("", |file| &file.path);
                let keys: Value = files.iter().map(|file| object(vendor, file, context)).collect();
                json!({ "NextMarker": next, "Keys": keys })
            }
        };
        Ok(cdn::reply(vendor, part))
    }
}

/// An element of Tencent's MediaInfoSet.
fn media_info(file: &File, context: &Context) -> Value {
    let url = cdn::address(context, &file.path);
    let About { width, height, frame_rate_milli, video_codec, audio_codec, sample_rate, channels: _, bit_rate } =
        &file.about;
    let pictures = !video_codec.is_empty();
    let codec = |name: &str| match name {
        "H.265" => "hevc".to_owned(),
        name => name.replace('.', "").to_ascii_lowercase(),
    };
    let video = pictures.then(|| {
        json!({
            "Bitrate": bit_rate,
            "Height": height,
            "Width": width,
            "Codec": codec(video_codec),
            "Fps": (frame_rate_milli + 500) / 1000,
            "CodecTag": "",
            "DynamicRangeInfo": { "Type": "", "HDRType": "" },
        })
    });
    let audio = (!audio_codec.is_empty()).then(|| {
        let bit_rate = if pictures { 0 } else { *bit_rate };
        json!({ "Bitrate": bit_rate, "SamplingRate": sample_rate, "Codec": codec(audio_codec) })
    });
    let expire = if file.expire_ms > 0 { Clock(file.expire_ms).iso() } else { "9999-12-31T23:59:59Z".into() };
    json!({
        "FileId": file.id,
        "BasicInfo": {
            "Name": file.name,
            "Description": "",
            "CreateTime": Clock(file.created_ms).iso(),
            "UpdateTime": Clock(file.updated_ms).iso(),
            "ExpireTime": expire,
            "ClassId": 0,
            "ClassName": "",
            "ClassPath": "",
            "CoverUrl": "",
            "Type": file.format.name(),
            "IntranetMediaUrl": "",
            "MediaUrl": url,
            "SourceInfo": {
                "SourceType": if file.record.is_empty() { "VideoProcessing" } else { "Record" },
                "SourceContext": "",
            },
            "StorageRegion": "",
            "Vid": file.record,
            "Category": if pictures { "Video" } else { "Audio" },
            "Status": "Normal",
            "StorageClass": "STANDARD",
        },
        "TranscodeInfo": { "TranscodeSet": [{
            "Url": url,
            "Definition": 0,
            "Bitrate": bit_rate,
            "Height": height,
            "Width": width,
            "Size": file.size,
            "Duration": file.duration_ms as f64 / 1000.0,
            "Md5": "",
            "Container": file.format.name(),
            "VideoStreamSet": Vec::from_iter(video),
            "AudioStreamSet": Vec::from_iter(audio),
            "DigitalWatermarkType": "",
            "CopyRightWatermarkText": "",
        }]},
    })
}

/// An element of Keys.
fn object(vendor: Vendor, file: &Listed, context: &Context) -> Value {
    let time = Clock(file.created_ms);
    let (tag, modified) = match vendor {
        Vendor::Huawei => (format!("\"{}\"", file.etag), time.iso_ms()),
        _ => (file.etag.clone(), time.iso()),
    };
    let url = cdn::address(context, &file.path);
    json!({ "ETag": tag, "Key": file.path, "LastModified": modified, "Size": file.size, "MediaUrl": url })
}
