//! Huawei Cloud Live, type D: `hwSecret = hmac-sha256(key, stream + hwTime)`, with `hwTime` in lower-case hex.
//!
//! Huawei adds the domain's own duration to `hwTime`, ZEGO calls it the expiry; the real expiry is safe under both readings.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Parameters;
use crate::secret::Secret;

/// Signs the bare stream name until `expires` (Unix seconds).
pub(super) fn parameters(stream: &str, key: &Secret, expires: i64) -> Parameters {
    let time = format!("{expires:x}");
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("{stream}{time}").as_bytes());
    vec![("hwSecret", hex::encode(mac.finalize().into_bytes())), ("hwTime", time)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huaweis_own_worked_example_is_reproduced() {
        let got = parameters("huawei1", &Secret::new("GCTbw44s6MPLh4GqgDpnfuFHgy25Enly"), 0x5eed5888);
        assert_eq!(got[0].1, "ce201856a0957413319e883c8ccae13602f01d3d91e21daf5161964cf708a6a8");
    }
}
