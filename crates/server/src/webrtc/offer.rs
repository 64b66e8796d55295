//! Offers and ICE fragments, read from whoever sends them, and the engine's settings that answer them.
//!
//! Invariant: what is refused is refused before the engine sees it, with a reason that a person can act on; the work is linear in
//! a text of at most [`TEXT_MAX`] bytes.

use std::collections::HashMap;
use std::time::Duration;

use str0m::change::SdpOffer;
use str0m::config::DtlsCert;
use str0m::{Candidate, IceCreds, Rtc, RtcConfig};

use super::dtls;
use crate::token::Purpose;

/// The longest offer or fragment, in bytes.
pub const TEXT_MAX: usize = 64 << 10;

const MEDIA_MAX: usize = 16;
const CANDIDATES_MAX: usize = 64;

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

/// An offer that can be answered.
pub struct Offer {
    text: String,
    /// The client's ICE user.
    pub user: String,
    /// Whether pictures are offered, or asked for.
    pub video: bool,
    /// Likewise sound.
    pub audio: bool,
}

impl Offer {
    /// Reads an offer to publish or to play.
    pub fn parse(body: &[u8], purpose: Purpose) -> Result<Offer, Unfit> {
        let text = text(body)?;
        if !text.starts_with("v=0") {
            return malformed("the body is not SDP: it begins with v=0");
        }
        let sections = sections(text)?;
        let mut offer = Offer { text: spelt_out(text, &sections), user: String::new(), video: false, audio: false };
        for section in &sections {
            if !section.flows(purpose) {
                continue;
            }
            match section.kind {
                "video" => offer.video |= section.check(purpose, VIDEO)?,
                "audio" => offer.audio |= section.check(purpose, AUDIO)?,
                kind => return Err(Unfit::Unacceptable(format!("m={kind} is not taken: audio and video alone are"))),
            }
        }
        if !offer.video && !offer.audio {
            let want = if purpose == Purpose::Publish { "sendonly" } else { "recvonly" };
            return Err(Unfit::Unacceptable(format!("the offer has no {want} audio or video")));
        }
        match value(text, "a=ice-ufrag:") {
            Some(user) => offer.user = user.to_owned(),
            None => return malformed("the offer has no a=ice-ufrag"),
        }
        offer.sdp()?;
        Ok(offer)
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
        Offer { text, user: creds.ufrag.clone(), ..*self }
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
        let (Some(user), Some(password)) = (value(text, "a=ice-ufrag:"), value(text, "a=ice-pwd:")) else {
            return malformed("the fragment has no a=ice-ufrag and a=ice-pwd");
        };
        // RFC 8839 §5.4.
        let token = |it: &str, least| {
            (least..=256).contains(&it.len())
                && it.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/'))
        };
        // Firefox and libdatachannel keep to it, but some write - and _ as well.
        if !token(&user.replace(['-', '_'], "+"), 4) || !token(&password.replace(['-', '_'], "+"), 22) {
            return malformed("the fragment's ICE credentials are malformed");
        }
        let candidates = text.lines().filter_map(|line| line.trim_end().strip_prefix("a="));
        let candidates = candidates.filter(|line| line.starts_with("candidate:"));
        let candidates = candidates.filter_map(|line| Candidate::from_sdp_string(line).ok()).collect();
        Ok(Fragment { creds: IceCreds { ufrag: user.to_owned(), pass: password.to_owned() }, candidates })
    }
}

/// Has the engine take an offer: its first, or the same again with other credentials. Gives the answer.
pub fn accept(rtc: &mut Rtc, offer: &Offer) -> Result<String, Unfit> {
    let answer = rtc.sdp_api().accept_offer(offer.sdp()?).map_err(|error| Unfit::Malformed(error.to_string()))?;
    Ok(finished(&answer.to_sdp_string(), offer))
}

/// What an answer tells of ICE, as the answer to a PATCH that restarts it (RFC 9725 §4.3.2).
pub fn fragment(answer: &str) -> String {
    let of_ice = ["a=ice-", "a=group:", "m=", "a=mid:", "a=candidate:", "a=end-of-candidates"];
    let mut media = false;
    let lines = answer.lines().filter(|line| {
        // The first section speaks for the bundle.
        let first = !(line.starts_with("m=") && std::mem::replace(&mut media, true)) || line.starts_with("a=ice-lite");
        first && of_ice.iter().any(|it| line.starts_with(it))
    });
    lines.fold(String::new(), |text, line| text + line + "\r\n")
}

