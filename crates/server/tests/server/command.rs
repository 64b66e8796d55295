//! The command line as a newcomer meets it.

use std::process::{Command, Output, Stdio};

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::server::{APP, binary, command};
use bywash_testkit::{Manner, Process, Publisher, Receiver, Scratch, Server, Setup, Sink, eventually, secs};
use serde_json::Value;

fn bywash(args: &[&str]) -> Command {
    let mut command = command(binary());
    command.args(args).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["serve", "demo", "call", "sign", "token", "check"] {
        let (code, out, _) = run(&mut bywash(&[command, "--help"]));
        assert!(code == Some(0) && out.contains("Example: "), "{command}: {out}");
    }
    let (code, _, errors) = run(&mut bywash(&["serv"]));
    assert!(code != Some(0) && errors.contains("serve"), "the nearest command is named: {errors}");
}

#[test]
fn a_first_start_just_works() {
    let dir = Scratch::new();
    let (http, rtmp, webrtc) = (bywash_testkit::port(), bywash_testkit::port(), bywash_testkit::port());
    let settings = [
        format!("http.listen=127.0.0.1:{http}"),
        format!("http.public_url=http://127.0.0.1:{http}"),
        format!("rtmp.listen=127.0.0.1:{rtmp}"),
        format!("webrtc.listen=127.0.0.1:{webrtc}"),
    ];
    let output = std::fs::File::create(dir.join("output")).expect("a file");
    let mut serve = bywash(&["serve"]);
    serve.args(settings.iter().flat_map(|it| ["--set", it])).current_dir(dir.join("")).stdout(output);
    let _serving = Process::start(serve.stderr(Stdio::null()));
    let written = || std::fs::read_to_string(dir.join("output")).unwrap_or_default();
    let ready = eventually("the ready line", secs(10), || Some(written()).filter(|it| it.contains("ready")));
    for port in [http, rtmp] {
        assert!(ready.contains(&format!(":{port}")), "one line for each listener: {ready}");
    }
    let secrets = dir.join("data/dev-app.toml");
    let mode = std::os::unix::fs::PermissionsExt::mode(&secrets.metadata().expect("the fresh app").permissions());
    assert_eq!(mode & 0o777, 0o600);

    let call = |args: &[&str]| {
        let mut call = bywash(args);
        run(call.args(settings.iter().flat_map(|it| ["--set", it])).current_dir(dir.join("")))
    };
    let sink = Sink::start(Manner::Take);
    let url = format!("CDNUrl={}", sink.url("show"));
    let (code, out, errors) = call(&["call", "CreatCDNTransferRule", "StreamId=show", &url]);
    assert_eq!(code, Some(0), "{out}{errors}");
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON")["Code"], 0);
    let (code, out, _) = call(&["call", "CreatCDNTransferRule", "StreamId=a b", &url]);
    assert!(code != Some(0) && out.contains("30009"), "{out}");
    let (code, out, errors) = call(&["token", "show"]);
    assert_eq!(code, Some(0), "{errors}");
    let words = out.split_whitespace().map(|word| word.trim_matches(['"', ',']));
    let publish = words.clone().find(|word| word.starts_with("rtmp://")).expect("an RTMP address");
    let mut publisher = Publisher::connect(publish).expect("the printed address works");
    publisher.begin(false).expect("it is taken");
    for n in 0..30 {
        publisher.video(n * 33, n == 0, 1000).expect("the publish goes on");
    }
    eventually("it is relayed", secs(5), || (sink.pictures("show") > 10).then_some(()));
}

