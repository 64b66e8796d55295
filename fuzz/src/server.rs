//! What must hold for what callers and players write into addresses, on any bytes at all.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use bywash::api::params::Query;
use bywash::config::{App, PublishAuth};
use bywash::secret::Secret;
use bywash::token::{self, Params, Purpose};
use bywash::vendor::Target;
use bywash::webrtc::offer::{self, Fragment, Offer};
use bywash::webrtc::{certificate, demux, dtls, framing};
use bywash_media::Codec;
use bywash_media::codec::{self, nal};
use str0m::change::SdpAnswer;
use str0m::config::{DtlsCert, DtlsVersion};
use str0m::crypto::dtls::{DtlsInstance, DtlsOutput};
use str0m::media::{Direction, MediaKind, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::rtp::{RtpWrite, SeqNo};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

/// A token's parameters: nobody gets in without the key.
pub fn token(data: &[u8]) {
    let query = String::from_utf8_lossy(data);
    let app = App {
        id: 1,
        publish_auth: PublishAuth::Token,
        publish_key: Secret::new("0123456789abcdef0123456789abcdef"),
        play_key: Secret::new("fedcba9876543210fedcba9876543210"),
        ..App::default()
    };
    for purpose in [Purpose::Publish, Purpose::Play] {
        assert!(token::verify(&app, "s", &Params::parse(&query), purpose, 1_700_000_000).is_err(), "{query}");
    }
}

/// An API call's query, and a target's address.
pub fn query(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut query = Query::parse(&text);
    if let Ok(serde_json::Value::Object(body)) = serde_json::from_str(&text) {
        query.overlay(body);
    }
    let once = query.canonical();
    assert_eq!(once, query.canonical());
    if let Ok(target) = Target::parse(&text) {
        assert!(!target.masked().contains('?') || target.masked().ends_with("?***"), "{}", target.masked());
        assert_eq!(Target::parse(&target.address()).map(|again| again.address()), Ok(target.address()));
    }
}

/// A WHIP or WHEP offer, up to the engine's answer; and a fragment.
pub fn sdp(data: &[u8]) {
    for purpose in [Purpose::Publish, Purpose::Play] {
        let Ok(offer) = Offer::parse(data, purpose) else { continue };
        let mut rtc = offer::config(&offer, certificate().clone(), JITTER_BUFFER).build(Instant::now());
        if let Ok(answer) = offer::accept(&mut rtc, &offer) {
            assert!(offer::fragment(&answer).matches("m=").count() <= 1, "{answer}");
        }
    }
    let _ = Fragment::parse(data);
}

/// What comes to the port of WebRTC: a datagram of anybody, or framed ones over TCP.
pub fn datagram(data: &[u8]) {
    if let Some(user) = demux::user(data) {
        assert!(user.len() < data.len());
    }
    let mut input = BytesMut::from(data);
    while let Ok(Some(datagram)) = framing::take(&mut input) {
        assert!(datagram.len() <= framing::DATAGRAM_MAX);
    }
}

/// What comes as DTLS before, within and after a handshake: noise, and a client's own datagrams changed. Once the handshake is done, no
/// stranger ends the session, and the client's goodbye does.
pub fn dtls(data: &[u8]) {
    let Some((&genuine, mut rest)) = data.split_first() else { return };
    let certificate = certificate();
    let end = |active| {
        let provider = dtls::provider().dtls_provider;
        let mut end = provider.new_dtls(certificate, Instant::now(), DtlsVersion::Dtls12, None).expect("an engine");
        end.set_active(active);
        end
    };
    let (mut client, mut server) = (end(true), end(false));
    client.handle_packet(&[]).expect("it begins");
    let (mut sent, mut stands) = (dtls_outputs(&mut *client).0, false);
    for _ in 0..genuine % 4 {
        for datagram in std::mem::take(&mut sent) {
            server.handle_packet(&datagram).expect("it is as it should be");
        }
        let (answers, told) = dtls_outputs(&mut *server);
        stands |= told.contains(&"connected");
        for datagram in answers {
            client.handle_packet(&datagram).expect("it is as it should be");
        }
        sent.extend(dtls_outputs(&mut *client).0);
    }
    while let Some((&[kind, length], tail)) = rest.split_first_chunk::<2>() {
        let (noise, tail) = tail.split_at(tail.len().min(usize::from(length)));
        rest = tail;
        let mut datagram = match kind & 0x40 {
            0 => noise.to_vec(),
            // A record of any type, of the first epoch or the second.
            _ => [&[20 | kind & 7, 0xfe, 0xfd, 0, kind >> 3 & 1, 0, 0, 0, 0, 0, length, 0, noise.len() as u8], noise]
                .concat(),
        };
        if let Some(genuine) = sent.first().filter(|_| kind & 0x80 != 0) {
            datagram.clone_from(genuine);
            datagram.iter_mut().skip(usize::from(kind & 0x7f) * 4).zip(noise).for_each(|(byte, noise)| *byte ^= noise);
        }
        let _ = server.handle_packet(&datagram);
        let (answers, told) = dtls_outputs(&mut *server);
        // What was not changed after all is the client's own.
        stands |= told.contains(&"connected");
        assert!(answers.len() <= 64 && !told.contains(&"left"), "a stranger is answered {told:?}");
        for datagram in answers {
            let _ = client.handle_packet(&datagram);
        }
        let _ = server.handle_timeout(Instant::now());
    }
    if stands {
        client.close().expect("it was connected");
        for datagram in dtls_outputs(&mut *client).0 {
            server.handle_packet(&datagram).expect("it is as it should be");
        }
        assert_eq!(dtls_outputs(&mut *server).1, ["left"], "the session stood to its end");
    }
}

fn certificate() -> &'static DtlsCert {
    static CERTIFICATE: OnceLock<DtlsCert> = OnceLock::new();
    CERTIFICATE.get_or_init(|| certificate::make().expect("the provider makes certificates"))
}

