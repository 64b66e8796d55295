//! A name server that takes its time.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::Scratch;

/// Knows every name as 127.0.0.1, and says so once it is asked to [`answer`](Names::answer).
pub struct Names {
    answers: Arc<AtomicBool>,
    address: Ipv4Addr,
    dir: Scratch,
}

impl Names {
    /// A name server on loopback that is silent.
    pub fn start() -> Names {
        let answers = Arc::<AtomicBool>::default();
        // Port 53 of an address of this test's own.
        let bound = (1..255).find_map(|n| {
            let address = Ipv4Addr::new(127, 53, (std::process::id() % 251) as u8, n);
            UdpSocket::bind((address, 53)).ok().map(|socket| (address, socket))
        });
        let (address, socket) = bound.expect("port 53 of an address in 127.53.0.0/16: tests run as root");
        let speaks = answers.clone();
        thread::spawn(move || {
            let mut buf = [0; 1500];
            while let Ok((len, from)) = socket.recv_from(&mut buf) {
                if speaks.load(Ordering::Relaxed)
                    && let Some(answer) = answer(&buf[..len])
                {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        let dir = Scratch::new();
        let text = format!("nameserver {address}\noptions timeout:2 attempts:2\n");
        std::fs::write(dir.join("resolv.conf"), text).expect("a file of ours");
        Names { answers, address, dir }
    }

    /// Answers from now on.
    pub fn answer(&self) {
        self.answers.store(true, Ordering::Relaxed);
    }

    /// Where it listens.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// What stands in for `/etc/resolv.conf`.
    pub fn file(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }
}

/// The answer to a query of one question (RFC 1035 §4.1): 127.0.0.1 to type A, nothing to any other.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let name = query.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let question = query.get(12..12 + name + 4)?;
    let is_a = question[name..name + 2] == [0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
