//! The demonstration's look at its recorded file: an MP4 is read anew, by its boxes alone, and held against what was sent.
//!
//! Invariant: a picture that is missing, doubled, out of order or of another size is an error; so is sound, from the packet that
//! the recording began with.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bywash_rtmp::message::Kind;

use super::source::{Clip, Sent};

/// The MP4 files below `folder`, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => Vec::from_iter(path.extension().is_some_and(|it| it == "mp4").then_some(path)),
    };
    let mut found: Vec<_> = entries.flat_map(below).collect();
    found.sort();
    found
}

/// How many pictures and packets of sound the file has; an error if it is not whole, or of `clip` not what was `sent`.
pub fn check(file: &Path, sent: Option<(&Clip, Sent)>) -> anyhow::Result<Sent> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let moov = children(&bytes).find(|(kind, _)| *kind == b"moov").context("the file is not finished")?.1;
    let (mut video, mut audio) = (Vec::new(), Vec::new());
    for (_, track) in children(moov).filter(|(kind, _)| *kind == b"trak") {
        let media = within(track, b"mdia").context("a track without media")?;
        let table = within(media, b"minf").and_then(|it| within(within(it, b"stbl")?, b"stsz"));
        let sizes = sizes(table.context("a track without samples")?);
        match within(media, b"hdlr").and_then(|it| it.get(8..12)) {
            Some(b"vide") => video = sizes,
            Some(b"soun") => audio = sizes,
            _ => bail!("a track of neither pictures nor sound"),
        }
    }
    if let Some((clip, sent)) = sent {
        // What a tag has before its frame: AVC five bytes, AAC two (FLV 10.1 §E.4.2, §E.4.3).
        let pictures = clip.sizes(Kind::Video, 5, sent.video);
        let sound = clip.sizes(Kind::Audio, 2, sent.audio);
        ensure!(video == pictures, "{} pictures were sent, and the file has {} or others", pictures.len(), video.len());
        // Sound from before the first picture belongs to nothing.
        ensure!(sound.ends_with(&audio) && sound.len() - audio.len() < 10, "the sound is not what was sent");
    }
    Ok(Sent { video: video.len(), audio: audio.len() })
}

/// The boxes of `bytes`: kind and body (ISO/IEC 14496-12 §4.2).
fn children(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let size = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
        let kind = bytes.get(4..8)?.first_chunk()?;
        let (head, size) = match size {
            1 => (16, usize::try_from(u64::from_be_bytes(*bytes.get(8..16)?.first_chunk()?)).ok()?),
            size => (8, size),
        };
        let body = bytes.get(head..size)?;
        bytes = &bytes[size..];
        Some((kind, body))
    })
}

fn within<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    children(bytes).find(|(it, _)| *it == kind).map(|(_, body)| body)
}

/// The entries of `stsz` (§8.7.3.2).
fn sizes(table: &[u8]) -> Vec<usize> {
    let number =
        |at: usize| table.get(at..at + 4).map_or(0, |it| u32::from_be_bytes([it[0], it[1], it[2], it[3]]) as usize);
    let (each, count) = (number(4), number(8).min(1 << 24));
    (0..count).map(|n| if each > 0 { each } else { number(12 + 4 * n) }).collect()
}
