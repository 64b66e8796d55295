//! Ends, asked for and not: what was answered with Code 0 is there afterwards.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread;
use std::time::Duration;

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::server::{binary, command};
use bywash_testkit::{Log, Manner, Publisher, Receiver, Scratch, Server, Setup, Sink, eventually, secs, stays};

fn live(server: &Server, name: &str) -> Flow {
    Flow::start(vec![Publisher::connect(&server.rtmp(name)).expect("it is taken")], Pace::SMALL)
}

#[test]
fn sigterm_drains() {
    let (sink, receiver) = (Sink::start(Manner::Take), Receiver::start());
    let server = Server::start(Setup::app(format!("callback.stream = {:?}", receiver.url())));
    server.relay("show", &sink.url("show"));
    let flow = live(&server, "show");
    sink.wait_for("show", secs(5));
    let (code, took, stopped) = server.terminate();
    assert_eq!(code, 0);
    assert!(took < secs(5), "{took:?} though nothing had to be waited for");
    let ended = eventually("the session is over", secs(2), || sink.session("show").filter(|it| it.closed));
    assert!(ended.unpublished, "the CDN was told");
    drop(flow);
    let _server = stopped.start_again();
    let close = receiver.wait("stream_close", "show", secs(5), |_| true);
    assert_eq!(close["stream_sid"], receiver.of("stream_create", "show")[0]["stream_sid"]);
}

/// Where relays hang and `shutdown_timeout` is four seconds: the exit code after SIGTERM, and how long it took from the last of
/// two if there is another `after` the first.
fn terminate_hanging(after: Option<Duration>) -> (i32, Duration) {
    let (silent, deaf) = (Sink::start(Manner::Silent), Sink::start(Manner::Take));
    let server = Server::start(Setup::server("shutdown_timeout = \"4s\""));
    server.relay("show", &silent.url("show"));
    server.relay("show", &deaf.url("show"));
    let publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    let _flow = Flow::start(vec![publisher], Pace { picture: 40_000, ..Pace::FULL });
    deaf.wait_for("show", secs(5));
    deaf.set(Manner::Deaf);
    thread::sleep(secs(2));
    if let Some(after) = after {
        server.process().signal("TERM");
        thread::sleep(after);
    }
    let (code, took, _) = server.terminate();
    (code, took)
}

#[test]
fn sigterm_ends_in_time_though_everyone_hangs() {
    let (code, took) = terminate_hanging(None);
    assert!(code == 0 && took < secs(6), "{code} {took:?}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let (code, took) = terminate_hanging(Some(secs(1)));
    assert!(code == 1 && took < secs(1), "{code} {took:?}");
}

/// `timeout` signals its child, and then the group that the child is in.
#[test]
fn two_signals_of_one_moment_are_one() {
    let (code, took) = terminate_hanging(Some(Duration::ZERO));
    assert!(code == 0 && took > secs(1), "{code} {took:?}");
}

/// Streams are relayed, a stream ends, calls are answered, and SIGTERM drains.
#[track_caller]
fn serves(log: Log) {
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup { log, ..Setup::server("publish.grace = \"0s\"") });
    for name in ["stays", "ends"] {
        server.relay(name, &sink.url(name));
    }
    let (_stays, ends) = (live(&server, "stays"), live(&server, "ends"));
    for name in ["stays", "ends"] {
        sink.wait_for(name, secs(5));
    }
    ends.stop();
    eventually("the other's session is over", secs(5), || sink.session("ends").filter(|it| it.closed));
    server.process().signal("HUP");
    server.relay("later", &sink.url("later"));
    let _later = live(&server, "later");
    sink.wait_for("later", secs(5));
    let before = sink.pictures("stays");
    eventually("it is relayed still", secs(5), || (sink.pictures("stays") > before + 10).then_some(()));
    assert_eq!(server.get("/ready").expect("an answer").0, 200);
    let (code, took, _) = server.terminate();
    assert!(code == 0 && took < secs(5), "{log:?}: exit {code} after {took:?}");
    let session = sink.session("stays").expect("it was there");
    assert!(session.unpublished, "{log:?}: the CDN was told");
}

#[test]
fn a_log_on_a_full_disk_costs_its_lines_alone() {
    serves(Log::Full);
}

#[test]
fn a_log_whose_reader_is_gone_costs_its_lines_alone() {
    serves(Log::Gone);
}

#[test]
fn a_log_whose_reader_stands_still_holds_nobody_up() {
    serves(Log::Stopped);
}

#[test]
fn a_second_server_leaves_the_data_of_the_first_alone() {
    let server = Server::start(Setup::app("record.Tencent.formats = [\"mp4\"]"));
    let task = server.record("show");
    let flow = live(&server, "show");
    server.wait_recording("show", "recording", secs(5));
    let (config, data) = (server.config(), server.media().with_file_name(""));
    let ports = ["http", "rtmp", "webrtc"].map(|it| format!("--set={it}.listen=127.0.0.1:{}", bywash_testkit::port()));
    let (config, data) = (config.to_str().expect("text"), data.to_str().expect("text"));
    for args in [["serve", "--config", config], ["demo", "--data-dir", data]] {
        let output = command(binary()).args(args).args(&ports).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("another bywash uses the folder") && said.contains("--data-dir"), "{said}");
    }
    assert_eq!(server.recording("show")["TaskId"], *task);
    server.stop_record("show");
    server.wait_recording("show", "ended", secs(5));
    drop(flow);
    server.kill_9_and_start();
}

