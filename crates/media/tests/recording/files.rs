//! FLV, ADTS and MP3 files are what went in, wherever they were cut.

use std::io;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use bywash_media::mux::merge::Index;
use bywash_media::mux::{Finish, Parts, Write, adts, flv, mp3, mp4};
use bywash_media::{Frame, Kind, Time};

use crate::source::{self, Stream};
use crate::{Dice, Disk, decoded, decoded_source, ffmpeg, path, probe, run};

fn flv_of(stream: &Stream) -> Disk {
    let mut out = Parts::default();
    let mut writer = flv::file::Writer::new(&stream.tracks, &mut out);
    stream.frames.iter().for_each(|frame| writer.push(frame, &mut out));
    Disk(out.take().concat())
}

fn adts_of(stream: &Stream) -> Disk {
    let header = adts::Header::new(&stream.tracks.audio.as_ref().unwrap().config).unwrap();
    let frame = |frame: &Frame| [&header.frame(frame.payload.len()).unwrap()[..], &frame.payload].concat();
    Disk(sounds(stream).flat_map(frame).collect())
}

fn mp3_of(stream: &Stream) -> Disk {
    Disk(sounds(stream).flat_map(|frame| frame.payload.to_vec()).collect())
}

fn sounds(stream: &Stream) -> impl Iterator<Item = &Frame> {
    stream.frames.iter().filter(|frame| frame.track == Kind::Audio)
}

/// Holds a whole file against its source, then cuts it in many places: what is repaired must be whole.
fn check(name: &str, stream: &Stream, file: Disk, finish: fn(&[u8]) -> io::Result<Option<Finish>>) {
    let at = path(name);
    let (whole, done) = file.clone().finish(finish).unwrap();
    std::fs::write(&at, &whole.0).unwrap();
    let source = stream.file.as_ref().unwrap();
    let (got, want) = (decoded(&at), decoded_source(source));
    assert!(if name.ends_with("flv") { got == want } else { got[0] == want[1] }, "{name}");
    let mut dice = Dice(6);
    let (mut last, mut files) = ((0, Time::ZERO), Vec::new());
    let mut cuts: Vec<usize> = (0..100).map(|_| dice.below(file.0.len())).collect();
    cuts.sort();
    for (n, cut) in cuts.into_iter().enumerate() {
        let cut = Disk(file.0[..cut].to_vec());
        let Some((repaired, done)) = cut.finish(finish) else {
            assert_eq!(last.0, 0);
            continue;
        };
        assert!((done.len, done.duration) >= last, "{name}");
        last = (done.len, done.duration);
        if n % 30 == 0 {
            files.push(repaired);
        }
    }
    assert!(last.0 <= done.len && last.1 <= done.duration);
    for repaired in files {
        std::fs::write(&at, &repaired.0).unwrap();
        decoded(&at);
    }
}

#[test]
fn flv_files_are_what_went_in_wherever_they_were_cut() {
    if ffmpeg() {
        for (name, stream) in [("demo.flv", source::demo()), ("b.flv", source::b_frames()), ("m.flv", source::mp3())] {
            check(name, &stream, flv_of(&stream), flv::file::finish);
        }
    }
}

#[test]
fn adts_files_are_what_went_in_wherever_they_were_cut() {
    if ffmpeg() {
        let stream = source::demo();
        check("demo.aac", &stream, adts_of(&stream), adts::finish);
    }
}

#[test]
fn mp3_files_are_what_went_in_wherever_they_were_cut() {
    if ffmpeg() {
        let stream = source::mp3();
        check("mp3.mp3", &stream, mp3_of(&stream), mp3::finish);
    }
}

