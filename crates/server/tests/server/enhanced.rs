//! What a target got as enhanced RTMP, judged by ffmpeg, whose FLV reader may not know it yet.

use std::process::{Command, Stdio};

use bywash_media::Codec;
use bywash_media::codec::nal;
use bywash_testkit::Scratch;
use bywash_testkit::flv::Tag;

/// The record and the pictures of the messages, which must all be of the codec `four` and begin with the one and a keyframe.
#[track_caller]
fn enhanced(tags: &[Tag], four: &[u8; 4]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let pictures: Vec<_> = tags.iter().filter(|tag| tag.kind == 9).map(|tag| &tag.body[..]).collect();
    assert!(pictures.iter().all(|body| body[0] & 0x80 != 0 && body[1..5] == *four), "messages of another kind");
    // Frame type and packet type; 1 is a keyframe, 0 the record, 1 and 3 coded frames, of which the first tells a composition time.
    let (record, pictures) = pictures.split_first().expect("video messages");
    assert_eq!((record[0] & 0xf, pictures[0][0] >> 4 & 7), (0, 1), "it begins with the record and a keyframe");
    let frames = pictures.iter().filter_map(|body| match body[0] & 0xf {
        1 if four != b"av01" => Some(body[8..].to_vec()),
        1 | 3 => Some(body[5..].to_vec()),
        _ => None,
    });
    (record[5..].to_vec(), frames.collect())
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
    let (record, pictures) = enhanced(tags, b"hvc1");
    let sets = nal::Sets::parse(Codec::H265, &record).expect("a record");
    let annex_b = |unit: &[u8]| [&[0, 0, 0, 1], unit].concat();
    let mut stream: Vec<u8> = sets.iter().flat_map(annex_b).collect();
    stream.extend(pictures.iter().flat_map(|picture| nal::nals(picture, 4)).flat_map(annex_b));
    decodes(&stream, "hevc", pictures.len());
}

/// Messages that are all of AV1 decode.
#[track_caller]
pub fn av1_decodes(tags: &[Tag]) {
    let (header, pictures) = enhanced(tags, b"av01");
    // Low-overhead OBUs (AV1 §5) want a temporal delimiter each, which RTMP leaves out; the record holds the sequence header.
    let stream =
        pictures.iter().fold(vec![0x12, 0], |stream, picture| [&stream, &header[4..], picture, &[0x12, 0]].concat());
    decodes(&stream, "obu", pictures.len());
}
