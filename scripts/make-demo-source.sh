#!/bin/sh
# Makes crates/server/src/demo/source.flv, the stream that the demo plays in a loop.
#
# 10.24 s is the length that lets the loop close without a seam: 256 pictures at 25 fps, 8 groups of 32
# and 480 AAC frames of 1024 samples at 48 kHz all end there. Each group begins with a white flash
# and a 1 kHz beep, so that the offset between picture and sound can be seen and heard.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quiet='-hide_banner -loglevel error -y -fflags +bitexact -flags +bitexact'

ffmpeg $quiet -f lavfi -i testsrc2=size=640x360:rate=25 -frames:v 256 \
    -vf "drawbox=x=520:y=20:w=100:h=100:color=white:t=fill:enable='lt(mod(n,32),2)',format=yuv420p" \
    -c:v libx264 -profile:v high -preset slow -bf 0 -g 32 -keyint_min 32 -sc_threshold 0 \
    -b:v 560k -maxrate 600k -bufsize 600k -x264-params threads=1 -map_metadata -1 "$work/video.mp4"

# The encoder delays its input by one frame; reading the tone 1024 samples ahead puts the beep back in its place.
ffmpeg $quiet -f lavfi -i "aevalsrc='0.25*sin(2*PI*1000*t)*lt(mod(t+1024/48000,1.28),0.08)':s=48000:c=stereo:d=12" \
    -c:a aac -profile:a aac_low -b:a 96k -frames:a 480 "$work/audio.aac"

# By way of ADTS, which forgets the delay, so that the first frame stands at 0.
ffmpeg $quiet -i "$work/audio.aac" -c copy -bsf:a aac_adtstoasc "$work/audio.m4a"
ffmpeg $quiet -i "$work/video.mp4" -i "$work/audio.m4a" -map 0:v -map 1:a -c copy \
    -flvflags no_duration_filesize -map_metadata -1 crates/server/src/demo/source.flv
