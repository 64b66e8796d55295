//! The demonstration's CDN: an RTMP server that takes one stream and compares every frame with the clip.
//!
//! Invariant: a frame that is missing, doubled, out of order or changed is in [`Report::faults`].

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::ensure;
use bywash_rtmp::message::{Kind, Message};
use bywash_rtmp::server::{Config, Event, Server};
use tokio::net::TcpListener;

use super::source::{Clip, Sent};
use crate::wire::{Turn, Wire};

/// What arrived.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Pictures that arrived.
    pub video: usize,
    /// Packets of sound that arrived.
    pub audio: usize,
    /// Bytes of media that arrived.
    pub bytes: u64,
    /// Where the next picture and the next packet of sound are in the clip.
    next: Sent,
    /// The stream was ended in order.
    pub ended: bool,
    /// What was not as it should be; the first few.
    pub faults: Vec<String>,
}

impl Report {
    /// Compares with what was sent; says what is wrong with what arrived.
    pub fn verdict(&self, sent: Sent) -> Result<(), String> {
        let mut faults = self.faults.clone();
        if self.video == 0 || self.audio == 0 {
            faults.push(format!("{} pictures and {} packets of sound arrived", self.video, self.audio));
        } else if self.next != sent {
            faults.push(format!("the end is missing: {:?} arrived of {sent:?}", self.next));
        }
        if !self.ended {
            faults.push("the stream was not ended in order".into());
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }

    fn message(&mut self, clip: &Clip, message: &Message) {
        // Headers come again after a reconnect, and carry no media.
        if message.kind == Kind::Data || message.body.get(1) == Some(&0) {
            return;
        }
        self.bytes += message.body.len() as u64;
        let (count, next, name) = match message.kind {
            Kind::Video => (&mut self.video, &mut self.next.video, "picture"),
            _ => (&mut self.audio, &mut self.next.audio, "packet of sound"),
        };
        let fault = match clip.at(message.kind, message.timestamp.into()) {
            None => Some(format!("{name} at {} ms, where the clip has none", message.timestamp)),
            Some((_, body)) if body != &message.body => Some(format!("{name} at {} ms changed", message.timestamp)),
            Some((at, _)) => {
                let expected = std::mem::replace(next, at + 1);
                // The first of all may be any: a relay starts at the newest keyframe.
                (*count > 0 && at != expected).then(|| format!("{name} {at} came where {expected} was due"))
            }
        };
        *count += 1;
        if self.faults.len() < 5 {
            self.faults.extend(fault);
        }
    }
}

/// Takes one stream after the other from `listener`; ends never.
pub async fn serve(listener: TcpListener, clip: &Clip, report: Arc<Mutex<Report>>) -> anyhow::Result<()> {
    loop {
        let (tcp, _) = listener.accept().await?;
        let mut wire = Wire::new(tcp);
        let mut engine = Server::new(Config::default(), Instant::now(), rand::random());
        loop {
            while let Some(event) = engine.poll_event() {
                let mut report = report.lock().expect("no holder panics");
                match event {
                    Event::Publish(_) => engine.accept(),
                    Event::Message(message) => report.message(clip, &message),
                    Event::Unpublish => report.ended = true,
                    _ => {}
                }
            }
            while let Some(bytes) = engine.poll_output() {
                wire.out().push_back(bytes);
            }
            let turn = wire.turn(|bytes| Ok::<_, anyhow::Error>(engine.handle_input(Instant::now(), bytes)?)).await;
            ensure!(turn.is_ok(), "the relay spoke no RTMP: {:?}", turn);
            if matches!(turn, Ok(Turn::Closed)) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// Feeds the frames with these times in milliseconds; says what is found wrong.
    fn check(times: &[(Kind, u32)], sent: Sent, want: &str) {
        let clip = Clip::load().unwrap();
        let mut report = Report { ended: true, ..Report::default() };
        for (kind, timestamp) in times {
            let body =
                clip.at(*kind, u64::from(*timestamp)).map_or(Bytes::from_static(b"\x27\x01"), |(_, body)| body.clone());
            report.message(&clip, &Message { kind: *kind, timestamp: *timestamp, body });
        }
        let got = report.verdict(sent).err().unwrap_or_default();
        assert!(got.starts_with(want) && got.is_empty() == want.is_empty(), "{got:?} is not {want:?}");
    }

    #[test]
    fn what_is_missing_doubled_or_strange_is_found() {
        use Kind::{Audio, Video};
        let sent = |video, audio| Sent { video, audio };
        check(&[(Video, 40), (Audio, 0), (Video, 80)], sent(3, 1), "");
        check(&[(Video, 40), (Audio, 0), (Video, 120)], sent(4, 1), "picture 3 came where 2 was due");
        check(&[(Video, 40), (Audio, 0), (Video, 40)], sent(2, 1), "picture 1 came where 2 was due");
        check(&[(Video, 41), (Audio, 0)], sent(0, 1), "picture at 41 ms, where the clip has none");
        check(&[(Video, 40), (Audio, 0)], sent(3, 1), "the end is missing");
        check(&[(Video, 40)], sent(2, 0), "1 pictures and 0 packets of sound arrived");
    }
}
