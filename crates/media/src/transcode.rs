//! Sound from one codec to another: packets in, packets of the other codec out, without a hole.
//!
//! A [`Transcoder`] counts samples on the media clock. What a publisher leaves out — lost packets, DTX, mute — becomes
//! concealment and then silence of the exact length, so that what comes out is one packet after the other without end, and
//! each stands where its sound stood in the source: the codec's delay is taken off its time.
//!
//! The codec libraries stay behind [`AudioDecoder`] and [`AudioEncoder`]; PCM is interleaved stereo `f32`, and 48 kHz
//! from the decoder's resampler on.
//!
//! Invariant: no packet panics, and samples reach an encoder finite and within ±1.

mod aac;
#[cfg(feature = "mp3-lame")]
mod mp3;
mod opus;
mod resample;

use bytes::Bytes;

use self::resample::Resampler;
use crate::{Codec, Format, Frame, Kind, Time, Track};

/// Samples a second of all that is encoded.
pub const RATE: u32 = 48_000;

/// Channels of all PCM here.
pub const CHANNELS: usize = 2;

/// How long lost sound is made up for; after that it is silent.
const CONCEAL: Time = Time::from_millis(100);
/// The same where the sender said that it has nothing to say: its noise goes on. It repeats itself each 400 ms.
const COMFORT: Time = Time::from_millis(1_000);
/// What is made up ends softly.
const FADE: Time = Time::from_millis(20);
/// What comes after silence begins so.
const RISE: Time = Time::from_millis(5);
/// A longer hole is left as it is, and the clock begins anew behind it.
const HOLE_MAX: Time = Time::from_millis(5_000);
/// Sound that comes for a time that has been filled by more than this already is dropped.
const EARLY: Time = Time::from_millis(-60);
/// But if it comes so for so long, and does not catch up as what was held back does, all that it is late by is added to its times.
const EARLY_MAX: Time = Time::from_millis(1_000);
/// A publisher's timestamps differ from its sample count by so much without a meaning.
const TOLERANCE: Time = Time::from_millis(1);
/// A hole that differs by less from a number of packets is of as many.
const NEAR: Time = Time::from_millis(5);
/// How slowly the clock follows a publisher's: a share of the difference each packet, and of the packet at the most.
const FOLLOW: i64 = 32;
const FOLLOW_MAX: i64 = 128;

/// Why there is no transcoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This build has no encoder of the codec.
    #[error("this build has no {0} encoder (it has: {has})", has = encoders().iter().map(|it| it.name()).collect::<Vec<_>>().join(", "))]
    NoEncoder(Codec),
    /// No decoder takes the track.
    #[error("cannot decode this {0} sound: {1}")]
    Undecodable(Codec, String),
    /// The codec library does not take these settings.
    #[error("the {0} encoder does not start: {1}")]
    Encoder(Codec, String),
    /// These bytes are no packet of the codec.
    #[error("malformed {0} packet")]
    Malformed(Codec),
}

/// Coded sound to PCM.
pub trait AudioDecoder: Send {
    /// Samples a second that come out.
    fn rate(&self) -> u32;

    /// How many samples `packet` has; `None` if it is none of the codec.
    fn samples(&self, packet: &[u8]) -> Option<usize>;

    /// Appends the samples of `packet` to `pcm`; on an error, none.
    fn decode(&mut self, packet: &[u8], pcm: &mut Vec<f32>) -> Result<(), Error>;

    /// Appends `samples` samples in place of what was lost before `next`, which may know something of it. A whole number
    /// of 2.5 ms.
    fn conceal(&mut self, samples: usize, next: Option<&[u8]>, pcm: &mut Vec<f32>);
}

/// PCM of [`RATE`] to coded sound.
pub trait AudioEncoder: Send {
    /// The track that comes out.
    fn track(&self) -> Track;

    /// How many samples late the sound is in the packets.
    fn delay(&self) -> u32;

    /// Samples of one packet.
    fn frame(&self) -> usize;

    /// Encodes exactly one frame of samples; appends what packets are ready.
    fn encode(&mut self, pcm: &[f32], out: &mut Vec<Bytes>);

    /// Appends packets that an encoder keeps even though the sound behind them is in.
    fn flush(&mut self, _out: &mut Vec<Bytes>) {}
}

