//! The stats of the scx_* schedulers that serve some: names and kinds as `tests/data/schedulers.json` has them, and an
//! answer of each in which every value is another one.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The structs and fields of the schedulers' public definitions. A field is `u64`, `[u64]` or `{string:u64}`, also with
/// the name of another struct, and ` skip` after it if it has `_om_skip`.
const DEFINITIONS: &str = include_str!("../data/schedulers.json");

/// Keys of every dict, and elements of every array, in an answer.
const EACH: usize = 2;

/// What one scheduler sends.
#[derive(Clone, Debug)]
pub struct SchedulerShape {
    /// The scheduler's name.
    pub name: String,
    /// Its `stats_meta`.
    pub meta: Value,
    /// An answer to `stats`.
    pub answer: Value,
    /// The numbers in the answer that are to be metrics, as they are written. No two are equal.
    pub numbers: Vec<String>,
    /// The texts in the answer.
    pub texts: Vec<String>,
    /// The numbers that the scheduler says are no metrics.
    pub skipped: Vec<String>,
}

#[derive(Deserialize)]
struct Definition {
    /// The struct that it answers with.
    answer: String,
    structs: BTreeMap<String, Struct>,
}

#[derive(Deserialize)]
struct Struct {
    #[serde(default)]
    top: bool,
    #[serde(rename = "_om_prefix")]
    prefix: Option<String>,
    #[serde(rename = "_om_label")]
    label: Option<String>,
    fields: BTreeMap<String, String>,
}

/// Returns what each scheduler sends.
///
/// # Panics
///
/// When the definitions are not in their form.
#[must_use]
pub fn scheduler_shapes() -> Vec<SchedulerShape> {
    let definitions: BTreeMap<String, Definition> = serde_json::from_str(DEFINITIONS).expect("the definitions parse");
    definitions.into_iter().map(|(name, definition)| shape(name, &definition)).collect()
}

/// Returns what this scheduler sends.
///
/// # Panics
///
/// When it is not defined.
#[must_use]
pub fn scheduler_shape(name: &str) -> SchedulerShape {
    scheduler_shapes().into_iter().find(|shape| shape.name == name).unwrap_or_else(|| panic!("no definition of {name}"))
}

fn shape(name: String, definition: &Definition) -> SchedulerShape {
    let meta = definition.structs.iter().map(|(name, of)| (name.clone(), described(name, of))).collect();
    let (numbers, texts, skipped) = Default::default();
    let mut shape = SchedulerShape { name, meta: Value::Object(meta), answer: json!(null), numbers, texts, skipped };
    shape.answer = shape.struct_value(definition, &definition.answer, false);
    shape
}

fn described(name: &str, of: &Struct) -> Value {
    let fields: Map<String, Value> =
        of.fields.iter().map(|(name, field)| (name.clone(), described_field(field))).collect();
    let mut described = json!({ "name": name, "fields": fields });
    let attributes = [("_om_prefix", &of.prefix), ("_om_label", &of.label)];
    let attributes = attributes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))));
    let attributes: Map<String, Value> = attributes.collect();
    if !attributes.is_empty() {
        described["user"] = Value::Object(attributes);
    }
    if of.top {
        described["top"] = json!("true");
    }
    described
}

fn described_field(field: &str) -> Value {
    let (data, is_skipped) = split(field);
    let mut described = match inside(data) {
        Inside::One(kind) => json!({ "datum": kind_value(kind) }),
        Inside::Array(kind) => json!({ "array": kind_value(kind) }),
        Inside::Dict(key, kind) => json!({ "dict": { "key": kind_value(key), "datum": kind_value(kind) } }),
    };
    if is_skipped {
        described["user"] = json!({ "_om_skip": "true" });
    }
    described
}

fn kind_value(kind: &str) -> Value {
    if is_struct(kind) { json!({ "struct": kind }) } else { json!(kind) }
}

fn is_struct(kind: &str) -> bool {
    kind.starts_with(|first: char| first.is_ascii_uppercase())
}

fn split(field: &str) -> (&str, bool) {
    field.strip_suffix(" skip").map_or((field, false), |data| (data, true))
}

enum Inside<'d> {
    One(&'d str),
    Array(&'d str),
    Dict(&'d str, &'d str),
}

fn inside(data: &str) -> Inside<'_> {
    let between = |open, close| data.strip_prefix(open).and_then(|rest: &str| rest.strip_suffix(close));
    match (between('[', ']'), between('{', '}').and_then(|dict| dict.split_once(':'))) {
        (Some(kind), _) => Inside::Array(kind),
        (_, Some((key, kind))) => Inside::Dict(key, kind),
        _ => Inside::One(data),
    }
}

impl SchedulerShape {
    fn struct_value(&mut self, definition: &Definition, name: &str, is_skipped: bool) -> Value {
        let of = definition.structs.get(name).unwrap_or_else(|| panic!("no struct {name}"));
        let fields = of.fields.iter().map(|(name, field)| {
            let (data, skips) = split(field);
            let skips = is_skipped || skips;
            let value = match inside(data) {
                Inside::One(kind) => self.value(definition, kind, skips),
                Inside::Array(kind) => (0..EACH).map(|_| self.value(definition, kind, skips)).collect(),
                Inside::Dict(key, kind) => {
                    let key = |at: usize| if key == "string" { format!("key {at}") } else { at.to_string() };
                    Value::Object((0..EACH).map(|at| (key(at), self.value(definition, kind, skips))).collect())
                }
            };
            (name.clone(), value)
        });
        Value::Object(fields.collect())
    }

    fn value(&mut self, definition: &Definition, kind: &str, is_skipped: bool) -> Value {
        if is_struct(kind) {
            return self.struct_value(definition, kind, is_skipped);
        }
        let number = 1_000_001 + self.numbers.len() + self.texts.len() + self.skipped.len();
        let (value, written) = match kind {
            "u64" => (json!(number), number.to_string()),
            "i64" => (json!(-i64::try_from(number).expect("a small number")), format!("-{number}")),
            // Written by hand, so that no digit depends on a conversion.
            "float" => {
                let written = format!("{number}.5");
                (serde_json::from_str(&written).expect("a number"), written)
            }
            "string" => (json!(format!("text {number}")), format!("text {number}")),
            other => panic!("no kind {other}"),
        };
        match (kind, is_skipped) {
            ("string", _) => self.texts.push(written),
            (_, true) => self.skipped.push(written),
            (_, false) => self.numbers.push(written),
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheduler_has_a_description_and_an_answer() {
        let shapes = scheduler_shapes();
        assert!(shapes.len() >= 13, "{}", shapes.len());
        for shape in shapes {
            assert!(shape.meta.as_object().is_some_and(|structs| !structs.is_empty()) && !shape.numbers.is_empty());
        }
    }

    #[test]
    fn a_shape_is_as_its_scheduler_sends_it() {
        let mitosis = scheduler_shape("scx_mitosis");
        assert_eq!(mitosis.meta["CellMetrics"]["user"], json!({ "_om_prefix": "c_" }));
        assert_eq!(
            mitosis.meta["Metrics"]["fields"]["cells"],
            json!({ "dict": { "key": "u64", "datum": { "struct": "CellMetrics" } } })
        );
        assert_eq!(mitosis.meta["CellMetrics"]["fields"]["cgroup_path"]["user"], json!({ "_om_skip": "true" }));
        assert_eq!(mitosis.texts.len(), EACH);
        assert!(mitosis.answer["cells"]["1"]["num_cpus"].is_u64());
    }
}
