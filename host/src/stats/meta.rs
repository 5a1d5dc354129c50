//! What a scheduler's stats mean: `stats_meta`, parsed.
//!
//! A server describes structs by name; a field is one value, an array or a dict, of a number, a text or another struct.
//! [`Meta::tops`] returns the structs that answers begin with, [`Meta::leaves`] every number and text below one. A guest
//! writes the description: structs may be missing, contain each other, or have kinds that this crate does not know, and
//! none of that is an error.
//!
//! ```
//! use scx_vsock::stats::meta::Meta;
//!
//! let meta: Meta = serde_json::from_str(
//!     r#"{"Top":{"name":"Top","top":"true","fields":{"layers":{"dict":{"key":"string","datum":{"struct":"Layer"}}}}},
//!         "Layer":{"name":"Layer","fields":{"util":{"datum":"float","desc":"CPU use in percent"}},
//!                  "user":{"_om_prefix":"l_","_om_label":"layer"}}}"#,
//! )?;
//! let top = meta.tops().next().unwrap();
//! let leaf = meta.leaves(top).next().unwrap();
//! assert_eq!(leaf.to_string(), "layers.*.util");
//! assert_eq!(leaf.field.desc.as_deref(), Some("CPU use in percent"));
//! assert_eq!(leaf.owner.attributes.om_prefix(), "l_");
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::path::escaped;

/// Structs inside structs that [`Meta::leaves`] visits. Schedulers nest two or three deep.
pub const MAX_DEPTH: usize = 16;

/// Every struct that a server describes, by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Meta {
    /// The structs.
    pub structs: BTreeMap<String, Struct>,
}

/// One struct.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Struct {
    /// Its name, as fields refer to it.
    #[serde(default)]
    pub name: String,
    /// What it is, for people.
    #[serde(default)]
    pub desc: Option<String>,
    /// Whether it is what `stats` answers without a target.
    #[serde(default, deserialize_with = "is_set")]
    pub top: bool,
    /// What the server's author adds for programs.
    #[serde(default, rename = "user")]
    pub attributes: Attributes,
    /// Its fields by their names.
    #[serde(default)]
    pub fields: BTreeMap<String, Field>,
}

/// One field of a struct.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "DescribedField")]
pub struct Field {
    /// What it holds.
    pub data: Data,
    /// What it means, for people, often with its unit.
    pub desc: Option<String>,
    /// What the server's author adds for programs.
    pub attributes: Attributes,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// One value.
    Datum(Kind),
    /// Values by their index.
    Array(Kind),
    /// Values by a key, which is a text in JSON, whatever its kind.
    Dict {
        /// The keys' kind.
        key: Kind,
        /// The values' kind.
        datum: Kind,
    },
    /// A form that this crate does not know.
    Unknown,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Value")]
pub enum Kind {
    /// An integer.
    I64,
    /// An integer that is not negative.
    U64,
    /// A number.
    Float,
    /// A text.
    String,
    /// A struct, by its name.
    Struct(String),
    /// A kind that this crate does not know, as the server writes it.
    Unknown(String),
}

/// Attributes that a server's author adds for programs. Names begin with `_`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Attributes(pub BTreeMap<String, Value>);

impl Attributes {
    /// Returns the prefix of the metrics of a struct's fields; empty if there is none.
    #[must_use]
    pub fn om_prefix(&self) -> &str {
        self.text("_om_prefix").unwrap_or_default()
    }

    /// Returns the label whose value is the key of the struct in a dict.
    #[must_use]
    pub fn om_label(&self) -> Option<&str> {
        self.text("_om_label").filter(|label| !label.is_empty())
    }

    /// Returns whether the field is no metric.
    #[must_use]
    pub fn om_skip(&self) -> bool {
        self.0.contains_key("_om_skip")
    }