#[test]
fn a_relay_whose_rule_was_deleted_right_before_a_kill_is_told_to_have_ended_once() {
    let (sink, receiver) = (Sink::start(Manner::Take), Receiver::start());
    let server = Server::start(Setup::app(format!("callback.state = {:?}", receiver.url())));
    server.relay("show", &sink.url("show"));
    let publisher = Publisher::connect(&server.rtmp("show")).expect("it is taken");
    let flow = Flow::start(vec![publisher], Pace { picture: 40_000, ..Pace::FULL });
    receiver.wait("relay_state", "show", secs(8), |it| it["state"] == "2");
    // Its goodbye takes a while.
    sink.set(Manner::Deaf);
    thread::sleep(secs(2));
    server.unrelay("show", &sink.url("show"));
    let server = server.kill_9_and_start();
    drop(flow);
    receiver.wait("relay_state", "show", secs(8), |it| it["state"] == "0");
    let _server = server.kill_9_and_start();
    stays("it was told once", secs(2), || {
        let told = receiver.of("relay_state", "show");
        // What a kill keeps from being noted as told is sent again, with the same nonce.
        let ended: BTreeSet<_> =
            told.iter().filter(|it| it["state"] == "0").map(|it| it["nonce"].to_string()).collect();
        ended.len() == 1
    });
}

#[test]
fn kill_at_random_points() {
    let rounds = if std::env::var_os("BYWASH_SOAK").is_some() { 60 } else { 5 };
    let sink = Sink::start(Manner::Take);
    let mut server = Server::start(Setup::default());
    let mut acknowledged = BTreeSet::new();
    let mut dice = std::process::id();
    for round in 0..rounds {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let flow = live(&server, "show");
        for n in 0..3 {
            let url = sink.url(&format!("r{round}n{n}"));
            server.relay(&format!("stream{round}"), &url);
            acknowledged.insert(url);
        }
        if round % 2 == 0 {
            let url = sink.url(&format!("r{round}n1"));
            server.unrelay(&format!("stream{round}"), &url);
            acknowledged.remove(&url);
        }
        server.relay("show", &sink.url("show"));
        thread::sleep(Duration::from_millis(u64::from(dice >> 16) % 400));
        server = server.kill_9_and_start();
        drop(flow);
        let data = server.ok("DescribeCDNTransferRules", &[("PageSize", "1000")]);
        let rules = data["Rules"].as_array().expect("a list");
        let kept: BTreeSet<String> = rules
            .iter()
            .filter_map(|it| it["CDNUrl"].as_str())
            .filter(|it| !it.ends_with("/show"))
            .map(Into::into)
            .collect();
        assert_eq!(kept, acknowledged, "round {round}");
    }
    let _flow = live(&server, "show");
    sink.wait_for("show", secs(5));
}

/// A small file system of its own, unmounted when dropped.
pub(super) struct Disk(pub(super) Scratch);

impl Disk {
    pub(super) fn mount(mib: u32) -> Option<Disk> {
        let (dir, size) = (Scratch::new(), format!("size={mib}m"));
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(dir.join("")).output();
        mount.is_ok_and(|it| it.status.success()).then_some(Disk(dir))
    }

    fn fill(&self) {
        // Down to the last page: write until there is no space, in ever smaller pieces.
        let mut file = std::fs::File::create(self.0.join("filler")).expect("a file");
        for size in [65_536, 4096, 512] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    }

    pub(super) fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("it was made");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.join("")).status();
    }
}

#[test]
fn disk_full_refuses_calls_and_relays_go_on() {
    let Some(disk) = Disk::mount(6) else {
        eprintln!("SKIPPED: no file system can be mounted here; run as root to test a full disk");
        return;
    };
    let sink = Sink::start(Manner::Take);
    let server = Server::start(Setup { data_dir: Some(disk.0.join("data")), ..Setup::default() });
    server.relay("show", &sink.url("show"));
    let _flow = live(&server, "show");
    sink.wait_for("show", secs(5));
    disk.fill();
    let mut refused = None;
    for n in 0..40 {
        let url = sink.url(&format!("{n}-{}", "x".repeat(900)));
        let answer = server.call("CreatCDNTransferRule", &[("StreamId", &format!("s{n}")), ("CDNUrl", &url)]);
        match answer["Code"].as_i64() {
            Some(0) => assert!(server.rule(&format!("s{n}"), &url).is_some(), "Code 0 and no rule"),
            Some(30002 | 5007) => {}
            _ => refused = Some(answer),
        }
        thread::sleep(Duration::from_millis(110));
    }
    let refused = refused.expect("a call is refused when nothing can be stored");
    assert!([30003, 5000, 5001, 5002, 5006].map(Into::into).contains(&refused["Code"]), "{refused}");
    let (status, why) = server.get("/ready").expect("an answer");
    assert!(status == 503 && why.contains("cannot be written"), "{status} {why}");
    sink.wait_for("show", secs(2));
    stays("the relay goes on in one session", secs(1), || sink.sessions().len() == 1);
    disk.free();
    eventually("calls are taken again", secs(5), || {
        thread::sleep(Duration::from_millis(150));
        (server.call("CreatCDNTransferRule", &[("StreamId", "after"), ("CDNUrl", &sink.url("after"))])["Code"] == 0)
            .then_some(())
    });
    eventually("it is ready again", secs(15), || (server.get("/ready").expect("an answer").0 == 200).then_some(()));
}
