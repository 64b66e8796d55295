//! A server that runs for long needs no more than one that has just warmed up.

use std::thread;
use std::time::{Duration, Instant};

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::{Manner, Process, Publisher, Receiver, Server, Setup, Sink, port, secs};

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

/// Streams that stay, streams that come and go, rules put and deleted, a target that is never there and callbacks of it all:
/// twelve seconds of it, or an hour.
#[test]
fn a_long_run_holds_on_to_nothing() {
    let minute = if std::env::var_os("BYWASH_SOAK").is_some() { secs(60) } else { Duration::from_millis(200) };
    let (sink, receiver, dead) = (Sink::start(Manner::Take), Receiver::start(), port());
    let state = format!("callback.stream = {0:?}\ncallback.state = {0:?}", receiver.url());
    let server = Server::start(Setup::app(state));
    let dead = format!("rtmp://127.0.0.1:{dead}/live/x");
    let connect = |name: &str| Publisher::connect(&server.rtmp(name)).expect("a publish is taken");
    let names = ["steady-0", "steady-1", "steady-2"];
    names.iter().for_each(|name| server.relay(name, &sink.url(name)));
    let _flow = Flow::start(names.iter().map(|name| connect(name)).collect(), Pace::SMALL);

    let mut n = 0;
    let mut round = || {
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
    // All the streams have come and gone once, and what a thread or an allocator keeps for the next time is there.
    Held::most(server.process(), 5 * minute, &mut round);
    let early = Held::most(server.process(), 5 * minute, &mut round);
    Held::most(server.process(), 45 * minute, &mut round);
    let late = Held::most(server.process(), 5 * minute, &mut round);
    eprintln!("{n} rounds: {early:?}, then {late:?}");
    assert!(late.memory < early.memory + 4_000_000, "{early:?}, then {late:?}");
    assert!(late.descriptors <= early.descriptors + 8, "{early:?}, then {late:?}");
    assert!(late.threads <= early.threads + 2, "{early:?}, then {late:?}");
    for name in names {
        assert_eq!(sink.sessions().iter().filter(|it| it.name == name).count(), 1, "{name} is relayed all the time");
    }
}
