//! The parameters of one call, under one spelling whatever the caller wrote.
//!
//! A list comes as `X[]=a&X[]=b`, `X=a&X=b`, `X[0]=a&X[1]=b`, `X.0=a&X.1=b`, a lone `X=a`, or a JSON array; objects
//! within nest as `X.0.Name`. Everything is kept as dotted name and text. Commas never separate.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::str::FromStr;

use bywash_media::{Environment, StreamKey};
use serde_json::{Map, Value};

use super::code::{Family, Fault};
use crate::store::Page;

/// Names that only the query gives, and only to the gateway.
const COMMON: [&str; 7] = ["Action", "AppId", "IsTest", "Signature", "SignatureNonce", "SignatureVersion", "Timestamp"];

/// The longest dotted name that is kept; none that means anything is longer.
const NAME_MAX: usize = 128;

/// Values by dotted name. An empty value alone counts as absent.
#[derive(Clone, Debug, Default)]
pub struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// From a URL's query.
    pub fn parse(query: &str) -> Query {
        let mut all = Query::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            all.add(&dotted(&name), &value);
        }
        all
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|values| values[0].as_str()).filter(|value| !value.is_empty())
    }

    /// Lays a body over the query: a name in the body hides the query's. Common names are left alone.
    pub fn overlay(&mut self, body: Map<String, Value>) {
        let body = body.into_iter().map(|(name, value)| (dotted(&name), value));
        let body: Vec<(String, Value)> = body.filter(|(name, _)| !COMMON.contains(&root(name))).collect();
        let hidden: HashSet<&str> = body.iter().map(|(name, _)| root(name)).collect();
        self.0.retain(|name, _| !hidden.contains(root(name)));
        for (name, value) in body {
            self.add_json(&name, value);
        }
    }

    /// The business parameters as one text: the same for the same call, however spelled in JSON or query order.
    pub fn canonical(&self) -> String {
        let mut text = form_urlencoded::Serializer::new(String::new());
        for (name, values) in self.0.iter().filter(|(name, _)| !COMMON.contains(&name.as_str())) {
            for value in values {
                text.append_pair(name, value);
            }
        }
        text.finish()
    }

    fn add(&mut self, name: &str, value: &str) {
        // An absurd name would be kept once for each member below it.
        if name.len() <= NAME_MAX {
            self.0.entry(name.to_owned()).or_default().push(value.to_owned());
        }
    }

    // serde_json refuses bodies nested deeper than 128, so the recursion is bounded.
    fn add_json(&mut self, name: &str, value: Value) {
        match value {
            _ if name.len() > NAME_MAX => {}
            Value::Null => {}
            Value::Bool(value) => self.add(name, &value.to_string()),
            Value::Number(value) => self.add(name, &value.to_string()),
            Value::String(value) => self.add(name, &value),
            Value::Array(values) if values.iter().all(|value| !value.is_object() && !value.is_array()) => {
                for value in values {
                    match value {
                        // As empty as `StreamId[]=` in a query.
                        Value::Null => self.add(name, ""),
                        value => self.add_json(name, value),
                    }
                }
            }
            Value::Array(values) => {
                for (n, value) in values.into_iter().enumerate() {
                    self.add_json(&format!("{name}.{n}"), value);
                }
            }
            Value::Object(members) => {
                for (member, value) in members {
                    self.add_json(&format!("{name}.{member}"), value);
                }
            }
        }
    }
}

/// A form as if it were JSON: each name with the list of its values.
pub fn form(text: &[u8]) -> Map<String, Value> {
    let mut body = Map::new();
    for (name, value) in form_urlencoded::parse(text) {
        let values = body.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        values.as_array_mut().expect("there are only lists").push(value.into());
    }
    body
}

/// A name in its one spelling: `X[0][Id]` and `X[0].Id` are `X.0.Id`, `X[]` is `X`.
fn dotted(name: &str) -> String {
    name.replace('[', ".").replace(']', "").trim_end_matches('.').to_owned()
}

/// The parameter that a dotted name is part of.
fn root(name: &str) -> &str {
    name.split_once('.').map_or(name, |(root, _)| root)
}

