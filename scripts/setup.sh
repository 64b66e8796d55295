#!/bin/sh
# Installs what the build and the tests need on Debian or Ubuntu; with `build`, what the build needs alone. What is there
# already is left alone; a second run says nothing and changes nothing.
set -eu

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "please install Rust 1.95 or later: https://www.rust-lang.org/tools/install" >&2
    exit 1
fi

missing=
need() { # PACKAGE TEST…: the package is missing where the test fails; A|B is the first of the two that the system has
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

install() { # what is missing
    [ -n "$missing" ] || return 0
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null; then
        echo "please install what Debian calls:$missing" >&2
        exit 1
    fi
    $sudo apt-get update -qq
    chosen=
    for package in $missing; do
        for name in $(echo "$package" | tr '|' ' '); do
            apt-cache show "$name" >/dev/null 2>&1 && break
        done
        chosen="$chosen $name"
    done
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $chosen >/dev/null
    missing=
}

need build-essential c++ --version                                  # builds the sound codecs
need make make --version
need cmake cmake --version                                         # builds libopus
need pkg-config pkg-config --version
need libssl-dev pkg-config --exists openssl                        # DTLS
if [ "${1:-}" = build ]; then
    install
    exit
fi

need curl curl --version
need ffmpeg ffmpeg -version                                        # makes, publishes and judges media
need nginx test -x /usr/sbin/nginx                                 # a CDN that records what arrives
need libnginx-mod-rtmp test -f /usr/lib/nginx/modules/ngx_rtmp_module.so
need rtmpdump rtmpdump --help                                      # a player
either() { # COMMAND COMMAND: there is one of them
    command -v "$1" || command -v "$2"
}
need 'chromium|chromium-browser' either chromium chromium-browser  # a WebRTC publisher and player
need 'firefox-esr|firefox' either firefox-esr firefox              # another
need python3-venv python3 -c "import venv, ensurepip"            # for a WebRTC publisher, below
need nodejs node --version                                         # runs the S3 server, mp4box and libdatachannel, below
need npm npm --version
need python3-gi /usr/bin/python3 -c "import gi"                # for GStreamer as a WebRTC publisher
gst() { # ELEMENT: GStreamer has it
    gst-inspect-1.0 "$1"
}
need gstreamer1.0-tools gst-inspect-1.0 --version
need gstreamer1.0-plugins-base gst opusenc
need gstreamer1.0-plugins-good gst rtph264pay
need gstreamer1.0-plugins-bad gst webrtcbin
need gstreamer1.0-plugins-ugly gst x264enc
need gstreamer1.0-nice gst nicesrc
need gir1.2-gst-plugins-bad-1.0 test -f /usr/share/doc/gir1.2-gst-plugins-bad-1.0/copyright
need librtmp-dev test -f /usr/include/librtmp/rtmp.h               # a publisher

install

venv=$(dirname "$0")/../target/venv
# A WebRTC publisher; FFmpeg 8, which publishes by WHIP and enhanced RTMP.
if ! "$venv/bin/python" -c "import aiortc, av; av.open('/dev/null', 'w', format='whip')" 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "aiortc>=1.9,<2" "av>=18.1,<19"
fi

modules() { # NAME: what crates/testkit/NAME asks for, from npm, is in target/NAME
    here=$(dirname "$0")/../crates/testkit/$1
    there=$(dirname "$0")/../target/$1
    cmp -s "$here/package-lock.json" "$there/node_modules/installed" && return
    mkdir -p "$there"
    cp "$here/package.json" "$here/package-lock.json" "$there/"
    npm ci --prefix "$there" --silent --no-audit --no-fund
    cp "$here/package-lock.json" "$there/node_modules/installed"
}

modules s3                                                         # an S3 server
modules publishers                                                 # libdatachannel, by which OBS publishes
modules players                                                    # hls.js, a player; mp4box, a parser
