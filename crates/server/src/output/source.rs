//! What an output reads: the stream itself, or a rendition of it where the output needs other sound.
//!
//! Sound that the output does not take may come up long after it has begun; it goes on with a rendition then.
//!
//! Invariant: times rise across the change, and what follows it begins with a keyframe.

use std::sync::Arc;

use bywash_media::transcode::Error;
use bywash_media::{Kind, Time};

use crate::hub::{Event, Reader, Stream};
use crate::lane::Lane;
use crate::rendition::{Rendition, Renditions, Sound};

/// An output's place in a stream.
pub struct Source {
    stream: Stream,
    sound: Sound,
    max_lag: Time,
    renditions: Arc<Renditions>,
    lane: Lane,
    rendition: Option<Rendition>,
    reader: Reader,
    /// The newest frame that was given out.
    given: Option<Time>,
    /// The reader is new and may stand before what was given out: nothing is, before a later keyframe.
    joins: bool,
    pictures: bool,
    /// The output takes no pictures.
    sound_alone: bool,
}

/// What [`Source::drain`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// All is read out, and the stream has ended.
    pub ended: bool,
    /// Sound came up that the output does not take: what follows is of a rendition.
    pub switched: bool,
}

impl Source {
    /// Begins as [`Stream::read`] does, with a rendition where it is known already that one is needed. Renditions run on `lane`.
    pub fn begin(
        stream: &Stream,
        sound: Sound,
        max_lag: Time,
        renditions: &Arc<Renditions>,
        lane: &Lane,
    ) -> Result<Source, Error> {
        let (reader, stream) = (stream.read(max_lag), stream.clone());
        let (renditions, lane) = (renditions.clone(), lane.clone());
        let mut source = Source {
            stream,
            sound,
            max_lag,
            renditions,
            lane,
            rendition: None,
            reader,
            given: None,
            joins: false,
            pictures: false,
            sound_alone: false,
        };
        if !sound.fits(&source.stream.tracks()) {
            source.switch()?;
        }
        Ok(source)
    }

    /// Gives out no pictures, and needs none to begin with.
    pub fn sound_alone(self) -> Source {
        Source { sound_alone: true, ..self }
    }

    /// Moves what is ready to `batch`; waits until there is something. False once the stream, or the rendition, has ended
    /// and is read out. An error is what this build cannot encode.
    pub async fn ready(&mut self, batch: &mut Vec<Event>) -> Result<bool, Error> {
        loop {
            let more = self.reader.ready(batch).await;
            let switched = self.sort(batch)?;
            if !batch.is_empty() || !(more || switched) {
                return Ok(more || switched);
            }
        }
    }

    /// Moves what is ready to `batch`, as [`Reader::drain`] does.
    pub fn drain(&mut self, batch: &mut Vec<Event>) -> Result<Drained, Error> {
        loop {
            let ended = self.reader.drain(batch);
            let nothing = batch.is_empty();
            let switched = self.sort(batch)?;
            if !batch.is_empty() || nothing || ended || switched {
                return Ok(Drained { ended: ended && !switched, switched });
            }
        }
    }

    /// Leaves in `batch` what the output is given; true if it goes on with a rendition.
    fn sort(&mut self, batch: &mut Vec<Event>) -> Result<bool, Error> {
        let unfit = |event: &Event| matches!(event, Event::Tracks(tracks) if !self.sound.fits(tracks));
        let unfit = if self.rendition.is_some() { None } else { batch.iter().position(unfit) };
        batch.truncate(unfit.unwrap_or(batch.len()));
        batch.retain(|event| self.takes(event));
        if unfit.is_some() {
            self.switch()?;
            self.joins = self.given.is_some();
        }
        Ok(unfit.is_some())
    }

    /// Why the stream's sound is left out for now, if so.
    pub fn trouble(&self) -> Option<Arc<Error>> {
        self.rendition.as_ref()?.trouble()
    }

    /// Asks the publisher for a keyframe, if it is of those that make them on demand.
    pub fn want_keyframe(&self) {
        self.stream.want_keyframe();
    }

