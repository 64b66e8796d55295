//! Where a stream is pushed to: an `rtmp://` or `rtmps://` address, parsed once.
//!
//! Invariant: [`Target::address`] and [`Target::masked`] hold no query value, so they may be compared, and shown to the app that gave
//! the target. Anyone may see [`Target::public`].

use std::fmt;
use std::net::Ipv6Addr;

use sha2::{Digest, Sha256};

use crate::secret::Secret;

/// A push target. Prints as anyone may see it.
#[derive(Clone)]
pub struct Target {
    tls: bool,
    host: String,
    port: u16,
    app: String,
    stream: String,
    url: Secret,
}

/// The longest address of a target, in bytes.
pub const TARGET_MAX: usize = 2048;

impl Target {
    /// Parses `rtmp[s]://host[:port]/app…/stream[?query]`. The error says why not, without quoting the address.
    pub fn parse(url: &str) -> Result<Target, String> {
        if url.len() > TARGET_MAX {
            return Err(format!("the address is longer than {TARGET_MAX} bytes"));
        }
        if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("the address holds a space or a control character".into());
        }
        let (scheme, rest) = url.split_once("://").ok_or("the address does not begin with rtmp:// or rtmps://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "rtmp" => false,
            "rtmps" => true,
            _ => return Err("the address does not begin with rtmp:// or rtmps://".into()),
        };
        let (location, _query) = rest.split_once('?').unwrap_or((rest, ""));
        if rest.contains('#') {
            return Err("the address holds a fragment (#)".into());
        }
        let (authority, path) =
            location.split_once('/').ok_or("the address has no path: it needs an app and a stream")?;
        if authority.contains('@') {
            return Err("the address holds a user name: put credentials in the query".into());
        }
        let (host, port) = split_authority(authority)?;
        let (app, stream) = path.rsplit_once('/').ok_or("the path needs an app and a stream: /app/stream")?;
        if app.is_empty() || stream.is_empty() {
            return Err("the path needs an app and a stream: /app/stream".into());
        }
        Ok(Target {
            tls,
            host,
            port: port.unwrap_or(default_port(tls)),
            app: app.into(),
            stream: stream.into(),
            url: Secret::new(url),
        })
    }

    /// The target's identity: scheme and host in lower case, no default port, the path as it is, no query.
    pub fn address(&self) -> String {
        format!("{}/{}", self.tc_url(), self.stream)
    }

    /// The address as its app may see it: `?***` stands for a query.
    pub fn masked(&self) -> String {
        let mark = if self.query().is_empty() { "" } else { "?***" };
        self.address() + mark
    }

    /// The address as anyone may see it, in logs and metrics: without query, and with the end of the path cut short where that may
    /// be a key.
    pub fn public(&self, id: &str) -> String {
        format!("{}/{}", self.tc_url(), self.short_key(id).as_deref().unwrap_or(&self.stream))
    }

    /// What stands for the last segment of the path where that may be a key, as YouTube, Twitch and Facebook give them: a few of its
    /// characters, and a hash that tells it from other keys. One that names the stream with this id is none.
    pub fn short_key(&self, id: &str) -> Option<String> {
        if !id.is_empty() && self.stream.contains(id) {
            return None;
        }
        let shown: String = self.stream.chars().take(4.min(self.stream.len() / 4)).collect();
        Some(format!("{shown}…{}", hex::encode(&Sha256::digest(self.address())[..4])))
    }

    /// The address as it was given, query included.
    pub fn url(&self) -> &Secret {
        &self.url
    }

    /// The host in lower case; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port; 1935 for `rtmp`, 443 for `rtmps`, where the address has none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection is TLS (`rtmps`).
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// RTMP's `app`: the path without its last segment and outer slashes.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// The last segment of the path, without query.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// RTMP's `tcUrl`: scheme, host, port unless it is the default, and app.
    pub fn tc_url(&self) -> String {
        let scheme = if self.tls { "rtmps" } else { "rtmp" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = if self.port == default_port(self.tls) { String::new() } else { format!(":{}", self.port) };
        format!("{scheme}://{host}{port}/{}", self.app)
    }

    pub(super) fn path(&self) -> String {
        format!("/{}/{}", self.app, self.stream)
    }

    pub(super) fn query(&self) -> &str {
        self.url.expose().split_once('?').map_or("", |(_, query)| query)
    }

    pub(super) fn stream_with_query(&self) -> String {
        match self.url.expose().split_once('?') {
            Some((_, query)) => format!("{}?{query}", self.stream),
            None => self.stream.clone(),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public(""))
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 1935 }
}

