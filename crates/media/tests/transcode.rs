//! What every codec implementation must do, and what a transcoder makes of what publishers send.

use std::f32::consts::TAU;

use bytes::Bytes;
use bywash_media::codec::{mp3, opus};
use bywash_media::transcode::{CHANNELS, Feed, RATE, Transcoder, decoder, encoder, encoders};
use bywash_media::{Codec, Format, Frame, Kind, Time, Track};
use proptest::collection::vec;
use proptest::prelude::*;

const BIT_RATE: u32 = 128_000;

/// Encoders whose sound our own decoders can judge.
fn judged() -> impl Iterator<Item = Codec> {
    encoders().iter().copied().filter(|codec| *codec != Codec::Mp3)
}

/// Packets of `pcm`, whole; and the track.
fn encode(codec: Codec, pcm: &[f32]) -> (Track, Vec<Bytes>) {
    let encoder = encoder(codec, BIT_RATE).unwrap();
    let track = encoder.track();
    let (mut feed, mut out) = (Feed::new(encoder), Vec::new());
    feed.push(pcm, &mut out);
    feed.drain(&mut out);
    (track, out)
}

/// The samples of `packets`.
fn decode(track: &Track, packets: &[Bytes]) -> Vec<f32> {
    let (mut decoder, mut pcm) = (decoder(track).unwrap(), Vec::new());
    for packet in packets {
        decoder.decode(packet, &mut pcm).unwrap();
    }
    pcm
}

/// The same sound left and right.
fn stereo(seconds: f32, at: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..(seconds * RATE as f32) as usize).flat_map(|n| [at(n); CHANNELS]).collect()
}

fn tone(hz: f32) -> impl Fn(usize) -> f32 {
    move |n| 0.25 * (TAU * hz * (n as u64 % u64::from(RATE)) as f32 / RATE as f32).sin()
}

/// Noise that is the same everywhere.
fn noise(n: usize) -> f32 {
    let mut it = n as u32 ^ 0x9e37_79b9;
    for shift in [16, 15, 16] {
        it = (it ^ (it >> shift)).wrapping_mul(0x85eb_ca6b);
    }
    it as f32 / u32::MAX as f32 - 0.5
}

/// Five clicks a second that decay at once.
fn castanet(n: usize) -> f32 {
    noise(n) * (-((n % 9_600) as f32) / 300.0).exp()
}

fn chord(n: usize) -> f32 {
    [261.0, 329.0, 392.0, 1046.0].map(|hz| tone(hz)(n)).iter().sum::<f32>() / 2.0
}

/// Mean over 20 ms pieces that are not silent, in dB.
fn segmental_snr(want: &[f32], got: &[f32]) -> f32 {
    let pieces = want.chunks_exact(1920).zip(got.chunks_exact(1920)).filter_map(|(want, got)| {
        let power: f32 = want.iter().map(|it| it * it).sum();
        let error: f32 = want.iter().zip(got).map(|(a, b)| (a - b) * (a - b)).sum();
        (power > 0.01).then(|| (10.0 * (power / error.max(1e-9)).log10()).clamp(-10.0, 60.0))
    });
    let pieces: Vec<f32> = pieces.collect();
    pieces.iter().sum::<f32>() / pieces.len() as f32
}

#[test]
fn an_encoders_delay_is_what_it_declares_to_the_sample() {
    for codec in judged() {
        let delay = encoder(codec, BIT_RATE).unwrap().delay() as usize;
        for at in [4_800, 10_007] {
            let (track, packets) = encode(codec, &stereo(0.5, |n| if n == at { 0.9 } else { 0.0 }));
            let pcm = decode(&track, &packets);
            let loudest =
                (0..pcm.len() / CHANNELS).max_by(|&a, &b| pcm[a * CHANNELS].abs().total_cmp(&pcm[b * CHANNELS].abs()));
            assert_eq!(loudest, Some(at + delay), "{codec}");
        }
    }
    if encoders().contains(&Codec::Aac) {
        assert_eq!(encoder(Codec::Aac, BIT_RATE).unwrap().delay(), 2048);
    }
}

