//! The apps of this server, replaceable while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::App;

/// All apps by id. Readers never wait, and keep what they hold while a reload replaces the rest.
#[derive(Debug)]
pub struct Apps(ArcSwap<BTreeMap<u32, Arc<App>>>);

impl Apps {
    /// The apps of a loaded configuration, whose ids differ.
    pub fn new(apps: Vec<App>) -> Apps {
        Apps(ArcSwap::from_pointee(by_id(apps)))
    }

    /// One app.
    pub fn get(&self, id: u32) -> Option<Arc<App>> {
        self.0.load().get(&id).cloned()
    }

    /// Every app, ordered by id.
    pub fn all(&self) -> Vec<Arc<App>> {
        self.0.load().values().cloned().collect()
    }

    /// Puts `apps` in place of all before, in one step.
    pub fn replace(&self, apps: Vec<App>) {
        self.0.store(Arc::new(by_id(apps)));
    }
}

fn by_id(apps: Vec<App>) -> BTreeMap<u32, Arc<App>> {
    apps.into_iter().map(|app| (app.id, Arc::new(app))).collect()
}
