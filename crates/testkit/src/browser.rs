//! Chromium without a window, driven over its debugging pipe, with files or made-up signals as camera and microphone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Process, Scratch, eventually};

/// What it takes for a quiet browser that asks nobody and calls nobody.
const FLAGS: [&str; 17] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    // A page nobody looks at must not be slowed down.
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    // Works on a machine without any other interface.
    "--allow-loopback-in-peer-connection",
    "--remote-debugging-pipe",
];

/// A browser of its own, with an empty profile.
pub struct Browser {
    pipe: Mutex<Pipe>,
    _process: Process,
    _profile: Scratch,
}

struct Pipe {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    last: u64,
}

impl Browser {
    /// Starts one whose camera shows a clock and beeps each second.
    pub fn start() -> Browser {
        Browser::with(&[])
    }

    /// Starts one whose camera shows `pictures` (y4m) and whose microphone hears `sound` (wav), over and over.
    pub fn with_files(pictures: &Path, sound: &Path) -> Browser {
        Browser::with(&[
            format!("--use-file-for-fake-video-capture={}", pictures.display()),
            format!("--use-file-for-fake-audio-capture={}", sound.display()),
        ])
    }

    fn with(flags: &[String]) -> Browser {
        let profile = Scratch::new();
        // The pipe is on descriptors 3 and 4.
        let mut chromium = Command::new("sh");
        const RUN: &str =
            r#"exec $(command -v chromium || command -v chromium-browser) "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;
        chromium.args(["-c", RUN, "chromium"]).args(FLAGS);
        chromium.args(flags).arg(format!("--user-data-dir={}", profile.join("").display()));
        // What is not in the profile is in the home folder, or for a while in that for such things.
        chromium.env("HOME", profile.join("")).env("TMPDIR", profile.join(""));
        let mut process = Process::start(chromium.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let child = process.child();
        let (commands, answers) = (child.stdin.take(), child.stdout.take());
        let pipe = Pipe {
            commands: commands.expect("it is piped"),
            answers: BufReader::new(answers.expect("it is piped")),
            last: 0,
        };
        Browser { pipe: Mutex::new(pipe), _process: process, _profile: profile }
    }

    /// Opens a page; `before` runs in it before its own scripts.
    #[track_caller]
    pub fn open(&self, url: &str, before: &str) -> Page<'_> {
        let target = self.call(None, "Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session =
            self.call(None, "Target.attachToTarget", attach)["sessionId"].as_str().expect("a session").to_owned();
        let page = Page { browser: self, session };
        self.call(Some(&page.session), "Page.enable", json!({}));
        self.call(Some(&page.session), "Page.addScriptToEvaluateOnNewDocument", json!({ "source": before }));
        self.call(Some(&page.session), "Page.navigate", json!({ "url": url }));
        eventually(url, crate::secs(10), || {
            (page.eval("document.readyState + location.href") == format!("complete{url}")).then_some(())
        });
        page
    }

    #[track_caller]
    fn call(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        let mut pipe = self.pipe.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        pipe.last += 1;
        let id = pipe.last;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let written = pipe.commands.write_all(format!("{command}\0").as_bytes());
        assert!(written.is_ok(), "{method}: no chromium; run `make setup`");
        loop {
            let mut answer = Vec::new();
            let read = pipe.answers.read_until(0, &mut answer);
            assert!(read.is_ok_and(|read| read > 0), "{method}: chromium has ended; run `make setup`");
            answer.pop();
            let mut answer: Value = serde_json::from_slice(&answer).expect("chromium speaks JSON");
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
        }
    }
}

/// A page of a browser.
pub struct Page<'a> {
    browser: &'a Browser,
    session: String,
}

impl Page<'_> {
    /// The value of a JavaScript expression; a promise is awaited.
    #[track_caller]
    pub fn eval(&self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true });
        let mut answer = self.browser.call(Some(&self.session), "Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// Waits until an expression, or what it promises, is true; panics with what the page shows.
    #[track_caller]
    pub fn wait(&self, expression: &str, limit: Duration) {
        let begin = std::time::Instant::now();
        while self.eval(&format!("(async () => !!(await ({expression})))()")) != true {
            assert!(begin.elapsed() < limit, "not within {limit:?}: {expression}; the page says: {}", self.says());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the page says to whom looks at it.
    pub fn says(&self) -> String {
        self.eval("document.body.innerText").as_str().unwrap_or_default().to_owned()
    }
}