#[test]
fn there_is_one_packet_for_each_frame_and_draining_gives_all() {
    for codec in judged() {
        let (frame, delay) = encoder(codec, BIT_RATE).map(|it| (it.frame(), it.delay() as usize)).unwrap();
        for samples in [0, 1, frame - 1, frame, 10 * RATE as usize] {
            let (_, packets) = encode(codec, &vec![0.1; samples * CHANNELS]);
            assert_eq!(packets.len(), (samples + delay).div_ceil(frame), "{codec}: {samples} samples");
        }
    }
}

#[test]
fn what_is_no_sample_is_encoded_all_the_same() {
    for codec in judged() {
        let mut feed = Feed::new(encoder(codec, BIT_RATE).unwrap());
        let mut out = Vec::new();
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2.0, -1e30, f32::MIN_POSITIVE] {
            feed.push(&[], &mut out);
            feed.push(&[odd; CHANNELS], &mut out);
            feed.push(&[odd; 5_000], &mut out);
        }
        feed.drain(&mut out);
        let track = encoder(codec, BIT_RATE).unwrap().track();
        assert!(decode(&track, &out).iter().all(|it| it.is_finite()), "{codec}");
        assert!(out.iter().all(|it| it.len() <= 1536), "{codec}");
    }
}

#[test]
fn an_encoder_keeps_its_rate() {
    for codec in judged() {
        for bit_rate in [64_000, 128_000, 192_000] {
            let mut feed = Feed::new(encoder(codec, bit_rate).unwrap());
            let mut out = Vec::new();
            feed.push(&stereo(10.0, |n| chord(n) + castanet(n) / 2.0), &mut out);
            let rate = out.iter().map(Bytes::len).sum::<usize>() as f32 * 8.0 / 10.0;
            // Opus takes its rate for a mean over all kinds of sound.
            let slack = if codec == Codec::Opus { 0.25 } else { 0.04 };
            assert!((rate / bit_rate as f32 - 1.0).abs() < slack, "{codec} at {bit_rate}: {rate}");
        }
    }
}

#[test]
fn encoders_beside_each_other_say_the_same() {
    for codec in judged() {
        let pcm = stereo(1.0, |n| chord(n) + castanet(n));
        std::thread::scope(|scope| {
            let both = [0, 1].map(|_| scope.spawn(|| encode(codec, &pcm)));
            let [one, other] = both.map(|it| it.join().unwrap());
            assert!(one == other, "{codec}");
        });
    }
}

#[test]
fn the_sound_stays_what_it_was() {
    for (codec, chords, clicks) in [(Codec::Aac, 38.0, 4.0), (Codec::Opus, 10.0, 3.0)] {
        for (what, sound, least) in [("chord", chord as fn(usize) -> f32, chords), ("castanet", castanet, clicks)] {
            let Ok(delay) = encoder(codec, BIT_RATE).map(|it| it.delay() as usize) else { continue };
            let pcm = stereo(2.0, sound);
            let (track, packets) = encode(codec, &pcm);
            let snr = segmental_snr(&pcm, &decode(&track, &packets)[delay * CHANNELS..]);
            println!("{codec} {what}: {snr:.1} dB");
            assert!(snr > least, "{codec} {what}: {snr} dB");
        }
    }
}

/// Opus packets of 20 ms, as a publisher sends them.
fn opus_packets(pcm: &[f32]) -> (Track, Vec<Bytes>) {
    encode(Codec::Opus, pcm)
}

fn frame(ms: i64, payload: &Bytes) -> Frame {
    Frame { track: Kind::Audio, dts: Time::from_millis(ms), cts: Time::ZERO, key: true, payload: payload.clone() }
}

