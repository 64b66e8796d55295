//! DTLS 1.2 with keys for SRTP (RFC 5764) by OpenSSL, for str0m, whose own engine refuses the RSA certificates of GStreamer's clients.
//!
//! Invariant: a datagram is read up, or dropped, before the next is taken. Nothing that a peer sends is kept but what OpenSSL keeps of
//! one handshake.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::mem;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::srtp::SrtpProfileId;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslStream, SslVerifyMode,
    SslVersion,
};
use openssl::x509::X509;
use str0m::DATAGRAM_MTU_TARGET;
use str0m::config::{CryptoProvider, DtlsCert, DtlsVersion};
use str0m::crypto::dtls::{
    DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, KeyingMaterial, ProtocolVersion, SrtpProfile,
};
use str0m::crypto::{CryptoError, from_feature_flags};
use tracing::debug;

/// str0m's cryptography, with OpenSSL's DTLS.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(CryptoProvider { dtls_provider: &Provider, ..from_feature_flags() }));
    PROVIDER.clone()
}

#[derive(Debug)]
struct Provider;

impl DtlsProvider for Provider {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        from_feature_flags().dtls_provider.generate_certificate()
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        _: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let engine = Engine::new(certificate, now, mtu.unwrap_or(DATAGRAM_MTU_TARGET));
        engine.map(|engine| Box::new(engine) as Box<dyn DtlsInstance>).map_err(|it| CryptoError::Other(it.to_string()))
    }
}

/// One end of a DTLS association.
struct Engine {
    stream: SslStream<Wire>,
    active: bool,
    stage: Stage,
    events: VecDeque<Event>,
    now: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was sent and nothing came.
    Idle,
    Handshake,
    Connected,
    /// The peer said goodbye.
    Left,
    /// It cannot go on; the alert that says so goes out first.
    Failed,
    Closed,
}

enum Event {
    Certificate(Vec<u8>),
    Keys(KeyingMaterial, SrtpProfile),
    Connected,
    Left,
}

/// How late a flight that was lost may be sent again, at the most. OpenSSL looks at its own timers (a second at first, RFC 6347 §4.2.4)
/// whenever it is asked to go on with the handshake.
const TICK: Duration = Duration::from_millis(100);

/// How long to wait where there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);

impl Engine {
    fn new(certificate: &DtlsCert, now: Instant, mtu: usize) -> Result<Engine, ErrorStack> {
        let context = context(certificate)?;
        let mut ssl = Ssl::new(&context)?;
        ssl.set_mtu(mtu as u32)?;
        let stream = SslStream::new(ssl, Wire::default())?;
        Ok(Engine { stream, active: false, stage: Stage::Idle, events: VecDeque::new(), now })
    }

