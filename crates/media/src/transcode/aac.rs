//! AAC-LC: decoded by symphonia, encoded by Fraunhofer's FDK.

use symphonia_core::codecs::audio::well_known::CODEC_ID_AAC;
use symphonia_core::codecs::audio::{AudioCodecParameters, AudioDecoder as _, AudioDecoderOptions};
use symphonia_core::packet::PacketRef;
use symphonia_core::units::{Duration, Timestamp};

use super::{AudioDecoder, CHANNELS, Error};
use crate::codec::aac::{Config, RATES};
use crate::{Codec, Track};

const FRAME: usize = 1024;

pub struct Decoder {
    codec: symphonia_codec_aac::AacDecoder,
    rate: u32,
    /// Scratch.
    samples: Vec<f32>,
}

impl Decoder {
    pub fn new(track: &Track) -> Result<Decoder, Error> {
        let undecodable = |why: String| Error::Undecodable(Codec::Aac, why);
        let config = Config::parse(&track.config).ok_or(Error::Malformed(Codec::Aac))?;
        let told = core(&config).map_or_else(|| track.config.to_vec(), |it| it.to_vec());
        let mut parameters = AudioCodecParameters::new();
        parameters.for_codec(CODEC_ID_AAC).with_extra_data(told.into());
        let codec = symphonia_codec_aac::AacDecoder::try_new(&parameters, &AudioDecoderOptions::default())
            .map_err(|why| undecodable(why.to_string()))?;
        Ok(Decoder { codec, rate: config.core_rate, samples: Vec::new() })
    }
}

/// The AudioSpecificConfig of the AAC-LC within, whatever extension is told: a decoder that does not know SBR plays the core.
fn core(config: &Config) -> Option<[u8; 2]> {
    let rate = RATES.iter().position(|&it| it == config.core_rate)? as u16;
    let plain = config.object_type == 2 && config.layout != 0 && usize::from(config.frame_length) == FRAME;
    plain.then(|| (2 << 11 | rate << 7 | u16::from(config.layout) << 3).to_be_bytes())
}

impl AudioDecoder for Decoder {
    fn rate(&self) -> u32 {
        self.rate
    }

    fn samples(&self, packet: &[u8]) -> Option<usize> {
        (!packet.is_empty()).then_some(FRAME)
    }

    fn decode(&mut self, packet: &[u8], pcm: &mut Vec<f32>) -> Result<(), Error> {
        let packet = PacketRef::new(0, Timestamp::default(), Duration::default(), packet);
        let decoded = self.codec.decode_ref(&packet).map_err(|_| Error::Malformed(Codec::Aac))?;
        let channels = decoded.num_planes();
        if decoded.frames() != FRAME {
            return Err(Error::Malformed(Codec::Aac));
        }
        decoded.copy_to_vec_interleaved(&mut self.samples);
        match channels {
            1 => pcm.extend(self.samples.iter().flat_map(|it| [*it; CHANNELS])),
            _ => pcm.extend(self.samples.chunks_exact(channels).flat_map(|it| [it[0], it[1]])),
        }
        Ok(())
    }

    /// AAC knows nothing of what was lost.
    fn conceal(&mut self, samples: usize, _next: Option<&[u8]>, pcm: &mut Vec<f32>) {
        pcm.resize(pcm.len() + samples * CHANNELS, 0.0);
    }
}

#[cfg(feature = "aac-fdk")]
pub use self::fdk::Encoder;

#[cfg(feature = "aac-fdk")]
mod fdk {
    use bytes::Bytes;
    use fdk_aac::enc::{self, AudioObjectType, BitRate, ChannelMode, EncoderParams, Transport};

    use super::super::{AudioEncoder, RATE, track};
    use super::*;

    /// An access unit of two channels is never longer (ISO/IEC 14496-3 §4.5.3.2: 6144 bits a channel).
    const LARGEST: usize = 1536;

    pub struct Encoder {
        codec: enc::Encoder,
        config: Bytes,
        delay: u32,
    }

    impl Encoder {
        pub fn new(bit_rate: u32) -> Result<Encoder, Error> {
            let made = || -> Result<Encoder, enc::EncoderError> {
                let codec = enc::Encoder::new(EncoderParams {
                    bit_rate: BitRate::Cbr(bit_rate),
                    sample_rate: RATE,
                    transport: Transport::Raw,
                    channels: ChannelMode::Stereo,
                    audio_object_type: AudioObjectType::Mpeg4LowComplexity,
                })?;
                let info = codec.info()?;
                let config = Bytes::copy_from_slice(&info.confBuf[..info.confSize as usize]);
                Ok(Encoder { codec, config, delay: info.nDelay })
            };
            made().map_err(|why| Error::Encoder(Codec::Aac, why.to_string()))
        }
    }

    impl AudioEncoder for Encoder {
        fn track(&self) -> Track {
            track(Codec::Aac, self.config.clone())
        }

        fn delay(&self) -> u32 {
            self.delay
        }

        fn frame(&self) -> usize {
            FRAME
        }

        fn encode(&mut self, pcm: &[f32], out: &mut Vec<Bytes>) {
            // Rounded: `f32::round` is a call where the processor is not known to have an instruction for it.
            let round = |sample: f32| (sample + 0.5f32.copysign(sample)) as i16;
            let samples: Vec<i16> = pcm.iter().map(|it| round(it * 32_767.0)).collect();
            let mut unit = [0; LARGEST];
            let mut rest = &samples[..];
            while !rest.is_empty() {
                let Ok(made) = self.codec.encode(rest, &mut unit) else { return };
                if made.output_size > 0 {
                    out.push(Bytes::copy_from_slice(&unit[..made.output_size]));
                } else if made.input_consumed == 0 {
                    return;
                }
                rest = &rest[made.input_consumed..];
            }
        }
    }
}
