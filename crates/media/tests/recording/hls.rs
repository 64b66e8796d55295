//! HLS: the segments and their playlist play as one, and are what went in.

use std::path::PathBuf;

use bytes::Bytes;
use bywash_media::mux::merge::{Index, Piece, frames as frames_of};
use bywash_media::mux::{fmp4, ts};
use bywash_media::playlist::{Playlist, Segment};
use bywash_media::{Frame, Kind, Time, Tracks};

use crate::source::{self, Stream};
use crate::{Dice, Disk, decoded, decoded_source, ffmpeg, path, probe, run};

/// A stream in segments of a second or more, each from a key frame on, with how long it plays.
fn segments(stream: &Stream, mut take: impl FnMut(&Frame, bool)) -> Vec<Time> {
    let leading = if stream.tracks.video.is_some() { Kind::Video } else { Kind::Audio };
    let (mut durations, mut begun) = (Vec::new(), None);
    for frame in &stream.frames {
        let begin = begun.unwrap_or(frame.dts);
        let next = frame.track == leading && frame.key && frame.dts - begin >= Time::from_millis(1000);
        if next {
            durations.push(frame.dts - begin);
        }
        if next || begun.is_none() {
            begun = Some(frame.dts);
        }
        take(frame, next);
    }
    let end = stream.frames.iter().map(|frame| frame.dts + Time::from_millis(40)).max().unwrap();
    durations.push(end - begun.unwrap());
    durations
}

fn ts_segments(stream: &Stream) -> (Vec<Vec<u8>>, Vec<Time>) {
    let mut writer = ts::Writer::new(&stream.tracks).unwrap();
    let (mut done, mut now) = (Vec::new(), Vec::new());
    writer.start(&mut now);
    let durations = segments(stream, |frame, next| {
        if next {
            writer.end(&mut now);
            done.push(std::mem::take(&mut now));
            writer.start(&mut now);
        }
        writer.push(frame, &mut now);
    });
    writer.end(&mut now);
    done.push(now);
    (done, durations)
}

/// Puts a playlist and its files into a folder.
fn written(name: &str, segments: &[Vec<u8>], durations: &[Time], init: Option<&[u8]>) -> PathBuf {
    let file = |uri: &str| path(&format!("{name}.{uri}"));
    let map = init.map(|init| {
        std::fs::write(file("init.mp4"), init).unwrap();
        format!("{name}.init.mp4")
    });
    let mut list = Playlist { ended: true, ..Playlist::new(Time::from_millis(2000)) };
    for ((bytes, &duration), n) in segments.iter().zip(durations).zip(0..) {
        let kind = if map.is_some() { "m4s" } else { "ts" };
        std::fs::write(file(&format!("{n}.{kind}")), bytes).unwrap();
        let uri = format!("{name}.{n}.{kind}");
        list.segments.push(Segment { uri, duration, wall_ms: 0, discontinuity: false, map: map.clone() });
    }
    std::fs::write(file("m3u8"), list.to_string()).unwrap();
    file("m3u8")
}

fn check_ts(name: &str, stream: Stream) {
    let (segments, durations) = ts_segments(&stream);
    let mut counters = std::collections::HashMap::new();
    for packet in segments.iter().flat_map(|segment| segment.chunks(188)) {
        assert_eq!((packet.len(), packet[0]), (188, 0x47));
        let counter = counters.entry([packet[1] & 0x1f, packet[2]]).or_insert(packet[3] & 15);
        assert_eq!(packet[3] & 15, *counter);
        *counter = (*counter + 1) & 15;
    }
    check(name, &stream, written(name, &segments, &durations, None));
}

