//! Renditions: a stream again, with its sound in another codec.
//!
//! A rendition is a [`hub::Stream`] whose publisher reads the source: pictures pass by pointer, as does sound that is
//! right already; other sound is transcoded. It begins with the first output that asks for it and ends with the last.
//! Of sound that cannot be decoded it has no track, and says why.
//!
//! Invariant: the times of a rendition's sound rise, and pictures never wait for it.

use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bywash_media::transcode::{self, Transcoder};
use bywash_media::{Codec, Frame, Kind, Time, Tracks};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, info, info_span, warn};

use crate::hub::{self, Event, Publisher, Reader};
use crate::lane::Lane;

/// How far a rendition may fall behind its source before it skips to a keyframe.
const MAX_LAG: Time = Time::from_millis(8_000);

/// How far sound may come behind the pictures before it is taken not to come: at least, and at the most.
const PATIENCE: (Time, Time) = (Time::from_millis(300), Time::from_millis(3_000));

/// The same where there are no pictures to go by, in time that passes.
const PATIENCE_ALONE: Duration = Duration::from_secs(1);

/// The sound that an output needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sound {
    /// As CDNs take it: AAC and MP3 pass, other sound becomes AAC.
    Aac {
        /// Bits a second where it is encoded.
        bit_rate: u32,
        /// Opus passes too.
        takes_opus: bool,
        /// A stream of pictures alone is given silence.
        silence: bool,
    },
    /// As WebRTC takes it: Opus passes, AAC becomes Opus.
    Opus {
        /// Bits a second where it is encoded.
        bit_rate: u32,
    },
    /// As MP3 files have it: MP3 passes, other sound becomes MP3.
    Mp3 {
        /// Bits a second where it is encoded.
        bit_rate: u32,
    },
}

impl Sound {
    /// Whether a stream with these tracks is right as it is.
    pub fn fits(self, tracks: &Tracks) -> bool {
        match (self, &tracks.audio) {
            (Sound::Aac { silence, .. }, None) => !silence || tracks.video.is_none(),
            (Sound::Opus { .. } | Sound::Mp3 { .. }, None) => true,
            (_, Some(track)) => self.takes(track.codec),
        }
    }

    /// Whether sound of this codec is right as it is.
    pub fn takes(self, codec: Codec) -> bool {
        match self {
            Sound::Aac { takes_opus, .. } => takes_opus || codec != Codec::Opus,
            Sound::Opus { .. } => codec == Codec::Opus,
            Sound::Mp3 { .. } => codec == Codec::Mp3,
        }
    }

    /// Whether this build can make it.
    pub fn check(self) -> Result<(), transcode::Error> {
        self.encoder().map(drop)
    }

    fn encoder(self) -> Result<Box<dyn transcode::AudioEncoder>, transcode::Error> {
        match self {
            Sound::Aac { bit_rate, .. } => transcode::encoder(Codec::Aac, bit_rate),
            Sound::Opus { bit_rate } => transcode::encoder(Codec::Opus, bit_rate),
            Sound::Mp3 { bit_rate } => transcode::encoder(Codec::Mp3, bit_rate),
        }
    }
}

/// All renditions that run, so that outputs share them.
#[derive(Default)]
pub struct Renditions {
    running: Mutex<Vec<Weak<Running>>>,
}

/// An output's hold on a rendition; the last one that is dropped ends it.
#[derive(Clone)]
pub struct Rendition(Arc<Running>);

struct Running {
    source: hub::Stream,
    sound: Sound,
    /// Where it was asked to begin.
    since: Option<Time>,
    stream: hub::Stream,
    trouble: Trouble,
    _task: AbortOnDropHandle<()>,
}

/// Why the source's sound is left out for now.
type Trouble = Arc<ArcSwapOption<transcode::Error>>;

impl Rendition {
    /// Why the source's sound is left out for now; `None` where it is not.
    pub fn trouble(&self) -> Option<Arc<transcode::Error>> {
        self.0.trouble.load_full()
    }
}

