//! Reads the configuration in one pass that collects every problem with its place.
//!
//! Invariant: a problem never holds the value of a secret; see [`Kind`](super::kind::Kind).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check;
use super::keys::{Key, Scope};
use super::kind::{self, Kind};
use super::{App, Config, Push, Record, Vendor};

/// All that is wrong with a configuration; at least one.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What, and what to do instead.
    pub text: String,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// No single place: the file as a whole, or the defaults.
    Whole(PathBuf),
    /// A line of the file, from 1.
    Line(PathBuf, usize),
    /// A variable of the environment.
    Variable(String),
    /// A key set on the command line.
    Flag(String),
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let end = if i + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "{problem}{end}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Whole(file) => write!(f, "{}: {}", file.display(), self.text),
            Place::Line(file, line) => write!(f, "{}:{line}: {}", file.display(), self.text),
            Place::Variable(name) => write!(f, "{name}: {}", self.text),
            Place::Flag(key) => write!(f, "flag for {key}: {}", self.text),
        }
    }
}

/// The text of one configuration and what overrides it.
pub struct Source<'a> {
    /// What the problems call the file.
    pub file: &'a Path,
    /// The file's TOML.
    pub text: &'a str,
    /// Variables of the environment; those not named `BYWASH_…` are of no interest.
    pub environment: Vec<(String, String)>,
    /// Keys and values of the command line.
    pub flags: &'a [(String, String)],
}

/// Reads and checks `source`.
pub fn read(source: Source<'_>) -> Result<Config, Problems> {
    let mut reader = Reader { file: source.file, text: source.text, places: BTreeMap::new(), problems: Vec::new() };
    let mut config = Config::default();
    let (document, errors) = DeTable::parse_recoverable(source.text);
    for error in &errors {
        let place = reader.line(error.span().map_or(0, |it| it.start));
        reader.problem(place, error.message());
    }
    reader.table("", "", document.get_ref(), &mut config, &[("app", apps)]);
    for (name, value) in source.environment {
        reader.variable(&mut config, &name, &value);
    }
    for (key, value) in source.flags {
        if reader.set_text(&mut config, key, value, Place::Flag(key.clone())).is_none() {
            let near = nearest_key(key);
            reader.problem(Place::Flag(key.clone()), format!("unknown key; did you mean `{near}`?"));
        }
    }
    // What a broken file leaves out is not worth a second complaint.
    if errors.is_empty() {
        check::check(&mut reader, &mut config);
    }
    match reader.problems.is_empty() {
        true => Ok(config),
        false => {
            reader.problems.sort();
            reader.problems.dedup();
            Err(Problems(reader.problems))
        }
    }
}

/// What has been read so far.
pub struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    /// Where each key was set: `app.0.cdn.push.1.host`.
    places: BTreeMap<String, Place>,
    problems: Vec<Problem>,
}

/// A part of scope `S` that is a scope of its own, and what reads it.
type Child<S> = (&'static str, fn(&mut Reader<'_>, &str, &mut S, &Spanned<DeValue<'_>>));

impl Reader<'_> {
    /// Notes a problem.
    pub fn problem(&mut self, place: Place, text: impl Into<String>) {
        self.problems.push(Problem { place, text: text.into() });
    }

    /// Where `at` was set, or the nearest thing around it.
    pub fn place(&self, mut at: &str) -> Place {
        loop {
            if let Some(place) = self.places.get(at) {
                return place.clone();
            }
            match at.rsplit_once('.') {
                Some((around, _)) => at = around,
                None => return Place::Whole(self.file.into()),
            }
        }
    }

    /// Whether `at` was set at all, well or not.
    pub fn has(&self, at: &str) -> bool {
        self.places.contains_key(at)
    }

    fn line(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        Place::Line(self.file.into(), 1 + before.iter().filter(|&&c| c == b'\n').count())
    }

    /// Reads the keys of `table`, which is `group` of the `scope` at `at`.
    fn table<S: Scope>(&mut self, at: &str, group: &str, table: &DeTable<'_>, scope: &mut S, children: &[Child<S>]) {
        for (name, value) in table {
            let path = join(group, name.get_ref());
            let here = join(at, &path);
            let place = self.line(name.span().start);
            self.places.insert(here.clone(), place.clone());
            if let Some(key) = find::<S>(&path) {
                if let Err(why) = key.set(scope, value.get_ref()) {
                    self.problem(self.line(value.span().start), format!("`{path}`: {why}"));
                }
            } else if let Some((_, read)) = children.iter().find(|(child, _)| *child == path) {
                read(self, &here, scope, value);
            } else if names::<S>(children).any(|it| it.starts_with(&format!("{path}."))) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.table(at, &path, inner, scope, children),
                    other => {
                        self.problem(place, format!("`{path}`: expected a table, found a TOML {}", other.type_str()))
                    }
                }
            } else {
                let groups = names::<S>(children).filter_map(|it| it.rsplit_once('.').map(|(group, _)| group));
                let near = kind::nearest(&path, names::<S>(children).chain(groups));
                self.problem(place, format!("unknown key `{path}`; did you mean `{near}`?"));
            }
        }
    }

    fn variable(&mut self, config: &mut Config, name: &str, value: &str) {
        let Some(rest) = name.strip_prefix("BYWASH_") else { return };
        if OTHER_VARIABLES.contains(&name) {
            return;
        }
        let path = rest.to_ascii_lowercase().replace("__", ".");
        let place = Place::Variable(name.into());
        if self.set_text(config, &path, value, place.clone()).is_none() && !service_link(name, value) {
            let near = variable_name(&nearest_key(&path));
            let near = kind::nearest(name, OTHER_VARIABLES.into_iter().chain([near.as_str()]));
            self.problem(place, format!("unknown variable; did you mean {near}?"));
        }
    }

    /// Sets `path`, or `app.<id>.` and a path of the app, which is made if it is not there. `None`: no such key.
    fn set_text(&mut self, config: &mut Config, path: &str, text: &str, place: Place) -> Option<()> {
        let result = match path.strip_prefix("app.").and_then(|it| it.split_once('.')) {
            Some((id, rest)) => {
                let (id, key) = (kind::AppId::parse(id).ok()?, find::<App>(rest)?);
                let index = config.apps.iter().position(|it| it.id == id).unwrap_or_else(|| {
                    config.apps.push(App { id, ..App::default() });
                    let index = config.apps.len() - 1;
                    self.places.insert(format!("app.{index}"), place.clone());
                    self.places.insert(format!("app.{index}.id"), place.clone());
                    index
                });
                self.places.insert(format!("app.{index}.{rest}"), place.clone());
                key.set_text(&mut config.apps[index], text)
            }
            None => {
                let key = find::<Config>(path)?;
                self.places.insert(path.into(), place.clone());
                key.set_text(config, text)
            }
        };
        if let Err(why) = result {
            self.problem(place, why);
        }
        Some(())
    }
}

