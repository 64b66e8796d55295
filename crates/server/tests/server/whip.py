"""A WebRTC client on aiortc: publishes a test picture by WHIP, or plays by WHEP, until stdin ends.

Prints "connected" once media flows; a player prints "pictures N sounds M" as they are decoded, and "apart MS" for how far apart
sound and pictures are by the sender reports. At the end, "deleted" if DELETE succeeds.
"""

import argparse
import asyncio
import base64
import os
import re
import struct
import sys
import time
import urllib.request
from fractions import Fraction

import av
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.codecs.h264 import H264Encoder
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError, VideoStreamTrack
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RtcpSrPacket

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--play", action="store_true")
parser.add_argument("--video-only", action="store_true")
parser.add_argument("--idle-first", action="store_true", help="put a section that carries nothing before that of the pictures")
parser.add_argument("--close-first", action="store_true", help="close the connection before the session is deleted")
parser.add_argument("--ask", action="store_true", help="ask for a keyframe once pictures are decoded, and say how long it takes")
parser.add_argument("--bare", action="store_true", help="offer no header extension and no SSRC")
parser.add_argument("--damaged", action="store_true", help="send, now and then, a packet in the midst of a picture that is none of H.264")
parser.add_argument("--told", action="store_true", help="tell the parameter sets in the offer, and never again")
parser.add_argument("--switching", action="store_true", help="send the pictures as one stream and as another, in turns of 4 s")
args = parser.parse_args()


def say(*words):
    print(*words, flush=True)


def request(method, url, body=None, kind=None):
    headers = {"Content-Type": kind} if kind else {}
    call = urllib.request.Request(url, method=method, data=body, headers=headers)
    with urllib.request.urlopen(call, timeout=20) as answer:
        return answer.read().decode(), answer.headers


def with_idle(offer):
    session, *media = offer.split("\r\nm=")
    idle = next(it for it in media if it.startswith("video")).strip()
    idle = re.sub(r"a=mid:.*?\r\n", "a=mid:idle\r\n", idle)
    idle = re.sub(r"\r\na=(sendonly|recvonly)", "\r\na=inactive", re.sub(r"\r\na=(ssrc|msid).*?(?=\r\n)", "", idle))
    return "\r\nm=".join([re.sub(r"(BUNDLE [^\r]*)", r"\1 idle", session), idle, *media])


def without_idle(answer):
    media = answer.replace(" idle\r\n", "\r\n", 1).split("\r\nm=")
    return "\r\nm=".join(it for it in media if "a=mid:idle" not in it)


packetize = H264Encoder._packetize
sent = 0


def is_set(nal):
    return nal[0] & 0x1F in (7, 8)


def packetize_otherwise(nals):
    global sent
    packets = packetize([it for it in nals if not (args.told and is_set(it))])
    sent += 1
    if args.damaged and sent % 100 == 0:
        # RFC 6184 §5.2 leaves this type open.
        packets.insert(len(packets) // 2, bytes([30, 1, 2, 3]))
    return packets


def with_sets(offer):
    frame = av.VideoFrame(640, 480, "yuv420p")
    frame.pts, frame.time_base = 0, Fraction(1, 30)
    sets = [base64.b64encode(it).decode() for it in H264Encoder()._encode_frame(frame, True) if is_set(it)]
    return re.sub(r"(a=fmtp:\d+ [^\r]*profile-level-id[^\r]*)", rf"\1;sprop-parameter-sets={','.join(sets)}", offer)


def switch(section):
    """Another stream has its own numbers, ahead of or behind those of the first."""
    sender, begin, other = section.sender, time.monotonic(), section.sender._ssrc ^ 0x55555555
    send = sender.transport._send_rtp
    sender.transport._rtp_router.senders[other] = sender

    async def send_otherwise(data):
        first, kind, number, at, ssrc = struct.unpack("!BBHLL", data[:12])
        if ssrc == sender._ssrc and (time.monotonic() - begin) % 8 > 4:
            data = struct.pack("!BBHLL", first, kind, number + 20_000 & 0xFFFF, at, other) + data[12:]
        await send(data)

    sender.transport._send_rtp = send_otherwise


H264Encoder._packetize = staticmethod(packetize_otherwise)
counts = {"video": 0, "audio": 0}
# When a keyframe was asked for that has not come yet.
asked = []


async def follow(track):
    try:
        while True:
            frame = await track.recv()
            counts[track.kind] += 1
            if track.kind == "video" and frame.key_frame and asked:
                say("keyframe after", round(1000 * (time.monotonic() - asked.pop())))
    except MediaStreamError:
        pass


# By the last report of each kind: when its RTP clock was at 0, in seconds. Both clocks count from the beginning of the stream.
begins = {}
handle = RTCRtpReceiver._handle_rtcp_packet


async def handle_and_note(receiver, packet):
    if isinstance(packet, RtcpSrPacket):
        info, rate = packet.sender_info, {"video": 90000, "audio": 48000}[receiver._RTCRtpReceiver__kind]
        begins[rate] = info.ntp_timestamp / 2**32 - info.rtp_timestamp / rate
    await handle(receiver, packet)


RTCRtpReceiver._handle_rtcp_packet = handle_and_note


async def main():
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    only_h264 = [it for it in RTCRtpSender.getCapabilities("video").codecs if it.mimeType in ("video/H264", "video/rtx")]
    kinds = ["video"] if args.video_only else ["video", "audio"]
    for kind in kinds:
        if args.play:
            section = peer.addTransceiver(kind, direction="recvonly")
        else:
            track = VideoStreamTrack() if kind == "video" else AudioStreamTrack()
            section = peer.addTransceiver(track, direction="sendonly")
        if kind == "video":
            section.setCodecPreferences(only_h264)
    following = []
    peer.on("track", lambda track: following.append(asyncio.ensure_future(follow(track))))

    @peer.on("connectionstatechange")
    def changed():
        say(peer.connectionState)

    await peer.setLocalDescription(await peer.createOffer())
    loop = asyncio.get_running_loop()
    offer = peer.localDescription.sdp
    if args.bare:
        offer = re.sub(r"a=(extmap|ssrc|ssrc-group):.*\r\n", "", offer)
    offer = with_sets(offer) if args.told else offer
    offer = (with_idle(offer) if args.idle_first else offer).encode()
    answer, headers = await loop.run_in_executor(None, request, "POST", args.url, offer, "application/sdp")
    await peer.setRemoteDescription(RTCSessionDescription(without_idle(answer), "answer"))
    if args.switching:
        switch(next(it for it in peer.getTransceivers() if it.kind == "video"))
    session = "/".join(args.url.split("/")[:3]) + headers["Location"]
    say("session", headers["Location"])

    ended = loop.run_in_executor(None, sys.stdin.read)
    while not ended.done():
        await asyncio.wait([ended], timeout=0.5)
        if args.ask and counts["video"] > 75:
            args.ask = False
            asked.append(time.monotonic())
            receiver = next(it.receiver for it in peer.getTransceivers() if it.kind == "video")
            for source in receiver.getSynchronizationSources():
                await receiver._send_rtcp_pli(source.source)
        if args.play:
            say("pictures", counts["video"], "sounds", counts["audio"])
            if len(begins) == 2:
                say("apart", round(1000 * abs(begins[90000] - begins[48000])))
    if args.close_first:
        await peer.close()
        await asyncio.sleep(0.3)
    await loop.run_in_executor(None, request, "DELETE", session)
    say("deleted")
    os._exit(0)


asyncio.run(main())
