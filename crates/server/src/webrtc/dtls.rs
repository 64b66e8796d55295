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

use crate::sys;

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
        let mtu = mtu.unwrap_or(DATAGRAM_MTU_TARGET);
        match context(certificate).and_then(|context| Engine::new(&context, now, mtu)) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) => Err(CryptoError::Other(error.to_string())),
        }
    }
}

/// One end of a DTLS association.
struct Engine {
    stream: SslStream<Wire>,
    active: bool,
    stage: Stage,
    /// Bytes that came before the handshake was done.
    heard: usize,
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

/// How late a flight that was lost may be sent again, at the most. OpenSSL looks at its own timers whenever it is asked to go on with
/// the handshake.
const TICK: Duration = Duration::from_millis(100);

/// What may come before the handshake is done. One takes 4 KiB, and each lost flight some more; OpenSSL alone would keep a megabyte of
/// fragments that nothing follows.
const HANDSHAKE_MAX: usize = 64 << 10;

/// How long to wait where there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);

impl Engine {
    fn new(context: &SslContext, now: Instant, mtu: usize) -> Result<Engine, ErrorStack> {
        let mut ssl = Ssl::new(context)?;
        ssl.set_mtu(mtu as u32)?;
        sys::hurry_dtls(&mut ssl);
        let stream = SslStream::new(ssl, Wire::default())?;
        Ok(Engine { stream, active: false, stage: Stage::Idle, heard: 0, events: VecDeque::new(), now })
    }

