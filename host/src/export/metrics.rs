//! The metrics that a scheduler's stats become, made of its description once a session.

use super::names::{self, Names};
use crate::stats::meta::{self, Data, Kind, Leaf, Meta, Struct};

/// Metrics that one guest can have.
pub const MAX_METRICS: usize = 1_000;

/// The label that names the guest.
pub(super) const GUEST: &str = "guest";

/// The metrics of one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MetricSet {
    pub(super) metrics: Vec<Metric>,
    /// Whether the scheduler describes more than [`MAX_METRICS`].
    pub(super) is_truncated: bool,
}

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metric {
    pub(super) name: String,
    pub(super) help: String,
    /// The path to its values.
    pub(super) path: Vec<Step>,
}

/// A step of the path to a metric's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into this field.
    Field(String),
    /// Into each value of an array or dict, whose index or key becomes a label.
    Each {
        /// The label.
        label: String,
    },
}

impl MetricSet {
    /// Returns the metrics of what `stats` answers without a target.
    pub(super) fn new(meta: &Meta) -> Self {
        let Some(top) = meta.tops().next() else { return Self::default() };
        let mut leaves = meta.leaves(top);
        let mut taken = Names::default();
        let mut metrics = Vec::new();
        for leaf in leaves.by_ref().take(MAX_METRICS) {
            if leaf.field.data.kind() == Some(&Kind::String) || is_skipped(meta, top, &leaf) {
                continue;
            }
            metrics.push(Metric::new(meta, &leaf, &mut taken));
        }
        Self { metrics, is_truncated: leaves.next().is_some() }
    }
}

/// Whether the field, or one on the path to it, has `_om_skip`.
fn is_skipped(meta: &Meta, top: &Struct, leaf: &Leaf<'_>) -> bool {
    let mut of = Some(top);
    fields(leaf).any(|name| {
        let field = of.and_then(|of| of.fields.get(name));
        of = field.and_then(|field| meta.struct_of(field));
        field.is_some_and(|field| field.attributes.om_skip())
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
    /// Its name is the struct's prefix and the field's name if there is a prefix, as in upstream's exporter, unless the
    /// struct is in several places; otherwise it is all the names of the path.
    fn new(meta: &Meta, leaf: &Leaf<'_>, taken: &mut Names) -> Self {
        let by_path = || names::metric(fields(leaf));
        let prefix = leaf.owner.attributes.om_prefix();
        let short = fields(leaf).next_back().filter(|_| !prefix.is_empty());
        let short =
            short.map(|field| names::metric([&*format!("{prefix}{field}")])).filter(|name| !taken.contains(name));
        Self {
            name: taken.take(short.unwrap_or_else(by_path)),
            help: names::help(leaf.field.desc.as_deref().unwrap_or("A statistic of the guest's scheduler")),
            path: path(meta, leaf),
        }
    }
}

fn path(meta: &Meta, leaf: &Leaf<'_>) -> Vec<Step> {
    let mut labels = Names::default();
    labels.take(GUEST.to_owned());
    let step = |step: &meta::Step<'_>| match step {
        meta::Step::Field(name) => Step::Field((*name).to_owned()),
        meta::Step::Each(field) => {
            let named = meta.struct_of(field).and_then(|of| of.attributes.om_label());
            let label = named.unwrap_or(if matches!(field.data, Data::Array(_)) { "index" } else { "key" });
            Step::Each { label: labels.take(names::label(label)) }
        }
    };
    leaf.path.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metric_set(meta: Value) -> MetricSet {
        MetricSet::new(&serde_json::from_value(meta).unwrap())
    }

    fn shown(set: &MetricSet) -> Vec<String> {
        let label = |part: &Step| match part {
            Step::Field(_) => None,
            Step::Each { label } => Some(label.clone()),
        };
        let line = |metric: &Metric| {
            let labels: Vec<String> = metric.path.iter().filter_map(label).collect();
            format!("{}{{{}}} {}", metric.name, labels.join(","), metric.help)
        };
        set.metrics.iter().map(line).collect()
    }

    #[test]
    fn paths_become_names_and_labels() {
        let set = metric_set(json!({
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
                    "weights": { "dict": { "key": "string", "datum": "i64" } },
                },
            },
            "Layer": {
                "name": "Layer", "user": { "_om_prefix": "l_", "_om_label": "layer_name" },
                "fields": { "util": { "datum": "float", "desc": "CPU use" }, "per": { "dict": { "key": "u64", "datum": "u64" } } },
            },
            "Load": { "name": "Load", "fields": { "one": { "datum": "float" } } },
        }));
        assert!(!set.is_truncated);
        let other = "A statistic of the guest's scheduler";
        assert_eq!(
            shown(&set),
            [
                "scx_busy{} Busy 'CPUs' in all".to_owned(),
                format!("scx_l_per{{layer_name,key}} {other}"),
                "scx_l_util{layer_name} CPU use".to_owned(),
                format!("scx_load_one{{}} {other}"),
                format!("scx_nodes_one{{index}} {other}"),
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
            "scx_p_n{}",
            "scx_b_n{}",
            "scx_d_e{guest_2,index}",
            "scx_d_f_n{guest_2,guest_3}",
            "scx_x_y{}",
            "scx_x_y_2{}",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_description_that_explodes_is_truncated() {
        let structs = (0..30).map(|n| {
            let next = json!({ "datum": { "struct": format!("S{}", n + 1) } });
            (format!("S{n}"), json!({ "top": n == 0, "fields": { "a": next, "b": next } }))
        });
        let set = metric_set(Value::Object(structs.collect()));
        assert!(set.is_truncated && set.metrics.len() == MAX_METRICS);
        assert_eq!(MetricSet::new(&Meta::default()), MetricSet::default());
    }
}
