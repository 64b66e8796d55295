"""The newest FFmpeg, by its Python binding: publishes a moving picture and a tone until stdin ends.

The first argument is the address, the second the muxer (whip, flv), then the encoders of picture and sound. With a rate behind them, in kbit/s, the
pictures are noise that needs that much. Prints "pictures N" each second.

With "play" for a muxer it plays by RTMP instead, says that it takes the codecs of the third argument, and prints the names of those that it gets and
can decode.
"""

import math
import os
import struct
import sys
import threading
import time
from fractions import Fraction

import av

RATE, SAMPLES, FRAMES, WIDTH, HEIGHT = 48_000, 960, 30, 320, 180
av.logging.set_level(av.logging.ERROR)

if sys.argv[2] == "play":
    source = av.open(sys.argv[1], options={"rtmp_enhanced_codecs": sys.argv[3]})
    tracks = source.streams.video[0], source.streams.audio[0]
    for track in tracks:
        next(source.decode(track))
    print(*(track.codec_context.name for track in tracks), flush=True)
    sys.exit()

url, muxer, pictures, sound, *rate = sys.argv[1:]
output = av.open(url, "w", format=muxer)
fast = {"libx264": {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"},
        "libx265": {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "log-level=none"},
        "libsvtav1": {"preset": "10", "crf": "50", "svtav1-params": "pred-struct=1:lookahead=0"}}
limits = {name: f"{it}k" for it in rate for name in ("b", "maxrate", "bufsize")}
video = output.add_stream(pictures, rate=FRAMES, options={**fast[pictures], "g": str(FRAMES), **limits})
video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
NOISE = os.urandom(2 * WIDTH * HEIGHT)
audio = output.add_stream(sound, rate=RATE)
audio.layout, audio.bit_rate = "stereo", 64_000


def picture(n):
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    for plane, shade in zip(frame.planes, (0, 64, 128)):
        # Rows are padded: what is in the padding nobody sees.
        row = bytes((x + 2 * n + shade) % 220 + 16 for x in range(plane.line_size))
        begin = 7919 * n % (WIDTH * HEIGHT)
        plane.update(NOISE[begin:begin + plane.buffer_size] if rate else row * plane.height)
    frame.pts, frame.time_base = n, Fraction(1, FRAMES)
    return frame


def tone(at):
    wave = [int(10_000 * math.sin(2 * math.pi * 440 * (at + n) / RATE)) for n in range(SAMPLES)]
    frame = av.AudioFrame("s16", "stereo", SAMPLES)
    frame.planes[0].update(struct.pack(f"{2 * SAMPLES}h", *(it for it in wave for _ in "lr")))
    frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
    return frame


ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
begin, n, at = time.monotonic(), 0, 0
while not ended.is_set():
    output.mux(video.encode(picture(n)))
    n += 1
    while at * FRAMES < n * RATE:
        output.mux(audio.encode(tone(at)))
        at += SAMPLES
    if n % FRAMES == 0:
        print("pictures", n, flush=True)
    time.sleep(max(0, begin + n / FRAMES - time.monotonic()))
# What the encoders still hold.
for track in video, audio:
    output.mux(track.encode())
output.close()
