//! The demonstration's publisher: a short clip of our own making, looped without a seam and published in real time.
//!
//! Invariant: the tag at position `n` of a track is what [`Clip::at`] says, and was sent at its time; so whoever
//! receives it can tell what is missing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use bywash_media::mux::flv::{Demuxer, Tag, TagKind};
use bywash_rtmp::client::{self, Client, Phase};
use bywash_rtmp::message::Kind;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::wire::{Turn, Wire};

static CLIP: &[u8] = include_bytes!("source.flv");

/// How long the clip is, in milliseconds: 256 pictures at 25 a second and 480 AAC frames at 48 kHz both end exactly there.
const LENGTH_MS: u64 = 10_240;

/// The clip: first what a decoder needs, then the frames.
pub struct Clip {
    headers: Vec<Tag>,
    frames: Vec<Tag>,
}

impl Clip {
    /// Reads the clip that is built in.
    pub fn load() -> anyhow::Result<Clip> {
        let tags: Vec<Tag> = Demuxer::new(Bytes::from_static(CLIP))?.collect::<Result<_, _>>()?;
        // AVC and AAC say in their second byte what a tag is: 0 a sequence header, 1 frames, 2 the sequence's end, which
        // comes once a round and is no picture (FLV 10.1 §E.4.3.1, §E.4.2.1).
        let media = tags.into_iter().filter(|tag| tag.kind != TagKind::Script && tag.body.get(1) != Some(&2));
        let (headers, frames): (Vec<_>, Vec<_>) = media.partition(|tag| tag.body.get(1) == Some(&0));
        ensure!(headers.len() == 2 && !frames.is_empty(), "the clip that is built in is broken");
        Ok(Clip { headers, frames })
    }

    /// The `n`th frame since the beginning, over all rounds, with its time in milliseconds.
    fn nth(&self, n: usize) -> (u64, &Tag) {
        let (round, at) = (n / self.frames.len(), n % self.frames.len());
        let tag = &self.frames[at];
        (round as u64 * LENGTH_MS + u64::from(tag.timestamp), tag)
    }

    /// How long the first `count` frames of a track are, over all rounds, without the `head` bytes of their tags.
    pub fn sizes(&self, kind: Kind, head: usize, count: usize) -> Vec<usize> {
        let track = self.frames.iter().filter(|tag| of(tag) == kind).cycle();
        track.take(count).map(|tag| tag.body.len().saturating_sub(head)).collect()
    }

    /// What a track has at `timestamp`: its position in the track, over all rounds, and the body.
    pub fn at(&self, kind: Kind, timestamp: u64) -> Option<(usize, &Bytes)> {
        let (round, within) = (timestamp / LENGTH_MS, timestamp % LENGTH_MS);
        let track = || self.frames.iter().filter(|tag| of(tag) == kind);
        let (at, tag) = track().enumerate().find(|(_, tag)| u64::from(tag.timestamp) == within)?;
        Some((round as usize * track().count() + at, &tag.body))
    }
}

/// How many frames of each kind have been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Pictures.
    pub video: usize,
    /// Packets of sound.
    pub audio: usize,
}

/// Publishes `clip` until `stop`, then says goodbye; gives what was sent.
pub async fn publish(
    clip: &Clip,
    server: SocketAddr,
    app: u32,
    stream: &str,
    stop: CancellationToken,
) -> anyhow::Result<Sent> {
    let config = client::Config {
        app: app.to_string(),
        stream: stream.to_owned(),
        tc_url: format!("rtmp://{server}/{app}"),
        ..client::Config::default()
    };
    let mut wire = Wire::new(TcpStream::connect(server).await.context("connect the demonstration's publisher")?);
    let mut client = Client::new(config, Instant::now(), rand::random());
    while client.phase() != Phase::Publishing {
        turn(&mut wire, &mut client).await?;
    }
    let send = |wire: &mut Wire<TcpStream>, client: &mut Client, timestamp: u64, tag: &Tag| {
        client.send(of(tag), timestamp as u32, &[], &tag.body, wire.out());
    };
    for tag in &clip.headers {
        send(&mut wire, &mut client, 0, tag);
    }
    let begin = tokio::time::Instant::now();
    let mut sent = Sent::default();
    for n in 0.. {
        let (timestamp, tag) = clip.nth(n);
        let due = begin + Duration::from_millis(timestamp);
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => {
                    client.finish();
                    while let Some(bytes) = client.poll_output() {
                        wire.out().push_back(bytes);
                    }
                    wire.shut_down().await?;
                    return Ok(sent);
                }
                done = turn(&mut wire, &mut client) => done?,
                () = tokio::time::sleep_until(due) => break,
            }
        }
        send(&mut wire, &mut client, timestamp, tag);
        match of(tag) {
            Kind::Video => sent.video += 1,
            _ => sent.audio += 1,
        }
    }
    unreachable!("the loop has no end of its own")
}

async fn turn(wire: &mut Wire<TcpStream>, client: &mut Client) -> anyhow::Result<()> {
    while let Some(bytes) = client.poll_output() {
        wire.out().push_back(bytes);
    }
    let turn = wire.turn(|bytes| Ok::<_, anyhow::Error>(client.handle_input(Instant::now(), bytes)?)).await?;
    ensure!(turn != Turn::Closed, "the server closed the publisher's connection");
    if let Some(client::Event::Rejected { code, description, .. }) = client.poll_event() {
        bail!("the server refused the publisher: {code}: {description}");
    }
    Ok(())
}

fn of(tag: &Tag) -> Kind {
    match tag.kind {
        TagKind::Video => Kind::Video,
        TagKind::Audio => Kind::Audio,
        TagKind::Script => Kind::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_found_by_its_time_in_every_round() {
        let clip = Clip::load().unwrap();
        let mut next = Sent::default();
        for n in 0..3 * clip.frames.len() {
            let (timestamp, tag) = clip.nth(n);
            let next = if of(tag) == Kind::Video { &mut next.video } else { &mut next.audio };
            assert_eq!(clip.at(of(tag), timestamp), Some((*next, &tag.body)), "{timestamp}");
            *next += 1;
        }
        assert_eq!(next, Sent { video: 3 * 256, audio: 3 * 480 });
        assert_eq!(clip.at(Kind::Video, 1), None);
    }
}
