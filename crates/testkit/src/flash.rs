//! A picture that flashes and a sound that beeps at the same moment of each second, and how far apart a recording has them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Scratch, flv};

/// Makes the files of a camera (y4m, 320×180, 30 pictures a second) and a microphone (wav): white for three pictures and a
/// tone of 100 ms from the middle of each second, for so many seconds. Chromium begins both again when they end,
/// but not at the same moment.
pub fn files(dir: &Scratch, seconds: u32) -> (PathBuf, PathBuf) {
    let (pictures, sound) = (dir.join("flash.y4m"), dir.join("beep.wav"));
    let flash = "drawbox=t=fill:c=white:enable='between(mod(n,30),15,17)'";
    let beep = "if(between(mod(t,1),0.5,0.6),0.8*sin(2*PI*1000*t),0)";
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-f", "lavfi", "-i", &format!("color=black:s=320x180:r=30:d={seconds},{flash}")]);
    ffmpeg.args(["-f", "lavfi", "-i", &format!("aevalsrc='{beep}':s=48000:d={seconds}")]);
    ffmpeg.args(["-map", "0:v", "-pix_fmt", "yuv420p"]).arg(&pictures);
    ffmpeg.args(["-map", "1:a", "-c:a", "pcm_s16le"]).arg(&sound);
    let made = ffmpeg.stdin(Stdio::null()).status();
    assert!(made.is_ok_and(|status| status.success()), "ffmpeg makes a flash and a beep; run `make setup`");
    (pictures, sound)
}

/// JavaScript that notes in a page when the camera gives a flash and the microphone a beep, in milliseconds: the two devices
/// do not begin at the same moment, and that is not for the server to mend. It also turns off what browsers do to voices.
pub const WATCH: &str = "
const flashes = [], beeps = [];
const capture = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const media = await capture({ ...wanted, audio });
  const read = async (track, note) => {
    const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
    for (let got; !(got = await reader.read()).done; got.value.close()) await note(got.value, performance.now());
  };
  let white = true, quiet = 0;
  read(media.getVideoTracks()[0].clone(), async (picture, now) => {
    const bytes = new Uint8Array(picture.allocationSize());
    await picture.copyTo(bytes);
    const is = bytes[picture.codedWidth * 90 + 90] > 128;
    if (is && !white) flashes.push(now);
    white = is;
  });
  read(media.getAudioTracks()[0].clone(), (sound, now) => {
    const samples = new Float32Array(sound.numberOfFrames);
    sound.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
    const ms = 1000 / sound.sampleRate;
    samples.forEach((sample, n) => {
      quiet += ms;
      if (Math.abs(sample) < 0.1) return;
      if (quiet > 300) beeps.push(now - (samples.length - n) * ms);
      quiet = 0;
    });
  });
  return media;
};";

/// How much later than the beep each flash is in what a page noted, in milliseconds, sorted.
pub fn noted(flashes: &Value, beeps: &Value) -> Vec<f64> {
    let list = |it: &Value| it.as_array().into_iter().flatten().filter_map(Value::as_f64).collect::<Vec<_>>();
    offsets(&list(flashes), &list(beeps))
}

/// How much later than the beep each flash is in a recording, in milliseconds, sorted.
pub fn recorded(path: &Path) -> Vec<f64> {
    let (tags, _) = flv::tags(path);
    let times =
        |kind: u8| tags.iter().filter(move |tag| tag.kind == kind && tag.is_frame()).map(|tag| tag.timestamp as f64);
    let decode = |args: &[&str]| {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-i"]).arg(path).args(args).arg("-").stdin(Stdio::null());
        ffmpeg.output().expect("ffmpeg; run `make setup`").stdout
    };
    // A byte is the light of a picture.
    let light = decode(&[
        "-map",
        "0:v",
        "-fps_mode",
        "passthrough",
        "-vf",
        "scale=1:1:flags=area,format=gray",
        "-f",
        "rawvideo",
    ]);
    let mut flashes = Vec::new();
    let mut white = true;
    for (light, time) in light.iter().zip(times(9)) {
        if *light > 128 && !white {
            flashes.push(time);
        }
        white = *light > 128;
    }
    // Each AAC frame decodes to 1024 samples.
    let sound = decode(&["-map", "0:a", "-ac", "1", "-ar", "48000", "-f", "s16le"]);
    let mut beeps = Vec::new();
    let mut last = f64::MIN;
    for (frame, time) in sound.chunks(2 * 1024).zip(times(8)) {
        for (n, sample) in frame.chunks_exact(2).enumerate() {
            let now = time + n as f64 / 48.0;
            if i16::from_le_bytes([sample[0], sample[1]]).unsigned_abs() > 3000 {
                if now - last > 300.0 {
                    beeps.push(now);
                }
                last = now;
            }
        }
    }
    offsets(&flashes, &beeps)
}

/// Of each flash to the beep that is nearest.
fn offsets(flashes: &[f64], beeps: &[f64]) -> Vec<f64> {
    let nearest = |flash: &f64| beeps.iter().map(|beep| flash - beep).min_by(|a, b| a.abs().total_cmp(&b.abs()));
    let mut offsets: Vec<f64> = flashes.iter().filter_map(nearest).collect();
    offsets.sort_by(f64::total_cmp);
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_have_flash_and_beep_together() {
        let dir = Scratch::new();
        let ((pictures, sound), made) = (files(&dir, 5), dir.join("made.flv"));
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-i"]).arg(pictures).arg("-i").arg(sound);
        ffmpeg.args(["-c:v", "libx264", "-bf", "0", "-c:a", "aac"]).arg(&made);
        assert!(ffmpeg.stdin(Stdio::null()).status().is_ok_and(|it| it.success()));
        let offsets = recorded(&made);
        assert!(offsets.len() == 5 && offsets.iter().all(|it| it.abs() < 5.0), "{offsets:.1?}");
    }
}
