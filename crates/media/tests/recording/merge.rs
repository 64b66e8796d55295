//! Merged files show the pieces that were asked for, one behind the other, and nothing else.

use std::path::Path;

use bywash_media::codec::h265::break_link;
use bywash_media::mux::merge::{Index, Piece, frames, mp4 as join};
use bywash_media::mux::{Parts, flv, fmp4, mp4, ts};
use bywash_media::{Kind, Time};

use crate::source::{self, Stream};
use crate::{Disk, decoded, ffmpeg, path, run};

fn mp4_of(stream: &Stream) -> Vec<u8> {
    let (mut disk, mut writes) = (Disk::default(), Vec::new());
    let mut writer = mp4::Writer::new(&stream.tracks, &mut writes);
    stream.frames.iter().for_each(|frame| writer.push(frame, &mut writes));
    writer.flush(&mut writes);
    disk.apply(&writes);
    disk.finish(mp4::finish).unwrap().0.0
}

fn flv_of(stream: &Stream) -> Vec<u8> {
    let mut file = Parts::default();
    let mut writer = flv::file::Writer::new(&stream.tracks, &mut file);
    stream.frames.iter().for_each(|frame| writer.push(frame, &mut file));
    file.take().concat()
}

/// Segments of MPEG-TS, one behind the other.
fn ts_of(stream: &Stream) -> Vec<u8> {
    let (mut file, mut writer) = (Vec::new(), ts::Writer::new(&stream.tracks).unwrap());
    for frame in &stream.frames {
        if frame.track == Kind::Video && frame.key {
            writer.end(&mut file);
            writer.start(&mut file);
        }
        writer.push(frame, &mut file);
    }
    writer.end(&mut file);
    file
}

/// Segments of fMP4 behind their initialization section.
fn fmp4_of(stream: &Stream) -> Vec<u8> {
    let mut writer = fmp4::Writer::new(&stream.tracks);
    let mut parts = vec![writer.init()];
    for (n, frame) in stream.frames.iter().enumerate() {
        writer.push(frame, &mut parts);
        if n > 0 && frame.track == Kind::Video && frame.key {
            writer.cut(&mut parts);
        }
    }
    writer.flush(&mut parts);
    parts.concat()
}

/// Begin and end in milliseconds; 0 for the end of the file.
type Span = (i64, i64);

/// Merges the spans of `file` into an MP4 of this name.
fn merged(name: &str, file: &[u8], index: &Index, spans: &[Span]) -> (std::path::PathBuf, Time) {
    let piece = |&(begin, end): &Span| {
        let end = (end > 0).then(|| Time::from_millis(end));
        Piece { index, begin: Time::from_millis(begin), end }
    };
    let plan = join(&spans.iter().map(piece).collect::<Vec<_>>()).unwrap();
    let mut out = plan.head;
    for copy in plan.copies {
        let at = out.len();
        out.extend(&file[copy.bytes.start as usize..copy.bytes.end as usize]);
        if copy.breaks {
            break_link(&mut out[at..]);
        }
    }
    out.extend(plan.tail);
    let to = path(&format!("{name}.mp4"));
    std::fs::write(&to, out).unwrap();
    (to, plan.duration)
}

/// When FFmpeg shows each picture, in seconds, and until when there is sound.
fn presented(file: &Path) -> (Vec<f64>, f64) {
    let what = ["-show_entries", "frame=media_type,pts_time,nb_samples,pkt_duration_time", "-of", "compact"];
    let (mut pictures, mut sound) = (Vec::new(), 0.0);
    for line in run("ffprobe", &[], file, &what).lines() {
        let field =
            |name: &str| line.split('|').find_map(|it| it.strip_prefix(name)?.strip_prefix('=')?.parse::<f64>().ok());
        let Some(time) = field("pts_time") else { continue };
        match line.contains("media_type=video") {
            true => pictures.push(time),
            false => sound = time + field("nb_samples").unwrap_or_default() / 48_000.0,
        }
    }
    (pictures, sound)
}

