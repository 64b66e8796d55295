//! When the machine stood still: a virtual one does while its host serves others.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often each core is looked at.
const TICK: Duration = Duration::from_millis(1);

/// A sleep of a tick that takes so long did not end when it should have.
const LATE: Duration = Duration::from_millis(2);

/// How long a test waits for a machine that is there.
const PATIENCE: Duration = Duration::from_secs(300);

/// Cores that are watched: on a larger machine one that stands still need not concern a test.
const CORES: usize = 4;

/// Watches the cores until it is dropped. A thread that goes before all others sleeps on each for a tick at a time: when it comes late,
/// the core was not there. What the programs under test do, however busily, does not make it late.
pub struct Machine {
    away: Arc<Mutex<Vec<Range<Instant>>>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Begins to watch.
    pub fn watch() -> Machine {
        let (away, ended) = (Arc::default(), Arc::default());
        let watch_core = |core: usize| {
            let (away, ended) = (Arc::clone(&away), Arc::clone(&ended));
            thread::spawn(move || watch_core(core, &away, &ended))
        };
        let threads = cores().into_iter().take(CORES).map(watch_core).collect();
        Machine { away, ended, threads }
    }

    /// Has `judge` measure and assert what nobody can without the machine, as a browser's camera runs in real time. Where that fails and
    /// the machine was away for more than a tenth of the time, it is done again once the machine is there. If it is not for minutes,
    /// nothing is judged: the log says so, past what the test harness keeps to itself.
    pub fn there(mut judge: impl FnMut()) {
        let begin = Instant::now();
        loop {
            let (judged, stayed) = was_there(|| catch_unwind(AssertUnwindSafe(&mut judge)));
            match judged {
                Ok(()) => return,
                Err(panic) if stayed => resume_unwind(panic),
                Err(_) if begin.elapsed() >= PATIENCE => break,
                Err(_) => while !was_there(|| thread::sleep(Duration::from_secs(2))).1 && begin.elapsed() < PATIENCE {},
            }
        }
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(io::stderr(), "{test}: not judged, the machine is away too much");
    }

    /// How much of the time between two moments all cores were there. They are a tick ago or more, or the last of it is not known yet.
    pub fn ran(&self, from: Instant, to: Instant) -> Duration {
        let away = self.away.lock().expect("no holder panics");
        (to - from).saturating_sub(covered(&away, from..to))
    }

    /// The rest of it.
    pub fn away(&self, from: Instant, to: Instant) -> Duration {
        (to - from) - self.ran(from, to)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What `measure` gives, and whether the machine was there all but a tenth of the time.
fn was_there<T>(measure: impl FnOnce() -> T) -> (T, bool) {
    let (machine, begin) = (Machine::watch(), Instant::now());
    let found = measure();
    let end = Instant::now();
    thread::sleep(TICK * 10);
    let (ran, took) = (machine.ran(begin, end), end - begin);
    println!("the machine was there {ran:.1?} of {took:.1?}");
    (found, ran > took * 9 / 10)
}

fn watch_core(core: usize, away: &Mutex<Vec<Range<Instant>>>, ended: &AtomicBool) {
    let thread = fs::read_link("/proc/thread-self").expect("Linux");
    let thread = thread.file_name().expect("a number").to_owned();
    let run = |command: &mut Command| command.arg(&thread).stdout(Stdio::null()).status();
    run(Command::new("taskset").args(["--cpu-list", "--pid", &core.to_string()])).expect("util-linux is there");
    // Refused to who is not root. A busy server then seems away for a moment: the test forgives it more than it should.
    run(Command::new("chrt").args(["--fifo", "--pid", "10"])).expect("util-linux is there");
    while !ended.load(Relaxed) {
        let slept = Instant::now();
        thread::sleep(TICK);
        if slept.elapsed() > LATE {
            away.lock().expect("no holder panics").push(slept + TICK..Instant::now());
        }
    }
}

/// The cores that this process may run on.
fn cores() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let list = status.lines().find_map(|it| it.strip_prefix("Cpus_allowed_list:")).expect("a list of cores");
    let range = |it: &str| {
        let (first, last) = it.split_once('-').unwrap_or((it, it));
        let number = |it: &str| it.parse::<usize>().expect("the number of a core");
        number(first)..=number(last)
    };
    list.trim().split(',').flat_map(range).collect()
}

/// How much of `span` lies in one of `ranges` or more.
fn covered(ranges: &[Range<Instant>], span: Range<Instant>) -> Duration {
    let clipped = ranges.iter().map(|it| it.start.max(span.start)..it.end.min(span.end));
    let mut inside: Vec<_> = clipped.filter(|it| it.start < it.end).collect();
    inside.sort_by_key(|it| it.start);
    let mut until = span.start;
    let parts = inside.into_iter().map(|it| {
        let part = it.end.saturating_duration_since(it.start.max(until));
        until = until.max(it.end);
        part
    });
    parts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_cover_counts_once() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let ranges = [at(70)..at(90), at(0)..at(20), at(10)..at(30), at(12)..at(14), at(40)..at(50)];
        for (from, to, covers) in [(0, 100, 60), (5, 25, 20), (30, 40, 0), (45, 80, 15), (90, 100, 0), (13, 13, 0)] {
            assert_eq!(covered(&ranges, at(from)..at(to)), Duration::from_millis(covers), "{from} to {to}");
        }
    }

    #[test]
    fn time_of_a_machine_that_is_there_counts_though_it_is_busy() {
        let machine = Machine::watch();
        // Of a host that others use too, some of ten spans are its own.
        let busiest = (0..10).map(|_| {
            let begin = Instant::now();
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| while begin.elapsed() < Duration::from_millis(100) {});
                }
            });
            let end = Instant::now();
            thread::sleep(TICK * 10);
            machine.ran(begin, end).as_secs_f64() / (end - begin).as_secs_f64()
        });
        let best = busiest.fold(0.0, f64::max);
        assert!(best > 0.5, "{best} of the time");
    }
}