    /// Lets OpenSSL read what came, and do what is due.
    fn advance(&mut self) {
        if let Err(error) = self.go_on() {
            debug!(error = format!("{error:#}"), "DTLS fails");
            self.stage = Stage::Failed;
        }
        // What it did not read up is not there for the next time.
        self.stream.get_mut().came.clear();
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        if matches!(self.stage, Stage::Idle | Stage::Handshake) {
            self.stage = Stage::Handshake;
            let done = if self.active { self.stream.connect() } else { self.stream.accept() };
            match done {
                Ok(()) => self.connected()?,
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Data is read and dropped: no offer with a data channel is taken. A flight that is sent to us again is answered by this too.
        let mut data = [0; 2048];
        while self.stage == Stage::Connected {
            match self.stream.ssl_read(&mut data) {
                Ok(_) => {}
                Err(error) if error.code() == ErrorCode::WANT_READ => break,
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => {
                    self.stage = Stage::Left;
                    self.events.push_back(Event::Left);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The handshake is done. That the peer has the certificate's key is certain; whose it is, str0m finds by its fingerprint.
    fn connected(&mut self) -> anyhow::Result<()> {
        let ssl = self.stream.ssl();
        let certificate = ssl.peer_certificate().context("no certificate")?;
        let bits = certificate.public_key()?.security_bits();
        ensure!(bits >= SECURITY_BITS, "a key of {bits} bits of security: {SECURITY_BITS} are asked for");
        let profile = match ssl.selected_srtp_profile().context("no profile of SRTP in common")?.id() {
            SrtpProfileId::SRTP_AEAD_AES_256_GCM => SrtpProfile::AEAD_AES_256_GCM,
            SrtpProfileId::SRTP_AEAD_AES_128_GCM => SrtpProfile::AEAD_AES_128_GCM,
            SrtpProfileId::SRTP_AES128_CM_SHA1_80 => SrtpProfile::AES128_CM_SHA1_80,
            other => bail!("a profile of SRTP that was not offered: {other:?}"),
        };
        let mut keys = vec![0; profile.keying_material_len()];
        ssl.export_keying_material(&mut keys, "EXTRACTOR-dtls_srtp", None)?;
        self.events.extend([
            Event::Certificate(certificate.to_der()?),
            Event::Keys(KeyingMaterial::new(&keys), profile),
            Event::Connected,
        ]);
        self.stage = Stage::Connected;
        Ok(())
    }

    fn going(&self) -> &VecDeque<Vec<u8>> {
        &self.stream.get_ref().going
    }
}

impl DtlsInstance for Engine {
    fn set_active(&mut self, active: bool) {
        self.active = active;
    }

    fn is_active(&self) -> bool {
        self.active
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        if matches!(self.stage, Stage::Idle | Stage::Handshake | Stage::Connected) {
            self.stream.get_mut().came.extend_from_slice(packet);
            self.advance();
        }
        Ok(())
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.now = now;
        match self.stage {
            Stage::Handshake => self.advance(),
            Stage::Failed if self.going().is_empty() => return Err(DtlsImplError::ConnectionClosed),
            _ => {}
        }
        Ok(())
    }

    fn poll_output<'a>(&mut self, buffer: &'a mut [u8]) -> DtlsOutput<'a> {
        if let Some(datagram) = self.stream.get_mut().going.pop_front() {
            return put(buffer, &datagram, DtlsOutput::Packet);
        }
        match self.events.pop_front() {
            Some(Event::Certificate(der)) => return put(buffer, &der, DtlsOutput::PeerCert),
            Some(Event::Keys(keys, profile)) => return DtlsOutput::KeyingMaterial(keys, profile),
            Some(Event::Connected) => return DtlsOutput::Connected,
            Some(Event::Left) => return DtlsOutput::CloseNotify,
            None => {}
        }
        DtlsOutput::Timeout(match self.stage {
            Stage::Handshake => self.now + TICK,
            Stage::Failed => self.now,
            _ => self.now + IDLE,
        })
    }

    fn send_application_data(&mut self, _: &[u8]) -> Result<usize, DtlsImplError> {
        Ok(0)
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        matches!(self.stage, Stage::Connected | Stage::Left).then_some(ProtocolVersion::DTLS1_2)
    }

    fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Left | Stage::Closed)
    }

    fn is_closed(&self) -> bool {
        self.stage == Stage::Closed && self.going().is_empty()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        let stage = mem::replace(&mut self.stage, Stage::Closed);
        if matches!(stage, Stage::Connected | Stage::Left)
            && let Err(error) = self.stream.shutdown()
        {
            debug!(%error, "no goodbye");
        }
        Ok(())
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({:?})", self.stage)
    }
}

fn put<'a>(buffer: &'a mut [u8], bytes: &[u8], output: fn(&'a [u8]) -> DtlsOutput<'a>) -> DtlsOutput<'a> {
    match buffer.get_mut(..bytes.len()) {
        Some(place) => {
            place.copy_from_slice(bytes);
            output(place)
        }
        None => DtlsOutput::BufferTooSmall { needed: bytes.len() },
    }
}

/// The network as OpenSSL sees it: one read is one datagram, and so is one write.
#[derive(Debug, Default)]
struct Wire {
    came: Vec<u8>,
    going: VecDeque<Vec<u8>>,
}

/// Datagrams that wait to be sent. A flight is four; what is beyond is dropped, as a network would.
const GOING_MAX: usize = 64;

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.came.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = self.came.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.came[..length]);
        self.came.clear();
        Ok(length)
    }
}

impl Write for Wire {
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        if self.going.len() < GOING_MAX {
            self.going.push_back(datagram.to_vec());
        }
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a peer's key must be worth: RSA of 2048 bits, or any elliptic curve in use.
const SECURITY_BITS: u32 = 112;

/// What all sessions of a certificate share. All sessions of a server have one, so the last one is kept.
fn context(certificate: &DtlsCert) -> Result<SslContext, ErrorStack> {
    static LAST: Mutex<Option<(Vec<u8>, SslContext)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, context)) = last.as_ref().filter(|(of, _)| *of == certificate.certificate) {
        return Ok(context.clone());
    }
    let key = PKey::private_key_from_der(&certificate.private_key)?;
    let own = X509::from_der(&certificate.certificate)?;
    let mut builder = SslContext::builder(SslMethod::dtls())?;
    builder.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    builder.set_max_proto_version(Some(SslVersion::DTLS1_2))?;
    builder.set_cipher_list("ECDHE+AESGCM:ECDHE+CHACHA20")?;
    builder.set_security_level(2);
    // What str0m's own engine prefers. The name of the last is OpenSSL's.
    builder.set_tlsext_use_srtp("SRTP_AEAD_AES_256_GCM:SRTP_AEAD_AES_128_GCM:SRTP_AES128_CM_SHA1_80")?;
    builder.set_private_key(&key)?;
    builder.set_certificate(&own)?;
    // Nobody signs a certificate of WebRTC but its owner (RFC 8827 §6.5).
    builder.set_verify_callback(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT, |_, _| true);
    // Sessions are not resumed.
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_options(SslOptions::NO_TICKET | SslOptions::NO_RENEGOTIATION | SslOptions::NO_QUERY_MTU);
    builder.set_mode(SslMode::RELEASE_BUFFERS);
    let context = builder.build();
    *last = Some((certificate.certificate.clone(), context.clone()));
    Ok(context)
}