/// Merges spans of `stream`: FFmpeg must show the source's pictures of each span, and all when they are due.
fn check(name: &str, stream: &Stream, file: &[u8], index: &Index, spans: &[Span]) {
    let (to, duration) = merged(name, file, index, spans);
    let source = decoded(stream.file.as_ref().unwrap()).swap_remove(0);
    let shown = stream.shown(Kind::Video);
    let length = index.duration().as_nanos() as f64 / 1e9;
    let (mut want, mut at) = (Vec::new(), 0.0);
    for &(begin, end) in spans {
        let (begin, end) = (begin as f64 / 1000.0, if end > 0 { end as f64 / 1000.0 } else { length });
        let within = shown.iter().zip(&source).filter(|(time, _)| (begin - 0.001..end - 0.001).contains(*time));
        want.extend(within.map(|(time, hash)| (at + time - begin, hash.clone())));
        at += end - begin;
    }
    assert!((duration.as_nanos() as f64 / 1e9 - at).abs() < 0.002, "{name}: {duration:?} {at}");
    let hashes: Vec<_> = want.iter().map(|it| it.1.clone()).collect();
    assert_eq!(decoded(&to)[0], hashes, "{name}");
    let (pictures, sound) = presented(&to);
    assert_eq!(pictures.len(), want.len(), "{name}");
    for (got, (want, _)) in pictures.iter().zip(&want) {
        assert!((got - want).abs() < 0.002, "{name}: {got} {want}");
    }
    assert!((sound - at).abs() < 0.05 || stream.tracks.audio.is_none(), "{name}: {sound} {at}");
}

#[test]
fn whole_files_follow_each_other_without_a_hole() {
    if !ffmpeg() {
        return;
    }
    let all: [Span; 3] = [(0, 0); 3];
    for (name, stream) in [("demo", source::demo()), ("b-frames", source::b_frames()), ("pictures", source::pictures())]
    {
        let file = mp4_of(&stream);
        check(&format!("merge-{name}"), &stream, &file, &Index::mp4(&file[..]).unwrap(), &all);
        let file = flv_of(&stream);
        check(&format!("merge-flv-{name}"), &stream, &file, &Index::flv(&file[..]).unwrap(), &all);
        let file = fmp4_of(&stream);
        check(&format!("merge-fmp4-{name}"), &stream, &file, &Index::fragments(&file[..]).unwrap(), &all);
        let mut frames = Vec::new();
        let index = Index::ts(&ts_of(&stream)[..], &mut frames).unwrap();
        check(&format!("merge-ts-{name}"), &stream, &frames, &index, &all);
    }
}

#[test]
fn pieces_are_exact_to_the_picture() {
    if !ffmpeg() {
        return;
    }
    for (name, stream) in [("demo", source::demo()), ("b-frames", source::b_frames())] {
        let file = mp4_of(&stream);
        let index = Index::mp4(&file[..]).unwrap();
        check(&format!("trim-{name}-1"), &stream, &file, &index, &[(600, 1400)]);
        check(&format!("trim-{name}-2"), &stream, &file, &index, &[(600, 1400), (200, 2200), (0, 400)]);
        check(&format!("trim-{name}-3"), &stream, &file, &index, &[(1000, 2000), (2000, 0), (1880, 0)]);
    }
}

#[test]
fn pieces_of_h265_with_open_groups_show_each_picture_that_was_asked_for() {
    if !ffmpeg() {
        return;
    }
    let stream = source::open_groups();
    let file = mp4_of(&stream);
    let index = Index::mp4(&file[..]).unwrap();
    // In groups, where they begin, and one piece behind another of before it.
    check("open-1", &stream, &file, &index, &[(1500, 3500), (5200, 6200)]);
    check("open-2", &stream, &file, &index, &[(2000, 3000), (4000, 5000)]);
    check("open-3", &stream, &file, &index, &[(5200, 6200), (1500, 3500), (1500, 3500)]);
    check("open-4", &stream, &file, &index, &[(0, 0), (0, 0)]);
}

