//! A scheduler's stats as numbers with labels.

use serde_json::Value;

use super::metrics::{MetricSet, Step};

/// Series that one guest can have in one scrape.
pub const MAX_SERIES: usize = 5_000;

/// Values that are visited for one guest in one scrape.
const MAX_STEPS: usize = 10 * MAX_SERIES;

/// Bytes of names and labels that one guest can have in one scrape.
const MAX_TEXT: usize = 2 << 20;

/// Bytes of the longest key that becomes a label's value. A longer one is unusable: truncated, it could equal another.
const MAX_KEY: usize = 128;

/// The numbers of one guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Values {
    pub(super) series: Vec<Series>,
    /// Values that are no numbers, and keys that are too long.
    pub(super) unusable: u64,
    /// Whether there are more than a guest can have.
    pub(super) is_truncated: bool,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    /// The index of its metric in the set.
    pub(super) metric: usize,
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: Number,
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
    /// Reads every number that the set has a metric for. A missing value has no series; null is missing, since JSON has no
    /// other form for NaN.
    pub(super) fn read(set: &MetricSet, stats: &Value) -> Self {
        let mut reader = Reader {
            values: Self { is_truncated: set.is_truncated, ..Self::default() },
            metric: 0,
            name: 0,
            labels: Vec::new(),
            steps: 0,
            text: 0,
        };
        for (at, metric) in set.metrics.iter().enumerate() {
            if reader.is_full() {
                reader.values.is_truncated = true;
                break;
            }
            reader.metric = at;
            reader.name = metric.name.len();
            reader.read(&metric.path, stats);
        }
        reader.values
    }
}

struct Reader {
    values: Values,
    metric: usize,
    /// Bytes of the metric's name.
    name: usize,
    labels: Vec<(String, String)>,
    steps: usize,
    text: usize,
}

impl Reader {
    fn read(&mut self, path: &[Step], value: &Value) {
        self.steps += 1;
        if self.is_full() {
            self.values.is_truncated = true;
            return;
        }
        match (path, value) {
            (_, Value::Null) => {}
            ([], value) => self.push(value),
            ([Step::Field(name), rest @ ..], Value::Object(fields)) => {
                if let Some(value) = fields.get(name) {
                    self.read(rest, value);
                }
            }
            ([Step::Each { label }, rest @ ..], Value::Object(entries)) => {
                entries.iter().for_each(|(key, value)| self.read_labelled(rest, label, key, value));
            }
            ([Step::Each { label }, rest @ ..], Value::Array(items)) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(at, value)| self.read_labelled(rest, label, &at.to_string(), value));
            }
            _ => self.values.unusable += 1,
        }
    }

    fn read_labelled(&mut self, path: &[Step], label: &str, key: &str, value: &Value) {
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
        self.read(path, value);
        self.labels.pop();
    }

    fn is_full(&self) -> bool {
        self.steps > MAX_STEPS || self.text > MAX_TEXT || self.values.series.len() >= MAX_SERIES
    }

    fn push(&mut self, value: &Value) {
        match Number::of(value) {
            Some(value) => {
                let labels = self.labels.iter().map(|(name, key)| name.len() + key.len()).sum::<usize>();
                self.text += self.name + labels;
                self.values.series.push(Series { metric: self.metric, labels: self.labels.clone(), value });
            }
            None => self.values.unusable += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metric_set() -> MetricSet {
        let meta = json!({
            "Top": { "top": true, "fields": {
                "n": { "datum": "u64" }, "f": { "datum": "float" },
                "layers": { "dict": { "key": "string", "datum": { "struct": "Layer" } } },
                "loads": { "array": "float" },
            } },
            "Layer": { "user": { "_om_label": "layer" }, "fields": { "util": { "datum": "float" }, "cpus": { "dict": { "key": "u64", "datum": "i64" } } } },
        });
        MetricSet::new(&serde_json::from_value(meta).unwrap())
    }

    fn shown(values: &Values) -> Vec<String> {
        let set = metric_set();
        let line = |series: &Series| {
            let labels: Vec<String> = series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{}{{{}}} {:?}", set.metrics[series.metric].name, labels.join(","), series.value)
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
                "scx_f{} Float(-0.5)",
                "scx_layers_cpus{layer=a,key=0} Signed(-3)",
                "scx_layers_util{layer=a} Float(1.0)",
                "scx_layers_util{layer=b} Unsigned(2)",
                "scx_loads{index=0} Unsigned(1)",
                "scx_loads{index=1} Float(2.5)",
                "scx_n{} Unsigned(18446744073709551615)",
            ]
        );
        assert!(values.unusable == 0 && !values.is_truncated);
    }

    #[test]
    fn what_is_no_number_is_counted() {
        let stats = json!({ "n": "7", "f": null, "loads": [true, [], 1], "layers": 5 });
        let values = Values::read(&metric_set(), &stats);
        assert_eq!(shown(&values), ["scx_loads{index=2} Unsigned(1)"]);
        // Both metrics of the layers find a number instead of a dict.
        assert_eq!((values.unusable, values.is_truncated), (5, false));
        let long = "x".repeat(MAX_KEY + 1);
        let values = Values::read(&metric_set(), &json!({ "layers": { long: { "util": 1 } } }));
        assert!(values.series.is_empty() && values.unusable == 2);
        for stats in [json!({}), json!(null)] {
            assert_eq!(Values::read(&metric_set(), &stats), Values::default());
        }
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
        let set = MetricSet::new(
            &serde_json::from_value(json!({
                "T": { "top": true, "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "U" } } } } },
                "U": { "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "V" } } } } },
                "V": { "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "W" } } } } },
                "W": { "fields": { "d": { "dict": { "key": "string", "datum": { "struct": "X" } } } } },
                "X": { "fields": { "n": { "array": "u64" } } },
            }))
            .unwrap(),
        );
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
