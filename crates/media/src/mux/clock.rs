//! Where frames are on the line of their track, and where the last of them ends, which no next one tells.

use crate::Time;

/// How long a picture lasts where nothing tells.
const PICTURE: Time = Time::from_millis(40);
/// The longest that a last frame is believed to last.
const LAST_MAX: Time = Time::from_millis(1_000);

/// Where a frame of `length` ticks is that is stamped so and follows `last`, a decoding time and a length. Sound is counted in samples
/// as long as its stamps, which may be in whole milliseconds, agree within a packet; a picture has no length of its own.
pub(super) fn placed(stamped: i64, length: u32, last: Option<(i64, u32)>) -> i64 {
    let Some((before, lasted)) = last else { return stamped };
    let expected = before + i64::from(lasted);
    let agrees = length > 0 && stamped.abs_diff(expected) <= length.into();
    if agrees { expected } else { stamped.max(before + 1) }
}

/// How long the last frame of a track lasts: as long as the one before it did, `step`. That may have been a pause, so it is no
/// longer than the other track goes on, `rest`, if it does, and than a second.
pub(super) fn last_length(step: Time, rest: Time) -> Time {
    let step = if step > Time::ZERO { step } else { PICTURE };
    step.min(if rest > Time::ZERO { rest.clamp(PICTURE, LAST_MAX) } else { LAST_MAX })
}

/// How far a track has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Option<Time>,
    step: Time,
}

impl Clock {
    /// A frame is decoded at this time.
    pub fn tick(&mut self, dts: Time) {
        self.step = self.last.map_or(Time::ZERO, |last| dts - last);
        self.last = Some(dts);
    }

    /// When the last frame is decoded.
    pub fn last(&self) -> Option<Time> {
        self.last
    }

    /// When the last frame of both tracks ends; `None` if there is none.
    pub fn end([one, other]: &[Clock; 2]) -> Option<Time> {
        let end = |it: &Clock, until: Option<Time>| {
            let rest = |last| until.map_or(Time::ZERO, |until| until - last);
            it.last.map(|last| last + last_length(it.step, rest(last)))
        };
        end(one, end(other, None)).max(end(other, end(one, None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds of pictures and of sound; gives when the last one ends.
    fn check(pictures: &[i64], sound: &[i64], want: Option<i64>) {
        let clock = |times: &[i64]| {
            let mut clock = Clock::default();
            times.iter().for_each(|&ms| clock.tick(Time::from_millis(ms)));
            clock
        };
        let got = Clock::end(&[clock(pictures), clock(sound)]).map(Time::as_millis);
        assert_eq!(got, want, "{pictures:?} {sound:?}");
    }

    #[test]
    fn the_last_frame_is_as_long_as_the_one_before() {
        check(&[0, 40, 80], &[], Some(120));
        check(&[0, 40, 80], &[0, 20, 40, 60], Some(120));
        check(&[0, 40], &[0, 20, 40, 60, 80], Some(100));
        check(&[7], &[], Some(47));
        check(&[], &[], None);
    }

    #[test]
    fn a_pause_before_the_last_frame_does_not_count_twice() {
        check(&[0, 40, 20_000], &[19_980, 20_000, 20_020], Some(20_040));
        check(&[0, 40, 20_000], &[20_000, 20_200, 20_400], Some(20_600));
        // A shared screen of five seconds a picture, without sound and with sound that ended before.
        check(&[0, 5_000, 10_000], &[], Some(11_000));
        check(&[0, 5_000, 10_000], &[0, 20, 40], Some(11_000));
    }

    #[test]
    fn sound_is_counted_in_samples_while_its_stamps_agree() {
        let check = |stamped, length, last, want| assert_eq!(placed(stamped, length, last), want, "{stamped}");
        check(1000, 1024, None, 1000);
        check(1000, 1024, Some((0, 1024)), 1024);
        check(1024 + 1025, 1024, Some((0, 1024)), 2049);
        // A picture, and a time that falls.
        check(1000, 0, Some((0, 0)), 1000);
        check(1000, 0, Some((5000, 0)), 5001);
    }
}
