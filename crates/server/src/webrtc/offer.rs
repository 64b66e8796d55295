//! Offers and ICE fragments, read from whoever sends them, and the engine's settings that answer them.
//!
//! The engine is never shown the client's own text, but one written anew from what was read of it: in the one form that it takes, with the
//! sections and formats that are carried and no others. Its answer is put back into the form of the offer.
//!
//! Invariant: what is refused is refused with a reason that a person can act on, and what is not refused is taken whole; the work
//! is linear in a text of at most [`TEXT_MAX`] bytes.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use openssl::base64::decode_block;
use str0m::change::SdpOffer;
use str0m::config::DtlsCert;
use str0m::format::{Codec, CodecSpec, FormatParams, PayloadParams};
use str0m::media::{Frequency, Mid};
use str0m::{Candidate, IceCreds, Rtc, RtcConfig};

use super::{dtls, line};
use crate::token::Purpose;

/// The longest offer or fragment, in bytes.
pub const TEXT_MAX: usize = 64 << 10;

const MEDIA_MAX: usize = 16;
/// Candidates of an offer or a fragment.
pub const CANDIDATES_MAX: usize = 64;

/// Why an offer or a fragment is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is no such text.
    #[error("{0}")]
    Malformed(String),
    /// It is good, and of no use here.
    #[error("{0}")]
    Unacceptable(String),
}

fn malformed<T>(why: impl Into<String>) -> Result<T, Unfit> {
    Err(Unfit::Malformed(why.into()))
}

fn unacceptable<T>(why: impl Into<String>) -> Result<T, Unfit> {
    Err(Unfit::Unacceptable(why.into()))
}

/// An offer that can be answered.
#[derive(Clone)]
pub struct Offer {
    /// What the engine is told.
    text: String,
    purpose: Purpose,
    /// How each section is answered.
    replies: Vec<Reply>,
    /// The mids of the bundle that was offered, of those that are taken; the first one's section speaks for all.
    bundle: Vec<String>,
    formats: Vec<Format>,
    /// The client's ICE user.
    pub user: String,
    /// Whether pictures are offered, or asked for.
    pub video: bool,
    /// Likewise sound.
    pub audio: bool,
    /// The sections whose packets the client sends again when it is asked to.
    resent: Vec<Mid>,
    /// Those whose client asks for lost packets, and takes them again as they were alone: without RTX (RFC 4588).
    plain: Vec<Mid>,
    /// What the payload types of a publisher are.
    pub carried: Vec<Carried>,
    /// The header extension that names a section to the engine.
    pub mid_extension: u8,
    /// Parameter sets that come with the offer, of a payload type each.
    pub parameter_sets: Vec<(u8, Vec<Bytes>)>,
}

/// What a payload type of a publisher carries, where no other one has a part of it, as layers of a simulcast have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The payload type.
    pub pt: u8,
    /// The section.
    pub mid: Mid,
    /// Whether it is media, or what repairs that (RFC 4588).
    pub main: bool,
    /// Whether the client names the section in its packets (RFC 8843 §15).
    pub named: bool,
}

impl Offer {
    /// Reads an offer to publish or to play.
    pub fn parse(body: &[u8], purpose: Purpose) -> Result<Offer, Unfit> {
        let text = text(body)?;
        if !text.starts_with("v=0") {
            return malformed("the body is not SDP: it begins with v=0");
        }
        let mut session = sections(text)?;
        session.silence_others(purpose);
        for section in &mut session.sections {
            section.formats = section.formats(purpose)?;
        }
        session.choose(purpose)?;
        let mid_extension = session.mid_extension();
        let text = session.write(purpose, mid_extension)?;
        let creds = creds(&text)?;
        if value(&text, "a=setup:") == Some("holdconn") {
            return unacceptable("the offer's a=setup:holdconn asks for no connection; actpass does");
        }
        let flows = |kind| session.sections.iter().any(|section| section.kind == kind && section.flows(purpose));
        let mut formats: Vec<Format> = session.taken().flat_map(|section| section.formats.iter().copied()).collect();
        formats.sort_by_key(Format::rank);
        let offer = Offer {
            text,
            purpose,
            replies: session.sections.iter().map(|section| section.reply(purpose)).collect(),
            bundle: session.bundle.iter().map(|mid| (*mid).to_owned()).collect(),
            formats,
            user: creds.ufrag,
            video: flows("video"),
            audio: flows("audio"),
            resent: session.taken().filter(|section| section.resends()).map(Section::engine_mid).collect(),
            plain: session.taken().filter(|it| it.resends() && !it.has_rtx()).map(Section::engine_mid).collect(),
            carried: session
                .taken()
                .filter(|it| purpose == Purpose::Publish && it.sends_alone())
                .flat_map(Section::carried)
                .collect(),
            mid_extension,
            parameter_sets: session.taken().flat_map(Section::parameter_sets).collect(),
        };
        offer.sdp()?;
        Ok(offer)
    }

    /// Whether the client sends lost packets of `mid` again: with RTX (RFC 4588) if it offered that, else as they were.
    pub fn resends(&self, mid: Mid) -> bool {
        self.resent.contains(&mid)
    }

    /// Whether a player of `mid` asks for lost packets, and takes them again only as they were.
    pub fn takes_as_it_was(&self, mid: Mid) -> bool {
        self.purpose == Purpose::Play && self.plain.contains(&mid)
    }

    fn sdp(&self) -> Result<SdpOffer, Unfit> {
        SdpOffer::from_sdp_string(&self.text).map_err(|error| {
            // The last line tells what is wrong, those before it where in our memory.
            let error = error.to_string();
            let why = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            Unfit::Malformed(format!("the offer does not parse: {}", why.trim()))
        })
    }

    /// The same offer after an ICE restart: with other credentials, and the old ones' candidates gone.
    pub fn restarted(&self, creds: &IceCreds) -> Offer {
        let lines = self.text.lines().filter(|line| !line.starts_with("a=candidate:"));
        let text = lines.fold(String::new(), |mut text, line| {
            match line {
                line if line.starts_with("a=ice-ufrag:") => text.extend(["a=ice-ufrag:", &creds.ufrag]),
                line if line.starts_with("a=ice-pwd:") => text.extend(["a=ice-pwd:", &creds.pass]),
                line => text.push_str(line),
            }
            text.push_str("\r\n");
            text
        });
        Offer { text, user: creds.ufrag.clone(), ..self.clone() }
    }
}

/// An SDP fragment of a PATCH (RFC 8840): candidates as they are found, or new credentials.
pub struct Fragment {
    /// The client's ICE credentials.
    pub creds: IceCreds,
    /// Its candidates; those that no address can be read from are left out, as `.local` names are.
    pub candidates: Vec<Candidate>,
}

impl Fragment {
    /// Reads a fragment.
    pub fn parse(body: &[u8]) -> Result<Fragment, Unfit> {
        let text = text(body)?;
        sections(text)?;
        let creds = creds(text)?;
        let candidates = text.lines().filter_map(|line| line.trim_end().strip_prefix("a="));
        let candidates = candidates.filter(|line| line.starts_with("candidate:"));
        let candidates = candidates.filter_map(|line| Candidate::from_sdp_string(line).ok()).collect();
        Ok(Fragment { creds, candidates })
    }
}

/// The client's ICE credentials (RFC 8839 §5.4).
fn creds(text: &str) -> Result<IceCreds, Unfit> {
    let read = |name: &str, least: usize| {
        let Some(token) = value(text, name) else {
            return malformed(format!("there is no {}", name.trim_end_matches(':')));
        };
        // Firefox and libdatachannel keep to the RFC, but some write - and _ as well.
        let legal = |c: u8| c.is_ascii_alphanumeric() || b"+/-_".contains(&c);
        match (least..=256).contains(&token.len()) && token.bytes().all(legal) {
            true => Ok(token.to_owned()),
            false => malformed(format!("{name} has {least} to 256 of A-Z a-z 0-9 + /")),
        }
    };
    Ok(IceCreds { ufrag: read("a=ice-ufrag:", 4)?, pass: read("a=ice-pwd:", 22)? })
}

/// Has the engine take an offer: its first, or the same again with other credentials. Gives the answer.
pub fn accept(rtc: &mut Rtc, offer: &Offer) -> Result<String, Unfit> {
    let answer = rtc.sdp_api().accept_offer(offer.sdp()?).map_err(|error| Unfit::Malformed(error.to_string()))?;
    finished(&answer.to_sdp_string(), offer)
}

/// What an answer tells of ICE, as the answer to a PATCH that restarts it (RFC 9725 §4.3.3): the session's part, and of the sections
/// the one that speaks for the bundle.
pub fn fragment(answer: &str) -> String {
    let of_ice = ["a=ice-", "a=group:", "m=", "a=mid:", "a=candidate:", "a=end-of-candidates"];
    let first = value(answer, "a=group:BUNDLE ").and_then(|mids| mids.split(' ').next());
    // A section that is rejected has nothing of ICE.
    let mark = first.map_or("\r\na=ice-ufrag:".to_owned(), |mid| format!("\r\na=mid:{mid}\r\n"));
    let mut parts = parts(answer);
    let session = parts.next().unwrap_or_default();
    let speaks = parts.find(|part| part.contains(&mark)).unwrap_or_default();
    let lines = session.lines().chain(speaks.lines()).filter(|line| of_ice.iter().any(|it| line.starts_with(it)));
    lines.fold(String::new(), |text, line| text + line + "\r\n")
}

