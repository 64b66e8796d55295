//! What the actions of ZEGO's cdn group have in common: whose recordings are meant, and how that vendor writes things.
//!
//! Invariant: `Data` of these actions has exactly one member, named as the vendor, and is of that vendor's own shape.

use bywash_media::{StreamKey, playlist};
use rand::Rng;
use serde_json::{Value, json};

use super::code::{self, Fault};
use super::params::Params;
use super::{Context, Reply};
use crate::config::{self, Format, Vendor};

/// The vendors whose files can be searched and deleted.
pub const WITH_FILES: &[Vendor] = &[Vendor::Tencent, Vendor::Ws, Vendor::Huawei];

/// The vendors whose files can be merged.
pub const WITH_TASKS: &[Vendor] = &[Vendor::Tencent, Vendor::Huawei];

/// The parameter `Vendor`, one of those that the action has.
pub fn vendor(params: &Params, known: &[Vendor]) -> Result<Vendor, Fault> {
    let vendor = Vendor::named(params.required("Vendor")?);
    let vendor = vendor.ok_or_else(|| params.bad("Vendor is neither Tencent, Ws, Huawei nor Aliyun"))?;
    match known.contains(&vendor) {
        true => Ok(vendor),
        false => Err(code::OTHER_CDN.because(format!("the action is not there for {}", vendor.name()))),
    }
}

/// What the app's recordings under a vendor's name are like; a fault where the app has none.
pub fn recording(context: &Context, vendor: Vendor) -> Result<&config::Record, Fault> {
    let name = vendor.name();
    let why = || code::OTHER_CDN.because(format!("the app does not record as {name}: it has no [app.record.{name}]"));
    context.app.record.get(name).ok_or_else(why)
}

/// Success, with what the vendor says.
pub fn reply(vendor: Vendor, part: Value) -> Reply {
    Reply::data(json!({ (vendor.name()): part }))
}

/// What became of one stream of a list: the recording that its call meant, if there was one.
pub struct Meant<'a> {
    /// The stream.
    pub key: &'a StreamKey,
    /// `TaskId`.
    pub task: Option<String>,
}

/// What a vendor says of the recordings of a list of streams, each in `formats`; `tell_task` where the caller does not
/// know the `TaskId` yet.
pub fn streams(vendor: Vendor, formats: &[Format], all: &[Meant<'_>], tell_task: bool, now_ms: i64) -> Value {
    const NONE: &str = "the stream has no recording";
    let one = |Meant { key, task }: &Meant<'_>| {
        let mut element = json!({ "StreamName": key.id() });
        if tell_task && vendor == Vendor::Tencent {
            element["TaskId"] = json!(task);
        }
        element["RequestId"] = json!(request_id());
        (element["Code"], element["Message"]) = match (vendor, task) {
            (Vendor::Tencent, Some(_)) => (json!(""), json!("")),
            (Vendor::Tencent, None) => (json!("ResourceNotFound"), json!(NONE)),
            (Vendor::Aliyun, Some(_)) => (json!(200), json!("")),
            (_, Some(_)) => (json!(0), json!("success")),
            (_, None) => (json!(404), json!(NONE)),
        };
        element
    };
    if vendor != Vendor::Ws {
        return all.iter().map(one).collect();
    }
    let each = all.iter().flat_map(|meant| formats.iter().map(move |format| (meant, *format)));
    let list = each.map(|(Meant { key, task }, format)| {
        let (code, message) = if task.is_some() { (200, "success") } else { (404, NONE) };
        let id = task.as_ref().map_or(String::new(), |task| persistent_id(task, format));
        json!({ "http_code": code, "id": key.id(), "msg": message, "persistentId": id, "task": format.name() })
    });
    let list: Value = list.collect();
    json!({ "call_time": Clock(now_ms).plain(), "http_code": 200, "list": list, "msg": null, "trace_id": request_id() })
}

/// The `persistentId` of a recording's files of one format: 36 hex digits, as Wangsu's have.
fn persistent_id(task: &str, format: Format) -> String {
    format!("{task}{:04x}", format as u16)
}

/// The recording and the format of a `persistentId`.
pub fn of_persistent_id(id: &str) -> Option<(&str, Format)> {
    let (task, format) = id.split_at_checked(32)?;
    Some((task, Format::ALL.into_iter().find(|it| persistent_id(task, *it) == format!("{task}{format}"))?))
}

/// The address of a media file.
pub fn address(context: &Context, path: &str) -> String {
    context.settings.urls.replay(&context.app, path, context.now_ms)
}

/// A vendor's `RequestId`, in the form of a UUID.
pub fn request_id() -> String {
    let random = hex::encode(rand::rng().random::<[u8; 16]>());
    let (a, b, c, d, e) = (&random[..8], &random[8..12], &random[12..16], &random[16..20], &random[20..]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// A time in Unix milliseconds, to be written in UTC.
#[derive(Clone, Copy)]
pub struct Clock(pub i64);

impl Clock {
    /// `2026-01-02T03:04:05.678Z`.
    pub fn iso_ms(self) -> String {
        playlist::utc(self.0)
    }

    /// `2026-01-02T03:04:05Z`.
    pub fn iso(self) -> String {
        format!("{}Z", &self.iso_ms()[..19])
    }

    /// `2026-01-02 03:04:05`.
    pub fn plain(self) -> String {
        self.iso().replace('T', " ").replace('Z', "")
    }

    /// `20260102030405`.
    pub fn digits(self) -> String {
        self.iso().replace(['-', ':', 'T', 'Z'], "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        let time = Clock(1_651_069_668_009);
        assert_eq!(time.iso_ms(), "2022-04-27T14:27:48.009Z");
        assert_eq!(time.iso(), "2022-04-27T14:27:48Z");
        assert_eq!(time.plain(), "2022-04-27 14:27:48");
        assert_eq!(time.digits(), "20220427142748");
    }

    #[test]
    fn a_persistent_id_names_a_recording_and_a_format() {
        let task = "0123456789abcdef0123456789abcdef";
        for format in Format::ALL {
            let id = persistent_id(task, format);
            assert_eq!((id.len(), of_persistent_id(&id)), (36, Some((task, format))));
        }
        for bad in ["", "x", task, &format!("{task}0009"), &format!("{task}00000"), "流流流流流流流流流流流"]
        {
            assert_eq!(of_persistent_id(bad), None, "{bad}");
        }
    }
}