/// Variables that are no keys: the log level, the configuration's file, and the switch of the tests that rewrite pages.
const OTHER_VARIABLES: [&str; 3] = ["BYWASH_LOG", "BYWASH_CONFIG", "BYWASH_BLESS"];

/// Whether that is no setting but what Kubernetes tells each container of a service that is named `bywash`, or `bywash-…`:
/// `BYWASH_SERVICE_HOST`, `BYWASH_SERVICE_PORT_HTTP`, `BYWASH_PORT=tcp://…`, `BYWASH_PORT_8080_TCP_ADDR`.
fn service_link(name: &str, value: &str) -> bool {
    let port = |rest: &str| {
        let mut words = rest.split('_');
        words.next().is_some_and(|it| it.parse::<u16>().is_ok())
            && matches!(words.next(), Some("TCP" | "UDP" | "SCTP"))
            && matches!((words.next(), words.next()), (None | Some("PROTO" | "PORT" | "ADDR"), None))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|it| value.starts_with(it))
        || name.split_once("_PORT_").is_some_and(|(_, rest)| port(rest))
}

/// The variable that overrides the key `path`.
pub fn variable_name(path: &str) -> String {
    format!("BYWASH_{}", path.replace('.', "__").to_ascii_uppercase())
}

fn apps(reader: &mut Reader<'_>, at: &str, config: &mut Config, value: &Spanned<DeValue<'_>>) {
    config.apps = reader.list(at, "[[app]]", value, &[("cdn.push", pushes), ("record", records)]);
}

fn pushes(reader: &mut Reader<'_>, at: &str, app: &mut App, value: &Spanned<DeValue<'_>>) {
    app.cdn.push = reader.list::<Push>(at, "[[app.cdn.push]]", value, &[]);
}

fn records(reader: &mut Reader<'_>, at: &str, app: &mut App, value: &Spanned<DeValue<'_>>) {
    let DeValue::Table(vendors) = value.get_ref() else {
        return reader.problem(reader.place(at), "expected a table for each vendor: [app.record.Tencent]");
    };
    for (vendor, value) in vendors {
        let name = vendor.get_ref();
        let at = join(at, name);
        let place = reader.line(vendor.span().start);
        reader.places.insert(at.clone(), place.clone());
        let mut record = Record::default();
        match (Vendor::parse(name), value.get_ref()) {
            (Err(why), _) => reader.problem(place, format!("unknown vendor `{name}`: {why}")),
            (Ok(_), DeValue::Table(table)) => {
                reader.table(&at, "", table, &mut record, &[]);
                app.record.insert(name.to_string(), record);
            }
            (Ok(_), _) => reader.problem(place, format!("expected a table: [app.record.{name}]")),
        }
    }
}

impl Reader<'_> {
    fn list<S: Scope>(
        &mut self,
        at: &str,
        header: &str,
        value: &Spanned<DeValue<'_>>,
        children: &[Child<S>],
    ) -> Vec<S> {
        let DeValue::Array(parts) = value.get_ref() else {
            self.problem(self.place(at), format!("there may be several: write {header}"));
            return Vec::new();
        };
        let mut all = Vec::new();
        for part in parts.iter() {
            let at = format!("{at}.{}", all.len());
            let place = self.line(part.span().start);
            self.places.insert(at.clone(), place.clone());
            let mut scope = S::default();
            match part.get_ref() {
                DeValue::Table(table) => self.table(&at, "", table, &mut scope, children),
                _ => self.problem(place, format!("expected a table: {header}")),
            }
            all.push(scope);
        }
        all
    }
}

fn find<S: Scope>(path: &str) -> Option<&'static Key<S>> {
    S::keys().iter().find(|it| it.path == path)
}

/// The path of a variable or a flag that `path` was most likely meant to be.
fn nearest_key(path: &str) -> String {
    match path.strip_prefix("app.").and_then(|it| it.split_once('.')) {
        Some((id, rest)) => format!("app.{id}.{}", kind::nearest(rest, names::<App>(&[]))),
        None => kind::nearest(path, names::<Config>(&[])).into(),
    }
}

fn names<S: Scope>(children: &[Child<S>]) -> impl Iterator<Item = &'static str> {
    S::keys().iter().map(|it| it.path).chain(children.iter().map(|it| it.0))
}

fn join(group: &str, name: &str) -> String {
    match group {
        "" => name.to_owned(),
        _ => format!("{group}.{name}"),
    }
}
