//! A string that must not be seen: it prints as `***` wherever it goes.
//!
//! Invariant: no `Display`, `Debug` or `Serialize` shows the content; [`Secret::expose`] is the only way to it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A secret text: a key, a signed address, a token.
#[derive(Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The content, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Writes a file that nobody else can read. It is written aside and renamed: under its final name it is complete.
pub fn write(file: &Path, text: &str) -> io::Result<()> {
    let part = file.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&part, file)
}
