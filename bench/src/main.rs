//! What a stream costs here and in nginx-rtmp, side by side on one machine in one invocation.
//!
//! The load, publishers and targets, runs in a process of its own ([`load`]), so that the server's processor time
//! is the server's alone. Runs alternate between the servers; only ratios within one invocation mean anything.

mod load;
mod report;
mod whip;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bywash_testkit::publisher::Pace;
use bywash_testkit::server::APP;
use bywash_testkit::{Nginx, Process, Server, Setup, secs};
use serde_json::{Value, json};

const HELP: &str = "bywash-bench: what a stream costs here and in nginx-rtmp

  --seconds N    length of each measured window (10)
  --rounds N     windows per server and scenario, alternating (3)
  --outage N     seconds a target is away (20; 0 leaves this out)
  --only NAME    bywash or nginx alone, to look closer at one
  --scenario N   the Nth scenario alone
  --write-docs   also write docs/benchmark.md

Example: bywash-bench --seconds 30 --rounds 3
Results go to bench/out/latest.json; a table is printed.";

/// A window in which the host of a virtual machine took a larger share of the cores' time than this is measured again, so many times at
/// most; of all tries the one counts from which it took least.
const STOLEN_MAX: f64 = 0.02;
const TRIES: usize = 3;

/// Streams and targets of each.
struct Scenario {
    name: &'static str,
    streams: usize,
    targets: usize,
    /// Published by WHIP, with Opus, which nginx-rtmp has not.
    whip: bool,
    /// No core idles meanwhile.
    awake: bool,
    /// The format in which each stream is recorded; nginx-rtmp has FLV alone.
    record: Option<&'static str>,
}

impl Scenario {
    const fn relay(name: &'static str, streams: usize, targets: usize) -> Scenario {
        Scenario { name, streams, targets, whip: false, awake: false, record: None }
    }

    /// Streams that nobody takes but a recording.
    const fn record(name: &'static str, streams: usize, format: &'static str) -> Scenario {
        Scenario { record: Some(format), ..Scenario::relay(name, streams, 0) }
    }

    /// Whether this server can do it.
    fn is_for(&self, server: &str) -> bool {
        server == "bywash" || !self.whip && self.record.is_none_or(|format| format == "flv")
    }
}

const SCENARIOS: [Scenario; 12] = [
    Scenario::relay("1 → 1", 1, 1),
    Scenario::relay("10 → 10", 10, 1),
    Scenario::relay("1 → 20", 1, 20),
    Scenario { whip: true, ..Scenario::relay("WHIP", 1, 1) },
    Scenario { whip: true, awake: true, ..Scenario::relay("WHIP, cores awake", 1, 1) },
    Scenario { whip: true, ..Scenario::relay("10 × WHIP", 10, 1) },
    Scenario { record: Some("flv"), ..Scenario::relay("10 → 10 + FLV", 10, 1) },
    Scenario::relay("10 streams", 10, 0),
    Scenario::record("10 × FLV", 10, "flv"),
    Scenario::record("10 × MP4", 10, "mp4"),
    Scenario::record("10 × M3U8", 10, "m3u8"),
    Scenario::record("100 × MP4", 100, "mp4"),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|it| it == "load") {
        let number = |n: usize| args.get(n).and_then(|it| it.parse().ok()).expect("load STREAMS TARGETS");
        return load::run(number(1), number(2));
    }
    let (mut seconds, mut rounds, mut outage, mut write_docs) = (10, 3, 20, false);
    let mut servers = vec!["bywash", "nginx"];
    let mut scenarios = &SCENARIOS[..];
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--only" {
            let name = rest.next().cloned().unwrap_or_default();
            servers.retain(|it| *it == name);
            if servers.is_empty() {
                fail("--only takes bywash or nginx");
            }
            continue;
        }
        let mut number = || match rest.next().and_then(|it| it.parse::<u64>().ok()) {
            Some(number) => number,
            None => fail(&format!("{arg} takes a number")),
        };
        match arg.as_str() {
            "--seconds" => seconds = number().max(1),
            "--rounds" => rounds = number().max(1),
            "--outage" => outage = number(),
            "--scenario" => {
                let chosen = usize::try_from(number()).ok().and_then(|n| scenarios.get(n.wrapping_sub(1)));
                let Some(chosen) = chosen else { fail("--scenario takes a number of the table's rows") };
                scenarios = std::slice::from_ref(chosen);
            }
            "--write-docs" => write_docs = true,
            "--help" | "-h" => return println!("{HELP}"),
            _ => fail(&format!("unknown argument {arg}")),
        }
    }
    let mut runs = Vec::new();
    for scenario in scenarios {
        for round in 0..rounds {
            for subject in servers.iter().filter(|it| scenario.is_for(it)) {
                // A target's absence is measured once a server: it takes long and varies little.
                let outage =
                    if round == 0 && scenario.streams * scenario.targets == 1 && !scenario.whip { outage } else { 0 };
                runs.push(undisturbed(|| measure(scenario, subject, seconds, outage)));
            }
        }
    }
    let scenarios: Vec<_> = scenarios.iter().map(|it| it.name).collect();
    let results = json!({ "seconds": seconds, "rounds": rounds, "runs": runs });
    std::fs::create_dir_all("bench/out").expect("a folder for results; run it from the repository's root");
    std::fs::write("bench/out/latest.json", format!("{results:#}\n")).expect("a file of results");
    let table = report::table(&scenarios, &runs, seconds, rounds);
    println!("{table}");
    if write_docs {
        std::fs::create_dir_all("docs").expect("a folder of documents");
        std::fs::write(Path::new("docs/benchmark.md"), report::page(&table)).expect("docs/benchmark.md");
    }
}

