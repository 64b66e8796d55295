//! Opus: the `OpusHead` record (RFC 7845 §5.1) and the length of a packet (RFC 6716 §3.1).

use bytes::Bytes;

use crate::Time;

/// The identification header. Of the multichannel mapping only the channel count is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Channels, 1 to 255.
    pub channels: u8,
    /// Samples at 48 kHz that a decoder drops at the start.
    pub pre_skip: u16,
    /// Samples a second of the source, in Hz; 0 if unknown. Opus itself runs at 48 kHz.
    pub source_rate: u32,
    /// Gain to apply to the output, in 1/256 dB.
    pub gain: i16,
}

const MAGIC: &[u8; 8] = b"OpusHead";

impl Head {
    /// From the header with its magic; `None` for a major version that is not known.
    pub fn parse(head: &[u8]) -> Option<Head> {
        let [version, channels, skip0, skip1, r0, r1, r2, r3, gain0, gain1, _family, ..] = *head.strip_prefix(MAGIC)?
        else {
            return None;
        };
        (version < 16 && channels > 0).then_some(Head {
            channels,
            pre_skip: u16::from_le_bytes([skip0, skip1]),
            source_rate: u32::from_le_bytes([r0, r1, r2, r3]),
            gain: i16::from_le_bytes([gain0, gain1]),
        })
    }

    /// The header for mono or stereo (mapping family 0).
    pub fn build(&self) -> Bytes {
        let mut out = MAGIC.to_vec();
        out.extend([1, self.channels]);
        out.extend(self.pre_skip.to_le_bytes());
        out.extend(self.source_rate.to_le_bytes());
        out.extend(self.gain.to_le_bytes());
        out.push(0);
        out.into()
    }

    /// What a packet alone tells, for publishers that send no header.
    pub fn of_packet(packet: &[u8]) -> Option<Head> {
        let channels = if packet.first()? & 4 == 0 { 1 } else { 2 };
        Some(Head { channels, pre_skip: 0, source_rate: 48_000, gain: 0 })
    }
}

/// How long a packet sounds: 2.5 to 120 ms; `None` if it is no Opus packet.
pub fn duration(packet: &[u8]) -> Option<Time> {
    let toc = *packet.first()?;
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => i64::from(packet.get(1)? & 0x3f),
    };
    let micros = match toc >> 3 {
        config @ 0..=11 => [10_000, 20_000, 40_000, 60_000][usize::from(config & 3)],
        config @ 12..=15 => [10_000, 20_000][usize::from(config & 1)],
        config => [2_500, 5_000, 10_000, 20_000][usize::from(config & 3)],
    };
    let total = frames * micros;
    (1..=120_000).contains(&total).then(|| Time::from_nanos(total * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_the_round_trip() {
        let head = Head { channels: 2, pre_skip: 312, source_rate: 48_000, gain: -256 };
        assert_eq!(Head::parse(&head.build()), Some(head));
        assert_eq!(head.build()[..12], *b"OpusHead\x01\x02\x38\x01");
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for bad in [&b""[..], b"OpusHead", b"OpusTags\x01\x02\0\0\0\0\0\0\0\0\0", b"OpusHead\x10\x02\0\0\0\0\0\0\0\0\0"]
        {
            assert_eq!(Head::parse(bad), None, "{bad:x?}");
        }
    }

    #[test]
    fn the_first_byte_tells_how_long_a_packet_sounds() {
        let check = |packet: &[u8], ms: Option<f64>| {
            let got = duration(packet).map(|it| it.as_nanos() as f64 / 1e6);
            assert_eq!(got, ms, "{packet:x?}");
        };
        check(&[0xfc], Some(20.0));
        check(&[0xe0], Some(2.5));
        check(&[0x18], Some(60.0));
        check(&[0x68], Some(20.0));
        check(&[0xf9], Some(40.0));
        check(&[0xfb, 0x03], Some(60.0));
        check(&[0xfb], None);
        check(&[0xfb, 0x3f], None);
        check(&[], None);
    }
}
