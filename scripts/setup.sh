#!/bin/sh
# Installs what the build and the tests need on Debian or Ubuntu. What is there already is left alone; a second run
# says nothing and changes nothing.
set -eu

missing=
need() { # PACKAGE TEST…: the package is missing where the test fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

need build-essential cc --version
need make make --version
need cmake cmake --version                                         # builds libopus
need curl curl --version
need ffmpeg ffmpeg -version                                        # makes, publishes and judges media
need nginx test -x /usr/sbin/nginx                                 # a CDN that records what arrives
need libnginx-mod-rtmp test -f /usr/lib/nginx/modules/ngx_rtmp_module.so
need rtmpdump rtmpdump --help                                      # a player
need chromium chromium --version                                    # a WebRTC publisher and player
need python3-venv python3 -c "import venv, ensurepip"            # for a WebRTC publisher, below
need nodejs node --version                                         # runs the S3 server, below
need npm npm --version
need librtmp-dev test -f /usr/include/librtmp/rtmp.h               # a publisher

if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null; then
        echo "please install what Debian calls:$missing" >&2
        exit 1
    fi
    $sudo apt-get update -qq
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

venv=$(dirname "$0")/../target/venv
if ! "$venv/bin/python" -c "import aiortc" 2>/dev/null; then        # a WebRTC publisher
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "aiortc>=1.9,<2"
fi

s3=$(dirname "$0")/../target/s3
here=$(dirname "$0")/../crates/testkit/s3
if ! cmp -s "$here/package-lock.json" "$s3/node_modules/installed"; then        # an S3 server
    mkdir -p "$s3"
    cp "$here/package.json" "$here/package-lock.json" "$s3/"
    npm ci --prefix "$s3" --silent --no-audit --no-fund
    cp "$here/package-lock.json" "$s3/node_modules/installed"
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "please install Rust 1.95 or later: https://www.rust-lang.org/tools/install" >&2
    exit 1
fi
