//! How deep JSON may nest.

use serde_json::Value;

use super::reason::MissingStatsReason;

/// Arrays and objects that may stand inside each other in stats, in an error's `args`, and in a recording of them.
pub const MAX_JSON_DEPTH: usize = 96;

/// Returns whether stats, or the `args` of the error in their place, nest deeper than [`MAX_JSON_DEPTH`].
pub(crate) fn nest_too_deep(stats: &Result<Value, MissingStatsReason>) -> bool {
    match stats {
        Ok(value)
        | Err(
            MissingStatsReason::SchedulerError { args: value, .. } | MissingStatsReason::MissingResp { args: value },
        ) => is_deeper_than(value, MAX_JSON_DEPTH),
        Err(_) => false,
    }
}

/// Returns whether a value nests deeper than `max`; takes as much stack as it nests, at most `max` levels.
fn is_deeper_than(value: &Value, max: usize) -> bool {
    let mut children: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(elements) => Box::new(elements.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return false,
    };
    max.checked_sub(1).is_none_or(|max| children.any(|child| is_deeper_than(child, max)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(depth: usize) -> Value {
        (0..depth).fold(json!(1), |inner, level| if level % 2 == 0 { json!([0, inner]) } else { json!({ "a": inner }) })
    }

    #[test]
    fn depth_counts_arrays_and_objects() {
        assert!(!is_deeper_than(&json!("scalar"), 0) && is_deeper_than(&json!([]), 0));
        for depth in 1..100 {
            assert!(is_deeper_than(&nested(depth), depth - 1) && !is_deeper_than(&nested(depth), depth), "{depth}");
        }
    }
}
