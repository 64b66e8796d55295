//! The server under test, as its users have it: a process, its configuration file, its API.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use serde_json::Value;

use crate::{Process, Receiver, Scratch, eventually, secs};

/// The app that every server here has.
pub const APP: u32 = 1_234_567_890;
/// Signs API calls.
pub const SERVER_SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Signs callbacks.
pub const CALLBACK_SECRET: &str = "fedcba9876543210fedcba9876543210";
/// Key of publish tokens.
pub const PUBLISH_KEY: &str = "publishkey0123456789publishkey01";

/// What a test configures beyond the common: TOML lines with dotted keys.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Top-level lines, as `publish.grace = "1s"`.
    pub server: String,
    /// Lines of the one app, as `publish_auth = "token"`.
    pub app: String,
    /// Where state lives, if not in the test's own folder.
    pub data_dir: Option<PathBuf>,
    /// Everything is logged that can be.
    pub loud: bool,
    /// WebRTC is on all of the host's addresses: Firefox speaks to none on loopback.
    pub everywhere: bool,
    /// What the server has for `/etc/resolv.conf`.
    pub resolver: Option<PathBuf>,
    /// Targets must be public addresses, as by default; tests allow loopback otherwise.
    pub public_only: bool,
    /// Who reads what it writes.
    pub log: Log,
}

/// What becomes of standard output and standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Log {
    /// Kept for [`Server::output`].
    #[default]
    Kept,
    /// Nothing can be written: a full disk.
    Full,
    /// Whoever read it has gone.
    Gone,
    /// Whoever reads the log has stopped, and no more of it fits in between.
    Stopped,
}

impl Setup {
    /// Nothing beyond the common but these lines of the app.
    pub fn app(lines: impl Into<String>) -> Setup {
        Setup { app: lines.into(), ..Setup::default() }
    }

    /// Nothing beyond the common but these top-level lines.
    pub fn server(lines: impl Into<String>) -> Setup {
        Setup { server: lines.into(), ..Setup::default() }
    }

    /// The same, with targets on public addresses only.
    pub fn public_only(self) -> Setup {
        Setup { public_only: true, ..self }
    }
}

/// A running server.
pub struct Server {
    process: Process,
    dir: Scratch,
    http: u16,
    rtmp: u16,
    webrtc: u16,
    loud: bool,
    sequence: AtomicI64,
    /// Where the log would be read, if it is not kept.
    _reader: Option<UnixStream>,
}

/// A recorded file, as its `record` callback tells of it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its key.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
    /// Seconds.
    pub duration: f64,
    /// It was closed by the start after a crash.
    pub interrupted: bool,
}

impl Server {
    /// Starts the binary that was built beside the test and waits until it is ready.
    #[track_caller]
    pub fn start(setup: Setup) -> Server {
        let (dir, http, rtmp, webrtc) = (Scratch::new(), crate::port(), crate::port(), crate::port());
        let data_dir = setup.data_dir.unwrap_or_else(|| dir.join("data"));
        let any = if setup.everywhere { "0.0.0.0" } else { "127.0.0.1" };
        let config = format!(
            r#"data_dir = {data_dir:?}
http.listen = "127.0.0.1:{http}"
http.public_url = "http://127.0.0.1:{http}"
rtmp.listen = "127.0.0.1:{rtmp}"
webrtc.listen = "{any}:{webrtc}"
relay.allow_private_targets = {}
{}
[[app]]
id = {APP}
server_secret = "{SERVER_SECRET}"
callback_secret = "{CALLBACK_SECRET}"
publish_key = "{PUBLISH_KEY}"
play_key = "playkey0123456789playkey01234567"
{}
"#,
            !setup.public_only, setup.server, setup.app
        );
        std::fs::write(dir.join("bywash.toml"), config).expect("a configuration file");
        let sequence = AtomicI64::new(now_ms());
        let loud = setup.loud;
        let (process, _reader) = spawn(&dir, loud, setup.resolver.as_deref(), setup.log);
        Server { process, dir, http, rtmp, webrtc, loud, sequence, _reader }.ready()
    }

    /// Ends it as a power cut does, and starts it again on the same data and ports.
    #[track_caller]
    pub fn kill_9_and_start(self) -> Server {
        self.kill_9().start_again()
    }

