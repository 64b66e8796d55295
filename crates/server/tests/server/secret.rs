//! No secret is ever printed: not in logs, errors, API answers or callbacks.

use bywash_testkit::server::{CALLBACK_SECRET, PUBLISH_KEY, SERVER_SECRET, publish_query};
use bywash_testkit::{Manner, Media, Publisher, Receiver, Server, Setup, Sink, eventually, secs};

use crate::client::Client;

const PUSH_KEY: &str = "pushkey-7c9e6679f7425b0d";
const BACKUP_KEY: &str = "backupkey-550e8400e29b41d4";
const QUERY_SECRET: &str = "querysecret-1b4e28ba2fa1";

#[test]
fn no_secret_is_ever_printed() {
    let (receiver, good) = (Receiver::start(), Sink::start(Manner::Take));
    let refusing = Sink::start(Manner::Refuse("NetStream.Publish.BadName"));
    let gone = Sink::start(Manner::Take);
    gone.shut();
    let url = receiver.url();
    let server = Server::start(Setup {
        app: format!(
            r#"publish_auth = "token"
callback.stream = {url:?}
callback.state = {url:?}
[[app.cdn.push]]
host = "127.0.0.1"
vendor = "Tencent"
key = "{PUSH_KEY}"
backup_key = "{BACKUP_KEY}""#
        ),
        loud: true,
        ..Setup::default()
    });
    let good_token = publish_query("show", PUBLISH_KEY, 60);
    let bad_token = publish_query("show", "wrong", 60);
    assert!(Publisher::connect(&server.rtmp(&format!("show?{bad_token}"))).is_err());
    let _publishing = Media::Plain.publish(&server.rtmp(&format!("show?{good_token}")));
    let targets = [&good, &refusing, &gone].map(|sink| format!("{}?pass={QUERY_SECRET}", sink.url("show")));
    for target in &targets {
        server.relay("show", target);
    }
    good.wait_for("show", secs(8));
    receiver.wait("relay_state", "show", secs(8), |it| it["state"] == "2");
    let mut seen = String::new();
    eventually("all were tried", secs(8), || {
        let rules = server.rules("show");
        (rules.iter().filter(|rule| rule["LastError"] != "").count() >= 2).then_some(())
    });
    for action in ["DescribeCDNTransferRules", "DescribeStreams", "DescribeCallbacks"] {
        seen += &server.call(action, &[("StreamId", "show")]).to_string();
    }
    for params in [("StreamId", "bad id!"), ("CDNUrl", targets[0].as_str())] {
        seen += &server.call("CreatCDNTransferRule", &[params]).to_string();
    }
    for path in ["/metrics", "/ready", "/health"] {
        seen += &server.get(path).expect("an answer").1;
    }
    for callback in receiver.taken() {
        seen += &callback.to_string();
    }
    // What the target was really sent is a secret too: the signature of this push.
    let sent = good.session("show").expect("a session").name;
    let (_, query) = sent.split_once('?').expect("a signed name");
    let made: Vec<String> = [query, &good_token, &bad_token]
        .iter()
        .flat_map(|query| query.split('&'))
        .filter_map(|pair| pair.split_once('=').map(|(_, value)| value.to_owned()))
        .filter(|value| value.len() >= 20)
        .collect();
    assert!(sent.contains("txSecret="), "the push was signed: {sent}");
    let fixed = [SERVER_SECRET, CALLBACK_SECRET, PUBLISH_KEY, PUSH_KEY, BACKUP_KEY, QUERY_SECRET].map(str::to_owned);
    let (code, _, stopped) = {
        seen += &server.output();
        server.terminate()
    };
    assert_eq!(code, 0);
    let server = stopped.start_again();
    seen += &server.output();
    for secret in fixed.iter().chain(&made) {
        let line = seen.lines().find(|line| line.contains(secret.as_str()));
        assert!(line.is_none(), "a secret is shown: {}", line.unwrap_or_default());
    }
    assert!(seen.contains("show"), "something was seen at all");
}

/// The engine of WebRTC would log each at `debug`.
#[test]
fn what_is_said_and_shown_is_never_logged() {
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup { loud: true, ..Setup::default() });
    server.relay("show", &sink.url("show"));
    let client = Client::publish(&server, "show", &[]);
    eventually("pictures", secs(20), || (sink.pictures("show") > 30).then_some(()));
    client.end();
    let said = server.output();
    let longest = said.lines().max_by_key(|line| line.len()).expect("a line");
    assert!(longest.len() < 1000, "a line of {} characters: {longest:.300}", longest.len());
    assert!(said.contains("publisher leaves"), "something was logged at all");
}

#[test]
fn a_stream_key_in_a_path_is_shown_to_its_app_alone() {
    let (receiver, sink) = (Receiver::start(), Sink::start(Manner::Take));
    let setup = Setup::app(format!("callback.state = {:?}", receiver.url()));
    let server = Server::start(Setup { loud: true, ..setup });
    let _publishing = Media::Plain.publish(&server.rtmp("show"));
    let keys = ["ab12-cd34-ef56-gh78", "ab12-cd34-ef56-gh79"];
    for key in keys {
        server.relay("show", &sink.url(key));
        server.wait_state("show", &sink.url(key), 2, secs(8));
        receiver.wait("relay_state", "show", secs(8), |it| it["url"] == sink.url(key));
    }
    let metrics = server.get("/metrics").expect("an answer").1;
    let series = metrics.lines().filter(|line| line.starts_with("bywash_relay_state{") && line.contains("/ab12…"));
    assert_eq!(series.count(), 2, "{metrics}");
    let seen = metrics + &server.output();
    assert!(seen.contains("ab12…") && !keys.iter().any(|key| seen.contains(key)), "a key is shown");
}
