//! MP3 files: the packets of a track, one behind the other, behind a frame of silence that tells how many there are.
//!
//! That frame is the `Xing` tag, by the name of `Info` where all frames have one bit rate: without it players take the first frame's
//! rate for that of all. [`reserve`] makes it with nothing told, which no crash makes wrong, and [`finish`] writes what it has counted.
//!
//! A file that does not begin with one has none. Of a single packet it has none either: there the frame is silence and nothing else,
//! because FFmpeg takes no file with fewer than two frames behind a tag.

use std::io;

use super::{Finish, Packet, Source, Write, last_whole};
use crate::Time;
use crate::codec::mp3::Header;

/// What the tag tells: the number of frames, of bytes, where each hundredth of the time begins, and how good the sound is, which nobody
/// knows. In this order they follow the flags.
const FRAMES: u32 = 1;
const BYTES: u32 = 2;
const PLACES: u32 = 4;
const QUALITY: u32 = 8;
/// Behind it: who wrote it, and where in what LAME added, of which a file has zeros besides, is the number of bytes.
const WRITER: &[u8; 9] = b"bywash\0\0\0";
const LAME: usize = 36;
const LAME_BYTES: usize = 28;
/// Name and flags, two numbers, a hundred places, a number, and LAME's part.
const TAG: usize = 8 + 8 + 100 + 4 + LAME;

/// Where the tag is: behind the header and the side information (ISO/IEC 11172-3 §2.4.1.7, 13818-3 §2.4.1.7), which is zeros.
fn place(header: &Header) -> usize {
    4 + match (header.samples, header.channels) {
        (1152, 1) | (576, 2) => 17,
        (1152, _) => 32,
        _ => 9,
    }
}

/// The first frame of a file whose packets are as `packet` is; `None` if that is no MP3.
pub fn reserve(packet: &[u8]) -> Option<Vec<u8>> {
    let like = packet.get(..4)?;
    // Without checksum and padding, at the lowest rate that has room.
    let rates = (1..15).map(|rate| [like[0], like[1] | 1, rate << 4 | like[2] & 0x0d, like[3]]);
    let mut fitting = rates.filter_map(|head| Some((head, Header::parse(&head)?)));
    let (head, header) = fitting.find(|(_, it)| usize::from(it.len) >= place(it) + TAG)?;
    let mut frame = vec![0; header.len.into()];
    frame[..4].copy_from_slice(&head);
    frame[place(&header)..][..4].copy_from_slice(b"Info");
    Some(frame)
}

/// The frame with the tag, if the file begins with one.
fn tag<S: Source + ?Sized>(file: &S) -> io::Result<Option<Vec<u8>>> {
    let mut frame = vec![0; file.size().min(4) as usize];
    file.read_at(0, &mut frame)?;
    let Some(header) = Header::parse(&frame) else { return Ok(None) };
    let (place, len) = (place(&header), usize::from(header.len));
    if len < place + TAG || file.size() < len as u64 {
        return Ok(None);
    }
    frame.resize(len, 0);
    file.read_at(0, &mut frame)?;
    let known = matches!(&frame[place..place + 4], b"Info" | b"Xing") && frame[4..place].iter().all(|it| *it == 0);
    Ok(known.then_some(frame))
}

/// Bytes of the frame that is no sound, at the file's begin.
pub(super) fn silent<S: Source + ?Sized>(file: &S) -> io::Result<u64> {
    Ok(tag(file)?.map_or(0, |frame| frame.len() as u64))
}

/// Where frames begin: of each, or of one in so many that it is not too much to remember.
#[derive(Default)]
struct Places {
    at: Vec<u64>,
    /// One in 1 << this.
    sparse: u32,
    frames: u64,
}

impl Places {
    const MOST: usize = 4096;

    fn push(&mut self, at: u64) {
        if self.frames & ((1 << self.sparse) - 1) == 0 {
            if self.at.len() == Places::MOST {
                let mut nth = 0;
                self.at.retain(|_| {
                    nth += 1;
                    nth % 2 == 1
                });
                self.sparse += 1;
            }
            self.at.push(at);
        }
        self.frames += 1;
    }