/// Transcodes `frames` of `track`; gives the new track and frames, all of them on one unbroken line.
#[track_caller]
fn transcode(track: &Track, to: Codec, frames: impl IntoIterator<Item = Frame>) -> (Track, Vec<Frame>) {
    let mut transcoder = Transcoder::new(encoder(to, BIT_RATE).unwrap());
    transcoder.set_source(Some(track)).unwrap();
    let mut out = Vec::new();
    for frame in frames {
        transcoder.push(&frame, &mut out);
    }
    transcoder.finish(&mut out);
    let length = encoder(to, BIT_RATE).unwrap().frame() as i64;
    assert_unbroken(&out, length, 0);
    (transcoder.track(), out)
}

/// Each frame is as long after the one before as it is long, to `slack` nanoseconds.
#[track_caller]
fn assert_unbroken(frames: &[Frame], length: i64, slack: i64) {
    for pair in frames.windows(2) {
        let step = (pair[1].dts - pair[0].dts).as_nanos() - Time::from_ticks(length, RATE).as_nanos();
        assert!(step.abs() <= slack + 1, "{:?} follows {:?}", pair[1].dts, pair[0].dts);
    }
}

/// The decoded sound, on a line of samples that begins at time zero: left channel.
fn heard(track: &Track, frames: &[Frame]) -> Vec<f32> {
    let payloads: Vec<_> = frames.iter().map(|it| it.payload.clone()).collect();
    let pcm = decode(track, &payloads);
    let begin = frames[0].dts.as_ticks(RATE).max(0) as usize;
    std::iter::repeat_n(0.0, begin).chain(pcm.chunks_exact(CHANNELS).map(|it| it[0])).collect()
}

fn loudness(pcm: &[f32]) -> f32 {
    (pcm.iter().map(|it| it * it).sum::<f32>() / pcm.len() as f32).sqrt()
}

/// Where the sound first passes half its peak, in samples.
fn onset(pcm: &[f32]) -> usize {
    let peak = pcm.iter().fold(0.0f32, |most, it| most.max(it.abs()));
    pcm.iter().position(|it| it.abs() > peak / 2.0).unwrap()
}

#[test]
fn sound_stays_where_it_was_in_either_direction() {
    let pcm = stereo(2.0, |n| if n < 48_000 { 0.0 } else { tone(1_000.0)(n) });
    for (from, to) in [(Codec::Opus, Codec::Aac), (Codec::Aac, Codec::Opus), (Codec::Opus, Codec::Opus)] {
        let source = encoder(from, BIT_RATE).unwrap();
        let (length, delay) = (source.frame() as i64, i64::from(source.delay()));
        let (track, packets) = encode(from, &pcm);
        // As its publisher would stamp it: in milliseconds, from a start of one second.
        let frames = packets.iter().enumerate().map(|(n, it)| {
            let at = Time::from_ticks(48_000 - delay + n as i64 * length, RATE);
            frame(at.as_millis(), it)
        });
        let (track, out) = transcode(&track, to, frames);
        let onset = onset(&heard(&track, &out)) as i64;
        assert!((onset - 96_000).abs() < 96, "{from} to {to}: {} ms off", (onset - 96_000) as f32 / 48.0);
    }
}

#[test]
fn a_hole_is_made_up_for_and_then_silent_and_moves_nothing() {
    let (track, packets) = opus_packets(&stereo(4.0, tone(440.0)));
    let all = || packets.iter().enumerate().map(|(n, it)| frame(n as i64 * 20, it));
    let (aac, whole) = transcode(&track, Codec::Aac, all());
    let whole = heard(&aac, &whole);
    for (lost, quietest) in [(1, 0.1), (3, 0.05), (40, 0.0)] {
        let from = 100;
        let received = all().enumerate().filter(|(n, _)| !(from..from + lost).contains(n)).map(|(_, it)| it);
        let (aac, out) = transcode(&track, Codec::Aac, received);
        let pcm = heard(&aac, &out);
        assert_eq!(pcm.len(), whole.len(), "{lost} lost");
        let at = |n: usize| &pcm[n * 960..(n + 1) * 960];
        let within = (from..from + lost).map(|n| loudness(at(n))).fold(1.0, f32::min);
        assert!(within >= quietest && within < 0.2, "{lost} lost: {within}");
        if lost == 40 {
            assert!((from + 7..from + 38).all(|n| loudness(at(n)) < 0.001), "silence after the concealment");
        }
        // Behind the hole it is the same sound at the same place.
        let behind = (from + lost + 5) * 960..170 * 960;
        assert!(segmental_snr(&whole[behind.clone()], &pcm[behind]) > 20.0, "{lost} lost");
    }
}

