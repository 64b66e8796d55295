//! Alibaba Cloud Live, type A: `auth_key = timestamp-rand-uid-md5(path-timestamp-rand-uid-key)`, with `rand` and `uid` 0.
//!
//! The domain's own validity is added to the timestamp, so now + ttl is never too short.

use md5::{Digest, Md5};

use super::Parameters;
use crate::secret::Secret;

/// Signs the address's path, with its leading slash and without query, until `expires` (Unix seconds).
pub(super) fn parameters(path: &str, key: &Secret, expires: i64) -> Parameters {
    let digest = hex::encode(Md5::digest(format!("{path}-{expires}-0-0-{}", key.expose())));
    vec![("auth_key", format!("{expires}-0-0-{digest}"))]
}