fn check_fmp4(name: &str, stream: Stream) {
    let mut writer = fmp4::Writer::new(&stream.tracks);
    let init = writer.init();
    let (mut done, mut now) = (Vec::new(), Vec::new());
    let durations = segments(&stream, |frame, next| {
        writer.push(frame, &mut now);
        if next {
            writer.cut(&mut now);
            done.push(std::mem::take(&mut now).concat());
        }
    });
    writer.flush(&mut now);
    done.push(now.concat());
    // Whole segments stay as they are, torn ones lose their last fragment.
    let mut dice = Dice(4);
    for (segment, want) in done.iter().zip(&durations) {
        let (_, whole) = Disk(segment.clone()).finish(|file| fmp4::finish(&init, file)).unwrap();
        assert!(whole.writes.is_empty() && (whole.duration - *want).as_millis().abs() < 60, "{whole:?} {want:?}");
        let cut = segment[..dice.below(segment.len())].to_vec();
        if let Some((_, torn)) = Disk(cut).finish(|file| fmp4::finish(&init, file)) {
            assert!(torn.duration < whole.duration);
        }
    }
    check(name, &stream, written(name, &done, &durations, Some(&init)));
}

fn check(name: &str, stream: &Stream, list: PathBuf) {
    let total =
        stream.frames.iter().map(|frame| frame.dts + Time::from_millis(40)).max().unwrap() - stream.frames[0].dts;
    assert!((probe(&list).0 - total.as_nanos() as f64 / 1e9).abs() < 0.05, "{name}");
    let got = decoded(&list);
    if let (Some(source), true) = (&stream.file, stream.tracks.video.is_some()) {
        assert_eq!(got[0], decoded_source(source)[0], "{name}");
    }
    let kinds = got.iter().filter(|frames| !frames.is_empty()).count();
    assert_eq!(kinds, stream.kinds().count(), "{name}");
}

#[test]
fn ts_segments_are_what_went_in() {
    if ffmpeg() {
        check_ts("ts_demo", source::demo());
        check_ts("ts_b_frames", source::b_frames());
        check_ts("ts_mp3", source::mp3());
        check_ts("ts_sound", source::sound());
        check_ts("ts_pictures", source::pictures());
        let hevc = source::hevc();
        check_ts("ts_hevc", Stream { tracks: Tracks { audio: None, ..hevc.tracks.clone() }, ..hevc });
    }
}

#[test]
fn fmp4_segments_are_what_went_in() {
    if ffmpeg() {
        check_fmp4("fmp4_hevc", source::hevc());
        check_fmp4("fmp4_av1", source::av1());
        check_fmp4("fmp4_b_frames", source::b_frames());
        check_fmp4("fmp4_sound", source::sound());
    }
}

#[test]
fn a_track_that_pauses_has_its_frames_in_the_segments_of_their_time() {
    let check = |pictures: Vec<i64>, sound: Vec<i64>| {
        let stream = source::timed(pictures, sound);
        let mut writer = fmp4::Writer::new(&stream.tracks);
        let init = writer.init();
        let (mut segment, mut next, mut frames) = (Vec::new(), 2_000, 0);
        let mut done = |segment: Vec<Bytes>, begin: i64, end: i64| {
            let segment = [&init[..], &segment.concat()].concat();
            let index = Index::fragments(&segment[..]).unwrap();
            let lasts = (index.duration().as_millis() - (end - begin)).abs();
            assert!(lasts <= 1_040, "{begin} {end}: {:?}", index.duration());
            frames += frames_of(&Piece { index: &index, begin: Time::ZERO, end: None }).unwrap().0.len();
        };
        for frame in &stream.frames {
            writer.push(frame, &mut segment);
            if frame.dts.as_millis() >= next {
                writer.cut(&mut segment);
                done(std::mem::take(&mut segment), next - 2_000, next);
                next += 2_000;
            }
        }
        writer.flush(&mut segment);
        done(segment, next - 2_000, stream.frames.last().unwrap().dts.as_millis());
        assert_eq!(frames, stream.frames.len());
    };
    let pictures = |from, to| (from..to).step_by(40);
    let paused = || source::packets(0, 1_000).chain(source::packets(59_000, 61_000)).collect();
    check(pictures(0, 61_000).collect(), paused());
    check(pictures(0, 1_000).chain(pictures(60_000, 61_000)).collect(), source::packets(0, 61_000).collect());
    // One that ends, and one that begins late.
    check(pictures(0, 61_000).collect(), source::packets(0, 1_000).collect());
    check(pictures(0, 61_000).collect(), source::packets(30_000, 61_000).collect());
}