#[test]
fn inputs_of_one_encoder_go_together_whatever_they_were_recorded_to() {
    if !ffmpeg() {
        return;
    }
    for stream in [source::demo(), source::b_frames()] {
        let (mp4, flv, mut frames) = (mp4_of(&stream), flv_of(&stream), Vec::new());
        let of_ts = Index::ts(&ts_of(&stream)[..], &mut frames).unwrap();
        let inputs = [Index::mp4(&mp4[..]).unwrap(), Index::flv(&flv[..]).unwrap(), of_ts];
        let all = |indices: [&Index; 3]| {
            let pieces = indices.map(|index| Piece { index, begin: Time::ZERO, end: None });
            let length: i64 = indices.iter().map(|it| it.duration().as_millis()).sum();
            assert!((join(&pieces).unwrap().duration.as_millis() - length).abs() < 100);
        };
        let [a, b, c] = &inputs;
        all([a, b, c]);
        all([c, a, b]);
    }
}

#[test]
fn frames_of_a_piece_begin_at_the_key_frame() {
    let stream = source::demo();
    let file = mp4_of(&stream);
    let index = Index::mp4(&file[..]).unwrap();
    let check = |begin: i64, end: i64| {
        let piece = Piece { index: &index, begin: Time::from_millis(begin), end: Some(Time::from_millis(end)) };
        let (list, duration) = frames(&piece).unwrap();
        let first = list.iter().find(|it| it.frame.track == Kind::Video).unwrap();
        assert!(first.frame.key && first.frame.dts + first.frame.cts == Time::ZERO, "{first:?}");
        let longest = stream.frames.iter().filter(|it| it.track == Kind::Video && it.key).map(|it| it.dts.as_millis());
        let key = longest.filter(|&at| at - stream.frames[0].dts.as_millis() <= begin).max().unwrap();
        assert!((duration.as_millis() - (end - (key - stream.frames[0].dts.as_millis()))).abs() < 30, "{duration:?}");
        assert!(list.iter().all(|it| {
            stream.frames.iter().any(|f| f.payload[..] == file[it.bytes.start as usize..it.bytes.end as usize])
        }));
    };
    check(0, 1000);
    check(2500, 6000);
}

#[test]
fn files_that_do_not_fit_together_are_refused_in_words() {
    if !ffmpeg() {
        return;
    }
    let of = |stream: &Stream| Index::mp4(&mp4_of(stream)[..]).unwrap();
    let (one, other, pictures) = (of(&source::demo()), of(&source::b_frames()), of(&source::pictures()));
    let check = |pieces: &[(&Index, Span)], want: &str| {
        let piece = |&(index, (begin, end)): &(&'static Index, Span)| Piece {
            index,
            begin: Time::from_millis(begin),
            end: (end > 0).then(|| Time::from_millis(end)),
        };
        let pieces: Vec<_> =
            pieces.iter().map(|&(index, span)| piece(&(Box::leak(Box::new(index.clone())), span))).collect();
        let told = join(&pieces).unwrap_err().to_string();
        assert!(told.contains(want), "{told}");
    };
    check(&[(&one, (0, 0)), (&other, (0, 0))], "input 2 has H.264 192x108 and AAC");
    check(&[(&other, (0, 0)), (&pictures, (0, 0))], "input 2 has H.264 192x108, input 1 has H.264 192x108 and AAC");
    check(&[(&one, (0, 0)), (&other, (0, 0))], "they differ in the size of the pictures and the channels of the sound");
    check(&[(&other, (0, 0)), (&pictures, (0, 0))], "they differ in the tracks");
    check(&[(&other, (5000, 0))], "nothing lies between 5 s and 3");
    check(&[], "nothing to merge");
}
