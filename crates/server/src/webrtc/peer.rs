//! One session's engine and the loop's two halves: [`Peer::poll`] drains what it says, [`Peer::turn`] feeds it one thing.
//!
//! Invariant: the engine is given one thing at a time, and drained before the next (str0m's rule).

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bywash_media::StreamKey;
use str0m::media::{KeyframeRequestKind, MediaKind, MediaTime, Mid, Pt, Rid};
use str0m::net::{Protocol, Receive, Transmit};
use str0m::rtp::rtcp::{Nack, Rtcp};
use str0m::rtp::{RawPacket, RtpHeader, Ssrc, StreamPaused};
use str0m::stats::MediaEgressStats;
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcError};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};

use super::demux::{Id, MAIL, Packets, is_stun};
use super::line::Line;
use super::offer::{self, CANDIDATES_MAX, Fragment, Offer, Unfit};
use super::order::Order;
use super::pace::Pace;
use super::place::{Place, Way};
use super::port::{Full, Port};
use super::resend::{self, Sent};
use super::source::{Source, Sources};
use crate::clock;
use crate::lane::{Lane, Ticks};
use crate::token::Purpose;

/// What a session may be told from outside.
pub enum Command {
    /// A PATCH: the fragment, its `If-Match`, and where the answer goes.
    Patch(Fragment, Option<String>, oneshot::Sender<Patched>),
    /// End: as the client wishes if true, else for its successor.
    End(bool),
}

/// What came of a PATCH.
#[derive(Debug)]
pub enum Patched {
    /// The candidates are known.
    Trickled,
    /// ICE begins anew: the fragment for the client, and the session's new tag.
    Restarted(String, String),
    /// It was meant for an earlier ICE session.
    Stale,
    /// It would restart ICE, and does not say which session it means.
    Unconditional,
    /// It cannot be done.
    Unfit(Unfit),
}

/// What a turn brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Whatever it was, [`Peer::poll`] tells.
    Went,
    /// The session is to end; true if the client said so.
    End(bool),
}

