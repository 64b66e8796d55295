//! RTMP out to players: a reader of a live stream on a connection that asked to play. Opus becomes AAC for those who did not say that
//! they take it.
//!
//! Invariant: a player that does not read is dropped; it slows nobody.

use std::time::{Duration, Instant};

use bywash_media::Time;
use bywash_rtmp::server::{Event, Request};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Connection;
use crate::output::packer::Packer;
use crate::output::source::Source;
use crate::rendition::Sound;
use crate::token::Purpose;
use crate::wire::Turn;

/// How far a player may fall behind before it skips to a keyframe.
const MAX_LAG: Time = Time::from_millis(8_000);

/// How long a player may take nothing before it is dropped.
const STALL: Duration = Duration::from_secs(10);

impl Connection {
    /// Carries a play from its request to its end; false if the connection is of no more use.
    pub(super) async fn play(&mut self, request: Request, stop: &CancellationToken) -> anyhow::Result<bool> {
        let (key, _) = match self.admit(&request, Purpose::Play) {
            Ok(admitted) => admitted,
            Err((code, why)) => {
                self.refuse(code, &why).await;
                return Ok(false);
            }
        };
        let Some(stream) = self.doors.hub.get(&key) else {
            self.refuse("NetStream.Play.StreamNotFound", "the stream is not live").await;
            return Ok(false);
        };
        let bit_rate = self.doors.relay.load().config.audio_bitrate;
        let sound = Sound::Aac { bit_rate, takes_opus: request.takes("Opus"), silence: false };
        let source = match Source::begin(&stream, sound, MAX_LAG, &self.doors.renditions, &self.lane) {
            Ok(source) => source,
            Err(error) => {
                self.refuse("NetStream.Play.Failed", &error.to_string()).await;
                return Ok(false);
            }
        };
        self.engine.accept();
        info!(parent: &self.span, "player joins");
        let again = self.follow(source, stop).await?;
        info!(parent: &self.span, "player leaves");
        Ok(again)
    }

    async fn follow(&mut self, mut source: Source, stop: &CancellationToken) -> anyhow::Result<bool> {
        let mut packer = Packer::to_player();
        let mut beats = self.lane.beats();
        let mut batch = Vec::new();
        let (mut taken, mut since) = (self.wire.taken(), Instant::now());
        let mut stopped = std::pin::pin!(stop.cancelled());
        loop {
            while let Some(event) = self.engine.poll_event() {
                if event == Event::StopPlay {
                    return Ok(true);
                }
            }
            self.outputs();
            let idle = self.wire.is_idle();
            let turn = self.wire.turn(|bytes| Ok::<_, anyhow::Error>(self.engine.handle_input(Instant::now(), bytes)?));
            tokio::select! { biased;
                turn = turn => if turn? == Turn::Closed { return Ok(false) },
                // Only after what was waiting has gone out: one batch is the most that a player holds.
                more = source.ready(&mut batch), if idle => {
                    let more = more?;
                    for event in batch.drain(..) {
                        let out = self.wire.out();
                        packer.pack(&event, |kind, timestamp, head, payload| {
                            self.engine.send(kind, timestamp, head, payload, out);
                        });
                    }
                    if !more {
                        self.engine.end_play(Instant::now());
                        self.outputs();
                        // A player that takes nothing hears nothing of the end either.
                        return Ok(tokio::time::timeout(STALL, self.wire.flush()).await.is_ok_and(|it| it.is_ok()));
                    }
                }
                () = &mut beats => {
                    self.engine.handle_timeout(Instant::now())?;
                    if self.wire.is_idle() || self.wire.taken() != taken {
                        (taken, since) = (self.wire.taken(), Instant::now());
                    } else if since.elapsed() > STALL {
                        warn!(parent: &self.span, "player takes nothing: dropped");
                        return Ok(false);
                    }
                }
                () = &mut stopped => return Ok(false),
            }
        }
    }
}
