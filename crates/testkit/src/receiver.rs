//! The customer's backend: takes callbacks, checks each signature, and fails on request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::server::CALLBACK_SECRET;
use crate::{eventually, secs};

/// What a callback is answered with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// This HTTP status.
    Status(u16),
    /// Nothing, ever.
    Hang,
    /// The connection is closed at once.
    Down,
}

/// A receiver on a port of its own.
pub struct Receiver {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    taken: Arc<Mutex<Vec<Value>>>,
    refused: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// Starts one that answers 200.
    pub fn start() -> Receiver {
        let receiver = Receiver {
            port: crate::port(),
            answer: Arc::new(Mutex::new(Answer::Status(200))),
            taken: Arc::default(),
            refused: Arc::default(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, receiver.port)).expect("our own port");
        let (answer, taken, refused) = (receiver.answer.clone(), receiver.taken.clone(), receiver.refused.clone());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (answer, taken, refused) = (answer.clone(), taken.clone(), refused.clone());
                thread::spawn(move || {
                    let _ = serve(socket, &answer, &taken, &refused);
                });
            }
        });
        receiver
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/callback", self.port)
    }

    /// Changes how callbacks are answered.
    pub fn set(&self, answer: Answer) {
        *self.answer.lock().expect("no holder panics") = answer;
    }

    /// The callbacks answered with 2xx, in order of arrival.
    pub fn taken(&self) -> Vec<Value> {
        self.taken.lock().expect("no holder panics").clone()
    }

    /// The callbacks that came and were not answered with 2xx.
    pub fn refused(&self) -> Vec<Value> {
        self.refused.lock().expect("no holder panics").clone()
    }

    /// The callbacks of one event about one stream.
    pub fn of(&self, event: &str, stream: &str) -> Vec<Value> {
        // ZEGO's name of a stream's id in `record` is another one.
        let about = |it: &Value| it["event"] == event && (it["stream_id"] == stream || it["stream_alias"] == stream);
        self.taken().into_iter().filter(about).collect()
    }

    /// Waits for a callback of the event about the stream that fits.
    #[track_caller]
    pub fn wait(&self, event: &str, stream: &str, limit: Duration, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{event} of {stream}"), limit, || self.of(event, stream).into_iter().find(&fits))
    }

    /// Waits up to five seconds for any callback of the event about the stream.
    #[track_caller]
    pub fn wait_any(&self, event: &str, stream: &str) -> Value {
        self.wait(event, stream, secs(5), |_| true)
    }
}

fn serve(
    socket: TcpStream,
    answer: &Mutex<Answer>,
    taken: &Mutex<Vec<Value>>,
    refused: &Mutex<Vec<Value>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut socket = socket;
    loop {
        if *answer.lock().expect("no holder panics") == Answer::Down {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let now = *answer.lock().expect("no holder panics");
        let status = match now {
            Answer::Status(status) => status,
            Answer::Down => return Ok(()),
            Answer::Hang => {
                refused.lock().expect("no holder panics").push(body);
                thread::sleep(secs(60));
                return Ok(());
            }
        };
        // A wrong signature is answered like an outage: the event never counts as taken and its test fails.
        let good = status / 100 == 2 && is_signed(&body);
        let list = if good { taken } else { refused };
        list.lock().expect("no holder panics").push(body);
        let status = if status / 100 == 2 && !good { 403 } else { status };
        write!(socket, "HTTP/1.1 {status} Answer\r\nContent-Length: 0\r\n\r\n")?;
    }
}

/// sha1 of secret, timestamp and nonce, sorted as strings.
fn is_signed(body: &Value) -> bool {
    let mut parts = [CALLBACK_SECRET, body["timestamp"].as_str().unwrap_or(""), body["nonce"].as_str().unwrap_or("")];
    parts.sort_unstable();
    body["signature"] == hex::encode(Sha1::digest(parts.concat()))
}
