//! What an output reads: the stream itself, or a rendition of it where the output needs other sound.
//!
//! Sound that the output does not take may come up long after it has begun; it goes on with a rendition then.
//!
//! Invariant: the times of each track rise across the change, and what follows it goes on where it stopped or begins with a keyframe.

use std::sync::Arc;

use bywash_media::transcode::Error;
use bywash_media::{Kind, Time, Track, Tracks};

use crate::hub::{Event, Reader, Stop, Stream};
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
    /// The newest frame of each kind that was given out. A rendition begins where decoding can, most often before the change, and has
    /// the same pictures: of those and of sound that passed only the later ones are given out.
    given: [Option<Time>; 2],
    /// The track of the pictures that are given out.
    video: Option<Arc<Track>>,
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
            given: [None; 2],
            video: None,
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
            let stop = self.reader.ready_while(batch, fits(self.sound, &self.rendition)).await;
            self.sort(batch, stop)?;
            if !batch.is_empty() || stop == Stop::Ended {
                return Ok(stop != Stop::Ended);
            }
        }
    }

    /// Moves what is ready to `batch`, as [`Reader::drain`] does.
    pub fn drain(&mut self, batch: &mut Vec<Event>) -> Result<Drained, Error> {
        loop {
            let stop = self.reader.drain_while(batch, fits(self.sound, &self.rendition));
            let nothing = batch.is_empty();
            self.sort(batch, stop)?;
            if !batch.is_empty() || nothing || stop != Stop::Open {
                return Ok(Drained { ended: stop == Stop::Ended, switched: stop == Stop::Unfit });
            }
        }
    }

    /// Leaves in `batch` what the output is given; goes on with a rendition where the stream does not fit.
    fn sort(&mut self, batch: &mut Vec<Event>, stop: Stop) -> Result<(), Error> {
        batch.retain(|event| self.takes(event));
        if stop == Stop::Unfit {
            let mut stream = self.switch()?;
            // The key frame that the next pictures need may be gone: up to another one they do not come again.
            let mut behind = Vec::new();
            let mut read = None;
            while read != Some(behind.len()) {
                read = Some(behind.len());
                stream.drain(&mut behind);
            }
            let video = self.video.clone();
            let same = |event: &Event| !matches!(event, Event::Tracks(tracks) if tracks.video != video);
            let picture = |event: &Event| matches!(event, Event::Frame(frame) if frame.track == Kind::Video);
            batch.extend(behind.into_iter().take_while(same).filter(picture).filter(|event| self.takes(event)));
        }
        Ok(())
    }

    /// Gives out all that the rendition has once more, for who has thrown away what it was given.
    pub fn again(&mut self) {
        (self.given, self.video) = ([None; 2], None);
    }

    /// Why the stream's sound is left out for now, if so.
    pub fn trouble(&self) -> Option<Arc<Error>> {
        self.rendition.as_ref()?.trouble()
    }

    /// See [`Stream::newest`]. A rendition may not be there yet.
    pub fn newest(&self, kind: Kind) -> Option<Time> {
        self.stream.newest(kind)
    }

    /// Asks the publisher for a keyframe, if it is of those that make them on demand.
    pub fn want_keyframe(&self) {
        self.stream.want_keyframe();
    }

    /// Whether an event is given out.
    fn takes(&mut self, event: &Event) -> bool {
        let frame = match event {
            Event::Tracks(tracks) => {
                self.video = tracks.video.clone();
                return true;
            }
            Event::Frame(frame) => frame,
            Event::Lagged { .. } => return true,
        };
        if self.sound_alone && frame.track == Kind::Video {
            return false;
        }
        let given = &mut self.given[frame.track as usize];
        let new = given.is_none_or(|given| frame.dts > given);
        if new {
            *given = Some(frame.dts);
        }
        new
    }

    /// Goes on with a rendition where the stream was read up to; gives the stream's reader, which still stands there.
    fn switch(&mut self) -> Result<Reader, Error> {
        let since = self.reader.next_time();
        let (rendition, reader) = self.renditions.read(&self.stream, self.sound, &self.lane, since, self.max_lag)?;
        self.rendition = Some(rendition);
        Ok(std::mem::replace(&mut self.reader, reader))
    }
}

