//! The metrics that a scheduler's stats become, made of its description.

use std::collections::BTreeMap;
use std::time::Duration;

use super::names::{self, Names};
use crate::stats::meta::{self, Data, Kind, Leaf, Meta, Struct};

/// Metrics that one guest can have.
pub const MAX_METRICS: usize = 1_000;

/// The label that names the guest.
pub(super) const GUEST: &str = "guest";

/// Labels that no part of an answer may have: the guest's, and those that a histogram and a summary have of their own.
/// Prometheus takes nothing of a page in which a series has a label twice.
const RESERVED_LABELS: [&str; 3] = [GUEST, "le", "quantile"];

/// The metrics of one guest, and where an answer has their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MetricSet {
    pub(super) metrics: Vec<Metric>,
    pub(super) answer: Node,
    /// Whether the scheduler describes more than [`MAX_METRICS`].
    pub(super) is_truncated: bool,
}

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metric {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) form: MetricForm,
}

/// What becomes of a metric's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MetricForm {
    /// A gauge.
    Gauge,
    /// A gauge, and beside it a counter that adds up what it had: the values may be deltas.
    Counted {
        /// The counter's name, without `_total`.
        counter: String,
    },
    /// A gauge of 1 with the text as this label.
    Text {
        /// The label.
        label: String,
    },
    /// A histogram of all reads, whose buckets' bounds are powers of two.
    Histogram {
        /// What the bounds are multiples of.
        unit: Duration,
    },
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// Of no interest, by the scheduler's own word.
    Skipped,
    /// A value of the metric with this index.
    Value(usize),
    /// All counts of a histogram, the metric with this index.
    Buckets(usize),
    /// Parts by an index or key, which becomes a label.
    Each { label: String, inner: Box<Node> },
    /// Parts by their names.
    Fields(BTreeMap<String, Node>),
}

impl Default for MetricSet {
    fn default() -> Self {
        Self { metrics: Vec::new(), answer: Node::Fields(BTreeMap::new()), is_truncated: false }
    }
}

impl MetricSet {
    /// Returns the metrics of answers that this struct describes.
    pub(super) fn new(meta: &Meta, top: &Struct) -> Self {
        let mut leaves = meta.leaves(top);
        let mut taken = Names::default();
        let mut set = Self::default();
        for leaf in leaves.by_ref().take(MAX_METRICS) {
            set.add(meta, top, &leaf, &mut taken);
        }
        set.is_truncated = leaves.next().is_some();
        set
    }

    fn add(&mut self, meta: &Meta, top: &Struct, leaf: &Leaf<'_>, taken: &mut Names) {
        let mut steps = steps(meta, leaf);
        let node = if is_skipped(meta, top, leaf) {
            Node::Skipped
        } else {
            let metric = Metric::new(leaf, &steps, taken);
            let index = self.metrics.len();
            let is_histogram = matches!(metric.form, MetricForm::Histogram { .. });
            self.metrics.push(metric);
            if is_histogram {
                steps.pop();
                Node::Buckets(index)
            } else {
                Node::Value(index)
            }
        };
        self.answer.insert(&steps, node);
    }
}

/// A step of the path to a metric's values.
enum Step {
    Field(String),
    /// Into each value of an array or dict, whose index or key becomes this label.
    Each(String),
}

impl Node {
    fn insert(&mut self, path: &[Step], node: Self) {
        match path {
            [] => *self = node,
            [Step::Field(name), rest @ ..] => {
                if !matches!(self, Self::Fields(_)) {
                    *self = Self::Fields(BTreeMap::new());
                }
                if let Self::Fields(fields) = self {
                    fields.entry(name.clone()).or_insert(Self::Skipped).insert(rest, node);
                }
            }
            [Step::Each(label), rest @ ..] => {
                if !matches!(self, Self::Each { .. }) {
                    *self = Self::Each { label: label.clone(), inner: Box::new(Self::Skipped) };
                }
                if let Self::Each { inner, .. } = self {
                    inner.insert(rest, node);
                }
            }
        }
    }
}

/// Whether the field, or one on the path to it, has `_om_skip`. A text of its own is not skipped: schedulers skip texts
/// since upstream's exporter has no form for them.
fn is_skipped(meta: &Meta, top: &Struct, leaf: &Leaf<'_>) -> bool {
    let mut of = Some(top);
    fields(leaf).any(|name| {
        let field = of.and_then(|of| of.fields.get(name));
        of = field.and_then(|field| meta.struct_of(field));
        field.is_some_and(|field| field.attributes.om_skip() && field.data.kind() != Some(&Kind::String))
    })
}

