//! The path that is the most like one that is missing.

use serde_json::Value;

use super::term::{Source, written_path};
use crate::stats::{MAX_JSON_DEPTH, PeerText, StatPath};

/// Values that are looked at. A guest can send more than anybody asks for.
const MAX_PATHS: usize = 4_096;

/// The least similarity of a path that is proposed, from 0 to 1.
const MIN_SIMILARITY: f64 = 0.7;

/// Returns the path of a value that is the most like this one, as the parser takes it.
pub(super) fn nearest(path: &StatPath, source: Source, values: &Value) -> Option<String> {
    let mut paths = Vec::new();
    collect(values, &mut StatPath::root(), &mut paths);
    let wanted = path.to_string();
    let similarity = |path: &StatPath| strsim::jaro_winkler(&wanted, &path.to_string());
    let rated = paths.into_iter().map(|path| (similarity(&path), path));
    let (similarity, best) = rated.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (similarity >= MIN_SIMILARITY).then(|| PeerText::line(written_path(source, &best)).to_string())
}

/// Collects the paths of scalars.
fn collect(value: &Value, path: &mut StatPath, paths: &mut Vec<StatPath>) {
    if paths.len() >= MAX_PATHS || path.components.len() > MAX_JSON_DEPTH {
        return;
    }
    let mut descend = |name: String, value: &Value| {
        path.components.push(name);
        collect(value, path, paths);
        path.components.pop();
    };
    match value {
        Value::Object(fields) => {
            fields.iter().filter(|(name, _)| !name.is_empty()).for_each(|(name, value)| descend(name.clone(), value));
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(at, value)| descend(at.to_string(), value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            if !path.components.is_empty() {
                paths.push(path.clone());
            }
        }
    }
}