fn split_authority(authority: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the IPv6 address has no closing bracket")?;
            let host: Ipv6Addr = host.parse().map_err(|_| "the host is not an IPv6 address")?;
            let port = if after.is_empty() {
                None
            } else {
                Some(after.strip_prefix(':').ok_or("text follows the IPv6 address")?)
            };
            (host.to_string(), port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host.to_ascii_lowercase(), Some(port)),
            None => (authority.to_ascii_lowercase(), None),
        },
    };
    let named = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if host.is_empty() || host.len() > 253 || !(host.contains(':') || host.bytes().all(named)) {
        return Err("the host is neither a name nor an IP address".into());
    }
    let digits = |it: &&str| !it.is_empty() && it.bytes().all(|c| c.is_ascii_digit());
    let port = match port {
        Some(text) => Some(
            Some(text)
                .filter(digits)
                .and_then(|it| it.parse().ok())
                .filter(|&it| it != 0)
                .ok_or("the port is not a number from 1 to 65535")?,
        ),
        None => None,
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_taken_apart_and_normalised() {
        let check = |url: &str, address: &str, host: &str, port: u16, app: &str, stream: &str, tc_url: &str| {
            let it = Target::parse(url).unwrap();
            assert_eq!(
                (it.address().as_str(), it.host(), it.port(), it.app(), it.stream(), it.tc_url().as_str()),
                (address, host, port, app, stream, tc_url)
            );
            assert_eq!(it.url().expose(), url);
        };
        check(
            "RTMP://Push.Example.com/live/A?k=v",
            "rtmp://push.example.com/live/A",
            "push.example.com",
            1935,
            "live",
            "A",
            "rtmp://push.example.com/live",
        );
        check("rtmp://h:1935/a/s", "rtmp://h/a/s", "h", 1935, "a", "s", "rtmp://h/a");
        check("rtmp://h:443/a/s", "rtmp://h:443/a/s", "h", 443, "a", "s", "rtmp://h:443/a");
        check("rtmps://h:443/a/b/s?x=/y", "rtmps://h/a/b/s", "h", 443, "a/b", "s", "rtmps://h/a/b");
        check("rtmp://[::1]:1936/a/s", "rtmp://[::1]:1936/a/s", "::1", 1936, "a", "s", "rtmp://[::1]:1936/a");
    }

    #[test]
    fn a_target_is_shown_without_its_query_and_to_strangers_without_a_key_in_its_path() {
        let check = |url: &str, id: &str, masked: &str, public: &str| {
            let it = Target::parse(url).unwrap();
            assert_eq!((it.masked(), it.public(id)), (masked.into(), public.into()), "{url} of {id}");
        };
        check("rtmp://h/a/show?txSecret=deadbeef", "show", "rtmp://h/a/show?***", "rtmp://h/a/show");
        check("rtmp://h/a/7_show", "show", "rtmp://h/a/7_show", "rtmp://h/a/7_show");
        let key = "rtmp://h/live2/ab12-cd34-ef56-gh78";
        check(key, "show", key, "rtmp://h/live2/ab12…e56ad842");
        check("rtmp://h/live2/pass", "show", "rtmp://h/live2/pass", "rtmp://h/live2/p…6840edcf");
        let it = format!("{:?}", Target::parse(&format!("{key}?k=v")).unwrap());
        assert!(it.starts_with("rtmp://h/live2/ab12…") && !it.contains("cd34"), "{it}");
    }

    #[test]
    fn what_is_not_a_target_is_refused_without_being_quoted() {
        let long = format!("rtmp://h/a/{}", "s".repeat(TARGET_MAX));
        let bad = [
            "",
            "h/a/s",
            "http://h/a/s",
            "rtmp:/h/a/s",
            "rtmp://",
            "rtmp:///a/s",
            "rtmp://h",
            "rtmp://h/",
            "rtmp://h/a",
            "rtmp://h/a/",
            "rtmp://h//s",
            "rtmp://h/a?x=/s",
            "rtmp://u:SECRET@h/a/s",
            "rtmp://h:0/a/s",
            "rtmp://h:65536/a/s",
            "rtmp://h:/a/s",
            "rtmp://h:+1/a/s",
            "rtmp://h:1:2/a/s",
            "rtmp://[::1/a/s",
            "rtmp://[::1]x/a/s",
            "rtmp://[SECRET]/a/s",
            "rtmp://SECRET!/a/s",
            "rtmp://h/a/s\r\n",
            "rtmp://h/a/s t",
            "rtmp://h/a/s#SECRET",
            &long,
        ];
        for url in bad {
            let why = Target::parse(url).expect_err(url);
            assert!(!why.contains("SECRET"), "{why}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_text_is_parsed_or_refused_and_an_address_is_its_own_address(url in "(rtmp://|rtmps://\\[)?\\PC{0,40}") {
            if let Ok(target) = Target::parse(&url) {
                let again = Target::parse(&target.address()).unwrap();
                prop_assert_eq!(again.address(), target.address());
            }
        }
    }
}