#[test]
fn an_mp3_file_tells_how_long_it_plays_whatever_its_bit_rates() {
    if !ffmpeg() {
        return;
    }
    for (name, stream) in [("even.mp3", source::mp3()), ("varying.mp3", source::varying_mp3())] {
        let sound = mp3_of(&stream).0;
        let file = Disk([mp3::reserve(&sound).unwrap(), sound].concat());
        let told = |cut: usize| {
            let (whole, done) = Disk(file.0[..cut].to_vec()).finish(mp3::finish).unwrap();
            std::fs::write(path(name), &whole.0).unwrap();
            let ((duration, packets), want) = (probe(&path(name)), done.duration.as_millis() as f64 / 1000.0);
            assert!((duration - want).abs() < 0.03, "{name} to {cut}: {duration}, not {want}");
            assert_eq!(Index::mp3(&whole.0[..]).unwrap().duration(), done.duration);
            packets[0].len()
        };
        assert_eq!(told(file.0.len()), sounds(&stream).count(), "{name}");
        told(file.0.len() / 2 + 100);
        // Behind so few packets that players are in doubt; of one the frame before it counts too.
        let head = file.0.len() - sounds(&stream).map(|it| it.payload.len()).sum::<usize>();
        for few in 1..6 {
            let len: usize = sounds(&stream).take(few).map(|it| it.payload.len()).sum();
            assert_eq!(told(head + len), few.max(2), "{name}");
        }
    }
}

#[test]
fn an_flv_file_is_finished_in_place() {
    let open = flv_of(&source::demo());
    let (whole, done) = open.clone().finish(flv::file::finish).unwrap();
    assert_eq!(whole.0.len(), open.0.len());
    // 480 frames of sound in whole milliseconds.
    assert!((done.duration.as_millis() - 10_240).abs() <= 1, "{:?}", done.duration);
    for state in open.states(&done.writes) {
        assert!(state.finish(flv::file::finish).is_none_or(|(again, _)| again == whole));
    }
    if ffmpeg() {
        let file = path("finished.flv");
        std::fs::write(&file, &whole.0).unwrap();
        assert!((probe(&file).0 - 10.24).abs() < 0.002);
        // The index: each of its eight places is that of the tag of a key frame.
        let at = whole.0.windows(13).position(|it| it == b"filepositions").unwrap() + 13;
        assert_eq!(whole.0[at..at + 5], [10, 0, 0, 0, 8]);
        for n in 0..8 {
            let number = whole.0[at + 6 + 9 * n..].first_chunk().unwrap();
            let tag = f64::from_be_bytes(*number) as usize;
            assert_eq!((whole.0[tag], whole.0[tag + 11]), (9, 0x17), "{n}");
        }
        let told = run("ffprobe", &[], &file, &["-show_entries", "stream=codec_name", "-of", "csv=p=0"]);
        assert_eq!(told, "h264\naac\n");
    }
}

#[test]
fn an_flv_file_has_an_index_only_where_readers_take_one() {
    let check = |keys: i64| {
        let mut stream = source::timed((0..4).map(|n| n * 40), source::packets(0, 160));
        let late = Time::from_millis(keys * 40);
        stream.frames.iter_mut().for_each(|it| it.key = it.track == Kind::Audio || it.dts < late);
        let open = flv_of(&stream);
        let (whole, done) = open.clone().finish(flv::file::finish).unwrap();
        let has = |name: &[u8]| whole.0.windows(name.len()).any(|it| it == name);
        assert_eq!((has(b"keyframes"), has(b"filepositions")), (keys > 1, keys > 1), "{keys}");
        assert_eq!(whole.0.len(), open.0.len());
        // What was finished without is finished with one when there is more.
        let more = source::timed([200, 240, 280], []);
        let more = flv_of(&more).0.split_off(open.0.len() - flv_media(&stream));
        let longer = Disk([&whole.0[..], &more].concat()).finish(flv::file::finish).unwrap();
        assert_eq!(longer.0.0.len() as u64, longer.1.len);
        assert!(longer.1.duration >= done.duration && longer.0.0.windows(9).any(|it| it == b"keyframes"));
        if ffmpeg() {
            let file = path("index.flv");
            std::fs::write(&file, &whole.0).unwrap();
            // Warnings too.
            let told = Command::new("ffprobe").args(["-v", "warning"]).arg(&file).output().unwrap().stderr;
            assert!(
                !String::from_utf8_lossy(&told).contains("keyframes"),
                "{keys}: {}",
                String::from_utf8_lossy(&told)
            );
        }
    };
    (0..4).for_each(check);
}