fn dtls_outputs(engine: &mut dyn DtlsInstance) -> (Vec<Vec<u8>>, Vec<&'static str>) {
    let (mut sent, mut told, mut buffer) = (Vec::new(), Vec::new(), [0; 2000]);
    loop {
        match engine.poll_output(&mut buffer) {
            DtlsOutput::Packet(datagram) => sent.push(datagram.to_vec()),
            DtlsOutput::Connected => told.push("connected"),
            DtlsOutput::CloseNotify => told.push("left"),
            DtlsOutput::Timeout(_) => return (sent, told),
            _ => {}
        }
    }
}

/// What a publisher sends once it is connected: RTP of any payload type with any payload, in any order, and datagrams that are nothing.
/// Access units that come out are read as ingest reads them.
pub fn rtp(data: &[u8]) {
    thread_local! {
        static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
    }
    PAIR.with_borrow_mut(|pair| pair.get_or_insert_with(Pair::connect).take(data));
}

/// A publisher, and the engine as WHIP sets it up, connected without a network. The session goes on from one input to the next.
struct Pair {
    ours: Rtc,
    theirs: Rtc,
    now: Instant,
    /// What the publisher may send: a section, its stream's next sequence number, and a payload type.
    types: Vec<(Mid, Pt)>,
    sequence: u64,
}

/// How long sound waits for a late packet.
const JITTER_BUFFER: Duration = Duration::from_millis(100);

const OURS: &str = "127.0.0.1:2";
const THEIRS: &str = "127.0.0.1:1";

impl Pair {
    fn connect() -> Pair {
        let now = Instant::now();
        let config = RtcConfig::new().set_rtp_mode(true).clear_codecs().enable_opus(true, true);
        let mut theirs = config.enable_h264(true).enable_h265(true).enable_av1(true).build(now);
        let host = |address: &str| Candidate::host(address.parse().expect("an address"), "udp").expect("a candidate");
        theirs.add_local_candidate(host(THEIRS));
        let mut api = theirs.sdp_api();
        let mids =
            [MediaKind::Audio, MediaKind::Video].map(|kind| api.add_media(kind, Direction::SendOnly, None, None, None));
        let (text, pending) = api.apply().expect("there are changes");
        let offered = Offer::parse(text.to_sdp_string().as_bytes(), Purpose::Publish).expect("an offer like others");
        let mut ours = offer::config(&offered, certificate().clone(), JITTER_BUFFER).build(now);
        ours.add_local_candidate(host(OURS));
        let answer = offer::accept(&mut ours, &offered).expect("it is taken");
        let answer = SdpAnswer::from_sdp_string(&answer).expect("an answer");
        theirs.sdp_api().accept_answer(pending, answer).expect("it is taken");
        let mut pair = Pair { ours, theirs, now, types: Vec::new(), sequence: 1 };
        while !(pair.ours.is_connected() && pair.theirs.is_connected()) {
            pair.exchange(Duration::from_millis(20));
        }
        for mid in mids {
            let params = pair.theirs.media(mid).expect("a section").remote_pts().to_vec();
            pair.types.extend(params.into_iter().map(|pt| (mid, pt)));
        }
        pair
    }

