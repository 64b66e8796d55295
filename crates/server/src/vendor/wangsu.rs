//! Wangsu: `wsSecret = md5(wsABStime + path + key)`, with `wsABStime`, the expiry, in upper-case hex.

use md5::{Digest, Md5};

use super::Parameters;
use crate::secret::Secret;

/// Signs the address's path, with its leading slash and without query, until `expires` (Unix seconds).
pub(super) fn parameters(path: &str, key: &Secret, expires: i64) -> Parameters {
    let time = format!("{expires:X}");
    let secret = hex::encode(Md5::digest(format!("{time}{path}{}", key.expose())));
    vec![("wsSecret", secret), ("wsABStime", time)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zegos_example_string_is_what_is_hashed() {
        // 5C271099/live/streamid123KEY123
        let got = parameters("/live/streamid123", &Secret::new("KEY123"), 0x5c271099);
        assert_eq!(got[0], ("wsSecret", "aa5879cbafc6269423d4381282fb6b10".to_owned()));
    }
}
