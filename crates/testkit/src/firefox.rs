//! Firefox without a window, driven over Marionette, with made-up signals as camera and microphone.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::{Process, Scratch, eventually, secs};

/// What it takes for a quiet browser whose camera needs no permission.
const PREFERENCES: [(&str, &str); 8] = [
    ("media.navigator.streams.fake", "true"),
    ("media.navigator.permission.disabled", "true"),
    ("media.peerconnection.ice.obfuscate_host_addresses", "false"),
    ("media.gmp-manager.updateEnabled", "false"),
    ("network.connectivity-service.enabled", "false"),
    ("app.normandy.enabled", "false"),
    ("app.update.enabled", "false"),
    ("datareporting.policy.dataSubmissionEnabled", "false"),
];

/// A browser of its own, with an empty profile and one page.
pub struct Firefox {
    wire: Mutex<Wire>,
    _process: Process,
    _profile: Scratch,
}

struct Wire {
    socket: TcpStream,
    last: u64,
}

impl Firefox {
    /// Starts one.
    #[track_caller]
    pub fn start() -> Firefox {
        let (profile, port) = (Scratch::new(), crate::port());
        let preference = |(name, value): (&str, &str)| format!("user_pref({name:?}, {value});\n");
        let mut text: String = PREFERENCES.into_iter().map(preference).collect();
        text += &preference(("marionette.port", &port.to_string()));
        std::fs::write(profile.join("user.js"), text).expect("a profile");
        let mut firefox = Command::new("sh");
        firefox.args(["-c", r#"exec $(command -v firefox-esr || command -v firefox) "$@""#, "firefox"]);
        firefox.args(["--headless", "--marionette", "--no-remote", "--profile"]).arg(profile.join(""));
        firefox.env("HOME", profile.join("")).env("TMPDIR", profile.join(""));
        let process = Process::start(firefox.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok();
        let socket = eventually("firefox; run `make setup`", secs(30), connect);
        socket.set_read_timeout(Some(secs(60))).expect("a socket of ours");
        let firefox = Firefox { wire: Mutex::new(Wire { socket, last: 0 }), _process: process, _profile: profile };
        firefox.lock().read();
        firefox.call("WebDriver:NewSession", json!({}));
        firefox
    }

    /// Opens a page and waits for it.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.call("WebDriver:Navigate", json!({ "url": url }));
    }

    /// What a JavaScript expression promises.
    #[track_caller]
    pub fn run(&self, expression: &str) -> Value {
        let script = format!(
            "const done = arguments[0]; ({expression}).then((it) => done([it ?? null]), (why) => done(String(why)));"
        );
        let params = json!({ "script": script, "args": [], "sandbox": null });
        let mut answer = self.call("WebDriver:ExecuteAsyncScript", params)["value"].take();
        assert!(answer.is_array(), "{expression}: {answer}");
        answer[0].take()
    }

    #[track_caller]
    fn call(&self, command: &str, params: Value) -> Value {
        let mut wire = self.lock();
        wire.last += 1;
        let request = json!([0, wire.last, command, params]).to_string();
        let sent = wire.socket.write_all(format!("{}:{request}", request.len()).as_bytes());
        assert!(sent.is_ok(), "{command}: firefox has ended");
        // Type, number, error, result.
        let mut answer = wire.read();
        assert!(answer[2].is_null(), "{command}: {}", answer[2]);
        answer[3].take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Wire {
    /// A message is its length, a colon and JSON.
    #[track_caller]
    fn read(&mut self) -> Value {
        let (mut length, mut byte) = (0, [0]);
        loop {
            self.socket.read_exact(&mut byte).expect("firefox answers");
            match byte[0] {
                b':' => break,
                digit => length = 10 * length + usize::from(digit - b'0'),
            }
        }
        let mut body = vec![0; length];
        self.socket.read_exact(&mut body).expect("firefox answers");
        serde_json::from_slice(&body).expect("firefox speaks JSON")
    }
}
