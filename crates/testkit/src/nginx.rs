//! nginx with its RTMP module as the CDN: it records what arrives, so that others can judge it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Process, Scratch, eventually, secs};

/// An nginx on a port of its own.
pub struct Nginx {
    dir: Scratch,
    port: u16,
    process: Option<Process>,
}

impl Nginx {
    /// Starts one with an application `live` that records each session to a file.
    pub fn start() -> Nginx {
        Nginx::recording("")
    }

    /// The same, with these directives besides.
    pub fn recording(directives: &str) -> Nginx {
        let dir = Scratch::new();
        let rec = dir.join("rec");
        let application = format!("record all; record_path {}; record_unique on; {directives}", rec.display());
        Nginx::with(dir, &application)
    }

    /// Starts one whose application `live` has these directives and records nothing.
    pub fn with_directives(directives: &str) -> Nginx {
        Nginx::with(Scratch::new(), directives)
    }

    fn with(dir: Scratch, application: &str) -> Nginx {
        let port = crate::port();
        for name in ["rec", "logs"] {
            std::fs::create_dir_all(dir.join(name)).expect("a folder");
        }
        let module = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]
            .map(|dir| PathBuf::from(dir).join("ngx_rtmp_module.so"))
            .into_iter()
            .find(|path| path.is_file())
            .expect("nginx's RTMP module; run `make setup`");
        let config = format!(
            "load_module {};
daemon off; master_process off; pid {}; error_log {} info;
events {{ worker_connections 2048; }}
rtmp {{
  access_log off;
  server {{
    listen 127.0.0.1:{port}; chunk_size 4096;
    application live {{ live on; {application} }}
  }}
}}
",
            module.display(),
            dir.join("nginx.pid").display(),
            dir.join("error.log").display(),
        );
        std::fs::write(dir.join("nginx.conf"), config).expect("a configuration file");
        let mut nginx = Nginx { dir, port, process: None };
        nginx.up();
        nginx
    }

    /// Starts it again after [`Nginx::down`]; returns when it takes connections.
    pub fn up(&mut self) {
        // Debian keeps it where not every user's PATH leads.
        let program =
            ["/usr/sbin/nginx", "nginx"].into_iter().find(|it| !it.starts_with('/') || Path::new(it).is_file());
        let mut nginx = Command::new(program.expect("the last one always"));
        nginx.arg("-p").arg(self.dir.join("")).arg("-c").arg(self.dir.join("nginx.conf"));
        nginx.arg("-e").arg(self.dir.join("error.log"));
        self.process = Some(Process::start(nginx.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())));
        eventually("nginx listens", secs(5), || {
            let listening = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
            listening.contains(&format!("0100007F:{:04X} 00000000:0000 0A", self.port)).then_some(())
        });
    }

    /// Ends it: connections are reset, connects refused.
    pub fn down(&mut self) {
        self.process = None;
    }

    /// The process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("nginx is up")
    }

    /// The address of a stream in the application `live`.
    pub fn url(&self, stream: &str) -> String {
        format!("rtmp://127.0.0.1:{}/live/{stream}", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything it has noted.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("error.log")).unwrap_or_default()
    }

    /// How many publishes of the stream it took.
    pub fn sessions(&self, stream: &str) -> usize {
        let publish = format!("publish: name='{stream}'");
        self.log().lines().filter(|line| line.contains(&publish)).count()
    }

    /// The recordings of a stream, oldest first.
    pub fn recordings(&self, stream: &str) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.dir.join("rec")).expect("the folder of recordings").flatten();
        let mut files: Vec<_> = files.map(|file| file.path()).collect();
        let prefix = format!("{stream}-");
        files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
        files.sort();
        files
    }

    /// Waits until the newest recording of the stream has grown beyond `tags` tags.
    #[track_caller]
    pub fn wait_for(&self, stream: &str, tags: usize) -> PathBuf {
        eventually(&format!("{tags} tags of {stream} at nginx"), secs(20), || {
            let newest = self.recordings(stream).pop()?;
            (crate::flv::tags(&newest).0.len() > tags).then_some(newest)
        })
    }
}