    /// Returns the unit of a histogram's buckets, for an array of counts by powers of two: the attribute `_om_histogram` is
    /// `log2_ns`, `log2_us`, `log2_ms` or `log2_s`. The element at index i counts the values below 2^(i+1) units that no
    /// element before it counts, and the last one all larger values as well.
    #[must_use]
    pub fn om_histogram(&self) -> Option<Duration> {
        match self.text("_om_histogram")? {
            "log2_ns" => Some(Duration::from_nanos(1)),
            "log2_us" => Some(Duration::from_micros(1)),
            "log2_ms" => Some(Duration::from_millis(1)),
            "log2_s" => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }
}

impl Data {
    /// Returns the kind of each value.
    #[must_use]
    pub fn kind(&self) -> Option<&Kind> {
        match self {
            Self::Datum(kind) | Self::Array(kind) | Self::Dict { datum: kind, .. } => Some(kind),
            Self::Unknown => None,
        }
    }
}

/// As servers print it for people: `u64`, `[u64]`, `{string:Layer}`.
impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Datum(kind) => write!(f, "{kind}"),
            Self::Array(kind) => write!(f, "[{kind}]"),
            Self::Dict { key, datum } => write!(f, "{{{key}:{datum}}}"),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::Float => "float",
            Self::String => "string",
            Self::Struct(name) | Self::Unknown(name) => name,
        })
    }
}

impl From<Value> for Kind {
    fn from(kind: Value) -> Self {
        match kind.as_str() {
            Some("i64") => Self::I64,
            Some("u64") => Self::U64,
            Some("float") => Self::Float,
            Some("string") => Self::String,
            Some(other) => Self::Unknown(other.to_owned()),
            None => match kind.get("struct").and_then(Value::as_str) {
                Some(name) => Self::Struct(name.to_owned()),
                None => Self::Unknown(kind.to_string()),
            },
        }
    }
}

/// A field as servers write it: its data is one of three keys.
#[derive(Deserialize)]
struct DescribedField {
    datum: Option<Kind>,
    array: Option<Kind>,
    dict: Option<DescribedDict>,
    desc: Option<String>,
    #[serde(default)]
    user: Attributes,
}

#[derive(Deserialize)]
struct DescribedDict {
    key: Kind,
    datum: Kind,
}

impl From<DescribedField> for Field {
    fn from(field: DescribedField) -> Self {
        let data = match field {
            DescribedField { datum: Some(kind), .. } => Data::Datum(kind),
            DescribedField { array: Some(kind), .. } => Data::Array(kind),
            DescribedField { dict: Some(DescribedDict { key, datum }), .. } => Data::Dict { key, datum },
            DescribedField { .. } => Data::Unknown,
        };
        Self { data, desc: field.desc, attributes: field.user }
    }
}

/// Servers write `"true"`, and nothing for a struct that is no top.
fn is_set<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(!matches!(value, Value::Null | Value::Bool(false)))
}

impl Meta {
    /// Returns the structs that answers begin with: those marked as top that no other struct refers to, then those of other
    /// targets, which no field refers to. If all marked ones are referred to, they come first all the same.
    pub fn tops(&self) -> impl Iterator<Item = &Struct> {
        let inner = self.inner_structs();
        let is_marked_top = |name: &str, of: &Struct| of.top && !inner.contains(name);
        let none_is = !self.structs.iter().any(|(name, of)| is_marked_top(name, of));
        let (mut marked, mut others) = (Vec::new(), Vec::new());
        for (name, of) in &self.structs {
            if is_marked_top(name, of) || (of.top && none_is) {
                marked.push(of);
            } else if !inner.contains(name.as_str()) {
                others.push(of);
            }
        }
        marked.into_iter().chain(others)
    }

    /// Returns the struct that describes an answer to `stats` without a target. Servers may mark several as top: of the
    /// marked ones in [`tops`](Self::tops) it is the one that describes most of the answer's fields, then the one with the
    /// fewest fields that the answer does not have, then the first. If none is marked, it is the first of `tops`.
    ///
    /// The time that it takes is in proportion to the description.
    #[must_use]
    pub fn top_of(&self, answer: &Value) -> Option<&Struct> {
        let tops: Vec<&Struct> = self.tops().collect();
        let marked = tops.iter().copied().filter(|of| of.top);
        let fit = |of: &Struct| {
            let described = of.fields.keys().filter(|&name| answer.get(name).is_some()).count();
            (Reverse(described), of.fields.len())
        };
        marked.min_by_key(|of| fit(of)).or_else(|| tops.first().copied())
    }

