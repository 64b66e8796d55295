//! Recordings as a customer's backend asks for them; nothing is live here.

use bywash_testkit::server::APP;
use bywash_testkit::{Server, Setup};

const RECORD: &str = "[app.record.Tencent]\n[app.record.Ws]\nformats = [\"flv\"]\n";

/// TaskId and State of all recordings, the newest first.
fn tasks(server: &Server) -> Vec<(String, String)> {
    let all = server.ok("DescribeCDNRecords", &[]);
    let text = |task: &serde_json::Value, name: &str| task[name].as_str().expect("a text").to_owned();
    all["Tasks"].as_array().expect("a list").iter().map(|it| (text(it, "TaskId"), text(it, "State"))).collect()
}

#[test]
fn a_recording_waits_for_its_stream_through_kill_9() {
    let server = Server::start(Setup::app(RECORD));
    let start = [("StreamId[]", "cdn01"), ("StreamId[]", "cdn02"), ("Vendor", "Tencent")];
    let first = server.ok("StartCDNRecord", &start);
    let task = first["Tencent"][1]["TaskId"].as_str().expect("a TaskId").to_owned();
    let server = server.kill_9_and_start();
    let again = server.ok("StartCDNRecord", &start);
    assert_eq!(again["Tencent"][1]["TaskId"], task.as_str(), "it is the same recording");
    assert!(tasks(&server).contains(&(task.clone(), "waiting".into())));

    let stop = server.ok("StopCDNRecord", &start);
    assert_eq!(stop["Tencent"][1]["Code"], "");
    let server = server.kill_9_and_start();
    assert!(tasks(&server).contains(&(task, "ended".into())));
    let stop = server.ok("StopCDNRecord", &start);
    assert_eq!(stop["Tencent"][0]["Code"], "ResourceNotFound");
}

#[test]
fn only_the_apps_own_vendors_record() {
    let server = Server::start(Setup::app(RECORD));
    let start = |vendor| server.call("StartCDNRecord", &[("StreamId", "s"), ("Vendor", vendor)])["Code"].clone();
    assert_eq!([start("Tencent"), start("ws"), start("Huawei"), start("Aliyun"), start("Akamai")], [0, 0, 4, 4, 2]);
    let search = server.ok("SearchMedia", &[("Vendor", "Ws")]);
    assert_eq!(search, serde_json::json!({ "Ws": { "NextMarker": "", "Keys": [] } }));
    let gone = server.ok("DeleteMedia", &[("Vendor", "Tencent"), ("FileId", "1")]);
    assert_eq!(gone["Errors"][0]["Key"], "1");
    let merge = [("Vendor", "Tencent"), ("InputFileId", "1"), ("OutputFileName", "n")];
    assert_eq!(server.call("MergeMedia", &merge)["Code"], 41003);
}

#[test]
fn a_get_may_name_as_many_of_the_longest_keys_as_a_call_takes() {
    let server = Server::start(Setup::app("[app.record.Huawei]\n"));
    let stream = "s".repeat(256);
    let keys: Vec<_> = (0..100).map(|n| format!("{APP}/{stream}/2026-01-02/010203-5f1d7a84c4a8-{n}.mp4")).collect();
    let named = keys.iter().map(|key| ("FileId[]", key.as_str()));
    let gone = server.ok("DeleteMedia", &Vec::from_iter([("Vendor", "Huawei")].into_iter().chain(named)));
    assert_eq!(gone["Errors"].as_array().map(Vec::len), Some(100));
}