/// Why a session does not come to be.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// There are too many.
    #[error(transparent)]
    Full(#[from] Full),
    /// The engine cannot answer.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// A session's engine with its place in the port. Dropping it closes the place.
pub struct Peer {
    rtc: Rtc,
    port: Arc<Port>,
    id: Id,
    offer: Offer,
    /// The client's ICE users before the last restarts.
    former: VecDeque<String>,
    /// What the last restart was answered with.
    restarted: Option<String>,
    mail: mpsc::Receiver<Packets>,
    orders: mpsc::Receiver<Command>,
    /// Packets that came and are still to be fed, the first one last.
    came: Vec<Packets>,
    /// Media that came before the keys to it; `None` once they are there.
    early: Option<Vec<Packets>>,
    sources: Sources,
    /// Packets that tell the engine of a stream, before those that came; the first one last.
    names: Vec<Packets>,
    /// Of which stream the last packet of media was that came, and its number.
    last: Option<(Ssrc, u16)>,
    /// Streams of which lost packets are sent again.
    resent: Vec<(Ssrc, Order<Packets>)>,
    /// The stream whose packets a player takes again as they were, if it does, and where they went last.
    sent: Option<(Ssrc, Sent, Option<Way>)>,
    /// Pictures that wait for what went before them to find room.
    pace: Pace<(Protocol, Way, Box<[u8]>)>,
    /// A player's stream of sound, which does not wait for pictures.
    sound: Option<(Mid, Ssrc)>,
    /// A player's stream of pictures, and what is known of the line that takes them.
    pictures: Option<(Mid, Line)>,
    burst: Burst,
    /// TCP connections of the client, by its address; the newest last.
    tcp: Vec<(SocketAddr, mpsc::Sender<Bytes>)>,
    /// Where the client is, by UDP.
    place: Place,
    /// How many requests to send again were counted of each of its tracks.
    nacks: Vec<(Mid, Option<Rid>, u64)>,
    /// When media or a report of it last came from the client.
    heard: Instant,
    /// No ICE check has come from the client for as long as the engine waits for one, which is 15 s, or none since ICE began anew.
    unchecked: bool,
    /// Where checks have come from since ICE began, [`CANDIDATES_MAX`] at the most.
    checked: Vec<SocketAddr>,
    /// How many candidates were trickled since then; of those no more either.
    candidates: usize,
    /// Something was written that the engine has still to send.
    wrote: bool,
    due: Instant,
    sweeps: Ticks,
}

/// Datagrams of media that are kept until the keys are there: a second of 5 Mbit/s.
const EARLY_MAX: usize = 512;

/// Streams of one client that are put in order.
const RESENT_MAX: usize = 8;

/// A client of whom nothing came for so long is gone. As long as the engine waits for a check.
const LOST: Duration = Duration::from_secs(15);

/// How many restarts a candidate that was sent before them is still known by.
const FORMER_MAX: usize = 16;

/// Connections that one session may have at once.
const TCP_MAX: usize = 4;

impl Peer {
    /// Answers an offer. The session can be reached from now on; gives its answer and its tag with it.
    pub fn open(
        port: &Arc<Port>,
        key: StreamKey,
        offer: Offer,
        purpose: Purpose,
        lane: &Lane,
    ) -> Result<(Peer, String), NotOpened> {
        let now = Instant::now();
        let mut rtc = offer::config(&offer, port.certificate(), port.jitter_buffer()).build(now);
        for candidate in port.candidates() {
            rtc.add_local_candidate(candidate);
        }
        let answer = offer::accept(&mut rtc, &offer)?;
        let user = rtc.direct_api().local_ice_credentials().ufrag;
        let ((mail_in, mail), (orders_in, orders)) = (mpsc::channel(MAIL), mpsc::channel(8));
        let id = port.open(key, purpose == Purpose::Publish, mail_in, orders_in, user)?;
        let sources = Sources::new(&offer.carried, offer.mid_extension, now);
        let peer = Peer {
            rtc,
            port: port.clone(),
            id,
            offer,
            former: VecDeque::new(),
            restarted: None,
            mail,
            orders,
            came: Vec::new(),
            early: Some(Vec::new()),
            sources,
            names: Vec::new(),
            last: None,
            resent: Vec::new(),
            sent: None,
            pace: Pace::default(),
            sound: None,
            pictures: None,
            burst: Burst::default(),
            tcp: Vec::new(),
            place: Place::default(),
            nacks: Vec::new(),
            heard: now,
            unchecked: false,
            checked: Vec::new(),
            candidates: 0,
            wrote: false,
            due: now,
            sweeps: lane.sweeps(),
        };
        Ok((peer, answer))
    }

    /// The session's name in addresses.
    pub fn id(&self) -> Id {
        self.id
    }

    /// What the client offered.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The tag of its ICE session, for `ETag` and `If-Match`.
    pub fn tag(&mut self) -> String {
        format!("\"{}\"", self.rtc.direct_api().local_ice_credentials().ufrag)
    }

    /// What the engine tells next; `None` once it waits for something. Sends what there is to send.
    pub fn poll(&mut self) -> Result<Option<Event>, RtcError> {
        loop {
            match self.rtc.poll_output()? {
                Output::Transmit(transmit) => self.send(&transmit),
                Output::Event(Event::RawPacket(packet)) => self.note(&packet),
                Output::Event(event) => {
                    self.count(&event);
                    self.heed(&event);
                    return Ok(Some(event));
                }
                Output::Timeout(at) => {
                    self.release(Instant::now());
                    self.burst.flush(&self.port);
                    self.due = at;
                    return Ok(None);
                }
            }
        }
    }

    /// Feeds one packet of those that have come; false if none is left. [`poll`](Self::poll) comes before the next.
    pub fn feed(&mut self) -> Result<bool, RtcError> {
        // What has come waited for a while. In its time the engine would know of no frame yet that was written since, and report to the
        // player a clock at 0.
        if std::mem::take(&mut self.wrote) {
            return self.rtc.handle_input(Input::Timeout(Instant::now())).map(|()| true);
        }
        if let Some(packet) = self.names.pop().or_else(|| self.in_order()) {
            return self.input(&packet).map(|()| true);
        }
        match self.came.pop() {
            Some(packets) => self.receive(packets).map(|()| true),
            None => Ok(false),
        }
    }

    /// The next packet that has waited for one before it, if it may go on.
    fn in_order(&mut self) -> Option<Packets> {
        self.resent.iter_mut().find_map(|(_, order)| order.next(Instant::now()))
    }

    /// Waits for the first of packets, an order and the engine's own time, and feeds it. The engine's time comes at once where it
    /// is due, else with the next packet or sweep: nothing that it waits for is lost by waiting a little longer, and a timer that is
    /// set again for each packet costs more than the packet.
    pub async fn turn(&mut self) -> Result<Turn, RtcError> {
        if self.feed()? {
            return Ok(Turn::Went);
        }
        let (due, paced) = (self.due, self.pace.due());
        tokio::select! { biased;
            1.. = self.mail.recv_many(&mut self.came, MAIL) => {
                self.came.reverse();
                self.feed()?;
            }
            Some(command) = self.orders.recv() => return Ok(self.obey(command)),
            // What waits goes with the next poll.
            () = clock::until(paced) => {}
            () = until(due, &mut self.sweeps) => self.rtc.handle_input(Input::Timeout(Instant::now()))?,
        }
        Ok(Turn::Went)
    }

    /// Asks the sender of `mid` for a keyframe; false if it cannot be asked yet.
    pub fn request_keyframe(&mut self, mid: Mid, rid: Option<Rid>) -> bool {
        let writer = self.rtc.writer(mid);
        writer.is_some_and(|mut writer| writer.request_keyframe(rid, KeyframeRequestKind::Pli).is_ok())
    }

    /// Readies a stream to a player. Its packets may be sent again until those are half of all. The engine's own limit is 15 %, beyond
    /// which it forgets all requests: a way that only reorders makes a player ask for more than that, and what it really lost never comes.
    pub fn play(&mut self, mid: Mid, kind: MediaKind) {
        let mut api = self.rtc.direct_api();
        let Some(stream) = api.stream_tx_by_mid(mid, None) else { return };
        stream.set_rtx_cache(resend::PACKETS, resend::AGE, Some(0.5));
        if self.offer.takes_as_it_was(mid) {
            self.sent.get_or_insert((stream.ssrc(), Sent::default(), None));
        }
        match kind {
            MediaKind::Audio => _ = self.sound.get_or_insert((mid, stream.ssrc())),
            MediaKind::Video => _ = self.pictures.get_or_insert((mid, Line::default())),
        }
    }

    /// Whether the player's line takes a picture of so many bytes; else it is left out.
    pub fn takes(&mut self, key: bool, bytes: usize) -> bool {
        let waiting = self.pace.waiting();
        let takes = self.pictures.as_mut().is_none_or(|(_, line)| line.takes(key, bytes, waiting));
        self.port.counters().left_out.inc_by(u64::from(!takes));
        takes
    }

    /// Takes in what an event tells of the client's presence, and of a new stream of its.
    fn heed(&mut self, event: &Event) {
        match event {
            Event::MediaData(data) => self.heard = self.heard.max(data.network_time),
            Event::SenderFeedback(report) => self.heard = self.heard.max(report.received_at),
            // A player has reported since the last such event.
            Event::MediaEgressStats(stats) if stats.loss.is_some() => {
                self.heard = self.heard.max(stats.timestamp);
                self.learn(stats);
            }
            // Once ICE has begun anew the engine waits for checks without end.
            Event::IceConnectionStateChange(state) => {
                self.unchecked = !matches!(state, IceConnectionState::Connected | IceConnectionState::Completed);
            }
            Event::StreamPaused(stream) => self.ask_for_losses(stream),
            Event::Connected => self.begin(),
            Event::Closed => self.port.closed(self.id),
            _ => {}
        }
    }

    /// Lets the media go on that came before the keys: whoever ends the handshake sends at once, and on some ways that overtakes its end.
    fn begin(&mut self) {
        let mut early = self.early.take().unwrap_or_default();
        let mut firsts: HashMap<Ssrc, u16> = HashMap::new();
        // The last one first, as it is with all that came.
        early.sort_by_cached_key(|packet| {
            let (ssrc, sequence) = rtp(&packet.data)?;
            let first = *firsts.entry(ssrc).or_insert(sequence);
            Some(Reverse((*ssrc, sequence.wrapping_sub(first).wrapping_add(1 << 15))))
        });
        self.came.extend(early);
    }

    /// Whether the client, which was connected, is gone: neither checks nor media nor reports have come for [`LOST`]. Checks alone tell
    /// too little: GStreamer and pion send none while they send media, nor does FFmpeg 8.0, and the engine still answers.
    pub fn is_lost(&self, now: Instant) -> bool {
        self.unchecked && now.saturating_duration_since(self.heard) >= LOST
    }

    /// Lets a new stream wait for what is lost. Asks for that also where it is sent again as it was: left to itself the engine asks only
    /// where RTX (RFC 4588) was offered, which OBS does not.
    fn ask_for_losses(&mut self, stream: &StreamPaused) {
        if !stream.paused
            && self.offer.resends(stream.mid)
            && let Some(known) = self.rtc.direct_api().stream_rx(&stream.ssrc)
        {
            known.suppress_nack(false);
            let ordered = self.resent.iter().any(|(ssrc, _)| *ssrc == stream.ssrc);
            if !ordered && self.resent.len() < RESENT_MAX {
                // A stream may begin by RTX alone: browsers measure the way with it.
                let first = self.last.and_then(|(ssrc, first)| (ssrc == stream.ssrc).then_some(first));
                self.resent.push((stream.ssrc, Order::after(first)));
            }
        }
    }

    /// Sends the first `packets` of what is written next ahead of the others.
    pub fn lead(&mut self, packets: usize) {
        self.pace.lead(packets);
    }

    /// Sends a frame of `mid` as `pt`.
    pub fn write(&mut self, mid: Mid, pt: Pt, at: Instant, time: MediaTime, data: Arc<[u8]>) -> Result<(), RtcError> {
        match self.rtc.writer(mid) {
            Some(writer) => {
                self.wrote = true;
                writer.write(pt, at, time, data)
            }
            None => Ok(()),
        }
    }

    /// The engine.
    pub fn rtc(&mut self) -> &mut Rtc {
        &mut self.rtc
    }

    /// Says goodbye to the client.
    pub fn close(&mut self) {
        let said = self.rtc.close().and_then(|()| {
            for (proto, way, datagram) in std::mem::take(&mut self.pace).rest() {
                self.emit(proto, way, &datagram);
            }
            while self.poll()?.is_some() {}
            Ok(())
        });
        if let Err(error) = said {
            debug!(%error, "no goodbye");
        }
    }

    /// Learns from a player's reports what its line takes.
    fn learn(&mut self, stats: &MediaEgressStats) {
        let Some((pictures, line)) = &mut self.pictures else { return };
        let before = line.rate();
        if stats.mid == *pictures {
            line.report(stats);
        } else if self.sound.is_some_and(|(sound, _)| stats.mid == sound) {
            line.report_sound(stats);
        }
        match (before, line.rate()) {
            (None, Some(rate)) => {
                info!(kbit_s = (rate * 8e-3) as u64, "the player's line is too narrow; pictures are left out");
            }
            (Some(_), None) => info!("the player is sent all pictures again"),
            _ => {}
        }
        self.pace.bind(line.rate(), stats.timestamp);
    }

    fn count(&mut self, event: &Event) {
        let (mid, rid, nacks) = match event {
            Event::MediaIngressStats(stats) => (stats.mid, stats.rid, stats.nacks),
            Event::MediaEgressStats(stats) => (stats.mid, stats.rid, stats.nacks),
            Event::MediaData(data) if !data.contiguous => {
                self.port.counters().gaps.inc();
                return;
            }
            _ => return,
        };
        // The engine tells the sum of the session so far.
        let place = self.nacks.iter().position(|it| (it.0, it.1) == (mid, rid)).unwrap_or_else(|| {
            self.nacks.push((mid, rid, 0));
            self.nacks.len() - 1
        });
        let known = std::mem::replace(&mut self.nacks[place].2, nacks);
        self.port.counters().nacks.inc_by(nacks.saturating_sub(known));
    }

    fn receive(&mut self, mut packets: Packets) -> Result<(), RtcError> {
        let data = packets.data.split_to(packets.stride.min(packets.data.len()));
        let Packets { source, destination, at, stride, .. } = packets;
        let packet = Packets { source, destination, at, stride, data, tcp: packets.tcp.clone() };
        if !packets.data.is_empty() {
            self.came.push(packets);
        }
        let Some((ssrc, sequence)) = rtp(&packet.data) else { return self.input(&packet) };
        if let Some(early) = &mut self.early {
            if early.len() < EARLY_MAX {
                early.push(packet);
            }
            return Ok(());
        }
        match self.sources.take(ssrc, &packet.data, at) {
            Source::Known => {}
            Source::Stray => return Ok(()),
            Source::New(names) => {
                let name = |data| Packets { data, tcp: packet.tcp.clone(), ..packet };
                self.names.extend(names.into_iter().rev().map(name));
                self.came.push(packet);
                return Ok(());
            }
        }
        self.last = Some((ssrc, sequence));
        let packet = match self.resent.iter_mut().find(|(of, _)| *of == ssrc) {
            Some((_, order)) => order.take(sequence, packet, at),
            None => Some(packet),
        };
        packet.map_or(Ok(()), |packet| self.input(&packet))
    }

    /// Heeds what the engine would not.
    fn note(&mut self, packet: &RawPacket) {
        match packet {
            RawPacket::RtpRx(header, payload) => self.fill(header, payload),
            RawPacket::RtcpRx(Rtcp::Nack(nack)) => self.send_again(nack),
            _ => {}
        }
    }

    fn send_again(&mut self, nack: &Nack) {
        let Some((_, sent, Some((from, to)))) = self.sent.as_mut().filter(|it| it.0 == nack.ssrc) else { return };
        for entry in &nack.reports {
            for packet in sent.again(entry.pid, entry.blp) {
                self.burst.send(&self.port, (*from, *to), packet);
            }
        }
    }

    /// Learns from a packet that the engine has decrypted which lost one it is, if it came by RTX: it begins with that one's number (RFC
    /// 4588 §4).
    fn fill(&mut self, header: &RtpHeader, payload: &[u8]) {
        let Some(number) = payload.first_chunk() else { return };
        let mut api = self.rtc.direct_api();
        let mut repairs = |ssrc: &Ssrc| api.stream_rx(ssrc).is_some_and(|stream| stream.rtx() == Some(header.ssrc));
        if let Some((_, order)) = self.resent.iter_mut().find(|(ssrc, _)| repairs(ssrc)) {
            order.fill(u16::from_be_bytes(*number));
        }
    }

    /// Whether the engine may hear a datagram: it keeps each address from which a check comes, and looks through all of them.
    fn admits(&mut self, packet: &Packets) -> bool {
        if !is_stun(&packet.data) || self.checked.contains(&packet.source) {
            return true;
        }
        let room = self.checked.len() < CANDIDATES_MAX;
        if room {
            self.checked.push(packet.source);
        }
        room
    }

    /// Feeds one datagram.
    fn input(&mut self, packet: &Packets) -> Result<(), RtcError> {
        if !self.admits(packet) {
            return Ok(());
        }
        let proto = match &packet.tcp {
            Some(tcp) => {
                self.know_tcp(packet.source, tcp);
                Protocol::Tcp
            }
            None => {
                self.place.comes((packet.destination, packet.source), &packet.data, packet.at);
                Protocol::Udp
            }
        };
        match Receive::new(proto, packet.source, packet.destination, &packet.data) {
            Ok(receive) => self.rtc.handle_input(Input::Receive(packet.at, receive)),
            // Anybody can send anything from a spoofed address.
            Err(_) => Ok(()),
        }
    }

    fn know_tcp(&mut self, source: SocketAddr, tcp: &mpsc::Sender<Bytes>) {
        if self.tcp.iter().any(|(known, sender)| *known == source && sender.same_channel(tcp)) {
            return;
        }
        self.tcp.retain(|(known, sender)| *known != source && !sender.is_closed());
        if self.tcp.len() == TCP_MAX {
            self.tcp.remove(0);
        }
        self.tcp.push((source, tcp.clone()));
    }

    /// Sends what the engine has to send: pictures at a pace, all else at once.
    fn send(&mut self, transmit: &Transmit) {
        let (proto, way, datagram) = (transmit.proto, (transmit.source, transmit.destination), &*transmit.contents);
        let way = if proto == Protocol::Udp { self.place.goes(way, datagram) } else { way };
        let Some((ssrc, sequence)) = rtp(datagram) else { return self.emit(proto, way, datagram) };
        let now = Instant::now();
        if proto == Protocol::Udp {
            self.keep(ssrc, sequence, datagram, way, now);
        }
        if self.sound.is_some_and(|(_, sound)| sound == ssrc) || self.pace.admits(datagram.len(), now) {
            self.emit(proto, way, datagram);
        } else {
            self.pace.keep((proto, way, datagram.into()), datagram.len());
            self.release(now);
        }
    }

    /// Sends what has waited long enough.
    fn release(&mut self, now: Instant) {
        while let Some((proto, way, datagram)) = self.pace.next(now) {
            self.emit(proto, way, &datagram);
        }
    }

    fn emit(&mut self, proto: Protocol, way: Way, datagram: &[u8]) {
        match proto {
            Protocol::Udp => self.burst.send(&self.port, way, datagram),
            _ => {
                // A client that does not read loses packets, as it would on a slow line.
                if let Some((_, tcp)) = self.tcp.iter().rev().find(|(source, _)| *source == way.1) {
                    let _ = tcp.try_send(Bytes::copy_from_slice(datagram));
                }
            }
        }
    }

    /// Keeps a datagram that may have to be sent again.
    fn keep(&mut self, of: Ssrc, sequence: u16, datagram: &[u8], to: Way, at: Instant) {
        if let Some((ssrc, sent, way)) = &mut self.sent
            && *ssrc == of
        {
            sent.keep(sequence, datagram, at);
            *way = Some(to);
        }
    }

    fn obey(&mut self, command: Command) -> Turn {
        match command {
            Command::End(wished) => return Turn::End(wished),
            Command::Patch(fragment, tag, reply) => {
                let _ = reply.send(self.patch(fragment, tag.as_deref()));
            }
        }
        Turn::Went
    }

    fn patch(&mut self, fragment: Fragment, tag: Option<&str>) -> Patched {
        // Candidates need no tag, since their ICE user tells as much. A restart is asked for with `*`, by a client that need not know
        // where ICE stands (RFC 9725 §4.3.3); the tag of the present session will do as well.
        let current = self.tag();
        if tag.is_some_and(|tags| !tags.split(',').map(str::trim).any(|tag| tag == "*" || tag == current)) {
            return Patched::Stale;
        }
        if fragment.creds.ufrag == self.offer.user {
            self.add(fragment.candidates);
            // A restart asked for again: its answer did not arrive.
            return match self.restarted.clone().filter(|_| tag.is_some_and(|tag| tag.trim() == "*")) {
                Some(answer) => Patched::Restarted(answer, current),
                None => Patched::Trickled,
            };
        }
        // A restart has a new user: an old one's candidates are late.
        if self.former.contains(&fragment.creds.ufrag) {
            return Patched::Stale;
        }
        if tag.is_none() {
            return Patched::Unconditional;
        }
        match self.restart(fragment) {
            Ok(answer) => Patched::Restarted(answer, self.tag()),
            Err(unfit) => Patched::Unfit(unfit),
        }
    }

    fn restart(&mut self, fragment: Fragment) -> Result<String, Unfit> {
        let offer = self.offer.restarted(&fragment.creds);
        for candidate in self.port.candidates() {
            self.rtc.add_local_candidate(candidate);
        }
        let answer = offer::accept(&mut self.rtc, &offer)?;
        self.former.truncate(FORMER_MAX - 1);
        self.former.push_front(std::mem::replace(&mut self.offer, offer).user);
        self.port.add_user(self.id, self.rtc.direct_api().local_ice_credentials().ufrag);
        (self.heard, self.candidates) = (Instant::now(), 0);
        self.checked.clear();
        self.add(fragment.candidates);
        let answer = offer::fragment(&answer);
        self.restarted = Some(answer.clone());
        Ok(answer)
    }

    fn add(&mut self, candidates: Vec<Candidate>) {
        let room = CANDIDATES_MAX - self.candidates;
        for candidate in candidates.into_iter().take(room) {
            self.candidates += 1;
            self.rtc.add_remote_candidate(candidate);
        }
    }
}

/// The stream and the sequence number of a datagram, if it is RTP (RFC 3550 §5.1) and not RTCP (RFC 5761 §4), STUN or DTLS.
fn rtp(datagram: &[u8]) -> Option<(Ssrc, u16)> {
    let [first, kind, high, low, _, _, _, _, ssrc @ ..] = datagram else { return None };
    let ssrc = u32::from_be_bytes(*ssrc.first_chunk()?);
    let is_rtp = first >> 6 == 2 && !(192..=223).contains(kind);
    is_rtp.then(|| (ssrc.into(), u16::from_be_bytes([*high, *low])))
}

/// Waits for the first sweep at which it is `due`.
async fn until(due: Instant, sweeps: &mut Ticks) {
    while due > Instant::now() {
        (&mut *sweeps).await;
    }
    // An engine that is always due must not keep the others from their turns.
    tokio::task::consume_budget().await;
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.port.close(self.id);
    }
}

