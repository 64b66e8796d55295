//! AAC: the AudioSpecificConfig (ISO/IEC 14496-3 §1.6.2.1).
//!
//! Tolerant: encoders disagree about extensions, so what comes after the fields needed here may be missing or odd.

use std::ops::RangeInclusive;

use super::bits::Bits;

/// What an AudioSpecificConfig says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The audio object type of the core: 2 is AAC-LC.
    pub object_type: u8,
    /// Samples a second that a decoder puts out, in Hz: with SBR told, twice the core's.
    pub sample_rate: u32,
    /// Samples a second of the core coder, in Hz.
    pub core_rate: u32,
    /// Channels; 0 where neither the configuration nor a program config element tells them.
    pub channels: u8,
    /// The channel configuration as it stands, 0 to 15 (table 1.19); that of the core where parametric stereo makes two of one.
    pub layout: u8,
    /// Samples in a frame at [`core_rate`](Self::core_rate): 1024 or 960.
    pub frame_length: u16,
}

/// The rates that have a number, in Hz (table 1.18).
pub(crate) const RATES: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];

/// Rates that may be told without a number, in Hz.
const RATES_TOLD: RangeInclusive<u32> = 4_000..=192_000;

const SBR: u32 = 5;
const PS: u32 = 29;

impl Config {
    /// Reads as far as it can; `None` if not even object type and sample rate are there.
    pub fn parse(config: &[u8]) -> Option<Config> {
        let mut bits = Bits::new(config);
        let mut object_type = object_type(&mut bits)?;
        let core_rate = sample_rate(&mut bits)?;
        let layout = bits.u(4)?;
        let mut parsed = Config {
            object_type: 0,
            sample_rate: core_rate,
            core_rate,
            channels: [0, 1, 2, 3, 4, 5, 6, 8, 0, 0, 0, 7, 8, 0, 8, 0][layout as usize],
            layout: layout as u8,
            frame_length: 1024,
        };
        // Announced before the core's own fields: explicit, hierarchical signalling.
        let hierarchical = matches!(object_type, SBR | PS);
        if hierarchical {
            if object_type == PS {
                parsed.stereo();
            }
            parsed.set_output_rate(sample_rate(&mut bits)?);
            object_type = self::object_type(&mut bits)?;
        }
        parsed.object_type = object_type as u8;
        if matches!(object_type, 1..=4 | 6 | 7 | 17 | 19..=23) {
            parsed.specific(&mut bits, layout);
            if !hierarchical {
                parsed.extension(&mut bits);
            }
        }
        Some(parsed)
    }

    /// GASpecificConfig (§4.4.1), up to where its fields end or stop making sense.
    fn specific(&mut self, bits: &mut Bits, layout: u32) -> Option<()> {
        if bits.flag()? {
            self.frame_length = 960;
        }
        if bits.flag()? {
            bits.skip(14)?;
        }
        let extended = bits.flag()?;
        if layout == 0 {
            self.channels = program_channels(bits)?;
        }
        if matches!(self.object_type, 6 | 20) {
            bits.skip(3)?;
        }
        if extended {
            match self.object_type {
                22 => bits.skip(16)?,
                17 | 19 | 20 | 23 => bits.skip(3)?,
                _ => {}
            }
            bits.skip(1)?;
        }
        Some(())
    }

    /// The backward compatible extension behind the core's fields; FFmpeg sends it even to say that there is no SBR.
    fn extension(&mut self, bits: &mut Bits) -> Option<()> {
        if bits.u(11)? != 0x2b7 || object_type(bits)? != SBR || !bits.flag()? {
            return None;
        }
        self.set_output_rate(sample_rate(bits)?);
        if bits.u(11)? == 0x548 && bits.flag()? {
            self.stereo();
        }
        Some(())
    }

    /// SBR doubles the core's rate or leaves it (§4.6.18.2.6); nothing else is believed.
    fn set_output_rate(&mut self, rate: u32) {
        if rate == 2 * self.core_rate {
            self.sample_rate = rate;
        }
    }

    /// Parametric stereo makes two channels of one.
    fn stereo(&mut self) {
        self.channels = self.channels.max(2);
    }
}

