//! What the actions of ZEGO's cdn group have in common: whose recordings are meant, and how that vendor writes things.
//!
//! Invariant: `Data` of these actions has exactly one member, named as the vendor, and is of that vendor's own shape.

use bywash_media::StreamKey;
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
    /// `2026-01-02T03:04:05Z`.
    pub fn iso(self) -> String {
        let [year, month, day, hour, minute, second, _] = self.civil();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// `2026-01-02T03:04:05.678Z`.
    pub fn iso_ms(self) -> String {
        self.iso().replace('Z', &format!(".{:03}Z", self.civil()[6]))
    }

    /// `2026-01-02 03:04:05`.
    pub fn plain(self) -> String {
        self.iso().replace('T', " ").replace('Z', "")
    }

    /// `20260102030405`.
    pub fn digits(self) -> String {
        self.iso().replace(['-', ':', 'T', 'Z'], "")
    }

    /// Year, month, day, hour, minute, second, millisecond. The date is counted in years that begin in March, so that a
    /// leap day is the last one.
    fn civil(self) -> [i64; 7] {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        // From 0000-03-01, in eras of 400 years.
        let days = days + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (year, month) = (year + era * 400 + month / 10, (month + 2) % 12 + 1);
        [year, month, day, ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (ms, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (1_735_689_600_000, "2025-01-01T00:00:00.000Z"),
            (1_651_069_668_000, "2022-04-27T14:27:48.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Clock(ms).iso_ms(), want);
        }
        let time = Clock(1_651_069_668_000);
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