#[test]
fn the_next_packet_is_asked_for_what_was_lost() {
    // SILK with in-band FEC would be asked; CELT has none, and the answer is concealment of the same length.
    let (track, packets) = opus_packets(&stereo(1.0, tone(440.0)));
    let mut decoder = decoder(&track).unwrap();
    let mut pcm = Vec::new();
    decoder.decode(&packets[0], &mut pcm).unwrap();
    decoder.conceal(960, Some(&packets[2]), &mut pcm);
    decoder.conceal(2_400, None, &mut pcm);
    decoder.decode(&packets[2], &mut pcm).unwrap();
    assert_eq!(pcm.len(), (960 + 960 + 2_400 + 960) * CHANNELS);
    assert!(loudness(&pcm[1_920..3_840]) > 0.05);
}

/// A voice of sorts: a pitch that wanders, and formants that move over its harmonics.
fn voice(n: usize) -> f32 {
    let at = n as f32 / RATE as f32;
    let phase = TAU * 130.0 * at - 30.0 * (TAU * 1.3 * at).cos();
    let formant = 700.0 + 500.0 * (TAU * 2.9 * at).sin();
    let tones = (1..24).map(|n| {
        let away = (n as f32 * 130.0 - formant) / 350.0;
        (-away * away).exp() * (n as f32 * phase).sin()
    });
    0.15 * (0.6 + 0.4 * (TAU * 4.3 * at).sin()) * tones.sum::<f32>()
}

/// Loses every tenth packet of a voice that was encoded as calls are; says how near the sound in their place is to what it was, in dB.
fn after_loss(fec: bool) -> f32 {
    let mut codec = ::opus::Encoder::new(RATE, ::opus::Channels::Stereo, ::opus::Application::Voip).unwrap();
    codec.set_bitrate(::opus::Bitrate::Bits(32_000)).unwrap();
    codec.set_inband_fec(fec).unwrap();
    codec.set_packet_loss_perc(15).unwrap();
    let pcm = stereo(6.0, voice);
    let packets: Vec<Bytes> =
        pcm.chunks_exact(960 * CHANNELS).map(|it| codec.encode_vec_float(it, 1500).unwrap().into()).collect();
    // RFC 6716 §3.1: below 16 SILK has a part in it.
    assert!(packets.iter().skip(1).all(|it| it[0] >> 3 < 16));
    let (track, _) = opus_packets(&[]);
    // Times of whole milliseconds that err by one.
    let all = || packets.iter().enumerate().map(|(n, it)| frame(n as i64 * 20 + 1 - (noise(n) * 2.0) as i64, it));
    let (aac, whole) = transcode(&track, Codec::Aac, all());
    let lost = |n: usize| n % 10 == 7;
    let (_, out) = transcode(&track, Codec::Aac, all().enumerate().filter(|(n, _)| !lost(*n)).map(|(_, it)| it));
    let (whole, got) = (heard(&aac, &whole), heard(&aac, &out));
    let holes = (10..290).filter(|n| lost(*n)).map(|n| n * 960..(n + 1) * 960);
    let (mut power, mut error) = (0.0, 0.0);
    for at in holes.flatten() {
        power += whole[at] * whole[at];
        error += (whole[at] - got[at]) * (whole[at] - got[at]);
    }
    10.0 * (power / error).log10()
}

#[test]
fn the_copy_that_a_packet_carries_of_the_last_one_stands_in_for_it() {
    let (with, without) = (after_loss(true), after_loss(false));
    println!("in place of what was lost: {with:.1} dB with in-band FEC, {without:.1} dB without");
    assert!(with > without + 3.0, "{with} dB with, {without} dB without");
}