    /// The names of structs that fields of others refer to.
    fn inner_structs(&self) -> BTreeSet<&str> {
        let mut inner = BTreeSet::new();
        for (owner, of) in &self.structs {
            inner.extend(of.fields.values().filter_map(struct_name).filter(|name| name != owner));
        }
        inner
    }

    /// Returns the struct that a field's values are, if it is described.
    #[must_use]
    pub fn struct_of(&self, field: &Field) -> Option<&Struct> {
        self.structs.get(struct_name(field)?)
    }

    /// Returns every value below `top` that is not a struct with fields, in the order of names. A struct that is deeper
    /// than [`MAX_DEPTH`], not described, or inside itself is a leaf.
    ///
    /// A guest can describe more leaves than there is time for, so take a bounded number; the next one takes bounded time.
    #[must_use]
    pub fn leaves<'m>(&'m self, top: &'m Struct) -> Leaves<'m> {
        Leaves { meta: self, path: Vec::new(), open: vec![Open { of: top, fields: top.fields.iter(), depth: 0 }] }
    }
}

fn struct_name(field: &Field) -> Option<&str> {
    match field.data.kind()? {
        Kind::Struct(name) => Some(name),
        _ => None,
    }
}

/// A value that stats have, once or for each key or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf<'m> {
    /// The path to it.
    pub path: Vec<Step<'m>>,
    /// The struct that has it as a field.
    pub owner: &'m Struct,
    /// The field.
    pub field: &'m Field,
}

/// A step of the path to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'m> {
    /// Into the field with this name.
    Field(&'m str),
    /// Into each value of the array or dict that this field is.
    Each(&'m Field),
}

/// A dotted path as in [`StatPath`](super::StatPath), with `*` for each key or index.
impl fmt::Display for Leaf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.path.iter().enumerate() {
            if at > 0 {
                f.write_str(".")?;
            }
            match step {
                Step::Field(name) => f.write_str(&escaped(name))?,
                Step::Each(_) => f.write_str("*")?,
            }
        }
        Ok(())
    }
}

/// The leaves below a struct.
#[derive(Clone, Debug)]
pub struct Leaves<'m> {
    meta: &'m Meta,
    path: Vec<Step<'m>>,
    open: Vec<Open<'m>>,
}

/// A struct whose fields are being visited, and the length of the path to it.
#[derive(Clone, Debug)]
struct Open<'m> {
    of: &'m Struct,
    fields: btree_map::Iter<'m, String, Field>,
    depth: usize,
}

impl<'m> Iterator for Leaves<'m> {
    type Item = Leaf<'m>;

    fn next(&mut self) -> Option<Leaf<'m>> {
        loop {
            let open = self.open.last_mut()?;
            self.path.truncate(open.depth);
            let owner = open.of;
            let Some((name, field)) = open.fields.next() else {
                self.open.pop();
                continue;
            };
            self.path.push(Step::Field(name));
            if matches!(field.data, Data::Array(_) | Data::Dict { .. }) {
                self.path.push(Step::Each(field));
            }
            match self.inside(field) {
                Some(of) => self.open.push(Open { of, fields: of.fields.iter(), depth: self.path.len() }),
                None => return Some(Leaf { path: self.path.clone(), owner, field }),
            }
        }
    }
}

