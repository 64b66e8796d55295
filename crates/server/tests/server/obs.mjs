// libdatachannel, the library by which OBS publishes, used as OBS does: publishes a moving picture and a tone until stdin ends.
//
// Arguments: the address; the folder of node's modules; h264, h265 or av1; another UDP port than the answer's, if one is to be
// spoken to. Prints the connection's states.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";

const [url, modules, codec, port] = process.argv.slice(2);
const rtc = createRequire(join(modules, "/"))("node-datachannel");
const say = (...words) => process.stdout.write(`${words.join(" ")}\n`);

const MTU = 1200, NAME = "OBS", SOUND = { seconds: 0.02, bytes: 240 }, FRAMES = 25;
const PICTURE = `-i testsrc2=size=640x360:rate=${FRAMES} -pix_fmt yuv420p -g 50 -b:v 2M`;
const FAST = "-preset ultrafast -tune zerolatency";

/** Gives `take` what lies between two access unit delimiters of H.264 or H.265, and returns the rest. */
const units = (delimiter) => (held, take) => {
    for (let end; (end = held.indexOf(delimiter, 1)) > 0; held = held.subarray(end)) take(held.subarray(0, end));
    return held;
};

/** Likewise the temporal units of an IVF file. */
function ivf(held, take) {
    if (held.length >= 32 && held.toString("latin1", 0, 4) == "DKIF") held = held.subarray(32);
    for (let end; held.length >= 12 && (end = held.readUInt32LE() + 12) <= held.length; held = held.subarray(end)) take(held.subarray(12, end));
    return held;
}

/** Likewise packets that are all of one size. */
function packets(held, take) {
    for (; held.length >= SOUND.bytes; held = held.subarray(SOUND.bytes)) take(held.subarray(0, SOUND.bytes));
    return held;
}

const CODECS = {
    h264: {
        encoder: `-c:v libx264 ${FAST} -profile:v baseline -x264-params aud=1 -f h264`,
        cut: units(Buffer.from([0, 0, 0, 1, 9])),
        offer: (video) => video.addH264Codec(96),
        packetizer: (config) => new rtc.H264RtpPacketizer("StartSequence", config, MTU),
    },
    h265: {
        encoder: `-c:v libx265 ${FAST} -x265-params aud=1:log-level=none -f hevc`,
        cut: units(Buffer.from([0, 0, 0, 1, 0x46])),
        offer: (video) => video.addH265Codec(96),
        packetizer: (config) => new rtc.H265RtpPacketizer("StartSequence", config, MTU),
    },
    av1: {
        encoder: "-c:v libsvtav1 -preset 12 -svtav1-params pred-struct=1:lookahead=0 -f ivf",
        cut: ivf,
        offer: (video) => video.addAV1Codec(96),
        packetizer: (config) => new rtc.AV1RtpPacketizer("TemporalUnit", config, MTU),
    },
};

const peer = new rtc.PeerConnection("publisher", { iceServers: [] });

/** Adds a track; what it returns sends one packet of its encoder's, of so many seconds. */
function track(description, payload, clock, packetizer) {
    const ssrc = 1 + Math.floor(Math.random() * 2 ** 31);
    description.addSSRC(ssrc, NAME, NAME, `${NAME}-${description.mid()}`);
    const config = new rtc.RtpPacketizationConfig(ssrc, NAME, payload, clock);
    const chain = packetizer(config);
    chain.addToChain(new rtc.RtcpSrReporter(config));
    chain.addToChain(new rtc.RtcpNackResponder(4000));
    const added = peer.addTrack(description);
    added.setMediaHandler(chain);
    return (packet, seconds) => {
        config.timestamp += Math.round(seconds * clock);
        added.sendMessageBinary(packet);
    };
}

const { encoder, cut, offer, packetizer } = CODECS[codec];
const audio = new rtc.Audio("0", "SendOnly");
audio.addOpusCodec(111);
const hear = track(audio, 111, 48_000, (config) => new rtc.RtpPacketizer(config));
const video = new rtc.Video("1", "SendOnly");
offer(video);
const see = track(video, 96, 90_000, packetizer);

/** Gives `take` what ffmpeg makes, cut by `cut`. */
function encode(options, cut, take) {
    const ffmpeg = spawn("ffmpeg", `-v error -re -f lavfi ${options} -flush_packets 1 pipe:1`.split(" "));
    let held = Buffer.alloc(0);
    ffmpeg.stdout.on("data", (data) => { held = cut(Buffer.concat([held, data]), take); });
    ffmpeg.stderr.on("data", (text) => say("ffmpeg:", text));
    return ffmpeg;
}

let encoders = [];
peer.onStateChange((state) => {
    say(state);
    if (state != "connected") return;
    encoders = [
        encode(`${PICTURE} ${encoder}`, cut, (unit) => see(unit, 1 / FRAMES)),
        encode("-i sine -map 0 -ar 48000 -ac 2 -c:a libopus -vbr off -b:a 96k -f data", packets, (packet) => hear(packet, SOUND.seconds)),
    ];
});

peer.onLocalDescription(async (sdp) => {
    const posted = await fetch(url, { method: "POST", body: sdp, headers: { "Content-Type": "application/sdp" } });
    const answer = await posted.text();
    if (posted.status != 201) return say(posted.status, answer);
    peer.setRemoteDescription(port ? answer.replace(/^(a=candidate:.* udp .*) \d+ typ/gm, `$1 ${port} typ`) : answer, "answer");
    process.stdin.resume().on("end", async () => {
        encoders.forEach((it) => it.kill());
        await fetch(new URL(posted.headers.get("Location"), url), { method: "DELETE" });
        process.exit();
    });
});
peer.setLocalDescription("offer");
