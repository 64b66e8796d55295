//! Other sample rates to [`RATE`]: a polyphase windowed sinc.
//!
//! Its delay is none: a sample comes out once the input behind it that it needs has come in.

use super::{CHANNELS, RATE};

/// Input samples on either side of an output sample, where the rate rises.
const REACH: usize = 16;

/// More phases than any rate of the AAC table needs.
const PHASES_MAX: usize = 640;

pub struct Resampler {
    /// One filter for each place that an output sample can have between two input samples.
    phases: Vec<Vec<f32>>,
    /// Input samples to the next output sample: `step / phases.len()`.
    step: usize,
    /// Input that is still needed; begins [`Self::reach`] samples before the next output sample.
    input: Vec<f32>,
    phase: usize,
    reach: usize,
    output: Vec<f32>,
}

impl Resampler {
    /// From `rate` Hz; `None` for one that no codec's table has.
    pub fn new(rate: u32) -> Option<Resampler> {
        let divisor = gcd(rate, RATE);
        let (count, step) = ((RATE / divisor) as usize, (rate / divisor) as usize);
        if count > PHASES_MAX || !(7_000..=96_000).contains(&rate) {
            return None;
        }
        // Where the rate falls, the filter keeps what the lower one can hold.
        let cut = f64::min(1.0, f64::from(RATE) / f64::from(rate)) * 0.97;
        let reach = (REACH as f64 / cut).ceil() as usize;
        let phases = (0..count)
            .map(|phase| {
                let taps = (0..2 * reach).map(|tap| {
                    let at = tap as f64 - (reach - 1) as f64 - phase as f64 / count as f64;
                    let sinc = if at == 0.0 {
                        1.0
                    } else {
                        (std::f64::consts::PI * at * cut).sin() / (std::f64::consts::PI * at * cut)
                    };
                    let window = (std::f64::consts::FRAC_PI_2 * (at / reach as f64).clamp(-1.0, 1.0)).cos().powi(2);
                    sinc * window
                });
                let taps: Vec<f64> = taps.collect();
                let sum: f64 = taps.iter().sum();
                taps.into_iter().map(|it| (it / sum) as f32).collect()
            })
            .collect();
        let input = vec![0.0; (reach - 1) * CHANNELS];
        Some(Resampler { phases, step, input, phase: 0, reach, output: Vec::new() })
    }

    /// What comes out for `pcm`.
    pub fn push(&mut self, pcm: &[f32]) -> &[f32] {
        self.input.extend_from_slice(pcm);
        self.output.clear();
        let mut at = 0;
        while let Some(input) = self.input.get(at * CHANNELS..(at + 2 * self.reach) * CHANNELS) {
            let mut sum = [0.0; CHANNELS];
            for (sample, tap) in input.chunks_exact(CHANNELS).zip(&self.phases[self.phase]) {
                sum[0] += sample[0] * tap;
                sum[1] += sample[1] * tap;
            }
            self.output.extend(sum);
            self.phase += self.step;
            at += self.phase / self.phases.len();
            self.phase %= self.phases.len();
        }
        self.input.drain(..at * CHANNELS);
        &self.output
    }

    /// What is still within.
    pub fn flush(&mut self) -> &[f32] {
        self.push(&vec![0.0; self.reach * CHANNELS])
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
