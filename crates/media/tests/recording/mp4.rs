//! MP4: every state of the file plays, and the finished one is what went in.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write as _};
use std::time::Instant;

use bytes::Bytes;
use bywash_media::mux::{Write, mp4};
use bywash_media::{Codec, Frame, Kind, Time, Tracks};

use crate::source::{self, Stream};
use crate::{Dice, Disk, OnDisk, decoded, decoded_source, ffmpeg, packets, path, probe};

fn recorded(stream: &Stream) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut writer = mp4::Writer::new(&stream.tracks, &mut writes);
    for frame in &stream.frames {
        writer.push(frame, &mut writes);
    }
    writer.flush(&mut writes);
    writes
}

fn unfinished(stream: &Stream) -> Disk {
    let mut disk = Disk::default();
    disk.apply(&recorded(stream));
    disk
}

/// Records `stream`; FFmpeg must find in the file as it is, and in the finished one, what was in the source.
fn check(name: &str, stream: Stream) {
    let open = unfinished(&stream);
    let file = path(&format!("{name}.unfinished.mp4"));
    std::fs::write(&file, &open.0).unwrap();
    let frames = decoded(&file).concat().len();
    assert!(frames >= stream.frames.len() - 2, "{name} {frames}");
    let (whole, done) = open.finish(mp4::finish).unwrap();
    let file = path(&format!("{name}.finished.mp4"));
    std::fs::write(&file, &whole.0).unwrap();
    let (duration, shown) = probe(&file);
    assert!((duration - done.duration.as_nanos() as f64 / 1e9).abs() < 0.002, "{:?}", done.duration);
    for (kind, got) in stream.kinds().zip(shown) {
        let want = stream.shown(kind);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            // Stamps of sound in milliseconds are smoothed.
            assert!((got - want).abs() < 0.0015, "{name} {kind:?}: {got} {want}");
        }
    }
    if let Some(source) = &stream.file {
        let (got, want) = (decoded(&file), decoded_source(source));
        assert_eq!(got[0], want[0], "{name}");
        // The source of what has Opus is silent in another way.
        assert!(got[1] == want[1] || stream.has(Codec::Opus), "{name}");
    }
}

#[test]
fn a_recording_is_what_went_in() {
    if ffmpeg() {
        check("demo", source::demo());
    }
}

#[test]
fn pictures_out_of_order_are() {
    if ffmpeg() {
        check("b_frames", source::b_frames());
    }
}

#[test]
fn one_kind_alone_is() {
    if ffmpeg() {
        check("pictures", source::pictures());
        check("sound", source::sound());
    }
}

#[test]
fn each_codec_is() {
    if ffmpeg() {
        check("mp3", source::mp3());
        check("hevc", source::hevc());
        check("av1", source::av1());
    }
}

#[test]
fn tracks_far_apart_stay_so_wherever_the_stream_began() {
    if ffmpeg() {
        let late = Time::from_millis(3000);
        check("late_sound", source::b_frames().moved(Time::from_millis(86_400_123), Kind::Audio, late));
        check("late_pictures", source::b_frames().moved(Time::from_millis(7), Kind::Video, late));
    }
}

#[test]
fn a_gap_in_the_sound_stays_one() {
    if ffmpeg() {
        let mut stream = source::b_frames();
        let (from, to) = (Time::from_millis(1010), Time::from_millis(2200));
        stream.frames.retain(|frame| frame.track == Kind::Video || frame.dts < from || frame.dts > to);
        stream.file = None;
        check("gap", stream);
    }
}