impl Deref for Rendition {
    type Target = hub::Stream;
    fn deref(&self) -> &hub::Stream {
        &self.0.stream
    }
}

impl Renditions {
    /// The rendition of `source` with this sound, and a reader of it, for who has read `source` up to `since`, see
    /// [`hub::Stream::read_since`]; one that runs, or a new one on `lane`, which is the source's. An error says what this build cannot do.
    pub fn read(
        &self,
        source: &hub::Stream,
        sound: Sound,
        lane: &Lane,
        since: Option<Time>,
        max_lag: Time,
    ) -> Result<(Rendition, Reader), transcode::Error> {
        let mut running = self.running.lock().expect("no holder panics");
        running.retain(|one| one.strong_count() > 0);
        // One that began later does not have what this output still needs.
        let has_all = |one: &Running| one.since.zip(since).is_none_or(|(begin, since)| begin <= since);
        let same = |one: &Arc<Running>| one.sound == sound && one.source.is(source) && has_all(one);
        if let Some(one) = running.iter().filter_map(Weak::upgrade).find(same) {
            let reader = one.stream.read_since(since, max_lag);
            return Ok((Rendition(one), reader));
        }
        let (publisher, stream) = source.beside();
        let twin = Twin::new(publisher, sound)?;
        let trouble = twin.trouble.clone();
        // Here and not in its task: what its output has seen of the stream is still there.
        let from = source.read_since(since, MAX_LAG);
        // Before it runs: what nobody has yet to read it does not keep.
        let reader = stream.read(max_lag);
        let run = run(source.clone(), from, stream.clone(), twin, lane.clone());
        let run = run.instrument(info_span!("rendition", ?sound));
        let task = AbortOnDropHandle::new(lane.spawn(run));
        let one = Arc::new(Running { source: source.clone(), sound, since, stream, trouble, _task: task });
        running.push(Arc::downgrade(&one));
        Ok((Rendition(one), reader))
    }
}

/// Follows `source` to its end.
async fn run(source: hub::Stream, mut reader: Reader, stream: hub::Stream, mut twin: Twin, lane: Lane) {
    info!("rendition begins");
    let _end = End(stream);
    let mut sweeps = lane.sweeps();
    let mut batch = Vec::new();
    loop {
        tokio::select! { biased;
            more = reader.ready(&mut batch) => {
                if !more {
                    break;
                }
                for event in batch.drain(..) {
                    twin.take(event, Instant::now());
                }
            }
            () = &mut sweeps => twin.sweep(Instant::now(), source.is_published()),
            () = twin.publisher.keyframe_wanted() => source.want_keyframe(),
        }
    }
    twin.finish();
    info!("rendition ends with its source");
}

/// Ends the stream however its task ends.
struct End(hub::Stream);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What becomes of the source's sound.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It goes out as it comes.
    Pass,
    /// It goes through the transcoder, which fills what is missing.
    Transcode,
    /// It cannot be decoded: nothing goes out. Silence would say that there was none.
    LeaveOut,
}

/// The work, without waiting.
struct Twin {
    publisher: Publisher,
    sound: Sound,
    transcoder: Transcoder,
    /// The source's tracks.
    tracks: Arc<Tracks>,
    way: Way,
    trouble: Trouble,
    /// When the source began, by its pictures; and its newest.
    pictures: Option<(Time, Time)>,
    /// How far its sound comes behind its pictures.
    behind: Time,
    /// The newest sound of the source, and when it came.
    heard: Option<(Time, Instant)>,
    /// The newest sound that went out.
    said: Option<Time>,
    /// Scratch.
    made: Vec<Frame>,
}

impl Twin {
    fn new(publisher: Publisher, sound: Sound) -> Result<Twin, transcode::Error> {
        Ok(Twin {
            publisher,
            sound,
            transcoder: Transcoder::new(sound.encoder()?),
            tracks: Arc::default(),
            way: Way::Pass,
            trouble: Trouble::default(),
            pictures: None,
            behind: PATIENCE.0,
            heard: None,
            said: None,
            made: Vec::new(),
        })
    }

    fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Tracks(tracks) => self.follow(tracks),
            Event::Lagged { frames } => warn!(frames, "rendition too slow: skipped to a keyframe"),
            Event::Frame(frame) if frame.track == Kind::Video => {
                let (begun, _) = *self.pictures.get_or_insert((frame.dts, frame.dts));
                self.pictures = Some((begun, frame.dts));
                // Sound that is missing goes before the picture that tells so: the picture wakes the readers for both.
                self.fill(begun, frame.dts);
                self.publisher.push(frame);
            }
            Event::Frame(frame) => {
                if let Some((_, newest)) = self.pictures {
                    self.behind = self.behind.max(newest - frame.dts).min(PATIENCE.1);
                }
                self.heard = Some((frame.dts, now));
                match self.way {
                    Way::Pass => self.pass(frame),
                    Way::Transcode => {
                        self.transcoder.push(&frame, &mut self.made);
                        self.say();
                    }
                    Way::LeaveOut => {}
                }
            }
        }
    }

    /// Takes the source's tracks over; the sound's in the codec that it will have.
    fn follow(&mut self, tracks: Arc<Tracks>) {
        let audio = tracks.audio.as_ref();
        let changed = self.tracks.audio.as_ref() != audio;
        let mut ours = (*tracks).clone();
        if self.sound.fits(&tracks) && (audio.is_some() || self.way != Way::Transcode) {
            self.way = Way::Pass;
            self.trouble.store(None);
        } else {
            if changed || self.way == Way::Pass {
                let set = self.transcoder.set_source(audio.map(|track| &**track));
                self.way = if set.is_ok() { Way::Transcode } else { Way::LeaveOut };
                self.trouble.store(set.err().map(|error| {
                    warn!(%error, "its sound is left out");
                    Arc::new(error)
                }));
            }
            ours.audio = (self.way == Way::Transcode).then(|| Arc::new(self.transcoder.track()));
        }
        self.tracks = tracks;
        self.publisher.set_tracks(ours);
    }

    /// Where pictures are at `newest`, fills what sound is missing by now.
    fn fill(&mut self, begun: Time, newest: Time) {
        let patience = if self.tracks.audio.is_some() { self.behind } else { Time::ZERO };
        if self.way == Way::Transcode && newest - patience >= begun {
            self.transcoder.fill(newest - patience, &mut self.made);
            self.say();
        }
    }

    /// Without pictures the time that passes tells what is missing. While nobody publishes nothing is: the hole is filled once somebody
    /// goes on behind it.
    fn sweep(&mut self, now: Instant, published: bool) {
        if published
            && self.tracks.video.is_none()
            && self.way == Way::Transcode
            && let Some((heard, at)) = self.heard
            && let Some(passed) = now.saturating_duration_since(at).checked_sub(PATIENCE_ALONE)
        {
            self.transcoder.fill(heard + Time::from_nanos(passed.as_nanos() as i64), &mut self.made);
            self.say();
        }
        if self.publisher.holds() && self.tracks.video.is_none() {
            self.publisher.flush();
        }
    }

    fn finish(&mut self) {
        self.transcoder.finish(&mut self.made);
        self.say();
    }

    /// Publishes what the transcoder has made.
    fn say(&mut self) {
        let mut made = std::mem::take(&mut self.made);
        for frame in made.drain(..) {
            self.pass(frame);
        }
        self.made = made;
    }

    /// Publishes sound; where codecs change, the first packets may lie before the last ones of the old.
    fn pass(&mut self, frame: Frame) {
        if self.said.is_none_or(|said| frame.dts > said) {
            self.said = Some(frame.dts);
            self.publisher.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use bytes::Bytes;
    use bywash_media::transcode::Feed;
    use bywash_media::{Format, StreamKey, Track};

    use crate::hub::Hub;
    use crate::lane::Lanes;
    use crate::live;

    const AAC: Sound = Sound::Aac { bit_rate: 128_000, takes_opus: false, silence: false };
    const SILENCE: Sound = Sound::Aac { bit_rate: 128_000, takes_opus: false, silence: true };
    const OPUS: Sound = Sound::Opus { bit_rate: 96_000 };
    const LAG: Time = Time::from_millis(1_000_000);

    fn source() -> (Hub, Publisher, hub::Stream) {
        let (hub, key) = (Hub::new(Arc::default(), 1 << 20), StreamKey::published(1, "s").unwrap());
        let publisher = hub.publish(&key, live::Stream::new("RTMP", String::new(), 0), Instant::now()).unwrap();
        let stream = hub.get(&key).unwrap();
        (hub, publisher, stream)
    }

    fn tracks(codecs: &[Codec]) -> Tracks {
        let mut tracks = Tracks::default();
        for codec in codecs {
            tracks.set(match codec {
                Codec::Aac | Codec::Opus => transcode::encoder(*codec, 64_000).unwrap().track(),
                codec => {
                    let format = match codec.kind() {
                        Kind::Video => Format::Video { width: 16, height: 16 },
                        Kind::Audio => Format::Audio { sample_rate: 48_000, channels: 2 },
                    };
                    Track { codec: *codec, config: Bytes::from_static(b"c"), format }
                }
            });
        }
        tracks
    }

    /// A silent packet.
    fn packet(codec: Codec) -> Bytes {
        let Ok(encoder) = transcode::encoder(codec, 64_000) else { return Bytes::from_static(b"x") };
        let (mut feed, mut out) = (Feed::new(encoder), Vec::new());
        feed.push(&[0.0; 32_768], &mut out);
        out.pop().unwrap()
    }

    fn frame(track: Kind, ms: i64, payload: Bytes) -> Frame {
        Frame { track, dts: Time::from_millis(ms), cts: Time::ZERO, key: true, payload }
    }

    /// Publishes a second of each of these sets of tracks; says what a rendition makes of it: the codecs of each change of
    /// tracks, and how many pictures and packets followed it.
    async fn check(sound: Sound, codecs: &[&[Codec]], want: &str) {
        let (_hub, _publisher, source) = source();
        let (publisher, stream) = source.beside();
        let mut twin = Twin::new(publisher, sound).unwrap();
        let mut reader = stream.read(LAG);
        for (n, codecs) in codecs.iter().enumerate() {
            let tracks = tracks(codecs);
            let heard = tracks.audio.as_ref().map(|track| packet(track.codec));
            let video = tracks.video.is_some();
            twin.take(Event::Tracks(Arc::new(tracks)), Instant::now());
            let begin = n as i64 * 1000;
            let samples = if codecs.contains(&Codec::Aac) {
                1024
            } else if codecs.contains(&Codec::Mp3) {
                1152
            } else {
                960
            };
            let step = |n: i64| n * samples / 48;
            let pictures = (0..25).map(|n| frame(Kind::Video, begin + n * 40, Bytes::from_static(b"p")));
            let sound = heard.map(|heard| {
                (0..).map(step).take_while(|at| *at < 1000).map(move |at| frame(Kind::Audio, begin + at, heard.clone()))
            });
            let mut frames: Vec<_> = pictures.filter(|_| video).chain(sound.into_iter().flatten()).collect();
            frames.sort_by_key(|it| it.dts);
            frames.into_iter().for_each(|it| twin.take(Event::Frame(it), Instant::now()));
        }
        twin.finish();
        stream.end();
        let (mut batch, mut got, mut last) = (Vec::new(), String::new(), [Time::from_millis(-1); 2]);
        let mut counts = [0, 0];
        let flush = |got: &mut String, counts: &mut [u32; 2]| {
            if *counts != [0, 0] {
                *got += &format!(" {}+{} ", counts[0], counts[1]);
            }
            *counts = [0, 0];
        };
        while reader.ready(&mut batch).await {
            for event in batch.drain(..) {
                match event {
                    Event::Tracks(tracks) => {
                        flush(&mut got, &mut counts);
                        let names =
                            [&tracks.video, &tracks.audio].map(|it| it.as_ref().map_or("-", |it| it.codec.name()));
                        got += &names.join("/");
                    }
                    Event::Frame(frame) => {
                        let kind = frame.track as usize;
                        assert!(frame.dts > last[kind], "{frame:?} goes back");
                        last[kind] = frame.dts;
                        counts[kind] += 1;
                    }
                    Event::Lagged { .. } => panic!("the ring is large enough"),
                }
            }
        }
        flush(&mut got, &mut counts);
        assert_eq!(got.trim(), want, "{codecs:?}");
    }

    #[tokio::test]
    async fn sound_becomes_what_is_asked_for_and_what_fits_passes() {
        use Codec::{Aac, H264, Mp3, Opus};
        let as_it_is = Sound::Aac { bit_rate: 128_000, takes_opus: true, silence: true };
        check(AAC, &[&[H264, Opus]], "H.264/AAC 25+47").await;
        check(AAC, &[&[H264, Aac]], "H.264/AAC 25+47").await;
        check(AAC, &[&[H264, Mp3]], "H.264/MP3 25+42").await;
        check(AAC, &[&[H264]], "H.264/- 25+0").await;
        check(OPUS, &[&[H264, Aac]], "H.264/Opus 25+50").await;
        check(OPUS, &[&[Opus]], "-/Opus 0+50").await;
        check(as_it_is, &[&[H264, Opus]], "H.264/Opus 25+50").await;
    }

    #[tokio::test]
    async fn the_source_may_change_its_mind() {
        use Codec::{Aac, H264, Opus};
        // Silence, and then the sound itself in the same track: nothing changes for a decoder.
        check(SILENCE, &[&[H264], &[H264, Opus]], "H.264/AAC 25+43 H.264/AAC 25+51").await;
        check(SILENCE, &[&[H264]], "H.264/AAC 25+45").await;
        // Its sound goes: silence keeps the track.
        check(AAC, &[&[H264, Opus], &[H264]], "H.264/AAC 25+44 H.264/AAC 25+48").await;
        check(AAC, &[&[H264, Opus], &[H264, Aac]], "H.264/AAC 25+44 H.264/AAC 25+47").await;
    }

    #[tokio::test]
    async fn sound_that_cannot_be_decoded_is_left_out_and_not_made_silent() {
        let (_hub, _publisher, source) = source();
        let (publisher, stream) = source.beside();
        let mut twin = Twin::new(publisher, OPUS).unwrap();
        let mut reader = stream.read(LAG);
        let plain = tracks(&[Codec::H264, Codec::Aac]);
        let mut surround = plain.clone();
        // AAC-LC of 48 kHz in 5.1.
        surround.set(bywash_media::codec::track(Codec::Aac, Bytes::from_static(&[0x11, 0xb0])).unwrap());
        let heard = packet(Codec::Aac);
        let mut got = Vec::new();
        for (n, tracks) in [&plain, &surround, &plain].into_iter().enumerate() {
            twin.take(Event::Tracks(Arc::new(tracks.clone())), Instant::now());
            for at in (0..47).map(|k| n as i64 * 1_000 + k * 1024 / 48) {
                twin.take(Event::Frame(frame(Kind::Audio, at, heard.clone())), Instant::now());
                twin.take(Event::Frame(frame(Kind::Video, at, Bytes::from_static(b"p"))), Instant::now());
            }
            twin.publisher.flush();
            let mut batch = Vec::new();
            reader.drain(&mut batch);
            let track = batch.iter().rev().find_map(|event| match event {
                Event::Tracks(tracks) => Some(tracks.audio.is_some()),
                _ => None,
            });
            let sound = |event: &&Event| matches!(event, Event::Frame(frame) if frame.track == Kind::Audio);
            got.push((track.unwrap(), batch.iter().filter(sound).count() > 30, twin.trouble.load().is_some()));
            assert!(track == Some(true) || batch.iter().filter(sound).count() == 0);
        }
        assert_eq!(got, [(true, true, false), (false, false, true), (true, true, false)]);
    }

    #[tokio::test]
    async fn outputs_share_a_rendition_and_the_last_one_ends_it() {
        let (hub, mut publisher, source) = source();
        let (lanes, renditions) = (Lanes::start(1).unwrap(), Renditions::default());
        publisher.set_tracks(tracks(&[Codec::H264, Codec::Opus]));
        let of = |sound| renditions.read(&source, sound, lanes.pick(), None, LAG).unwrap();
        let (one, mut reader) = of(AAC);
        let (other, _) = of(AAC);
        assert!(one.is(&other) && !one.is(&of(OPUS).0));
        let stream = (*one).clone();
        let picture = Bytes::from(vec![7; 1000]);
        publisher.push(frame(Kind::Video, 0, picture.clone()));
        publisher.push(frame(Kind::Video, 40, picture.clone()));
        let mut batch = Vec::new();
        assert!(reader.ready(&mut batch).await);
        let Some(Event::Frame(got)) = batch.iter().find(|it| matches!(it, Event::Frame(_))) else {
            panic!("{batch:?}")
        };
        assert_eq!(got.payload.as_ptr(), picture.as_ptr(), "passed by pointer");
        drop(one);
        assert!(!stream.has_ended());
        drop(other);
        stream.ended().await;
        // The next one ends with the source.
        let (next, _) = of(AAC);
        assert!(!next.is(&stream));
        hub.end(&StreamKey::published(1, "s").unwrap());
        next.ended().await;
    }

    /// Publishes a second of Opus alone, whose publisher falls silent then; or goes, and comes back after so many seconds. Tells when the last
    /// AAC is.
    fn last_of_sound_alone(goes: bool, back: Option<u64>) -> i64 {
        let (hub, publisher, source) = source();
        let (beside, stream) = source.beside();
        let mut twin = Twin::new(beside, AAC).unwrap();
        let mut reader = stream.read(LAG);
        let (begin, mut publisher) = (Instant::now(), Some(publisher));
        twin.take(Event::Tracks(Arc::new(tracks(&[Codec::Opus]))), begin);
        let opus = |ms: u64| Event::Frame(frame(Kind::Audio, ms as i64, packet(Codec::Opus)));
        for ms in (0..1_000).step_by(20) {
            twin.take(opus(ms), begin + Duration::from_millis(ms));
        }
        publisher.take_if(|_| goes);
        for ms in (1_000..5_000).step_by(100) {
            if back == Some(ms / 1_000) && publisher.is_none() {
                let info = live::Stream::new("RTMP", String::new(), 0);
                publisher = hub.publish(&StreamKey::published(1, "s").unwrap(), info, begin);
                twin.take(opus(ms), begin + Duration::from_millis(ms));
                publisher.take();
            }
            twin.sweep(begin + Duration::from_millis(ms), source.is_published());
            if back == Some(ms / 1_000) {
                break;
            }
        }
        twin.finish();
        twin.publisher.flush();
        let mut batch = Vec::new();
        reader.drain(&mut batch);
        let times = batch.iter().filter_map(|event| match event {
            Event::Frame(frame) => Some(frame.dts.as_millis()),
            _ => None,
        });
        let times: Vec<_> = times.collect();
        assert!(times.windows(2).all(|two| two[1] - two[0] < 25), "a hole: {times:?}");
        *times.last().unwrap()
    }

    #[tokio::test]
    async fn sound_alone_that_stops_is_silent_as_time_passes() {
        let last = last_of_sound_alone(false, None);
        assert!((3_850..4_000).contains(&last), "{last}");
    }

    #[tokio::test]
    async fn no_silence_is_added_where_the_publisher_of_sound_alone_goes_unless_it_comes_back() {
        let last = last_of_sound_alone(true, None);
        assert!((950..1_030).contains(&last), "{last}");
        let last = last_of_sound_alone(true, Some(4));
        assert!((3_970..4_050).contains(&last), "{last}");
    }
}