    /// Where this frame begins, or one shortly before.
    fn get(&self, frame: u64) -> u64 {
        self.at.get((frame >> self.sparse) as usize).copied().unwrap_or_default()
    }
}

/// What makes a torn file whole: the cut behind its last whole frame, and what its tag is to tell. `None` if there is no sound.
pub fn finish<S: Source + ?Sized>(file: &S) -> io::Result<Option<Finish>> {
    let tag = tag(file)?;
    let silent = tag.as_ref().map_or(0, |frame| frame.len() as u64);
    let (mut places, mut next, mut rates) = (Places::default(), 0, 0u16);
    let mut whole = last_whole(file, 4, |head| {
        let Header { sample_rate, samples, len, .. } = Header::parse(head).filter(|it| it.len > 4)?;
        let sound = next >= silent;
        // The last one may be torn.
        if sound && next + u64::from(len) <= file.size() {
            places.push(next);
            rates |= 1 << (head[2] >> 4);
        }
        next += u64::from(len);
        Some(Packet { len: len.into(), samples: if sound { samples.into() } else { 0 }, sample_rate })
    })?;
    let (Some(done), Some(old)) = (&mut whole, tag) else { return Ok(whole) };
    if places.frames == 0 {
        return Ok(None);
    }
    let mut new = told(&old, &places, done.len, rates.count_ones() > 1);
    if let (1, Some(Header { sample_rate, samples, .. })) = (places.frames, Header::parse(&old)) {
        new[4..].fill(0);
        done.duration = Time::from_ticks(2 * i64::from(samples), sample_rate);
    }
    if new != old {
        done.writes.push(Write::At(0, vec![new.into()]));
    }
    Ok(whole)
}