fn fail(why: &str) -> ! {
    eprintln!("{why}\n\n{HELP}");
    std::process::exit(2)
}

/// A server under measurement.
enum Subject {
    Bywash(Box<Server>),
    Nginx(Nginx),
}

impl Subject {
    fn start(name: &str, scenario: &Scenario, ports: &[u16]) -> Subject {
        let target = |port: &u16| format!("rtmp://127.0.0.1:{port}/live");
        if name == "nginx" {
            let pushes: Vec<_> = ports.iter().map(|port| format!("push {};", target(port))).collect();
            let pushes = pushes.join(" ");
            let recording = scenario.record.is_some();
            return Subject::Nginx(if recording { Nginx::recording(&pushes) } else { Nginx::with_directives(&pushes) });
        }
        let formats = scenario.record.map(|format| format!("record.Tencent.formats = [{format:?}]"));
        let server = Server::start(Setup::app(formats.unwrap_or_default()));
        for stream in 0..scenario.streams {
            for port in ports {
                server.relay(&format!("s{stream}"), &format!("{}/s{stream}", target(port)));
            }
        }
        Subject::Bywash(Box::new(server))
    }

    /// What publish addresses begin with.
    fn base(&self, whip: bool) -> String {
        match self {
            Subject::Bywash(server) if whip => server.whip("").trim_end_matches('/').to_owned(),
            Subject::Bywash(server) => format!("rtmp://127.0.0.1:{}/{APP}", server.rtmp_port()),
            Subject::Nginx(nginx) => format!("rtmp://127.0.0.1:{}/live", nginx.port()),
        }
    }

    /// Records all streams, which nginx-rtmp does by itself.
    fn record(&self, streams: usize) {
        let Subject::Bywash(server) = self else { return };
        let names: Vec<String> = (0..streams).map(|n| format!("s{n}")).collect();
        names.iter().for_each(|name| drop(server.record(name)));
        names.iter().for_each(|name| server.wait_recording(name, "recording", secs(20)));
    }

    /// Bytes that recordings have taken, and frames that they have skipped; nginx-rtmp does not tell.
    fn recorded(&self) -> Option<(f64, f64)> {
        let Subject::Bywash(server) = self else { return None };
        let (_, page) = server.get("/metrics").expect("metrics");
        let sum = |name: &str| {
            let lines = page.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Some((sum("bywash_recording_bytes_total"), sum("bywash_recording_frames_skipped_total")))
    }

    fn process(&self) -> &Process {
        match self {
            Subject::Bywash(server) => server.process(),
            Subject::Nginx(nginx) => nginx.process(),
        }
    }
}

/// What `measure` gives where the host leaves the machine alone, or as nearly as it comes.
fn undisturbed(mut measure: impl FnMut() -> Value) -> Value {
    let stolen = |run: &Value| run["stolen"].as_f64().unwrap_or(0.0);
    let mut runs = Vec::new();
    loop {
        let run = measure();
        eprintln!("{run}");
        let good = stolen(&run) <= STOLEN_MAX;
        runs.push(run);
        if good || runs.len() == TRIES {
            return runs.into_iter().min_by(|a, b| stolen(a).total_cmp(&stolen(b))).expect("one or more");
        }
    }
}

/// What the host has taken of a core's time until now, on average (proc_stat(5): the eighth number, in hundredths of a second).
fn stolen() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").expect("Linux");
    let cores = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    let hundredths = stat.split_ascii_whitespace().nth(8).and_then(|it| it.parse::<u64>().ok());
    Duration::from_millis(10 * hundredths.unwrap_or(0)) / cores as u32
}