#[test]
fn a_killed_writer_leaves_a_file_that_plays() {
    let stream = source::b_frames_or_demo();
    let writes = recorded(&stream);
    let states = Disk::default().states(&writes);
    let (mut media, mut last) = (0, Time::ZERO);
    let mut dice = Dice(1);
    for (at, state) in states.iter().enumerate() {
        let Some((whole, done)) = state.clone().finish(mp4::finish) else {
            assert_eq!(media, 0, "state {at}");
            continue;
        };
        assert!(done.duration >= last, "state {at}");
        (media, last) = (media + 1, done.duration);
        if ffmpeg() && dice.below(12) == 0 {
            for (bytes, name) in [(&state.0, "killed.mp4"), (&whole.0, "repaired.mp4")] {
                let file = path(name);
                std::fs::write(&file, bytes).unwrap();
                decoded(&file);
            }
        }
    }
    assert!(media > 40, "{media}");
    assert_eq!(last, unfinished(&stream).finish(mp4::finish).unwrap().1.duration);
}

#[test]
fn a_kill_costs_a_second_at_most() {
    let stream = source::demo();
    let (mut disk, mut writes) = (Disk::default(), Vec::new());
    let mut writer = mp4::Writer::new(&stream.tracks, &mut writes);
    disk.apply(&writes);
    for frame in &stream.frames {
        writes.clear();
        writer.push(frame, &mut writes);
        // Before any of a fragment is there, or all but its commit word.
        let kept = mp4::finish(&disk.0[..]).unwrap().map_or(Time::ZERO, |done| done.duration);
        let lost = frame.dts - kept;
        assert!(lost <= Time::from_millis(600), "{lost:?} at {:?}", frame.dts);
        disk.apply(&writes);
    }
}

#[test]
fn finishing_can_be_killed_and_done_again() {
    let stream = source::b_frames_or_demo();
    let open = unfinished(&stream);
    let (whole, done) = open.clone().finish(mp4::finish).unwrap();
    let states = open.states(&done.writes);
    for (at, state) in states.iter().enumerate() {
        assert!(state.clone().finish(mp4::finish).unwrap().0 == whole, "state {at}");
        if ffmpeg() && at % 3 == 0 {
            let file = path("finishing.mp4");
            std::fs::write(&file, &state.0).unwrap();
            assert_eq!(decoded(&file)[0].len(), stream.shown(Kind::Video).len());
        }
    }
    // Torn as no order of writes leaves it.
    for (bytes, at) in [(&b"\0\0\0\x01mdat\0\0\0\0\0\0\0\0"[..], 32), (b"\0\0\0\x01free", 32), (b"\0\0\0\x01mdat", 32)]
    {
        let mut torn = open.clone();
        torn.apply(&[Write::At(at, vec![bytes.into()])]);
        assert!(torn.finish(mp4::finish).unwrap().0 == whole);
    }
}

#[test]
fn a_file_cut_anywhere_is_repaired() {
    let open = unfinished(&source::b_frames_or_demo());
    let (whole, _) = open.clone().finish(mp4::finish).unwrap();
    let mut dice = Dice(2);
    let (mut some, mut none) = (0, 0);
    for n in 0..200 {
        let from = if n % 2 == 0 { &open } else { &whole };
        let cut = Disk(from.0[..dice.below(from.0.len())].to_vec());
        match cut.finish(mp4::finish) {
            None => none += 1,
            Some((repaired, _)) => {
                some += 1;
                if ffmpeg() && n % 20 == 0 {
                    let file = path("cut.mp4");
                    std::fs::write(&file, &repaired.0).unwrap();
                    decoded(&file);
                }
            }
        }
    }
    assert!(some > 100 && none > 5, "{some} {none}");
}

#[test]
fn bytes_that_are_wrong_do_no_harm() {
    let open = unfinished(&source::demo());
    let short = &open.0[..60_000];
    let heads: Vec<usize> =
        (32..short.len() - 200).filter(|&at| short[at..].starts_with(b"moof")).chain([32]).collect();
    let mut dice = Dice(3);
    for _ in 0..3000 {
        let mut bytes = short.to_vec();
        for _ in 0..1 + dice.below(4) {
            // Most of them where boxes say what they are.
            let at = match dice.below(4) {
                0 => dice.below(bytes.len()),
                1 => dice.below(1300),
                _ => heads[dice.below(heads.len())] + dice.below(140),
            };
            bytes[at] = dice.below(256) as u8;
        }
        if let Some(done) = mp4::finish(&bytes[..]).unwrap() {
            let mut disk = Disk(bytes);
            disk.apply(&done.writes);
            assert_eq!(disk.0.len() as u64, done.len);
        }
    }
}