/// An answer with what the engine leaves out: sound in stereo, which without this line a sender takes as mono (RFC 7587 §7.1), and
/// silence cut where the client offered to.
fn finished(answer: &str, offer: &Offer) -> String {
    let opus = answer.lines().find_map(|line| {
        let (pt, codec) = line.strip_prefix("a=rtpmap:")?.split_once(' ')?;
        codec.to_ascii_lowercase().starts_with("opus/").then_some(pt)
    });
    let Some(opus) = opus else { return answer.to_owned() };
    let format = format!("a=fmtp:{opus} ");
    let dtx = if offer.text.contains("usedtx=1") { ";usedtx=1" } else { "" };
    answer.lines().fold(String::new(), |mut text, line| {
        text.push_str(line);
        if line.starts_with(&format) {
            text.extend([";stereo=1;sprop-stereo=1", dtx]);
        }
        text.push_str("\r\n");
        text
    })
}

/// How often the engine tells its counts.
const STATS: Duration = Duration::from_secs(5);

/// The engine's settings for a session. Sound waits for `jitter_buffer` for a packet that has not come; pictures wait as long as
/// sending the packet again can take.
pub fn config(purpose: Purpose, certificate: DtlsCert, jitter_buffer: Duration) -> RtcConfig {
    // Publishers that can do so send each packet of sound again with the next one (RED, RFC 2198): what is lost comes
    // back without being asked for. Players are not sent their sound twice.
    let mut config = RtcConfig::new()
        .set_ice_lite(true)
        .set_dtls_cert(certificate)
        .set_crypto_provider(dtls::provider())
        .set_stats_interval(Some(STATS))
        .set_reordering_timeout_audio(Some(jitter_buffer))
        .clear_codecs()
        .enable_opus(true, purpose == Purpose::Publish);
    // The profile counts, the level does not: but senders keep to the level of the answer, and 5.2 leaves them free.
    let h264: [(u8, u8, u32); 7] = [
        (127, 121, 0x42_00_34),
        (108, 109, 0x42_e0_34),
        (123, 119, 0x4d_00_34),
        (114, 115, 0x64_00_34),
        (39, 40, 0x64_0c_34),
        (41, 42, 0x6e_00_34),
        (43, 44, 0xf4_00_34),
    ];
    for (pt, resend, profile) in h264 {
        config.codec_config().add_h264(pt.into(), Some(resend.into()), true, profile);
    }
    match purpose {
        Purpose::Publish => config.enable_h265(true).enable_av1(true),
        Purpose::Play => config,
    }
}

/// What a section may carry, for the check and for the reason of a refusal.
struct Carried {
    publish: &'static [&'static str],
    play: &'static [&'static str],
    names: &'static str,
}

const VIDEO: Carried = Carried {
    publish: &["H264", "H265", "AV1"],
    play: &["H264"],
    names: "video codec is carried: H264 with packetization-mode=1, to publish also H265 and AV1",
};
const AUDIO: Carried = Carried { publish: &["OPUS"], play: &["OPUS"], names: "audio codec is carried: opus is" };

/// A media section of an offer.
struct Section<'a> {
    kind: &'a str,
    /// Whether the client sends, and whether it receives.
    direction: (bool, bool),
    /// It says so itself.
    directed: bool,
    rejected: bool,
    codecs: HashMap<&'a str, &'a str>,
    formats: HashMap<&'a str, &'a str>,
}

impl Section<'_> {
    fn flows(&self, purpose: Purpose) -> bool {
        let (sends, receives) = self.direction;
        !self.rejected && if purpose == Purpose::Publish { sends } else { receives }
    }

    /// True, unless none of the codecs is carried.
    fn check(&self, purpose: Purpose, carried: Carried) -> Result<bool, Unfit> {
        let names = if purpose == Purpose::Publish { carried.publish } else { carried.play };
        let fits = |(pt, name): (&&str, &&str)| {
            let whole = self.formats.get(pt).is_some_and(|it| it.contains("packetization-mode=1"));
            names.iter().any(|it| it.eq_ignore_ascii_case(name)) && (!name.eq_ignore_ascii_case("H264") || whole)
        };
        if self.codecs.iter().any(fits) {
            return Ok(true);
        }
        let mut offered: Vec<_> =
            self.codecs.values().copied().map(|it| it.chars().take(16).collect::<String>()).collect();
        offered.sort();
        offered.dedup();
        offered.truncate(12);
        let offered = offered.join(", ");
        Err(Unfit::Unacceptable(format!("none of the offer's codecs ({offered}) will do; this {}", carried.names)))
    }
}

