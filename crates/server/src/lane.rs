//! Media threads: a stream and its outputs run on one of them.
//!
//! A frame's way from the publisher's socket to a target's then crosses no thread, and a wake-up costs less than the work it
//! announces. A lane is a single-threaded runtime; few busy lanes cost less than many idle ones, so a lane is filled
//! to half a core before the next is used.
//!
//! Invariant: a lane with nothing on it sleeps; it ticks only for who holds its [`Ticks`].

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::sys::{self, Metronome};

/// How often a lane's connections look after what no frame brings up: what was acknowledged, what is held back in vain. Each
/// costs a wake-up, of which a stream has thirty a second.
pub const BEAT: Duration = Duration::from_secs(1);

/// How often those look that take a stream in larger pieces.
pub const SWEEP: Duration = Duration::from_millis(200);

/// A lane is full when it has used this share of a core over the last second, in thousandths.
const FULL: u64 = 500;

/// All media threads. Dropping it stops them.
pub struct Lanes {
    lanes: Vec<Lane>,
    stop: CancellationToken,
}

/// One media thread.
#[derive(Clone)]
pub struct Lane {
    handle: Handle,
    /// CPU time used over the last second, in thousandths.
    load: Arc<AtomicU64>,
    beat: Arc<Pulse>,
    sweep: Arc<Pulse>,
}

/// A tick of a lane that all share: a timer for each would wake the thread for each.
struct Pulse {
    every: Duration,
    holders: AtomicUsize,
    /// Somebody holds it again.
    held: Notify,
    tick: watch::Sender<()>,
}

impl Lanes {
    /// Starts `count` threads.
    pub fn start(count: usize) -> std::io::Result<Lanes> {
        let stop = CancellationToken::new();
        let lanes = (0..count).map(|n| Lane::start(n, stop.clone())).collect::<Result<_, _>>()?;
        Ok(Lanes { lanes, stop })
    }

    /// The lane for a new connection: the first that is not full, else the least busy.
    pub fn pick(&self) -> &Lane {
        let load = |lane: &&Lane| lane.load.load(Ordering::Relaxed);
        let free = self.lanes.iter().find(|lane| load(lane) < FULL);
        free.or_else(|| self.lanes.iter().min_by_key(load)).expect("there is at least one lane")
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Lane {
    fn start(n: usize, stop: CancellationToken) -> std::io::Result<Lane> {
        // Name look-ups are the only blocking work here; a slow name server must not take every thread of the process.
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(128).build()?;
        let (beat, sweep) = (Pulse::new(BEAT), Pulse::new(SWEEP));
        let lane = Lane { handle: runtime.handle().clone(), load: Arc::default(), beat, sweep };
        let (load, mut used) = (lane.load.clone(), Duration::ZERO);
        runtime.spawn(lane.beat.clone().run(move |ticks| {
            let now = sys::thread_cpu_time();
            let load_now = if ticks { (now - used).as_millis() as u64 } else { 0 };
            load.store(load_now, Ordering::Relaxed);
            used = now;
        }));
        runtime.spawn(lane.sweep.clone().run(|_| {}));
        std::thread::Builder::new().name(format!("media-{n}")).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = pending() => {}
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

    /// A tick each [`BEAT`].
    pub fn beats(&self) -> Ticks {
        Ticks::of(&self.beat)
    }

    /// A tick each [`SWEEP`].
    pub fn sweeps(&self) -> Ticks {
        Ticks::of(&self.sweep)
    }
}

/// Ticks of a lane, one after the other: a future to be polled again and again. It is polled for each picture, so it stays registered
/// between two ticks.
pub struct Ticks {
    pulse: Arc<Pulse>,
    next: Pin<Box<dyn Future<Output = watch::Receiver<()>> + Send>>,
}

impl Ticks {
    fn of(pulse: &Arc<Pulse>) -> Ticks {
        pulse.holders.fetch_add(1, Ordering::Relaxed);
        pulse.held.notify_one();
        Ticks { pulse: pulse.clone(), next: Box::pin(tick(pulse.tick.subscribe())) }
    }
}

impl Future for Ticks {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ticks = ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(tick(ticks));
        Poll::Ready(())
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.pulse.holders.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn tick(mut ticks: watch::Receiver<()>) -> watch::Receiver<()> {
    if ticks.changed().await.is_err() {
        // The lane is being stopped, and this task with it.
        pending::<()>().await;
    }
    ticks
}

impl Pulse {
    fn new(every: Duration) -> Arc<Pulse> {
        let tick = watch::Sender::new(());
        Arc::new(Pulse { every, holders: AtomicUsize::new(0), held: Notify::new(), tick })
    }

    /// Ticks while somebody holds it. `each` hears of every tick, and with `false` that there is none for now.
    async fn run(self: Arc<Pulse>, mut each: impl FnMut(bool)) {
        loop {
            while self.holders.load(Ordering::Relaxed) == 0 {
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
        while self.holders.load(Ordering::Relaxed) > 0 {
            metronome.beat().await?;
            self.tick.send_replace(());
            each(true);
        }
        each(false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lane_ticks_only_for_who_wants_it() {
        let lanes = Lanes::start(1).unwrap();
        let lane = lanes.pick();
        let (mut first, mut second) = (lane.sweeps(), lane.sweeps());
        for _ in 0..3 {
            (&mut first).await;
        }
        drop(first);
        (&mut second).await;
        let mut left_over = lane.sweep.tick.subscribe();
        drop(second);
        // The tick that may be under way, and no other.
        let _ = tokio::time::timeout(2 * SWEEP, left_over.changed()).await;
        assert!(tokio::time::timeout(2 * SWEEP, left_over.changed()).await.is_err());
    }
}
