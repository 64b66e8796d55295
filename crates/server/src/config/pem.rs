//! Certificates and keys in PEM form, as the configuration names them.
//!
//! Errors are what comes behind a file's name: "holds no certificate in PEM form".

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;

/// All certificates of a file; at least one.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|why| format!("is not a PEM file: {why}"))?;
    if all.is_empty() {
        return Err("holds no certificate in PEM form".into());
    }
    for one in &all {
        ParsedCertificate::try_from(one).map_err(|why| format!("holds a certificate that is broken: {why}"))?;
    }
    Ok(all)
}

/// The first private key of a file.
pub fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    PrivateKeyDer::from_pem_slice(text).map_err(|_| match text.windows(ENCRYPTED.len()).any(|it| it == ENCRYPTED) {
        true => "is encrypted: write it without a password, as `openssl pkey -in … -out …` does".into(),
        false => "holds no private key in PEM form".into(),
    })
}

/// What a listener shows its clients; an error if the key is not that of the certificate.
pub fn server(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    config.with_no_client_auth().with_single_cert(chain, key)
}
