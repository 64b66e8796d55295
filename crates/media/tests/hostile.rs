//! The bodies of the fuzz targets on noise: nothing panics, and what they assert holds.

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../../../fuzz/src/media.rs"]
mod target;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_taken_in_peace(noise in vec(any::<u8>(), 0..600)) {
        target::flv_tag(&noise);
        target::enhanced_tag(&noise);
        target::codec_config(&noise);
        target::timeline(&noise);
    }
}