/// The codecs that this build can encode.
pub fn encoders() -> &'static [Codec] {
    &[
        Codec::Opus,
        #[cfg(feature = "aac-fdk")]
        Codec::Aac,
        #[cfg(feature = "mp3-lame")]
        Codec::Mp3,
    ]
}

/// An encoder of stereo sound at `bit_rate` bits a second.
pub fn encoder(codec: Codec, bit_rate: u32) -> Result<Box<dyn AudioEncoder>, Error> {
    match codec {
        Codec::Opus => Ok(Box::new(opus::Encoder::new(bit_rate)?)),
        #[cfg(feature = "aac-fdk")]
        Codec::Aac => Ok(Box::new(aac::Encoder::new(bit_rate)?)),
        #[cfg(feature = "mp3-lame")]
        Codec::Mp3 => Ok(Box::new(mp3::Encoder::new(bit_rate)?)),
        codec => Err(Error::NoEncoder(codec)),
    }
}

/// A decoder of `track`.
pub fn decoder(track: &Track) -> Result<Box<dyn AudioDecoder>, Error> {
    match track.codec {
        Codec::Opus => Ok(Box::new(opus::Decoder::new(track)?)),
        Codec::Aac => Ok(Box::new(aac::Decoder::new(track)?)),
        codec => Err(Error::Undecodable(codec, "there is no decoder".into())),
    }
}

/// The encoder's door: any number of samples in, whole frames to the encoder, saturated and without NaN.
pub struct Feed {
    encoder: Box<dyn AudioEncoder>,
    waiting: Vec<f32>,
}

impl Feed {
    /// The door of `encoder`.
    pub fn new(encoder: Box<dyn AudioEncoder>) -> Feed {
        Feed { encoder, waiting: Vec::new() }
    }

    /// Encodes what whole frames there are.
    pub fn push(&mut self, pcm: &[f32], out: &mut Vec<Bytes>) {
        self.waiting.extend(pcm.iter().map(|it| if it.is_nan() { 0.0 } else { it.clamp(-1.0, 1.0) }));
        let frame = self.encoder.frame() * CHANNELS;
        let whole = self.waiting.len() / frame * frame;
        for one in self.waiting[..whole].chunks_exact(frame) {
            self.encoder.encode(one, out);
        }
        self.waiting.drain(..whole);
    }

    /// Encodes all that was pushed, and silence behind it until the last of it has come out.
    pub fn drain(&mut self, out: &mut Vec<Bytes>) {
        let frame = self.encoder.frame();
        let waits = self.waiting.len() / CHANNELS;
        let frames = (waits + self.encoder.delay() as usize).div_ceil(frame);
        self.push(&vec![0.0; (frames * frame - waits) * CHANNELS], out);
        self.encoder.flush(out);
    }
}

/// One stream's sound in another codec.
pub struct Transcoder {
    source: Option<Source>,
    feed: Feed,
    clock: Option<Clock>,
    hole: Hole,
    /// The first packet that was dropped since the last that was not: its time, and how far that was ahead.
    early: Option<(Time, Time)>,
    /// What is added to the times of packets, see [`EARLY_MAX`]. Each hole makes it less.
    slip: Time,
    /// Scratch.
    pcm: Vec<f32>,
    packets: Vec<Bytes>,
}

struct Source {
    decoder: Box<dyn AudioDecoder>,
    resampler: Option<Resampler>,
}

/// Where the samples stand on the media clock.
struct Clock {
    /// The time of the first sample that went in.
    begin: Time,
    /// The time behind the last one.
    end: Time,
    /// Packets that came out.
    packets: i64,
    /// How far the publisher's timestamps are ahead of `end`, smoothed.
    ahead: i64,
}

/// What is known of sound that does not come.
#[derive(Default)]
struct Hole {
    /// How much has been made up since the last packet.
    filled: Time,
    /// The last packet said that there is nothing to say.
    comfort: bool,
}

impl Transcoder {
    /// To `encoder`; silent until there is a track.
    pub fn new(encoder: Box<dyn AudioEncoder>) -> Transcoder {
        Transcoder {
            source: None,
            feed: Feed::new(encoder),
            clock: None,
            hole: Hole::default(),
            early: None,
            slip: Time::ZERO,
            pcm: Vec::new(),
            packets: Vec::new(),
        }
    }