/// A frame like `old` whose tag tells of these frames in so many bytes.
fn told(old: &[u8], places: &Places, len: u64, varies: bool) -> Vec<u8> {
    let Some(header) = Header::parse(old) else { return old.to_vec() };
    let mut tag = if varies { b"Xing".to_vec() } else { b"Info".to_vec() };
    // More than 32 bits hold is not told, and then players estimate.
    if let (Ok(frames), Ok(bytes)) = (u32::try_from(places.frames), u32::try_from(len)) {
        tag.extend((FRAMES | BYTES | PLACES | QUALITY).to_be_bytes());
        tag.extend(frames.to_be_bytes());
        tag.extend(bytes.to_be_bytes());
        tag.extend((0..100).map(|n| (places.get(places.frames * n / 100) * 256 / len.max(1)) as u8));
        tag.extend([0; 4]);
        // Neither delay nor padding: an encoder's delay is off the times of its packets already, so that the first is due as it is.
        let mut lame = [0; LAME];
        lame[..WRITER.len()].copy_from_slice(WRITER);
        lame[LAME_BYTES..][..4].copy_from_slice(&bytes.to_be_bytes());
        tag.extend(lame);
    }
    let mut frame = vec![0; old.len()];
    let end = place(&header) + tag.len();
    frame[..4].copy_from_slice(&old[..4]);
    frame[place(&header)..end].copy_from_slice(&tag);
    if tag.len() == TAG {
        let sum = crc(&frame[..end - 2]);
        frame[end - 2..end].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// The CRC-16 of all in front of it that ends LAME's part.
fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xa001 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of MPEG-1 at 44.1 kHz, padded or not, of 128 kbit/s or of twice that.
    fn frame(padded: bool, fast: bool) -> Vec<u8> {
        let mut frame = vec![0; if fast { 835 } else { 417 } + usize::from(padded)];
        let rate = if fast { 0xd0 } else { 0x90 };
        frame[..4].copy_from_slice(&[0xff, 0xfb, rate | if padded { 2 } else { 0 }, 0x44]);
        frame
    }

    #[test]
    fn a_torn_file_is_cut_behind_its_last_whole_frame() {
        let file = [frame(false, false), frame(true, false), frame(true, false)].concat();
        let check = |cut: usize, want: Option<(u64, i64)>| {
            let got = finish(&file[..cut]).unwrap().map(|it| (it.len, it.duration.as_ticks(44_100)));
            assert_eq!(got, want, "{cut}");
        };
        check(416, None);
        check(417, Some((417, 1152)));
        check(834, Some((417, 1152)));
        check(835, Some((835, 2304)));
        check(file.len(), Some((1253, 3456)));
    }

    #[test]
    fn the_first_frame_tells_how_many_follow_wherever_the_file_was_torn() {
        let silent = reserve(&frame(true, false)).unwrap();
        let check = |sound: &[Vec<u8>], torn: usize, want: Option<&[u8; 4]>| {
            let mut file = [&silent[..], &sound.concat()].concat();
            let len = file.len();
            file.extend(&frame(false, false)[..torn]);
            let Some(done) = finish(&file[..]).unwrap() else { return assert_eq!(want, None) };
            assert_eq!((done.len, done.duration.as_ticks(44_100)), (len as u64, 1152 * sound.len() as i64));
            for write in done.writes {
                match write {
                    Write::At(at, parts) => file[at as usize..][..parts[0].len()].copy_from_slice(&parts[0]),
                    Write::Truncate(len) => file.truncate(len as usize),
                    Write::Sync => {}
                }
            }
            assert_eq!(Some(&file[36..40]), want.map(|it| &it[..]));
            let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
            assert_eq!((number(40), number(44), number(48)), (15, sound.len(), len));
            // Behind a hundred places and the quality: LAME's part, with delay, padding and bytes, and the checksum of it all.
            assert_eq!((&file[156..162], &file[177..180], number(184)), (&b"bywash"[..], &[0; 3][..], len));
            assert_eq!(file[190..192], crc(&file[..190]).to_be_bytes());
            assert!(file[52..152].is_sorted());
            let half = silent.len() + sound[..sound.len() / 2].iter().map(Vec::len).sum::<usize>();
            assert!((half * 256 / len).abs_diff(file[102].into()) <= 1, "{half} of {len}: {}", file[102]);
            assert_eq!(finish(&file[..]).unwrap().map(|it| it.writes), Some(Vec::new()));
        };
        let even = |count: usize| (0..count).map(|n| frame(n % 3 == 0, false)).collect::<Vec<_>>();
        check(&[], 0, None);
        check(&[], 300, None);
        check(&even(2), 0, Some(b"Info"));
        check(&even(100), 416, Some(b"Info"));
        check(&(0..20_000).map(|n| frame(false, n > 9_000)).collect::<Vec<_>>(), 3, Some(b"Xing"));
    }

    #[test]
    fn the_checksum_is_the_one_that_is_known() {
        assert_eq!(crc(b"123456789"), 0xbb3d);
    }

    #[test]
    fn a_single_packet_has_silence_before_it_and_no_tag() {
        let silent = reserve(&frame(false, false)).unwrap();
        let mut file = [&silent[..], &frame(false, false)].concat();
        let done = finish(&file[..]).unwrap().unwrap();
        assert_eq!((done.len, done.duration.as_ticks(44_100)), (file.len() as u64, 2 * 1152));
        let [Write::At(0, parts)] = &done.writes[..] else { panic!("{done:?}") };
        assert!(parts[0].len() == silent.len() && parts[0][4..].iter().all(|it| *it == 0));
        file[..silent.len()].copy_from_slice(&parts[0]);
        assert_eq!(finish(&file[..]).unwrap(), Some(Finish { writes: Vec::new(), ..done }));
    }

    #[test]
    fn each_kind_of_sound_has_a_frame_with_room() {
        let check = |head: [u8; 4]| {
            let (frame, like) = (reserve(&head).unwrap(), Header::parse(&head).unwrap());
            let got = Header::parse(&frame).unwrap();
            assert_eq!(usize::from(got.len), frame.len());
            assert_eq!((got.sample_rate, got.channels, got.samples), (like.sample_rate, like.channels, like.samples));
            assert_eq!(silent(&frame[..]).unwrap(), frame.len() as u64);
        };
        check([0xff, 0xfb, 0x90, 0x44]);
        check([0xff, 0xfa, 0x94, 0xc4]);
        check([0xff, 0xf3, 0x84, 0x44]);
        check([0xff, 0xe3, 0x88, 0xc4]);
        check([0xff, 0xe3, 0x88, 0x04]);
        assert_eq!(reserve(b"noise"), None);
    }
}
