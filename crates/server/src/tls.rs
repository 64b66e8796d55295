//! Whom we trust when we call others: targets of rtmps:// and receivers of callbacks.
//!
//! Invariant: a certificate is taken only for the names and the time that it says, whoever vouches for it.

use std::sync::Arc;

use openssl::asn1::Asn1Time;
use openssl::x509::X509;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// A client's side that trusts the system's roots and `own`.
pub fn client(own: Vec<CertificateDer<'static>>) -> Result<ClientConfig, Error> {
    let mut trusted = rustls_native_certs::load_native_certs().certs;
    trusted.extend(own);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match verifier(trusted, provider)? {
        Some(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}

/// `None` if nobody is trusted.
fn verifier(trusted: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Option<Verifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    if roots.is_empty() {
        return Ok(None);
    }
    let by_roots = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let by_roots = by_roots.map_err(|why| Error::General(why.to_string()))?;
    Ok(Some(Verifier { by_roots, trusted }))
}

/// Takes what the roots vouch for and, as OpenSSL does, what is a root itself: `openssl req -x509` makes such certificates, which may
/// sign others and are their own server's too.
#[derive(Debug)]
struct Verifier {
    by_roots: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.trusted.iter().any(|it| it == certificate) {
            return self.by_roots.verify_server_cert(certificate, chain, name, ocsp, now);
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        verify_time(certificate, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_roots.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_roots.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_roots.supported_verify_schemes()
    }
}

fn verify_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let bad = |_| Error::from(CertificateError::BadEncoding);
    let certificate = X509::from_der(certificate).map_err(bad)?;
    let now = Asn1Time::from_unix(now.as_secs().try_into().unwrap_or(i64::MAX)).map_err(bad)?;
    if *certificate.not_before() > *now {
        return Err(CertificateError::NotValidYet.into());
    }
    if *certificate.not_after() < *now {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    /// What is said to a certificate that is trusted, is its own issuer, is of `localhost` and holds for a day from now, under `name`
    /// and `hours` from now; and to one of another key.
    fn check(name: &str, hours: u64, want: [bool; 2]) {
        let made = || {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let now = SystemTime::now();
            (params.not_before, params.not_after) = (now.into(), (now + Duration::from_secs(24 * 3600)).into());
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let certificates = [made(), made()];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = verifier(vec![certificates[0].clone()], provider).unwrap().unwrap();
        let at = Duration::from_secs(UnixTime::now().as_secs() + hours * 3600 + 60);
        let (name, at) = (ServerName::try_from(name).unwrap(), UnixTime::since_unix_epoch(at));
        for (certificate, want) in certificates.iter().zip(want) {
            let said = verifier.verify_server_cert(certificate, &[], &name, &[], at);
            assert_eq!(said.is_ok(), want, "{name:?} in {hours} hours: {said:?}");
        }
    }

    #[test]
    fn a_certificate_that_is_a_root_itself_is_trusted_for_its_names_and_time() {
        check("localhost", 0, [true, false]);
        check("localhost", 23, [true, false]);
        check("localhost", 25, [false, false]);
        check("example.com", 0, [false, false]);
    }
}