    /// The track of what comes out.
    pub fn track(&self) -> Track {
        self.feed.encoder.track()
    }

    /// Sets the track of the packets that follow, or that there is no sound. The sound goes on where it was.
    pub fn set_source(&mut self, track: Option<&Track>) -> Result<(), Error> {
        if let Some(resampler) = self.source.as_mut().and_then(|source| source.resampler.as_mut()) {
            self.feed.push(resampler.flush(), &mut self.packets);
        }
        self.source = None;
        self.hole = Hole::default();
        if let Some(track) = track {
            let decoder = decoder(track)?;
            let rate = decoder.rate();
            let resampler = match rate {
                RATE => None,
                rate => {
                    let fits = || Error::Undecodable(track.codec, format!("a sample rate of {rate} Hz"));
                    Some(Resampler::new(rate).ok_or_else(fits)?)
                }
            };
            self.source = Some(Source { decoder, resampler });
        }
        Ok(())
    }

    /// Takes a packet of the source; appends what is ready to `out`.
    pub fn push(&mut self, frame: &Frame, out: &mut Vec<Frame>) {
        let Some(source) = &self.source else { return };
        let Some(samples) = source.decoder.samples(&frame.payload) else { return };
        let length = Time::from_ticks(samples as i64, source.decoder.rate());
        let ahead = frame.dts - self.clock_at(frame.dts, out).end;
        self.slip = self.slip.min(Time::ZERO - ahead).max(Time::ZERO);
        let mut ahead = ahead + self.slip;
        if ahead < EARLY {
            if !self.comes_no_sooner(frame.dts, ahead) {
                return;
            }
            (self.slip, ahead) = (self.slip - ahead, Time::ZERO);
        }
        self.early = None;
        if ahead.as_nanos() > length.as_nanos() * 3 / 4 {
            // Packets like this one were lost, if the times allow it: it may know the last of them, but not a part of it.
            let lost =
                Time::from_nanos((ahead.as_nanos() + length.as_nanos() / 2) / length.as_nanos() * length.as_nanos());
            let missing = if (ahead - lost).as_nanos().abs() < NEAR.as_nanos() { lost } else { ahead };
            self.fill_hole(missing, Some(&frame.payload), out);
        }
        let mut pcm = std::mem::take(&mut self.pcm);
        pcm.clear();
        let source = self.source.as_mut().expect("it was there a moment ago");
        // What does not decode counts as lost: the next packet tells how much is missing.
        if source.decoder.decode(&frame.payload, &mut pcm).is_ok() {
            self.clock.as_mut().expect("it was set above").follow(frame.dts + self.slip, length);
            if self.hole.filled >= self.hole.limit() {
                let rise = (RISE.as_ticks(RATE) as usize * CHANNELS).min(pcm.len());
                ramp(&mut pcm[..rise], |at| at);
            }
            self.hole = Hole { filled: Time::ZERO, comfort: frame.payload.len() <= 2 };
            self.feed(&pcm, out);
        }
        self.pcm = pcm;
    }

    /// Whether packets have come too early for long enough, up to this one.
    fn comes_no_sooner(&mut self, dts: Time, ahead: Time) -> bool {
        let (since, first) = *self.early.get_or_insert((dts, ahead));
        let passed = dts - since;
        if passed >= EARLY_MAX {
            self.early = None;
        }
        passed >= EARLY_MAX && (ahead - first).as_nanos() < passed.as_nanos() / 2
    }

    /// No sound has come for the time until `until`, and none will: fills it.
    pub fn fill(&mut self, until: Time, out: &mut Vec<Frame>) {
        let missing = until - self.clock_at(until, out).end;
        self.fill_hole(missing, None, out);
    }

    /// Appends what is still within.
    pub fn finish(&mut self, out: &mut Vec<Frame>) {
        if self.clock.is_some() {
            self.feed.drain(&mut self.packets);
            self.stamp(out);
        }
    }

    /// The clock; one that begins at `time` if there is none, or if its end lies too far back.
    fn clock_at(&mut self, time: Time, out: &mut Vec<Frame>) -> &Clock {
        if self.clock.as_ref().is_some_and(|clock| time - clock.end > HOLE_MAX) {
            self.finish(out);
            self.clock = None;
        }
        self.clock.get_or_insert(Clock { begin: time, end: time, packets: 0, ahead: 0 })
    }