/// The engine's answer as the client needs it: with a section for each that was offered, by the names that it gave them; with sound in
/// stereo, which without this line a sender takes as mono (RFC 7587 §7.1), and silence cut where the client offered to.
fn finished(answer: &str, offer: &Offer) -> Result<String, Unfit> {
    let mut parts = parts(answer);
    let mut text = String::new();
    for line in parts.next().unwrap_or_default().lines() {
        match line.starts_with("a=group:BUNDLE") {
            true if offer.bundle.is_empty() => continue,
            true => text.extend(["a=group:BUNDLE ", &offer.bundle.join(" ")]),
            false => text.push_str(line),
        }
        text.push_str("\r\n");
    }
    let sections: Vec<&str> = parts.collect();
    let candidates: String = sections.iter().flat_map(|part| part.split_inclusive('\n')).filter(is_candidate).collect();
    let cname = sections.iter().find_map(|part| part.split_once(" cname:")?.1.lines().next()).unwrap_or_default();
    let mut sections = sections.into_iter();
    for reply in &offer.replies {
        let section = if reply.taken { sections.next() } else { None };
        match section.filter(|section| section.contains("\r\na=rtpmap:")) {
            Some(section) => reply.accept(section, offer, (&candidates, cname), &mut text),
            None if reply.flows => {
                return unacceptable(format!("the offer's {} cannot be carried in any of its formats", reply.kind));
            }
            None => reply.reject(&mut text),
        }
    }
    Ok(text)
}

fn is_candidate(line: &&str) -> bool {
    line.starts_with("a=candidate:") || line.starts_with("a=end-of-candidates")
}

/// A description's session part, and its sections.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let starts = text.match_indices("\r\nm=").map(|(at, _)| at + 2).chain([text.len()]);
    starts.scan(0, |from, to| Some(&text[std::mem::replace(from, to)..to]))
}

/// How often the engine tells its counts of a publisher.
const STATS: Duration = Duration::from_secs(5);

/// The engine's settings for a session that takes `offer`: of pictures it knows the very formats that are offered, whatever they are, since nothing
/// here decodes them. Sound waits for `jitter_buffer` for a packet that has not come; pictures wait as long as sending the packet again can
/// take.
pub fn config(offer: &Offer, certificate: DtlsCert, jitter_buffer: Duration) -> RtcConfig {
    // Sections whose lost packets are followed one by one: which has come by RTX, which a player wants again.
    let (heeded, stats) = match offer.purpose {
        Purpose::Publish => (&offer.resent, STATS),
        Purpose::Play => (&offer.plain, line::SPAN),
    };
    // Publishers that can do so send each packet of sound again with the next one (RED, RFC 2198): what is lost comes
    // back without being asked for. Players are not sent their sound twice.
    let mut config = RtcConfig::new()
        .set_ice_lite(true)
        .set_dtls_cert(certificate)
        .set_crypto_provider(dtls::provider())
        .set_stats_interval(Some(stats))
        .enable_raw_packets(!heeded.is_empty())
        .set_reordering_timeout_audio(Some(jitter_buffer))
        .clear_codecs()
        .enable_opus(true, offer.purpose == Purpose::Publish);
    for Format { pt, codec, params } in offer.formats.iter().filter(|it| it.codec != Codec::Opus) {
        let spec = CodecSpec { codec: *codec, clock_rate: Frequency::NINETY_KHZ, channels: None, format: *params };
        let codecs = config.codec_config();
        // The engine gives a payload type to each of its formats once, so no two of them may fit the same one.
        if codecs.match_params(PayloadParams::new((*pt).into(), None, spec)).is_none() {
            codecs.add_config((*pt).into(), None, *codec, spec.clock_rate, None, *params);
        }
    }
    config
}

/// A payload type of an offer that is carried.
#[derive(Clone, Copy, Debug)]
struct Format {
    pt: u8,
    codec: Codec,
    /// Its parameters that the engine knows of.
    params: FormatParams,
}

impl Format {
    /// Reads an `a=rtpmap` and its `a=fmtp`; `None` if that is not carried.
    fn read(pt: u8, map: &str, fmtp: &str, purpose: Purpose) -> Option<Format> {
        let (codec, rate) = map.split_once('/')?;
        let codec = match (Codec::from(codec), rate.split('/').next()?) {
            (codec @ Codec::H264, "90000") => codec,
            (codec @ (Codec::H265 | Codec::Av1), "90000") if purpose == Purpose::Publish => codec,
            (codec @ Codec::Opus, "48000") => codec,
            _ => return None,
        };
        let read = FormatParams::parse_line(fmtp);
        let none = FormatParams::default();
        let params = match codec {
            Codec::H264 => {
                let mode = read.packetization_mode.unwrap_or(0);
                // Of mode 0 is all that comes in mode 1 too, but what we send is in mode 1.
                if mode > 1 || (mode == 0 && purpose == Purpose::Play) {
                    return None;
                }
                // Senders keep to the level of the answer: 5.2 leaves them free. Without a profile it is Baseline (RFC 6184 §8.1).
                let profile = read.profile_level_id.filter(|id| (1 << 16..1 << 24).contains(id)).unwrap_or(0x42_00_00);
                FormatParams {
                    level_asymmetry_allowed: Some(true),
                    packetization_mode: Some(mode),
                    profile_level_id: Some(profile & 0xff_ff_00 | 0x34),
                    ..none
                }
            }
            Codec::H265 => FormatParams {
                h265_profile_tier_level: read.h265_profile_tier_level,
                profile_id: read.profile_id,
                sprop_max_don_diff: read.sprop_max_don_diff,
                ..none
            },
            Codec::Av1 => FormatParams { profile: read.profile, level_idx: read.level_idx, tier: read.tier, ..none },
            _ => FormatParams {
                min_p_time: read.min_p_time,
                use_inband_fec: read.use_inband_fec,
                use_dtx: read.use_dtx,
                ..none
            },
        };
        Some(Format { pt, codec, params })
    }

    /// H.264 comes first, which goes everywhere; otherwise the client's order counts.
    fn rank(&self) -> u8 {
        match self.codec {
            Codec::H264 => 1 - self.params.packetization_mode.unwrap_or(0),
            Codec::H265 => 2,
            Codec::Av1 => 3,
            _ => 4,
        }
    }

    /// Its `a=rtpmap`, from the codec's name on.
    fn map(&self) -> &'static str {
        match self.codec {
            Codec::H264 => "H264/90000",
            Codec::H265 => "H265/90000",
            Codec::Av1 => "AV1/90000",
            _ => "opus/48000/2",
        }
    }
}

/// An offer as it was read: the session's attributes, and the sections.
struct Session<'a> {
    lines: Vec<&'a str>,
    sections: Vec<Section<'a>>,
    /// The mids of the bundle, of sections that are taken. Empty where one section comes alone.
    bundle: Vec<&'a str>,
}