#[test]
fn check_names_every_problem_with_its_line() {
    let dir = Scratch::new();
    let file = dir.join("bywash.toml");
    std::fs::write(
        &file,
        "[rtmp]\nlisten = \"nowhere\"\n[relay]\nconnect_timeot = 1\n[publish]\ngrace = \"3 fortnights\"\n",
    )
    .expect("a file");
    let (code, out, errors) = run(bywash(&["check", "--config"]).arg(&file));
    let said = out + &errors;
    assert_eq!(code, Some(1), "{said}");
    for want in ["2", "4", "6", "rtmp.listen", "connect_timeout", "grace"] {
        assert!(said.contains(want), "{want} is missing: {said}");
    }
    std::fs::write(
        &file,
        format!(
            "[[app]]\nid = {APP}\nserver_secret = \"{}\"\ncallback_secret = \"{}\"\n",
            "a".repeat(32),
            "b".repeat(32)
        ),
    )
    .expect("a file");
    let (code, out, errors) = run(bywash(&["check", "--config"]).arg(&file));
    assert_eq!(code, Some(0), "{out}{errors}");
}

#[test]
fn a_signed_address_works_and_a_changed_one_does_not() {
    let server = Server::start(Setup::default());
    let mut sign = bywash(&["sign", "DescribeStreams", "--config"]);
    let (code, out, errors) = run(sign.arg(server.config()));
    assert_eq!(code, Some(0), "{errors}");
    let url = out.split_whitespace().find(|word| word.starts_with("http://")).expect("an address");
    let path = &url[url.find("/?").expect("a query")..];
    let answer = |path: &str| {
        let (_, body) = server.get(path).expect("an answer");
        serde_json::from_str::<Value>(&body).expect("JSON")["Code"].clone()
    };
    assert_eq!(answer(path), 0);
    assert_eq!(answer(&path.replace("Signature=", "Signature=0")), 100_000_005);
    assert_eq!(answer(&path.replace("Timestamp=", "Timestamp=1")), 100_000_004);
}

/// A certificate and its key, as PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn what_tls_cannot_use_is_a_problem_of_check_and_of_serve() {
    let dir = Scratch::new();
    let ((cert, key), (_, other)) = (certificate(), certificate());
    let key_of = |label: &str| key.replace("PRIVATE KEY", label);
    let http = "http.tls = { certificate = \"cert\", key = \"key\" }";
    let check = |config: &str, cert: &str, key: &str, want: &str| {
        for (name, text) in [("bywash.toml", config), ("cert", cert), ("key", key)] {
            std::fs::write(dir.join(name), text).expect("a file");
        }
        for command in ["check", "serve"] {
            let (code, out, errors) = run(bywash(&[command]).current_dir(dir.join("")));
            assert_eq!(code, Some(1), "{command}: {out}{errors}");
            assert!(format!("{out}{errors}").contains(&format!("bywash.toml:1: {want}")), "{want}: {out}{errors}");
        }
    };
    check(http, &cert, &other, "`http.tls.key`: key does not go with the certificate");
    check(http, &cert, &key_of("ENCRYPTED PRIVATE KEY"), "`http.tls.key`: key is encrypted");
    check(http, &cert, &cert, "`http.tls.key`: key holds no private key");
    check(http, &key, &key, "`http.tls.certificate`: cert holds no certificate");
    check(
        http,
        &key.replace("PRIVATE KEY", "CERTIFICATE"),
        &key,
        "`http.tls.certificate`: cert holds a certificate that",
    );
    check("relay.ca_file = \"key\"", "", &key, "`relay.ca_file`: key holds no certificate");

    std::fs::write(dir.join("key"), &key).expect("a file");
    std::fs::write(dir.join("cert"), &cert).expect("a file");
    std::fs::write(dir.join("bywash.toml"), http).expect("a file");
    let (code, out, errors) = run(bywash(&["check"]).current_dir(dir.join("")));
    assert_eq!(code, Some(0), "{out}{errors}");
}

