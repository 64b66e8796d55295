//! MP3, encoded by LAME.

use bytes::Bytes;
use mp3lame_encoder::{Bitrate, Builder, FlushNoGap, InterleavedPcm, Mode, Quality};

use super::{AudioEncoder, CHANNELS, Error, RATE, track};
use crate::{Codec, Track};

const FRAME: usize = 1152;

/// LAME's own (576), and what a decoder adds (529).
const DELAY: u32 = 1105;

/// What LAME may write for one frame of samples (lame.h: 1.25 × samples + 7200).
const LARGEST: usize = FRAME * 5 / 4 + 7200;

const BIT_RATES: [Bitrate; 12] = [
    Bitrate::Kbps32,
    Bitrate::Kbps40,
    Bitrate::Kbps48,
    Bitrate::Kbps64,
    Bitrate::Kbps80,
    Bitrate::Kbps96,
    Bitrate::Kbps112,
    Bitrate::Kbps128,
    Bitrate::Kbps160,
    Bitrate::Kbps192,
    Bitrate::Kbps256,
    Bitrate::Kbps320,
];

pub struct Encoder {
    codec: mp3lame_encoder::Encoder,
    /// Bytes of a packet.
    size: usize,
    coded: Vec<u8>,
}

impl Encoder {
    /// At the rate of MP3's table that is nearest.
    pub fn new(bit_rate: u32) -> Result<Encoder, Error> {
        let distance = |it: &Bitrate| (*it as u32 * 1000).abs_diff(bit_rate);
        let nearest = BIT_RATES.into_iter().min_by_key(distance).expect("the table is not empty");
        let made = || {
            let builder = Builder::new()?.with_num_channels(CHANNELS as u8).ok()?.with_sample_rate(RATE).ok()?;
            let builder = builder.with_brate(nearest).ok()?.with_mode(Mode::JointStereo).ok()?;
            builder.with_quality(Quality::Good).ok()?.with_to_write_vbr_tag(false).ok()?.build().ok()
        };
        let codec = made().ok_or_else(|| Error::Encoder(Codec::Mp3, "LAME refuses its settings".into()))?;
        // At 48 kHz no rate of the table needs padding.
        let size = FRAME / 8 * nearest as usize * 1000 / RATE as usize;
        Ok(Encoder { codec, size, coded: Vec::new() })
    }
}

impl AudioEncoder for Encoder {
    fn track(&self) -> Track {
        track(Codec::Mp3, Bytes::new())
    }

    fn delay(&self) -> u32 {
        DELAY
    }

    fn frame(&self) -> usize {
        FRAME
    }

    fn encode(&mut self, pcm: &[f32], out: &mut Vec<Bytes>) {
        self.coded.reserve(LARGEST);
        // What LAME refuses is left out.
        let _ = self.codec.encode_to_vec(InterleavedPcm(pcm), &mut self.coded);
        self.cut(out);
    }

    fn flush(&mut self, out: &mut Vec<Bytes>) {
        self.coded.reserve(LARGEST);
        let _ = self.codec.flush_to_vec::<FlushNoGap>(&mut self.coded);
        self.cut(out);
    }
}

impl Encoder {
    /// Packets of the bytes that LAME wrote.
    fn cut(&mut self, out: &mut Vec<Bytes>) {
        let whole = self.coded.len() / self.size * self.size;
        out.extend(self.coded[..whole].chunks_exact(self.size).map(Bytes::copy_from_slice));
        self.coded.drain(..whole);
    }
}