#[test]
fn a_file_of_many_gigabytes_has_far_offsets() {
    if !ffmpeg() {
        return;
    }
    const HOLE: u64 = 5 << 30;
    let stream = source::b_frames();
    let writes = recorded(&stream);
    // A box of nothing, before a fragment in the middle.
    let fragments: Vec<u64> =
        writes.iter().filter_map(|it| if let Write::At(at, _) = it { Some(*at) } else { None }).collect();
    let middle = fragments[fragments.len() / 2];
    let file = path("far.mp4");
    let mut open = File::create(&file).unwrap();
    let mut apply = |writes: &[Write], hole: bool| {
        for write in writes {
            match write {
                Write::At(at, parts) => {
                    let at = if hole && *at >= middle { at + HOLE } else { *at };
                    open.seek(SeekFrom::Start(at)).unwrap();
                    open.write_all(&parts.concat()).unwrap();
                }
                Write::Sync => {}
                Write::Truncate(len) => open.set_len(*len).unwrap(),
            }
        }
    };
    apply(&writes, true);
    let free = [&b"\0\0\0\x01free"[..], &HOLE.to_be_bytes()].concat();
    apply(&[Write::At(middle, vec![free.into()])], false);
    let done = mp4::finish(&OnDisk(RefCell::new(File::open(&file).unwrap()))).unwrap().unwrap();
    apply(&done.writes, false);
    assert!(done.len > HOLE);
    assert_eq!(packets(&file), packets(stream.file.as_ref().unwrap()));
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn two_hours_are_finished_in_a_moment() {
    let demo = source::demo();
    let mut disk = Disk::default();
    let mut writes = Vec::new();
    let mut writer = mp4::Writer::new(&demo.tracks, &mut writes);
    let frame = |track, dts, key: bool| {
        let cts = Time::from_millis(if track == Kind::Video && !key { 40 } else { 0 });
        Frame { track, dts, cts, key, payload: Bytes::from_static(b"frame") }
    };
    let mut sounds = 0;
    for n in 0..180_000 {
        let dts = Time::from_millis(40 * n);
        writer.push(&frame(Kind::Video, dts, n % 50 == 0), &mut writes);
        while Time::from_ticks(1024 * sounds, 48_000) < dts {
            writer.push(&frame(Kind::Audio, Time::from_millis(1024 * sounds / 48), true), &mut writes);
            sounds += 1;
        }
        disk.apply(&std::mem::take(&mut writes));
    }
    writer.flush(&mut writes);
    disk.apply(&writes);
    let begin = Instant::now();
    let done = mp4::finish(&disk.0[..]).unwrap().unwrap();
    assert!(begin.elapsed().as_millis() < 2000, "{:?}", begin.elapsed());
    assert_eq!(done.duration.as_millis(), 7_200_040);
    // The stamps jitter, the clock of the samples does not: the tables are those of one run.
    let tables = done.len - disk.0.len() as u64;
    assert!((2 << 20..3 << 20).contains(&tables), "{tables}");
}

#[test]
fn memory_is_bounded_whatever_the_times_say() {
    let demo = source::demo();
    let mut writes = Vec::new();
    let mut writer = mp4::Writer::new(&Tracks { audio: None, ..demo.tracks }, &mut writes);
    let payload = Bytes::from(vec![0; 1 << 20]);
    for n in 0..64 {
        let frame = Frame {
            track: Kind::Video,
            dts: Time::from_nanos(n),
            cts: Time::ZERO,
            key: true,
            payload: payload.clone(),
        };
        writer.push(&frame, &mut writes);
    }
    let fragments = writes.iter().filter(|it| matches!(it, Write::At(_, parts) if parts.len() > 1)).count();
    assert!(fragments >= 3, "{fragments}");
}