/// Datagrams to one peer that leave in one system call: all of one length but the last (UDP_SEGMENT, udp(7)).
#[derive(Default)]
struct Burst {
    to: Option<Way>,
    stride: usize,
    data: Vec<u8>,
}

impl Burst {
    /// Takes a datagram in, behind those that go another way or have another length.
    fn send(&mut self, port: &Port, to: Way, datagram: &[u8]) {
        if !self.fits(to, datagram) {
            self.flush(port);
        }
        if self.data.is_empty() {
            (self.to, self.stride) = (Some(to), datagram.len());
        }
        self.data.extend_from_slice(datagram);
    }

    fn fits(&self, to: Way, datagram: &[u8]) -> bool {
        let whole = self.data.len().is_multiple_of(self.stride.max(1));
        let room = datagram.len() <= self.stride && self.data.len() < BURST_MAX * self.stride;
        self.data.is_empty() || self.to == Some(to) && whole && room
    }

    fn flush(&mut self, port: &Port) {
        if let Some((from, to)) = self.to.take()
            && !self.data.is_empty()
        {
            port.send(from, to, &self.data, self.stride);
        }
        self.data.clear();
    }
}

/// Datagrams in one system call; the kernel takes 64, and less than 64 KiB.
const BURST_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::BytesMut;
    use str0m::change::SdpAnswer;
    use str0m::media::{Direction, Frequency};
    use str0m::net::TcpType;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UdpSocket};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config;
    use crate::lane::Lanes;
    use crate::webrtc::framing;

    /// The record by which the last flight of a handshake begins (RFC 5246 §6.2.1).
    const CHANGE_CIPHER_SPEC: u8 = 20;

    /// How a client of the tests is connected.
    enum Wire {
        Udp(UdpSocket),
        Tcp(TcpStream, BytesMut),
    }

    impl Wire {
        fn candidate(&self) -> Candidate {
            match self {
                Wire::Udp(socket) => Candidate::host(socket.local_addr().unwrap(), "udp").unwrap(),
                Wire::Tcp(socket, _) => {
                    let builder = Candidate::builder().tcp().host(socket.local_addr().unwrap());
                    builder.tcptype(TcpType::Active).build().unwrap()
                }
            }
        }

        async fn send(&mut self, transmit: &Transmit) {
            match self {
                Wire::Udp(socket) => drop(socket.send_to(&transmit.contents, transmit.destination).await.unwrap()),
                Wire::Tcp(socket, _) => {
                    let framed = [&framing::head(transmit.contents.len()), &transmit.contents[..]].concat();
                    socket.write_all(&framed).await.unwrap();
                }
            }
        }

        async fn receive(&mut self) -> Bytes {
            match self {
                Wire::Udp(socket) => {
                    let mut buffer = [0; 2000];
                    let length = socket.recv(&mut buffer).await.unwrap();
                    Bytes::copy_from_slice(&buffer[..length])
                }
                Wire::Tcp(socket, input) => loop {
                    if let Some(datagram) = framing::take(input).unwrap() {
                        return datagram;
                    }
                    assert!(socket.read_buf(input).await.unwrap() > 0);
                },
            }
        }

        fn proto(&self) -> (Protocol, SocketAddr) {
            match self {
                Wire::Udp(socket) => (Protocol::Udp, socket.local_addr().unwrap()),
                Wire::Tcp(socket, _) => (Protocol::Tcp, socket.local_addr().unwrap()),
            }
        }
    }

    async fn bind(listen: &str) -> (Arc<Port>, PathBuf) {
        let folder = std::env::temp_dir().join(format!("bywash-peer-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&folder).unwrap();
        let config = config::Webrtc { listen: listen.parse().unwrap(), ..config::Config::default().webrtc };
        (Port::bind(&config, &folder).await.unwrap(), folder)
    }

    /// Publishes Opus packets of one byte, 1, 2, 3, to a port that listens on `listen`; says which came, until the client says goodbye.
    /// The first `early` of them overtake the end of the handshake.
    async fn check(listen: &str, connect: &str, tcp: bool, early: u8, want: &[u8]) {
        let (port, folder) = bind(listen).await;
        let server = SocketAddr::new(connect.parse().unwrap(), port.address().port());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(port.clone().serve(stop.clone()));
        let mut wire = match tcp {
            true => Wire::Tcp(TcpStream::connect(server).await.unwrap(), BytesMut::new()),
            false => Wire::Udp(UdpSocket::bind((connect, 0)).await.unwrap()),
        };

        let mut client = Rtc::new(Instant::now());
        client.add_local_candidate(wire.candidate());
        let mut api = client.sdp_api();
        let mid = api.add_media(MediaKind::Audio, Direction::SendOnly, None, None, None);
        let (offer, pending) = api.apply().unwrap();
        let mut offer = offer.to_sdp_string();
        if early > 0 {
            // Who answers a handshake ends it.
            offer = offer.replace("a=setup:actpass", "a=setup:passive");
        }
        let offer = Offer::parse(offer.as_bytes(), Purpose::Publish).unwrap();
        let key = StreamKey::published(1, "show").unwrap();
        let lanes = Lanes::start(1).unwrap();
        let (mut peer, answer) = Peer::open(&port, key, offer, Purpose::Publish, lanes.pick()).unwrap();
        let unwanted = if tcp { " udp " } else { " tcp " };
        let answer: String =
            answer.lines().filter(|it| !it.contains(unwanted)).map(|it| it.to_owned() + "\r\n").collect();
        client.sdp_api().accept_answer(pending, SdpAnswer::from_sdp_string(&answer).unwrap()).unwrap();

        let publisher = async {
            let (mut sent, mut next, mut connected, mut held) = (0u8, Instant::now(), false, Vec::new());
            client.handle_input(Input::Timeout(next)).unwrap();
            loop {
                let due = loop {
                    match client.poll_output().unwrap() {
                        Output::Timeout(at) => break at,
                        Output::Transmit(transmit) if sent < early && transmit.contents[0] == CHANGE_CIPHER_SPEC => {
                            held.push(transmit);
                        }
                        Output::Transmit(transmit) => {
                            wire.send(&transmit).await;
                            for transmit in held.drain(..held.len() * usize::from(sent >= early)) {
                                wire.send(&transmit).await;
                            }
                        }
                        Output::Event(Event::Connected) => connected = true,
                        Output::Event(_) => {}
                    }
                };
                if !client.is_alive() {
                    return;
                }
                let now = Instant::now();
                if connected && now >= next {
                    next = now + Duration::from_millis(20);
                    match usize::from(sent) < want.len() {
                        true => {
                            sent += 1;
                            let writer = client.writer(mid).unwrap();
                            let pt = writer.payload_params().next().unwrap().pt();
                            let time = MediaTime::new(u64::from(sent) * 960, Frequency::FORTY_EIGHT_KHZ);
                            writer.write(pt, now, time, vec![sent]).unwrap();
                        }
                        false => client.close().unwrap(),
                    }
                    continue;
                }
                let due = if connected { due.min(next) } else { due };
                let (proto, destination) = wire.proto();
                tokio::select! {
                    datagram = wire.receive() => {
                        let receive = Receive::new(proto, server, destination, &datagram).unwrap();
                        client.handle_input(Input::Receive(Instant::now(), receive)).unwrap();
                    }
                    () = tokio::time::sleep_until(due.into()) => client.handle_input(Input::Timeout(Instant::now())).unwrap(),
                }
            }
        };
        let taker = async {
            let mut got = Vec::new();
            loop {
                while let Some(event) = peer.poll().unwrap() {
                    match event {
                        Event::MediaData(data) => got.extend_from_slice(&data.data),
                        Event::Closed => return got,
                        _ => {}
                    }
                }
                assert_eq!(peer.turn().await.unwrap(), Turn::Went);
            }
        };
        let both = async { tokio::join!(publisher, taker).1 };
        let got = tokio::time::timeout(Duration::from_secs(20), both).await.expect("the media arrives");
        assert_eq!(got, want, "{listen} {connect} tcp: {tcp}");
        drop(peer);
        stop.cancel();
        serving.await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn media_comes_over_udp_and_tcp_on_one_port_and_both_families() {
        let want: Vec<u8> = (1..=50).collect();
        for (listen, connect, tcp) in [
            ("127.0.0.1:0", "127.0.0.1", false),
            ("127.0.0.1:0", "127.0.0.1", true),
            ("[::1]:0", "::1", false),
            ("[::]:0", "127.0.0.1", false),
            ("[::]:0", "::1", true),
            ("0.0.0.0:0", "127.0.0.1", false),
        ] {
            check(listen, connect, tcp, 0, &want).await;
        }
    }

    #[tokio::test]
    async fn media_that_overtakes_the_end_of_the_handshake_is_not_lost() {
        let want: Vec<u8> = (1..=20).collect();
        check("127.0.0.1:0", "127.0.0.1", false, 5, &want).await;
    }

    /// A session that nobody has connected to.
    async fn open() -> (Peer, StreamKey, Lanes, PathBuf) {
        let (port, folder) = bind("127.0.0.1:0").await;
        let mut client = Rtc::new(Instant::now());
        client.add_local_candidate(Candidate::host("127.0.0.1:9".parse().unwrap(), "udp").unwrap());
        let mut api = client.sdp_api();
        api.add_media(MediaKind::Audio, Direction::SendOnly, None, None, None);
        let offer = api.apply().unwrap().0.to_sdp_string();
        let offer = Offer::parse(offer.as_bytes(), Purpose::Publish).unwrap();
        let (key, lanes) = (StreamKey::published(1, "show").unwrap(), Lanes::start(1).unwrap());
        let (peer, _) = Peer::open(&port, key.clone(), offer, Purpose::Publish, lanes.pick()).unwrap();
        (peer, key, lanes, folder)
    }

    #[tokio::test]
    async fn a_session_hears_checks_of_a_few_addresses_and_a_few_candidates() {
        let (mut peer, _, _lanes, folder) = open().await;
        let packet = |from: u16, first: u8| Packets {
            source: SocketAddr::from(([127, 0, 0, 1], from)),
            destination: SocketAddr::from(([127, 0, 0, 1], 9)),
            at: Instant::now(),
            data: Bytes::from(vec![first; 20]),
            stride: 20,
            tcp: None,
        };
        let heard = (1..=1000).filter(|from| peer.admits(&packet(*from, 0))).count();
        assert_eq!(heard, CANDIDATES_MAX);
        assert!(peer.admits(&packet(1, 1)) && !peer.admits(&packet(1000, 1)));
        assert!(peer.admits(&packet(1000, 0x80)), "media comes from where it comes");

        let user = peer.offer.user.clone();
        let fragment = |user: &str| {
            let candidates = (1..=50).map(|n| format!("a=candidate:{n} 1 udp {n} 127.0.0.1 {n} typ host\r\n"));
            let text = format!("a=ice-ufrag:{user}\r\na=ice-pwd:0123456789abcdef01234567\r\n");
            Fragment::parse((text + &candidates.collect::<String>()).as_bytes()).unwrap()
        };
        for _ in 0..3 {
            assert!(matches!(peer.patch(fragment(&user), None), Patched::Trickled));
        }
        assert_eq!(peer.candidates, CANDIDATES_MAX);
        assert!(matches!(peer.patch(fragment("efgh"), Some("*")), Patched::Restarted(..)));
        assert!(peer.candidates == 50 && peer.admits(&packet(1000, 0)));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn who_ends_a_session_hears_of_it_once_its_place_is_free() {
        let (mut peer, key, _lanes, folder) = open().await;
        let port = peer.port.clone();
        let id = peer.id();
        let asks = async { port.order(id, &key, Command::End(true)).await && !port.knows(id, &key) };
        let session = async {
            loop {
                while peer.poll().unwrap().is_some() {}
                if peer.turn().await.unwrap() == Turn::End(true) {
                    break;
                }
            }
            // What a publisher has to do still.
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(peer);
        };
        assert!(tokio::join!(asks, session).0);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
