//! Whole calls: the router on a real store, as a customer's backend sees it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bywash_media::{Codec, Format, Track, Tracks};
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::config;
use crate::live::{Meter, Publisher, Relay, Stream};
use crate::secret::Secret;
use crate::store::{Callback, Delivery, Origin, Reason, Session, State, Status};

mod cdn;

const APP: u32 = 1234567890;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A gateway on a store of its own; what it woke is kept. Its clock stands until it is moved.
struct Api {
    gateway: Arc<Gateway>,
    woken: Arc<Mutex<Vec<Wake>>>,
    now: Now,
    sequence: i64,
    folder: PathBuf,
}

impl Drop for Api {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn app(id: u32) -> App {
    App {
        id,
        server_secret: Secret::new(SECRET),
        callback_secret: Secret::new("secret"),
        environment: config::Environment::Both,
        publish_auth: config::PublishAuth::None,
        publish_key: Secret::default(),
        play_key: Secret::default(),
        callback: config::Callback::default(),
        cdn: config::Cdn::default(),
        record: Default::default(),
        clear_whole_app: false,
        delete_media_string: false,
        stream_history: None,
    }
}

fn settings() -> Settings {
    Settings {
        urls: Urls { public_url: "https://live.example.com".into(), ttl: None },
        rtmp_listen: "0.0.0.0:1935".parse().unwrap(),
        allow_private_targets: false,
        own_addresses: vec!["0.0.0.0:1935".parse().unwrap(), "203.0.113.7:1935".parse().unwrap()],
    }
}

impl Api {
    async fn new() -> Api {
        Api::with(vec![app(APP)], settings()).await
    }

    async fn with(apps: Vec<App>, settings: Settings) -> Api {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("bywash-api-{}-{n}", std::process::id()));
        let store = Store::open(&config::Store { url: "sqlite".into() }, &folder).await.unwrap();
        let woken = Arc::new(Mutex::new(Vec::new()));
        let wake = {
            let woken = woken.clone();
            Arc::new(move |wake| woken.lock().unwrap().push(wake))
        };
        let gateway = Gateway::new(
            Arc::new(Apps::new(apps)),
            store,
            Arc::default(),
            wake,
            Arc::new(ArcSwap::from_pointee(settings)),
            Counter::default(),
        );
        Api { gateway: Arc::new(gateway), woken, now: Now::read(), sequence: 0, folder }
    }

    fn passes(&mut self, time: Duration) {
        self.now.wall_ms += time.as_millis() as i64;
        self.now.instant += time;
    }

    /// The signed path of a call. Spaces in `query` part parameters.
    fn signed(&self, query: &str) -> String {
        let timestamp = self.now.wall_ms / 1000;
        let signature = guard::signature(&APP.to_string(), "c1b2", &Secret::new(SECRET), &timestamp.to_string());
        let query = query.replace(' ', "&");
        format!(
            "/?Action={query}&AppId={APP}&SignatureNonce=c1b2&Timestamp={timestamp}&Signature={signature}&SignatureVersion=2.0"
        )
    }

    async fn send(&self, request: Request) -> Value {
        let response = self.gateway.answer(request, self.now).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        self.send(Request::get(path).header(HOST, "h").body(Body::empty()).unwrap()).await
    }

    async fn post(&self, query: &str, body: impl Into<Body>) -> Value {
        self.send(Request::post(self.signed(query)).header(HOST, "h").body(body.into()).unwrap()).await
    }

    /// A signed call by GET.
    async fn call(&self, query: &str) -> Value {
        self.get(&self.signed(query)).await
    }

    /// A signed call with the next Sequence, after a second, so that no limit is met.
    async fn next(&mut self, query: &str) -> Value {
        self.sequence += 1;
        self.passes(Duration::from_secs(1));
        self.call(&format!("{query} Sequence={}", self.sequence)).await
    }

    /// Makes calls one after the other; each line is a query and the code it must get.
    async fn check(&mut self, calls: &[(&str, u64)]) {
        for (query, code) in calls {
            let answer = self.next(query).await;
            assert_eq!(answer["Code"], *code, "{query}: {answer}");
        }
    }

    async fn addresses(&self, id: &str) -> Vec<String> {
        let mut tx = self.gateway.store.read().await.unwrap();
        let rules = tx.rules_of(&key(id)).await.unwrap();
        rules.into_iter().map(|rule| rule.url.expose().to_owned()).collect()
    }

    async fn forbidden(&self, id: &str) -> bool {
        self.gateway.store.read().await.unwrap().forbidden(&key(id)).await.unwrap()
    }

    fn woken(&self) -> Vec<Wake> {
        std::mem::take(&mut self.woken.lock().unwrap())
    }
}

fn key(id: &str) -> StreamKey {
    StreamKey::published(APP, id).unwrap()
}

fn wakes(ids: &[&str]) -> Vec<Wake> {
    ids.iter().map(|id| Wake::Stream(key(id))).collect()
}

#[test]
fn the_table_is_alphabetic() {
    assert!(ACTIONS.is_sorted_by(|a, b| a.name < b.name));
}

#[test]
fn the_signature_is_zegos() {
    let secret = Secret::new(SECRET);
    let got = guard::signature("1234567890", "c1b2a3d4e5f60718", &secret, "1700000000");
    assert_eq!(got, "19bb93a8bac88beacf1bd7b5df7e1bf6");
}

