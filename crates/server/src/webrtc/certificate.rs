//! The DTLS certificate that all sessions share, kept over restarts.

use std::fs;
use std::path::Path;

use anyhow::Context;
use str0m::config::DtlsCert;

use crate::secret;

const FILE: &str = "webrtc.key";

/// The certificate of `data_dir/webrtc.key`, made if need be (mode 0600).
pub fn load(data_dir: &Path) -> anyhow::Result<DtlsCert> {
    let file = data_dir.join(FILE);
    match fs::read_to_string(&file) {
        Ok(text) => parse(&text).with_context(|| {
            format!("{} does not hold a certificate and its key: delete it and a new one is made", file.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = make().context("make a DTLS certificate")?;
            write(&file, &made).with_context(|| format!("write {}", file.display()))?;
            Ok(made)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

/// A new certificate.
pub fn make() -> Option<DtlsCert> {
    str0m::crypto::from_feature_flags().dtls_provider.generate_certificate()
}

fn parse(text: &str) -> Option<DtlsCert> {
    let mut lines = text.lines();
    let mut field = |name: &str| hex::decode(lines.next()?.strip_prefix(name)?.trim()).ok();
    let (certificate, private_key) = (field("certificate ")?, field("private-key ")?);
    Some(DtlsCert { certificate, private_key })
}

fn write(file: &Path, made: &DtlsCert) -> std::io::Result<()> {
    let text =
        format!("certificate {}\nprivate-key {}\n", hex::encode(&made.certificate), hex::encode(&made.private_key));
    secret::write(file, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_outlives_the_server_and_nobody_else_can_read_it() {
        let folder = std::env::temp_dir().join(format!("bywash-dtls-{}", rand::random::<u64>()));
        fs::create_dir_all(&folder).unwrap();
        let (first, second) = (load(&folder).unwrap(), load(&folder).unwrap());
        assert_eq!((first.certificate, first.private_key), (second.certificate, second.private_key));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(folder.join(FILE)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        fs::write(folder.join(FILE), "certificate zz").unwrap();
        assert!(load(&folder).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