    /// Lets OpenSSL read what came, and do what is due.
    fn advance(&mut self) {
        // An error that is left on this thread, of whatever session, would be taken for one of the next call (SSL_get_error(3)).
        drop(ErrorStack::get());
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
            self.heard += self.stream.get_ref().came.len();
            ensure!(self.heard <= HANDSHAKE_MAX, "a handshake of more than {HANDSHAKE_MAX} bytes");
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
            if is_bearable(packet) {
                self.stream.get_mut().came.extend_from_slice(packet);
            }
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

/// Whether OpenSSL may see a datagram. It drops forged records (RFC 6347 §4.1.2.7), but one that is shorter than any it could
/// decrypt ends the session, and anybody who knows the addresses can send that.
fn is_bearable(mut datagram: &[u8]) -> bool {
    while let Some((head, rest)) = datagram.split_first_chunk::<13>() {
        let length = usize::from(u16::from_be_bytes([head[11], head[12]]));
        if head[3..5] != [0, 0] && length < PROTECTED_MIN {
            return false;
        }
        datagram = rest.get(length..).unwrap_or_default();
    }
    true
}

/// A record of AES-GCM (RFC 5288 §3): a nonce of 8 bytes and a tag of 16 at least.
const PROTECTED_MIN: usize = 24;

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
    builder.set_cipher_list("ECDHE+AESGCM")?;
    builder.set_security_level(2);
    // The curves of certificates too. FFmpeg's with GnuTLS is the last, which OpenSSL does not take by itself.
    builder.set_groups_list("X25519:P-256:P-384:P-521:P-224")?;
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::thread;

    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::Private;
    use openssl::rsa::Rsa;

    use super::*;

    /// A certificate of `key`, as GStreamer makes one.
    fn certificate(key: &PKey<Private>) -> DtlsCert {
        let mut builder = X509::builder().unwrap();
        builder.set_pubkey(key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.sign(key, MessageDigest::sha256()).unwrap();
        DtlsCert { certificate: builder.build().to_der().unwrap(), private_key: key.private_key_to_der().unwrap() }
    }

    fn rsa(bits: u32) -> PKey<Private> {
        PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap()
    }

    fn ec() -> PKey<Private> {
        on_curve(Nid::X9_62_PRIME256V1)
    }

    fn on_curve(curve: Nid) -> PKey<Private> {
        PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()).unwrap()
    }

    /// One end and what it has told.
    struct End {
        engine: Box<dyn DtlsInstance>,
        certificate: Vec<u8>,
        keys: Vec<u8>,
        profile: Option<SrtpProfile>,
        connected: bool,
        left: bool,
        failed: bool,
    }

    impl End {
        fn new(mut engine: Box<dyn DtlsInstance>, active: bool) -> End {
            engine.set_active(active);
            engine.handle_timeout(Instant::now()).unwrap();
            if active {
                engine.handle_packet(&[]).unwrap();
            }
            let (certificate, keys) = (Vec::new(), Vec::new());
            End { engine, certificate, keys, profile: None, connected: false, left: false, failed: false }
        }

        fn of(by: &dyn DtlsProvider, certificate: &DtlsCert, active: bool) -> End {
            let engine = by.new_dtls(certificate, Instant::now(), DtlsVersion::Dtls12, Some(MTU)).unwrap();
            End::new(engine, active)
        }

        /// Takes note of what it tells; says what it sends, and when it wants to be woken.
        fn outputs(&mut self) -> (Vec<Vec<u8>>, Instant) {
            let (mut sent, mut buffer) = (Vec::new(), [0; 2000]);
            loop {
                match self.engine.poll_output(&mut buffer) {
                    DtlsOutput::Packet(datagram) => sent.push(datagram.to_vec()),
                    DtlsOutput::PeerCert(der) => self.certificate = der.to_vec(),
                    DtlsOutput::KeyingMaterial(keys, profile) => {
                        (self.keys, self.profile) = (keys.to_vec(), Some(profile));
                    }
                    DtlsOutput::Connected => self.connected = true,
                    DtlsOutput::CloseNotify => self.left = true,
                    DtlsOutput::Timeout(at) => return (sent, at),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    const MTU: usize = 1150;

    /// Carries datagrams between the `ends`, as `network` lets them through, until both are `done`. OpenSSL's clock is the real one.
    #[track_caller]
    fn carry(
        ends: &mut [End; 2],
        mut network: impl FnMut(usize, Vec<u8>) -> Vec<Vec<u8>>,
        done: impl Fn(&[End; 2]) -> bool,
    ) {
        let begin = Instant::now();
        loop {
            let (mut wake, mut quiet) = (Instant::now() + IDLE, true);
            for from in 0..2 {
                let (sent, at) = ends[from].outputs();
                wake = wake.min(at);
                for datagram in sent.into_iter().flat_map(|datagram| network(from, datagram)) {
                    quiet = false;
                    ends[1 - from].engine.handle_packet(&datagram).unwrap();
                }
            }
            if done(ends) {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?} {:?}", ends[0].engine, ends[1].engine);
            if quiet {
                thread::sleep(wake.saturating_duration_since(Instant::now()));
                for end in &mut *ends {
                    end.failed |= end.engine.handle_timeout(Instant::now()).is_err();
                }
            }
        }
    }

    fn connected(ends: &[End; 2]) -> bool {
        ends.iter().all(|end| end.connected)
    }

    #[test]
    fn both_ends_have_the_same_keys_whoever_calls_and_whatever_the_certificate() {
        let (ours, theirs) = (provider().dtls_provider, from_feature_flags().dtls_provider);
        let (ec, rsa, large) = (certificate(&ec()), certificate(&rsa(2048)), certificate(&rsa(4096)));
        let small = certificate(&on_curve(Nid::SECP224R1));
        for (what, active, passive) in [
            ("ECDSA", (ours, &ec), (ours, &ec)),
            ("GStreamer: RSA", (ours, &rsa), (ours, &ec)),
            ("RSA in many datagrams", (ours, &large), (ours, &ec)),
            ("another engine as a client", (theirs, &ec), (ours, &ec)),
            ("another engine as a server", (ours, &ec), (theirs, &ec)),
            ("a server with RSA", (ours, &ec), (ours, &rsa)),
            ("FFmpeg with GnuTLS: P-224", (ours, &ec), (ours, &small)),
            ("the same as a client", (ours, &small), (ours, &ec)),
        ] {
            let mut ends = [End::of(active.0, active.1, true), End::of(passive.0, passive.1, false)];
            let sent = [Cell::new(0), Cell::new(0)];
            let mut network = |from: usize, datagram: Vec<u8>| {
                assert!(datagram.len() <= MTU, "{what}: {} bytes", datagram.len());
                sent[from].update(|sent| sent + 1);
                vec![datagram]
            };
            carry(&mut ends, &mut network, connected);
            let [client, server] = &mut ends;
            assert_eq!((&client.keys, client.profile), (&server.keys, server.profile), "{what}");
            assert_eq!(client.profile, Some(SrtpProfile::AEAD_AES_256_GCM), "{what}");
            assert_eq!(client.keys.len(), 88, "{what}");
            assert_eq!((&client.certificate, &server.certificate), (&passive.1.certificate, &active.1.certificate));
            assert_eq!(server.engine.protocol_version(), Some(ProtocolVersion::DTLS1_2));
            assert!(server.outputs().1 > Instant::now() + Duration::from_secs(60), "nothing is waited for");

            let before = sent.clone().map(Cell::into_inner);
            client.engine.close().unwrap();
            carry(&mut ends, &mut network, |ends| ends[1].left);
            ends[1].engine.close().unwrap();
            carry(&mut ends, &mut network, |ends| ends.iter().all(|end| end.engine.is_closed()));
            assert_eq!(sent.map(Cell::into_inner), before.map(|sent| sent + 1), "{what}: each says goodbye once");
        }
    }

    #[test]
    fn a_datagram_that_is_lost_is_sent_again() {
        let (ours, certificate) = (provider().dtls_provider, certificate(&rsa(2048)));
        // Loses the `lost`th datagram; says how many there were.
        let run = |lost: usize| {
            let mut ends = [End::of(ours, &certificate, true), End::of(ours, &certificate, false)];
            let mut count = 0;
            let network = |_, datagram| {
                count += 1;
                if count - 1 == lost { vec![] } else { vec![datagram] }
            };
            carry(&mut ends, network, connected);
            assert_eq!(ends[0].keys, ends[1].keys);
            count
        };
        let all = run(usize::MAX);
        assert!(all >= 4, "two flights each: {all}");
        thread::scope(|scope| (0..all).for_each(|lost| drop(scope.spawn(move || assert!(run(lost) > all)))));
    }

    #[test]
    fn a_lost_flight_is_sent_again_soon() {
        let (ours, certificate) = (provider().dtls_provider, certificate(&ec()));
        let [mut client, mut server] = [true, false].map(|active| End::of(ours, &certificate, active));
        for datagram in client.outputs().0 {
            server.engine.handle_packet(&datagram).unwrap();
        }
        assert!(!server.outputs().0.is_empty());
        for end in [&mut client, &mut server] {
            thread::sleep(Duration::from_millis(300));
            end.engine.handle_timeout(Instant::now()).unwrap();
            assert!(!end.outputs().0.is_empty(), "{:?}", end.engine);
        }
    }

    #[test]
    fn datagrams_may_come_twice_and_out_of_order() {
        let (ours, certificate) = (provider().dtls_provider, certificate(&rsa(2048)));
        let mut ends = [End::of(ours, &certificate, true), End::of(ours, &certificate, false)];
        let mut held: [Option<Vec<u8>>; 2] = [None, None];
        let swap = |from: usize, datagram: Vec<u8>| match held[from].take() {
            Some(before) => vec![datagram.clone(), datagram, before],
            None => {
                held[from] = Some(datagram);
                vec![]
            }
        };
        carry(&mut ends, swap, connected);
        assert_eq!(ends[0].keys, ends[1].keys);
    }

    #[test]
    fn a_hello_in_two_pieces_is_put_together() {
        let (ours, certificate) = (provider().dtls_provider, certificate(&ec()));
        let mut ends = [End::of(ours, &certificate, true), End::of(ours, &certificate, false)];
        let mut first = true;
        let split = |_, datagram: Vec<u8>| match std::mem::take(&mut first) {
            true => halves(&datagram).into(),
            false => vec![datagram],
        };
        carry(&mut ends, split, connected);
    }

    /// The one handshake message of a datagram, in two fragments (RFC 6347 §4.2.3).
    fn halves(datagram: &[u8]) -> [Vec<u8>; 2] {
        let (record, rest) = datagram.split_at(13);
        let (message, body) = rest.split_at(12);
        let middle = body.len() / 2;
        [(0, &body[..middle]), (middle, &body[middle..])].map(|(offset, piece)| {
            let number = |n: usize| [(n >> 16) as u8, (n >> 8) as u8, n as u8];
            // The record's number is that of none that follows.
            let mut record =
                [&record[..10], &[if offset == 0 { 0 } else { 40 }], &number(12 + piece.len())[1..]].concat();
            record.extend_from_slice(&message[..6]);
            [&record[..], &number(offset), &number(piece.len()), piece].concat()
        })
    }

    #[test]
    fn a_forged_record_ends_no_session_that_stands() {
        let (ours, certificate) = (provider().dtls_provider, certificate(&ec()));
        let mut ends = [End::of(ours, &certificate, true), End::of(ours, &certificate, false)];
        carry(&mut ends, |_, datagram| vec![datagram], connected);
        for kind in [20, 21, 22, 23, 24] {
            for epoch in [0, 1, 2] {
                for number in [0, 1, 2, 9] {
                    for body in [&[][..], &[2, 40], &[1; 24], &[9; 100]] {
                        let head = [kind, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 0, number, 0, body.len() as u8];
                        ends[1].engine.handle_packet(&[&head, body].concat()).unwrap();
                        ends[1].engine.handle_timeout(Instant::now()).unwrap();
                    }
                }
            }
        }
        ends[0].engine.close().unwrap();
        carry(&mut ends, |_, datagram| vec![datagram], |ends| ends[1].left);
    }

    #[test]
    fn a_handshake_without_end_is_ended() {
        let mut server = End::of(provider().dtls_provider, &certificate(&ec()), false);
        let fed = (0..1000).take_while(|_| {
            server.engine.handle_packet(&[22; MTU]).unwrap();
            assert!(server.outputs().0.is_empty());
            server.engine.handle_timeout(Instant::now()).is_ok()
        });
        assert_eq!(fed.count(), HANDSHAKE_MAX / MTU);
    }

    #[test]
    fn a_peer_without_a_good_certificate_or_srtp_is_refused() {
        let certificate = certificate(&ec());
        // A client that is set up as no context of ours is.
        let client = |key: Option<PKey<Private>>, srtp: bool| {
            let mut builder = SslContext::builder(SslMethod::dtls()).unwrap();
            builder.set_security_level(0);
            builder.set_verify(SslVerifyMode::NONE);
            if srtp {
                builder.set_tlsext_use_srtp("SRTP_AES128_CM_SHA1_80").unwrap();
            }
            if let Some(key) = key {
                builder
                    .set_certificate(&X509::from_der(&super::tests::certificate(&key).certificate).unwrap())
                    .unwrap();
                builder.set_private_key(&key).unwrap();
            }
            End::new(Box::new(Engine::new(&builder.build(), Instant::now(), MTU).unwrap()), true)
        };
        for (what, client, taken) in [
            ("as it should be", client(Some(rsa(2048)), true), true),
            ("no certificate", client(None, true), false),
            ("a short key", client(Some(rsa(1024)), true), false),
            ("no SRTP", client(Some(rsa(2048)), false), false),
        ] {
            let mut ends = [client, End::of(provider().dtls_provider, &certificate, false)];
            carry(&mut ends, |_, datagram| vec![datagram], |ends| ends[1].connected || ends[1].failed);
            assert_eq!(ends[1].connected, taken, "{what}");
        }
    }
}
