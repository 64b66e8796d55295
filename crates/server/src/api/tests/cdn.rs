//! Calls of the cdn group: recordings, their files, merges.

use super::*;
use crate::config::{Format, Record, Vendor};
use crate::live::Recording;
use crate::store::{About, File, FileState, Job, JobState, RecordStatus};

/// What ZEGO's page on StartCDNRecord shows as the answer, a union of the vendors' shapes.
const DOCUMENTED: &str = r#"{
    "Code":0,
    "Message":"success",
    "Data":{
        "Tencent":[
            {
                "StreamName":"cdn01",
                "TaskId":"UUpTbkZUQV5WQVxrRFtDUQIUB29FWwMeAxwALBxMAggNHxw7WRUWGBVeEzoTDl0CDEoFNgIESVpXQV9rRVRCXlVKWGlFV0daVENeaFdURVNY",
                "RequestId":"70628bcd-5652-4d5c-aa04-97956a4e771a",
                "Code":"",
                "Message":""
            }
        ],
        "Ws":{
            "call_time": "2022-04-27 14:27:48",
            "http_code": 200,
            "list": [
                {
                    "http_code": 200,
                    "id": "vega_test",
                    "msg": "success",
                    "persistentId": "2020bc8b648883c64e7e81f03cf72b70b86f",
                    "task": "mp4"
                }
            ],
            "msg": null,
            "trace_id": "15ccf21b-f3c2-4ee3-aaad-d995393f80cd"
        },
        "Huawei":[
            {
                "StreamName":"hwtest",
                "RequestId":"c373b2cc8a51159d4d60e0ec543csd88",
                "Code":0,
                "Message":"success"
            }
        ]
    },
    "RequestId":"4191282558729715911"
}"#;

/// What a value looks like: its members and their types; of a list its first element.
fn shape(value: &Value) -> Value {
    match value {
        Value::String(_) => json!("text"),
        Value::Number(_) => json!("number"),
        Value::Array(all) => all.iter().take(1).map(shape).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        other => other.clone(),
    }
}

/// An app that records as everybody, Ws in two formats.
async fn recording() -> Api {
    let mut app = app(APP);
    for vendor in Vendor::ALL {
        app.record.insert(vendor.name().into(), Record::default());
    }
    Api::with(vec![app, super::app(7)], settings()).await
}

impl Api {
    async fn ends(&self, id: &str, vendor: Vendor) -> Vec<(String, i64)> {
        let mut tx = self.gateway.store.read().await.unwrap();
        let wished = tx.records_wished_of(&key(id)).await.unwrap();
        wished.into_iter().filter(|it| it.vendor == vendor).map(|it| (it.id, it.end_ms)).collect()
    }

