//! Which metrics a scheduler's stats become: made of what they mean, once a session.

use std::collections::BTreeSet;

use super::names;
use crate::stats::meta::{Data, Kind, Leaf, Meta, Step, Struct};

/// Metrics that one guest can have.
pub const MAX_METRICS: usize = 1_000;

/// The label that names the guest.
pub(super) const GUEST: &str = "guest";

/// What a guest's stats become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) metrics: Vec<Metric>,
    /// Whether the scheduler describes more than [`MAX_METRICS`].
    pub(super) cut: bool,
}

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metric {
    pub(super) name: String,
    pub(super) help: String,
    /// The way to its values.
    pub(super) path: Vec<Part>,
}

/// A step of the way to a metric's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Into this field.
    Field(String),
    /// Into each value of an array or dict, whose index or key becomes a label.
    Each {
        /// The label.
        label: String,
    },
}

impl Plan {
    /// The metrics of what `stats` answers where no target is named.
    pub(super) fn new(meta: &Meta) -> Self {
        let Some(top) = meta.tops().next() else { return Self::default() };
        let mut leaves = meta.leaves(top);
        let mut taken = BTreeSet::new();
        let mut metrics = Vec::new();
        for leaf in leaves.by_ref().take(MAX_METRICS) {
            if leaf.field.data.kind() == Some(&Kind::String) || is_skipped(meta, top, &leaf) {
                continue;
            }
            let metric = Metric::new(meta, &leaf, |name| taken.contains(name));
            taken.insert(metric.name.clone());
            metrics.push(metric);
        }
        Self { metrics, cut: leaves.next().is_some() }
    }
}

/// Whether the field, or one on the way to it, is to be no metric.
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
            Step::Field(name) => Some(*name),
            Step::Each(_) => None,
        })
        .collect();
    names.into_iter()
}

impl Metric {
    /// Its name is the struct's prefix and the field's name where there is a prefix, as upstream's exporter has it,
    /// unless the struct stands in several places; otherwise it is all the names on the way.
    fn new(meta: &Meta, leaf: &Leaf<'_>, taken: impl Fn(&str) -> bool) -> Self {
        let by_path = || names::metric(fields(leaf));
        let prefix = leaf.owner.attributes.om_prefix();
        let short = fields(leaf).next_back().filter(|_| !prefix.is_empty());
        let short = short.map(|field| names::metric([&*format!("{prefix}{field}")])).filter(|name| !taken(name));
        Self {
            name: names::unique(short.unwrap_or_else(by_path), taken),
            help: names::help(leaf.field.desc.as_deref().unwrap_or("A statistic of the guest's scheduler")),
            path: path(meta, leaf),
        }
    }
}

fn path(meta: &Meta, leaf: &Leaf<'_>) -> Vec<Part> {
    let mut labels = BTreeSet::from([GUEST.to_owned()]);
    let step = |step: &Step<'_>| match step {
        Step::Field(name) => Part::Field((*name).to_owned()),
        Step::Each(field) => {
            let named = meta.struct_of(field).and_then(|of| of.attributes.om_label());
            let label = named.unwrap_or(if matches!(field.data, Data::Array(_)) { "index" } else { "key" });
            let label = names::unique(names::label(label), |name| labels.contains(name));
            labels.insert(label.clone());
            Part::Each { label }
        }
    };
    leaf.path.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(meta: Value) -> Plan {
        Plan::new(&serde_json::from_value(meta).unwrap())
    }

    fn shown(plan: &Plan) -> Vec<String> {
        let label = |part: &Part| match part {
            Part::Field(_) => None,
            Part::Each { label } => Some(label.clone()),
        };
        let line = |metric: &Metric| {
            let labels: Vec<String> = metric.path.iter().filter_map(label).collect();
            format!("{}{{{}}} {}", metric.name, labels.join(","), metric.help)
        };
        plan.metrics.iter().map(line).collect()
    }

    #[test]
    fn prefixes_labels_nesting_dicts_and_arrays_become_names_and_labels() {
        let plan = plan(json!({
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
        assert!(!plan.cut);
        let other = "A statistic of the guest's scheduler";
        assert_eq!(
            shown(&plan),
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
    fn names_that_would_be_the_same_are_told_apart() {
        let plan = plan(json!({
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
        let names: Vec<String> = shown(&plan).iter().map(|line| line.replace(help, "")).collect();
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
    fn a_description_that_explodes_is_cut() {
        let structs = (0..30).map(|n| {
            let next = json!({ "datum": { "struct": format!("S{}", n + 1) } });
            (format!("S{n}"), json!({ "top": n == 0, "fields": { "a": next, "b": next } }))
        });
        let plan = plan(Value::Object(structs.collect()));
        assert!(plan.cut && plan.metrics.len() == MAX_METRICS);
        assert_eq!(Plan::new(&Meta::default()), Plan::default());
    }
}
