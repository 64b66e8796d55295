//! HLS media playlists (RFC 8216) from a list of segments.
//!
//! Invariant: a list names finished segments only, and an entry never changes; so its file can be replaced at any time.

use std::fmt;

use crate::Time;

/// A media playlist.
#[derive(Clone, Debug)]
pub struct Playlist {
    /// No segment is longer, in whole seconds. It must not change while the list grows: the longest that a segment may become.
    pub target: u32,
    /// The segments, oldest first.
    pub segments: Vec<Segment>,
    /// Whether no segment will follow. Until that is said, players take the stream for live.
    pub ended: bool,
}

/// One segment of a playlist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The file's name, beside the playlist.
    pub uri: String,
    /// How long it plays.
    pub duration: Time,
    /// When its first frame was taken, in milliseconds since 1970 UTC.
    pub wall_ms: i64,
    /// Whether times, tracks or what was shown do not go on from the segment before.
    pub discontinuity: bool,
    /// The initialization section of an fMP4 segment, beside the playlist; `None` for MPEG-TS.
    pub map: Option<String>,
}

impl Playlist {
    /// An empty list for segments up to this long.
    pub fn new(longest: Time) -> Playlist {
        Playlist { target: rounded_seconds(longest).max(1), segments: Vec::new(), ended: false }
    }

    /// Reads back what [`Display`](fmt::Display) has written; lines of no known form are passed over. A segment's `wall_ms` is
    /// counted from the last time that the list told.
    pub fn parse(text: &str) -> Playlist {
        let mut list = Playlist { target: 1, segments: Vec::new(), ended: false };
        let (mut map, mut discontinuity, mut duration, mut wall_ms) = (None, false, None, 0);
        for line in text.lines() {
            let (tag, value) = line.split_once(':').unwrap_or((line, ""));
            match tag {
                "#EXT-X-TARGETDURATION" => list.target = value.parse().unwrap_or(list.target),
                "#EXT-X-DISCONTINUITY" => discontinuity = true,
                "#EXT-X-MAP" => map = value.split('"').nth(1).map(str::to_owned),
                "#EXT-X-PROGRAM-DATE-TIME" => wall_ms = parse_utc(value).unwrap_or(wall_ms),
                "#EXTINF" => duration = seconds(value.trim_end_matches(',')),
                "#EXT-X-ENDLIST" => list.ended = true,
                _ if line.starts_with('#') => {}
                _ => {
                    let Some(duration) = duration.take() else { continue };
                    let discontinuity = std::mem::take(&mut discontinuity);
                    list.segments.push(Segment {
                        uri: line.into(),
                        duration,
                        wall_ms,
                        discontinuity,
                        map: map.clone(),
                    });
                    wall_ms += duration.as_millis();
                }
            }
        }
        list
    }

    /// Adds a segment; gives the lines by which the text becomes longer, of a list that has not ended.
    pub fn push(&mut self, segment: Segment) -> String {
        self.segments.push(segment);
        let mut lines = String::new();
        self.lines(self.segments.len() - 1, &mut lines).expect("a string takes any text");
        lines
    }

    /// Writes what there is of the segment at `at`.
    fn lines(&self, at: usize, out: &mut impl fmt::Write) -> fmt::Result {
        let segment = &self.segments[at];
        let map = at.checked_sub(1).and_then(|before| self.segments[before].map.as_ref());
        if segment.discontinuity && at > 0 {
            out.write_str("#EXT-X-DISCONTINUITY\n")?;
        }
        if let Some(own) = segment.map.as_ref().filter(|own| Some(*own) != map || segment.discontinuity) {
            writeln!(out, "#EXT-X-MAP:URI=\"{own}\"")?;
        }
        if segment.discontinuity || at == 0 {
            writeln!(out, "#EXT-X-PROGRAM-DATE-TIME:{}", Utc(segment.wall_ms))?;
        }
        let millis = segment.duration.as_ticks(1000).max(0);
        writeln!(out, "#EXTINF:{}.{:03},\n{}", millis / 1000, millis % 1000, segment.uri)
    }

    /// How long all of it plays.
    pub fn duration(&self) -> Time {
        self.segments.iter().fold(Time::ZERO, |sum, segment| sum + segment.duration)
    }

    /// The same with what lies between its segments, by their dates.
    pub fn span(&self) -> Time {
        let (Some(first), Some(last)) = (self.segments.first(), self.segments.last()) else { return Time::ZERO };
        Time::from_millis(last.wall_ms - first.wall_ms) + last.duration
    }
}

/// `6.040` as time.
fn seconds(text: &str) -> Option<Time> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let millis = format!("{rest:0<3}").get(..3)?.parse::<i64>().ok()?;
    Some(Time::from_millis(whole.parse::<u32>().ok()? as i64 * 1000 + millis))
}

/// Milliseconds since 1970, as ISO 8601 (RFC 3339) in UTC: `2024-02-29T23:59:59.040Z`.
pub fn utc(ms: i64) -> String {
    Utc(ms).to_string()
}

/// Reads what [`Utc`] writes.
fn parse_utc(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    // As there: years begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    Some((days * 86_400 + hour * 3600 + minute * 60 + second) * 1000 + number(20..23)?)
}

