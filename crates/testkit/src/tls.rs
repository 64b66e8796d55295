//! A TLS terminator in front of a plain target, with a certificate authority of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::Scratch;

/// `rtmps://` in front of a port.
pub struct Tls {
    port: u16,
    dir: Scratch,
}

impl Tls {
    /// Terminates TLS with a certificate for `name` and passes on to `to` on loopback.
    pub fn start(name: &str, to: u16) -> Tls {
        let dir = Scratch::new();
        let mut params = rcgen::CertificateParams::new(vec![]).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().expect("a key");
        let authority = params.self_signed(&authority_key).expect("a certificate");
        std::fs::write(dir.join("roots.pem"), authority.pem()).expect("a file of ours");
        let issuer = rcgen::Issuer::from_params(&params, &authority_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Tls::with(dir, &certificate, &key, to)
    }

    /// Likewise with a certificate that nobody but itself vouches for, as `openssl req -x509` makes it.
    pub fn self_signed(name: &str, to: u16) -> Tls {
        let (dir, key) = (Scratch::new(), rcgen::KeyPair::generate().expect("a key"));
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.join("roots.pem"), certificate.pem()).expect("a file of ours");
        Tls::with(dir, &certificate, &key, to)
    }

    fn with(dir: Scratch, certificate: &rcgen::Certificate, key: &rcgen::KeyPair, to: u16) -> Tls {
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key of ours");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a pair of ours");
        let port = crate::port();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("our own port");
        listener.set_nonblocking(true).expect("a socket of ours");
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a socket of ours");
                let acceptor = TlsAcceptor::from(Arc::new(config));
                while let Ok((socket, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let mut inside = acceptor.accept(socket).await?;
                        let mut outside = TcpStream::connect(("127.0.0.1", to)).await?;
                        tokio::io::copy_bidirectional(&mut inside, &mut outside).await
                    });
                }
            });
        });
        Tls { port, dir }
    }

    /// The certificate of who vouches for it, for `relay.ca_file`.
    pub fn roots(&self) -> PathBuf {
        self.dir.join("roots.pem")
    }

    /// The address of a stream, by the host's name.
    pub fn url(&self, host: &str, stream: &str) -> String {
        format!("rtmps://{host}:{}/live/{stream}", self.port)
    }
}