#[test]
fn what_ts_cannot_carry_is_told_at_once() {
    if ffmpeg() {
        assert!(ts::Writer::new(&source::av1().tracks).is_none());
        assert!(ts::Writer::new(&source::hevc().tracks).is_none());
    }
}

#[test]
fn the_clock_of_ts_wraps_without_a_seam() {
    if ffmpeg() {
        // 33 bits of 90 kHz, less one second and what decoding is behind.
        let wrap = Time::from_ticks((1 << 33) - 90_000 - 63_000, 90_000);
        let stream = source::b_frames();
        let want = stream.shown(Kind::Video).len();
        let (segments, _) = ts_segments(&stream.moved(wrap, Kind::Video, Time::ZERO));
        let file = path("wrap.ts");
        std::fs::write(&file, segments.concat()).unwrap();
        assert_eq!(decoded(&file)[0].len(), want);
        let (duration, _) = probe(&file);
        assert!((duration - 3.0).abs() < 0.15, "{duration}");
    }
}

#[test]
fn a_ts_segment_is_as_long_as_its_longer_track() {
    let check = |from, pictures: Vec<i64>, sound: (i64, i64), want: i64| {
        let stream = source::timed(pictures.clone(), source::packets(sound.0, sound.1));
        let stream = stream.moved(from, Kind::Video, Time::ZERO);
        let mut segment = Vec::new();
        let mut writer = ts::Writer::new(&stream.tracks).unwrap();
        writer.start(&mut segment);
        stream.frames.iter().for_each(|frame| writer.push(frame, &mut segment));
        writer.end(&mut segment);
        let got = ts::finish(&segment[..]).unwrap().map(|done| done.duration.as_millis());
        // The last PES packet is taken to be as long as the one before; one has up to 85 ms of sound.
        assert!(got.is_some_and(|got| (got - want).abs() <= 90), "{pictures:?} {sound:?}: {got:?}");
    };
    let wrap = Time::from_ticks((1 << 33) - 90_000 - 63_000, 90_000);
    for from in [Time::ZERO, wrap] {
        check(from, vec![0], (80, 6_000), 6_000);
        check(from, vec![0, 40], (80, 6_000), 6_000);
        check(from, (0..150).map(|n| n * 40).collect(), (0, 1_000), 6_000);
        check(from, vec![], (0, 6_000), 6_000);
        check(from, vec![0, 40, 5_000], (0, 5_040), 5_040);
        check(from, vec![0], (0, 0), 40);
    }
}

#[test]
fn a_torn_ts_segment_is_repaired() {
    let (segments, _) = ts_segments(&source::demo());
    let mut dice = Dice(5);
    for n in 0..200 {
        let segment = &segments[n % segments.len()];
        let cut = segment[..dice.below(segment.len())].to_vec();
        let size = cut.len() as u64;
        let Some((_, done)) = Disk(cut.clone()).finish(ts::finish) else {
            assert!(cut.len() < 80_000, "{}", cut.len());
            continue;
        };
        assert!(done.len % 188 == 0 && done.len <= size && done.duration.as_millis() <= 2600);
        if ffmpeg() && n % 40 == 0 {
            let file = path("torn.ts");
            std::fs::write(&file, &cut[..done.len as usize]).unwrap();
            // The first sound may be what was torn off.
            run("ffmpeg", &["-xerror"], &file, &["-map", "0:v", "-f", "null", "-"]);
        }
    }
}
