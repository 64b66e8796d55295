//! The bodies of the fuzz targets on addresses with some bytes changed: nothing panics, and what they assert holds.

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../../../fuzz/src/server.rs"]
mod target;

const SEEDS: &[&str] = &[
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
        }
    }
}