#[test]
fn check_warns_of_addresses_that_lead_nowhere() {
    let dir = Scratch::new();
    let check = |settings: &[&str], warned: bool| {
        let mut check = bywash(&["check"]);
        let (code, out, errors) =
            run(check.args(settings.iter().flat_map(|it| ["--set", it])).current_dir(dir.join("")));
        assert_eq!((code, out.contains("warning: `")), (Some(0), warned), "{settings:?}: {out}{errors}");
    };
    check(&[], false);
    check(&["http.listen=0.0.0.0:8080"], true);
    check(&["rtmp.listen=[::]:1935"], true);
    check(&["http.listen=0.0.0.0:8080", "http.public_url=http://live.example.com"], false);

    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/bywash.toml");
    let (_, out, _) = run(&mut bywash(&["check", "--config", example]));
    assert!(out.contains("warning: app 1234567890 has a secret of the example"), "{out}");
}

/// Ports of its own for a demonstration: another may look for free ones at the same moment.
fn ports() -> [String; 3] {
    ["http", "rtmp", "webrtc"].map(|it| format!("--set={it}.listen=127.0.0.1:{}", bywash_testkit::port()))
}

/// Runs the demonstration in `dir`, with temporary folders of its own; gives what it printed.
fn demo(dir: &Scratch, command: &mut Command) -> String {
    std::fs::create_dir(dir.join("tmp")).expect("a folder");
    let (code, out, errors) = run(command.current_dir(dir.join("")).env("TMPDIR", dir.join("tmp")));
    assert_eq!(code, Some(0), "{out}{errors}");
    out
}

#[test]
fn demo_shows_whole_media() {
    let dir = Scratch::new();
    // Ended from outside, as by Ctrl-C.
    let mut command = command("timeout");
    command.args(["--preserve-status", "--signal=TERM", "6"]).arg(binary()).arg("demo");
    let out = demo(&dir, command.args(ports()));
    assert!(out.contains("CreatCDNTransferRule"), "it shows the call it made: {out}");
}

#[test]
fn demo_ends_where_nobody_reads_on() {
    let dir = Scratch::new();
    let mut command = command("sh");
    command.arg("-c").arg(format!("{} demo --for 30s {} | head -n 3", binary().display(), ports().join(" ")));
    let (code, out, errors) = run(command.env("TMPDIR", dir.join("")));
    assert!(code == Some(0) && errors.contains("Broken pipe") && !errors.contains("panicked"), "{out}{errors}");
    assert_eq!(std::fs::read_dir(dir.join("")).expect("a folder").count(), 0, "it leaves nothing");
}

#[test]
fn demo_has_nothing_to_do_with_what_is_configured() {
    let (dir, sink, receiver) = (Scratch::new(), Sink::start(Manner::Take), Receiver::start());
    let (told, secret) = (receiver.url(), "s".repeat(32));
    let config = format!(
        "data_dir = \"mine\"\nhttp.listen = \"0.0.0.0:{}\"\nrtmp.listen = \"0.0.0.0:{}\"\n\
         [[app]]\nid = {APP}\nserver_secret = \"{secret}\"\ncallback_secret = \"c\"\nenvironment = \"test\"\n\
         publish_auth = \"token\"\npublish_key = \"k\"\ncallback.stream = {told:?}\ncallback.state = {told:?}\ncallback.record = {told:?}\n\
         cdn.default_target = {:?}\ncdn.relay_everything = true\nrecord.Tencent.record_everything = true\n",
        bywash_testkit::port(),
        bywash_testkit::port(),
        sink.url("default")
    );
    std::fs::write(dir.join("bywash.toml"), config).expect("a file");
    let mut command = bywash(&["demo", "--for", "3s"]);
    let port = bywash_testkit::port();
    command.env("BYWASH_HTTP__LISTEN", format!("0.0.0.0:{port}")).env("BYWASH_MEDIA__URL", "s3://bucket");
    let out = demo(&dir, command.env("BYWASH_CONFIG", dir.join("bywash.toml")));
    assert!(out.contains(&format!("API      http://127.0.0.1:{port}/")) && !out.contains(&APP.to_string()), "{out}");
    assert!(sink.sessions().is_empty() && receiver.taken().is_empty(), "{out}");
    assert!(!dir.join("mine").exists() && !dir.join("data").exists(), "it has a folder of its own");

    // The recorded file is where it says; of all else nothing is left.
    let file = out.lines().find_map(|line| line.strip_prefix("file     ")).expect("a recorded file");
    assert!(std::path::Path::new(file).metadata().is_ok_and(|it| it.len() > 100_000), "{file}");
    let folders = std::fs::read_dir(dir.join("tmp")).expect("a folder").map(|it| it.expect("an entry").path());
    let left: Vec<_> = folders.flat_map(|it| std::fs::read_dir(it).expect("a folder")).collect();
    assert!(left.len() == 1 && left[0].as_ref().is_ok_and(|it| it.file_name() == "media"), "{left:?}");
}