    /// Ends it as a power cut does.
    pub fn kill_9(self) -> Stopped {
        let Server { process, dir, http, rtmp, webrtc, loud, sequence, .. } = self;
        drop(process);
        Stopped { dir, http, rtmp, webrtc, loud, sequence }
    }

    /// Sends SIGTERM; gives the exit code and how long it took.
    #[track_caller]
    pub fn terminate(mut self) -> (i32, Duration, Stopped) {
        let begin = Instant::now();
        self.process.signal("TERM");
        let code = eventually("the server ends", secs(40), || self.process.exit_code());
        let took = begin.elapsed();
        (code, took, self.kill_9())
    }

    /// Everything it has written to stdout and stderr so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.dir.join("output")).unwrap_or_default()
    }

    /// The process, for its memory and processor time.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("bywash.toml")
    }

    /// The publish address of a stream.
    pub fn rtmp(&self, stream: &str) -> String {
        format!("rtmp://127.0.0.1:{}/{APP}/{stream}", self.rtmp)
    }

    /// The port of HTTP.
    pub fn http_port(&self) -> u16 {
        self.http
    }

    /// The port of RTMP.
    pub fn rtmp_port(&self) -> u16 {
        self.rtmp
    }

    /// The port of WebRTC, over UDP and TCP.
    pub fn webrtc_port(&self) -> u16 {
        self.webrtc
    }

    /// The address of a page of the console, `publish` or `play`, for a stream.
    pub fn page(&self, name: &str, stream: &str) -> String {
        format!("http://127.0.0.1:{}/console/{name}?app={APP}&stream={stream}", self.http)
    }

    /// The WHIP address of a stream.
    pub fn whip(&self, stream: &str) -> String {
        format!("http://127.0.0.1:{}/whip/v1/{APP}/{stream}", self.http)
    }

    /// The WHEP address of a stream.
    pub fn whep(&self, stream: &str) -> String {
        format!("http://127.0.0.1:{}/whep/v1/{APP}/{stream}", self.http)
    }

    /// Any request: status, head and body. `headers` are whole lines.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &[u8],
    ) -> std::io::Result<(u16, String, String)> {
        request(&format!("127.0.0.1:{}", self.http), method, path, headers, body)
    }

    /// Waits until the stream is live, for so long at the most.
    #[track_caller]
    pub fn wait_live(&self, stream: &str, patience: Duration) {
        eventually("the stream is live", patience, || {
            (self.ok("DescribeStreams", &[("StreamId", stream)])["Total"] == 1).then_some(())
        });
    }

    /// GETs a path: status and body.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.http))?;
        socket.set_read_timeout(Some(secs(15)))?;
        write!(socket, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", self.http)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    /// A signed call: the whole envelope.
    #[track_caller]
    pub fn call(&self, action: &str, params: &[(&str, &str)]) -> Value {
        let now = now_ms();
        let before = self.sequence.fetch_update(Relaxed, Relaxed, |last| Some(now.max(last + 1)));
        let sequence = now.max(before.expect("always some") + 1).to_string();
        let nonce = format!("{:016x}", now as u64 ^ 0x9e37_79b9_7f4a_7c15);
        let timestamp = (now / 1000).to_string();
        let signature = hex::encode(Md5::digest(format!("{APP}{nonce}{SERVER_SECRET}{timestamp}")));
        let app = APP.to_string();
        let common = [
            ("Action", action),
            ("AppId", &app),
            ("SignatureNonce", &nonce),
            ("Timestamp", &timestamp),
            ("Signature", &signature),
            ("SignatureVersion", "2.0"),
            ("Sequence", &sequence),
        ];
        let query: Vec<_> =
            common.iter().chain(params).map(|(name, value)| format!("{}={}", escape(name), escape(value))).collect();
        let (status, body) = self.get(&format!("/?{}", query.join("&"))).unwrap_or_else(|error| {
            panic!("{action}: {error}");
        });
        assert_eq!(status, 200, "{action}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{action}: {error}: {body}"))
    }

    /// A signed call that has to succeed: its Data. Waits where the rate limit says so.
    #[track_caller]
    pub fn ok(&self, action: &str, params: &[(&str, &str)]) -> Value {
        let mut answer = self.call(action, params);
        for _ in 0..50 {
            if !matches!(answer["Code"].as_i64(), Some(30002 | 5007 | 6 | 1010)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            answer = self.call(action, params);
        }
        assert_eq!(answer["Code"], 0, "{action} {params:?}: {answer}");
        answer["Data"].take()
    }

    /// CreatCDNTransferRule.
    #[track_caller]
    pub fn relay(&self, stream: &str, url: &str) {
        self.ok("CreatCDNTransferRule", &[("StreamId", stream), ("CDNUrl", url)]);
    }

    /// DeleteCDNTransferRule.
    #[track_caller]
    pub fn unrelay(&self, stream: &str, url: &str) {
        self.ok("DeleteCDNTransferRule", &[("StreamId", stream), ("CDNUrl", url)]);
    }

    /// StartCDNRecord under Tencent's name: the TaskId.
    #[track_caller]
    pub fn record(&self, stream: &str) -> String {
        let data = self.ok("StartCDNRecord", &[("StreamId[]", stream), ("Vendor", "Tencent")]);
        data["Tencent"][0]["TaskId"].as_str().unwrap_or_else(|| panic!("a TaskId: {data}")).to_owned()
    }

    /// StopCDNRecord likewise.
    #[track_caller]
    pub fn stop_record(&self, stream: &str) {
        self.ok("StopCDNRecord", &[("StreamId[]", stream), ("Vendor", "Tencent")]);
    }

    /// The newest recording of a stream as DescribeCDNRecords shows it.
    #[track_caller]
    pub fn recording(&self, stream: &str) -> Value {
        let data = self.ok("DescribeCDNRecords", &[("StreamId", stream)]);
        data["Tasks"].get(0).cloned().unwrap_or_default()
    }

    /// Waits until the newest recording of a stream is in this state.
    #[track_caller]
    pub fn wait_recording(&self, stream: &str, state: &str, limit: Duration) {
        eventually(&format!("{stream} is {state}"), limit, || (self.recording(stream)["State"] == state).then_some(()));
    }

    /// The folder of media files.
    pub fn media(&self) -> PathBuf {
        self.dir.join("data/media")
    }

    /// The files of a stream that `receiver` was told of, by their keys.
    #[track_caller]
    pub fn recorded(&self, receiver: &Receiver, stream: &str) -> Vec<Recorded> {
        recorded(&self.media(), receiver, stream)
    }

    /// Waits until they are so many.
    #[track_caller]
    pub fn wait_recorded(&self, receiver: &Receiver, stream: &str, count: usize, limit: Duration) -> Vec<Recorded> {
        eventually(&format!("{count} files of {stream}"), limit, || {
            Some(self.recorded(receiver, stream)).filter(|files| files.len() == count)
        })
    }

    /// All rules of a stream as DescribeCDNTransferRules shows them.
    #[track_caller]
    pub fn rules(&self, stream: &str) -> Vec<Value> {
        let data = self.ok("DescribeCDNTransferRules", &[("StreamId", stream)]);
        data["Rules"].as_array().unwrap_or_else(|| panic!("Rules is a list: {data}")).clone()
    }

    /// The one rule of a stream whose address begins as `url` does.
    #[track_caller]
    pub fn rule(&self, stream: &str, url: &str) -> Option<Value> {
        let bare = url.split('?').next().unwrap_or(url);
        self.rules(stream).into_iter().find(|rule| rule["CDNUrl"].as_str().is_some_and(|it| it.starts_with(bare)))
    }

    /// Waits until a rule has this State.
    #[track_caller]
    pub fn wait_state(&self, stream: &str, url: &str, state: i64, limit: Duration) -> Value {
        let mut last = None;
        let begin = Instant::now();
        loop {
            let rule = self.rule(stream, url);
            if let Some(rule) = rule.clone().filter(|rule| rule["State"] == state) {
                return rule;
            }
            if rule.is_some() {
                last = rule;
            }
            assert!(begin.elapsed() < limit, "not State {state} within {limit:?}: {last:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    fn ready(mut self) -> Server {
        let begin = Instant::now();
        loop {
            if self.get("/ready").is_ok_and(|(status, _)| status == 200) {
                return self;
            }
            let ended = self.process.exit_code();
            let late = begin.elapsed() > secs(20);
            assert!(ended.is_none() && !late, "not ready (exit {ended:?}):\n{}", self.output());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The files of a stream below `media` that `receiver` was told of, by their keys.
#[track_caller]
pub fn recorded(media: &Path, receiver: &Receiver, stream: &str) -> Vec<Recorded> {
    let told = receiver.of("record", stream).into_iter().map(|it| {
        let url = it["replay_url"].as_str().unwrap_or_default();
        let key = url.split_once("/media/").unwrap_or_else(|| panic!("an address of ours: {it}")).1.to_owned();
        let extra: Value = serde_json::from_str(it["extra_params"].as_str().unwrap_or_default()).expect("JSON");
        let duration = extra["Duration"].as_f64().unwrap_or_else(|| panic!("seconds: {extra}"));
        Recorded { path: media.join(&key), key, duration, interrupted: it["interrupted"] == "1" }
    });
    let mut files: Vec<_> = told.collect();
    files.sort_by(|a, b| a.key.cmp(&b.key));
    files
}

/// A server that is down; its data is kept.
pub struct Stopped {
    dir: Scratch,
    http: u16,
    rtmp: u16,
    webrtc: u16,
    loud: bool,
    sequence: AtomicI64,
}

impl Stopped {
    /// Starts it on the same data and ports.
    #[track_caller]
    pub fn start_again(self) -> Server {
        let Stopped { dir, http, rtmp, webrtc, loud, sequence } = self;
        let (process, _reader) = spawn(&dir, loud, None, Log::Kept);
        Server { process, dir, http, rtmp, webrtc, loud, sequence, _reader }.ready()
    }
}

/// `key=value` pairs of a publish token, as ZEGO's documentation makes it.
pub fn publish_query(stream: &str, key: &str, lives: i64) -> String {
    let expired = now_ms() / 1000 + lives;
    let signed = format!("appid={APP}&streamId={stream}&zgExpired={expired}&zgNonce=17&zgPrivilege=1&key={key}");
    let token = hex::encode(sha2::Sha256::digest(signed));
    format!("userId=u1&zgVer=v1&zgExpired={expired}&zgNonce=17&zgToken={token}")
}

/// Unix milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

/// The server's binary: beside the running test or benchmark, or `BYWASH_BIN`.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BYWASH_BIN") {
        return path.into();
    }
    let here = std::env::current_exe().expect("a running program");
    let near = here.ancestors().skip(1).take(2).map(|dir| dir.join("bywash")).find(|path| path.is_file());
    near.expect("the bywash binary beside this one: cargo build")
}

/// Sends a request to a host and port: status, head in lower case, and body.
pub fn request(
    host: &str,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &[u8],
) -> std::io::Result<(u16, String, String)> {
    let mut socket = TcpStream::connect(host)?;
    socket.set_read_timeout(Some(secs(15)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    headers.iter().for_each(|line| head += &format!("{line}\r\n"));
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    // A server may refuse a long body before it has read it.
    let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body));
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(read.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()));
    };
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, head.to_ascii_lowercase(), body.to_owned()))
}

