//! The manual says what the code does: what can be compared is compared here.
//!
//! `BYWASH_BLESS=1 cargo test -p bywash --test docs` writes the made part of docs/api.md anew.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string, write};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bywash::api::{ACTIONS, code};
use bywash::callback;
use bywash::config::{Config, page};
use bywash::secret::Secret;

/// The root of the tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All files below `folder` that end in `end`, in order.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let entries: BTreeSet<_> = read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path, end),
        false => Vec::from_iter(path.to_str().unwrap().ends_with(end).then_some(path)),
    };
    entries.into_iter().flat_map(below).collect()
}

/// The pages that are read on their own: those of the root and of docs.
fn pages() -> Vec<(PathBuf, String)> {
    let top = read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let top = top.filter(|path| path.extension().is_some_and(|it| it == "md"));
    top.chain(files(&root().join("docs"), ".md")).map(|path| (path.clone(), read_to_string(path).unwrap())).collect()
}

/// What a page writes between single backquotes, blocks of code left out.
fn spans(page: &str) -> impl Iterator<Item = &str> {
    page.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2))
}

#[test]
fn the_api_page_has_every_action_and_every_code() {
    const MARK: &str = "<!-- From here on: made from the code. -->\n";
    let sources = files(&root().join("crates/server/src/api/action"), ".rs");
    let sources: Vec<_> = sources.iter().map(|path| read_to_string(path).unwrap()).collect();
    let mut made = String::from("\n## Actions\n");
    for row in ACTIONS {
        let begin = format!("//! # {}\n", row.name);
        let source = sources.iter().find(|it| it.starts_with(&begin)).expect(row.name);
        let manual = source.lines().map_while(|line| line.strip_prefix("//!"));
        let manual: Vec<_> = manual.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        made += &format!("\n##{}\n", manual.join("\n"));
    }
    made += "\n## Codes\n\n| Code | when |\n|---|---|\n";
    for code in code::ALL {
        made += &format!("| {} | {} |\n", code.number, code.when);
    }
    let file = root().join("docs/api.md");
    let kept = read_to_string(&file).unwrap();
    let (written, kept) = kept.split_once(MARK).expect("the page has the mark");
    if std::env::var_os("BYWASH_BLESS").is_some() {
        write(&file, format!("{written}{MARK}{made}")).unwrap();
        return;
    }
    assert!(kept == made, "docs/api.md is old: run BYWASH_BLESS=1 cargo test -p bywash --test docs");
}

#[test]
fn every_link_leads_to_a_file() {
    for (path, text) in pages() {
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let file = link.split('#').next().unwrap();
            // `make bench BENCH=--write-docs` makes the one page that may be missing.
            let elsewhere = link.contains("://") || file.is_empty() || file.ends_with("benchmark.md");
            let found = elsewhere || path.parent().unwrap().join(file).exists();
            assert!(found, "{}: {link}", path.display());
        }
    }
}

