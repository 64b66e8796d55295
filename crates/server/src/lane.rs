//! Media threads: a stream and its outputs run on one of them.
//!
//! A frame's way from the publisher's socket to a target's then crosses no thread, and a wake-up costs less than the work it
//! announces. A lane is a single-threaded runtime; few busy lanes cost less than many idle ones, so a lane is filled
//! to half a core before the next is used.
//!
//! Invariant: a lane with nothing on it sleeps; it ticks only for who holds its [`Ticks`].

mod names;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::sys::{self, Metronome};

pub use self::names::Names;

/// How often a lane's connections look after what no frame brings up: what was acknowledged, what is held back in vain. Each
/// costs a wake-up, of which a stream has thirty a second.
pub const BEAT: Duration = Duration::from_secs(1);

/// How often those look that take a stream in larger pieces.
pub const SWEEP: Duration = Duration::from_millis(200);

/// A lane is full when it has used this share of a core over the last second, in thousandths.
const FULL: u64 = 500;

/// What a connection is taken to cost until that is measured, in thousandths: a stream with one target. After a restart all come within
/// one second.
const EXPECTED: u64 = 5;

/// All media threads. Dropping it stops them.
pub struct Lanes {
    lanes: Vec<Lane>,
    stop: CancellationToken,
    ended: CancellationToken,
}

/// One media thread.
#[derive(Clone)]
pub struct Lane {
    handle: Handle,
    /// CPU time used over the last second, in thousandths, and what is expected of those that came since.
    load: Arc<AtomicU64>,
    beat: Arc<Pulse>,
    sweep: Arc<Pulse>,
    names: Arc<Names>,
}

/// A tick of a lane that all share: a timer for each would wake the thread for each.
struct Pulse {
    every: Duration,
    holders: Mutex<Vec<Arc<Holder>>>,
    /// Somebody holds it again.
    held: Notify,
}