/// A command that runs the server's binary, or by another's help. Variables of its name configure it; what is meant for the tests is not
/// meant for it.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"BYWASH_")) {
        command.env_remove(name);
    }
    command
}

fn spawn(dir: &Scratch, loud: bool, resolver: Option<&Path>, log: Log) -> (Process, Option<UnixStream>) {
    let file = |path: PathBuf| {
        Stdio::from(OpenOptions::new().create(true).append(true).open(path).expect("a file to write to"))
    };
    let (output, errors, reader) = match log {
        Log::Kept => (file(dir.join("output")), file(dir.join("output")), None),
        Log::Full => (file("/dev/full".into()), file("/dev/full".into()), None),
        Log::Gone => (Stdio::piped(), Stdio::piped(), None),
        Log::Stopped => {
            let (reader, mut writer) = UnixStream::pair().expect("two sockets");
            writer.set_nonblocking(true).expect("a socket of ours");
            while writer.write(&[b'\n'; 1024]).is_ok() {}
            writer.set_nonblocking(false).expect("a socket of ours");
            (Stdio::null(), Stdio::from(OwnedFd::from(writer)), Some(reader))
        }
    };
    let mut serve = match resolver {
        None => command(binary()),
        // The process that is started becomes the server.
        Some(file) => {
            let mut alone = command("unshare");
            alone.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]);
            alone.arg(file).arg(binary());
            alone
        }
    };
    serve.arg("serve").arg("--config").arg(dir.join("bywash.toml")).stdout(output).stderr(errors);
    let mut process = Process::start(serve.env("BYWASH_LOG", if loud { "trace" } else { "info" }));
    if log == Log::Gone {
        (process.child().stdout, process.child().stderr) = (None, None);
    }
    (process, reader)
}

fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
