//! What an output reads: the stream itself, or a rendition of it where the output needs other sound.
//!
//! Sound that the output does not take may come up after it has begun: then it goes on with the rendition, from the next
//! keyframe that it has not had.

use bywash_media::transcode::Error;
use bywash_media::{Kind, Time};

use crate::hub::{Event, Reader, Stream};
use crate::lane::Lane;
use crate::rendition::{Rendition, Renditions, Sound};

/// A place in a stream whose sound is right.
pub struct Source {
    stream: Stream,
    sound: Sound,
    max_lag: Time,
    rendition: Option<Rendition>,
    /// Where events come from; each goes through [`Source::take`].
    pub reader: Reader,
    /// The newest frame that was sent.
    sent: Option<Time>,
    /// The reader is new and may stand before what was sent: nothing is sent before a later keyframe.
    joins: bool,
    pictures: bool,
}

/// What to do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is for the output.
    Send,
    /// The output has had it.
    Skip,
    /// It tells of sound that the output does not take: [`Source::switch`], and forget what else was read.
    Switch,
}

impl Source {
    /// Begins at the newest keyframe. Once it is more than `max_lag` behind, it skips to a later one.
    pub fn begin(
        stream: &Stream,
        sound: Sound,
        max_lag: Time,
        renditions: &Renditions,
        lane: &Lane,
    ) -> Result<Source, Error> {
        let (reader, stream) = (stream.read(max_lag), stream.clone());
        let (sent, joins, pictures) = (None, false, false);
        let mut source = Source { stream, sound, max_lag, rendition: None, reader, sent, joins, pictures };
        if !sound.fits(&source.stream.tracks()) {
            source.switch(renditions, lane, false)?;
        }
        Ok(source)
    }

    /// What to do with an event.
    pub fn take(&mut self, event: &Event) -> Step {
        match event {
            Event::Tracks(tracks) if self.rendition.is_none() && !self.sound.fits(tracks) => return Step::Switch,
            Event::Tracks(tracks) => self.pictures = tracks.video.is_some(),
            Event::Frame(frame) if self.joins => {
                let start = frame.key && (frame.track == Kind::Video || !self.pictures);
                if !start || self.sent.is_some_and(|sent| frame.dts <= sent) {
                    return Step::Skip;
                }
                (self.joins, self.sent) = (false, Some(frame.dts));
            }
            Event::Frame(frame) => self.sent = self.sent.max(Some(frame.dts)),
            Event::Lagged { .. } => {}
        }
        Step::Send
    }

    /// Goes on with the rendition; if it `joins`, from the next keyframe that was not sent. An error says why this build cannot make it.
    pub fn switch(&mut self, renditions: &Renditions, lane: &Lane, joins: bool) -> Result<(), Error> {
        let rendition = renditions.of(&self.stream, self.sound, lane)?;
        self.reader = rendition.read(self.max_lag);
        self.rendition = Some(rendition);
        self.joins = joins;
        Ok(())
    }
}
