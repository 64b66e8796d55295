"""A WebRTC client on GStreamer's webrtcbin, as its WHIP sink has within: publishes a test picture and a tone until stdin ends.

The first argument is the address, the second H264 or H265, or play to play H264 instead. Prints the connection's states; a player
prints "packets N" each second.
"""

import sys
import threading
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC

url, codec = sys.argv[1:3]
pictures = {
    "H264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 bitrate=400"
    " ! video/x-h264,profile=constrained-baseline ! rtph264pay config-interval=-1 aggregate-mode=zero-latency pt=96",
    "H265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=30 bitrate=400"
    " ! h265parse ! rtph265pay config-interval=-1 aggregate-mode=zero-latency pt=96",
}.get(codec)
Gst.init(None)
source = "" if codec == "play" else (
    f" videotestsrc is-live=true ! video/x-raw,width=320,height=180,framerate=25/1 ! {pictures}"
    f" ! application/x-rtp,media=video,encoding-name={codec},payload=96 ! peer."
    " audiotestsrc is-live=true ! audioconvert ! opusenc ! rtpopuspay pt=97"
    " ! application/x-rtp,media=audio,encoding-name=OPUS,payload=97 ! peer."
)
pipeline = Gst.Pipeline()
pipeline.add(Gst.parse_bin_from_description(f"webrtcbin name=peer bundle-policy=max-bundle{source}", False))
peer = pipeline.get_by_name("peer")
directions = GstWebRTC.WebRTCRTPTransceiverDirection
direction = directions.RECVONLY if codec == "play" else directions.SENDONLY


def say(*words):
    print(*words, flush=True)


def request(method, address, body=None):
    headers = {"Content-Type": "application/sdp"} if body else {}
    call = urllib.request.Request(address, method=method, data=body, headers=headers)
    with urllib.request.urlopen(call, timeout=20) as answer:
        return answer.read().decode(), answer.headers


def publish():
    offer = peer.props.local_description.sdp.as_text()
    answer, headers = request("POST", url, offer.encode())
    _, sdp = GstSdp.SDPMessage.new_from_text(answer)
    kind = GstWebRTC.WebRTCSDPType.ANSWER
    peer.emit("set-remote-description", GstWebRTC.WebRTCSessionDescription.new(kind, sdp), None)
    session = "/".join(url.split("/")[:3]) + headers["Location"]
    sys.stdin.read()
    request("DELETE", session)
    loop.quit()


def offered(promise):
    # The offer belongs to the reply, which must live as long.
    reply = promise.get_reply()
    peer.emit("set-local-description", reply.get_value("offer"), None)


def gathered(*_):
    if peer.props.ice_gathering_state == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        threading.Thread(target=publish, daemon=True).start()


packets = 0


def count(*_):
    global packets
    packets += 1
    return Gst.PadProbeReturn.OK


def play(_, pad):
    sink = Gst.ElementFactory.make("fakesink")
    peer.get_parent().add(sink)
    sink.sync_state_with_parent()
    pad.add_probe(Gst.PadProbeType.BUFFER, count)
    pad.link(sink.get_static_pad("sink"))


def tell():
    say("packets", packets)
    return True


def negotiate(_):
    for transceiver in (peer.emit("get-transceiver", 0), peer.emit("get-transceiver", 1)):
        transceiver.props.direction = direction
    peer.emit("create-offer", None, Gst.Promise.new_with_change_func(offered))


if codec == "play":
    for caps in (
        "application/x-rtp,media=video,encoding-name=H264,payload=96,clock-rate=90000,packetization-mode=(string)1",
        "application/x-rtp,media=audio,encoding-name=OPUS,payload=97,clock-rate=48000,encoding-params=(string)2",
    ):
        peer.emit("add-transceiver", direction, Gst.Caps.from_string(caps))
    peer.connect("pad-added", play)
    GLib.timeout_add_seconds(1, tell)
peer.connect("on-negotiation-needed", negotiate)
peer.connect("notify::ice-gathering-state", gathered)
peer.connect("notify::connection-state", lambda *_: say(peer.props.connection_state.value_nick))
bus = pipeline.get_bus()
bus.add_signal_watch()
bus.connect("message::error", lambda _, message: (say("error", message.parse_error()), loop.quit()))
loop = GLib.MainLoop()
pipeline.set_state(Gst.State.PLAYING)
loop.run()
pipeline.set_state(Gst.State.NULL)
