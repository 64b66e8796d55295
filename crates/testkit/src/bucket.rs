//! An S3 server that checks signatures (s3rver), with one bucket in a folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Process, Scratch, eventually, secs};

/// The bucket's name.
const NAME: &str = "media";

/// The server. Its objects outlive [`down`](Bucket::down).
pub struct Bucket {
    dir: Scratch,
    port: u16,
    process: Option<Process>,
}

impl Bucket {
    /// Starts one with an empty bucket.
    #[track_caller]
    pub fn start() -> Bucket {
        let mut bucket = Bucket { dir: Scratch::new(), port: crate::port(), process: None };
        bucket.up();
        bucket
    }

    /// Starts it again after [`Bucket::down`]; returns when it takes connections.
    #[track_caller]
    pub fn up(&mut self) {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/s3/node_modules/s3rver/bin/s3rver.js");
        let mut node = Command::new("node");
        node.arg("--no-deprecation").arg(program).arg("--silent").arg("--no-vhost-buckets");
        node.arg("--directory").arg(self.dir.join("")).args(["--address", "127.0.0.1"]);
        node.args(["--port", &self.port.to_string(), "--configure-bucket", NAME]);
        self.process = Some(Process::start(node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())));
        eventually("the S3 server listens; run `make setup`", secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    /// Ends it: connections are reset, connects refused.
    pub fn down(&mut self) {
        self.process = None;
    }

    /// The process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the S3 server is up")
    }

    /// The lines of a configuration whose media goes there.
    pub fn setup(&self) -> String {
        format!(
            "media.url = \"s3://{NAME}/some/prefix?endpoint=http://127.0.0.1:{}\"\n\
             media.access_key_id = \"S3RVER\"\nmedia.secret_access_key = \"S3RVER\"\n",
            self.port
        )
    }

    /// The keys of all objects and their sizes in bytes, in order.
    pub fn objects(&self) -> Vec<(String, u64)> {
        let root = self.dir.join(NAME).join("some/prefix");
        let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path: PathBuf = entry.path();
                let name = path.strip_prefix(&root).expect("below it").to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(key) = name.strip_suffix("._S3rver_object") {
                    found.push((key.to_owned(), entry.metadata().map_or(0, |it| it.len())));
                }
            }
        }
        found.sort();
        found
    }
}