/// The offer with a direction in each section, as the engine wants it; it may stand once for all, or not at all (RFC 8866 §6.7).
fn spelt_out(text: &str, sections: &[Section<'_>]) -> String {
    let missing = |section: &Section| match section.direction {
        _ if section.directed => "",
        (true, true) => "a=sendrecv\r\n",
        (true, false) => "a=sendonly\r\n",
        (false, true) => "a=recvonly\r\n",
        (false, false) => "a=inactive\r\n",
    };
    let (mut out, mut sections, mut open) = (String::new(), sections.iter(), "");
    for line in text.lines() {
        // Attributes stand last in a section (RFC 8866 §9).
        if line.starts_with("m=") {
            out.push_str(std::mem::replace(&mut open, sections.next().map_or("", missing)));
        }
        out.extend([line.trim_end(), "\r\n"]);
    }
    out + open
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

fn sections(text: &str) -> Result<Vec<Section<'_>>, Unfit> {
    let mut sections: Vec<Section> = Vec::new();
    let (mut session, mut candidates) = ((true, true), 0);
    for line in text.lines() {
        let line = line.trim_end();
        let direction = match line {
            "a=sendonly" => Some((true, false)),
            "a=recvonly" => Some((false, true)),
            "a=sendrecv" => Some((true, true)),
            "a=inactive" => Some((false, false)),
            _ => None,
        };
        if let Some(media) = line.strip_prefix("m=") {
            if sections.len() == MEDIA_MAX {
                return malformed(format!("there are more than {MEDIA_MAX} media sections"));
            }
            let mut words = media.split(' ');
            let kind = words.next().unwrap_or_default();
            // RFC 8843: a section of a bundle may have the port 0 and say bundle-only.
            let rejected = words.next() == Some("0");
            let (codecs, formats) = (HashMap::new(), HashMap::new());
            sections.push(Section { kind, direction: session, directed: false, rejected, codecs, formats });
        } else if line.starts_with("a=candidate:") {
            candidates += 1;
            if candidates > CANDIDATES_MAX {
                return malformed(format!("there are more than {CANDIDATES_MAX} candidates"));
            }
        } else if let Some(section) = sections.last_mut() {
            if let Some(direction) = direction {
                (section.direction, section.directed) = (direction, true);
            } else if line == "a=bundle-only" {
                section.rejected = false;
            } else if let Some((pt, codec)) = line.strip_prefix("a=rtpmap:").and_then(|it| it.split_once(' ')) {
                section.codecs.insert(pt, codec.split('/').next().unwrap_or_default());
            } else if let Some((pt, format)) = line.strip_prefix("a=fmtp:").and_then(|it| it.split_once(' ')) {
                section.formats.insert(pt, format);
            }
        } else if let Some(direction) = direction {
            session = direction;
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::webrtc::certificate;

    fn engine() -> Rtc {
        let certificate = certificate::make().expect("a certificate");
        config(Purpose::Publish, certificate, Duration::from_millis(100)).build(Instant::now())
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
    };

    /// Answers the plain offer, after changing `from` to `to` in it; gives the answer.
    fn answer((from, to): (&str, &str)) -> Result<String, Unfit> {
        let offer = Offer::parse(PLAIN.offer().replace(from, to).as_bytes(), Purpose::Publish)?;
        let mut rtc = engine();
        accept(&mut rtc, &offer)
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
        },
    ];

    #[test]
    fn what_clients_offer_is_answered_as_they_need_it() {
        for client in CLIENTS {
            let Client { name, want, .. } = client;
            let offer = Offer::parse(client.offer().as_bytes(), Purpose::Publish);
            let offer = offer.unwrap_or_else(|unfit| panic!("{name}: {unfit}"));
            let mut rtc = engine();
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
            let first = answer.lines().find(|line| line.starts_with("a=candidate:"));
            assert!(
                first.is_some_and(|it| it.contains(" udp ") && it.contains(" 192.0.2.1 8000 typ host")),
                "{name}: {first:?}"
            );
        }
    }

    #[test]
    fn every_profile_is_taken_in_packetization_mode_1_and_vp8_left_out() {
        for profile in ["42001f", "42e01f", "42c01f", "4d001f", "4d401f", "640034", "640c1f", "f4001f", "6e0028"] {
            let answer = answer(("42e01f", profile)).unwrap();
            assert!(answer.contains("a=rtpmap:97 H264/90000") && answer.contains("AV1/90000"), "{profile}: {answer}");
            assert!(!answer.contains("VP8"), "{profile}: {answer}");
        }
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
        check(("m=audio", "m=application"), "m=application is not taken");
        check(("v=0", "v=1"), "not SDP");
        let video = answer(("H264/90000", "VP9/90000")).unwrap();
        assert!(video.contains("AV1/90000"), "one codec that will do is enough: {video}");
    }

    #[test]
    fn a_restart_is_the_same_offer_with_other_credentials() {
        let offer = Offer::parse(PLAIN.offer().as_bytes(), Purpose::Publish).unwrap();
        let mut rtc = engine();
        let first = accept(&mut rtc, &offer).unwrap();
        let creds = IceCreds { ufrag: "efgh".into(), pass: "0123456789abcdef01234568".into() };
        let again = offer.restarted(&creds);
        let second = accept(&mut rtc, &again).unwrap();
        let user = |answer: &str| value(answer, "a=ice-ufrag:").map(str::to_owned);
        assert_ne!(user(&first), user(&second));
        assert_eq!((again.user.as_str(), again.text.contains("a=candidate:")), ("efgh", false));
        let told = fragment(&second);
        assert_eq!((told.matches("m=").count(), user(&told)), (1, user(&second)), "{told}");
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
