//! MP3: the frame header (ISO/IEC 11172-3 §2.4.1.3, 13818-3 §2.4.1.3, and the 2.5 extension), layer III only.

/// What a frame header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Samples a second, in Hz.
    pub sample_rate: u32,
    /// Channels: 1 or 2.
    pub channels: u8,
    /// Samples in the frame.
    pub samples: u16,
    /// Bytes of the frame, this header included; 0 for the free format, which does not tell.
    pub len: u16,
}

impl Header {
    /// From the first bytes of a frame.
    pub fn parse(packet: &[u8]) -> Option<Header> {
        const LAYER_3: u8 = 1;
        let &[sync, kind, rate, mode, ..] = packet else {
            return None;
        };
        if sync != 0xff || kind & 0xe0 != 0xe0 || kind >> 1 & 3 != LAYER_3 || rate >> 4 == 15 {
            return None;
        }
        let (divisor, samples) = match kind >> 3 & 3 {
            3 => (1, 1152),
            2 => (2, 576),
            0 => (4, 576),
            _ => return None,
        };
        // Kilobits a second of version 1, and of 2 and 2.5.
        let rates: [u32; 15] = match divisor {
            1 => [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
            _ => [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
        };
        let bit_rate = rates[usize::from(rate >> 4)] * 1000;
        let padding = u32::from(rate >> 1 & 1);
        let of_version_1 = *[44_100, 48_000, 32_000].get(usize::from(rate >> 2 & 3))?;
        let channels = if mode >> 6 == 3 { 1 } else { 2 };
        let sample_rate = of_version_1 / divisor;
        let len = match bit_rate {
            0 => 0,
            _ => u32::from(samples) / 8 * bit_rate / sample_rate + padding,
        };
        Some(Header { sample_rate, channels, samples, len: len as u16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(packet: &[u8], want: Option<(u32, u8, u16, u16)>) {
        let want = want.map(|(sample_rate, channels, samples, len)| Header { sample_rate, channels, samples, len });
        assert_eq!(Header::parse(packet), want, "{packet:x?}");
    }

    #[test]
    fn each_version_is_known() {
        check(&[0xff, 0xfb, 0x90, 0x44], Some((44_100, 2, 1152, 417)));
        check(&[0xff, 0xfb, 0x94, 0xc4], Some((48_000, 1, 1152, 384)));
        check(&[0xff, 0xf3, 0x84, 0x44], Some((24_000, 2, 576, 192)));
        check(&[0xff, 0xe3, 0x88, 0xc4], Some((8_000, 1, 576, 576)));
    }

    #[test]
    fn other_layers_and_reserved_values_are_none() {
        check(&[0xff, 0xfd, 0x90, 0x44], None);
        check(&[0xff, 0xfb, 0xf0, 0x44], None);
        check(&[0xff, 0xfb, 0x9c, 0x44], None);
        check(&[0xff, 0xeb, 0x90, 0x44], None);
        check(&[0xff, 0xfb, 0x90], None);
    }
}