    fn take(&mut self, mut data: &[u8]) {
        while let Some((&[control, length, ..], rest)) = data.first_chunk::<2>().map(|head| (head, &data[2..])) {
            let (payload, rest) = rest.split_at(rest.len().min(usize::from(length) * 5));
            data = rest;
            if control & 0x80 != 0 {
                receive(&mut self.ours, self.now, THEIRS, OURS, payload);
                continue;
            }
            let (mid, pt) = self.types[usize::from(control & 0x0f) % self.types.len()];
            let (marker, gap) = (control & 0x10 != 0, u64::from(control >> 5 & 3));
            self.sequence += gap;
            let time = (self.sequence / 4 * 3000) as u32;
            let write = RtpWrite::new(pt, SeqNo::from(self.sequence), time, self.now, payload.to_vec()).marker(marker);
            if let Some(stream) = self.theirs.direct_api().stream_tx_by_mid(mid, None) {
                stream.write_rtp(write);
            }
            self.exchange(Duration::from_millis(5));
        }
        self.exchange(Duration::from_millis(200));
    }

    /// Carries what either has to say to the other, `later`.
    fn exchange(&mut self, later: Duration) {
        self.now += later;
        let _ = self.theirs.handle_input(Input::Timeout(self.now));
        let _ = self.ours.handle_input(Input::Timeout(self.now));
        for _ in 0..100 {
            let (sent, _) = outputs(&mut self.theirs);
            let (answered, events) = outputs(&mut self.ours);
            events.iter().for_each(access_unit);
            if sent.is_empty() && answered.is_empty() {
                break;
            }
            sent.iter().for_each(|it| receive(&mut self.ours, self.now, THEIRS, OURS, it));
            answered.iter().for_each(|it| receive(&mut self.theirs, self.now, OURS, THEIRS, it));
        }
    }
}

fn outputs(rtc: &mut Rtc) -> (Vec<Vec<u8>>, Vec<Event>) {
    let (mut sent, mut events) = (Vec::new(), Vec::new());
    while let Ok(output) = rtc.poll_output() {
        match output {
            Output::Transmit(it) => sent.push(it.contents.to_vec()),
            Output::Event(event) => events.push(event),
            Output::Timeout(_) => break,
        }
    }
    (sent, events)
}

fn receive(rtc: &mut Rtc, now: Instant, from: &str, to: &str, datagram: &[u8]) {
    let address = |text: &str| text.parse().expect("an address");
    if let Ok(receive) = Receive::new(Protocol::Udp, address(from), address(to), datagram) {
        let _ = rtc.handle_input(Input::Receive(now, receive));
    }
}

fn access_unit(event: &Event) {
    let Event::MediaData(data) = event else { return };
    let codec = match data.params.spec().codec {
        str0m::format::Codec::H264 => Codec::H264,
        str0m::format::Codec::H265 => Codec::H265,
        str0m::format::Codec::Av1 => Codec::Av1,
        _ => return,
    };
    let unit = if codec == Codec::Av1 { data.data.to_vec().into() } else { nal::from_annex_b(&data.data) };
    if codec::is_key(codec, &unit) {
        assert!(codec::is_picture(codec, &unit), "a key frame without a picture");
    }
    if codec == Codec::Av1 {
        let _ = codec::av1::record(&unit).map(|record| codec::track(codec, record));
    } else {
        let mut sets = nal::Sets::new(codec);
        nal::nals(&unit, 4).for_each(|unit| {
            sets.absorb(unit);
        });
        let _ = sets.record().map(|record| codec::track(codec, record));
    }
}