/// Whether tracks are right for the output. Of a rendition all are.
fn fits(sound: Sound, rendition: &Option<Rendition>) -> impl Fn(&Tracks) -> bool + use<> {
    let any = rendition.is_some();
    move |tracks| any || sound.fits(tracks)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use bywash_media::transcode::{Feed, encoder};
    use bywash_media::{Codec, Format, Frame, StreamKey, Track};

    use super::*;
    use crate::hub::Hub;
    use crate::lane::Lanes;
    use crate::live;

    /// Publishes two seconds of pictures, to which sound comes after 120 ms, for an output that reads at once or only at the end, and has
    /// seen three pictures then. It is given all pictures, and sound from `from` ms on.
    async fn check(at_once: bool, from: i64) {
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
        let sound = Sound::Opus { bit_rate: 64_000 };
        let max_lag = Time::from_millis(10_000);
        let mut source = Source::begin(&hub.get(&key).unwrap(), sound, max_lag, &renditions, lanes.pick()).unwrap();
        let audio = aac.track();
        let (mut feed, mut packets) = (Feed::new(aac), Vec::new());
        feed.push(&[0.0; 2 * 48_000 * 2], &mut packets);
        let mut packets = (0..).map(|k| 120 + k * 1024 / 48).zip(packets).peekable();
        let (mut batch, mut given) = (Vec::new(), Vec::new());
        for n in 0..53 {
            if n == 3 {
                tracks.set(audio.clone());
                publisher.set_tracks(tracks.clone());
            }
            let mut push = |track, ms, key, payload| {
                publisher.push(Frame { track, dts: Time::from_millis(ms), cts: Time::ZERO, key, payload });
            };
            while let Some((ms, packet)) = packets.next_if(|(ms, _)| *ms <= n * 40) {
                push(Kind::Audio, ms, true, packet);
            }
            push(Kind::Video, n * 40, n % 10 == 0, Bytes::from_static(b"p"));
            if at_once || n < 3 {
                source.drain(&mut batch).unwrap();
                given.append(&mut batch);
            }
        }
        hub.end(&key);
        while source.ready(&mut batch).await.unwrap() {
            given.append(&mut batch);
        }
        let (mut pictures, mut heard) = (Vec::new(), Vec::new());
        for event in given {
            match event {
                Event::Frame(frame) if frame.track == Kind::Video => pictures.push(frame.dts.as_millis() / 40),
                Event::Frame(frame) => heard.push(frame.dts.as_millis()),
                Event::Tracks(tracks) => {
                    assert!(tracks.audio.as_ref().is_none_or(|track| track.codec == Codec::Opus), "{tracks:?}");
                }
                Event::Lagged { .. } => panic!("nobody is late"),
            }
        }
        assert!(pictures.iter().copied().eq(0..53), "{pictures:?}");
        assert!(heard[0].abs_diff(from) < 25 && heard.windows(2).all(|two| two[0] < two[1]), "{heard:?}");
    }

    #[tokio::test]
    async fn sound_that_comes_up_later_is_heard_as_the_output_takes_it_and_no_picture_is_missing() {
        check(true, 120).await;
        check(false, 400).await;
    }

    /// Publishes three seconds of sound at once and pictures behind them, as who holds sound back for its pictures does. Tells when the
    /// sound begins for four outputs that need another: two that wait for the stream, one that comes before they look, and one that
    /// comes behind them.
    async fn begins_of_a_burst() -> [i64; 4] {
        let (hub, key) = (Hub::new(Arc::default(), 1 << 20), StreamKey::published(1, "s").unwrap());
        let mut publisher = hub.publish(&key, live::Stream::new("RTMP", String::new(), 0), Instant::now()).unwrap();
        let (lanes, renditions) = (Lanes::start(1).unwrap(), Arc::<Renditions>::default());
        let (stream, lane) = (hub.get(&key).unwrap(), lanes.pick());
        let (sound, max_lag) = (Sound::Opus { bit_rate: 64_000 }, Time::from_millis(10_000));
        let begin = || Source::begin(&stream, sound, max_lag, &renditions, lane).unwrap();
        let (first, second) = (begin(), begin());
        let aac = encoder(Codec::Aac, 64_000).unwrap();
        let mut tracks = Tracks::default();
        let format = Format::Video { width: 16, height: 16 };
        tracks.set(Track { codec: Codec::H264, config: Bytes::from_static(b"c"), format });
        tracks.set(aac.track());
        publisher.set_tracks(tracks);
        let (mut feed, mut packets) = (Feed::new(aac), Vec::new());
        feed.push(&[0.0; 4 * 48_000 * 2], &mut packets);
        for (k, payload) in (0..).zip(packets) {
            let frame = |track, payload| Frame {
                track,
                dts: Time::from_millis(k * 1024 / 48),
                cts: Time::ZERO,
                key: true,
                payload,
            };
            if k * 1024 / 48 >= 3_000 {
                publisher.push(frame(Kind::Video, Bytes::from_static(b"p")));
            }
            publisher.push(frame(Kind::Audio, payload));
        }
        let mut outputs = vec![first, second, begin()];
        let mut batch = Vec::new();
        for output in &mut outputs[..2] {
            assert!(output.drain(&mut batch).unwrap().switched && batch.is_empty());
        }
        let mut heard = vec![Vec::new(); 4];
        let mut hear = |n: usize, batch: &mut Vec<Event>| {
            heard[n].extend(batch.drain(..).filter_map(|event| match event {
                Event::Frame(frame) if frame.track == Kind::Audio => Some(frame.dts.as_millis()),
                _ => None,
            }));
            heard[n].last().copied()
        };
        while outputs[0].ready(&mut batch).await.unwrap() && hear(0, &mut batch).is_none_or(|last| last < 3_500) {}
        outputs.push(begin());
        hub.end(&key);
        for (n, output) in outputs.iter_mut().enumerate() {
            while output.ready(&mut batch).await.unwrap() {
                hear(n, &mut batch);
            }
        }
        assert!(heard.iter().all(|it| it.windows(2).all(|two| two[1] - two[0] < 25)), "{heard:?}");
        std::array::from_fn(|n| heard[n][0])
    }

    #[tokio::test]
    async fn who_was_there_hears_the_beginning_however_much_of_it_comes_at_once() {
        let [first, second, late, later] = begins_of_a_burst().await;
        assert!(first < 25 && second < 25 && late > 2_950 && later > 2_950, "{first} {second} {late} {later}");
    }
}
