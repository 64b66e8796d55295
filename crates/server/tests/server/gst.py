"""A WebRTC client on GStreamer's webrtcbin, as its WHIP sink has within: publishes a test picture and a tone until stdin ends.

Prints the connection's states.
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
}[codec]
Gst.init(None)
pipeline = Gst.parse_launch(
    "webrtcbin name=peer bundle-policy=max-bundle"
    f" videotestsrc is-live=true ! video/x-raw,width=320,height=180,framerate=25/1 ! {pictures}"
    f" ! application/x-rtp,media=video,encoding-name={codec},payload=96 ! peer."
    " audiotestsrc is-live=true ! audioconvert ! opusenc ! rtpopuspay pt=97"
    " ! application/x-rtp,media=audio,encoding-name=OPUS,payload=97 ! peer."
)
peer = pipeline.get_by_name("peer")


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


def negotiate(_):
    for transceiver in (peer.emit("get-transceiver", 0), peer.emit("get-transceiver", 1)):
        transceiver.props.direction = GstWebRTC.WebRTCRTPTransceiverDirection.SENDONLY
    peer.emit("create-offer", None, Gst.Promise.new_with_change_func(offered))


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
