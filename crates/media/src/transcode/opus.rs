//! Opus by libopus.

use bytes::Bytes;

use super::{AudioDecoder, AudioEncoder, CHANNELS, Error, RATE, track};
use crate::codec::opus::{self, Head};
use crate::{Codec, Track};

/// Ten would gain 0.02 ODG for half as much work again.
const COMPLEXITY: i32 = 5;

pub struct Decoder {
    codec: ::opus::Decoder,
}

impl Decoder {
    pub fn new(track: &Track) -> Result<Decoder, Error> {
        let wrong = |why: ::opus::Error| Error::Undecodable(Codec::Opus, why.to_string());
        let head = Head::parse(&track.config);
        if head.is_some_and(|head| head.channels > 2) {
            return Err(Error::Undecodable(Codec::Opus, "more than two channels".into()));
        }
        let mut codec = ::opus::Decoder::new(RATE, ::opus::Channels::Stereo).map_err(wrong)?;
        codec.set_gain(head.map_or(0, |head| head.gain.into())).map_err(wrong)?;
        Ok(Decoder { codec })
    }
}

impl AudioDecoder for Decoder {
    fn rate(&self) -> u32 {
        RATE
    }

    fn samples(&self, packet: &[u8]) -> Option<usize> {
        opus::duration(packet).map(|length| length.as_ticks(RATE) as usize)
    }

    fn decode(&mut self, packet: &[u8], pcm: &mut Vec<f32>) -> Result<(), Error> {
        let from = pcm.len();
        // To libopus an empty packet is a lost one; here it is none.
        let samples = self.samples(packet).ok_or(Error::Malformed(Codec::Opus))?;
        pcm.resize(from + samples * CHANNELS, 0.0);
        let decoded = self.codec.decode_float(packet, &mut pcm[from..], false);
        pcm.truncate(from + decoded.as_ref().map_or(0, |samples| samples * CHANNELS));
        decoded.map(drop).map_err(|_| Error::Malformed(Codec::Opus))
    }

    fn conceal(&mut self, samples: usize, next: Option<&[u8]>, pcm: &mut Vec<f32>) {
        let from = pcm.len();
        pcm.resize(from + samples * CHANNELS, 0.0);
        // With the next packet, its copy of the lost one (in-band FEC) is decoded, and what is before that made up.
        // Where it has no copy, all is made up. What libopus refuses stays silent.
        let _ = self.codec.decode_float(next.unwrap_or_default(), &mut pcm[from..], next.is_some());
    }
}

pub struct Encoder {
    codec: ::opus::Encoder,
    delay: u32,
}

impl Encoder {
    pub fn new(bit_rate: u32) -> Result<Encoder, Error> {
        let made = || -> Result<Encoder, ::opus::Error> {
            let mut codec = ::opus::Encoder::new(RATE, ::opus::Channels::Stereo, ::opus::Application::Audio)?;
            codec.set_bitrate(::opus::Bitrate::Bits(bit_rate as i32))?;
            codec.set_complexity(COMPLEXITY)?;
            let delay = codec.get_lookahead()? as u32;
            Ok(Encoder { codec, delay })
        };
        made().map_err(|why| Error::Encoder(Codec::Opus, why.to_string()))
    }
}

impl AudioEncoder for Encoder {
    fn track(&self) -> Track {
        let head = Head { channels: CHANNELS as u8, pre_skip: self.delay as u16, source_rate: RATE, gain: 0 };
        track(Codec::Opus, head.build())
    }

    fn delay(&self) -> u32 {
        self.delay
    }

    fn frame(&self) -> usize {
        960
    }

    fn encode(&mut self, pcm: &[f32], out: &mut Vec<Bytes>) {
        // Three frames of the longest kind (RFC 6716 §3.2.1) would fit; one at 510 kbit/s does.
        let mut packet = [0; 1500];
        if let Ok(len) = self.codec.encode_float(pcm, &mut packet) {
            out.push(Bytes::copy_from_slice(&packet[..len]));
        }
    }
}
