//! The bodies of the fuzz targets on addresses with some bytes changed: nothing panics, and what they assert holds.

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../../../fuzz/src/server.rs"]
mod target;

/// An offer in which nothing but the fingerprint is longer than it needs to be.
const OFFER: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=ice-ufrag:abcd\r\n\
    a=ice-pwd:0123456789abcdef01234567\r\na=setup:actpass\r\n\
    a=fingerprint:sha-256 AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB\r\n\
    m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=rtcp-mux\r\na=rtpmap:111 opus/48000/2\r\n\
    m=video 9 UDP/TLS/RTP/SAVPF 97 98\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=rtcp-mux\r\na=rtpmap:97 H264/90000\r\n\
    a=fmtp:97 packetization-mode=1;profile-level-id=42e01f\r\na=rtpmap:98 rtx/90000\r\na=fmtp:98 apt=97\r\n\
    a=rtcp-fb:97 nack pli\r\na=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\na=rid:h send\r\na=rid:l send\r\n\
    a=simulcast:send h;l\r\na=ssrc:1 cname:a\r\na=ssrc-group:FID 1 2\r\n\
    a=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host\r\n";

const SEEDS: &[&str] = &[
    OFFER,
    "\0\u{1}\0\u{10}!\u{12}",
    "userId=u&zgVer=v1&zgExpired=1700086400&zgNonce=1700000000000&zgToken=0f43c0018c039a74545971e58bc3f217",
    "Action=ForbidRTCStreams&StreamId[]=a&StreamId%5B%5D=b&StreamId.0=c&Media.0.Resolution.1=360p&Sequence=1",
    "rtmp://push.example.com:1935/live/stream?txSecret=00&txTime=5c271099",
    r#"{"StreamId":["a","b"],"HandleMediaArgs":[{"FileId":"f","StartTime":1.5}],"Sequence":"1"}"#,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_makes_a_parser_panic(
        seed in prop::sample::select(SEEDS),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        noise in vec(any::<u8>(), 0..200),
    ) {
        let mut edited = seed.as_bytes().to_vec();
        for (place, byte) in edits {
            let at = place.index(edited.len());
            edited[at] = byte;
        }
        for input in [edited, noise] {
            target::token(&input);
            target::query(&input);
            target::sdp(&input);
            target::datagram(&input);
            target::rtp(&input);
            target::dtls(&input);
        }
    }
}
