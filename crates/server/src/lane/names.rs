//! Looks up the names of targets. The system's resolver blocks, and a name server that is silent keeps it for half a minute.
//!
//! Invariant: a name is looked up once at a time, however often it is asked for, and names that were slow the last time leave threads to
//! the others.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout_at;

/// Look-ups at a time. Each keeps a thread.
pub(super) const MOST: usize = 112;

/// Of them, those of names that were slow the last time.
const MOST_SLOW: usize = MOST / 2;

/// How long a look-up takes that is slow: no name server that is well takes a tenth of it.
const SLOW: Duration = Duration::from_secs(2);

/// How long it is remembered that a name was slow. Who wants it asks more often.
const MEMORY: Duration = Duration::from_secs(600);

/// The system's resolver.
type LookUp = fn(&str) -> io::Result<Vec<SocketAddr>>;

/// What came of a look-up; the port is none.
type Answer = Result<Vec<SocketAddr>, String>;

/// The look-ups of all media threads.
pub struct Names {
    look_up: LookUp,
    slots: Arc<Semaphore>,
    slow_slots: Arc<Semaphore>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The look-ups that run.
    asked: HashMap<String, watch::Receiver<Option<Answer>>>,
    /// The names that were slow the last time, and when that was.
    slow: HashMap<String, Instant>,
}

/// A place among the look-ups that may run, the second among the slow ones.
type Slot = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Names {
    pub(super) fn new() -> Arc<Names> {
        Names::with(|name| Ok((name, 0).to_socket_addrs()?.collect()))
    }

    fn with(look_up: LookUp) -> Arc<Names> {
        let slots = |most| Arc::new(Semaphore::new(most));
        Arc::new(Names { look_up, slots: slots(MOST), slow_slots: slots(MOST_SLOW), known: Mutex::default() })
    }

    /// The addresses of `host`, which may be one itself, or why there are none at `deadline`. A look-up that takes longer goes on, and
    /// who asks again waits for the same one.
    pub async fn find(self: &Arc<Names>, host: &str, port: u16, deadline: tokio::time::Instant) -> Answer {
        if let Ok(ip) = host.parse() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let late = |why: &str| format!("the name {host} was not resolved in time{why}");
        let asked = self.known().asked.get(host).cloned();
        let mut asked = match asked {
            Some(asked) => asked,
            None => {
                let slot = timeout_at(deadline, self.slot(host)).await;
                self.ask(host, slot.map_err(|_| late(": too many others hang"))?)
            }
        };
        let answer = timeout_at(deadline, asked.wait_for(Option::is_some)).await.map_err(|_| late(""))?;
        let mut found = answer.ok().and_then(|it| it.clone()).unwrap_or_else(|| Err("the server stops".into()))?;
        found.iter_mut().for_each(|addr| addr.set_port(port));
        Ok(found)
    }

    async fn slot(&self, host: &str) -> Slot {
        let acquire = async |slots: &Arc<Semaphore>| slots.clone().acquire_owned().await.expect("it is never closed");
        let is_slow = self.known().slow.contains_key(host);
        let slow = if is_slow { Some(acquire(&self.slow_slots).await) } else { None };
        (acquire(&self.slots).await, slow)
    }

    /// The look-up of `name`: a new one, unless another has begun it in the meantime.
    fn ask(self: &Arc<Names>, name: &str, slot: Slot) -> watch::Receiver<Option<Answer>> {
        let mut known = self.known();
        if let Some(asked) = known.asked.get(name) {
            return asked.clone();
        }
        let (answer, asked) = watch::channel(None);
        known.asked.insert(name.to_owned(), asked.clone());
        let (names, name) = (self.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || {
            let (begin, _slot) = (Instant::now(), slot);
            let found = (names.look_up)(&name).map_err(|error| format!("cannot resolve {name}: {error}"));
            let mut known = names.known();
            known.asked.remove(&name);
            known.slow.remove(&name);
            if begin.elapsed() >= SLOW {
                known.slow.retain(|_, at| at.elapsed() < MEMORY);
                known.slow.insert(name, Instant::now());
            }
            answer.send_replace(Some(found));
        });
        asked
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use super::*;

    fn soon() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_millis(100)
    }

    fn in_time() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(10)
    }

    fn found() -> io::Result<Vec<SocketAddr>> {
        Ok(vec![([192, 0, 2, 1], 0).into()])
    }

    /// Waits until `open`.
    fn hang(open: &AtomicBool) {
        while !open.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_at_a_time_and_who_asks_again_gets_what_comes_of_it() {
        static OPEN: AtomicBool = AtomicBool::new(false);
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let names = Names::with(|_| {
            COUNT.fetch_add(1, Relaxed);
            hang(&OPEN);
            found()
        });
        for _ in 0..3 {
            let late = Err("the name cdn.example was not resolved in time".to_owned());
            assert_eq!(names.find("cdn.example", 1935, soon()).await, late);
        }
        let (again, opening) = (names.find("cdn.example", 1935, in_time()), async { OPEN.store(true, Relaxed) });
        assert_eq!(tokio::join!(again, opening).0, Ok(vec![([192, 0, 2, 1], 1935).into()]));
        assert_eq!(COUNT.load(Relaxed), 1);
        assert!(names.find("cdn.example", 443, in_time()).await.is_ok() && COUNT.load(Relaxed) == 2, "nothing is kept");
        assert!(names.find("::1", 443, soon()).await.is_ok() && COUNT.load(Relaxed) == 2, "an address is no name");
    }

    #[tokio::test]
    async fn names_that_hung_leave_threads_to_those_that_did_not() {
        static OPEN: AtomicBool = AtomicBool::new(false);
        let names = Names::with(|name| {
            if name.starts_with("hung") {
                hang(&OPEN);
            }
            found()
        });
        let hung: Vec<_> = (0..200).map(|n| format!("hung-{n}.example")).collect();
        names.known().slow.extend(hung.iter().map(|name| (name.clone(), Instant::now())));
        let mut late = Vec::new();
        for name in &hung {
            late.push(tokio::spawn({
                let (names, name) = (names.clone(), name.clone());
                async move { names.find(&name, 1935, soon()).await }
            }));
        }
        assert!(names.find("cdn.example", 1935, in_time()).await.is_ok());
        let (mut asked, mut waited) = (0, 0);
        for task in late {
            let error = task.await.unwrap().unwrap_err();
            *(if error.ends_with("in time: too many others hang") { &mut waited } else { &mut asked }) += 1;
        }
        assert_eq!((asked, waited), (MOST_SLOW, 200 - MOST_SLOW));
        OPEN.store(true, Relaxed);
        assert!(names.find(&hung[199], 1935, in_time()).await.is_ok(), "those that waited have their turn");
        assert!(!names.known().slow.contains_key(&hung[199]), "it is as good as any other again");
    }
}
