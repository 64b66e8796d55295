//! The app of a first start: made with fresh secrets where none is configured, and found again on later starts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rand::Rng;

use super::read::{self, Source};
use super::{App, Config};
use crate::secret;

/// The app that a server without configured apps has.
#[derive(Clone, Debug)]
pub struct DevApp {
    /// Its id.
    pub id: u32,
    /// The file that holds its secrets.
    pub file: PathBuf,
    /// Whether it was made just now.
    pub created: bool,
}

impl Config {
    /// Where no app is configured, takes the one of `data_dir/dev-app.toml`, made if need be (mode 0600), and allows private
    /// targets. `None` where there are apps.
    pub fn dev_app(&mut self) -> anyhow::Result<Option<DevApp>> {
        if !self.apps.is_empty() {
            return Ok(None);
        }
        let file = self.data_dir.join(FILE);
        let created = !file.exists();
        if created {
            self.create_data_dir()?;
            create(&file).with_context(|| format!("create {}", file.display()))?;
        }
        let app = load(&self.data_dir)?.with_context(|| format!("{} is gone again", file.display()))?;
        self.relay.allow_private_targets = true;
        let id = app.id;
        self.apps = vec![app];
        Ok(Some(DevApp { id, file, created }))
    }

    /// Makes `data_dir`, if need be.
    pub fn create_data_dir(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.data_dir).with_context(|| {
            let folder = self.data_dir.display();
            format!("create data_dir {folder}: set `data_dir` (--data-dir) to a folder that can be written")
        })
    }
}

/// The app of `data_dir/dev-app.toml`, if it is there.
pub fn load(data_dir: &Path) -> anyhow::Result<Option<App>> {
    let file = data_dir.join(FILE);
    let text = match fs::read_to_string(&file) {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("read {}", file.display()))?,
    };
    let config = read::read(Source { file: &file, text: &text, environment: Vec::new(), flags: &[] })?;
    let [app] = <[App; 1]>::try_from(config.apps)
        .map_err(|_| anyhow!("{} does not hold one app: delete it and a new one is made", file.display()))?;
    Ok(Some(app))
}

const FILE: &str = "dev-app.toml";

fn create(file: &Path) -> std::io::Result<()> {
    let mut random = rand::rng();
    let id: u32 = random.random_range(1_000_000_000..=u32::MAX);
    let mut key = || hex::encode(random.random::<[u8; 16]>());
    let text = format!(
        "# The app of a server that has none configured. Delete this file for a new one; copy it into bywash.toml to keep it.\n\
         [[app]]\nid = {id}\nserver_secret = \"{}\"\ncallback_secret = \"{}\"\npublish_key = \"{}\"\nplay_key = \"{}\"\n\
         [app.record.Tencent]\nformats = [\"mp4\", \"m3u8\"]\n",
        key(),
        key(),
        key(),
        key()
    );
    secret::write(file, &text)
}
