//! Stats reduced to some fields.

use scx_vsock::stats::StatPath;
use serde_json::{Map, Value};

/// Returns the values at these paths, at the same paths. Elements of an array that come before a selected one are null.
pub fn select(stats: &Value, fields: &[StatPath]) -> Value {
    let mut selected = Value::Object(Map::new());
    for field in fields.iter().filter(|field| field.get(stats).is_ok()) {
        let components: Vec<&str> = field.components().collect();
        copy(stats, &mut selected, &components);
    }
    selected
}

/// Copies the value at a path that is there.
fn copy(from: &Value, to: &mut Value, components: &[&str]) {
    let Some((first, rest)) = components.split_first() else {
        *to = from.clone();
        return;
    };
    match from {
        Value::Object(fields) => {
            let Some(value) = fields.get(*first) else { return };
            if !to.is_object() {
                *to = Value::Object(Map::new());
            }
            if let Some(to) = to.as_object_mut() {
                copy(value, to.entry(*first).or_insert(Value::Null), rest);
            }
        }
        Value::Array(items) => copy_element(items, to, first, rest),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn copy_element(from: &[Value], to: &mut Value, index: &str, rest: &[&str]) {
    let Some((index, value)) = index.parse().ok().and_then(|index: usize| Some((index, from.get(index)?))) else {
        return;
    };
    if !to.is_array() {
        *to = Value::Array(Vec::new());
    }
    let Some(to) = to.as_array_mut() else { return };
    if to.len() <= index {
        to.resize(index + 1, Value::Null);
    }
    if let Some(to) = to.get_mut(index) {
        copy(value, to, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selected(stats: &Value, fields: &[&str]) -> Value {
        let fields: Vec<StatPath> = fields.iter().map(|field| field.parse().unwrap()).collect();
        let selected = select(stats, &fields);
        for field in fields.iter().filter(|field| field.get(stats).is_ok()) {
            assert_eq!(field.get(&selected), field.get(stats), "{field}");
        }
        selected
    }

    #[test]
    fn fields_keep_their_paths() {
        let stats =
            json!({ "a": 1, "b.c": 2, "deep": { "x": 3, "y": { "z": 4 } }, "cpus": [{ "u": 5, "v": 6 }, 7, 8] });
        assert_eq!(selected(&stats, &["a"]), json!({ "a": 1 }));
        assert_eq!(selected(&stats, &["b\\.c", "deep.y.z"]), json!({ "b.c": 2, "deep": { "y": { "z": 4 } } }));
        assert_eq!(selected(&stats, &["cpus.1", "cpus.0.v"]), json!({ "cpus": [{ "v": 6 }, 7] }));
        assert_eq!(selected(&stats, &["cpus.1"]), json!({ "cpus": [null, 7] }));
        assert_eq!(selected(&stats, &["deep.x", "deep", "deep.x"]), json!({ "deep": stats["deep"] }));
    }

    #[test]
    fn what_is_not_there_is_skipped() {
        let stats = json!({ "a": 1, "cpus": [1] });
        for field in ["b", "a.b", "cpus.1", "cpus.00", "cpus.x"] {
            assert_eq!(selected(&stats, &[field]), json!({}), "{field}");
        }
        assert_eq!(selected(&json!(7), &["a"]), json!({}));
    }
}
