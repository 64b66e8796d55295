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
need curl curl --version
need ffmpeg ffmpeg -version                                        # makes, publishes and judges media
need nginx test -x /usr/sbin/nginx                                 # a CDN that records what arrives
need libnginx-mod-rtmp test -f /usr/lib/nginx/modules/ngx_rtmp_module.so
need rtmpdump rtmpdump --help                                      # a player
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

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "please install Rust 1.95 or later: https://www.rust-lang.org/tools/install" >&2
    exit 1
fi
