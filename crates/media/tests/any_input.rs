//! Nothing that a publisher can send makes this crate panic, or break what it promises.

use bytes::Bytes;
use bywash_media::codec::{self, aac, av1, h264, h265, mp3, nal, opus};
use bywash_media::mux::merge::{Index, Piece};
use bywash_media::mux::{self, Parts, Write, adts, flv, fmp4, mp4, ts};
use bywash_media::{Codec, Frame, Kind, Time, Timeline, Tracks, timeline};
use proptest::collection::vec;
use proptest::prelude::*;

const CODECS: [Codec; 6] = [Codec::H264, Codec::H265, Codec::Av1, Codec::Aac, Codec::Mp3, Codec::Opus];

/// Bodies to begin from: each of them is taken as it is.
const SEEDS: &[&[u8]] = &[
    b"\x17\0\0\0\0\x01\x64\0\x1e\xff\xe1\0\x1a\x67\x64\0\x1e\xac\xd9\x40\xa0\x2f\xf9\x70\x11\0\0\x03\0\x01\0\0\x03\0\x32\x0f\x16\x2d\x96\
        \x01\0\x06\x68\xeb\xe3\xcb\x22\xc0\xfd\xf8\xf8\0",
    b"\x17\x01\0\0\0\0\0\0\x07\x67\x42\0\x0a\xf8\x41\xa2\0\0\0\x04\x68\xce\x38\x80\0\0\0\x02\x65\x88",
    b"\x90hvc1\x01\x01\x60\0\0\0\x90\0\0\0\0\0\x3f\xf0\0\xfc\xfd\xf8\xf8\0\0\x0f\x03\
        \xa0\0\x01\0\x18\x40\x01\x0c\x01\xff\xff\x01\x60\0\0\x03\0\x90\0\0\x03\0\0\x03\0\x3f\x95\x98\x09\
        \xa1\0\x01\0\x2a\x42\x01\x01\x01\x60\0\0\x03\0\x90\0\0\x03\0\0\x03\0\x3f\xa0\x05\x02\x01\x69\x65\x95\x9a\
        \x49\x32\xbc\x05\xa0\x20\0\0\x03\0\x20\0\0\x03\x03\x21\xa2\0\x01\0\x07\x44\x01\xc1\x72\xb4\x62\x40",
    b"\x91hvc1\0\0\x28\0\0\0\x02\x28\x01",
    b"\x90av01\x81\x01\x0c\0\x0a\x0b\0\0\0\x0c\xc4\xff\x67\0\xbe\0\x10",
    b"\x91av01\x12\0\x0a\x0b\0\0\0\x0c\xc4\xff\x67\x3e\xfe\x40\x10\x32\x04\x14\0\x23\x38",
    b"\x96\x13avc1\x01\0\0\x06\0\0\0\x02\x65\x88\0\0\0\x06\0\0\0\x02\x65\x88",
    b"\x97\x02\0\x01\x02\x03avc1\0\0\0\x02\x65\x88",
    b"\xaf\0\x11\x90\x56\xe5\0",
    b"\xaf\0\x11\x80\x04\xc4\0\0\x20\0",
    b"\x90OpusOpusHead\x01\x02\x38\x01\x80\xbb\0\0\0\0\0",
    b"\x95\x01Opus\0\xfc1",
    b"\x2f\xff\xfb\x90\x44",
];

/// Random bytes, or a seed with some bytes changed and its end cut off.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let edits = vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let edited = (prop::sample::select(SEEDS), edits, any::<prop::sample::Index>()).prop_map(|(seed, edits, end)| {
        let mut body = seed.to_vec();
        for (at, byte) in edits {
            let at = at.index(body.len());
            body[at] = byte;
        }
        // Every second body stays whole.
        body.truncate(end.index(body.len() * 2) + 1);
        body
    });
    prop_oneof![1 => vec(any::<u8>(), 0..80), 4 => edited]
}

