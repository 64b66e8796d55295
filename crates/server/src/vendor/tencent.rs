//! Tencent Cloud CSS: `txSecret = md5(key + stream + txTime)`, with `txTime`, the expiry, in lower-case hex.
//!
//! The expiry is checked when the connection is made; a running push is not cut.

use md5::{Digest, Md5};

use super::Parameters;
use crate::secret::Secret;

/// Signs the bare stream name until `expires` (Unix seconds).
pub(super) fn parameters(stream: &str, key: &Secret, expires: i64) -> Parameters {
    let time = format!("{expires:x}");
    let secret = hex::encode(Md5::digest(format!("{}{stream}{time}", key.expose())));
    vec![("txSecret", secret), ("txTime", time)]
}
