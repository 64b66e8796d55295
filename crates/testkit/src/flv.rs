//! FLV files, read for judgement.

use std::path::Path;

/// One tag.
#[derive(Clone, Debug)]
pub struct Tag {
    /// 8 audio, 9 video, 18 data.
    pub kind: u8,
    /// Milliseconds: the decode time.
    pub timestamp: i64,
    /// The body.
    pub body: Vec<u8>,
}

impl Tag {
    /// A track's sequence header.
    pub fn is_header(&self) -> bool {
        matches!(self.kind, 8 | 9) && self.body.get(1) == Some(&0)
    }

    /// A picture that can begin a stream.
    pub fn is_key(&self) -> bool {
        self.kind == 9 && !self.is_header() && self.body.first().is_some_and(|first| first >> 4 == 1)
    }

    /// A frame of media.
    pub fn is_frame(&self) -> bool {
        matches!(self.kind, 8 | 9) && !self.is_header()
    }
}

/// The whole tags of a file, and the length of what they fill; a last tag that is still being written is left out.
pub fn tags(path: &Path) -> (Vec<Tag>, usize) {
    let bytes = std::fs::read(path).unwrap_or_default();
    let mut tags = Vec::new();
    let mut at = 13;
    while let Some(head) = bytes.get(at..at + 11) {
        let number = |from: usize| head[from..from + 3].iter().fold(0usize, |n, byte| n << 8 | usize::from(*byte));
        let len = number(1);
        let Some(body) = bytes.get(at + 11..at + 11 + len) else { break };
        if bytes.len() < at + 15 + len {
            break;
        }
        let timestamp = number(4) as i64 | i64::from(head[7]) << 24;
        tags.push(Tag { kind: head[0] & 0x1f, timestamp, body: body.to_vec() });
        at += 15 + len;
    }
    (tags, at.min(bytes.len()))
}

/// The decode times of one kind never go back.
#[track_caller]
pub fn assert_monotonic(tags: &[Tag]) {
    for kind in [8, 9] {
        let times: Vec<i64> =
            tags.iter().filter(|tag| tag.kind == kind && tag.is_frame()).map(|t| t.timestamp).collect();
        let back = times.windows(2).find(|pair| pair[1] < pair[0]);
        assert!(back.is_none(), "decode time goes back: {back:?} (kind {kind})");
    }
}