impl<'m> Leaves<'m> {
    /// The struct to visit next.
    fn inside(&self, field: &Field) -> Option<&'m Struct> {
        let of = self.meta.struct_of(field)?;
        let is_open = self.open.iter().any(|open| std::ptr::eq(open.of, of));
        (!is_open && !of.fields.is_empty() && self.open.len() < MAX_DEPTH).then_some(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn meta(value: Value) -> Meta {
        serde_json::from_value(value).unwrap()
    }

    fn paths(meta: &Meta) -> Vec<String> {
        meta.tops().flat_map(|top| meta.leaves(top)).map(|leaf| leaf.to_string()).collect()
    }

    /// What scx_stats' own example describes, as its servers write it.
    fn cluster() -> Meta {
        meta(json!({
            "ClusterStats": {
                "name": "ClusterStats", "desc": "cluster statistics", "top": "true",
                "fields": {
                    "at": { "datum": "u64", "user": { "_om_skip": "true" } },
                    "name": { "datum": "string" },
                    "loads": { "array": "float", "desc": "load of each minute" },
                    "domains": { "dict": { "key": "u64", "datum": { "struct": "DomainStats" } } },
                    "weights": { "dict": { "key": "string", "datum": "i64" } },
                },
            },
            "DomainStats": {
                "name": "DomainStats", "desc": "domain statistics",
                "fields": { "nr.events": { "datum": "i64", "desc": "number of events" } },
                "user": { "_om_label": "domain_name", "_om_prefix": "d_" },
            },
        }))
    }

    #[test]
    fn fields_have_their_kinds_descriptions_and_attributes() {
        let meta = cluster();
        let top = &meta.structs["ClusterStats"];
        assert!(top.top && !meta.structs["DomainStats"].top);
        assert_eq!(top.desc.as_deref(), Some("cluster statistics"));
        assert_eq!(top.attributes.om_label(), None);
        assert_eq!(top.attributes.om_prefix(), "");
        assert!(top.fields["at"].attributes.om_skip() && !top.fields["name"].attributes.om_skip());
        assert_eq!(top.fields["loads"].data, Data::Array(Kind::Float));
        assert_eq!(top.fields["loads"].desc.as_deref(), Some("load of each minute"));
        let shown = |name: &str| top.fields[name].data.to_string();
        assert_eq!(shown("domains"), "{u64:DomainStats}");
        assert_eq!(shown("weights"), "{string:i64}");
        assert_eq!((shown("at"), shown("name"), shown("loads")), ("u64".into(), "string".into(), "[float]".into()));
        let domain = meta.struct_of(&top.fields["domains"]).unwrap();
        assert_eq!((domain.attributes.om_label(), domain.attributes.om_prefix()), (Some("domain_name"), "d_"));
    }

    #[test]
    fn leaves_are_numbers_and_texts_by_their_paths() {
        assert_eq!(paths(&cluster()), ["at", r"domains.*.nr\.events", "loads.*", "name", "weights.*"]);
    }

    #[test]
    fn a_leaf_has_its_struct_and_its_path() {
        let meta = cluster();
        let top = meta.tops().next().unwrap();
        let leaf = meta.leaves(top).nth(1).unwrap();
        assert_eq!(leaf.owner.name, "DomainStats");
        assert_eq!(leaf.field.data, Data::Datum(Kind::I64));
        assert_eq!(leaf.path, [Step::Field("domains"), Step::Each(&top.fields["domains"]), Step::Field("nr.events")]);
    }

    #[test]
    fn unreferenced_structs_are_tops_of_other_targets() {
        let meta = meta(json!({
            "A": { "fields": { "b": { "datum": { "struct": "B" } } } },
            "B": { "fields": { "n": { "datum": "u64" } } },
            "Z": { "top": true, "fields": { "n": { "datum": "u64" } } },
            "Y": { "top": false, "fields": {} },
        }));
        let tops: Vec<bool> = meta.tops().map(|of| of.top).collect();
        assert_eq!(tops, [true, false, false]);
        assert_eq!(paths(&meta), ["n", "b.n"]);
    }

    #[test]
    fn the_answer_decides_between_marked_structs() {
        let meta = meta(json!({
            "A": { "top": "true", "user": { "_om_prefix": "s_" }, "fields": { "n": { "datum": "u64" } } },
            "B": { "top": "true", "fields": { "n": { "datum": "u64" }, "m": { "datum": "u64" } } },
            "C": { "fields": { "n": { "datum": "u64" }, "m": { "datum": "u64" }, "o": { "datum": "u64" } } },
        }));
        let top = |answer: Value| {
            meta.top_of(&answer).and_then(|top| meta.structs.iter().find(|(_, of)| std::ptr::eq(*of, top))).unwrap().0
        };
        assert_eq!(top(json!({ "n": 1, "m": 2 })), "B");
        assert_eq!(top(json!({ "n": 1, "m": 2, "o": 3 })), "B", "the third is of another target");
        assert_eq!(top(json!({ "n": 1 })), "A");
        assert_eq!(top(json!([])), "A");
        assert_eq!(Meta::default().top_of(&json!({})), None);
    }

    #[test]
    fn a_marked_struct_inside_another_is_no_top() {
        let cells = json!({ "dict": { "key": "u64", "datum": { "struct": "Cell" } } });
        let meta = meta(json!({
            "Cell": { "top": "true", "fields": { "n": { "datum": "u64" }, "of": { "datum": { "struct": "Cell" } } } },
            "Whole": { "top": "true", "fields": { "cells": cells } },
        }));
        assert_eq!(paths(&meta), ["cells.*.n", "cells.*.of"]);
        assert!(meta.top_of(&json!({ "n": 1 })).unwrap().fields.contains_key("cells"));
    }

    #[test]
    fn marked_structs_that_refer_to_each_other_are_tops() {
        let meta = meta(json!({
            "A": { "top": "true", "fields": { "b": { "datum": { "struct": "B" } } } },
            "B": { "top": "true", "fields": { "a": { "datum": { "struct": "A" } } } },
        }));
        assert_eq!(meta.tops().count(), 2);
    }

    #[test]
    fn unknown_kinds_are_kept() {
        let meta = meta(json!({
            "T": {
                "top": null, "later": 1,
                "fields": {
                    "a": { "datum": "u128" },
                    "b": { "histogram": "u64", "desc": "of a later version" },
                    "c": { "datum": { "struct": "NotThere" } },
                    "d": { "array": { "tuple": ["u64"] } },
                },
            },
        }));
        let shown: Vec<String> = meta.structs["T"].fields.values().map(|field| field.data.to_string()).collect();
        assert_eq!(shown, ["u128", "?", "NotThere", r#"[{"tuple":["u64"]}]"#]);
        assert_eq!(paths(&meta), ["a", "b", "c", "d.*"]);
        assert_eq!(meta.structs["T"].fields["b"].desc.as_deref(), Some("of a later version"));
    }

    #[test]
    fn what_is_no_description_is_an_error() {
        for wrong in [json!([]), json!({ "T": 1 }), json!({ "T": { "fields": [1] } }), json!({ "T": { "desc": 1 } })] {
            assert!(serde_json::from_value::<Meta>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn structs_inside_themselves_are_leaves() {
        let meta = meta(json!({
            "A": { "top": "true", "fields": { "b": { "datum": { "struct": "B" } }, "n": { "datum": "u64" } } },
            "B": { "fields": { "a": { "array": { "struct": "A" } }, "b": { "datum": { "struct": "B" } } } },
        }));
        assert_eq!(paths(&meta), ["b.a.*", "b.b", "n"]);
    }

    #[test]
    fn a_description_that_explodes_is_visited_lazily() {
        let structs = (0..60).map(|n| {
            let next = json!({ "datum": { "struct": format!("S{}", n + 1) } });
            (format!("S{n}"), json!({ "top": n == 0, "fields": { "a": next, "b": next } }))
        });
        let last = ("S60".to_owned(), json!({ "fields": {} }));
        let meta = meta(Value::Object(structs.chain([last]).collect()));
        let top = &meta.structs["S0"];
        let leaves: Vec<Leaf<'_>> = meta.leaves(top).take(1_000).collect();
        assert_eq!(leaves.len(), 1_000);
        assert!(leaves.iter().all(|leaf| leaf.path.len() == MAX_DEPTH));
    }
}
