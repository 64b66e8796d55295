//! The load: paced publishers and the targets that take what is relayed, in one process so that one clock stamps
//! both ends. It is told what to do by lines on stdin.

use std::io::stdin;
use std::thread;
use std::time::{Duration, Instant};

use bywash_testkit::publisher::{Flow, Pace};
use bywash_testkit::rtc::{self, Flock};
use bywash_testkit::sink::{Arrival, latencies, quantile};
use bywash_testkit::{Manner, Publisher, Sink, eventually, secs};
use serde_json::json;

use crate::whip;

/// Serves the lines `publish BASE`, `window`, `report`, `outage SECONDS` until stdin ends.
pub fn run(streams: usize, targets: usize) {
    let sinks: Vec<Sink> = (0..targets).map(|_| Sink::start(Manner::Take)).collect();
    let ports: Vec<String> = sinks.iter().map(|sink| sink.port().to_string()).collect();
    println!("{}", ports.join(" "));
    let names: Vec<String> = (0..streams).map(|n| format!("s{n}")).collect();
    let (mut flow, mut flock, mut from) = (None, None, Instant::now());
    for line in stdin().lines() {
        let line = line.expect("text of ours");
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("publish", base) => {
                if base.starts_with("http:") {
                    let addresses: Vec<_> = names.iter().map(|name| format!("{base}/{name}")).collect();
                    flock = Some(Flock::start(
                        &addresses,
                        Some(rtc::Media { pace: Pace::FULL, opus: whip::opus().1.into() }),
                    ));
                } else {
                    let connect = |name| Publisher::connect(&format!("{base}/{name}")).expect("a publish is taken");
                    flow = Some(Flow::start(names.iter().map(connect).collect(), Pace::FULL));
                }
                for sink in &sinks {
                    names.iter().for_each(|name| sink.wait_for(name, secs(20)));
                }
                println!("flowing");
            }
            ("window", _) => from = Instant::now(),
            ("report", _) => {
                let till = Instant::now();
                let sessions = sinks.iter().flat_map(Sink::sessions);
                let arrivals: Vec<Arrival> =
                    sessions.flat_map(|it| it.arrivals).filter(|it| it.at > from && it.at <= till).collect();
                let late = latencies(&arrivals, |from, to| to - from);
                let late_at = |share| (!late.is_empty()).then(|| quantile(&late, share));
                let report = json!({
                    "bytes": arrivals.iter().map(|it| u64::from(it.size)).sum::<u64>(),
                    "pictures": late.len(),
                    "p50_ms": late_at(0.5),
                    "p99_ms": late_at(0.99),
                });
                println!("{report}");
            }
            ("outage", seconds) => {
                sinks[0].shut();
                thread::sleep(Duration::from_secs(seconds.parse().expect("a number of ours")));
                let had = sinks[0].pictures("s0");
                let up = Instant::now();
                sinks[0].open();
                eventually("the target is back", secs(120), || (sinks[0].pictures("s0") > had).then_some(()));
                let session = sinks[0].session("s0").expect("it is back");
                let first = session.arrivals.iter().find(|it| !it.is_header()).expect("it has pictures");
                println!("{:.3}", first.at.duration_since(up).as_secs_f64());
            }
            _ => panic!("unknown line: {line}"),
        }
    }
    drop((flow, flock));
}
