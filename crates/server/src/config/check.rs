//! What one key alone cannot tell: keys that need or exclude each other, and files that must be there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use super::keys::Scope;
use super::read::{Place, Reader};
use super::{App, Config, Driver, PublishAuth, Push, pem};

/// Finishes `config`, and notes what does not fit together.
pub fn check(reader: &mut Reader<'_>, config: &mut Config) {
    listeners(reader, config);
    files(reader, config);
    if config.relay.retry.first > config.relay.retry.max {
        reader.problem(reader.place("relay.retry.first"), "`relay.retry.first` is longer than `relay.retry.max`");
    }
    if config.media.access_key_id.is_some() != config.media.secret_access_key.is_some() {
        reader.problem(reader.place("media"), "`media.access_key_id` and `media.secret_access_key` go together");
    }
    let mut ids = BTreeMap::new();
    for (i, app) in config.apps.iter().enumerate() {
        let at = format!("app.{i}");
        if app.id != 0
            && let Some(first) = ids.insert(app.id, reader.place(&format!("{at}.id")))
        {
            let line = if let Place::Line(_, line) = &first { format!(" in line {line}") } else { String::new() };
            reader.problem(
                reader.place(&format!("{at}.id")),
                format!("app {} is there already{line}: give each app its own id", app.id),
            );
        }
        check_app(reader, &at, app);
    }
}

fn listeners(reader: &mut Reader<'_>, config: &mut Config) {
    let all = [
        ("http.listen", config.http.listen),
        ("rtmp.listen", config.rtmp.listen),
        ("webrtc.listen", config.webrtc.listen),
    ];
    for (i, (key, address)) in all.iter().enumerate() {
        if let Some((other, taken)) = all[..i].iter().find(|it| collide(it.1, *address)) {
            let place = if reader.has(key) { reader.place(key) } else { reader.place(other) };
            let what = match taken == address {
                true => format!("`{key}` and `{other}` are both {address}"),
                false => format!("`{key}` is {address} and `{other}` is {taken}, which holds it too"),
            };
            reader.problem(place, format!("{what}: choose another port for one"));
        }
    }
    if !reader.has("http.public_url") {
        let mut address = config.http.listen;
        // A wildcard is no address to connect to.
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let scheme = if config.http.tls.is_some() { "https" } else { "http" };
        config.http.public_url = format!("{scheme}://{address}");
    }
}

/// Whether only one of them can listen. A wildcard holds all addresses of its family, and that of IPv6 those of IPv4 as well.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let holds =
        |a: SocketAddr, b: SocketAddr| a.ip() == b.ip() || a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    one.port() != 0 && one.port() == other.port() && (holds(one, other) || holds(other, one))
}

fn files(reader: &mut Reader<'_>, config: &Config) {
    if let Some(tls) = &config.http.tls {
        for name in ["http.tls.certificate", "http.tls.key"] {
            if !reader.has(name) {
                let text = format!("`{name}` is missing: TLS needs certificate and key");
                reader.problem(reader.place("http.tls"), text);
            }
        }
        let chain = file(reader, "http.tls.certificate", &tls.certificate, pem::certificates);
        let key = file(reader, "http.tls.key", &tls.key, pem::private_key);
        if let (Some(chain), Some(key)) = (chain, key)
            && let Err(why) = pem::server(chain, key)
        {
            let text = format!("`http.tls.key`: {} does not go with the certificate: {why}", tls.key.display());
            reader.problem(reader.place("http.tls.key"), text);
        }
    }
    if let Some(roots) = &config.relay.ca_file {
        file(reader, "relay.ca_file", roots, pem::certificates);
    }
}

/// What `read` finds in the file, or else what is wrong with it.
fn file<T>(
    reader: &mut Reader<'_>,
    name: &str,
    file: &Path,
    read: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Option<T> {
    // An empty path has its own problem already.
    if file.as_os_str().is_empty() {
        return None;
    }
    let found = match std::fs::read(file) {
        Err(why) => Err(format!("cannot read {}: {why}", file.display())),
        Ok(text) => read(&text).map_err(|why| format!("{} {why}", file.display())),
    };
    found.map_err(|wrong| reader.problem(reader.place(name), format!("`{name}`: {wrong}"))).ok()
}

fn check_app(reader: &mut Reader<'_>, at: &str, app: &App) {
    required::<App>(reader, at, "the app");
    let callback = &app.callback;
    for (name, url) in [
        ("stream", &callback.stream),
        ("record", &callback.record),
        ("compose", &callback.compose),
        ("state", &callback.state),
    ] {
        if url.is_some() && !reader.has(&format!("{at}.callback_secret")) {
            reader.problem(
                reader.place(&format!("{at}.callback.{name}")),
                "a callback is signed: set `callback_secret` of the app",
            );
            break;
        }
    }
    if app.publish_auth == PublishAuth::Token && !reader.has(&format!("{at}.publish_key")) {
        reader.problem(
            reader.place(&format!("{at}.publish_auth")),
            "`publish_auth = \"token\"` needs `publish_key`, the key of the tokens",
        );
    }
    if app.cdn.relay_everything && !reader.has(&format!("{at}.cdn.default_target")) {
        reader.problem(
            reader.place(&format!("{at}.cdn.relay_everything")),
            "`cdn.relay_everything` needs `cdn.default_target`",
        );
    }
    for (i, push) in app.cdn.push.iter().enumerate() {
        let here = format!("{at}.cdn.push.{i}");
        required::<Push>(reader, &here, "the push entry");
        if !push.host.is_empty() && app.cdn.push[..i].iter().any(|it| it.host == push.host) {
            reader.problem(reader.place(&format!("{here}.host")), format!("{} has an entry already", push.host));
        }
    }
    for (vendor, record) in &app.record {
        let here = format!("{at}.record.{vendor}");
        if record.driver == Driver::Cloud {
            reader.problem(
                reader.place(&format!("{here}.driver")),
                "recording by the vendor's cloud is not in this version: use `driver = \"local\"`",
            );
        }
        if record.formats.is_empty() {
            reader.problem(reader.place(&format!("{here}.formats")), "the list of formats is empty: name one at least");
        }
    }
}

fn required<S: Scope>(reader: &mut Reader<'_>, at: &str, what: &str) {
    for key in S::keys().iter().filter(|it| it.required) {
        if !reader.has(&format!("{at}.{}", key.path)) {
            reader.problem(reader.place(at), format!("{what} needs `{}`", key.path));
        }
    }
}
