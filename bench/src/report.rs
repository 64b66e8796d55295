//! The runs as a table: the median of each server, and the ratio.

use std::fmt::Write;

use serde_json::Value;

/// A Markdown table of `runs`.
pub fn table(scenarios: &[&str], runs: &[Value], seconds: u64, rounds: u64) -> String {
    let mut out = String::from("| | bywash | nginx-rtmp | ratio |\n|---|---|---|---|\n");
    for scenario in scenarios {
        for (what, field) in [
            ("CPU, ms per stream and second", "cpu_ms_per_stream_second"),
            ("CPU, ms per relayed megabit", "cpu_ms_per_megabit"),
            ("latency of pictures p50, ms", "p50_ms"),
            ("p99, ms", "p99_ms"),
            ("memory per stream, MB", "rss_mb_per_stream"),
            ("pictures delivered, share", "delivered"),
            ("memory per recording, MB", "rss_mb_per_recording"),
            ("bytes recorded, share", "recorded"),
            ("frames skipped", "frames_skipped"),
            ("CPU as a multiple of its bare parts in one go", "of_bare"),
            ("CPU as a multiple of its bare parts in real time", "of_real_time"),
            ("taken by the machine's host meanwhile, share of the cores", "stolen"),
        ] {
            row(&mut out, &format!("{scenario}: {what}"), field, |run| run["scenario"] == *scenario, runs);
        }
    }
    for (what, field) in [
        ("SRTP alone, ms", "srtp_ms"),
        ("Opus decoder alone, ms", "opus_ms"),
        ("AAC encoder alone, ms", "aac_ms"),
        ("sockets alone, ms", "sockets_ms"),
        ("all four, ms", "bare_ms"),
        ("all four in one program in real time, ms", "real_time_ms"),
    ] {
        row(&mut out, &format!("WHIP: {what}"), field, |_| true, runs);
    }
    row(&mut out, "idle: CPU, ms per second", "idle_cpu_ms_per_second", |_| true, runs);
    row(&mut out, "idle: memory, MB", "idle_rss_mb", |_| true, runs);
    row(&mut out, "target back after an outage, s", "target_back_seconds", |_| true, runs);
    let _ = writeln!(out, "\nMedians of {rounds} windows of {seconds} s each, the servers in turn.");
    out
}

/// The page `docs/benchmark.md`.
pub fn page(table: &str) -> String {
    format!(
        "# What a stream costs

Made by `make bench BENCH=--write-docs`; the numbers are this one run's.

Publishers send 1280×720 H.264 at 30 pictures a second, 2.5 Mbit/s, and AAC at 128 kbit/s, in real time, from one
process on the same machine that also takes the relayed streams. CPU is the server's alone, user and system. Latency is
from the publisher's write to the whole message at the target. nginx-rtmp relays with `push` and its defaults. Machines
are noisy: only the ratios mean anything. A window in which a virtual machine's host takes more than a fiftieth of the cores' time is measured
again, twice at most.

WHIP streams have the same pictures and Opus at 96 kbit/s, and are relayed with AAC at 128 kbit/s. Below their cost stand the parts of the
work that nobody could leave out, measured in a thread in the same runs: decrypting the packets, decoding the sound, encoding it, and reading and
writing the same bytes. Each alone, the sockets in real time and the rest, five seconds of it, in one go; and all four in one program that does
nothing else, in real time, as the packets come. The two differ as a processor's caches are cold each time that something comes; ten streams share
them. Beside *cores awake* a loop of the lowest priority keeps each core from idling: a virtual machine's idle core is lent to others by its host, and comes back cold or
slow, so that one stream alone costs the more the busier the host is.

Recordings (`+ FLV`, `× FLV` and so on) begin when the streams have been on air for some seconds, and what memory they add is theirs: a stream's ring is
there without them. nginx-rtmp records with `record all` and leaves it to the kernel when its files come to the disk; bywash syncs each file every second
(`record.sync`).

{table}"
    )
}

fn row(out: &mut String, what: &str, field: &str, of: impl Fn(&Value) -> bool, runs: &[Value]) {
    let median = |server: &str| {
        let chosen = runs.iter().filter(|run| run["server"] == server && of(run));
        let mut values: Vec<f64> = chosen.filter_map(|run| run[field].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let (ours, theirs) = (median("bywash"), median("nginx"));
    // What the host takes is neither's merit.
    let compared = ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0 && field != "stolen");
    let ratio = compared.map(|(ours, theirs)| ours / theirs);
    let cell = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2}"));
    if ours.or(theirs).is_some() {
        let _ = writeln!(out, "| {what} | {} | {} | {} |", cell(ours), cell(theirs), cell(ratio));
    }
}