/// How many bytes of the file are the stream's frames.
fn flv_media(stream: &Stream) -> usize {
    let mut head = Parts::default();
    flv::file::Writer::new(&stream.tracks, &mut head);
    flv_of(stream).0.len() - head.take().concat().len()
}

#[test]
fn the_last_picture_does_not_last_as_long_as_the_pause_before_it() {
    let check = |pictures: Vec<i64>, sound: (i64, i64), want: i64| {
        let stream = source::timed(pictures.clone(), source::packets(sound.0, sound.1));
        let near = |got: Time| assert!((got.as_millis() - want).abs() <= 22, "{pictures:?} {sound:?}: {got:?}");
        let (mut mp4, mut writes) = (Disk::default(), Vec::new());
        let mut writer = mp4::Writer::new(&stream.tracks, &mut writes);
        stream.frames.iter().for_each(|frame| writer.push(frame, &mut writes));
        writer.flush(&mut writes);
        mp4.apply(&writes);
        near(mp4.finish(mp4::finish).unwrap().1.duration);
        let flv = flv_of(&stream);
        near(flv.clone().finish(flv::file::finish).unwrap().1.duration);
        near(Index::flv(&flv.0[..]).unwrap().duration());
    };
    let paused = || (0..25).map(|n| n * 40).chain([21_000]).collect::<Vec<_>>();
    check(paused(), (0, 21_040), 21_040);
    check(paused(), (0, 21_300), 21_321);
    // A shared screen, and sound that has ended before.
    check(vec![0, 5_000, 10_000], (0, 0), 11_000);
    check(vec![0, 5_000, 10_000], (0, 8_000), 11_000);
    check(vec![0, 500, 1_000], (0, 1_200), 1_216);
    check(vec![0], (0, 0), 40);
}

#[test]
fn an_flv_file_of_two_hours_is_finished_in_a_moment() {
    let tracks = source::demo().tracks;
    let mut parts = Parts::default();
    let mut writer = flv::file::Writer::new(&tracks, &mut parts);
    let payload = Bytes::from_static(&[0, 0, 0, 1, 0x65]);
    for n in 0..7_200_000 / 20 {
        let track = if n % 2 == 0 { Kind::Video } else { Kind::Audio };
        let frame = Frame {
            track,
            dts: Time::from_millis(20 * n),
            cts: Time::ZERO,
            key: n % 50 == 0,
            payload: payload.clone(),
        };
        writer.push(&frame, &mut parts);
    }
    let out = parts.take().concat();
    let begin = Instant::now();
    let done = flv::file::finish(&out[..]).unwrap().unwrap();
    assert!(begin.elapsed().as_millis() < 2000, "{:?}", begin.elapsed());
    assert_eq!((done.duration.as_millis(), done.len), (7_200_020, out.len() as u64));
    let Some(Write::At(13, parts)) = done.writes.first() else { panic!("{:?}", done.writes) };
    // More key frames than the index holds: every second is told.
    let metadata = parts.concat();
    let at = metadata.windows(7).position(|it| it == b"\0\x05times").unwrap() + 7;
    let number = |at: usize| f64::from_be_bytes(*metadata[at..].first_chunk().unwrap());
    assert_eq!(metadata[at..at + 5], [10, 0, 0, 0x0e, 0x10]);
    assert_eq!((number(at + 6), number(at + 15), number(at + 6 + 9 * 3599)), (0.0, 2.0, 7198.0));
}

#[test]
fn bytes_that_are_wrong_do_no_harm() {
    let mut dice = Dice(7);
    let streams = [flv_of(&source::demo()), adts_of(&source::demo())];
    for n in 0..600 {
        let mut bytes = streams[n % 2].0.clone();
        bytes.truncate(90_000);
        for _ in 0..1 + dice.below(6) {
            let at = dice.below(bytes.len());
            bytes[at] = dice.below(256) as u8;
        }
        let _ = (
            flv::file::finish(&bytes[..]).unwrap(),
            adts::finish(&bytes[..]).unwrap(),
            mp3::finish(&bytes[..]).unwrap(),
        );
    }
}