#[test]
fn every_configuration_key_that_is_named_exists() {
    const SECTIONS: [&str; 10] =
        ["http", "rtmp", "webrtc", "store", "media", "record", "relay", "publish", "callback", "cdn"];
    let keys = page();
    for (path, text) in pages() {
        for span in spans(&text) {
            let name = span.split(' ').next().unwrap();
            let like_a_key = name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_' || c == b'.');
            let in_a_section = name.split_once('.').is_some_and(|(section, _)| SECTIONS.contains(&section));
            let file = [".", ".rs", ".md", ".key"].iter().any(|end| name.ends_with(end));
            let known = keys.contains(&format!("\n| `{name}` |"));
            assert!(!like_a_key || !in_a_section || file || known, "{}: `{name}`", path.display());
        }
    }
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let code: String = files(&root().join("crates"), ".rs").iter().map(|it| read_to_string(it).unwrap()).collect();
    for page in ["README.md", "README.zh.md"] {
        let text = read_to_string(root().join(page)).unwrap();
        let named = spans(&text).filter(|span| span.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_'));
        for name in named.filter(|name| name.matches('_').count() > 1) {
            assert!(code.contains(&format!("fn {name}(")), "{page}: {name}");
        }
    }
}

/// The fields of each event, as the manual's tables have them.
fn callbacks(page: &str) -> Vec<(&str, Vec<&str>)> {
    let tables = page.split("\n\n").filter(|it| it.starts_with("| `") && it.contains(" | |\n|---|---|\n"));
    tables
        .map(|table| {
            let mut names = table.lines().filter_map(|row| row.split('|').nth(1)).flat_map(spans);
            (names.next().unwrap(), names.collect())
        })
        .collect()
}

#[test]
fn the_receiver_of_the_manual_loses_no_event() {
    const SECRET: &str = "the callback_secret of the app";
    let page = read_to_string(root().join("docs/callbacks.md")).unwrap();
    let (_, code) = page.split_once("```python\n").expect("the receiver");
    let (code, port) = (code.split("```").next().unwrap(), bywash_testkit::port());
    let mut command = Command::new("python3");
    command.args(["-u", "-c", &code.replace("9000", &port.to_string())]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut python = command.spawn().expect("python3; run `make setup`");
    let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok();
    bywash_testkit::eventually("it listens", bywash_testkit::secs(20), connect);

    // A callback with these fields; the status of its answer, 0 without one.
    let tell = |event: &str, nonce: &str, secret: &str, fields: &[&str]| {
        let mut body = serde_json::json!({ "event": event, "timestamp": "1470820198", "nonce": nonce });
        body["signature"] = callback::signature(&Secret::new(secret), "1470820198", nonce).into();
        fields.iter().for_each(|name| body[name] = "x".into());
        let body = body.to_string();
        let mut socket = connect().expect("it listens");
        write!(socket, "POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap())
    };
    let events = callbacks(&page);
    for (event, fields) in &events {
        assert_eq!(tell(event, event, "another", fields), 403, "{event}");
        assert_eq!(tell(event, event, SECRET, &[]), 0, "{event}: what could not be worked on comes again");
        assert_eq!(tell(event, event, SECRET, fields), 200, "{event}");
        assert_eq!(tell(event, event, SECRET, fields), 200, "{event}: once more");
    }
    python.kill().unwrap();
    let said = String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap();
    let said: Vec<_> = said.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(said, events.iter().map(|(event, _)| *event).collect::<Vec<_>>());
    assert_eq!(BTreeSet::from_iter(said), BTreeSet::from(callback::EVENTS));
}

#[test]
fn the_example_configuration_is_good() {
    let file = root().join("examples/bywash.toml");
    let config = Config::load(Some(&file), [], &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.apps.len(), 1);
}

/// Who may use whom in crates/server/src, as ARCHITECTURE.md draws it. Modules that are not here join the others and
/// may use any of them; nobody but their like may use them.
const ARROWS: &[(&str, &str)] = &[
    ("address", ""),
    ("api", "address callback clock config live object secret store vendor"),
    ("callback", "config secret store"),
    ("clock", ""),
    ("config", "secret vendor"),
    ("http", "address config"),
    ("hub", "live"),
    ("ingest", "address clock config hub lane metrics output plan rendition sys token webrtc wire"),
    ("job", "callback clock config object segment space store tls"),
    ("lane", "sys"),
    ("live", "store"),
    ("log", "sys"),
    ("metrics", "job live webrtc"),
    ("object", "config segment"),
    ("output", "address clock config hub lane live rendition secret segment store sys tls vendor webrtc wire"),
    ("plan", "callback clock config hub lane live object output rendition secret segment space store vendor"),
    ("playback", "clock config object segment store"),
    ("rendition", "hub lane live"),
    ("secret", ""),
    ("segment", "config"),
    ("signalling", "clock config hub ingest lane output plan rendition token webrtc"),
    ("space", "sys"),
    ("store", "callback config secret"),
    ("sys", ""),
    ("tls", ""),
    ("token", "config secret"),
    ("vendor", "config secret"),
    ("webrtc", "address clock config lane secret sys token"),
    ("wire", ""),
];

#[test]
fn the_arrows_hold() {
    let source = root().join("crates/server/src");
    for path in files(&source, ".rs") {
        let inside = path.strip_prefix(&source).unwrap().to_str().unwrap();
        let module = inside.split('/').next().unwrap().trim_end_matches(".rs");
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else { continue };
        if inside.ends_with("tests.rs") {
            continue;
        }
        let text = read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().lines().filter(|it| !it.trim_start().starts_with("//"));
        let code: String = code.collect::<Vec<_>>().join("\n");
        for rest in code.split("crate::").skip(1) {
            let group = rest.strip_prefix('{').and_then(|rest| rest.split('}').next());
            for used in group.unwrap_or(rest).split(',').take(if group.is_some() { usize::MAX } else { 1 }) {
                let used = used.trim().split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
                let fine = used == module || allowed.split(' ').any(|it| it == used);
                assert!(fine, "{inside}: {module} uses {used}");
            }
        }
    }
}

#[test]
fn the_pure_crates_know_nothing_of_ours_and_no_runtime() {
    for name in ["media", "rtmp"] {
        let manifest = read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        let uses = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for strange in ["bywash", "tokio", "socket2", "reqwest", "sqlx", "path ="] {
            assert!(!uses.contains(strange), "{name} depends on {strange}");
        }
    }
}