fn fields<'m>(leaf: &Leaf<'m>) -> impl DoubleEndedIterator<Item = &'m str> + Clone {
    let names: Vec<&str> = leaf
        .path
        .iter()
        .filter_map(|step| match step {
            meta::Step::Field(name) => Some(*name),
            meta::Step::Each(_) => None,
        })
        .collect();
    names.into_iter()
}

impl Metric {
    fn new(leaf: &Leaf<'_>, steps: &[Step], taken: &mut Names) -> Self {
        let stem = stem(leaf, taken);
        let (name, form) = match (leaf.field.data.kind(), histogram(leaf)) {
            (Some(Kind::String), _) => {
                let stem = taken.take(stem);
                (names::info(&stem), MetricForm::Text { label: text_label(leaf, steps) })
            }
            (_, Some(unit)) => {
                let stem = taken.take(stem);
                (names::histogram(&stem), MetricForm::Histogram { unit })
            }
            (Some(Kind::U64), None) => {
                let name = taken.take(names::gauge(stem));
                let counter = names::accumulated(&name);
                (name, MetricForm::Counted { counter })
            }
            _ => (taken.take(names::gauge(stem)), MetricForm::Gauge),
        };
        let help = names::help(leaf.field.desc.as_deref().unwrap_or("A statistic of the guest's scheduler"));
        Self { name, help, form }
    }
}

/// The struct's prefix and the field's name if there is a prefix, as in upstream's exporter, unless the struct is in several
/// places; otherwise all the names of the path.
fn stem(leaf: &Leaf<'_>, taken: &Names) -> String {
    let by_path = || names::stem(fields(leaf));
    let prefix = leaf.owner.attributes.om_prefix();
    let short = fields(leaf).next_back().filter(|_| !prefix.is_empty());
    let short = short.map(|field| names::stem([&*format!("{prefix}{field}")]));
    short.filter(|stem| !taken.contains(&names::gauge(stem.clone()))).unwrap_or_else(by_path)
}

/// The unit of a field that is an array of a histogram's counts.
fn histogram(leaf: &Leaf<'_>) -> Option<Duration> {
    matches!(leaf.field.data, Data::Array(Kind::U64)).then(|| leaf.field.attributes.om_histogram()).flatten()
}

/// The label of a text, named after its field.
fn text_label(leaf: &Leaf<'_>, steps: &[Step]) -> String {
    let mut labels = reserved_labels();
    for step in steps {
        if let Step::Each(label) = step {
            labels.take(label.clone());
        }
    }
    labels.take(names::label(fields(leaf).next_back().unwrap_or_default()))
}

fn reserved_labels() -> Names {
    let mut labels = Names::default();
    RESERVED_LABELS.iter().for_each(|label| drop(labels.take((*label).to_owned())));
    labels
}

