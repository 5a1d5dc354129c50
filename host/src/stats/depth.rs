//! How deep JSON may nest.

use serde_json::Value;

use super::reason::MissingStatsReason;

/// Arrays and objects that may stand inside each other in a request, in an answer, and in the stats or the error's `args`
/// of a recording, which are parts of an answer.
pub const MAX_JSON_DEPTH: usize = scx_vsock_wire::limits::MAX_JSON_DEPTH;

/// Returns whether a text nests deeper than `max` levels. It need not be valid JSON.
pub(crate) fn nests_deeper_than(json: &[u8], max: usize) -> bool {
    // Most lines open fewer brackets in all, which takes a fraction of the time to see.
    json.iter().filter(|&&byte| matches!(byte, b'[' | b'{')).count() > max && depth_passes(json, max)
}

fn depth_passes(json: &[u8], max: usize) -> bool {
    let mut depth = 0usize;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'[' | b'{' if depth == max => return true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

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
    fn brackets_in_texts_are_no_depth() {
        assert!(!nests_deeper_than(br#"{"a":"[[[[","b\"[[[":["\\"]}"#, 2));
        assert!(nests_deeper_than(br#"{"a":[[1]]}"#, 2));
        assert!(!nests_deeper_than(br#"{"a":[1],"b":[{}]}"#, 3));
        assert!(!nests_deeper_than(b"[][][][][]", 1) && nests_deeper_than(b"]][[", 1));
    }

    #[test]
    fn depth_counts_arrays_and_objects() {
        for depth in 1..100 {
            let text = nested(depth).to_string();
            assert!(nests_deeper_than(text.as_bytes(), depth - 1) && !nests_deeper_than(text.as_bytes(), depth));
        }
        assert!(!is_deeper_than(&json!("scalar"), 0) && is_deeper_than(&json!([]), 0));
        for depth in 1..100 {
            assert!(is_deeper_than(&nested(depth), depth - 1) && !is_deeper_than(&nested(depth), depth), "{depth}");
        }
    }
}
