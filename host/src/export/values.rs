//! A scheduler's stats as values with labels.

use serde_json::Value;

use super::metrics::{MetricForm, MetricSet, Node};

/// Series that one guest can have in one scrape, each with the counter beside it.
pub const MAX_SERIES: usize = 5_000;

/// Values that are visited for one guest in one scrape.
const MAX_STEPS: usize = 10 * MAX_SERIES;

/// Bytes of names and labels that one guest can have in one scrape.
const MAX_TEXT: usize = 2 << 20;

/// Bytes of the longest key that becomes a label's value. A longer one is unusable: truncated, it could equal another.
const MAX_KEY: usize = 128;

/// Bytes of the longest text that becomes a label's value; longer ones are truncated.
const MAX_LABEL_TEXT: usize = 256;

/// Buckets of a histogram. More have the same bounds as numbers of 64 bits.
pub(super) const MAX_BUCKETS: usize = 64;

/// The values of one guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Values {
    pub(super) series: Vec<Series>,
    /// Fields that have no metric.
    pub(super) undescribed: u64,
    /// Values that are not what the description says, and keys that are too long.
    pub(super) unusable: u64,
    /// Whether there are more than a guest can have.
    pub(super) is_truncated: bool,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    /// The index of its metric in the set.
    pub(super) metric: usize,
    pub(super) labels: Vec<(String, String)>,
    pub(super) reading: Reading,
}

/// What a series has.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reading {
    Number(Number),
    /// A number, and the sum of those so far.
    Counted {
        value: u64,
        sum: u64,
    },
    /// Its text is a label.
    Text,
    /// The counts of a histogram so far.
    Buckets(Vec<u64>),
}

/// A finite number, as JSON can have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        let signed = || value.as_i64().map(Self::Signed);
        let float = || value.as_f64().filter(|float| float.is_finite()).map(Self::Float);
        value.as_u64().map(Self::Unsigned).or_else(signed).or_else(float)
    }
}

impl Values {
    /// Reads every value that the set has a metric for. A missing value has no series; null is missing, since JSON has no
    /// other form for NaN. Sums are those of this answer alone.
    pub(super) fn read(set: &MetricSet, answer: &Value) -> Self {
        let values = Self { is_truncated: set.is_truncated, ..Self::default() };
        let mut reader = Reader { set, values, labels: Vec::new(), steps: 0, text: 0 };
        reader.read(&set.answer, answer);
        reader.values
    }
}

struct Reader<'s> {
    set: &'s MetricSet,
    values: Values,
    labels: Vec<(String, String)>,
    steps: usize,
    text: usize,
}