/// Same cases in each run: a failure is one for all.
fn config(cases: u32) -> ProptestConfig {
    let seed = prop::test_runner::RngSeed::Fixed(11);
    ProptestConfig { cases, rng_seed: seed, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn tag_bodies(bodies in vec((any::<bool>(), body()), 1..12)) {
        let mut reader = flv::Reader::new();
        let mut items = Vec::new();
        for (video, body) in bodies {
            let body = Bytes::from(body);
            let _ = if video { reader.video(&body, &mut items) } else { reader.audio(&body, &mut items) };
        }
        for item in items {
            match item {
                flv::Item::Track(track) => {
                    let of_itself = codec::track(track.codec, track.config.clone());
                    prop_assert!(track.codec == Codec::Mp3 || of_itself == Ok(track));
                }
                flv::Item::Frame(raw) => {
                    let most = Time::from_millis(1 << 23);
                    prop_assert!(raw.cts < most && Time::ZERO - raw.cts <= most && !raw.payload.is_empty());
                }
                flv::Item::Ended(_) => {}
            }
        }
    }

    #[test]
    fn files(file in vec(any::<u8>(), 0..200)) {
        let file = Bytes::from([&flv::file_head(true, true), &file[..]].concat());
        prop_assert!(flv::Demuxer::new(file).unwrap().count() < 40);
    }

    #[test]
    fn recordings(bodies in vec((any::<bool>(), body(), 0i64..3000), 1..40)) {
        let mut reader = flv::Reader::new();
        let (mut items, mut tracks, mut frames, mut now) = (Vec::new(), Tracks::default(), Vec::new(), 0);
        let mut order = timeline::Order::default();
        for (video, body, step) in bodies {
            let body = Bytes::from(body);
            let _ = if video { reader.video(&body, &mut items) } else { reader.audio(&body, &mut items) };
            now += step;
            for item in items.drain(..) {
                match item {
                    flv::Item::Track(track) => {
                        tracks.set(track);
                    }
                    flv::Item::Frame(flv::Raw { track, cts, key, payload }) => {
                        let (dts, cts) = order.place(Time::from_millis(now), cts);
                        frames.push(Frame { track, dts, cts, key, payload });
                    }
                    flv::Item::Ended(_) => {}
                }
            }
        }
        record(&tracks, &frames, None);
    }

    #[test]
    fn damaged_recordings(damage in vec((any::<u16>(), any::<u8>()), 1..6), steps in vec(1i64..90, 2..40)) {
        let mut reader = flv::Reader::new();
        let (mut items, mut tracks, mut frames, mut now) = (Vec::new(), Tracks::default(), Vec::new(), 0);
        let mut order = timeline::Order::default();
        let bodies = [SEEDS[0], SEEDS[8]].into_iter().chain([SEEDS[1], b"\xaf\x01\x21\x10".as_slice()].into_iter().cycle());
        for (nth, body) in bodies.take(steps.len() + 2).enumerate() {
            let _ = if nth % 2 == 0 { reader.video(&body.into(), &mut items) } else { reader.audio(&body.into(), &mut items) };
            now += if nth > 1 { steps[nth - 2] } else { 0 };
            for item in items.drain(..) {
                match item {
                    flv::Item::Track(track) => drop(tracks.set(track)),
                    flv::Item::Frame(flv::Raw { track, cts, key, payload }) => {
                        let (dts, cts) = order.place(Time::from_millis(now), cts);
                        frames.push(Frame { track, dts, cts, key, payload });
                    }
                    flv::Item::Ended(_) => {}
                }
            }
        }
        record(&tracks, &frames, Some(&damage));
    }

    #[test]
    fn torn_files(file in vec(any::<u8>(), 0..300)) {
        let _ = (mp4::finish(&file[..]).unwrap(), ts::finish(&file[..]).unwrap(), flv::file::finish(&file[..]).unwrap());
        let _ = (adts::finish(&file[..]).unwrap(), mux::mp3::finish(&file[..]).unwrap());
        let _ = fmp4::finish(&file, &file[..]);
        for read in [Index::mp4, Index::fragments, Index::flv, Index::mp3, Index::adts] {
            merge(read(&file[..]));
        }
        merge(Index::ts(&file[..], &mut Vec::new()));
    }

    #[test]
    fn codec_parsers(seed in body(), skip in 0usize..10) {
        let bytes = seed.get(skip..).unwrap_or_default();
        for codec in CODECS {
            let _ = codec::track(codec, Bytes::copy_from_slice(bytes));
            codec::is_key(codec, bytes);
        }
        let _ = (h264::Sps::parse(bytes), h265::Sps::parse(bytes), av1::record_size(bytes), aac::Config::parse(bytes));
        let _ = (opus::Head::parse(bytes), opus::duration(bytes), mp3::Header::parse(bytes));
        h265::break_link(&mut bytes.to_vec());
        for length_size in 1..=4 {
            if let Some(frame) = nal::normalize(Bytes::copy_from_slice(bytes), length_size) {
                let whole: usize = nal::nals(&frame, 4).map(|unit| 4 + unit.len()).sum();
                prop_assert_eq!(whole, frame.len());
            }
        }
    }

    #[test]
    fn timestamps(frames in vec(frame(), 1..300)) {
        let mut line = Timeline::new();
        let mut arrival = 0;
        let mut last = [-1; 2];
        for (count, (step, raw, kind)) in (1..).zip(frames) {
            arrival += step;
            let track = if kind == 0 { Kind::Video } else { Kind::Audio };
            if kind == 2 {
                line.resume(Time::from_millis(arrival));
            }
            let dts = line.stamp(track, raw, Time::from_millis(arrival)).as_millis();
            let last = &mut last[usize::from(track == Kind::Audio)];
            prop_assert!(dts > *last, "{dts} after {last}");
            prop_assert!(dts <= arrival + arrival / 100 + timeline::AHEAD_MAX_MS + count, "{dts} at {arrival}");
            *last = dts;
        }
    }
}

/// The largest message that is taken, full of small parameter sets behind as many large ones as are kept. Comparing each of them
/// anew with all that are known took a minute and a half.
#[test]
fn a_flood_of_parameter_sets_costs_what_its_bytes_cost() {
    let large = |id: u8| {
        // An SPS of the smallest kind with its id in eleven bits (Exp-Golomb), and a tail that nobody reads.
        let head = b"\x42\x01\x01\x01\x60\x11\x11\x11\x90\x11\x11\x11\x11\x11\x78";
        let code = (u32::from(id) + 32) << 21 | 0b0_1010_0000_0101_0000_0010;
        [&head[..], &code.to_be_bytes(), &[0x55; 4096]].concat()
    };
    let (mut body, small) = (b"\x91hvc1\0\0\0".to_vec(), [0x44, 1, 0xc1]);
    let mut add = |set: &[u8]| {
        body.extend((set.len() as u32).to_be_bytes());
        body.extend(set);
        body.len()
    };
    for id in 0..30 {
        add(&large(id));
    }
    while add(&small) < 8 << 20 {}
    let began = std::time::Instant::now();
    let _ = flv::Reader::new().video(&body.into(), &mut Vec::new());
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Merges what a file that may be damaged says is in it.
fn merge(index: Result<Index, mux::merge::Error>) {
    let Ok(index) = index else { return };
    let piece =
        |begin, end| Piece { index: &index, begin: Time::from_millis(begin), end: Some(Time::from_millis(end)) };
    for pieces in [&[piece(0, i64::MAX / 2_000_000)][..], &[piece(30, 700), piece(0, 100)]] {
        let _ = mux::merge::mp4(pieces);
        let _ = mux::merge::frames(&pieces[0]);
    }
}

/// Writes the frames in every format; what has a frame in it must be finished. Damaged in these places they are read again.
fn record(tracks: &Tracks, frames: &[Frame], damage: Option<&[(u16, u8)]>) {
    let damaged = |mut file: Vec<u8>| {
        for &(at, with) in damage.unwrap_or_default() {
            let at = usize::from(at) % file.len();
            file[at] ^= with;
        }
        file
    };
    let mut writes = Vec::new();
    let mut writer = mp4::Writer::new(tracks, &mut writes);
    frames.iter().for_each(|frame| writer.push(frame, &mut writes));
    writer.flush(&mut writes);
    let mut file = Vec::new();
    for write in writes {
        let Write::At(at, parts) = write else { continue };
        let (at, bytes) = (at as usize, parts.concat());
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let finish = mp4::finish(&file[..]).unwrap();
    assert_eq!(finish.is_some(), !frames.is_empty());
    for write in finish.iter().flat_map(|it| &it.writes) {
        let Write::At(at, parts) = write else { continue };
        let (at, bytes) = (*at as usize, parts.concat());
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    merge(Index::mp4(&damaged(file)[..]));

    let mut writer = fmp4::Writer::new(tracks);
    let (init, mut segment) = (writer.init(), Vec::new());
    frames.iter().for_each(|frame| writer.push(frame, &mut segment));
    writer.flush(&mut segment);
    if !frames.is_empty() {
        let segment = segment.concat();
        let whole = fmp4::finish(&init, &segment[..]).unwrap().unwrap();
        assert_eq!((whole.writes.len(), whole.len), (0, segment.len() as u64));
        merge(Index::fragments(&damaged([&init[..], &segment].concat())[..]));
    }

    let mut parts = Parts::default();
    let mut writer = flv::file::Writer::new(tracks, &mut parts);
    frames.iter().for_each(|frame| writer.push(frame, &mut parts));
    let file = parts.take().concat();
    assert_eq!(flv::file::finish(&file[..]).unwrap().is_some(), !frames.is_empty());
    merge(Index::flv(&damaged(file)[..]));

    if let Some(mut writer) = ts::Writer::new(tracks) {
        let mut file = Vec::new();
        writer.start(&mut file);
        frames.iter().for_each(|frame| writer.push(frame, &mut file));
        writer.end(&mut file);
        assert!(file.len().is_multiple_of(188) && file.chunks(188).all(|packet| packet[0] == 0x47));
        ts::finish(&file[..]).unwrap();
        merge(Index::ts(&damaged(file)[..], &mut Vec::new()));
    }
}

/// How long after the last one a frame comes, its timestamp, and 0 for video, 1 for audio or 2 for audio of a new publisher.
fn frame() -> impl Strategy<Value = (i64, u32, u8)> {
    let raw = prop_oneof![any::<u32>(), 0u32..100_000, 4_294_960_000u32..=u32::MAX];
    (0i64..60, raw, prop_oneof![10 => Just(0u8), 10 => Just(1), 1 => Just(2)])
}
