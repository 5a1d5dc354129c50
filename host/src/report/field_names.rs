//! The numbers of a sample, by their paths.

use std::collections::HashMap;

use serde_json::Value;

use crate::stats::path::escaped;

/// The most fields that are kept; a scheduler could name others in each sample.
pub const MAX_FIELDS: usize = 1_000;

/// Bytes of the longest path that is kept.
const MAX_PATH_BYTES: usize = 512;

/// The paths of numbers, each with an index, in the order in which they were first seen.
#[derive(Debug, Default)]
pub struct FieldNames {
    indices: HashMap<String, usize>,
    names: Vec<String>,
    /// Whether there were more than are kept.
    pub is_full: bool,
}

impl FieldNames {
    /// The paths, by index.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Hands each number of a value on, with its field's index.
    pub fn numbers(&mut self, prefix: &str, value: &Value, found: &mut impl FnMut(usize, f64)) {
        let mut path = prefix.to_owned();
        self.visit(&mut path, prefix.len(), value, found);
    }

    /// `start` is where the path begins, after the prefix.
    fn visit(&mut self, path: &mut String, start: usize, value: &Value, found: &mut impl FnMut(usize, f64)) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.descend(path, start, value, found, |path| push_escaped(path, name));
                }
            }
            Value::Array(items) => {
                for (at, value) in items.iter().enumerate() {
                    self.descend(path, start, value, found, |path| path.push_str(&at.to_string()));
                }
            }
            Value::Number(number) => {
                if let (Some(index), Some(number)) = (self.index(path), number.as_f64()) {
                    found(index, number);
                }
            }
            Value::Null | Value::Bool(_) | Value::String(_) => {}
        }
    }

    fn descend(
        &mut self,
        path: &mut String,
        start: usize,
        value: &Value,
        found: &mut impl FnMut(usize, f64),
        push: impl FnOnce(&mut String),
    ) {
        let length = path.len();
        if length > start {
            path.push('.');
        }
        push(path);
        if path.len() <= MAX_PATH_BYTES {
            self.visit(path, start, value, found);
        } else {
            self.is_full = true;
        }
        path.truncate(length);
    }

    fn index(&mut self, path: &str) -> Option<usize> {
        if let Some(&index) = self.indices.get(path) {
            return Some(index);
        }
        if self.names.len() >= MAX_FIELDS {
            self.is_full = true;
            return None;
        }
        let index = self.names.len();
        self.names.push(path.to_owned());
        self.indices.insert(path.to_owned(), index);
        Some(index)
    }
}

/// Adds a name as a component of a path.
fn push_escaped(path: &mut String, name: &str) {
    if name.contains(['.', '\\']) { path.push_str(&escaped(name)) } else { path.push_str(name) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn numbers(names: &mut FieldNames, prefix: &str, value: &Value) -> Vec<(String, f64)> {
        let mut found = Vec::new();
        names.numbers(prefix, value, &mut |index, number| found.push((index, number)));
        found.into_iter().map(|(index, number)| (names.names()[index].clone(), number)).collect()
    }

    #[test]
    fn numbers_have_paths_of_the_series() {
        let mut names = FieldNames::default();
        let stats = json!({ "a.b": { "c": [1, true, 2.5] }, "d": "text", "e": -3 });
        let found = numbers(&mut names, "", &stats);
        let expected = [(r"a\.b.c.0", 1.0), (r"a\.b.c.2", 2.5), ("e", -3.0)];
        assert_eq!(found, expected.map(|(path, number)| (path.to_owned(), number)));
        assert_eq!(numbers(&mut names, "kernel:", &json!({ "e": 1 })), [("kernel:e".to_owned(), 1.0)]);
        for path in names.names().iter().take(3) {
            let path: crate::stats::StatPath = path.parse().unwrap();
            assert!(path.get(&stats).unwrap().is_number());
        }
    }

    #[test]
    fn fields_are_bounded() {
        let mut names = FieldNames::default();
        for at in 0..3 * MAX_FIELDS {
            names.numbers("", &json!({ format!("field {at}"): { "x": at } }), &mut |_, _| {});
        }
        names.numbers("", &json!({ "x".repeat(MAX_PATH_BYTES + 1): 1 }), &mut |_, _| {});
        assert_eq!((names.names().len(), names.indices.len(), names.is_full), (MAX_FIELDS, MAX_FIELDS, true));
    }
}