#[test]
fn dtx_goes_on_as_its_noise() {
    let (track, packets) = opus_packets(&stereo(2.0, |n| noise(n) / 50.0));
    // Half a second of speech, then one byte and nothing for 400 ms, and so on.
    let silent = Bytes::copy_from_slice(&packets[0][..1]);
    let frames = (0..100).filter_map(|n| match n {
        0..25 | 90.. => Some(frame(n * 20, &packets[n as usize])),
        n if n % 20 == 5 => Some(frame(n * 20, &silent)),
        _ => None,
    });
    let (aac, out) = transcode(&track, Codec::Aac, frames);
    assert!(heard(&aac, &out).len() >= 100 * 960);
}

#[test]
fn time_that_nobody_speaks_in_is_silent_as_it_passes() {
    let mut transcoder = Transcoder::new(encoder(Codec::Aac, BIT_RATE).unwrap());
    let mut out = Vec::new();
    for ms in (0..2_000).step_by(40) {
        transcoder.fill(Time::from_millis(ms), &mut out);
    }
    // Two seconds but for what the encoder and one unit hold back.
    assert!(out.last().unwrap().dts > Time::from_millis(1_870), "{:?}", out.last());
    let (track, packets) = opus_packets(&stereo(1.0, tone(440.0)));
    transcoder.set_source(Some(&track)).unwrap();
    for (n, packet) in packets.iter().enumerate() {
        transcoder.push(&frame(2_000 + n as i64 * 20, packet), &mut out);
    }
    transcoder.finish(&mut out);
    assert_unbroken(&out, 1024, 0);
    let pcm = heard(&transcoder.track(), &out);
    assert!(loudness(&pcm[48_000..90_000]) < 0.001 && loudness(&pcm[110_000..130_000]) > 0.15);
}

#[test]
fn sound_that_keeps_coming_for_time_that_is_over_is_heard() {
    let (track, packets) = opus_packets(&stereo(10.0, tone(440.0)));
    let mut transcoder = Transcoder::new(encoder(Codec::Aac, BIT_RATE).unwrap());
    transcoder.set_source(Some(&track)).unwrap();
    let mut out = Vec::new();
    for (n, packet) in packets.iter().take(500).enumerate() {
        let now = n as i64 * 20;
        transcoder.fill(Time::from_millis(now + 4_000), &mut out);
        transcoder.push(&frame(now, packet), &mut out);
    }
    transcoder.finish(&mut out);
    assert_unbroken(&out, 1024, 200_000);
    let pcm = heard(&transcoder.track(), &out);
    for second in 6..13 {
        assert!(loudness(&pcm[second * 48_000..][..48_000]) > 0.15, "second {second}");
    }
}

#[test]
fn what_was_held_back_does_not_move_what_comes_after_it() {
    let (track, packets) = opus_packets(&stereo(8.0, |n| if n < 6 * 48_000 { 0.0 } else { tone(440.0)(n) }));
    let mut transcoder = Transcoder::new(encoder(Codec::Aac, BIT_RATE).unwrap());
    transcoder.set_source(Some(&track)).unwrap();
    let mut out = Vec::new();
    for (n, packet) in packets.iter().enumerate() {
        if n == 50 {
            transcoder.fill(Time::from_millis(4_000), &mut out);
        }
        transcoder.push(&frame(n as i64 * 20, packet), &mut out);
    }
    transcoder.finish(&mut out);
    // 60 ms are not dropped, and go away slowly; the encoder's own delay comes on top.
    let late = onset(&heard(&transcoder.track(), &out)).abs_diff(6 * 48_000);
    assert!(late < 70 * 48, "{late} samples off");
}

#[test]
fn a_hole_of_minutes_is_left_and_the_line_begins_anew() {
    let (track, packets) = opus_packets(&stereo(1.0, tone(440.0)));
    let mut transcoder = Transcoder::new(encoder(Codec::Aac, BIT_RATE).unwrap());
    transcoder.set_source(Some(&track)).unwrap();
    let mut out = Vec::new();
    for begin in [0, 600_000] {
        for (n, packet) in packets.iter().enumerate() {
            transcoder.push(&frame(begin + n as i64 * 20, packet), &mut out);
        }
    }
    let breaks: Vec<_> = out.windows(2).filter(|pair| pair[1].dts - pair[0].dts > Time::from_millis(30)).collect();
    assert_eq!(breaks.len(), 1);
    assert!(out.len() < 150 && out.windows(2).all(|pair| pair[0].dts < pair[1].dts));
}