#[test]
fn a_reload_of_an_empty_file_does_not_throw_the_server_open() {
    let server = Server::start(Setup::default().public_only());
    let config = std::fs::read_to_string(server.config()).expect("a configuration");
    let (own, _) = config.split_once("[[app]]").expect("an app");
    for (count, text) in [(1, ""), (2, own), (3, "relay = 7")] {
        std::fs::write(server.config(), text).expect("a file of ours");
        server.process().signal("HUP");
        let refused = || (server.output().matches("nothing was reloaded").count() == count).then_some(());
        eventually("the file is refused", secs(5), refused);
    }
    server.ok("DescribeStreams", &[]);
    assert!(!server.media().with_file_name("dev-app.toml").exists(), "no app was made");
    let answer = server.call("CreatCDNTransferRule", &[("StreamId", "show"), ("CDNUrl", "rtmp://127.0.0.1/live/show")]);
    assert_ne!(answer["Code"], 0, "private targets stay refused");
}

#[test]
fn a_reload_takes_what_it_can_and_cuts_nobody() {
    let (old, new) = (Receiver::start(), Receiver::start());
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup::app(format!("callback.stream = {:?}", old.url())));
    server.relay("show", &sink.url("show"));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    sink.wait_for("show", secs(5));
    old.wait_any("stream_create", "show");

    let config = std::fs::read_to_string(server.config()).expect("a configuration");
    let write = |text: &str| {
        std::fs::write(server.config(), text).expect("a file of ours");
        server.process().signal("HUP");
    };
    let says = |what: &str| {
        eventually(what, secs(5), || server.output().contains(what).then_some(()));
    };
    write(&config.replace("callback.stream", "callback.steam"));
    says("nothing was reloaded");
    write(&config.replace(&old.url(), &new.url()).replace("rtmp.listen = \"127.0.0.1:", "rtmp.listen = \"127.0.0.2:"));
    says("configuration reloaded");
    says("rtmp.listen");
    let _next = Flow::start(vec![Publisher::connect(&server.rtmp("next")).expect("it is taken")], Pace::SMALL);
    new.wait_any("stream_create", "next");
    assert!(old.of("stream_create", "next").is_empty());
    let before = sink.pictures("show");
    eventually("the stream goes on", secs(5), || (sink.pictures("show") > before + 5).then_some(()));
    assert_eq!(sink.sessions().len(), 1, "in the same session");
}

#[test]
fn streams_of_an_app_that_is_gone_end() {
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup::default());
    server.relay("show", &sink.url("show"));
    let _flow = Flow::start(vec![Publisher::connect(&server.rtmp("show")).expect("it is taken")], Pace::SMALL);
    sink.wait_for("show", secs(5));
    let config = std::fs::read_to_string(server.config()).expect("a configuration");
    std::fs::write(server.config(), config.replace(&format!("id = {APP}"), "id = 77")).expect("a file of ours");
    server.process().signal("HUP");
    eventually("its relay ends", secs(5), || sink.session("show").filter(|it| it.closed));
    assert!(Publisher::connect(&server.rtmp("show")).is_err(), "nobody publishes to it");
}