    async fn put(&self, files: &[File]) {
        let mut tx = self.gateway.store.begin().await.unwrap();
        for file in files {
            tx.file_open(file).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    /// The FileIds that a search finds.
    async fn found(&mut self, query: &str) -> Vec<String> {
        let answer = self.next(&format!("SearchMedia {query}")).await;
        assert_eq!(answer["Code"], 0, "{query}: {answer}");
        let part = answer["Data"].as_object().unwrap().values().next().unwrap();
        let (list, name) = match part.get("Keys") {
            Some(keys) => (keys, "Key"),
            None => (&part["MediaInfoSet"], "FileId"),
        };
        list.as_array().unwrap().iter().map(|it| it[name].as_str().unwrap().to_owned()).collect()
    }
}

fn file(vendor: Vendor, stream: &str, n: i64) -> File {
    File {
        id: format!("{n}"),
        key: key(stream),
        vendor,
        record: "5f1d7a84c4a8d7de8f7e5c1a6b3f9d02".into(),
        format: Format::Mp4,
        path: format!("{APP}/{stream}/2022-04-27/142748-{}-{n}.mp4", vendor.name()),
        state: FileState::Ready,
        interrupted: false,
        begin_ms: 1_651_069_668_000,
        end_ms: 1_651_069_678_500,
        duration_ms: 10_500,
        size: 5_000_000_000,
        etag: "e1".into(),
        about: About {
            width: 1280,
            height: 720,
            frame_rate_milli: 29_970,
            video_codec: "H.264".into(),
            audio_codec: "AAC".into(),
            sample_rate: 48_000,
            channels: 2,
            bit_rate: 2_600_000,
        },
        name: stream.into(),
        created_ms: 1_651_069_668_000 + n * 1000,
        updated_ms: 1_651_069_668_000 + n * 1000,
        expire_ms: 0,
    }
}

#[tokio::test]
async fn the_documented_recording_gets_the_documented_answer() {
    let api = recording().await;
    let end = api.now.wall_ms / 1000 + 3600;
    let query = format!("StartCDNRecord&StreamId[]=cdn01&StreamId[]=cdn02&Vendor=Tencent&EndTime={end}");
    let mut answer = api.call(&query).await;
    let mut documented: Value = serde_json::from_str(DOCUMENTED).unwrap();
    documented["Data"].as_object_mut().unwrap().retain(|vendor, _| vendor == "Tencent");
    assert_eq!(shape(&answer), shape(&documented));
    assert_eq!((&answer["Code"], &answer["Message"]), (&json!(0), &json!("success")));
    let list = answer["Data"]["Tencent"].as_array_mut().unwrap();
    assert_eq!(list.len(), 2);
    for (element, id) in list.iter_mut().zip(["cdn01", "cdn02"]) {
        let task = element["TaskId"].as_str().unwrap().to_owned();
        assert_eq!(api.ends(id, Vendor::Tencent).await, [(task, end * 1000)]);
        assert_eq!(
            (&element["StreamName"], &element["Code"], &element["Message"]),
            (&json!(id), &json!(""), &json!(""))
        );
    }
    assert_eq!(api.woken(), wakes(&["cdn01", "cdn02"]), "nothing is live, and all is well");
}

#[tokio::test]
async fn each_vendor_answers_in_its_own_shape() {
    let mut documented: Value = serde_json::from_str(DOCUMENTED).unwrap();
    // Only ZEGO's text describes it.
    documented["Data"]["Aliyun"] = json!([{ "StreamName": "s", "RequestId": "", "Code": 200, "Message": "" }]);
    let mut api = recording().await;
    for vendor in ["Tencent", "Ws", "Huawei", "Aliyun"] {
        let domain = "Domain=play.example.com Point=live";
        let mut documented = documented["Data"][vendor].clone();
        let start = api.next(&format!("StartCDNRecord StreamId[]=a StreamId[]=b Vendor={vendor} {domain}")).await;
        assert_eq!(start["Data"].as_object().unwrap().keys().collect::<Vec<_>>(), [vendor]);
        assert_eq!(shape(&start["Data"][vendor]), shape(&documented), "{start}");
        let stop = api.next(&format!("StopCDNRecord StreamId[]=a StreamId[]=none Vendor={vendor} {domain}")).await;
        if let Some(element) = documented.get_mut(0).and_then(Value::as_object_mut) {
            element.remove("TaskId");
        }
        assert_eq!(shape(&stop["Data"][vendor]), shape(&documented), "{stop}");
        let stop = &stop["Data"][vendor];
        match vendor {
            "Tencent" => assert_eq!(stop[1]["Code"], "ResourceNotFound"),
            "Huawei" => assert_eq!((&stop[0]["Code"], &stop[1]["Code"]), (&json!(0), &json!(404))),
            "Aliyun" => assert_eq!((&stop[0]["Code"], &stop[1]["Code"]), (&json!(200), &json!(404))),
            _ => {
                let list = start["Data"]["Ws"]["list"].as_array().unwrap();
                let seen: Vec<_> = list.iter().map(|it| (&it["id"], &it["task"])).map(|it| format!("{it:?}")).collect();
                assert_eq!(seen.len(), 4, "one for each stream and format: {seen:?}");
                assert_eq!(stop["list"][0]["persistentId"], list[0]["persistentId"]);
                assert_eq!(
                    (&stop["list"][2]["http_code"], &stop["list"][2]["persistentId"]),
                    (&json!(404), &json!(""))
                );
            }
        }
    }
}

#[tokio::test]
async fn a_recording_asked_for_again_is_the_same_with_a_new_end() {
    let mut api = recording().await;
    let start = "StartCDNRecord StreamId=s Vendor=tencent";
    api.check(&[(start, 0)]).await;
    let first = api.ends("s", Vendor::Tencent).await;
    assert_eq!(first[0].1, api.now.wall_ms + 86_400_000, "the end of Tencent's where none is given");
    let end = api.now.wall_ms / 1000 + 600;
    api.check(&[(&format!("{start} EndTime={end}"), 0), ("StartCDNRecord StreamId=s Vendor=Ws EndTime=soon", 0)]).await;
    assert_eq!(api.ends("s", Vendor::Tencent).await, [(first[0].0.clone(), end * 1000)]);
    assert_eq!(api.ends("s", Vendor::Ws).await[0].1, 0, "only Tencent's has an end");
    api.check(&[("StopCDNRecord StreamId=s Vendor=Tencent", 0)]).await;
    assert!(api.ends("s", Vendor::Tencent).await.is_empty());
    api.check(&[(start, 0)]).await;
    assert_ne!(api.ends("s", Vendor::Tencent).await[0].0, first[0].0);
    assert_eq!(api.ends("s", Vendor::Ws).await.len(), 1);
}

#[tokio::test]
async fn a_bad_parameter_records_nothing() {
    let mut api = recording().await;
    let start = |rest: &str| format!("StartCDNRecord StreamId[]=s {rest}");
    let many = |n: usize| (0..n).map(|n| format!(" StreamId[]=s{n}")).collect::<String>();
    // A second passes before each call.
    let now = api.now.wall_ms / 1000;
    for (query, code) in [
        (start(""), 2),
        (start("Vendor="), 2),
        (start("Vendor=Akamai"), 2),
        (start("Vendor=Tencent IsTest=x"), 2),
        (start("Vendor=Tencent IsTest=true"), 2),
        ("StartCDNRecord Vendor=Tencent".into(), 2),
        (format!("StartCDNRecord Vendor=Tencent{}", many(21)), 2),
        (start("Vendor=Tencent StreamId[]=a/b"), 2),
        (start("Vendor=Tencent EndTime=soon"), 2),
        (start("Vendor=Tencent EndTime=-1"), 2),
        (start(&format!("Vendor=Tencent EndTime={now}")), 2),
        (start(&format!("Vendor=Tencent EndTime={}", i64::MAX)), 2),
        (start(&format!("Vendor=Tencent EndTime={}", now + 86_400 + 60)), 2),
        ("StopCDNRecord Vendor=Tencent".into(), 2),
        (format!("StopCDNRecord Vendor=Tencent{}", many(21)), 2),
        ("StopCDNRecord StreamId=s Vendor=x".into(), 2),
    ] {
        api.check(&[(&query, code)]).await;
    }
    assert!(api.ends("s", Vendor::Tencent).await.is_empty() && api.woken().is_empty());
    for spelling in ["StreamId[]=s StreamId[]=t", "StreamId=s StreamId=t", "StreamId.0=s StreamId.1=t", "StreamId[0]=s"]
    {
        api.check(&[(&format!("StartCDNRecord {spelling} Vendor=Tencent EndTime="), 0)]).await;
        assert_eq!(api.ends("s", Vendor::Tencent).await.len(), 1);
        api.check(&[("StopCDNRecord StreamId=s Vendor=Tencent", 0)]).await;
    }
    let end = api.now.wall_ms / 1000 + 86_401;
    api.check(&[
        (&format!("StartCDNRecord Vendor=Tencent{}", many(20)), 0),
        (&start(&format!("Vendor=Tencent EndTime={}", end + 1)), 0),
    ])
    .await;
    let id = format!("zegotest-{APP}-s");
    api.check(&[(&format!("StartCDNRecord IsTest=true Vendor=Tencent StreamId={id}"), 0)]).await;
}

#[tokio::test]
async fn a_vendor_is_one_that_the_app_records_as_and_that_has_the_action() {
    let mut api = Api::new().await;
    for action in [
        "StartCDNRecord StreamId=s",
        "StopCDNRecord StreamId=s",
        "SearchMedia",
        "DeleteMedia FileId=1",
        "MergeMedia InputFileId=1 OutputFileName=n",
        "DescribeMediaTask TaskId=1",
    ] {
        let answer = api.next(&format!("{action} Vendor=Tencent")).await;
        assert_eq!(answer["Code"], 4, "{answer}");
        assert!(answer["Message"].as_str().unwrap().contains("[app.record.Tencent]"), "{answer}");
    }
    let mut api = recording().await;
    api.check(&[
        ("SearchMedia Vendor=Aliyun", 4),
        ("DeleteMedia FileId=1 Vendor=Aliyun", 4),
        ("MergeMedia InputFileId=1 Vendor=Ws", 4),
        ("MergeMedia InputFileId=1 Vendor=Aliyun", 4),
        ("DescribeMediaTask TaskId=1 Vendor=Ws", 4),
        ("DescribeMediaTask TaskId=1 Vendor=Aliyun", 4),
        ("SearchMedia Vendor=x", 2),
        ("SearchMedia", 2),
    ])
    .await;
}

#[tokio::test]
async fn the_cdn_group_has_its_own_limit() {
    let api = recording().await;
    for action in ["StartCDNRecord", "StopCDNRecord", "SearchMedia", "DeleteMedia", "MergeMedia", "DescribeMediaTask"] {
        for _ in 0..20 {
            assert_eq!(api.call(action).await["Code"], 2, "{action}");
        }
        assert_eq!(api.call(action).await["Code"], 6, "{action}");
    }
    for _ in 0..20 {
        assert_eq!(api.call("DescribeCDNRecords").await["Code"], 0);
    }
    assert_eq!(api.call("DescribeCDNRecords").await["Code"], 30002);
}

#[tokio::test]
async fn a_file_is_told_as_tencent_tells_it() {
    let mut api = recording().await;
    let merged = File {
        record: String::new(),
        name: "all".into(),
        format: Format::Mp3,
        about: About { audio_codec: "MP3".into(), sample_rate: 44_100, bit_rate: 96_000, ..About::default() },
        expire_ms: 1_651_069_968_000,
        ..file(Vendor::Tencent, "t", 2)
    };
    api.put(&[file(Vendor::Tencent, "s", 1), merged]).await;
    let mut answer = api.next("SearchMedia Vendor=Tencent StartTime= EndTime=").await;
    let part = &mut answer["Data"]["Tencent"];
    assert_eq!((part["RequestId"].take().as_str().unwrap().len(), &part["TotalCount"]), (36, &json!(2)));
    let url = format!("https://live.example.com/media/{APP}/s/2022-04-27/142748-Tencent-1.mp4");
    assert_eq!(
        part["MediaInfoSet"][1],
        json!({
            "FileId": "1",
            "BasicInfo": {
                "Name": "s", "Description": "", "CreateTime": "2022-04-27T14:27:49Z", "UpdateTime": "2022-04-27T14:27:49Z",
                "ExpireTime": "9999-12-31T23:59:59Z", "ClassId": 0, "ClassName": "", "ClassPath": "", "CoverUrl": "",
                "Type": "mp4", "IntranetMediaUrl": "", "MediaUrl": url,
                "SourceInfo": { "SourceType": "Record", "SourceContext": "" }, "StorageRegion": "",
                "Vid": "5f1d7a84c4a8d7de8f7e5c1a6b3f9d02", "Category": "Video", "Status": "Normal", "StorageClass": "STANDARD",
            },
            "TranscodeInfo": { "TranscodeSet": [{
                "Url": url, "Definition": 0, "Bitrate": 2_600_000, "Height": 720, "Width": 1280, "Size": 5_000_000_000u64,
                "Duration": 10.5, "Md5": "", "Container": "mp4",
                "VideoStreamSet": [{
                    "Bitrate": 2_600_000, "Height": 720, "Width": 1280, "Codec": "h264", "Fps": 30, "CodecTag": "",
                    "DynamicRangeInfo": { "Type": "", "HDRType": "" },
                }],
                "AudioStreamSet": [{ "Bitrate": 0, "SamplingRate": 48_000, "Codec": "aac" }],
                "DigitalWatermarkType": "", "CopyRightWatermarkText": "",
            }]},
        })
    );
    let merged = &part["MediaInfoSet"][0];
    let basic = ["Name", "Category", "ExpireTime"].map(|name| merged["BasicInfo"][name].as_str().unwrap());
    assert_eq!(basic, ["all", "Audio", "2022-04-27T14:32:48Z"]);
    assert_eq!(merged["BasicInfo"]["SourceInfo"]["SourceType"], "VideoProcessing");
    let transcode = &merged["TranscodeInfo"]["TranscodeSet"][0];
    assert_eq!(transcode["VideoStreamSet"], json!([]));
    assert_eq!(transcode["AudioStreamSet"], json!([{ "Bitrate": 96_000, "SamplingRate": 44_100, "Codec": "mp3" }]));
}

#[tokio::test]
async fn tencents_files_are_found_by_all_that_is_asked() {
    let mut api = recording().await;
    let all: Vec<_> = (1..=9).map(|n| file(Vendor::Tencent, ["a", "ab", "b"][n as usize % 3], n)).collect();
    api.put(&all).await;
    api.put(&[
        file(Vendor::Ws, "a", 20),
        File { state: FileState::Open, ..file(Vendor::Tencent, "a", 21) },
        File { state: FileState::Deleting, ..file(Vendor::Tencent, "a", 22) },
    ])
    .await;
    for (query, want) in [
        ("", "9 8 7 6 5 4 3 2 1"),
        ("PageSize=4", "9 8 7 6"),
        ("PageSize=4 PageNumber=2", "1"),
        ("PageSize=4 PageNumber=3", ""),
        ("NamePrefix=a", "9 7 6 4 3 1"),
        ("NamePrefix=ab", "7 4 1"),
        ("NamePrefix=%25", ""),
        ("StartTime=1651069675", "9 8 7"),
        ("StartTime=1651069670 EndTime=1651069671", "3 2"),
        ("EndTime=1651069669 NamePrefix=a", "1"),
        ("StreamId[]=ab", "7 4 1"),
        ("StreamId[]=ab StreamId[]=b StreamId[]=ab", "8 7 5 4 2 1"),
        ("StreamId[]=ab StreamId[]=b PageSize=2 PageNumber=1", "5 4"),
        ("StreamId[]= FileId[]=", "9 8 7 6 5 4 3 2 1"),
        ("FileId[]=3 FileId[]=20 FileId[]=21 FileId[]=22 FileId[]=8 FileId[]=3", "8 3"),
        ("FileId[]=3 FileId[]=8 StreamId[]=b", "8"),
        ("FileId[]=3 FileId[]=8 NamePrefix=a EndTime=1651069675", "3"),
        ("Marker=x MaxKeys=0 PageSize=1", "9"),
    ] {
        assert_eq!(api.found(&format!("Vendor=Tencent {query}")).await.join(" "), want, "{query}");
    }
    let eleven = |name: &str| (0..11).map(|n| format!(" {name}[]={n}")).collect::<String>();
    for bad in [
        "NamePrefix=aaaaaaaaaaaaaaaaaaaaa".into(),
        "NamePrefix=%E6%B5%81%E6%B5%81%E6%B5%81%E6%B5%81%E6%B5%81%E6%B5%81%E6%B5%81".into(),
        "PageSize=0".into(),
        "PageSize=5001".into(),
        "PageSize=10 PageNumber=500".into(),
        "PageNumber=4294967296".into(),
        "StartTime=x".into(),
        "StartTime=2 EndTime=1".into(),
        format!("FileId[]={}", "1".repeat(41)),
        eleven("FileId"),
        eleven("StreamId"),
    ] {
        api.check(&[(&format!("SearchMedia Vendor=Tencent {bad}"), 2)]).await;
    }
    api.check(&[("SearchMedia Vendor=Tencent PageSize=10 PageNumber=499", 0)]).await;
    assert!(api.found("Vendor=Tencent IsTest=true").await.is_empty());
}

#[tokio::test]
async fn markers_lead_through_the_files_of_ws_and_huawei() {
    let mut api = recording().await;
    for vendor in [Vendor::Ws, Vendor::Huawei] {
        let all: Vec<_> = (1..=5).map(|n| file(vendor, ["a", "b"][n as usize % 2], n + 10 * vendor as i64)).collect();
        api.put(&all).await;
        let name = vendor.name();
        let mut keys: Vec<_> = all.iter().map(|file| file.path.clone()).collect();
        keys.sort();

        let (mut seen, mut marker) = (Vec::new(), String::new());
        for page in [2, 2, 1] {
            let answer = api.next(&format!("SearchMedia Vendor={name} MaxKeys=2 Marker={marker} PageSize=x")).await;
            let part = &answer["Data"][name];
            assert_eq!(part["Keys"].as_array().unwrap().len(), page);
            seen.extend(part["Keys"].as_array().unwrap().iter().map(|it| it["Key"].as_str().unwrap().to_owned()));
            marker = part["NextMarker"].as_str().unwrap().to_owned();
        }
        assert_eq!((seen, marker.as_str()), (keys.clone(), ""));
        assert_eq!(api.found(&format!("Vendor={name} MaxKeys=5")).await, keys, "a full last page has no marker");

        for (prefix, want) in [("a", 2), ("b", 3), ("c", 0), ("a/2022", 2), (&format!("{APP}/b"), 3), ("7/a", 0)] {
            assert_eq!(api.found(&format!("Vendor={name} NamePrefix={prefix}")).await.len(), want, "{prefix}");
        }
        let first =
            &api.next(&format!("SearchMedia Vendor={name} NamePrefix=a MaxKeys=1")).await["Data"][name]["Keys"][0];
        let (tag, end) = if vendor == Vendor::Huawei { ("\"e1\"", ".000Z") } else { ("e1", "Z") };
        let n = keys[0].rsplit('-').next().unwrap().trim_end_matches(".mp4").parse::<i64>().unwrap();
        let time = format!("2022-04-27T14:{:02}:{:02}{end}", 27 + (48 + n) / 60, (48 + n) % 60);
        let url = format!("https://live.example.com/media/{}", keys[0]);
        let want =
            json!({ "ETag": tag, "Key": keys[0], "LastModified": time, "Size": 5_000_000_000u64, "MediaUrl": url });
        assert_eq!(first, &want);
        for bad in ["MaxKeys=0", "MaxKeys=1001", "MaxKeys=x", "NamePrefix=aaaaaaaaaaaaaaaaaaaaa"] {
            api.check(&[(&format!("SearchMedia Vendor={name} {bad}"), 2)]).await;
        }
    }
}

#[tokio::test]
async fn what_is_deleted_is_not_found_and_the_rest_is_told() {
    let mut api = recording().await;
    api.put(&(1..=4).map(|n| file(Vendor::Tencent, "s", n)).collect::<Vec<_>>()).await;
    api.put(&[File { state: FileState::Open, ..file(Vendor::Tencent, "s", 5) }, file(Vendor::Ws, "s", 6)]).await;
    let answer = api.next("DeleteMedia Vendor=Tencent FileId[]=2 FileId[]=none FileId[]=5 FileId[]=6 FileId[]=2").await;
    assert_eq!((&answer["Code"], &answer["Data"]["Deleted"]), (&json!(0), &json!(["2"])));
    let errors = answer["Data"]["Errors"].as_array().unwrap();
    assert_eq!(errors.iter().map(|it| it["Key"].as_str().unwrap()).collect::<Vec<_>>(), ["none", "5", "6", "2"]);
    let members: Vec<_> = errors[0].as_object().unwrap().keys().collect();
    assert_eq!(members, ["Code", "Message", "Key", "RequestId"]);
    assert_eq!(errors[0]["Code"], "ResourceNotFound.FileNotExist");
    assert!(answer["Data"].get("WsItemIdReceiverResp").is_none());
    assert_eq!(api.found("Vendor=Tencent").await, ["4", "3", "1"]);

    let media = "Media.0.FileId=1 Media.1.FileId=3 Media.1.Resolution.0=360p Media.1.Resolution.1=720p";
    let answer = api.next(&format!("DeleteMedia Vendor=Tencent {media}")).await;
    assert_eq!(answer["Data"]["Deleted"], json!(["1"]));
    assert_eq!(answer["Data"]["Errors"][0]["Key"], "3", "there are no transcodes");
    assert_eq!(api.found("Vendor=Tencent").await, ["4", "3"]);

    let many = |n: usize| (0..n).map(|n| format!(" FileId[]=x{n}")).collect::<String>();
    for bad in [
        String::new(),
        "FileId[]=4 Media.0.FileId=3".into(),
        "FileId[]=4 FileId[]=".into(),
        "Media.1.FileId=3".into(),
        "Media.0.Resolution.0=360p".into(),
        "Media.0.FileId=3 Media.0.Resolution.0=1080p".into(),
        "Media.0.FileId=3 Media.0.Resolution.0=360p Media.0.Resolution.1=540p Media.0.Resolution.2=360p".into(),
        many(101),
    ] {
        api.check(&[(&format!("DeleteMedia Vendor=Tencent {bad}"), 2)]).await;
    }
    api.check(&[
        (&format!("DeleteMedia Vendor=Tencent{}", many(100)), 0),
        ("DeleteMedia Vendor=Huawei Media.0.FileId=3", 2),
        ("DeleteMedia Vendor=Ws FileId=x ClearCache=maybe", 2),
        ("DeleteMedia Vendor=Huawei FileId=x ClearCache=maybe", 0),
    ])
    .await;
    assert_eq!(api.found("Vendor=Tencent").await, ["4", "3"]);
}

#[tokio::test]
async fn what_is_deleted_is_told_as_a_text_where_the_app_wants_it() {
    let mut app = app(APP);
    app.delete_media_string = true;
    app.record.insert("Tencent".into(), Record::default());
    let mut api = Api::with(vec![app], settings()).await;
    api.put(&[file(Vendor::Tencent, "s", 1)]).await;
    let answer = api.next("DeleteMedia Vendor=Tencent FileId[]=1").await;
    assert_eq!(answer["Data"], json!(r#"{"Deleted":["1"],"Errors":[]}"#));
}

#[tokio::test]
async fn a_file_of_ws_goes_by_its_key_its_id_or_the_persistent_id_of_its_recording() {
    let mut api = recording().await;
    let start = api.next("StartCDNRecord StreamId=s Vendor=Ws").await;
    let list = start["Data"]["Ws"]["list"].as_array().unwrap().clone();
    let mp4 = list.iter().find(|it| it["task"] == "mp4").unwrap()["persistentId"].as_str().unwrap().to_owned();
    let record = api.ends("s", Vendor::Ws).await[0].0.clone();
    let of = |n, format| File { record: record.clone(), format, ..file(Vendor::Ws, "s", n) };
    api.put(&[of(1, Format::Mp4), of(2, Format::Mp4), of(3, Format::M3u8), of(4, Format::Mp4), of(5, Format::M3u8)])
        .await;
    let key = file(Vendor::Ws, "s", 4).path;
    let delete =
        format!("DeleteMedia Vendor=Ws ClearCache=True FileId[]=/{key} FileId[]={mp4} FileId[]=5 FileId[]={mp4}");
    let answer = api.next(&delete).await;
    let part = &answer["Data"];
    assert_eq!(part["Deleted"], json!([format!("/{key}"), mp4, "5"]));
    assert_eq!((&part["Errors"][0]["Code"], &part["Errors"][0]["Key"]), (&json!("NoSuchKey"), &json!(mp4)));
    assert_eq!(part["WsItemIdReceiverResp"], json!({ "Code": 1, "Message": "handle success" }));
    assert_eq!(api.found("Vendor=Ws").await, [file(Vendor::Ws, "s", 3).path]);
    let answer = api.next("DeleteMedia Vendor=Ws FileId[]=3").await;
    assert_eq!(answer["Data"]["WsItemIdReceiverResp"], json!({ "Code": 0, "Message": "" }));
}

#[tokio::test]
async fn a_merge_is_a_job_that_can_be_followed() {
    let mut api = recording().await;
    for vendor in [Vendor::Tencent, Vendor::Huawei] {
        api.put(&(1..=3).map(|n| file(vendor, "s", n + 10 * vendor as i64)).collect::<Vec<_>>()).await;
    }
    let merge = "MergeMedia Vendor=Tencent Format=mp3 Type=1 OutputFileName=show.MP3 ExpireTime=2 \
                 HandleMediaArgs.0.FileId=3 HandleMediaArgs.0.StartTime=1.5 HandleMediaArgs.0.EndTime=2.25 HandleMediaArgs.1.FileId=1";
    let answer = api.next(merge).await;
    let task = answer["Data"]["Tencent"]["TaskId"].as_str().unwrap().to_owned();
    assert!(task.starts_with(&format!("{APP}-EditMedia-")) && task.ends_with("tt0"), "{answer}");
    let job = async |api: &Api, id: &str| {
        let mut tx = api.gateway.store.read().await.unwrap();
        tx.job(APP, Environment::Production, id).await.unwrap().unwrap()
    };
    let mut known = job(&api, &task).await;
    let part = |file: &str, begin_ms, end_ms| store::Part { file: file.into(), begin_ms, end_ms };
    let want = store::Merge {
        format: Format::Mp3,
        parts: vec![part("3", 1500, Some(2250)), part("1", 0, None)],
        name: "show".into(),
        expire_ms: api.now.wall_ms + 7_200_000,
    };
    assert_eq!((&known.request, known.state, known.vendor), (&want, JobState::Waiting, Vendor::Tencent));

    let key = file(Vendor::Huawei, "s", 22).path;
    let answer =
        api.next(&format!("MergeMedia Vendor=Huawei InputFileId[]=21 InputFileId[]=/{key} ExpireTime=x")).await;
    let other = answer["Data"]["Huawei"]["TaskId"].as_str().unwrap().to_owned();
    assert!(other.bytes().all(|c| c.is_ascii_digit()), "{answer}");
    let request = job(&api, &other).await.request;
    assert_eq!((request.format, request.name.as_str(), request.expire_ms), (Format::Mp4, "s", 0));
    assert_eq!(request.parts, [part("21", 0, None), part("22", 0, None)]);

    let describe = async |api: &mut Api, vendor: &str, id: &str| {
        let answer = api.next(&format!("DescribeMediaTask Vendor={vendor} TaskId={id}")).await;
        (answer["Code"].clone(), answer["Data"][vendor].clone())
    };
    let told = |part: &mut Value| part["RequestId"].take().as_str().unwrap().len();
    let (_, mut part) = describe(&mut api, "Tencent", &task).await;
    assert_eq!(told(&mut part), 36);
    let want = json!({
        "TaskId": task, "Event": "compose", "Status": "WAITING", "FileId": "", "ReplayUrl": "", "RequestId": null,
        "Message": "", "ThumbnailsUrl": [], "Progress": 0,
    });
    assert_eq!(part, want);
    known = Job { state: JobState::Processing, progress: 40, ..known };
    let mut tx = api.gateway.store.begin().await.unwrap();
    assert!(tx.job_note(&known).await.unwrap());
    tx.commit().await.unwrap();
    let (_, part) = describe(&mut api, "Tencent", &task).await;
    assert_eq!((&part["Status"], &part["Progress"]), (&json!("PROCESSING"), &json!(40)));
    known = Job { state: JobState::Finished, progress: 100, file: "2".into(), ..known };
    let mut failed =
        Job { state: JobState::Failed, message: "why".into(), ended_ms: 1_731_912_871_000, ..job(&api, &other).await };
    failed.created_ms = 0;
    let mut tx = api.gateway.store.begin().await.unwrap();
    assert!(tx.job_note(&known).await.unwrap() && tx.job_note(&failed).await.unwrap());
    tx.commit().await.unwrap();
    let (_, part) = describe(&mut api, "Tencent", &task).await;
    let url = format!("https://live.example.com/media/{}", file(Vendor::Tencent, "s", 2).path);
    assert_eq!((&part["Status"], &part["FileId"], &part["ReplayUrl"]), (&json!("FINISH"), &json!("2"), &json!(url)));
    let (_, part) = describe(&mut api, "Huawei", &other).await;
    assert_eq!((&part["Status"], &part["EndTime"]), (&json!("FAILED"), &json!("20241118065431")));
    assert_eq!(part["CreateTime"].as_str().unwrap().len(), 14);

    assert_eq!(describe(&mut api, "Tencent", &other).await.0, 1000, "a task is the vendor's");
    assert_eq!(describe(&mut api, "Tencent", "x").await.0, 1000);
    assert_eq!(describe(&mut api, "Huawei", &task).await.1["Status"], "NO_TASK");
    api.check(&[("DescribeMediaTask Vendor=Tencent", 2)]).await;
}

#[tokio::test]
async fn a_merge_of_what_cannot_be_is_refused() {
    let mut api = recording().await;
    api.put(&[file(Vendor::Tencent, "s", 1), File { state: FileState::Open, ..file(Vendor::Tencent, "s", 2) }]).await;
    let inputs = |n: usize| " InputFileId[]=1".repeat(n);
    let pieces = |n: usize| (0..n).map(|n| format!(" HandleMediaArgs.{n}.FileId=1")).collect::<String>();
    let long = "n".repeat(65);
    for (query, code) in [
        (format!("OutputFileName=n{}", inputs(1)), 0),
        (format!("OutputFileName=n Type=0 Format=M3U8{}", inputs(10)), 0),
        (format!("OutputFileName=n Type=1{}", pieces(10)), 0),
        ("OutputFileName=n".into(), 2),
        (format!("OutputFileName=n{}", inputs(11)), 2),
        (format!("OutputFileName=n Type=1{}", pieces(11)), 2),
        ("OutputFileName=n Type=1 HandleMediaArgs.1.FileId=1".into(), 2),
        (format!("OutputFileName=n Type=1 HandleMediaArgs.0.StartTime=2{}", inputs(1)), 2),
        (format!("OutputFileName=n Type=1 HandleMediaArgs.0.StartTime=2 HandleMediaArgs.0.EndTime=2{}", pieces(1)), 2),
        (format!("OutputFileName=n Type=1 HandleMediaArgs.0.StartTime=-1{}", pieces(1)), 2),
        (format!("OutputFileName=n Type=1 HandleMediaArgs.0.StartTime=NaN{}", pieces(1)), 2),
        (format!("OutputFileName=n Type=2{}", inputs(1)), 2),
        (format!("OutputFileName=n Format=FLV{}", inputs(1)), 2),
        (format!("OutputFileName=n ExpireTime=-1{}", inputs(1)), 2),
        (format!("OutputFileName={long}{}", inputs(1)), 2),
        (format!("OutputFileName=a%0Ab{}", inputs(1)), 2),
        (inputs(1), 2),
        ("OutputFileName=n InputFileId[]=1 InputFileId[]=3".into(), 41003),
        ("OutputFileName=n InputFileId[]=2".into(), 41003),
        (format!("Vendor=Huawei{}", inputs(20)), 41003),
        (format!("Vendor=Huawei{}", inputs(21)), 2),
        (format!("Vendor=Huawei Format=MP3{}", inputs(1)), 2),
        (format!("Vendor=Huawei Type=1{}", pieces(1)), 2),
    ] {
        let vendor = if query.contains("Vendor") { "" } else { "Vendor=Tencent" };
        api.check(&[(&format!("MergeMedia {vendor} {query}"), code)]).await;
    }
    let mut tx = api.gateway.store.read().await.unwrap();
    assert_eq!(tx.jobs_count(APP).await.unwrap(), 3);
}

#[tokio::test]
async fn recordings_are_described() {
    let mut api = recording().await;
    api.check(&[
        ("StartCDNRecord StreamId=a Vendor=Huawei", 0),
        ("StartCDNRecord StreamId=a Vendor=Ws", 0),
        ("StartCDNRecord StreamId=b Vendor=Ws", 0),
        ("StopCDNRecord StreamId=b Vendor=Ws", 0),
    ])
    .await;
    let stopped_ms = api.now.wall_ms;
    let record = api.ends("a", Vendor::Huawei).await[0].0.clone();
    let of = |n, state| File { record: record.clone(), state, ..file(Vendor::Huawei, "a", n) };
    api.put(&[of(1, FileState::Ready), of(2, FileState::Ready), of(3, FileState::Open), of(4, FileState::Deleting)])
        .await;
    let status = RecordStatus {
        state: store::RecordState::Paused,
        reason: "the disk is full".into(),
        state_ms: 5,
        begun_ms: 3,
        last_error: "no space".into(),
    };
    let mut tx = api.gateway.store.begin().await.unwrap();
    tx.record_note(&record, &status).await.unwrap();
    tx.commit().await.unwrap();

    let all = api.next("DescribeCDNRecords").await;
    assert_eq!((&all["Message"], &all["Data"]["Total"]), (&json!("ok"), &json!(3)));
    let tasks = &all["Data"]["Tasks"];
    assert_eq!(
        tasks[2],
        json!({
            "TaskId": record, "StreamId": "a", "Vendor": "Huawei", "State": "paused", "Reason": "the disk is full",
            "StartTime": 3, "EndTime": 0, "Formats": ["mp4", "m3u8"],
            "Files": [file(Vendor::Huawei, "a", 1).path, file(Vendor::Huawei, "a", 2).path], "LastError": "no space",
        })
    );
    assert_eq!((&tasks[1]["State"], &tasks[0]["State"]), (&json!("waiting"), &json!("ended")));
    assert_eq!(tasks[0]["EndTime"], stopped_ms);
    for (query, want) in [
        ("StreamId=a", 2),
        ("Vendor=ws", 2),
        ("StreamId=a Vendor=Ws", 1),
        ("StreamId=c", 0),
        ("IsTest=true", 0),
        ("PageSize=2 PageNumber=1", 3),
    ] {
        let answer = api.next(&format!("DescribeCDNRecords {query}")).await;
        assert_eq!(answer["Data"]["Total"], want, "{query}: {answer}");
    }
    api.check(&[
        ("DescribeCDNRecords Vendor=x", 5005),
        ("DescribeCDNRecords StreamId=/", 30009),
        ("DescribeCDNRecords PageSize=0", 5005),
    ])
    .await;

    // The row is behind of what this task's recordings have told; a newer one has not told yet.
    for (number, state, state_ms) in
        [(1, store::RecordState::Paused, 5), (2, store::RecordState::Recording, 6), (3, store::RecordState::Waiting, 0)]
    {
        let status = RecordStatus { state, state_ms, ..RecordStatus::default() };
        let recording = Recording { task: record.clone(), status: Mutex::new(status), ..Recording::default() };
        api.gateway.live.recording_started(number, key("a"), Arc::new(recording));
    }
    let task = &api.next("DescribeCDNRecords StreamId=a Vendor=Huawei").await["Data"]["Tasks"][0];
    assert_eq!((&task["State"], &task["Reason"], &task["StartTime"]), (&json!("recording"), &json!(""), &json!(3)));
}