#[test]
fn jitter_moves_nothing_and_drift_is_followed() {
    let (track, packets) = opus_packets(&stereo(10.0, tone(440.0)));
    let packet = |n: i64| &packets[n as usize % packets.len()];
    // Timestamps of whole milliseconds that err by up to 5 ms.
    let jittered = (0..1_000).map(|n| frame(20 * n + 5 - (noise(n as usize) * 10.0) as i64, packet(n)));
    let run = |frames: &mut dyn Iterator<Item = Frame>| {
        let mut transcoder = Transcoder::new(encoder(Codec::Aac, BIT_RATE).unwrap());
        transcoder.set_source(Some(&track)).unwrap();
        let mut out = Vec::new();
        frames.for_each(|it| transcoder.push(&it, &mut out));
        out
    };
    let out = run(&mut { jittered });
    assert_unbroken(&out, 1024, 200_000);
    // A publisher whose clock is fast by 0.1 %, for ten minutes: 600 ms.
    let out = run(&mut (0..30_000).map(|n| frame(20 * n + n / 50, packet(n))));
    assert_unbroken(&out, 1024, 200_000);
    let late = Time::from_millis(600_000 + 600) - out.last().unwrap().dts;
    assert!((0..100).contains(&late.as_millis()), "{late:?}");
}

#[test]
fn another_sample_rate_becomes_48_khz() {
    // 441 Hz at 44.1 kHz, as PCM through the AAC encoder that believes in 48 kHz: then the record tells the truth.
    if !encoders().contains(&Codec::Aac) {
        return;
    }
    let (_, packets) = encode(Codec::Aac, &stereo(2.0, tone(480.0)));
    let config = Bytes::from_static(&[0x12, 0x10]);
    let format = Format::Audio { sample_rate: 44_100, channels: 2 };
    let track = Track { codec: Codec::Aac, config, format };
    let at = |n: usize| Time::from_ticks(n as i64 * 1024, 44_100).as_millis();
    let frames = packets.iter().enumerate().map(|(n, it)| frame(at(n), it));
    let (track, out) = transcode(&track, Codec::Opus, frames);
    let pcm = heard(&track, &out);
    let crossings = pcm[20_000..68_000].windows(2).filter(|pair| pair[0] < 0.0 && pair[1] >= 0.0).count();
    assert!((440..=442).contains(&crossings), "{crossings} Hz");
    let level = loudness(&pcm[20_000..68_000]);
    assert!((level / 0.177 - 1.0).abs() < 0.03, "{level}");
}

#[test]
fn the_core_of_he_aac_is_heard_however_the_extension_is_told() {
    if !encoders().contains(&Codec::Aac) {
        return;
    }
    let (track, packets) = encode(Codec::Aac, &stereo(0.5, chord));
    let want = decode(&track, &packets);
    // AAC-LC of 48 kHz, stereo; with SBR told before the core's fields, and behind them.
    for config in ["1190", "299008", "119056e580"] {
        let config = (0..config.len()).step_by(2).map(|at| u8::from_str_radix(&config[at..at + 2], 16).unwrap());
        let told = Track { config: config.collect(), ..track.clone() };
        assert!(decode(&told, &packets) == want, "{told:?}");
    }
}

#[test]
fn mp3_comes_out_as_whole_frames() {
    let Ok(encoder) = encoder(Codec::Mp3, BIT_RATE) else { return };
    assert_eq!(encoder.track().format, Format::Audio { sample_rate: RATE, channels: 2 });
    let (_, packets) = encode(Codec::Mp3, &stereo(2.0, chord));
    assert!((84..=86).contains(&packets.len()), "{}", packets.len());
    let want = mp3::Header { sample_rate: RATE, channels: 2, samples: 1152, len: 384 };
    assert!(packets.iter().all(|it| it.len() == 384 && mp3::Header::parse(it) == Some(want)));
}