    /// Makes up for `missing`, to the nearest 2.5 ms: the decoder's idea of it first, then silence.
    fn fill_hole(&mut self, missing: Time, next: Option<&[u8]>, out: &mut Vec<Frame>) {
        let mut pcm = std::mem::take(&mut self.pcm);
        pcm.clear();
        let rate = self.source.as_ref().map_or(RATE, |source| source.decoder.rate());
        let samples = |time: Time| (time.as_ticks(400).max(0) as usize) * rate as usize / 400;
        let whole = samples(missing);
        if let Some(source) = &mut self.source {
            let made_up = samples(self.hole.limit() - self.hole.filled).min(whole);
            let next = next.filter(|_| made_up == whole);
            if made_up > 0 {
                source.decoder.conceal(made_up, next, &mut pcm);
            }
            if made_up < whole {
                let fade = (FADE.as_ticks(rate) as usize).min(made_up) * CHANNELS;
                let from = pcm.len() - fade;
                ramp(&mut pcm[from..], |at| 1.0 - at);
            }
        }
        pcm.resize(whole * CHANNELS, 0.0);
        self.hole.filled = self.hole.filled + Time::from_ticks(whole as i64, rate);
        self.feed(&pcm, out);
        self.pcm = pcm;
    }

    /// Encodes PCM of the source's rate.
    fn feed(&mut self, pcm: &[f32], out: &mut Vec<Frame>) {
        let clock = self.clock.as_mut().expect("callers set it");
        let rate = self.source.as_ref().map_or(RATE, |source| source.decoder.rate());
        clock.end = clock.end + Time::from_ticks((pcm.len() / CHANNELS) as i64, rate);
        match self.source.as_mut().and_then(|source| source.resampler.as_mut()) {
            Some(resampler) => self.feed.push(resampler.push(pcm), &mut self.packets),
            None => self.feed.push(pcm, &mut self.packets),
        }
        self.stamp(out);
    }

    fn stamp(&mut self, out: &mut Vec<Frame>) {
        let clock = self.clock.as_mut().expect("callers set it");
        let (frame, delay) = (self.feed.encoder.frame() as i64, i64::from(self.feed.encoder.delay()));
        for payload in self.packets.drain(..) {
            let from = clock.packets * frame - delay;
            clock.packets += 1;
            let dts = clock.begin + Time::from_ticks(from, RATE);
            // What comes before the first sample is the encoder's own beginning.
            if from + frame > 0 && dts >= Time::ZERO {
                out.push(Frame { track: Kind::Audio, dts, cts: Time::ZERO, key: true, payload });
            }
        }
    }
}

impl Hole {
    /// How much is made up for at the most.
    fn limit(&self) -> Time {
        if self.comfort { COMFORT } else { CONCEAL }
    }
}

impl Clock {
    /// Follows a publisher whose clock runs a little differently from its sample count.
    fn follow(&mut self, dts: Time, length: Time) {
        self.ahead += ((dts - self.end).as_nanos() - self.ahead) / FOLLOW;
        if self.ahead.abs() <= TOLERANCE.as_nanos() {
            return;
        }
        let most = length.as_nanos() / FOLLOW_MAX;
        let step = (self.ahead / FOLLOW).clamp(-most, most);
        self.ahead -= step;
        self.begin = self.begin + Time::from_nanos(step);
        self.end = self.end + Time::from_nanos(step);
    }
}

/// Multiplies each sample by what `gain` says of its place, 0 to 1.
fn ramp(pcm: &mut [f32], gain: impl Fn(f32) -> f32) {
    let samples = pcm.len() / CHANNELS;
    for (n, sample) in pcm.chunks_exact_mut(CHANNELS).enumerate() {
        let gain = gain(n as f32 / samples as f32);
        sample.iter_mut().for_each(|it| *it *= gain);
    }
}

/// The stereo track of `codec` at [`RATE`].
fn track(codec: Codec, config: Bytes) -> Track {
    Track { codec, config, format: Format::Audio { sample_rate: RATE, channels: CHANNELS as u8 } }
}