impl Reader<'_> {
    fn read(&mut self, node: &Node, value: &Value) {
        self.steps += 1;
        if self.is_full() {
            self.values.is_truncated = true;
            return;
        }
        match (node, value) {
            (Node::Skipped, _) | (_, Value::Null) => {}
            (Node::Value(metric), value) => self.push(*metric, value),
            (Node::Buckets(metric), Value::Array(counts)) => self.push_buckets(*metric, counts),
            (Node::Fields(fields), Value::Object(values)) => {
                for (name, value) in values {
                    match fields.get(name) {
                        Some(node) => self.read(node, value),
                        None if value.is_null() => {}
                        None => self.values.undescribed += 1,
                    }
                }
            }
            (Node::Each { label, inner }, Value::Object(values)) => {
                values.iter().for_each(|(key, value)| self.read_labelled(inner, label, key, value));
            }
            (Node::Each { label, inner }, Value::Array(values)) => {
                let indices = (0..values.len()).map(|index| index.to_string());
                indices.zip(values).for_each(|(index, value)| self.read_labelled(inner, label, &index, value));
            }
            _ => self.values.unusable += 1,
        }
    }

    fn read_labelled(&mut self, node: &Node, label: &str, key: &str, value: &Value) {
        if self.is_full() {
            self.values.is_truncated = true;
            return;
        }
        if key.len() > MAX_KEY {
            self.steps += 1;
            self.values.unusable += 1;
            return;
        }
        self.labels.push((label.to_owned(), key.to_owned()));
        self.read(node, value);
        self.labels.pop();
    }

    fn is_full(&self) -> bool {
        self.steps > MAX_STEPS || self.text > MAX_TEXT || self.values.series.len() >= MAX_SERIES
    }

    fn push(&mut self, metric: usize, value: &Value) {
        let form = self.set.metrics.get(metric).map(|metric| &metric.form);
        if let (Some(MetricForm::Text { label }), Value::String(text)) = (form, value) {
            let end = text.floor_char_boundary(MAX_LABEL_TEXT);
            self.labels.push((label.clone(), text.get(..end).unwrap_or_default().to_owned()));
            self.push_series(metric, Reading::Text);
            self.labels.pop();
            return;
        }
        match (form, Number::of(value)) {
            (Some(MetricForm::Counted { .. }), Some(Number::Unsigned(value))) => {
                self.push_series(metric, Reading::Counted { value, sum: value });
            }
            (Some(MetricForm::Gauge | MetricForm::Counted { .. }), Some(number)) => {
                self.push_series(metric, Reading::Number(number));
            }
            _ => self.values.unusable += 1,
        }
    }

    fn push_buckets(&mut self, metric: usize, counts: &[Value]) {
        let buckets: Option<Vec<u64>> = counts.iter().map(Value::as_u64).collect();
        match buckets.filter(|buckets| !buckets.is_empty() && buckets.len() <= MAX_BUCKETS) {
            Some(buckets) => {
                self.steps += buckets.len();
                self.push_series(metric, Reading::Buckets(buckets));
            }
            None => self.values.unusable += 1,
        }
    }

    fn push_series(&mut self, metric: usize, reading: Reading) {
        let name = self.set.metrics.get(metric).map_or(0, |metric| metric.name.len());
        let labels = self.labels.iter().map(|(name, key)| name.len() + key.len()).sum::<usize>();
        let lines = if let Reading::Buckets(buckets) = &reading { buckets.len() } else { 1 };
        self.text += lines * (name + labels);
        self.values.series.push(Series { metric, labels: self.labels.clone(), reading });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stats::meta::Meta;

    fn metric_set() -> MetricSet {
        let meta = json!({
            "Top": { "top": true, "fields": {
                "n": { "datum": "u64" }, "f": { "datum": "float" },
                "layers": { "dict": { "key": "string", "datum": { "struct": "Layer" } } },
                "loads": { "array": "float" }, "mode": { "datum": "string" },
                "waits": { "array": "u64", "user": { "_om_histogram": "log2_ms" } },
            } },
            "Layer": { "user": { "_om_label": "layer" }, "fields": { "util": { "datum": "float" }, "cpus": { "dict": { "key": "u64", "datum": "i64" } } } },
        });
        set_of(meta)
    }

    fn set_of(meta: Value) -> MetricSet {
        let meta: Meta = serde_json::from_value(meta).unwrap();
        MetricSet::new(&meta, meta.tops().next().unwrap())
    }

    fn shown(values: &Values) -> Vec<String> {
        let set = metric_set();
        let line = |series: &Series| {
            let labels: Vec<String> = series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{}{{{}}} {:?}", set.metrics[series.metric].name, labels.join(","), series.reading)
        };
        values.series.iter().map(line).collect()
    }

    #[test]
    fn numbers_are_found_at_every_depth() {
        let stats = json!({
            "n": u64::MAX, "f": -0.5, "loads": [1, 2.5],
            "layers": { "a": { "util": 1.0, "cpus": { "0": -3 } }, "b": { "util": 2 } },
        });
        let values = Values::read(&metric_set(), &stats);
        assert_eq!(
            shown(&values),
            [
                "scx_f{} Number(Float(-0.5))",
                "scx_layers_cpus{layer=a,key=0} Number(Signed(-3))",
                "scx_layers_util{layer=a} Number(Float(1.0))",
                "scx_layers_util{layer=b} Number(Unsigned(2))",
                "scx_loads{index=0} Number(Unsigned(1))",
                "scx_loads{index=1} Number(Float(2.5))",
                "scx_n{} Counted { value: 18446744073709551615, sum: 18446744073709551615 }",
            ]
        );
        assert!(values.unusable == 0 && !values.is_truncated);
    }

    #[test]
    fn texts_and_histograms_are_kept() {
        let long = "\u{e9}".repeat(MAX_LABEL_TEXT);
        let values = Values::read(&metric_set(), &json!({ "mode": long, "waits": [1, 0, 2] }));
        let text = "\u{e9}".repeat(MAX_LABEL_TEXT / 2);
        assert_eq!(
            shown(&values),
            [format!("scx_mode_info{{mode={text}}} Text"), "scx_waits_distribution{} Buckets([1, 0, 2])".to_owned()]
        );
        assert_eq!(values.unusable, 0);
    }

    #[test]
    fn what_is_not_as_described_is_counted() {
        let stats = json!({ "n": "7", "f": null, "loads": [true, [], 1], "layers": 5, "mode": 1, "waits": [1, -1] });
        let values = Values::read(&metric_set(), &stats);
        assert_eq!(shown(&values), ["scx_loads{index=2} Number(Unsigned(1))"]);
        assert_eq!((values.unusable, values.undescribed, values.is_truncated), (6, 0, false));
        let long = "x".repeat(MAX_KEY + 1);
        let values = Values::read(&metric_set(), &json!({ "layers": { long: { "util": 1 } } }));
        assert!(values.series.is_empty() && values.unusable == 1);
        let values = Values::read(&metric_set(), &json!({ "waits": vec![1; MAX_BUCKETS + 1] }));
        assert!(values.series.is_empty() && values.unusable == 1);
        for stats in [json!({}), json!(null)] {
            assert_eq!(Values::read(&metric_set(), &stats), Values::default());
        }
    }

    #[test]
    fn fields_without_a_metric_are_counted() {
        let answer =
            json!({ "n": 1, "m": 2, "x": { "y": 1, "z": 2 }, "none": null, "layers": { "a": { "utils": 1 } } });
        let values = Values::read(&metric_set(), &answer);
        assert_eq!((values.series.len(), values.undescribed, values.unusable), (1, 3, 0));
    }

    #[test]
    fn too_many_series_are_truncated() {
        let loads: Vec<usize> = (0..MAX_SERIES + 1).collect();
        let values = Values::read(&metric_set(), &json!({ "loads": loads }));
        assert!(values.is_truncated && values.series.len() == MAX_SERIES);
        // What has no series costs no more.
        let nothing: Vec<Value> = vec![json!({}); 2 * MAX_STEPS];
        let layers: serde_json::Map<String, Value> =
            nothing.into_iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect();
        let values = Values::read(&metric_set(), &json!({ "layers": layers, "n": 1 }));
        assert!(values.is_truncated && values.series.is_empty());
    }

    #[test]
    fn too_long_names_and_labels_are_truncated() {
        let key = "k".repeat(MAX_KEY);
        let set = set_of(json!({
            "T": { "top": true, "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "U" } } } } },
            "U": { "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "V" } } } } },
            "V": { "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "W" } } } } },
            "W": { "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "X" } } } } },
            "X": { "fields": { "n": { "array": "u64" } } },
        }));
        let n: Vec<usize> = (0..MAX_SERIES).collect();
        let values = Values::read(
            &set,
            &json!({ "d": { &key: { "d": { &key: { "d": { &key: { "d": { &key: { "n": n } } } } } } } } }),
        );
        assert!(
            values.is_truncated && (MAX_SERIES / 2..MAX_SERIES).contains(&values.series.len()),
            "{}",
            values.series.len()
        );
    }
}