    /// Whether an event is given out.
    fn takes(&mut self, event: &Event) -> bool {
        match event {
            Event::Tracks(tracks) => self.pictures = tracks.video.is_some() && !self.sound_alone,
            Event::Frame(frame) if self.sound_alone && frame.track == Kind::Video => return false,
            Event::Frame(frame) if self.joins => {
                let start = frame.key && (frame.track == Kind::Video || !self.pictures);
                if !start || self.given.is_some_and(|given| frame.dts <= given) {
                    return false;
                }
                (self.joins, self.given) = (false, Some(frame.dts));
            }
            Event::Frame(frame) => self.given = self.given.max(Some(frame.dts)),
            Event::Lagged { .. } => {}
        }
        true
    }

    fn switch(&mut self) -> Result<(), Error> {
        let rendition = self.renditions.of(&self.stream, self.sound, &self.lane)?;
        self.reader = rendition.read(self.max_lag);
        self.rendition = Some(rendition);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use bywash_media::transcode::{Feed, encoder};
    use bywash_media::{Codec, Format, Frame, StreamKey, Track, Tracks};

    use super::*;
    use crate::hub::Hub;
    use crate::lane::Lanes;
    use crate::live;

    #[tokio::test]
    async fn sound_that_comes_up_later_is_heard_as_the_output_takes_it() {
        let (hub, key) = (Hub::new(Arc::default(), 1 << 20), StreamKey::published(1, "s").unwrap());
        let mut publisher = hub.publish(&key, live::Stream::new("RTMP", String::new(), 0), Instant::now()).unwrap();
        let (lanes, renditions) = (Lanes::start(1).unwrap(), Arc::<Renditions>::default());
        let video = Track {
            codec: Codec::H264,
            config: Bytes::from_static(b"c"),
            format: Format::Video { width: 16, height: 16 },
        };
        let aac = encoder(Codec::Aac, 64_000).unwrap();
        let mut tracks = Tracks::default();
        tracks.set(video);
        publisher.set_tracks(tracks.clone());
        let picture = |n: i64, key| Frame {
            track: Kind::Video,
            dts: Time::from_millis(n * 40),
            cts: Time::ZERO,
            key,
            payload: Bytes::from_static(b"p"),
        };
        let sound = Sound::Opus { bit_rate: 64_000 };
        let max_lag = Time::from_millis(10_000);
        let mut source = Source::begin(&hub.get(&key).unwrap(), sound, max_lag, &renditions, lanes.pick()).unwrap();
        for n in 0..3 {
            publisher.push(picture(n, n == 0));
        }
        let mut batch = Vec::new();
        assert!(source.ready(&mut batch).await.unwrap());

        tracks.set(aac.track());
        publisher.set_tracks(tracks);
        let (mut feed, mut packets) = (Feed::new(aac), Vec::new());
        feed.push(&[0.0; 2 * 48_000 * 2], &mut packets);
        let mut packets = (0..).zip(packets).peekable();
        for n in 3..53 {
            let at = n * 40;
            while let Some((k, packet)) = packets.next_if(|(k, _)| 120 + k * 1024 / 48 <= at) {
                let dts = Time::from_millis(120 + k * 1024 / 48);
                publisher.push(Frame { track: Kind::Audio, dts, cts: Time::ZERO, key: true, payload: packet });
            }
            publisher.push(picture(n, n % 10 == 0));
        }
        // Of the pictures all, but for those between the change and the keyframe behind it; of the sound, what belongs to them.
        let mut pictures = Vec::new();
        let mut heard = 0;
        loop {
            for event in batch.drain(..) {
                match event {
                    Event::Frame(frame) if frame.track == Kind::Video => pictures.push(frame.dts.as_millis() / 40),
                    Event::Frame(_) => heard += 1,
                    Event::Tracks(tracks) => {
                        assert!(tracks.audio.as_ref().is_none_or(|track| track.codec == Codec::Opus), "{tracks:?}");
                    }
                    Event::Lagged { .. } => panic!("nobody is late"),
                }
            }
            if pictures.last() == Some(&52) {
                break;
            }
            let more = tokio::time::timeout(Duration::from_secs(10), source.ready(&mut batch)).await;
            assert!(more.expect("what was pushed comes").unwrap());
        }
        assert_eq!(pictures[..3], [0, 1, 2]);
        assert!(pictures[3] % 10 == 0 && pictures[3..].windows(2).all(|two| two[1] == two[0] + 1), "{pictures:?}");
        assert!(heard > 0);
    }
}