impl<'a> Session<'a> {
    fn taken(&self) -> impl Iterator<Item = &Section<'a>> {
        self.sections.iter().filter(|section| section.taken)
    }

    /// One section of each kind carries media, the first in which it may flow; in the others none will.
    fn silence_others(&mut self, purpose: Purpose) {
        for kind in ["audio", "video"] {
            let of_kind = self.sections.iter_mut().filter(|section| section.kind == kind && section.flows(purpose));
            of_kind.skip(1).for_each(|section| section.direction = (false, false));
        }
    }

    /// Marks the sections that the engine shall know: all of the bundle, and each in which media flows.
    fn choose(&mut self, purpose: Purpose) -> Result<(), Unfit> {
        let group = self.lines.iter().find_map(|line| line.strip_prefix("a=group:BUNDLE "));
        let group: Vec<&str> = group.unwrap_or_default().split_ascii_whitespace().collect();
        let bundled = |section: &Section| section.mid.is_some_and(|mid| group.contains(&mid));
        let flowing: Vec<_> = self.sections.iter().filter(|section| section.flows(purpose)).map(bundled).collect();
        let alone = flowing == [false];
        if flowing.is_empty() {
            let want = if purpose == Purpose::Publish { "sendonly" } else { "recvonly" };
            return unacceptable(format!("the offer has no {want} audio or video"));
        }
        if !alone && flowing.contains(&false) {
            return unacceptable(
                "all media goes over one port: the offer must name its sections in one a=group:BUNDLE",
            );
        }
        for section in &mut self.sections {
            section.taken = match alone {
                true => section.flows(purpose),
                false => bundled(section) && section.is_offered() && !section.formats.is_empty(),
            };
        }
        let token = |mid: &str| !mid.contains(|c: char| !c.is_ascii_graphic() || "\"(),/:;<=>?@[]\\".contains(c));
        if !self.taken().all(|section| token(section.name())) {
            return malformed("a section's a=mid is not a token");
        }
        let mut known = HashSet::new();
        if !self.taken().all(|section| known.insert(section.engine_mid())) {
            return malformed("two sections have the same a=mid, or begin it with the same 16 characters");
        }
        let bundle = group.iter().copied().filter(|mid| self.taken().any(|section| !alone && section.mid == Some(mid)));
        self.bundle = bundle.collect();
        Ok(())
    }

    /// The header extension by which packets name their section: that of the offer, or else one that the client does not use.
    fn mid_extension(&self) -> u8 {
        let ids = |line: &str| line.strip_prefix("a=extmap:")?.split([' ', '/']).next()?.parse().ok();
        let lines = || self.taken().flat_map(|section| &section.lines);
        let used: HashSet<u8> = lines().filter_map(|line| ids(line)).collect();
        let offered = lines().find(|line| names_mid(line)).and_then(|line| ids(line));
        offered.or_else(|| (1..15).find(|id| !used.contains(id))).unwrap_or(14)
    }

    /// The offer for the engine.
    fn write(&self, purpose: Purpose, mid_extension: u8) -> Result<String, Unfit> {
        let mut text = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE".to_owned();
        text.extend(self.taken().flat_map(|section| [" ", section.name()]));
        text.push_str("\r\n");
        // The bundle's first section counts for all, however they differ (RFC 8843 §7.1.3).
        let first = self.taken().find(|section| section.mid == self.bundle.first().copied()).or(self.taken().next());
        let each = || self.sections.iter().map(|section| &section.lines);
        let places = || first.iter().map(|section| &section.lines).chain([&self.lines]).chain(each());
        let once = |name| {
            let place = places().find(|lines| lines.iter().any(|line| line.starts_with(name)));
            place.into_iter().flatten().copied().filter(move |line| line.starts_with(name))
        };
        for name in ["a=ice-lite", "a=ice-ufrag:", "a=ice-pwd:", "a=setup:"] {
            text.extend(once(name).flat_map(|line| [line, "\r\n"]));
        }
        // Of several hash functions one is enough (RFC 8122 §5); all clients have this one.
        let Some(fingerprint) = once("a=fingerprint:").find(|line| is_fingerprint(line)) else {
            return malformed("there is no a=fingerprint:sha-256 with 32 bytes in hexadecimal");
        };
        text.extend([fingerprint, "\r\n"]);
        // The engine takes these names for what it sends itself. Sound and pictures are of one stream: players keep them together by that.
        let stream = format!("{:016x}", rand::random::<u64>());
        let candidates = each().chain([&self.lines]).flatten().filter(|line| line.starts_with("a=candidate:"));
        text.extend(candidates.flat_map(|line| [line, "\r\n"]));
        let mut meanings = HashMap::new();
        for section in self.taken() {
            section.write(purpose, &mut text, &mut meanings)?;
            if purpose == Purpose::Publish && !section.names_itself() {
                // The client's packets will not have it: those do by which the engine is told where they belong.
                text.push_str(&format!("a=extmap:{mid_extension} {MID_URI}\r\n"));
            }
            if purpose == Purpose::Play {
                text.push_str(&format!("a=msid:{stream} {}\r\n", section.engine_mid()));
            }
        }
        Ok(text)
    }
}

/// Parameters of a format that are parameter sets of its pictures.
const SPROPS: [&str; 4] = ["sprop-parameter-sets", "sprop-vps", "sprop-sps", "sprop-pps"];

/// What names the extension that names a section (RFC 8843 §15.1).
const MID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";

/// Whether a line is of that extension.
fn names_mid(line: &str) -> bool {
    line.starts_with("a=extmap:") && line.split(' ').nth(1) == Some(MID_URI)
}

/// Whether an `a=fingerprint` is of the hash function that the engine compares by, SHA-256.
fn is_fingerprint(line: &str) -> bool {
    let value = line.split_once(':').map_or("", |(_, value)| value);
    let Some((function, hash)) = value.trim().split_once(' ') else { return false };
    let is_byte = |byte: &str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
    function.eq_ignore_ascii_case("sha-256") && hash.split(':').count() == 32 && hash.split(':').all(is_byte)
}

/// A media section of an offer.
struct Section<'a> {
    kind: &'a str,
    protocol: &'a str,
    /// The payload types of its `m=`.
    payloads: &'a str,
    mid: Option<&'a str>,
    /// Whether the client sends, and whether it receives.
    direction: (bool, bool),
    rejected: bool,
    /// Its attributes.
    lines: Vec<&'a str>,
    /// Its formats that are carried, the best first.
    formats: Vec<Format>,
    /// The engine is told of it.
    taken: bool,
}

/// All are RTP under DTLS to us (RFC 8829 §5.1.2).
const PROTOCOLS: [&str; 9] = [
    "UDP/TLS/RTP/SAVPF",
    "UDP/TLS/RTP/SAVP",
    "TCP/DTLS/RTP/SAVPF",
    "TCP/DTLS/RTP/SAVP",
    "TCP/TLS/RTP/SAVPF",
    "RTP/SAVPF",
    "RTP/SAVP",
    "RTP/AVPF",
    "RTP/AVP",
];

/// What a section without a mid is called for the engine. It is the only one then.
const UNNAMED: &str = "0";

/// Attributes that are written anew, or once for all sections.
const WRITTEN: [&str; 13] = [
    "a=rtpmap:",
    "a=fmtp:",
    "a=rtcp-fb:",
    "a=mid:",
    "a=ice-",
    "a=fingerprint:",
    "a=setup:",
    "a=candidate:",
    "a=bundle-only",
    "a=sendrecv",
    "a=sendonly",
    "a=recvonly",
    "a=inactive",
];