/// What follows `name.` in `known`.
fn below<'a>(known: &'a str, name: &str) -> Option<&'a str> {
    known.strip_prefix(name)?.strip_prefix('.')
}

/// What an action parses itself from: its values, and whose call it is.
pub struct Params {
    /// The calling app.
    pub app: u32,
    /// The environment that IsTest names.
    pub environment: Environment,
    /// The codes of the action.
    pub family: &'static Family,
    /// The values.
    pub values: Query,
}

impl Params {
    /// A parameter as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)
    }

    /// A parameter that must be there.
    pub fn required(&self, name: &str) -> Result<&str, Fault> {
        self.text(name).ok_or_else(|| self.bad(format!("{name} is required")))
    }

    /// A parameter as a number.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Fault> {
        self.text(name)
            .map(|text| text.parse().map_err(|_| self.bad(format!("{name} is not a number of its range"))))
            .transpose()
    }

    /// The parameter `StreamId`.
    pub fn stream(&self) -> Result<StreamKey, Fault> {
        let id = self.text("StreamId").ok_or_else(|| self.family.stream.because("StreamId is required"))?;
        self.key(id).ok_or_else(|| self.family.stream.because(self.stream_rule()))
    }

    /// The parameter `StreamId`, if given.
    pub fn stream_if_any(&self) -> Result<Option<StreamKey>, Fault> {
        self.text("StreamId").map(|_| self.stream()).transpose()
    }

    /// The parameter `StreamId[]`: 1 to `max` ids, each valid, or none is taken.
    pub fn streams(&self, max: usize) -> Result<Vec<StreamKey>, Fault> {
        let bad = |why: String| self.family.streams.because(why);
        let ids = self.list("StreamId").map_err(|_| bad("the indices of StreamId have a gap".into()))?;
        if ids.is_empty() || ids.len() > max {
            return Err(bad(format!("StreamId[] takes 1 to {max} ids, not {}", ids.len())));
        }
        ids.iter().map(|id| self.key(id).ok_or_else(|| bad(self.stream_rule()))).collect()
    }

    /// All values of a list parameter; empty if absent.
    pub fn list(&self, name: &str) -> Result<Vec<&str>, Fault> {
        let mut list: Vec<&str> = self.values.0.get(name).into_iter().flatten().map(String::as_str).collect();
        for n in 0..self.indices(name)? {
            list.extend(self.values.0.get(&format!("{name}.{n}")).into_iter().flatten().map(String::as_str));
        }
        Ok(list)
    }

    /// All objects of a list parameter (`X.0.Name`), each as parameters of its own; empty if absent.
    pub fn objects(&self, name: &str) -> Result<Vec<Params>, Fault> {
        let object = |n| {
            let prefix = format!("{name}.{n}");
            let members = self.values.0.iter();
            let members = members.filter_map(|(known, value)| Some((below(known, &prefix)?.to_owned(), value.clone())));
            Params { values: Query(members.collect()), ..*self }
        };
        Ok((0..self.indices(name)?).map(object).collect())
    }

    /// `PageNumber` (from 0) and `PageSize` (1 to 1000, default 100).
    pub fn page(&self) -> Result<Page, Fault> {
        let number = self.number::<u32>("PageNumber")?.unwrap_or(0);
        let size = self.number::<u32>("PageSize")?.unwrap_or(100);
        if !(1..=1000).contains(&size) {
            return Err(self.bad("PageSize is 1 to 1000"));
        }
        Ok(Page { number: number.into(), size: size.into() })
    }

    /// A refusal with the family's code for bad parameters.
    pub fn bad(&self, why: impl Into<std::borrow::Cow<'static, str>>) -> Fault {
        self.family.parameter.because(why)
    }

    fn key(&self, id: &str) -> Option<StreamKey> {
        StreamKey::parse(self.app, self.environment, id)
    }

    fn stream_rule(&self) -> String {
        let prefix = match self.environment {
            Environment::Production => String::new(),
            Environment::Test => format!(", and begins with {} when IsTest is true", StreamKey::test_prefix(self.app)),
        };
        format!("a StreamId has {}{prefix}", StreamKey::RULE)
    }

    /// How many indices follow `name`: 0, 1, … without a gap.
    fn indices(&self, name: &str) -> Result<usize, Fault> {
        let index = |known: &str| below(known, name)?.split('.').next()?.parse().ok();
        let seen: BTreeSet<usize> = self.values.0.keys().filter_map(|known| index(known)).collect();
        match seen.last() {
            Some(last) if *last != seen.len() - 1 => Err(self.bad(format!("the indices of {name} have a gap"))),
            _ => Ok(seen.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::code;

    fn params(query: &str, body: Value) -> Params {
        let mut values = Query::parse(query);
        values.overlay(body.as_object().unwrap().clone());
        Params { app: 7, environment: Environment::Production, family: &code::TRANSFER, values }
    }

    /// The list `X` of a query and a JSON body, comma-joined; `!` where it is refused.
    fn check(query: &str, body: Value, want: &str) {
        let got = params(query, body.clone()).list("X").map_or("!".into(), |list| list.join(" "));
        assert_eq!(got, want, "{query} {body}");
    }

    #[test]
    fn a_list_has_many_spellings() {
        let none = || serde_json::json!({});
        check("X[]=a&X[]=b", none(), "a b");
        check("X%5B%5D=a&X%5B%5D=b", none(), "a b");
        check("X=a&X=b", none(), "a b");
        check("X=a", none(), "a");
        check("X[0]=a&X[1]=b", none(), "a b");
        check("X.1=b&X.0=a", none(), "a b");
        check("X.0=a&X.2=b", none(), "!");
        check("X.18446744073709551615=a", none(), "!");
        check("X=a,b", none(), "a,b");
        check("", none(), "");
        check("", serde_json::json!({"X": ["a", 2, true]}), "a 2 true");
        check("", serde_json::json!({"X": "a"}), "a");
        check("X[]=a&X.0=b", serde_json::json!({"X": ["c"]}), "c");
        check("XY=a&Y=X", none(), "");
        check("X[]=a&X[]=&X.0=", none(), "a  ");
        check("X=a", serde_json::json!({"X[]": ["b"]}), "b");
    }

    #[test]
    fn a_body_hides_the_query_but_not_the_common_parameters() {
        let params =
            params("AppId=7&A=1&B=2&C.0=3", serde_json::json!({"AppId": 8, "A": 9, "B": null, "C": {"D": "x"}}));
        let got = ["AppId", "A", "B", "C.0", "C.D"].map(|name| params.text(name));
        assert_eq!(got, [Some("7"), Some("9"), None, None, Some("x")]);
    }

    #[test]
    fn a_huge_body_stays_small() {
        let members: Vec<Value> = (0..1000).map(|n| serde_json::json!({ "a": n })).collect();
        let params = params("", serde_json::json!({ ("x".repeat(100_000)): members, "y": 1 }));
        assert_eq!(params.values.canonical(), "y=1");
    }

    #[test]
    fn objects_nest_by_dots_brackets_and_json() {
        let json = serde_json::json!({"X": [{"Id": "a", "R": ["1", "2"]}, {"Id": "b"}]});
        for params in [
            params("X.0.Id=a&X.0.R.0=1&X.0.R.1=2&X.1.Id=b", serde_json::json!({})),
            params("X[0][Id]=a&X[0].R[]=1&X[0].R[]=2&X[1].Id=b", serde_json::json!({})),
            params("", json),
        ] {
            let objects = params.objects("X").ok().unwrap();
            let ids: Vec<_> = objects.iter().map(|it| it.text("Id").unwrap()).collect();
            assert_eq!(ids, ["a", "b"]);
            assert_eq!(objects[0].list("R").ok().unwrap(), ["1", "2"]);
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_without_panic(query in "([XY]|%5B|[\\[\\].0-9=&-]|\\PC){0,60}") {
            let params = params(&query, serde_json::json!({}));
            let objects = params.objects("X").map_or(0, |objects| objects.len());
            prop_assert!(objects <= query.len() && params.list("X").map_or(0, |list| list.len()) <= query.len());
        }
    }
}