/// ZEGO's own example, only signed and pointed at this server.
#[tokio::test]
async fn the_documented_request_gets_the_documented_answer() {
    let api = Api::new().await;
    let url = api.signed(
        "CreatCDNTransferRule&StreamId=rtc01&CDNUrl=rtmp%3A%2F%2Fwsdemo.zego.im%2Flivestream%2Frtc01&Sequence=1617249600001",
    );
    let request = Request::get(url).header(HOST, "rtc-api.zego.im").body(Body::empty()).unwrap();
    let response = api.gateway.clone().router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let text = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let id = text.strip_prefix(r#"{"Code":0,"Message":"ok","RequestId":""#);
    let id = id.and_then(|rest| rest.strip_suffix(r#"","Data":null}"#)).unwrap_or_else(|| panic!("{text}"));
    assert!(id.parse::<i64>().unwrap() > 0 && !id.starts_with('+'));
    assert_eq!(api.addresses("rtc01").await, ["rtmp://wsdemo.zego.im/livestream/rtc01"]);
    assert_eq!(api.woken(), wakes(&["rtc01"]));
}

#[tokio::test]
async fn a_query_may_follow_the_host_at_once() {
    let api = Api::new().await;
    let path = api.signed("DescribeStreams");
    let request = Request::get(format!("http://h{}", &path[1..])).header(HOST, "h").body(Body::empty()).unwrap();
    let response = api.gateway.clone().router().oneshot(request).await.unwrap();
    let text = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    assert!(text.starts_with(br#"{"Code":0,"#), "{text:?}");
}

/// The first thing wrong is told; everything after it in the list may be wrong too.
#[tokio::test]
async fn the_gateway_checks_in_its_order() {
    let mut other = app(7);
    other.environment = config::Environment::Test;
    let mut third = app(8);
    third.environment = config::Environment::Production;
    let api = Api::with(vec![app(APP), other, third], settings()).await;
    let now = api.now.wall_ms / 1000;
    // Repairs, one a row, of a call that has everything wrong; the code is that of what is still wrong.
    let steps: [(&str, String, u64); 14] = [
        ("", String::new(), 100000006),
        ("Action", "No".into(), 100000001),
        ("AppId", "4294967296".into(), 100000001),
        ("AppId", "+9".into(), 100000001),
        ("AppId", "9".into(), 100000002),
        ("Timestamp", "soon".into(), 100000003),
        ("Timestamp", (now - 601).to_string(), 100000008),
        ("SignatureNonce", "n".into(), 100000009),
        ("Signature", "x".into(), 100000013),
        ("SignatureVersion", "1.0".into(), 100000014),
        ("SignatureVersion", "2.0".into(), 100000007),
        ("Action", "CreatCDNTransferRule".into(), 100000010),
        ("AppId", "7".into(), 100000004),
        ("Timestamp", (now + 601).to_string(), 100000004),
    ];
    let mut query = std::collections::BTreeMap::from([("IsTest", "x".to_owned()), ("StreamId", "/".to_owned())]);
    let path = |query: &std::collections::BTreeMap<&str, String>| {
        let mut text = form_urlencoded::Serializer::new(String::from("/?"));
        text.extend_pairs(query).finish()
    };
    for (name, value, code) in steps {
        if !name.is_empty() {
            query.insert(name, value);
        }
        assert_eq!(api.get(&path(&query)).await["Code"], code, "{query:?}");
        let no_host = api.send(Request::get(path(&query)).body(Body::empty()).unwrap()).await;
        assert_eq!(no_host["Code"], 100000000);
    }
    for at in [now - 600, now + 600] {
        query.insert("Timestamp", at.to_string());
        query.insert("Signature", "x".into());
        assert_eq!(api.get(&path(&query)).await["Code"], 100000005);
        query.insert("Signature", guard::signature("7", "n", &Secret::new(SECRET), &at.to_string()));
        query.insert("IsTest", "x".into());
        assert_eq!(api.get(&path(&query)).await["Code"], 30004);
        query.insert("IsTest", "False".into());
        assert_eq!(api.get(&path(&query)).await["Code"], 100000016);
        query.insert("IsTest", "TRUE".into());
        assert_eq!(api.get(&path(&query)).await["Code"], 30009);
    }
    query.insert("AppId", "8".into());
    query.insert("Signature", guard::signature("8", "n", &Secret::new(SECRET), &query["Timestamp"]));
    assert_eq!(api.get(&path(&query)).await["Code"], 100000016);
    query.remove("IsTest");
    assert_eq!(api.get(&path(&query)).await["Code"], 30009);
    assert!(api.woken().is_empty());
}

#[tokio::test]
async fn a_host_that_is_none_is_refused() {
    let api = Api::new().await;
    for (hosts, code) in [
        (vec!["h"], 0),
        (vec!["h:8080"], 0),
        (vec!["[::1]:8080"], 0),
        (vec![], 100000000),
        (vec![""], 100000000),
        (vec!["a b"], 100000000),
        (vec!["u@h"], 100000000),
        (vec!["h/p"], 100000000),
        (vec![":80"], 100000000),
        (vec!["h:x"], 100000000),
        (vec!["h:65536"], 100000000),
        (vec!["u:1@h:2"], 100000000),
        (vec!["h", "h"], 100000000),
    ] {
        let mut request = Request::get(api.signed("DescribeStreams"));
        for host in &hosts {
            request = request.header(HOST, *host);
        }
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer["Code"], code, "{hosts:?}");
    }
}

#[tokio::test]
async fn a_post_takes_its_parameters_from_a_json_object() {
    let mut api = Api::new().await;
    let create = "CreatCDNTransferRule";
    let rule = |n: i64| json!({"StreamId": "s", "CDNUrl": "rtmp://h/a/s", "Sequence": n, "Unknown": [{}]}).to_string();
    assert_eq!(api.post(create, rule(1)).await["Code"], 0);
    assert_eq!(api.post("CreatCDNTransferRule StreamId=/", rule(2)).await["Code"], 0, "the body counts");
    let in_query = "CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/s Sequence=3";
    assert_eq!(api.post(in_query, "").await["Code"], 0);
    assert_eq!(api.post(in_query, r#"{"AppId":"1","Action":"x","IsTest":"x"}"#).await["Code"], 0, "only the query");
    api.passes(Duration::from_secs(1));
    for bad in ["[]", "{", "1", "StreamId=s"] {
        assert_eq!(api.post(create, bad).await["Code"], 5005, "{bad}");
    }
    assert_eq!(api.post("ForbidRTCStream", "[]").await["Code"], 30003);
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(BODY_MAX));
    assert_eq!(api.post(create, large).await["Message"], "the body is larger than 1 MiB or broke off");
}

#[tokio::test]
async fn as_many_calls_a_second_as_the_limit_and_not_one_more() {
    for (query, action, limit, code) in [
        ("CreatCDNTransferRule", "CreatCDNTransferRule", 10, 30002),
        ("CreatCDNTransferRule IsTest=true", "CreatCDNTransferRule", 5, 30002),
        ("ForbidRTCStreams", "ForbidRTCStreams", 20, 30002),
        ("DescribeRTCStreamState", "DescribeRTCStreamState", 40, 30002),
        ("DescribeRTCStreamState IsTest=true", "DescribeRTCStreamState", 10, 30002),
        ("DescribeStreams IsTest=true", "DescribeStreams", 20, 30002),
    ] {
        let mut api = Api::with(vec![app(APP), app(7)], settings()).await;
        for n in 0..limit {
            assert_ne!(api.call(query).await["Code"], code, "{action} {n}");
        }
        assert_eq!(api.call(query).await["Code"], code, "{action}");
        assert_ne!(api.call("DeleteCDNTransferRule").await["Code"], code, "each action for itself");
        let other = if query.contains("IsTest") { action.to_owned() } else { format!("{query} IsTest=true") };
        assert_ne!(api.call(&other).await["Code"], code, "each environment for itself");
        api.passes(Duration::from_millis(999));
        assert_eq!(api.call(query).await["Code"], code, "{action}");
        api.passes(Duration::from_millis(1));
        assert_ne!(api.call(query).await["Code"], code, "{action}");
    }
}

/// In any window of a second, wherever it begins.
#[test]
fn the_limit_holds_for_a_second_that_slides() {
    let (limits, row, begin) = (guard::Limits::default(), row_of("CreatCDNTransferRule").unwrap(), Instant::now());
    let mut admitted = Vec::new();
    for ms in (0..5000).step_by(37) {
        if limits.admit(1, Environment::Test, row, begin + Duration::from_millis(ms)).is_ok() {
            admitted.push(ms);
        }
        assert!(limits.admit(2, Environment::Test, row, begin + Duration::from_millis(ms * 200)).is_ok());
    }
    assert!(admitted.windows(6).all(|window| window[5] - window[0] >= 1000), "{admitted:?}");
    assert!(admitted.len() >= 24, "{admitted:?}");
}

#[tokio::test]
async fn a_sequence_goes_up_for_ten_seconds() {
    let mut api = Api::new().await;
    let create = "CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/";
    let table: &[(u64, String, u64)] = &[
        (0, format!("{create}1 Sequence=100"), 0),
        (0, format!("{create}1 Sequence=100"), 0),
        (0, format!("{create}2 Sequence=100"), 5005),
        (0, format!("{create}2 Sequence=99"), 5005),
        (0, "ClearCDNTransferRule StreamId=s Sequence=99".into(), 5005),
        (0, "ClearCDNTransferRule StreamId=other Sequence=99".into(), 0),
        (0, format!("{create}2 Sequence=abc"), 5005),
        (0, format!("{create}2 Sequence="), 5005),
        (0, format!("{create}2"), 5005),
        // The other family and the other environment have orders of their own.
        (0, "ForbidRTCStream StreamId=s Sequence=5".into(), 0),
        (0, "ResumeRTCStream StreamId=s Sequence=5".into(), 30003),
        (0, "ForbidRTCStreams StreamId=s StreamId=t Sequence=4".into(), 30003),
        (0, "ForbidRTCStreams StreamId=s StreamId=t Sequence=6".into(), 0),
        (0, "ResumeRTCStream StreamId=t Sequence=5".into(), 30003),
        (0, "ResumeRTCStream StreamId=t Sequence=7".into(), 0),
        (0, "ForbidRTCStreams StreamId[]=s StreamId[]=t Sequence=6".into(), 0),
        (0, "ForbidRTCStream StreamId=s Sequence=abc".into(), 30003),
        (0, format!("CreatCDNTransferRule IsTest=true StreamId=zegotest-{APP}-s CDNUrl=rtmp://h/a/1 Sequence=1"), 0),
        (2000, format!("{create}2 Sequence=101"), 0),
        (9999, format!("{create}2 Sequence=50"), 5005),
        (1, format!("{create}2 Sequence=50"), 0),
    ];
    for (ms, query, code) in table {
        api.passes(Duration::from_millis(*ms));
        let answer = api.call(query).await;
        assert_eq!(answer["Code"], *code, "{query}: {answer}");
    }
    assert_eq!(api.call("ForbidRTCStream StreamId=s Sequence=x").await["Message"], "sequence out of order");
    assert_eq!(api.addresses("s").await.len(), 2);
    assert!(!api.forbidden("t").await, "a late copy of the call that forbade it has not come after its resume");
}

#[tokio::test]
async fn a_refused_call_takes_no_sequence() {
    let api = Api::new().await;
    let create = |url: &str| format!("CreatCDNTransferRule StreamId=s Sequence=9 CDNUrl={url}");
    assert_eq!(api.call(&create("rtmp://127.0.0.1/a/s")).await["Code"], 30001);
    assert_eq!(api.call(&create("rtmp://h/a/s")).await["Code"], 0);
}

#[tokio::test]
async fn a_network_retry_is_answered_but_not_carried_out_again() {
    let api = Api::new().await;
    let create = "CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/s Sequence=1";
    let first = api.call(create).await;
    api.gateway.store.begin().await.unwrap().commit().await.unwrap();
    let mut tx = api.gateway.store.begin().await.unwrap();
    tx.rule_delete(&key("s"), "rtmp://h/a/s").await.unwrap();
    tx.commit().await.unwrap();
    let again = api
        .post("CreatCDNTransferRule", json!({"Sequence": "1", "StreamId": "s", "CDNUrl": "rtmp://h/a/s"}).to_string())
        .await;
    assert_eq!(
        (&first["Code"], &first["Message"], &first["Data"]),
        (&again["Code"], &again["Message"], &again["Data"])
    );
    assert_ne!(first["RequestId"], again["RequestId"]);
    assert!(api.addresses("s").await.is_empty());
    assert_eq!(api.woken(), wakes(&["s"]));
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_no_change_without_a_wake() {
    let mut api = Api::new().await;
    for n in 0..40 {
        api.passes(Duration::from_secs(1));
        let id = format!("s{n}");
        let path = api.signed(&format!("CreatCDNTransferRule StreamId={id} CDNUrl=rtmp://h/a/s Sequence=1"));
        let request = Request::get(path).header(HOST, "h").body(Body::empty()).unwrap();
        tokio::time::timeout(Duration::from_micros(50 * n), api.gateway.answer(request, api.now)).await.ok();
        // The next change begins when the one before has ended.
        drop(api.gateway.store.begin().await.unwrap());
        let changes = api.addresses(&id).await.len();
        let woken = async {
            while api.woken.lock().unwrap().len() < changes {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), woken).await.expect("a wake for the change");
        assert_eq!(api.woken().len(), changes, "{n}");
    }
}

#[tokio::test]
async fn a_rule_needs_an_address_that_may_be_pushed_to() {
    let create = "CreatCDNTransferRule StreamId=s";
    let mut api = Api::new().await;
    let own = |host: &str| format!("{create} CDNUrl=rtmp://{host}/{APP}/s");
    let refused = [
        create.to_owned(),
        format!("{create} CDNUrl=http://h/a/s"),
        format!("{create} CDNUrl=rtmp://h/a"),
        format!("{create} CDNUrl=rtmp://127.0.0.1/a/s"),
        format!("{create} CDNUrl=rtmp://10.0.0.1:1936/a/s"),
        format!("{create} CDNUrl=rtmp://[::1]/a/s"),
        format!("{create} CDNUrl=rtmps://169.254.169.254/a/s"),
        own("203.0.113.7"),
        own("203.0.113.7:1935"),
        own("live.example.com"),
        own("localhost"),
    ];
    for query in &refused {
        api.check(&[(query, 30001)]).await;
    }
    let private = api.next(&format!("{create} CDNUrl=rtmp://10.0.0.1/a/s")).await;
    assert!(private["Message"].as_str().unwrap().contains("relay.allow_private_targets"), "{private}");
    assert!(api.woken().is_empty());
    for query in
        [own("203.0.113.7:1936"), own("other.example.com"), format!("{create} CDNUrl=rtmp://203.0.113.7/{APP}/t")]
    {
        api.check(&[(&query, 0)]).await;
    }

    let mut api = Api::with(vec![app(APP)], Settings { allow_private_targets: true, ..settings() }).await;
    for query in [own("127.0.0.1"), own("[::1]"), own("0.0.0.0")] {
        api.check(&[(&query, 30001)]).await;
    }
    for query in [own("127.0.0.1:1936"), own("10.0.0.1")] {
        api.check(&[(&query, 0)]).await;
    }
}

#[tokio::test]
async fn without_an_address_the_rule_is_for_the_apps_own_cdn() {
    let mut app = app(APP);
    app.cdn.default_target = Some("rtmp://push.example.com/live/".into());
    let mut api = Api::with(vec![app], settings()).await;
    api.check(&[("CreatCDNTransferRule StreamId=s", 0)]).await;
    assert_eq!(api.addresses("s").await, ["rtmp://push.example.com/live/s"]);
}

#[tokio::test]
async fn a_stream_has_a_rule_for_an_address_and_32_at_most() {
    let mut api = Api::new().await;
    for n in 0..32 {
        api.check(&[(&format!("CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/{n}"), 0)]).await;
    }
    api.check(&[
        ("CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/32", 5005),
        ("CreatCDNTransferRule StreamId=s CDNUrl=rtmp://H:1935/a/0?k%3Dv", 0),
        ("DeleteCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/1?other", 0),
        ("DeleteCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/1", 0),
        ("DeleteCDNTransferRule StreamId=s CDNUrl=rtmp://h", 5004),
        ("DeleteCDNTransferRule StreamId=s", 5004),
        ("CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/32", 0),
    ])
    .await;
    let addresses = api.addresses("s").await;
    assert!(addresses.len() == 32 && addresses.contains(&"rtmp://H:1935/a/0?k=v".to_owned()), "{addresses:?}");
}

#[tokio::test]
async fn clear_leaves_what_relays_and_other_streams() {
    for whole_app in [false, true] {
        let mut api = Api::with(vec![App { clear_whole_app: whole_app, ..app(APP) }], settings()).await;
        for (id, name) in [("s", 1), ("s", 2), ("t", 3), ("s", 4)] {
            api.check(&[(&format!("CreatCDNTransferRule StreamId={id} CDNUrl=rtmp://h/a/{name}"), 0)]).await;
        }
        let mut tx = api.gateway.store.begin().await.unwrap();
        let relaying = Status { state: State::Relaying, ..Status::default() };
        assert!(tx.rule_note(&key("s"), "rtmp://h/a/1", &relaying).await.unwrap());
        tx.commit().await.unwrap();
        // That this one relays is not in its row yet.
        let relay = Relay { status: Mutex::new(relaying), ..Relay::default() };
        api.gateway.live.relay_started(key("s"), "rtmp://h/a/4".into(), Arc::new(relay));
        api.woken();
        api.check(&[("ClearCDNTransferRule StreamId=s", 0)]).await;
        assert_eq!(api.addresses("s").await, ["rtmp://h/a/1", "rtmp://h/a/4"]);
        assert_eq!(api.addresses("t").await.is_empty(), whole_app);
        assert_eq!(api.woken().contains(&Wake::Stream(key("t"))), whole_app);
    }
}

#[tokio::test]
async fn forbid_and_resume_say_who_may_publish() {
    let mut api = Api::new().await;
    api.check(&[("ForbidRTCStream StreamId=s", 0), ("ForbidRTCStream StreamId=", 30009)]).await;
    assert!(api.forbidden("s").await);
    assert_eq!(api.woken(), wakes(&["s"]));
    api.check(&[("ResumeRTCStream StreamId=s", 0), ("ResumeRTCStream StreamId=s", 0)]).await;
    assert!(!api.forbidden("s").await);
    for spelling in [
        "StreamId[]=a StreamId[]=b",
        "StreamId%5B%5D=a StreamId%5B%5D=b",
        "StreamId=a StreamId=b",
        "StreamId[0]=a StreamId[1]=b",
        "StreamId.0=a StreamId.1=b",
    ] {
        api.woken();
        api.check(&[(&format!("ForbidRTCStreams {spelling}"), 0)]).await;
        assert!(api.forbidden("a").await && api.forbidden("b").await, "{spelling}");
        assert_eq!(api.woken(), wakes(&["a", "b"]));
        api.check(&[(&format!("ResumeRTCStreams {spelling}"), 0)]).await;
        assert!(!api.forbidden("a").await && !api.forbidden("b").await, "{spelling}");
    }
}

#[tokio::test]
async fn a_bad_list_forbids_nothing() {
    let mut api = Api::new().await;
    let list = |n: usize| (0..n).map(|n| format!(" StreamId[]=s{n}")).collect::<String>();
    for bad in [
        "".to_owned(),
        list(21),
        list(3) + " StreamId[]=a/b",
        " StreamId.1=s0".into(),
        list(2) + " StreamId[]=",
        " StreamId=s0,s1".into(),
    ] {
        api.check(&[(&format!("ForbidRTCStreams{bad}"), 30006)]).await;
    }
    api.check(&[(&format!("ForbidRTCStreams IsTest=true{}", list(1)), 30006)]).await;
    assert!(!api.forbidden("s0").await && api.woken().is_empty());
    api.check(&[(&format!("ForbidRTCStreams{}", list(20)), 0)]).await;
    assert!(api.forbidden("s19").await);
}

#[tokio::test]
async fn the_test_environment_wants_its_prefix_and_is_apart() {
    let mut api = Api::new().await;
    let id = format!("zegotest-{APP}-s");
    api.check(&[
        ("ForbidRTCStream IsTest=true StreamId=s", 30009),
        ("ForbidRTCStream IsTest=true StreamId=zegotest-7-s", 30009),
        (&format!("ForbidRTCStream IsTest=False StreamId={id}"), 0),
    ])
    .await;
    assert!(!api.forbidden(&id).await);
    api.check(&[(&format!("ForbidRTCStream IsTest=True StreamId={id}"), 0)]).await;
    assert!(api.forbidden(&id).await);
}

fn session(id: &str, created_ms: i64, closed_ms: i64) -> Session {
    Session {
        key: key(id),
        sid: "s-115205136669740000000000104".into(),
        seq: created_ms,
        user_id: String::new(),
        protocol: "RTMP".into(),
        publisher: "198.51.100.4:5".into(),
        codec: 0,
        heard: true,
        created_ms,
        closed_ms,
    }
}

#[tokio::test]
async fn the_state_of_a_stream_is_live_over_or_unknown() {
    let history = App { stream_history: Some(Duration::from_secs(60)), ..app(APP) };
    for (app, over) in [(app(APP), 41004), (history, 41006)] {
        let mut api = Api::with(vec![app], settings()).await;
        let mut tx = api.gateway.store.begin().await.unwrap();
        let closed_ms = api.now.wall_ms;
        tx.stream_open(&session("live", 1673334117999, 0)).await.unwrap();
        tx.stream_open(&session("over", 1673334117000, closed_ms)).await.unwrap();
        tx.commit().await.unwrap();
        let live = api.next("DescribeRTCStreamState StreamId=live").await;
        assert_eq!(live["Data"], json!({"create_time": "1673334117", "close_time": ""}));
        let answer = api.next("DescribeRTCStreamState StreamId=over").await;
        assert_eq!(answer["Code"], over);
        let times = json!({"create_time": "1673334117", "close_time": (closed_ms / 1000).to_string()});
        assert_eq!(answer["Data"], if over == 41006 { times } else { Value::Null });
        api.check(&[("DescribeRTCStreamState StreamId=none", 41004)]).await;
        assert_eq!(api.call("DescribeRTCStreamState StreamId=live").await["Code"], 30003, "no Sequence");
        api.passes(Duration::from_secs(60));
        api.check(&[("DescribeRTCStreamState StreamId=over", 41004)]).await;
    }
}

#[tokio::test]
async fn dispatch_gives_the_rtmp_address() {
    let mut api = Api::new().await;
    let v2 = api.next("RTMPDispatchV2 StreamId=s Type=push ClientIP=198.51.100.4").await;
    assert_eq!(v2["Data"], json!([format!("rtmp://live.example.com:1935/{APP}/s")]));
    assert_eq!(api.next("RTMPDispatch StreamId=s Type=pull").await["Data"], json!(["live.example.com:1935"]));
    api.check(&[
        ("RTMPDispatchV2 StreamId=s", 30010),
        ("RTMPDispatchV2 StreamId=s Type=both", 30010),
        ("RTMPDispatchV2 StreamId=s Type=pull ClientIP=::1", 30011),
        ("RTMPDispatchV2 StreamId=s Type=pull ClientIP=h", 30011),
        ("RTMPDispatchV2 StreamId=流 Type=pull", 30009),
    ])
    .await;
    assert_eq!(api.call("RTMPDispatchV2 StreamId=s Type=push").await["Code"], 1006);
    let listen = Settings { rtmp_listen: "[2001:db8::7]:1936".parse().unwrap(), ..settings() };
    let mut api = Api::with(vec![app(APP)], listen).await;
    assert_eq!(api.next("RTMPDispatch StreamId=s Type=push").await["Data"], json!(["[2001:db8::7]:1936"]));
}

#[tokio::test]
async fn rules_are_described_with_their_counters_and_without_their_secrets() {
    let mut api = Api::new().await;
    api.check(&[
        ("CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/s?txSecret%3Dhush", 0),
        ("CreatCDNTransferRule StreamId=t CDNUrl=rtmp://h/a/t", 0),
    ])
    .await;
    let status = Status {
        state: State::Requesting,
        reason: Reason::CdnServerDisconnected,
        state_ms: 5,
        retries: 3,
        next_retry_ms: 9,
        last_error: "reset".into(),
    };
    let mut tx = api.gateway.store.begin().await.unwrap();
    assert!(tx.rule_note(&key("s"), "rtmp://h/a/s", &status).await.unwrap());
    tx.commit().await.unwrap();
    // The row is behind.
    let relay = Relay { status: Mutex::new(Status { state_ms: 6, ..status }), ..Relay::default() };
    relay.bytes.add(1000);
    relay.frames_dropped.store(4, std::sync::atomic::Ordering::Relaxed);
    let relay = Arc::new(relay);
    api.gateway.live.relay_started(key("s"), "rtmp://h/a/s".into(), relay.clone());

    let all = api.next("DescribeCDNTransferRules").await;
    assert_eq!((&all["Code"], &all["Message"], &all["Data"]["Total"]), (&json!(0), &json!("ok"), &json!(2)));
    assert!(!all.to_string().contains("hush"), "{all}");
    let rule = json!({
        "StreamId": "s", "CDNUrl": "rtmp://h/a/s?***", "State": 1, "UpdateReason": 6, "StateTime": 6, "BytesSent": 1000,
        "Bitrate": 0, "FramesDropped": 4, "Retries": 3, "NextRetryTime": 9, "LastError": "reset",
    });
    assert_eq!(all["Data"]["Rules"][0], rule);
    let one = api.next("DescribeCDNTransferRules StreamId=t").await;
    assert_eq!((&one["Data"]["Total"], &one["Data"]["Rules"][0]["StreamId"]), (&json!(1), &json!("t")));
    let page = api.next("DescribeCDNTransferRules PageNumber=1 PageSize=1").await;
    assert_eq!((&page["Data"]["Total"], &page["Data"]["Rules"][0]["StreamId"]), (&json!(2), &json!("t")));
    api.check(&[
        ("DescribeCDNTransferRules PageSize=0", 5005),
        ("DescribeCDNTransferRules PageSize=1001", 5005),
        ("DescribeCDNTransferRules PageNumber=-1", 5005),
    ])
    .await;
    api.gateway.live.relay_ended(&key("s"), "rtmp://h/a/s", &relay);
    let ended = api.next("DescribeCDNTransferRules StreamId=s").await;
    assert_eq!((&ended["Data"]["Rules"][0]["State"], &ended["Data"]["Rules"][0]["StateTime"]), (&json!(0), &json!(5)));
    let test = api.next("DescribeCDNTransferRules IsTest=true").await;
    assert_eq!(test["Data"], json!({"Total": 0, "Rules": []}));
}

#[tokio::test]
async fn a_rule_is_retried_now() {
    let mut api = Api::new().await;
    api.check(&[("CreatCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/s", 0)]).await;
    api.woken();
    api.check(&[
        ("RetryCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/s?k", 0),
        ("RetryCDNTransferRule StreamId=s CDNUrl=rtmp://h/a/t", 30001),
        ("RetryCDNTransferRule StreamId=s CDNUrl=x", 30001),
    ])
    .await;
    assert_eq!(api.woken(), wakes(&["s"]));
    let rule = api.gateway.store.read().await.unwrap().rule(&key("s"), "rtmp://h/a/s").await.unwrap().unwrap();
    assert_eq!((rule.retry_asked, rule.origin), (1, Origin::Api));
}

#[tokio::test]
async fn live_streams_are_described() {
    let mut api = Api::new().await;
    let video =
        Track { codec: Codec::H264, config: Default::default(), format: Format::Video { width: 1280, height: 720 } };
    let stream = |tracks: Tracks| {
        Arc::new(Stream {
            publisher: Publisher { protocol: "RTMP", address: "198.51.100.4:50312".into() }.into(),
            since_ms: 7,
            tracks: std::sync::RwLock::new(Arc::new(tracks)),
            frame_rate_milli: AtomicU64::new(29970),
            bytes: Meter::default(),
            outputs: AtomicU64::new(2),
        })
    };
    let live = &api.gateway.live;
    live.stream_started(key("s"), stream(Tracks { video: Some(Arc::new(video)), audio: None }));
    live.stream_started(key(&format!("zegotest-{APP}-s")), stream(Tracks::default()));
    live.stream_started(StreamKey::published(7, "x").unwrap(), stream(Tracks::default()));
    let answer = api.next("DescribeStreams").await;
    let stream = json!({
        "StreamId": "s", "Protocol": "RTMP", "PublisherAddress": "198.51.100.4:50312", "Since": 7, "VideoCodec": "H.264",
        "Width": 1280, "Height": 720, "FrameRate": 29.97, "AudioCodec": "", "SampleRate": 0, "Channels": 0,
        "Bitrate": 0, "Outputs": 2,
    });
    assert_eq!(answer["Data"], json!({"Total": 1, "Streams": [stream]}));
    assert_eq!(api.next("DescribeStreams StreamId=other").await["Data"]["Total"], 0);
    assert_eq!(api.next("DescribeStreams PageNumber=1").await["Data"], json!({"Total": 1, "Streams": []}));
    assert_eq!(api.next("DescribeStreams IsTest=true").await["Data"]["Total"], 1);
}

#[tokio::test]
async fn callbacks_are_listed_and_sent_again() {
    let mut api = Api::new().await;
    let mut ids = Vec::new();
    let mut tx = api.gateway.store.begin().await.unwrap();
    for app in [APP, APP, 7] {
        let owed = crate::callback::Owed {
            app,
            environment: Environment::Production,
            event: "stream_create",
            stream: "s".into(),
            url: "https://backend.example.com/hush".into(),
            format: config::CallbackFormat::Json,
            body: "{}".into(),
        };
        let id = tx.outbox_add(&owed, 5).await.unwrap();
        let page = crate::store::Page { number: 0, size: 1 };
        let was = tx.outbox_page(app, Environment::Production, None, page).await.unwrap().1.remove(0);
        let (state, last_error) = (Delivery::Dead, "status 500".into());
        let is = Callback { state, attempts: 6, due_ms: 0, last_status: 500, last_error, ..was.clone() };
        tx.outbox_note(&was, &is).await.unwrap();
        ids.push(id);
    }
    tx.commit().await.unwrap();
    let dead = api.next("DescribeCallbacks State=dead").await;
    assert_eq!(dead["Data"]["Total"], 2);
    let want = json!({
        "Id": ids[0], "Event": "stream_create", "StreamId": "s", "State": "dead", "Attempts": 6, "NextAttemptTime": 0,
        "LastStatus": 500, "LastError": "status 500", "CreateTime": 5,
    });
    assert!(dead["Data"]["Callbacks"].as_array().unwrap().contains(&want), "{dead}");
    assert_eq!(api.next("DescribeCallbacks State=pending").await["Data"]["Total"], 0);
    let foreign = format!("RetryCallbacks Id[]={0} Id[]={1} Id[]={0}", ids[0], ids[2]);
    assert_eq!(api.next(&foreign).await["Data"], json!({"Count": 1}));
    assert_eq!(api.next("RetryCallbacks State=dead").await["Data"], json!({"Count": 1}));
    let pending = api.next("DescribeCallbacks State=pending").await;
    assert_eq!(pending["Data"]["Total"], 2);
    assert_eq!(pending["Data"]["Callbacks"][0]["Attempts"], 0);
    api.check(&[
        ("DescribeCallbacks State=x", 5005),
        ("RetryCallbacks", 5005),
        ("RetryCallbacks State=pending", 5005),
        ("RetryCallbacks Id=x", 5005),
        ("RetryCallbacks Id=1 State=dead", 5005),
    ])
    .await;
}

#[tokio::test]
async fn callbacks_that_are_sent_again_go_to_where_the_app_takes_them_now() {
    use config::CallbackFormat::{Form, Json};
    let mut now = app(APP);
    now.callback = config::Callback { stream: Some("http://new/".into()), format: Form, ..Default::default() };
    let mut api = Api::with(vec![now], settings()).await;
    let mut tx = api.gateway.store.begin().await.unwrap();
    for event in ["stream_create"; 250].into_iter().chain(["stream_close", "record"]) {
        let (stream, url, body) = ("s".into(), "http://old/".into(), r#"{"nonce":"1","rtmp_url":["a+b"]}"#.into());
        let environment = Environment::Production;
        let owed = crate::callback::Owed { app: APP, environment, event, stream, url, format: Json, body };
        tx.outbox_add(&owed, 5).await.unwrap();
    }
    tx.commit().await.unwrap();
    let seen = async |api: &Api| {
        let page = crate::store::Page { number: 0, size: 1000 };
        let mut tx = api.gateway.store.read().await.unwrap();
        let rows = tx.outbox_page(APP, Environment::Production, None, page).await.unwrap().1;
        Vec::from_iter(rows.into_iter().rev().map(|it| (it.url, it.format, it.body)))
    };
    let before = seen(&api).await;
    api.next("RetryCallbacks State=dead").await;
    let new = ("http://new/".to_owned(), Form, "nonce=1&rtmp_url%5B0%5D=a%2Bb".to_owned());
    // The app takes `record` no more: what there is of it keeps its address.
    let mut want = vec![new; 251];
    want.push(before[251].clone());
    assert_eq!(seen(&api).await, want);
}

#[test]
fn a_full_disk_is_said_with_the_actions_internal_code() {
    let full = || Fault::Store(crate::store::Error::Full("disk I/O error at /secret".into()));
    for (family, number) in [(&code::TRANSFER, 30003), (&code::STREAM, 30003), (&code::CDN, 1000)] {
        let (code, message) = family.tell(full());
        assert_eq!(code.number, number);
        assert!(message.contains("full") && message.contains("nothing was changed") && !message.contains("secret"));
    }
}

#[tokio::test]
async fn a_body_may_be_a_form_or_json_with_a_mark_before_it_or_nothing_but_space() {
    let mut api = Api::new().await;
    let form = "application/x-www-form-urlencoded; charset=UTF-8";
    for (kind, body, code) in [
        (form, "StreamId%5B%5D=a&StreamId%5B%5D=b&AppId=1&Sequence=N", 0),
        (form, "StreamId[0]=a&StreamId[1]=b&Sequence=N", 0),
        // As curl sends it when it is not told what it is.
        (form, r#"{"StreamId":["a"],"Sequence":"N"}"#, 0),
        ("application/json", "\u{feff}{\"StreamId\":[\"a\"],\"Sequence\":\"N\"}\r\n", 0),
        ("", " \r\n\t", 30006),
        (form, "StreamId[]=a&StreamId[]=!&Sequence=N", 30006),
        ("application/json", "StreamId[]=a&Sequence=N", 30003),
    ] {
        api.sequence += 1;
        let path = api.signed("ForbidRTCStreams");
        let body = Body::from(body.replace('N', &api.sequence.to_string()));
        let request = Request::post(path).header(HOST, "h").header(CONTENT_TYPE, kind).body(body).unwrap();
        let answer = api.send(request).await;
        assert_eq!(answer["Code"], code, "{kind}: {answer}");
        let mut tx = api.gateway.store.read().await.unwrap();
        let forbidden = tx.forbidden(&key("b")).await.unwrap();
        assert!(forbidden || kind != form, "the form's second stream");
    }
}

#[tokio::test]
async fn other_methods_and_paths_are_not_the_apis() {
    let api = Api::new().await;
    let forbid = api.signed("ForbidRTCStream StreamId=s Sequence=1");
    for (request, status) in [(Request::put("/"), 405), (Request::get("/x"), 404), (Request::head(forbid), 405)] {
        let request = request.header(HOST, "h").body(Body::empty()).unwrap();
        let response = api.gateway.clone().router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
    }
    assert!(api.woken.lock().unwrap().is_empty(), "HEAD forbids nothing");
}