impl Section<'_> {
    /// Media that the client does not take back.
    fn is_offered(&self) -> bool {
        !self.rejected && PROTOCOLS.contains(&self.protocol) && matches!(self.kind, "audio" | "video")
    }

    fn flows(&self, purpose: Purpose) -> bool {
        let (sends, receives) = self.direction;
        self.is_offered() && if purpose == Purpose::Publish { sends } else { receives }
    }

    fn name(&self) -> &str {
        self.mid.unwrap_or(UNNAMED)
    }

    /// Its name as the engine has it: cut, and with _ for what is neither letter nor digit.
    fn engine_mid(&self) -> Mid {
        self.name().into()
    }

    fn feedback(&self) -> Feedback {
        Feedback(self.lines.iter().filter_map(|line| line.strip_prefix("a=rtcp-fb:")).map(str::to_owned).collect())
    }

    /// Whether the client heeds generic NACKs (RFC 4585 §6.2.1) for a format that is carried. For sound we offer none.
    fn resends(&self) -> bool {
        let feedback = self.feedback();
        self.kind == "video" && self.formats.iter().any(|format| feedback.has(format.pt, "nack"))
    }

    /// Whether packets say that they are of this section.
    fn names_itself(&self) -> bool {
        self.lines.iter().any(|line| names_mid(line))
    }

    /// Whether a client that publishes sends one stream of it at a time, and no layers of a simulcast.
    fn sends_alone(&self) -> bool {
        self.direction.0
            && !self.lines.iter().any(|line| line.starts_with("a=rid:") || line.starts_with("a=simulcast:"))
    }

    fn carried(&self) -> impl Iterator<Item = Carried> {
        let (mid, named) = (self.engine_mid(), self.names_itself());
        self.described().into_iter().map(move |(pt, map, _)| Carried { pt, mid, main: map != "rtx/90000", named })
    }

    /// What its formats say of their parameter sets (RFC 6184 §8.1, RFC 7798 §7.1). What is no Base64 is left out.
    fn parameter_sets(&self) -> Vec<(u8, Vec<Bytes>)> {
        let fmtps = self.of_payloads("a=fmtp:");
        let sets = |fmtp: &String| {
            let values = fmtp.split(';').filter_map(|it| it.trim().split_once('='));
            let values = values.filter(|(name, _)| SPROPS.contains(name)).flat_map(|(_, value)| value.split(','));
            values.filter_map(|it| decode_block(it.trim()).ok().map(Bytes::from)).collect::<Vec<_>>()
        };
        let of = |format: &Format| Some((format.pt, sets(fmtps.get(&format.pt)?)));
        self.formats.iter().filter_map(of).filter(|(_, sets)| !sets.is_empty()).collect()
    }

    fn has_rtx(&self) -> bool {
        self.described().iter().any(|(_, map, _)| map == "rtx/90000")
    }

    /// Values of an attribute that belong to a payload type.
    fn of_payloads(&self, name: &str) -> HashMap<u8, String> {
        let mut values: HashMap<u8, String> = HashMap::new();
        for line in self.lines.iter().filter_map(|line| line.strip_prefix(name)) {
            let Some((pt, value)) = line.split_once(' ') else { continue };
            let Ok(pt) = pt.parse() else { continue };
            let known = values.entry(pt).or_default();
            let between = if known.is_empty() { "" } else { ";" };
            known.extend([between, value]);
        }
        values
    }

    /// The payload types that are offered, each once.
    fn payload_types(&self) -> Vec<u8> {
        let mut known = HashSet::new();
        let types = self.payloads.split(' ').filter_map(|it| it.parse().ok());
        types.filter(|pt| *pt < 128 && known.insert(*pt)).collect()
    }

    /// The formats that are carried; an error if none is, where one is needed.
    fn formats(&self, purpose: Purpose) -> Result<Vec<Format>, Unfit> {
        let (maps, fmtps) = (self.of_payloads("a=rtpmap:"), self.of_payloads("a=fmtp:"));
        let mut formats: Vec<Format> = Vec::new();
        for pt in self.payload_types() {
            let Some(map) = maps.get(&pt) else { continue };
            let fmtp = fmtps.get(&pt).map_or("", String::as_str);
            let format = Format::read(pt, map, fmtp, purpose);
            formats.extend(format.filter(|format| format.codec.is_audio() == (self.kind == "audio")));
        }
        formats.sort_by_key(Format::rank);
        if formats.iter().any(|it| it.params.packetization_mode == Some(1)) {
            formats.retain(|it| it.params.packetization_mode != Some(0));
        }
        if formats.is_empty() && self.flows(purpose) {
            let mut offered: Vec<_> =
                maps.values().map(|it| it.chars().take_while(|c| *c != '/').take(16).collect::<String>()).collect();
            offered.sort();
            offered.dedup();
            offered.truncate(12);
            let offered = offered.join(", ");
            let carried = match (self.kind, purpose) {
                ("audio", _) => "audio codec is carried: opus is",
                (_, Purpose::Publish) => "video codec is carried: H264, H265 and AV1 are",
                (_, Purpose::Play) => "video codec is played: H264 with packetization-mode=1 is",
            };
            return unacceptable(format!("none of the offer's codecs ({offered}) will do; this {carried}"));
        }
        Ok(formats)
    }

    /// What the engine is told of payload types: the formats, and what goes with them to send a packet again or twice. Of each its
    /// `a=rtpmap` and `a=fmtp`.
    fn described(&self) -> Vec<(u8, String, String)> {
        let (maps, fmtps) = (self.of_payloads("a=rtpmap:"), self.of_payloads("a=fmtp:"));
        let formats = self.formats.iter().map(|it| (it.pt, it.map().to_owned(), it.params.to_string()));
        let mut all: Vec<(u8, String, String)> = formats.collect();
        let carried = |pt: &str| self.formats.iter().map(|it| it.pt).find(|it| pt.trim().parse() == Ok(*it));
        for pt in self.payload_types() {
            let (Some(map), Some(fmtp)) = (maps.get(&pt), fmtps.get(&pt)) else { continue };
            let map = map.to_ascii_lowercase();
            let fmtp = match map.as_str() {
                "rtx/90000" => {
                    let of = fmtp.split(';').find_map(|it| carried(it.trim().strip_prefix("apt=")?));
                    of.map(|of| format!("apt={of}"))
                }
                "red/48000/2" => fmtp.split('/').next().and_then(carried).map(|of| format!("{of}/{of}")),
                _ => None,
            };
            // One of each kind for each format.
            if let Some(fmtp) = fmtp.filter(|fmtp| all.iter().all(|known| known.2 != *fmtp)) {
                all.push((pt, map, fmtp));
            }
        }
        all
    }

    /// Writes the section for the engine. `meanings` are what payload types stand for in the sections before it: one thing in all of them
    /// (RFC 8843 §9.1).
    fn write(&self, purpose: Purpose, text: &mut String, meanings: &mut HashMap<u8, String>) -> Result<(), Unfit> {
        let (described, mid) = (self.described(), self.name());
        let direction = match purpose {
            // The answer to one that would do both is half of that: here media goes one way (RFC 9725 §4.2).
            Purpose::Publish if self.flows(purpose) => "sendonly",
            Purpose::Play if self.flows(purpose) => "recvonly",
            _ => "inactive",
        };
        text.extend(["m=", self.kind, " 9 UDP/TLS/RTP/SAVPF"]);
        text.extend(described.iter().map(|(pt, ..)| format!(" {pt}")));
        text.push_str(&format!("\r\nc=IN IP4 0.0.0.0\r\na=mid:{mid}\r\na={direction}\r\n"));
        let feedback = self.feedback();
        for (pt, map, fmtp) in &described {
            let meaning = if map.starts_with("opus") { map.clone() } else { format!("{map} {fmtp}") };
            if meanings.insert(*pt, meaning.clone()).is_some_and(|known| known != meaning) {
                return malformed(format!("payload type {pt} stands for different things in two sections"));
            }
            text.push_str(&format!("a=rtpmap:{pt} {map}\r\n"));
            if !fmtp.is_empty() {
                text.push_str(&format!("a=fmtp:{pt} {fmtp}\r\n"));
            }
            // Of all feedback this is the one that the engine takes from the offer.
            if feedback.has(pt, "transport-cc") {
                text.push_str(&format!("a=rtcp-fb:{pt} transport-cc\r\n"));
            }
        }
        // The engine would name a section in its packets as it knows it.
        let renamed = purpose == Purpose::Play && *self.engine_mid() != *mid;
        // Who is told that pictures lie on their side here turns them itself: further on nobody would know.
        let unknown = |line: &str| match purpose {
            Purpose::Publish => line.ends_with(":3gpp:video-orientation"),
            Purpose::Play => line.starts_with("a=msid:") || (renamed && line.ends_with(":sdes:mid")),
        };
        let anew = |line: &str| WRITTEN.iter().any(|it| line.starts_with(it)) || unknown(line);
        text.extend(self.lines.iter().filter(|line| !anew(line)).flat_map(|line| [line, "\r\n"]));
        Ok(())
    }

    fn reply(&self, purpose: Purpose) -> Reply {
        let (taken, flows) = (self.taken, self.flows(purpose));
        let [kind, protocol, payloads] = [self.kind, self.protocol, self.payloads].map(str::to_owned);
        let (mid, named) = (self.mid.map(str::to_owned), self.names_itself());
        Reply { kind, protocol, payloads, feedback: self.feedback(), mid, taken, flows, named }
    }
}

/// The feedback that a client takes: the values of its `a=rtcp-fb`, each for a payload type or `*` for all (RFC 4585 §4.2).
#[derive(Clone)]
struct Feedback(HashSet<String>);

impl Feedback {
    fn has(&self, pt: impl Display, kind: &str) -> bool {
        self.0.contains(&format!("{pt} {kind}")) || self.0.contains(&format!("* {kind}"))
    }
}

/// What is known of a section for its answer.
#[derive(Clone)]
struct Reply {
    kind: String,
    protocol: String,
    payloads: String,
    feedback: Feedback,
    mid: Option<String>,
    /// The engine knows it.
    taken: bool,
    flows: bool,
    /// Its packets name it.
    named: bool,
}

impl Reply {
    /// Writes out what the engine says of it; with what is the same in all sections: candidates, and the name of the clock.
    fn accept(&self, section: &str, offer: &Offer, (candidates, cname): (&str, &str), text: &mut String) {
        let opus = section.lines().find_map(|line| line.strip_prefix("a=rtpmap:")?.strip_suffix(" opus/48000/2"));
        let opus = opus.map(|pt| format!("a=fmtp:{pt} "));
        for line in section.lines().filter(|line| !is_candidate(line) && self.offered(line)) {
            match line.split_once([':', '=']) {
                Some(("m", media)) => {
                    let payloads = media.split(' ').skip(3).fold(String::new(), |all, it| all + " " + it);
                    text.extend(["m=", &self.kind, " 9 ", &self.protocol, &payloads]);
                }
                _ if line.starts_with("a=mid:") => match &self.mid {
                    Some(mid) => text.extend(["a=mid:", mid]),
                    None => continue,
                },
                // We send nothing that these could be of.
                _ if line.starts_with("a=msid:") && (offer.purpose == Purpose::Publish || !self.flows) => continue,
                _ => match line.split_once(" cname:") {
                    Some((ssrc, _)) => text.extend([ssrc, " cname:", cname]),
                    None => text.push_str(line),
                },
            }
            if opus.as_ref().is_some_and(|opus| line.starts_with(opus)) {
                text.push_str(";stereo=1;sprop-stereo=1");
                text.push_str(if offer.text.contains("usedtx=1") { ";usedtx=1" } else { "" });
            }
            text.push_str("\r\n");
        }
        if offer.bundle.is_empty() || self.mid.as_ref() == offer.bundle.first() {
            text.push_str(candidates);
        }
    }

    /// Whether a line of an answer is no feedback, which the engine writes as it is able to, or one that was offered; likewise of the
    /// section's name in packets.
    fn offered(&self, line: &str) -> bool {
        if names_mid(line) {
            return self.named;
        }
        let feedback = line.strip_prefix("a=rtcp-fb:").and_then(|line| line.split_once(' '));
        feedback.is_none_or(|(pt, kind)| self.feedback.has(pt, kind))
    }

    /// Port 0 says no (RFC 3264 §6).
    fn reject(&self, text: &mut String) {
        text.extend(["m=", &self.kind, " 0 ", &self.protocol, " ", &self.payloads, "\r\nc=IN IP4 0.0.0.0\r\n"]);
        if let Some(mid) = &self.mid {
            text.extend(["a=mid:", mid, "\r\n"]);
        }
        if self.protocol.contains("RTP/") {
            text.push_str("a=inactive\r\n");
        }
    }
}

