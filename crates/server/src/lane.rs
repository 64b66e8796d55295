//! Media threads: a stream and its outputs run on one of them.
//!
//! A frame's way from the publisher's socket to a target's then crosses no thread, and a wake-up costs less than the work it
//! announces. A lane is a single-threaded runtime; few busy lanes cost less than many idle ones, so a lane is filled
//! to half a core before the next is used.
//!
//! Invariant: a lane with nothing on it sleeps; its ticks run only while a [`Seat`] is taken.

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
    shared: Arc<Shared>,
    beat: watch::Receiver<()>,
}

/// A place on a lane: while one is taken, the lane ticks.
pub struct Seat {
    shared: Arc<Shared>,
    beat: watch::Receiver<()>,
}

#[derive(Default)]
struct Shared {
    seats: AtomicUsize,
    taken: Notify,
    load: AtomicU64,
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
        let load = |lane: &&Lane| lane.shared.load.load(Ordering::Relaxed);
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
        let shared = Arc::<Shared>::default();
        let beat = watch::Sender::new(());
        // Name look-ups are the only blocking work here; a slow name server must not take every thread of the process.
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(128).build()?;
        let lane = Lane { handle: runtime.handle().clone(), shared: shared.clone(), beat: beat.subscribe() };
        runtime.spawn(ticks(shared, beat));
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

    /// Takes a place, and with it the lane's ticks.
    pub fn sit(&self) -> Seat {
        self.shared.seats.fetch_add(1, Ordering::Relaxed);
        self.shared.taken.notify_one();
        let mut seat = Seat { shared: self.shared.clone(), beat: self.beat.clone() };
        seat.beat.mark_unchanged();
        seat
    }
}

impl Seat {
    /// The next [`BEAT`], again and again: polled for each picture, so it stays registered between two ticks.
    pub fn beats(&self) -> Ticks {
        Ticks::new(self.beat.clone())
    }
}

/// Ticks of a lane, one after the other.
pub struct Ticks(Pin<Box<dyn Future<Output = watch::Receiver<()>> + Send>>);

impl Ticks {
    fn new(ticks: watch::Receiver<()>) -> Ticks {
        Ticks(Box::pin(tick(ticks)))
    }
}

impl Future for Ticks {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ticks = ready!(self.0.as_mut().poll(cx));
        *self = Ticks::new(ticks);
        Poll::Ready(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.seats.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn tick(mut ticks: watch::Receiver<()>) -> watch::Receiver<()> {
    if ticks.changed().await.is_err() {
        // The lane is being stopped, and this task with it.
        pending::<()>().await;
    }
    ticks
}

/// One tick for all connections of a lane: a timer for each would wake the thread for each. The kernel keeps it, since a timer of
/// the runtime costs two more wake-ups and two more system calls every time that it is set again.
async fn ticks(shared: Arc<Shared>, beat: watch::Sender<()>) {
    loop {
        while shared.seats.load(Ordering::Relaxed) == 0 {
            shared.load.store(0, Ordering::Relaxed);
            shared.taken.notified().await;
        }
        if let Err(error) = tick_on(&shared, &beat).await {
            // Out of file descriptors: publishers are not served worse for it than a sound that waits for the next picture.
            tracing::warn!(%error, "a media thread does not tick");
            tokio::time::sleep(BEAT).await;
        }
    }
}

/// Ticks until nobody sits on the lane.
async fn tick_on(shared: &Shared, beat: &watch::Sender<()>) -> std::io::Result<()> {
    let metronome = Metronome::new(BEAT)?;
    let mut used = sys::thread_cpu_time();
    while shared.seats.load(Ordering::Relaxed) > 0 {
        metronome.beat().await?;
        beat.send_replace(());
        let now = sys::thread_cpu_time();
        shared.load.store((now - used).as_millis() as u64, Ordering::Relaxed);
        used = now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lane_ticks_only_while_somebody_sits_on_it() {
        let lanes = Lanes::start(1).unwrap();
        let lane = lanes.pick();
        let seat = lane.sit();
        let mut beats = seat.beats();
        for _ in 0..2 {
            (&mut beats).await;
        }
        drop(seat);
        // The tick that may be under way, and no other.
        let _ = tokio::time::timeout(2 * BEAT, &mut beats).await;
        assert!(tokio::time::timeout(2 * BEAT, &mut beats).await.is_err());
    }
}