fn steps(meta: &Meta, leaf: &Leaf<'_>) -> Vec<Step> {
    let mut labels = reserved_labels();
    let step = |step: &meta::Step<'_>| match step {
        meta::Step::Field(name) => Step::Field((*name).to_owned()),
        meta::Step::Each(field) => {
            let named = meta.struct_of(field).and_then(|of| of.attributes.om_label());
            let label = named.unwrap_or(if matches!(field.data, Data::Array(_)) { "index" } else { "key" });
            Step::Each(labels.take(names::label(label)))
        }
    };
    leaf.path.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metric_set(meta: Value) -> MetricSet {
        let meta: Meta = serde_json::from_value(meta).unwrap();
        meta.tops().next().map(|top| MetricSet::new(&meta, top)).unwrap_or_default()
    }

    /// The labels of each metric, by its index.
    fn labels(node: &Node, so_far: &[String], found: &mut BTreeMap<usize, Vec<String>>) {
        match node {
            Node::Skipped => {}
            Node::Value(metric) | Node::Buckets(metric) => {
                found.insert(*metric, so_far.to_vec());
            }
            Node::Each { label, inner } => labels(inner, &[so_far, std::slice::from_ref(label)].concat(), found),
            Node::Fields(fields) => fields.values().for_each(|node| labels(node, so_far, found)),
        }
    }

    fn shown(set: &MetricSet) -> Vec<String> {
        let mut of = BTreeMap::new();
        labels(&set.answer, &[], &mut of);
        let line = |(at, metric): (usize, &Metric)| {
            let form = match &metric.form {
                MetricForm::Gauge => "",
                MetricForm::Counted { counter } => {
                    assert_eq!(*counter, format!("{}_accumulated", metric.name));
                    "+ "
                }
                MetricForm::Text { label } => &format!("={label} "),
                MetricForm::Histogram { unit } => &format!("{unit:?} "),
            };
            format!("{form}{}{{{}}} {}", metric.name, of[&at].join(","), metric.help)
        };
        set.metrics.iter().enumerate().map(line).collect()
    }

    fn layered() -> Value {
        json!({
            "Sys": {
                "name": "Sys", "top": "true",
                "fields": {
                    "at": { "datum": "u64", "user": { "_om_skip": "true" } },
                    "busy": { "datum": "float", "desc": "Busy \"CPUs\"\nin all" },
                    "layers": { "dict": { "key": "string", "datum": { "struct": "Layer" } } },
                    "load": { "datum": { "struct": "Load" } },
                    "hidden": { "datum": { "struct": "Load" }, "user": { "_om_skip": "" } },
                    "nodes": { "array": { "struct": "Load" } },
                    "version": { "datum": "string" },
                    "waits": { "array": "u64", "user": { "_om_histogram": "log2_us" } },
                    "counts": { "array": "u64", "user": { "_om_histogram": "linear" } },
                    "weights": { "dict": { "key": "string", "datum": "i64" } },
                },
            },
            "Layer": {
                "name": "Layer", "user": { "_om_prefix": "l_", "_om_label": "layer_name" },
                "fields": {
                    "util": { "datum": "float", "desc": "CPU use" }, "per": { "dict": { "key": "u64", "datum": "u64" } },
                    "path": { "datum": "string", "user": { "_om_skip": "true" } },
                    "layer_name": { "datum": "string" },
                },
            },
            "Load": { "name": "Load", "fields": { "one": { "datum": "float" } } },
        })
    }

    #[test]
    fn paths_become_names_and_labels() {
        let set = metric_set(layered());
        assert!(!set.is_truncated);
        let other = "A statistic of the guest's scheduler";
        assert_eq!(
            shown(&set),
            [
                "scx_busy{} Busy 'CPUs' in all".to_owned(),
                format!("+ scx_counts{{index}} {other}"),
                format!("=layer_name_2 scx_l_layer_name_info{{layer_name}} {other}"),
                format!("=path scx_l_path_info{{layer_name}} {other}"),
                format!("+ scx_l_per{{layer_name,key}} {other}"),
                "scx_l_util{layer_name} CPU use".to_owned(),
                format!("scx_load_one{{}} {other}"),
                format!("scx_nodes_one{{index}} {other}"),
                format!("=version scx_version_info{{}} {other}"),
                format!("1µs scx_waits_distribution{{}} {other}"),
                format!("scx_weights{{key}} {other}"),
            ]
        );
    }

    #[test]
    fn equal_names_are_numbered() {
        let set = metric_set(json!({
            "Top": { "top": true, "fields": {
                "a": { "datum": { "struct": "P" } }, "b": { "datum": { "struct": "P" } },
                "x.y": { "datum": "u64" }, "x_y": { "datum": "u64" },
                "d": { "dict": { "key": "string", "datum": { "struct": "D" } } },
            } },
            "P": { "user": { "_om_prefix": "p_" }, "fields": { "n": { "datum": "u64" } } },
            "D": { "user": { "_om_label": "guest" }, "fields": { "e": { "array": "u64" }, "f": { "dict": { "key": "u64", "datum": { "struct": "E" } } } } },
            "E": { "user": { "_om_label": "guest" }, "fields": { "n": { "datum": "u64" } } },
        }));
        let help = " A statistic of the guest's scheduler";
        let names: Vec<String> = shown(&set).iter().map(|line| line.replace(help, "")).collect();
        let expected = [
            "+ scx_p_n{}",
            "+ scx_b_n{}",
            "+ scx_d_e{guest_2,index}",
            "+ scx_d_f_n{guest_2,guest_3}",
            "+ scx_x_y{}",
            "+ scx_x_y_2{}",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn no_label_is_that_of_a_histogram_or_summary() {
        let set = metric_set(json!({
            "Top": { "top": true, "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "D" } } } } },
            "D": { "user": { "_om_label": "le" }, "fields": {
                "quantile": { "datum": "string" },
                "waits": { "array": "u64", "user": { "_om_histogram": "log2_us" } },
            } },
        }));
        let shown = shown(&set);
        assert!(shown[0].starts_with("=quantile_2 scx_d_quantile_info{le_2} "), "{shown:?}");
        assert!(shown[1].starts_with("1µs scx_d_waits_distribution{le_2} "), "{shown:?}");
    }

    #[test]
    fn a_description_that_explodes_is_truncated() {
        let structs = (0..30).map(|n| {
            let next = json!({ "datum": { "struct": format!("S{}", n + 1) } });
            (format!("S{n}"), json!({ "top": n == 0, "fields": { "a": next, "b": next } }))
        });
        let set = metric_set(Value::Object(structs.collect()));
        assert!(set.is_truncated && set.metrics.len() == MAX_METRICS);
        assert_eq!(metric_set(json!({})), MetricSet::default());
    }
}