/// Keeps each core from idling by a loop that gives way to all else (`SCHED_IDLE`, sched(7)). A virtual machine's idle core is the host's, which
/// lends it to others and gives it back with cold caches, or slow: more of that in some hours than a stream costs.
fn awake() -> Vec<Process> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("chrt");
    command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
    (0..cores).map(|_| Process::start(&mut command)).collect()
}

/// One window of one server in one scenario.
fn measure(scenario: &Scenario, name: &str, seconds: u64, outage: u64) -> Value {
    let _awake = scenario.awake.then(awake);
    let mut load = Load::start(scenario);
    let ports: Vec<u16> = load.answer().split(' ').filter_map(|port| port.parse().ok()).collect();
    let subject = Subject::start(name, scenario, &ports);
    thread::sleep(secs(1));
    let (idle_rss, idle_from) = (subject.process().rss(), subject.process().cpu());
    thread::sleep(secs(3));
    let idle_cpu = subject.process().cpu() - idle_from;
    load.ask(&format!("publish {}", subject.base(scenario.whip)));
    assert_eq!(load.answer(), "flowing");
    thread::sleep(secs(if scenario.record.is_some() { 5 } else { 3 }));
    let unrecorded_rss = subject.process().rss();
    if scenario.record.is_some() {
        subject.record(scenario.streams);
        thread::sleep(secs(3));
    }
    load.ask("window");
    let (begin, stolen_before) = (Instant::now(), stolen());
    let recorded_from = subject.recorded();
    let before = subject.process().cpu();
    thread::sleep(Duration::from_secs(seconds));
    let cpu = subject.process().cpu() - before;
    let rss = subject.process().rss();
    let recorded = subject.recorded().zip(recorded_from).filter(|_| scenario.record.is_some());
    load.ask("report");
    let arrived: Value = serde_json::from_str(&load.answer()).expect("a report of ours");
    let back = (outage > 0).then(|| {
        load.ask(&format!("outage {outage}"));
        load.answer().parse::<f64>().expect("seconds")
    });
    let cpu_ms = cpu.as_secs_f64() * 1e3;
    let per_stream = cpu_ms / seconds as f64 / scenario.streams as f64;
    let megabits = arrived["bytes"].as_f64().unwrap_or(0.0) * 8e-6;
    let expected = 30 * seconds * (scenario.streams * scenario.targets) as u64;
    let mut run = json!({
        "scenario": scenario.name,
        "server": name,
        "cpu_ms_per_stream_second": per_stream,
        "cpu_ms_per_megabit": cpu_ms / megabits,
        "p50_ms": arrived["p50_ms"],
        "p99_ms": arrived["p99_ms"],
        "delivered": arrived["pictures"].as_f64().unwrap_or(0.0) / expected as f64,
        "rss_mb_per_stream": rss.saturating_sub(idle_rss) as f64 / 1e6 / scenario.streams as f64,
        "idle_rss_mb": idle_rss as f64 / 1e6,
        "idle_cpu_ms_per_second": idle_cpu.as_secs_f64() * 1e3 / 3.0,
        "target_back_seconds": back,
    });
    if let Some((now, from)) = recorded {
        let expected = Pace::FULL.bytes_per_second() * (seconds as usize * scenario.streams) as f64;
        run["recorded"] = json!((now.0 - from.0) / expected);
        run["frames_skipped"] = json!(now.1);
        run["rss_mb_per_recording"] =
            json!((rss as f64 - unrecorded_rss as f64).max(0.0) / 1e6 / scenario.streams as f64);
    }
    if scenario.whip {
        let parts = whip::bare();
        for (field, whole) in [("of_bare", "bare_ms"), ("of_real_time", "real_time_ms")] {
            run[field] = json!(per_stream / parts[whole].as_f64().unwrap_or(f64::NAN));
        }
        run.as_object_mut().expect("it is one").extend(parts.as_object().cloned().unwrap_or_default());
    }
    run["stolen"] = json!((stolen() - stolen_before).as_secs_f64() / begin.elapsed().as_secs_f64());
    run
}

/// The load's process and the lines that go to and fro.
struct Load {
    process: Process,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Load {
    fn start(scenario: &Scenario) -> Load {
        let this = std::env::current_exe().expect("a running program");
        let mut command = Command::new(this);
        command.args(["load", &scenario.streams.to_string(), &scenario.targets.to_string()]);
        let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let answers = BufReader::new(process.child().stdout.take().expect("it is piped")).lines();
        Load { process, answers }
    }

    fn ask(&mut self, line: &str) {
        writeln!(self.process.child().stdin.as_ref().expect("it is piped"), "{line}").expect("the load runs");
    }

    fn answer(&mut self) -> String {
        self.answers.next().expect("the load answers").expect("it is text")
    }
}