#[test]
fn what_cannot_be_done_is_said_by_name() {
    let mp3 =
        Track { codec: Codec::Mp3, config: Bytes::new(), format: Format::Audio { sample_rate: 48_000, channels: 2 } };
    assert!(decoder(&mp3).is_err_and(|it| it.to_string().contains("MP3")));
    for codec in [Codec::Aac, Codec::Mp3] {
        assert_eq!(encoder(codec, BIT_RATE).is_ok(), encoders().contains(&codec));
    }
    assert!(encoder(Codec::H264, BIT_RATE).is_err_and(|it| it.to_string().contains("no H.264 encoder")));
}

/// What it costs: `cargo test -p bywash-media --test transcode -- --ignored --nocapture cost`.
#[test]
#[ignore = "measures"]
fn cost() {
    let pcm = stereo(60.0, |n| chord(n) + castanet(n) / 2.0);
    for (from, to) in [(Codec::Opus, Codec::Aac), (Codec::Aac, Codec::Opus)] {
        let (track, packets) = encode(from, &pcm);
        let length = encoder(from, BIT_RATE).unwrap().frame() as i64;
        let at = |n: usize| Time::from_ticks(n as i64 * length, RATE).as_millis();
        let frames: Vec<_> = packets.iter().enumerate().map(|(n, it)| frame(at(n), it)).collect();
        // The scheduler's nanoseconds of this thread: others may be busy.
        let used = || -> f64 {
            let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
            stat.split(' ').next().unwrap().parse().unwrap()
        };
        let begin = used();
        transcode(&track, to, frames);
        println!("{from} to {to}: {:.2} ms for each second of sound", (used() - begin) / 1e6 / 60.0);
    }
}

/// A packet of any codec, mostly Opus, whole or damaged, at any time.
fn any_packet() -> impl Strategy<Value = (i64, Vec<u8>)> {
    let step = prop_oneof![8 => 15..25i64, 2 => -200..400i64, 1 => 0..8_000i64];
    let toc = prop::sample::select(vec![0xfcu8, 0xf8, 0x78, 0x08, 0xff]);
    let body = prop_oneof![
        3 => (toc, vec(any::<u8>(), 0..200)).prop_map(|(toc, mut it)| { it.insert(0, toc); it }),
        1 => vec(any::<u8>(), 0..40),
    ];
    (step, body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_packets_make_sound_whose_times_rise(packets in vec(any_packet(), 0..80), aac in any::<bool>(), fills in any::<bool>()) {
        let (codec, config) = match aac {
            true => (Codec::Aac, Bytes::from_static(&[0x11, 0x90])),
            false => (Codec::Opus, opus::Head { channels: 2, pre_skip: 312, source_rate: RATE, gain: 0 }.build()),
        };
        let track = Track { codec, config, format: Format::Audio { sample_rate: RATE, channels: 2 } };
        let to = if aac || !encoders().contains(&Codec::Aac) { Codec::Opus } else { Codec::Aac };
        let mut transcoder = Transcoder::new(encoder(to, BIT_RATE).unwrap());
        transcoder.set_source(Some(&track)).unwrap();
        let (mut out, mut dts) = (Vec::new(), 0i64);
        for (n, (step, packet)) in packets.into_iter().enumerate() {
            dts = (dts + step).max(0);
            transcoder.push(&frame(dts, &packet.into()), &mut out);
            if fills && n % 3 == 0 {
                transcoder.fill(Time::from_millis(dts + 10), &mut out);
            }
        }
        transcoder.finish(&mut out);
        prop_assert!(out.windows(2).all(|pair| pair[0].dts < pair[1].dts));
        let judge = transcoder.track();
        let payloads: Vec<_> = out.iter().map(|it| it.payload.clone()).collect();
        prop_assert!(decode(&judge, &payloads).iter().all(|it| it.is_finite()));
    }
}