/// What [`Ticks`] and their [`Pulse`] have in common.
#[derive(Default)]
struct Holder {
    ticked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Lanes {
    /// Starts `count` threads.
    pub fn start(count: usize) -> std::io::Result<Lanes> {
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let names = Names::new();
        let start = |n| Lane::start(n, names.clone(), stop.clone(), ended.clone().drop_guard());
        let lanes = (0..count).map(start).collect::<Result<_, _>>()?;
        Ok(Lanes { lanes, stop, ended })
    }

    /// Cancelled when one of the threads ends: all do when they are stopped, one does when it panics.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// The lane for a new connection: the first that is not full, else the least busy.
    pub fn pick(&self) -> &Lane {
        let load = |lane: &&Lane| lane.load.load(Ordering::Relaxed);
        let free = self.lanes.iter().find(|lane| load(lane) < FULL);
        let lane = free.or_else(|| self.lanes.iter().min_by_key(load)).expect("there is at least one lane");
        lane.load.fetch_add(EXPECTED, Ordering::Relaxed);
        lane
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Lane {
    fn start(n: usize, names: Arc<Names>, stop: CancellationToken, ended: DropGuard) -> std::io::Result<Lane> {
        // Beside look-ups there is little that blocks here; a slow name server must not take every thread of the process.
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(names::MOST + 16).build()?;
        let (beat, sweep) = (Pulse::new(BEAT), Pulse::new(SWEEP));
        let lane = Lane { handle: runtime.handle().clone(), load: Arc::default(), beat, sweep, names };
        let (load, mut used) = (lane.load.clone(), Duration::ZERO);
        let beats = runtime.spawn(lane.beat.clone().run(move |ticks| {
            let now = sys::thread_cpu_time();
            let load_now = if ticks { (now - used).as_millis() as u64 } else { 0 };
            load.store(load_now, Ordering::Relaxed);
            used = now;
        }));
        let sweeps = runtime.spawn(lane.sweep.clone().run(|_| {}));
        std::thread::Builder::new().name(format!("media-{n}")).spawn(move || {
            let _ended = ended;
            runtime.block_on(async {
                // The pulses end only if they panic, and who is on the lane waits for them in vain then.
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = beats => {}
                    _ = sweeps => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(lane)
    }

    /// Runs `task` on this lane.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(task)
    }

    /// The lane's runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The look-ups of names, which all lanes share.
    pub fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// A tick each [`BEAT`].
    pub fn beats(&self) -> Ticks {
        Ticks::of(&self.beat)
    }

    /// A tick each [`SWEEP`].
    pub fn sweeps(&self) -> Ticks {
        Ticks::of(&self.sweep)
    }
}

impl Holder {
    fn tick(&self) {
        let mut waker = self.waker.lock().expect("no holder panics");
        self.ticked.store(true, Ordering::Relaxed);
        let woken = waker.take();
        drop(waker);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// Ticks of a lane, one after the other: a future to be polled again and again. It is polled for each picture, so that costs little.
pub struct Ticks {
    pulse: Arc<Pulse>,
    holder: Arc<Holder>,
}

impl Ticks {
    fn of(pulse: &Arc<Pulse>) -> Ticks {
        let holder = Arc::<Holder>::default();
        pulse.holders().push(holder.clone());
        pulse.held.notify_one();
        Ticks { pulse: pulse.clone(), holder }
    }
}

impl Future for Ticks {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waker = self.holder.waker.lock().expect("no holder panics");
        if self.holder.ticked.swap(false, Ordering::Relaxed) {
            return Poll::Ready(());
        }
        if !waker.as_ref().is_some_and(|it| it.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.pulse.holders().retain(|it| !Arc::ptr_eq(it, &self.holder));
    }
}

impl Pulse {
    fn new(every: Duration) -> Arc<Pulse> {
        Arc::new(Pulse { every, holders: Mutex::default(), held: Notify::new() })
    }

    fn holders(&self) -> MutexGuard<'_, Vec<Arc<Holder>>> {
        self.holders.lock().expect("no holder panics")
    }

    /// Ticks while somebody holds it. `each` hears of every tick, and with `false` that there is none for now.
    async fn run(self: Arc<Pulse>, mut each: impl FnMut(bool)) {
        loop {
            while self.holders().is_empty() {
                self.held.notified().await;
            }
            if let Err(error) = self.tick(&mut each).await {
                // Out of file descriptors: publishers are not served worse for it than a sound that waits for the next picture.
                tracing::warn!(%error, "a media thread does not tick");
                tokio::time::sleep(BEAT).await;
            }
        }
    }

    /// Ticks until nobody holds it. The kernel keeps the time, since a timer of the runtime costs two more wake-ups and two more
    /// system calls every time that it is set again.
    async fn tick(&self, each: &mut impl FnMut(bool)) -> std::io::Result<()> {
        let metronome = Metronome::new(self.every)?;
        while !self.holders().is_empty() {
            metronome.beat().await?;
            let holders = self.holders().clone();
            for holder in holders {
                holder.tick();
            }
            each(true);
        }
        each(false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_come_at_once_are_spread() {
        let lanes = Lanes::start(2).unwrap();
        let first = |lane: &Lane| Arc::ptr_eq(&lane.load, &lanes.lanes[0].load);
        let on_first = |count: usize| (0..count).filter(|_| first(lanes.pick())).count();
        assert_eq!(on_first(50), 50, "few lanes cost less");
        assert_eq!(on_first(250), 50 + 50, "both are full at 100 each, and the rest is shared");
    }

    #[tokio::test]
    async fn who_needs_the_lanes_hears_that_one_has_panicked() {
        let lanes = Lanes::start(2).unwrap();
        let pulse = lanes.pick().beat.clone();
        assert!(!lanes.ended().is_cancelled());
        std::thread::spawn(move || {
            let _poisons = pulse.holders();
            panic!("as meant");
        })
        .join()
        .unwrap_err();
        lanes.pick().beat.held.notify_one();
        tokio::time::timeout(Duration::from_secs(5), lanes.ended().cancelled()).await.unwrap();
    }

    #[tokio::test]
    async fn a_lane_ticks_only_for_who_wants_it() {
        const EVERY: Duration = Duration::from_millis(10);
        let pulse = Pulse::new(EVERY);
        let (count, counted) = (Arc::new(AtomicU64::new(0)), |count: &AtomicU64| count.load(Ordering::Relaxed));
        let ticked = count.clone();
        let each = move |ticks: bool| {
            ticked.fetch_add(ticks.into(), Ordering::Relaxed);
        };
        let running = tokio::spawn(pulse.clone().run(each));
        tokio::time::sleep(5 * EVERY).await;
        assert_eq!(counted(&count), 0, "nobody holds it");

        let (mut first, mut second) = (Ticks::of(&pulse), Ticks::of(&pulse));
        for _ in 0..3 {
            (&mut first).await;
        }
        drop(first);
        (&mut second).await;
        (&mut second).await;
        drop(second);
        // The tick that may be under way, and no other.
        tokio::time::sleep(5 * EVERY).await;
        let before = counted(&count);
        assert!(before >= 4);
        tokio::time::sleep(5 * EVERY).await;
        assert_eq!(counted(&count), before);
        running.abort();
    }
}
