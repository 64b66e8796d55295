//! A server that runs for long needs no more than one that has just warmed up.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::{Flock, Manner, Process, Publisher, Receiver, Server, Setup, Sink, port, rtc, secs};

/// What a process holds on to: memory in bytes, descriptors, threads.
#[derive(Clone, Copy, Debug)]
struct Held {
    memory: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(process: &Process) -> Held {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", process.id())).expect("it runs").count();
        Held { memory: process.rss(), descriptors: count("fd"), threads: count("task") }
    }

    /// The most of each over `span`, while `work` goes on.
    fn most(process: &Process, span: Duration, mut work: impl FnMut()) -> Held {
        let (begin, mut most) = (Instant::now(), Held::by(process));
        while begin.elapsed() < span {
            work();
            let now = Held::by(process);
            most = Held {
                memory: most.memory.max(now.memory),
                descriptors: most.descriptors.max(now.descriptors),
                threads: most.threads.max(now.threads),
            };
        }
        most
    }
}

/// Twelve seconds of these rounds, or an hour, leave nothing behind in the server.
#[track_caller]
fn assert_holds_on_to_nothing(server: &Server, mut round: impl FnMut()) {
    let minute = if std::env::var_os("BYWASH_SOAK").is_some() { secs(60) } else { Duration::from_millis(200) };
    // All the streams have come and gone once, and what a thread or an allocator keeps for the next time is there.
    Held::most(server.process(), 5 * minute, &mut round);
    let early = Held::most(server.process(), 5 * minute, &mut round);
    Held::most(server.process(), 45 * minute, &mut round);
    let late = Held::most(server.process(), 5 * minute, &mut round);
    eprintln!("{early:?}, then {late:?}");
    assert!(late.memory < early.memory + 4_000_000, "{early:?}, then {late:?}");
    assert!(late.descriptors <= early.descriptors + 8, "{early:?}, then {late:?}");
    assert!(late.threads <= early.threads + 2, "{early:?}, then {late:?}");
}

/// Streams that stay, streams that come and go, rules put and deleted, a target that is never there and callbacks of it all.
#[test]
fn a_long_run_holds_on_to_nothing() {
    let (sink, receiver, dead) = (Sink::start(Manner::Take), Receiver::start(), port());
    let state = format!("callback.stream = {0:?}\ncallback.state = {0:?}", receiver.url());
    let server = Server::start(Setup::app(state));
    let dead = format!("rtmp://127.0.0.1:{dead}/live/x");
    let connect = |name: &str| Publisher::connect(&server.rtmp(name)).expect("a publish is taken");
    let names = ["steady-0", "steady-1", "steady-2"];
    names.iter().for_each(|name| server.relay(name, &sink.url(name)));
    let _flow = Flow::start(names.iter().map(|name| connect(name)).collect(), Pace::SMALL);

    let mut n = 0;
    let round = || {
        let name = format!("guest-{}", n % 5);
        n += 1;
        server.relay(&name, &dead);
        server.relay(&name, &sink.url(&name));
        let mut guest = connect(&name);
        let sent = (0..5).try_for_each(|at| {
            if at == 0 {
                guest.begin(false)?;
            }
            thread::sleep(Duration::from_millis(66));
            guest.video(at * 66, at == 0, 700)
        });
        sent.expect("a guest is welcome");
        server.call("DescribeStreams", &[]);
        server.unrelay(&name, &dead);
        drop(guest);
    };
    assert_holds_on_to_nothing(&server, round);
    eprintln!("{n} rounds");
    for name in names {
        assert_eq!(sink.sessions().iter().filter(|it| it.name == name).count(), 1, "{name} is relayed all the time");
    }
}

/// WebRTC publishers and players that stay, and such as come and go, by DELETE, by closing, or without a word; each guest is relayed,
/// recorded and played, so that its sound is encoded anew each time.
#[test]
fn a_long_run_of_webrtc_holds_on_to_nothing() {
    let (sink, receiver) = (Sink::start(Manner::Take), Receiver::start());
    let state = format!(
        "callback.stream = {0:?}\ncallback.state = {0:?}\ncallback.record = {0:?}\n[app.record.Tencent]",
        receiver.url()
    );
    let server = Server::start(Setup { server: "publish.grace = \"1s\"".into(), ..Setup::app(state) });
    let opus = Arc::new([vec![0xfc, 0xff, 0xfe]]);
    let media = rtc::Media { pace: Pace { frame_rate: 25, picture: 1250, audio: 0, group: 50 }, opus };
    let addresses = |names: &[&str], of: fn(&Server, &str) -> String| -> Vec<String> {
        names.iter().map(|name| of(&server, name)).collect()
    };
    let names = ["steady-0", "steady-1"];
    names.iter().for_each(|name| server.relay(name, &sink.url(name)));
    let steady = Flock::start(&addresses(&names, Server::whip), Some(media.clone()));
    // Its sound is AAC, and players are sent Opus.
    let _flow =
        Flow::start(vec![Publisher::connect(&server.rtmp("classic")).expect("a publish is taken")], Pace::SMALL);
    let watched = ["steady-0", "steady-1", "classic"];
    let players = Flock::play(&addresses(&watched, Server::whep));

    let mut n = 0;
    let round = || {
        // Whose publisher has vanished is taken over after 4 s.
        let name = format!("guest-{}", n % 20);
        n += 1;
        server.relay(&name, &sink.url(&name));
        server.record(&name);
        let guest = Flock::start(&[server.whip(&name)], Some(media.clone()));
        let [player, last] = [(); 2].map(|()| Flock::play(&[server.whep(&name)]));
        thread::sleep(Duration::from_millis(400));
        let end = [Flock::delete, Flock::close, Flock::vanish];
        let (came, sent) = (end[n / 3 % 3](player), end[n % 3](guest));
        drop(last);
        assert!(sent[0] > 5 && came[0] > 0, "{sent:?} pictures sent, {came:?} came");
        server.stop_record(&name);
        server.unrelay(&name, &sink.url(&name));
    };
    assert_holds_on_to_nothing(&server, round);
    eprintln!("{n} rounds");
    assert_eq!((steady.ended(), players.ended()), (0, 0));
    for name in names {
        assert_eq!(sink.sessions().iter().filter(|it| it.name == name).count(), 1, "{name} is relayed all the time");
    }
    let (sent, came) = (steady.close(), players.close());
    assert!(came[..2].iter().zip(&sent).all(|(came, sent)| came + 100 > *sent), "{sent:?} sent, {came:?} came");
}
