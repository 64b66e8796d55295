"""A WebRTC client on aiortc: publishes a test picture by WHIP, or plays by WHEP, until stdin ends.

Prints "connected" once media flows; a player prints "pictures N sounds M" as they are decoded, and "apart MS" for how far apart
sound and pictures are by the sender reports. At the end, "deleted" if DELETE succeeds.
"""

import argparse
import asyncio
import os
import re
import sys
import urllib.request

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError, VideoStreamTrack
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RtcpSrPacket

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--play", action="store_true")
parser.add_argument("--video-only", action="store_true")
parser.add_argument("--idle-first", action="store_true", help="put a section that carries nothing before that of the pictures")
parser.add_argument("--close-first", action="store_true", help="close the connection before the session is deleted")
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


counts = {"video": 0, "audio": 0}


async def follow(track):
    try:
        while True:
            await track.recv()
            counts[track.kind] += 1
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
    offer = (with_idle(offer) if args.idle_first else offer).encode()
    answer, headers = await loop.run_in_executor(None, request, "POST", args.url, offer, "application/sdp")
    await peer.setRemoteDescription(RTCSessionDescription(without_idle(answer), "answer"))
    session = "/".join(args.url.split("/")[:3]) + headers["Location"]

    ended = loop.run_in_executor(None, sys.stdin.read)
    while not ended.done():
        await asyncio.wait([ended], timeout=0.5)
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