fn text(body: &[u8]) -> Result<&str, Unfit> {
    if body.len() > TEXT_MAX {
        return malformed(format!("the body is longer than {TEXT_MAX} bytes"));
    }
    std::str::from_utf8(body).or_else(|_| malformed("the body is not UTF-8"))
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Reads the attributes and sections of a description; of other lines nothing is needed.
fn sections(text: &str) -> Result<Session<'_>, Unfit> {
    let mut session = Session { lines: Vec::new(), sections: Vec::new(), bundle: Vec::new() };
    let (mut direction, mut candidates) = ((true, true), 0);
    for line in text.lines().map(str::trim_end) {
        if let Some(media) = line.strip_prefix("m=") {
            if session.sections.len() == MEDIA_MAX {
                return malformed(format!("there are more than {MEDIA_MAX} media sections"));
            }
            let mut words = media.splitn(4, ' ');
            let mut word = || words.next().unwrap_or_default();
            let (kind, port, protocol, payloads) = (word(), word(), word(), word());
            session.sections.push(Section {
                kind,
                protocol,
                payloads,
                mid: None,
                direction,
                rejected: port == "0",
                lines: Vec::new(),
                formats: Vec::new(),
                taken: false,
            });
            continue;
        }
        if line.starts_with("a=candidate:") {
            candidates += 1;
            if candidates > CANDIDATES_MAX {
                return malformed(format!("there are more than {CANDIDATES_MAX} candidates"));
            }
        }
        let section = session.sections.last_mut();
        // The direction may stand once for all sections, or not at all (RFC 8866 §6.7).
        let directed = section.as_ref().map_or(direction, |section| section.direction);
        let directed = match line {
            "a=sendonly" => (true, false),
            "a=recvonly" => (false, true),
            "a=sendrecv" => (true, true),
            "a=inactive" => (false, false),
            _ => directed,
        };
        match section {
            _ if !line.starts_with("a=") => {}
            None => {
                direction = directed;
                session.lines.push(line);
            }
            Some(section) => {
                section.direction = directed;
                section.mid = section.mid.or(line.strip_prefix("a=mid:").map(str::trim));
                // A section of a bundle may have the port 0 and say this (RFC 8843 §6).
                section.rejected &= line != "a=bundle-only";
                section.lines.push(line);
            }
        }
    }
    Ok(session)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::webrtc::certificate;

    fn engine(offer: &Offer) -> Rtc {
        let certificate = certificate::make().expect("a certificate");
        config(offer, certificate, Duration::from_millis(100)).build(Instant::now())
    }

    /// What a client writes into its offer: before the sections, in each of them, of sound and of pictures. `|` ends a line; ICE are
    /// its credentials.
    struct Client {
        name: &'static str,
        session: &'static str,
        transport: &'static str,
        audio: (&'static str, &'static str),
        video: (&'static str, &'static str),
        /// Lines of the answer, of which the first is the DTLS role.
        want: &'static [&'static str],
        /// Whether its pictures are sent again.
        resends: bool,
    }

    impl Client {
        fn offer(&self) -> String {
            let Client { session, transport, audio, video, .. } = self;
            let section = |kind: &str, mid: u8, (payloads, lines): (&str, &str)| {
                format!("m={kind} 9 UDP/TLS/RTP/SAVPF {payloads}|c=IN IP4 0.0.0.0|a=mid:{mid}|{transport}|{lines}|")
            };
            let ice = "a=ice-ufrag:abcd|a=ice-pwd:0123456789abcdef01234567|a=fingerprint:sha-256 FINGER|";
            let text = format!("v=0|o=x 1 2 IN IP4 127.0.0.1|s=-|t=0 0|{session}|")
                + &section("audio", 0, *audio)
                + &section("video", 1, *video);
            text.replace("ICE|", ice).replace("FINGER", &["AB"; 32].join(":")).replace('|', "\r\n")
        }
    }

    const PLAIN: Client = Client {
        name: "plain",
        session: "a=group:BUNDLE 0 1|a=sendonly|a=setup:actpass|ICE",
        transport: "a=rtcp-mux",
        audio: ("111", "a=rtpmap:111 opus/48000/2|a=fmtp:111 minptime=10;useinbandfec=1;usedtx=1"),
        video: (
            "96 97 98",
            "a=rtpmap:96 VP8/90000|a=rtpmap:97 H264/90000|a=fmtp:97 packetization-mode=1;profile-level-id=42e01f|\
             a=rtpmap:98 AV1/90000|a=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host",
        ),
        want: &[],
        resends: false,
    };

    /// Answers an offer, with a candidate of ours.
    fn reply(offer: &str, purpose: Purpose) -> Result<String, Unfit> {
        let offer = Offer::parse(offer.as_bytes(), purpose)?;
        let mut rtc = engine(&offer);
        rtc.add_local_candidate(Candidate::host("192.0.2.1:8000".parse().unwrap(), "udp").unwrap());
        accept(&mut rtc, &offer)
    }

    /// Answers the plain offer, after changing `from` to `to` in it; gives the answer. `|` ends a line.
    fn answer((from, to): (&str, &str)) -> Result<String, Unfit> {
        let [from, to] = [from, to].map(|it| it.replace('|', "\r\n"));
        let offer = PLAIN.offer();
        assert!(offer.contains(&from), "{from}");
        reply(&offer.replace(&from, &to), Purpose::Publish)
    }

    const CLIENTS: [Client; 6] = [
        Client {
            // libdatachannel: all candidates within, ICE and DTLS once for all, one codec of each kind.
            name: "OBS 30",
            session: "a=group:BUNDLE 0 1|a=group:LS 0 1|a=msid-semantic:WMS *|a=setup:actpass|a=ice-options:ice2,trickle|ICE",
            transport: "a=sendonly|a=ssrc:7 cname:x|a=ssrc:7 msid:x x-1|a=msid:x x-1|a=rtcp-mux",
            audio: (
                "111",
                "a=rtpmap:111 opus/48000/2|a=fmtp:111 minptime=10;maxaveragebitrate=96000;stereo=1;sprop-stereo=1;useinbandfec=1",
            ),
            video: (
                "96",
                "a=rtpmap:96 H264/90000|a=rtcp-fb:96 nack|a=rtcp-fb:96 nack pli|a=rtcp-fb:96 goog-remb|\
                 a=fmtp:96 profile-level-id=42e01f;packetization-mode=1;level-asymmetry-allowed=1|\
                 a=candidate:1 1 UDP 2122317823 192.0.2.7 9 typ host|a=end-of-candidates",
            ),
            want: &["a=setup:passive", "a=rtpmap:96 H264/90000", "a=rtcp-fb:96 nack pli"],
            resends: true,
        },
        Client {
            // Several layers, since OBS 32.
            name: "OBS 32 with simulcast",
            session: "a=group:BUNDLE 0 1|a=group:LS 0 1|a=setup:actpass|ICE",
            transport: "a=sendonly|a=rtcp-mux",
            audio: ("111", "a=rtpmap:111 opus/48000/2|a=fmtp:111 minptime=10;useinbandfec=1"),
            video: (
                "96",
                "a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid|a=extmap:2 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id|\
                 a=rid:0 send|a=rid:1 send|a=rid:2 send|a=simulcast:send 0;1;2|a=rtpmap:96 H264/90000|\
                 a=fmtp:96 profile-level-id=42e01f;packetization-mode=1;level-asymmetry-allowed=1",
            ),
            want: &["a=setup:passive", "a=simulcast:recv 0;1;2", "a=rid:2 recv"],
            resends: false,
        },
        Client {
            // It waits for our DTLS, sends to the first candidate alone, and has one H.264 and no way to send again.
            name: "ffmpeg 8.0",
            session: "a=group:BUNDLE 0 1|a=extmap-allow-mixed|a=msid-semantic: WMS",
            transport: "ICE|a=setup:passive|a=sendonly|a=msid:FFmpeg x|a=rtcp-mux|a=rtcp-rsize|a=ssrc:9 cname:FFmpeg|a=ssrc:9 msid:FFmpeg x",
            audio: ("111", "a=rtpmap:111 opus/48000/2"),
            video: (
                "106",
                "a=rtpmap:106 H264/90000|a=fmtp:106 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f",
            ),
            want: &["a=setup:active", "a=rtpmap:106 H264/90000"],
            resends: false,
        },
        Client {
            name: "Firefox",
            session: "a=sendrecv|a=fingerprint:sha-256 FINGER|a=group:BUNDLE 0 1|a=ice-options:trickle|a=msid-semantic:WMS *",
            transport: "a=sendonly|a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid|a=extmap:2/recvonly urn:ietf:params:rtp-hdrext:csrc-audio-level|\
                        ICE|a=msid:{x} {y}|a=rtcp-mux|a=rtcp-rsize|a=setup:actpass|a=ssrc:5 cname:{z}",
            audio: (
                "109 9 0 8 101",
                "a=fmtp:109 maxplaybackrate=48000;stereo=1;useinbandfec=1|a=fmtp:101 0-15|a=rtpmap:109 opus/48000/2|\
                 a=rtpmap:9 G722/8000/1|a=rtpmap:0 PCMU/8000|a=rtpmap:8 PCMA/8000|a=rtpmap:101 telephone-event/8000/1",
            ),
            video: (
                "120 124 126 127 97 98 122 119",
                "a=fmtp:120 max-fs=12288;max-fr=60|a=fmtp:124 apt=120|a=fmtp:127 apt=126|a=fmtp:98 apt=97|\
                 a=fmtp:126 profile-level-id=42e01f;level-asymmetry-allowed=1;packetization-mode=1|\
                 a=fmtp:97 profile-level-id=42e01f;level-asymmetry-allowed=1|a=rtcp-fb:126 nack|a=rtcp-fb:126 nack pli|\
                 a=rtcp-fb:126 ccm fir|a=rtcp-fb:126 goog-remb|a=rtcp-fb:126 transport-cc|a=rtpmap:120 VP8/90000|\
                 a=rtpmap:124 rtx/90000|a=rtpmap:126 H264/90000|a=rtpmap:127 rtx/90000|a=rtpmap:97 H264/90000|\
                 a=rtpmap:98 rtx/90000|a=rtpmap:122 red/90000|a=rtpmap:119 ulpfec/90000|a=ssrc-group:FID 5 6|a=ssrc:6 cname:{z}",
            ),
            want: &[
                "a=setup:passive",
                "a=rtpmap:126 H264/90000",
                "a=rtpmap:127 rtx/90000",
                "a=rtpmap:109 opus/48000/2",
            ],
            resends: true,
        },
        Client {
            name: "Safari",
            session: "a=group:BUNDLE 0 1|a=extmap-allow-mixed|a=msid-semantic: WMS x",
            transport: "a=rtcp:9 IN IP4 0.0.0.0|ICE|a=ice-options:trickle|a=setup:actpass|a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid|\
                        a=sendonly|a=msid:x y|a=rtcp-mux|a=rtcp-rsize",
            audio: (
                "111 63 9 0 8 13 110 126",
                "a=rtpmap:111 opus/48000/2|a=rtcp-fb:111 transport-cc|a=fmtp:111 minptime=10;useinbandfec=1|a=rtpmap:63 red/48000/2|\
                 a=fmtp:63 111/111|a=rtpmap:9 G722/8000|a=rtpmap:0 PCMU/8000|a=rtpmap:8 PCMA/8000|a=rtpmap:13 CN/8000|\
                 a=rtpmap:110 telephone-event/48000|a=rtpmap:126 telephone-event/8000",
            ),
            video: (
                "96 97 98 99 100 101 102 125",
                "a=rtpmap:96 H264/90000|a=rtcp-fb:96 nack|a=rtcp-fb:96 nack pli|\
                 a=fmtp:96 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=640c1f|a=rtpmap:97 rtx/90000|a=fmtp:97 apt=96|\
                 a=rtpmap:98 H264/90000|a=fmtp:98 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f|\
                 a=rtpmap:99 rtx/90000|a=fmtp:99 apt=98|a=rtpmap:100 H265/90000|a=fmtp:100 level-id=93;profile-id=1;tier-flag=0;tx-mode=SRST|\
                 a=rtpmap:101 rtx/90000|a=fmtp:101 apt=100|a=rtpmap:102 VP8/90000|a=rtpmap:125 red/90000",
            ),
            want: &["a=setup:passive", "a=rtpmap:96 H264/90000", "a=rtpmap:100 H265/90000", "a=rtpmap:63 red/48000/2"],
            resends: true,
        },
        Client {
            // Its parameter sets are in the offer as well, and fields that are its own.
            name: "GStreamer",
            session: "a=ice-options:trickle|a=group:BUNDLE 0 1",
            transport: "a=setup:actpass|ICE|a=rtcp-mux|a=rtcp-rsize|a=sendonly|a=ssrc:3 msid:user1 webrtctransceiver0|a=ssrc:3 cname:user1",
            audio: (
                "97",
                "a=rtpmap:97 OPUS/48000/2|a=rtcp-fb:97 transport-cc|a=fmtp:97 sprop-maxcapturerate=48000;sprop-stereo=1",
            ),
            video: (
                "96",
                "a=rtpmap:96 H264/90000|a=rtcp-fb:96 nack pli|a=framerate:30|\
                 a=fmtp:96 packetization-mode=1;profile-level-id=42c01e;sprop-parameter-sets=Z0LAHtkDxWhAAAADAEAAAAwDxYuS,aMuMsg==",
            ),
            want: &["a=setup:passive", "a=rtpmap:96 H264/90000"],
            resends: false,
        },
    ];

    #[test]
    fn what_clients_offer_is_answered_as_they_need_it() {
        for client in CLIENTS {
            let Client { name, want, resends, .. } = client;
            let offered = client.offer();
            let offer = Offer::parse(offered.as_bytes(), Purpose::Publish);
            let offer = offer.unwrap_or_else(|unfit| panic!("{name}: {unfit}"));
            assert_eq!(["0", "1"].map(|mid| offer.resends(mid.into())), [false, resends], "{name}");
            let mut rtc = engine(&offer);
            let address = "192.0.2.1:8000".parse().unwrap();
            let tcp = Candidate::builder().tcp().host(address).tcptype(str0m::net::TcpType::Passive).build();
            for candidate in [Candidate::host(address, "udp").unwrap(), tcp.unwrap()] {
                rtc.add_local_candidate(candidate);
            }
            let answer = accept(&mut rtc, &offer).unwrap_or_else(|unfit| panic!("{name}: {unfit}"));
            for line in ["a=ice-lite", "a=recvonly", "a=rtcp-mux"].iter().chain(want) {
                assert!(answer.lines().any(|it| it == *line), "{name}: no {line} in {answer}");
            }
            assert!(answer.contains(" opus/48000/2") && !answer.contains("VP8"), "{name}: {answer}");
            let mut feedback = answer.lines().filter(|line| line.starts_with("a=rtcp-fb:"));
            assert!(feedback.all(|line| offered.lines().any(|it| it == line)), "{name}: {answer}");
            let first = answer.lines().find(|line| line.starts_with("a=candidate:"));
            assert!(
                first.is_some_and(|it| it.contains(" udp ") && it.contains(" 192.0.2.1 8000 typ host")),
                "{name}: {first:?}"
            );
        }
    }

    #[test]
    fn every_profile_is_taken_and_answered_as_it_was_offered_at_the_highest_level() {
        for profile in [
            "42001f", "42e01f", "42c01f", "4d001f", "4d401f", "640034", "640c1f", "f4001f", "6e0028", "64081f",
            "640428", "641c1f", "7a001f", "2c001f", "530000",
        ] {
            let answer = answer(("42e01f", profile)).unwrap();
            let want = format!("packetization-mode=1;profile-level-id={}34\r\n", &profile[..4]);
            assert!(answer.contains("a=rtpmap:97 H264/90000") && answer.contains(&want), "{profile}: {answer}");
            assert!(answer.contains("AV1/90000") && !answer.contains("VP8"), "{profile}: {answer}");
        }
    }

    #[test]
    fn every_format_of_a_codec_that_is_carried_is_taken() {
        let check = |fmtp: &str, codec: &str, want: &str| {
            let offer = PLAIN.offer().replace("a=rtpmap:98 AV1/90000\r\n", "").replace(
                "a=rtpmap:97 H264/90000\r\na=fmtp:97 packetization-mode=1;profile-level-id=42e01f\r\n",
                &format!("{fmtp}a=rtpmap:97 {codec}/90000\r\n").replace('|', "\r\n"),
            );
            let answer = reply(&offer, Purpose::Publish).unwrap_or_else(|unfit| panic!("{codec} {fmtp}: {unfit}"));
            let codec = codec.to_ascii_uppercase();
            assert!(answer.contains(&format!("a=rtpmap:97 {codec}/90000\r\n")), "{codec} {fmtp}: {answer}");
            let answered = value(&answer, "a=fmtp:97 ").unwrap_or_default();
            assert_eq!(answered, want, "{codec} {fmtp}");
        };
        let h264 =
            |mode, profile| format!("level-asymmetry-allowed=1;packetization-mode={mode};profile-level-id={profile}34");
        check("a=fmtp:97 Packetization-Mode=1; Profile-Level-Id=42E01F;|", "h264", &h264(1, "42e0"));
        check("a=fmtp:97 profile-level-id=42e0;packetization-mode=1|", "H264", &h264(1, "4200"));
        check("a=fmtp:97 profile-level-id=zzzzzz;packetization-mode=1|", "H264", &h264(1, "4200"));
        check("a=fmtp:97 packetization-mode=0;profile-level-id=42e01f|", "H264", &h264(0, "42e0"));
        check("a=fmtp:97 profile-level-id=4d001f|", "H264", &h264(0, "4d00"));
        check("", "H264", &h264(0, "4200"));
        for fmtp in [
            "profile-id=1;tier-flag=0;level-id=93",
            "profile-id=2;tier-flag=0;level-id=120",
            "profile-id=1;tier-flag=1;level-id=153",
            "profile-id=1;tier-flag=0;level-id=186",
            "profile-id=2",
        ] {
            check(&format!("a=fmtp:97 {fmtp};tx-mode=SRST|"), "H265", fmtp);
        }
        check("a=fmtp:97 sprop-vps=QAE=;sprop-sps=QgE=;sprop-pps=RAE=|", "H265", "");
        check("", "H265", "");
        for fmtp in ["profile=0;level-idx=5;tier=0", "profile=1;level-idx=13;tier=1", "profile=2"] {
            check(&format!("a=fmtp:97 {fmtp}|"), "AV1", fmtp);
        }
        check("", "AV1", "");
        let mono = answer(("opus/48000/2", "opus/48000")).unwrap();
        assert!(mono.contains("a=rtpmap:111 opus/48000/2\r\n"), "{mono}");
    }

    #[test]
    fn formats_that_are_alike_are_answered_once() {
        let section = "a=fmtp:97 packetization-mode=1;profile-level-id=42e01f|";
        let more = "a=rtpmap:100 H264/90000|a=fmtp:100 packetization-mode=1;profile-level-id=42c02a|a=rtpmap:101 H264/90000|\
                    a=fmtp:101 packetization-mode=0;profile-level-id=42e01f|a=rtpmap:102 rtx/90000|a=fmtp:102 apt=100|";
        for purpose in [Purpose::Publish, Purpose::Play] {
            let offer = PLAIN.offer().replace("96 97 98", "96 97 98 100 101 102");
            let offer = offer.replace(&section.replace('|', "\r\n"), &(section.to_owned() + more).replace('|', "\r\n"));
            let offer = if purpose == Purpose::Play { offer.replace("sendonly", "recvonly") } else { offer };
            let answer = reply(&offer, purpose).unwrap();
            assert_eq!(answer.matches(" H264/90000").count(), 1, "{answer}");
        }
    }

    /// A section of a data channel, as a third one.
    const CHANNEL: &str = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel|c=IN IP4 0.0.0.0|a=mid:2|a=sctp-port:5000|";

    #[test]
    fn an_offer_is_taken_in_any_form_that_is_legal() {
        for (from, to) in [
            ("s=-", "s= "),
            ("s=-", "s=世界"),
            ("t=0 0|", "t=3950000000 0|"),
            ("t=0 0|", "t=0 0|r=604800 3600 0 90000|t=0 0|"),
            ("o=x 1 2", "o=x 99999999999999999999999 2"),
            ("t=0 0|", "i=x|u=http://x|e=a@b|p=+1|b=CT:5000|t=0 0|"),
            ("c=IN IP4 0.0.0.0|a=mid:1", "i=camera|c=IN IP4 0.0.0.0|b=AS:2000|b=TIAS:2000000|k=prompt|a=mid:1"),
            ("c=IN IP4 0.0.0.0|", ""),
            ("m=video 9 ", "m=video 51234/1 "),
            ("m=video 9 ", "a=bundle-only|m=video 9 "),
            ("a=rtcp-mux|a=rtpmap:96", "a=bundle-only|a=rtpmap:96"),
            ("96 97 98", "96 97 98 99 100"),
            ("96 97 98", "97"),
            ("a=rtpmap:96", "a=ssrc:7|a=candidate:nonsense|a=simulcast: send rid=x|a=rtcp-fb:* nack|a=rtpmap:96"),
        ] {
            let answer = answer((from, to)).unwrap_or_else(|unfit| panic!("{from} as {to}: {unfit}"));
            assert!(answer.contains("a=group:BUNDLE 0 1\r\n"), "{from} as {to}: {answer}");
            assert_eq!(answer.matches("a=recvonly\r\n").count(), 2, "{from} as {to}: {answer}");
        }
        for protocol in ["UDP/TLS/RTP/SAVP", "RTP/SAVPF", "TCP/DTLS/RTP/SAVPF", "RTP/AVP"] {
            let answer = answer(("UDP/TLS/RTP/SAVPF", protocol)).unwrap();
            assert_eq!(answer.matches(&format!(" 9 {protocol} ")).count(), 2, "{answer}");
        }
    }

    #[test]
    fn sections_are_bundled_as_the_client_offers_them() {
        let reversed = answer(("BUNDLE 0 1", "BUNDLE 1 0")).unwrap();
        let (before, video) = reversed.split_once("m=video").unwrap();
        assert!(before.contains("a=group:BUNDLE 1 0\r\n") && !before.contains("a=candidate:"), "{reversed}");
        assert!(video.contains("a=candidate:"), "the first of the bundle speaks for all: {reversed}");
        for group in ["a=group:BUNDLE 0|", "a=group:BUNDLE 0|a=group:BUNDLE 1|", ""] {
            let unfit = answer(("a=group:BUNDLE 0 1|", group)).unwrap_err();
            assert!(matches!(&unfit, Unfit::Unacceptable(why) if why.contains("a=group:BUNDLE")), "{unfit}");
        }
        let only = PLAIN.offer();
        let only = only[..only.find("m=video").unwrap()].replace("a=group:BUNDLE 0 1\r\n", "");
        let named = reply(&only, Purpose::Publish).unwrap();
        assert!(
            !named.contains("BUNDLE") && named.contains("a=mid:0\r\n") && named.contains("a=candidate:"),
            "{named}"
        );
        let unnamed = reply(&only.replace("a=mid:0\r\n", ""), Purpose::Publish).unwrap();
        assert!(!unnamed.contains("a=mid:") && unnamed.contains("a=ice-ufrag:"), "{unnamed}");
    }

    #[test]
    fn a_section_that_is_not_carried_is_rejected_alone() {
        let offer = PLAIN.offer().replace("BUNDLE 0 1", "BUNDLE 2 0 1");
        let (session, media) = offer.split_once("m=audio").unwrap();
        let channel = CHANNEL.replace('|', "\r\n");
        for offer in [format!("{offer}{channel}"), format!("{session}{channel}m=audio{media}")] {
            let answer = reply(&offer, Purpose::Publish).unwrap();
            let rejected = "m=application 0 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:2\r\n";
            assert!(answer.contains(rejected) && answer.contains("a=group:BUNDLE 0 1\r\n"), "{answer}");
            let order = |text: &str| parts(text).skip(1).map(|it| it[..7].to_owned()).collect::<Vec<_>>();
            assert_eq!(order(&answer), order(&offer));
        }
        let more = "m=video 9 UDP/TLS/RTP/SAVPF 96|a=mid:2|a=inactive|a=rtpmap:96 VP8/90000|m=video 0 UDP/TLS/RTP/SAVPF 97|a=mid:3|";
        let answer = reply(&(PLAIN.offer() + &more.replace('|', "\r\n")), Purpose::Publish).unwrap();
        assert_eq!((answer.matches("m=video 0 ").count(), answer.matches("a=recvonly").count()), (2, 2), "{answer}");
    }

    #[test]
    fn of_several_sections_of_a_kind_the_first_carries_media() {
        let more = "m=video 9 UDP/TLS/RTP/SAVPF 97|c=IN IP4 0.0.0.0|a=mid:2|a=rtcp-mux|a=rtpmap:97 H264/90000|\
                    a=fmtp:97 packetization-mode=1;profile-level-id=42e01f|";
        let offer = PLAIN.offer().replace("BUNDLE 0 1", "BUNDLE 0 1 2") + &more.replace('|', "\r\n");
        for (purpose, offered, direction) in
            [(Purpose::Publish, "sendonly", "recvonly"), (Purpose::Play, "recvonly", "sendonly")]
        {
            let answer = reply(&offer.replace("sendonly", offered), purpose).unwrap();
            assert_eq!(answer.matches(&format!("a={direction}\r\n")).count(), 2, "{answer}");
            let idle = &answer[answer.find("a=mid:2").unwrap()..];
            assert!(idle.contains("a=inactive\r\n"), "{answer}");
            assert!(!idle.contains("a=msid:") && !idle.contains("a=ssrc:"), "{answer}");
        }
    }

    #[test]
    fn one_fingerprint_that_can_be_checked_is_enough() {
        for to in ["a=fingerprint:sha-512 CD:CD|a=fingerprint:sha-256", "a=fingerprint:SHA-256"] {
            answer(("a=fingerprint:sha-256", to)).unwrap_or_else(|unfit| panic!("{to}: {unfit}"));
        }
    }

    #[test]
    fn what_the_packets_of_a_publisher_are_is_read_from_its_offer() {
        let named = PLAIN.offer().replace("a=rtpmap:111", &format!("a=extmap:3 {MID_URI}\r\na=rtpmap:111"));
        let named = named.replace("a=rtpmap:98", "a=rtpmap:99 rtx/90000\r\na=fmtp:99 apt=97\r\na=rtpmap:98");
        let named = named.replace("96 97 98", "96 97 98 99");
        let named =
            named.replace("packetization-mode=1;", "packetization-mode=1;sprop-parameter-sets=Z0LAC9k=,aM48gA==,x;");
        let offer = Offer::parse(named.as_bytes(), Purpose::Publish).unwrap();
        let of = |pt| offer.carried.iter().find(|it| it.pt == pt).map(|it| (&*it.mid == "0", it.main, it.named));
        assert_eq!(
            [96, 97, 98, 99, 111].map(of),
            [
                None,
                Some((false, true, false)),
                Some((false, true, false)),
                Some((false, false, false)),
                Some((true, true, true)),
            ]
        );
        assert_eq!(offer.mid_extension, 3);
        let sets: [&[u8]; 2] = [b"\x67\x42\xc0\x0b\xd9", b"\x68\xce\x3c\x80"];
        assert_eq!(offer.parameter_sets, [(97, sets.map(Bytes::from_static).to_vec())]);
        // Whose packets do not name their section is not told of it.
        let answer = reply(&named, Purpose::Publish).unwrap();
        assert_eq!(answer.matches(MID_URI).count(), 1, "{answer}");
        let layers = named.replace("a=rtpmap:96", "a=rid:0 send\r\na=simulcast:send 0\r\na=rtpmap:96");
        assert_eq!(Offer::parse(layers.as_bytes(), Purpose::Publish).unwrap().carried.len(), 1);
        let used =
            PLAIN.offer().replace("a=rtpmap:111", "a=extmap:1 urn:x\r\na=extmap:2/sendonly urn:y\r\na=rtpmap:111");
        assert_eq!(Offer::parse(used.as_bytes(), Purpose::Publish).unwrap().mid_extension, 3);
    }

    #[test]
    fn a_section_keeps_the_name_that_the_client_gave_it() {
        let offer = PLAIN
            .offer()
            .replace("a=mid:0", "a=mid:sound-of-the-room-1")
            .replace("a=mid:1", "a=mid:view-of-the-room-1");
        let offer = offer.replace("BUNDLE 0 1", "BUNDLE sound-of-the-room-1 view-of-the-room-1");
        let answer = reply(&offer, Purpose::Publish).unwrap();
        assert!(answer.contains("a=group:BUNDLE sound-of-the-room-1 view-of-the-room-1\r\n"), "{answer}");
        assert!(answer.contains("a=mid:sound-of-the-room-1\r\n") && answer.contains("a=mid:view-of-the-room-1\r\n"));
        let alike = offer.replace("sound-of-the-room-1", "view-of-the-room-2");
        assert!(reply(&alike, Purpose::Publish).is_err());
    }

    #[test]
    fn media_goes_one_way_whatever_is_offered() {
        for (purpose, offered, want) in [
            (Purpose::Publish, "sendonly", "recvonly"),
            (Purpose::Publish, "sendrecv", "recvonly"),
            (Purpose::Play, "recvonly", "sendonly"),
            (Purpose::Play, "sendrecv", "sendonly"),
        ] {
            let answer = reply(&PLAIN.offer().replace("sendonly", offered), purpose).unwrap();
            assert_eq!(answer.matches(&format!("a={want}\r\n")).count(), 2, "{offered}: {answer}");
            let ours = answer.contains("a=ssrc:") || answer.contains("a=msid:");
            assert_eq!(ours, purpose == Purpose::Play, "{offered}: {answer}");
        }
    }

    #[test]
    fn sound_and_pictures_are_of_one_stream_and_one_clock() {
        let ours = |offer: &str| {
            let answer = reply(&offer.replace("sendonly", "recvonly"), Purpose::Play).unwrap();
            let of = |mark: &str| {
                let names = answer.lines().filter_map(|line| line.split_once(mark)?.1.split(' ').next());
                names.map(str::to_owned).collect::<Vec<_>>()
            };
            let (streams, clocks) = (of("msid:"), of(" cname:"));
            assert!(streams.len() >= 4 && streams.iter().all(|it| *it == streams[0]), "{answer}");
            assert!(clocks.len() >= 2 && clocks.iter().all(|it| *it == clocks[0]), "{answer}");
            assert!(answer.contains(&format!("a=msid-semantic: WMS {}\r\n", streams[0])), "{answer}");
            let tracks: HashSet<_> = answer.lines().filter_map(|line| line.strip_prefix("a=msid:")).collect();
            assert_eq!(tracks.len(), 2, "{answer}");
            streams[0].clone()
        };
        let plain = PLAIN.offer();
        // What the client calls its own is nothing to us.
        let named = plain.replace("a=rtcp-mux", "a=rtcp-mux\r\na=msid:mine its-track");
        assert!(ours(&plain) != ours(&plain) && ours(&named) != "mine");
    }

    #[test]
    fn a_publisher_turns_its_pictures_itself() {
        let turned = "a=extmap:4 urn:3gpp:video-orientation\r\n";
        let offer = PLAIN.offer().replace(
            "a=rtpmap:97",
            &format!("{turned}a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time\r\na=rtpmap:97"),
        );
        let answer = reply(&offer, Purpose::Publish).unwrap();
        assert!(!answer.contains("video-orientation") && answer.contains("a=extmap:5 "), "{answer}");
    }

    #[test]
    fn the_answer_asks_for_stereo_and_for_dtx_where_offered() {
        let with = answer(("", "")).unwrap();
        assert!(with.contains("stereo=1;sprop-stereo=1;usedtx=1\r\n") && with.contains("useinbandfec=1"), "{with}");
        let without = answer((";usedtx=1", "")).unwrap();
        assert!(without.contains("sprop-stereo=1\r\n"), "{without}");
    }

    #[test]
    fn sound_that_is_sent_twice_is_taken_and_never_asked_for_by_who_does_not_offer_it() {
        // As Chromium does; and as a sender that would rather.
        for payloads in ["111 63", "63 111"] {
            let section = "SAVPF 111\r\nc=IN IP4 0.0.0.0\r\n";
            let red = section.replace("111", payloads) + "a=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111\r\n";
            let with = answer((section, &red)).unwrap();
            assert!(with.contains("SAVPF 63 111\r\n") && with.contains("a=fmtp:63 111/111\r\n"), "{with}");
            assert!(with.contains("a=rtpmap:111 opus/48000/2") && with.contains("sprop-stereo=1"), "{with}");
        }
        assert!(!answer(("", "")).unwrap().contains("red/"));
    }

    #[test]
    fn what_cannot_be_taken_is_told() {
        let check = |change: (&str, &str), want: &str| {
            let unfit = answer(change).unwrap_err();
            assert!(unfit.to_string().contains(want), "{unfit}");
        };
        check(("a=sendonly", "a=recvonly"), "no sendonly audio or video");
        check(("opus/48000/2", "PCMU/8000"), "(PCMU) will do; this audio codec");
        check(("ice-ufrag", "ice-x"), "no a=ice-ufrag");
        check(("v=0", "v=1"), "not SDP");
        check(("ice-pwd", "ice-x"), "no a=ice-pwd");
        check(("ice-ufrag:abcd", "ice-ufrag:abc"), "a=ice-ufrag: has 4 to 256");
        check(("ice-pwd:0123456789abcdef01234567", "ice-pwd:0123456789abcdef01234"), "a=ice-pwd: has 22 to 256");
        check(("ice-ufrag:abcd", "ice-ufrag:ab d"), "a=ice-ufrag: has 4 to 256");
        check(("actpass", "holdconn"), "a=setup:holdconn");
        check(("opus/48000", "opus/16000"), "(opus) will do");
        check(("SAVPF 111|", "SAVPF 97|a=rtpmap:97 opus/48000/2|"), "payload type 97");
        for hash in ["sha-512 AB:", "sha-1 AB:", "sha-256 AB|a=x:", "sha-256 AB:AB:", "sha-256 XY:"] {
            check(("sha-256 AB:", hash), "no a=fingerprint:sha-256 with 32 bytes");
        }
        let video = answer(("H264/90000", "VP9/90000")).unwrap();
        assert!(video.contains("AV1/90000"), "one codec that will do is enough: {video}");
    }

    #[test]
    fn a_restart_is_the_same_offer_with_other_credentials() {
        let offer = Offer::parse(PLAIN.offer().as_bytes(), Purpose::Publish).unwrap();
        let mut rtc = engine(&offer);
        let first = accept(&mut rtc, &offer).unwrap();
        let creds = IceCreds { ufrag: "efgh".into(), pass: "0123456789abcdef01234568".into() };
        let again = offer.restarted(&creds);
        let second = accept(&mut rtc, &again).unwrap();
        let user = |answer: &str| value(answer, "a=ice-ufrag:").map(str::to_owned);
        assert_ne!(user(&first), user(&second));
        assert_eq!((again.user.as_str(), again.text.contains("a=candidate:")), ("efgh", false));
        let told = fragment(&second);
        assert_eq!((told.matches("m=").count(), user(&told)), (1, user(&second)), "{told}");
        for line in ["a=mid:", "a=ice-ufrag:", "a=ice-pwd:", "a=group:BUNDLE 0 1"] {
            assert_eq!(told.matches(line).count(), 1, "{told}");
        }
    }

    #[test]
    fn a_fragment_has_credentials_and_may_have_candidates() {
        let read = |text: &str| Fragment::parse(text.as_bytes()).map(|it| (it.creds.ufrag, it.candidates.len()));
        let creds = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdef012345\r\n";
        let candidates = "a=candidate:1 1 udp 1 127.0.0.1 9 typ host\r\na=candidate:1 1 udp 1 x.local 9 typ host\r\n";
        assert_eq!(read(&(creds.to_owned() + candidates)), Ok(("abcd".to_owned(), 1)));
        assert!(read(candidates).is_err());
        assert!(read("a=ice-ufrag:ab d\na=ice-pwd:0123456789abcdef012345").is_err());
        assert!(read("a=ice-ufrag:abcd\na=ice-pwd:short").is_err());
    }
}
