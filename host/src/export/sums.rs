//! What a guest's counts add up to over all reads, whichever scraper sees them.

use std::collections::HashMap;

use super::metrics::MetricSet;
use super::values::{Reading, Series, Values};

/// Adds the sums of the previous answer to those of this one, and takes this one's own out of them if it is `first` of its
/// session: what it spans, nobody knows. A series that the previous answer does not have begins anew.
///
/// The answers may be of different schedulers: a series is known by its metric's name and its labels.
pub(super) fn accumulate(values: &mut Values, set: &MetricSet, previous: Option<(&Values, &MetricSet)>, first: bool) {
    if first {
        values.series.iter_mut().for_each(|series| clear(&mut series.reading));
    }
    let Some((previous, previous_set)) = previous else { return };
    let is_same = |(now, before): (&Series, &Series)| now.metric == before.metric && now.labels == before.labels;
    // Nearly always.
    if std::ptr::eq(set, previous_set)
        && values.series.len() == previous.series.len()
        && values.series.iter().zip(&previous.series).all(is_same)
    {
        values.series.iter_mut().zip(&previous.series).for_each(|(now, before)| add(&mut now.reading, &before.reading));
        return;
    }
    let key = |set: &'_ MetricSet, series: &Series| {
        set.metrics.get(series.metric).map(|metric| (metric.name.clone(), series.labels.clone()))
    };
    let known: HashMap<_, _> =
        previous.series.iter().filter_map(|series| Some((key(previous_set, series)?, &series.reading))).collect();
    for series in &mut values.series {
        if let Some(before) = key(set, series).and_then(|key| known.get(&key).copied()) {
            add(&mut series.reading, before);
        }
    }
}

fn clear(reading: &mut Reading) {
    match reading {
        Reading::Counted { sum, .. } => *sum = 0,
        Reading::Buckets(counts) => counts.fill(0),
        Reading::Number(_) | Reading::Text => {}
    }
}

/// A sum that overflows begins anew, as a counter does that is reset.
fn add(now: &mut Reading, before: &Reading) {
    match (now, before) {
        (Reading::Counted { sum, .. }, Reading::Counted { sum: before, .. }) => *sum = sum.wrapping_add(*before),
        (Reading::Buckets(now), Reading::Buckets(before)) if now.len() == before.len() => {
            now.iter_mut().zip(before).for_each(|(now, before)| *now = now.wrapping_add(*before));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::stats::meta::Meta;

    fn set(fields: &Value) -> MetricSet {
        let meta: Meta = serde_json::from_value(json!({ "T": { "top": true, "fields": fields } })).unwrap();
        MetricSet::new(&meta, meta.tops().next().unwrap())
    }

    fn counts() -> MetricSet {
        set(&json!({
            "n": { "datum": "u64" }, "d": { "dict": { "key": "string", "datum": "u64" } }, "load": { "datum": "float" },
            "waits": { "array": "u64", "user": { "_om_histogram": "log2_us" } },
        }))
    }

    fn sums(values: &Values) -> Vec<u64> {
        let of = |series: &Series| match &series.reading {
            Reading::Counted { sum, .. } => vec![*sum],
            Reading::Buckets(counts) => counts.clone(),
            Reading::Number(_) | Reading::Text => vec![],
        };
        values.series.iter().flat_map(of).collect()
    }

    /// Reads answers in turn, each with whether it is the first of its session.
    fn after(answers: &[(Value, bool)]) -> Vec<u64> {
        let set = counts();
        let mut previous: Option<Values> = None;
        for (answer, first) in answers {
            let mut values = Values::read(&set, answer);
            accumulate(&mut values, &set, previous.as_ref().map(|previous| (previous, &set)), *first);
            previous = Some(values);
        }
        previous.map(|values| sums(&values)).unwrap_or_default()
    }

    #[test]
    fn counts_add_up_over_sessions() {
        let answer = |n: u64| json!({ "n": n, "load": 0.5, "waits": [n, 1] });
        assert_eq!(after(&[(answer(100), true)]), [0, 0, 0]);
        assert_eq!(after(&[(answer(100), true), (answer(2), false), (answer(3), false)]), [5, 5, 2]);
        // The scheduler was restarted.
        assert_eq!(
            after(&[(answer(100), true), (answer(2), false), (answer(50), true), (answer(3), false)]),
            [5, 5, 2]
        );
    }

    #[test]
    fn other_keys_leave_the_sums_of_the_rest() {
        let answers =
            [json!({ "n": 1, "d": { "b": 1 } }), json!({ "n": 1, "d": { "a": 1, "b": 2 } }), json!({ "n": 4 })];
        let with =
            |count: usize| after(&answers[..count].iter().map(|answer| (answer.clone(), false)).collect::<Vec<_>>());
        assert_eq!((with(1), with(2), with(3)), (vec![1, 1], vec![1, 3, 2], vec![6]));
    }

    #[test]
    fn a_sum_outlives_another_description() {
        let (before, now) = (counts(), set(&json!({ "a": { "datum": "u64" }, "n": { "datum": "u64" } })));
        let previous = Values::read(&before, &json!({ "n": 7 }));
        let mut values = Values::read(&now, &json!({ "n": 2, "a": 1 }));
        accumulate(&mut values, &now, Some((&previous, &before)), false);
        assert_eq!(sums(&values), [1, 9]);
    }

    #[test]
    fn a_sum_that_overflows_begins_anew() {
        assert_eq!(after(&[(json!({ "n": u64::MAX }), false), (json!({ "n": 3 }), false)]), [2]);
    }
}
