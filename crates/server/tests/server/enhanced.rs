//! What a target got as enhanced RTMP, judged by ffmpeg, whose FLV reader may not know it yet.

use std::process::{Command, Stdio};

use bywash_media::Codec;
use bywash_media::codec::nal;
use bywash_testkit::Scratch;
use bywash_testkit::flv::Tag;

/// The pictures of the messages, each behind the record that it goes by: a browser that has too much to do makes smaller ones, of another
/// record. The messages must all be of the codec `four` and begin with a record and a keyframe.
#[track_caller]
fn enhanced<'a>(tags: &'a [Tag], four: &[u8; 4]) -> Vec<(&'a [u8], &'a [u8])> {
    let bodies: Vec<_> = tags.iter().filter(|tag| tag.kind == 9).map(|tag| &tag.body[..]).collect();
    assert!(bodies.iter().all(|body| body[0] & 0x80 != 0 && body[1..5] == *four), "messages of another kind");
    // Frame type and packet type; 1 is a keyframe, 0 the record, 1 and 3 coded frames, of which the first tells a composition time.
    assert_eq!((bodies[0][0] & 0xf, bodies[1][0] >> 4 & 7), (0, 1), "it begins with the record and a keyframe");
    let (mut record, mut pictures) = (&bodies[0][5..], Vec::new());
    for body in bodies {
        match body[0] & 0xf {
            0 => record = &body[5..],
            1 if four != b"av01" => pictures.push((record, &body[8..])),
            1 | 3 => pictures.push((record, &body[5..])),
            _ => {}
        }
    }
    pictures
}

/// ffmpeg decodes the stream in `format` without a word, to `pictures` pictures.
#[track_caller]
fn decodes(stream: &[u8], format: &str, pictures: usize) {
    let scratch = Scratch::new();
    std::fs::write(scratch.join("stream"), stream).expect("a scratch file");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-f", format, "-i"]).arg(scratch.join("stream"));
    ffmpeg.args(["-fps_mode", "passthrough", "-vf", "scale=1:1,format=gray", "-f", "rawvideo", "-"]);
    let judged = ffmpeg.stdin(Stdio::null()).output().expect("ffmpeg; run `make setup`");
    let words = String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success() && words.is_empty(), "{words}");
    assert_eq!(judged.stdout.len(), pictures);
}

/// Messages that are all of H.265 decode.
#[track_caller]
pub fn h265_decodes(tags: &[Tag]) {
    let pictures = enhanced(tags, b"hvc1");
    let annex_b = |unit: &[u8]| [&[0, 0, 0, 1], unit].concat();
    let whole = |(record, picture): &(&[u8], &[u8])| {
        let sets = nal::Sets::parse(Codec::H265, record).expect("a record");
        sets.iter().chain(nal::nals(picture, 4)).flat_map(annex_b).collect::<Vec<_>>()
    };
    let stream: Vec<u8> = pictures.iter().flat_map(whole).collect();
    decodes(&stream, "hevc", pictures.len());
}

/// Messages that are all of AV1 decode.
#[track_caller]
pub fn av1_decodes(tags: &[Tag]) {
    let pictures = enhanced(tags, b"av01");
    // Low-overhead OBUs (AV1 §5) want a temporal delimiter each, which RTMP leaves out; the record holds the sequence header.
    let whole = |(record, picture): &(&[u8], &[u8])| [&record[4..], picture, &[0x12, 0]].concat();
    let stream = [vec![0x12, 0], pictures.iter().flat_map(whole).collect()].concat();
    decodes(&stream, "obu", pictures.len());
}