/// In what two configurations differ that a decoder goes by: not in how they say it, nor in saying that there is no SBR.
pub(super) fn difference(one: &[u8], other: &[u8]) -> Option<&'static str> {
    let (Some(a), Some(b)) = (Config::parse(one), Config::parse(other)) else { return Some("configuration") };
    // A program config element tells more than how many channels there are.
    let told = a.layout == 0 && one != other;
    [
        (a.object_type != b.object_type, "object type"),
        ((a.sample_rate, a.core_rate) != (b.sample_rate, b.core_rate), "sample rate"),
        ((a.channels, a.layout) != (b.channels, b.layout) || told, "channels"),
        (a.frame_length != b.frame_length, "frame length"),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what))
}

/// The audio object type that a configuration begins with: that of the extension, where one is told first.
pub(super) fn announced_type(config: &[u8]) -> Option<u32> {
    object_type(&mut Bits::new(config))
}

fn object_type(bits: &mut Bits) -> Option<u32> {
    match bits.u(5)? {
        31 => Some(32 + bits.u(6)?),
        it => Some(it),
    }
}

fn sample_rate(bits: &mut Bits) -> Option<u32> {
    match bits.u(4)? {
        15 => bits.u(24).filter(|rate| RATES_TOLD.contains(rate)),
        index => RATES.get(index as usize).copied(),
    }
}

/// The channels of a program config element (§4.4.1.1); reads past it.
fn program_channels(bits: &mut Bits) -> Option<u8> {
    bits.skip(10)?;
    let mut count = || bits.u(4);
    let full = count()? + count()? + count()?;
    let (low, data, coupling) = (bits.u(2)?, bits.u(3)? as usize, bits.u(4)? as usize);
    for mixdown in [4, 4, 3] {
        if bits.flag()? {
            bits.skip(mixdown)?;
        }
    }
    let mut channels = low;
    for _ in 0..full {
        channels += if bits.flag()? { 2 } else { 1 };
        bits.skip(4)?;
    }
    bits.skip(4 * low as usize + 4 * data + 5 * coupling)?;
    bits.align();
    let comment = bits.u(8)? as usize;
    bits.skip(8 * comment)?;
    Some(channels as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &[u8], sample_rate: u32, core_rate: u32, channels: u8, frame_length: u16) {
        let got = Config::parse(config).unwrap_or_else(|| panic!("{config:x?}"));
        let want = Config { object_type: 2, sample_rate, core_rate, channels, layout: got.layout, frame_length };
        assert_eq!(got, want, "{config:x?}");
    }

    #[test]
    fn what_encoders_send_is_read() {
        check(&[0x12, 0x10], 44_100, 44_100, 2, 1024);
        check(&[0x11, 0x90], 48_000, 48_000, 2, 1024);
        check(&[0x11, 0x94], 48_000, 48_000, 2, 960);
        // FFmpeg: an extension that says "no SBR".
        check(&[0x11, 0x90, 0x56, 0xe5, 0x00], 48_000, 48_000, 2, 1024);
        // HE-AAC, announced behind and before the core's fields; HE-AAC v2.
        check(&[0x13, 0x10, 0x56, 0xe5, 0x98], 48_000, 24_000, 2, 1024);
        check(&[0x2b, 0x11, 0x88, 0x00], 48_000, 24_000, 2, 1024);
        check(&[0xeb, 0x09, 0x88, 0x00], 48_000, 24_000, 2, 1024);
        // SBR with a rate that is neither the core's nor twice that.
        check(&[0x2b, 0x13, 0x88, 0x00], 24_000, 24_000, 2, 1024);
        // A rate that is not in the table; 7.1.
        check(&[0x17, 0x80, 0x5d, 0xc0, 0x10], 48_000, 48_000, 2, 1024);
        check(&[0x11, 0xb8], 48_000, 48_000, 8, 1024);
    }

    #[test]
    fn a_program_config_element_tells_the_channels() {
        // One front pair, no comment.
        check(&[0x11, 0x80, 0x04, 0xc4, 0x00, 0x00, 0x20, 0x00], 48_000, 48_000, 2, 1024);
        // Cut within the element.
        check(&[0x11, 0x80, 0x04], 48_000, 48_000, 0, 1024);
    }

    #[test]
    fn what_tells_no_rate_is_no_config() {
        let odd = [&[0x17, 0x80, 0, 0, 0x90][..], &[0x2b, 0x17, 0xff, 0xff, 0xff, 0x88, 0x00]];
        for bad in [&[][..], &[0x12], &[0x16, 0x90], &[0xff, 0xff]].into_iter().chain(odd) {
            assert_eq!(Config::parse(bad), None, "{bad:x?}");
        }
    }
}
