//! What a scheduler says that its stats are, and the metrics that an answer becomes by it.

use std::hash::{BuildHasher, RandomState};
use std::ptr;
use std::sync::Arc;

use serde_json::Value;

use super::metrics::MetricSet;
use crate::client::decode::Decoded;
use crate::client::{Answer, decode};
use crate::stats::SchedStatsError;
use crate::stats::meta::Meta;

/// The newest description of a scheduler. A line that did not change is not parsed again, and an answer of the same struct
/// has the same metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    hash: Option<u64>,
    /// Secret, so that no guest knows two lines of one hash.
    hasher: RandomState,
    meta: Arc<Meta>,
    /// The struct that the last answer was, by its position, and its metrics.
    latest: Option<(usize, Arc<MetricSet>)>,
}

impl Description {
    /// Reads an answer to `stats_meta`.
    pub(super) fn read(&self, answer: Answer<'_>) -> Result<Decoded<Self>, SchedStatsError> {
        let hash = match answer {
            Answer::Scheduler(line) => Some(self.hasher.hash_one(line)),
            _ => None,
        };
        if hash.is_some() && hash == self.hash {
            return Ok(Decoded { value: self.clone(), errno: 0 });
        }
        let Decoded { value: meta, errno } = decode::resp::<Meta>(answer)?;
        Ok(Decoded { value: Self { hash, hasher: self.hasher.clone(), meta: Arc::new(meta), latest: None }, errno })
    }

    /// Returns the metrics of an answer to `stats`: those of the struct that it fits best.
    pub(super) fn metrics_of(&mut self, answer: &Value) -> Arc<MetricSet> {
        let Some(top) = self.meta.top_of(answer) else { return Arc::default() };
        let position = self.meta.structs.values().take_while(|of| !ptr::eq(*of, top)).count();
        match &self.latest {
            Some((latest, metrics)) if *latest == position => Arc::clone(metrics),
            _ => {
                let metrics = Arc::new(MetricSet::new(&self.meta, top));
                self.latest = Some((position, Arc::clone(&metrics)));
                metrics
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_description_that_did_not_change_costs_nothing_again() {
        let line = |desc: &str| {
            let meta = json!({ "T": { "top": "true", "desc": desc, "fields": { "n": { "datum": "u64" } } } });
            json!({ "errno": 0, "args": { "resp": meta } }).to_string()
        };
        let read =
            |description: &Description, line: &str| description.read(Answer::Scheduler(line.as_bytes())).unwrap().value;
        let mut first = read(&Description::default(), &line("a"));
        let metrics = first.metrics_of(&json!({ "n": 1 }));
        let mut same = read(&first, &line("a"));
        assert!(Arc::ptr_eq(&first.meta, &same.meta));
        assert!(Arc::ptr_eq(&metrics, &same.metrics_of(&json!({ "n": 2 }))));
        assert!(!Arc::ptr_eq(&first.meta, &read(&same, &line("b")).meta));
    }

    #[test]
    fn answers_of_one_struct_share_their_metrics() {
        let meta = json!({
            "A": { "top": "true", "fields": { "n": { "datum": "u64" } } },
            "B": { "top": "true", "fields": { "n": { "datum": "u64" }, "m": { "datum": "u64" } } },
        });
        let mut description =
            Description { meta: Arc::new(serde_json::from_value(meta).unwrap()), ..Description::default() };
        let of_b = description.metrics_of(&json!({ "n": 1, "m": 2 }));
        assert_eq!(of_b.metrics.len(), 2);
        assert!(Arc::ptr_eq(&of_b, &description.metrics_of(&json!({ "n": 3, "m": 4 }))));
        assert_eq!(description.metrics_of(&json!({ "n": 3 })).metrics.len(), 1);
        assert_eq!(Description::default().metrics_of(&json!({ "n": 3 })).metrics.len(), 0);
    }
}