/// Durations round to the nearest second before they are held against the target (§4.3.3.1).
fn rounded_seconds(time: Time) -> u32 {
    time.as_ticks(1).clamp(0, u32::MAX.into()) as u32
}

/// The text of the playlist. A segment longer than [`target`](Playlist::target) raises it: a player may refuse the list otherwise.
impl fmt::Display for Playlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.segments.iter().map(|segment| rounded_seconds(segment.duration)).max();
        let target = self.target.max(longest.unwrap_or_default());
        // EXT-X-MAP of a list with pictures needs 6; fMP4 segments are of version 7.
        let version = if self.segments.iter().any(|segment| segment.map.is_some()) { 7 } else { 3 };
        let kind = if self.ended { "VOD" } else { "EVENT" };
        write!(f, "#EXTM3U\n#EXT-X-VERSION:{version}\n#EXT-X-TARGETDURATION:{target}\n")?;
        write!(f, "#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:{kind}\n#EXT-X-INDEPENDENT-SEGMENTS\n")?;
        (0..self.segments.len()).try_for_each(|at| self.lines(at, f))?;
        f.write_str(if self.ended { "#EXT-X-ENDLIST\n" } else { "" })
    }
}

/// Milliseconds since 1970, shown as ISO 8601 (RFC 3339) in UTC.
struct Utc(i64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: i64 = 86_400_000;
        let (days, ms) = (self.0.div_euclid(DAY), self.0.rem_euclid(DAY));
        // Years begin in March here: so the leap day is the last of its year, and 400 years are one cycle of 146 097 days.
        let since_march = days + 719_468;
        let (cycle, day) = (since_march.div_euclid(146_097), since_march.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = 400 * cycle + year + carry;
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(uri: &str, ms: i64, map: Option<&str>, discontinuity: bool) -> Segment {
        let duration = Time::from_millis(ms);
        Segment { uri: uri.into(), duration, wall_ms: 1_709_251_199_040, discontinuity, map: map.map(Into::into) }
    }

    fn check(segments: Vec<Segment>, ended: bool, want: &str) {
        let list = Playlist { segments, ended, ..Playlist::new(Time::from_millis(6400)) };
        assert_eq!(list.to_string(), want);
        assert_eq!(Playlist::parse(want).to_string(), want);
        let mut grown = Playlist { segments: Vec::new(), ended: false, ..list.clone() };
        let mut text = grown.to_string();
        list.segments.iter().for_each(|segment| text += &grown.push(segment.clone()));
        assert!(text.lines().skip(5).eq(want.lines().skip(5).filter(|line| *line != "#EXT-X-ENDLIST")));
    }

    #[test]
    fn a_growing_list_of_ts_segments() {
        check(
            vec![
                segment("0.ts", 6000, None, true),
                segment("1.ts", 5960, None, false),
                segment("2.ts", 6600, None, true),
            ],
            false,
            "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:7\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:EVENT\n\
             #EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-PROGRAM-DATE-TIME:2024-02-29T23:59:59.040Z\n#EXTINF:6.000,\n0.ts\n\
             #EXTINF:5.960,\n1.ts\n#EXT-X-DISCONTINUITY\n#EXT-X-PROGRAM-DATE-TIME:2024-02-29T23:59:59.040Z\n#EXTINF:6.600,\n2.ts\n",
        );
    }

    #[test]
    fn an_ended_list_of_fmp4_segments() {
        check(
            vec![
                segment("0.m4s", 4000, Some("a.mp4"), false),
                segment("1.m4s", 4000, Some("a.mp4"), false),
                segment("2.m4s", 80, Some("b.mp4"), true),
            ],
            true,
            "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:VOD\n\
             #EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP:URI=\"a.mp4\"\n#EXT-X-PROGRAM-DATE-TIME:2024-02-29T23:59:59.040Z\n\
             #EXTINF:4.000,\n0.m4s\n#EXTINF:4.000,\n1.m4s\n#EXT-X-DISCONTINUITY\n#EXT-X-MAP:URI=\"b.mp4\"\n\
             #EXT-X-PROGRAM-DATE-TIME:2024-02-29T23:59:59.040Z\n#EXTINF:0.080,\n2.m4s\n#EXT-X-ENDLIST\n",
        );
    }

    #[test]
    fn a_name_is_the_whole_line() {
        let list = Playlist::parse("#EXTM3U\n#EXTINF:1.000,\na:b.ts\n#EXTINF:1.000,\nhttp://host:80/c.ts\n");
        assert_eq!(list.segments.iter().map(|it| &it.uri[..]).collect::<Vec<_>>(), ["a:b.ts", "http://host:80/c.ts"]);
    }

    #[test]
    fn each_day_has_its_date() {
        let check = |ms, want: &str| {
            assert_eq!(Utc(ms).to_string(), want);
            assert_eq!(parse_utc(want), Some(ms));
        };
        check(0, "1970-01-01T00:00:00.000Z");
        check(-1, "1969-12-31T23:59:59.999Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(951_868_800_000, "2000-03-01T00:00:00.000Z");
        check(4_107_542_400_000, "2100-03-01T00:00:00.000Z");
        check(1_735_689_599_000, "2024-12-31T23:59:59.000Z");
    }
}
