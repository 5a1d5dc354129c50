//! Dotted paths into stats.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::peer_text::PeerText;

/// Names that a [`PathError`] lists.
const MAX_LISTED: usize = 32;

/// A path into stats: names of fields and indices of arrays, with dots between them, such as `layers.batch.cpus.0`. In
/// a name a backslash comes before each dot and each backslash. No component is empty, so a field without a name has no
/// path. An index is a decimal number without sign or leading zeros.
///
/// ```
/// use scx_vsock::stats::StatPath;
///
/// let path: StatPath = r"cgroups.system\.slice.util".parse()?;
/// assert_eq!(path.components().collect::<Vec<_>>(), ["cgroups", "system.slice", "util"]);
/// assert_eq!(path.to_string(), r"cgroups.system\.slice.util");
/// # Ok::<(), scx_vsock::stats::ParsePathError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StatPath {
    pub(crate) components: Vec<String>,
}

/// A text that is no [`StatPath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is no path: {problem} at byte {at}")]
pub struct ParsePathError {
    path: String,
    problem: &'static str,
    at: usize,
}

impl FromStr for StatPath {
    type Err = ParsePathError;

    fn from_str(path: &str) -> Result<Self, ParsePathError> {
        let fail = |problem, at| Err(ParsePathError { path: path.to_owned(), problem, at });
        let mut components = vec![String::new()];
        let mut characters = path.char_indices();
        while let Some((at, character)) = characters.next() {
            let Some(component) = components.last_mut() else { break };
            match character {
                '.' if component.is_empty() => return fail("an empty component", at),
                '.' => components.push(String::new()),
                '\\' => match characters.next() {
                    Some((_, escaped @ ('.' | '\\'))) => component.push(escaped),
                    _ => return fail("a backslash before neither a dot nor a backslash", at),
                },
                other => component.push(other),
            }
        }
        if components.last().is_some_and(String::is_empty) {
            return fail("an empty component", path.len());
        }
        Ok(Self { components })
    }
}

impl fmt::Display for StatPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&written(&self.components))
    }
}

fn written(components: &[String]) -> String {
    components.iter().map(|component| escaped(component)).collect::<Vec<_>>().join(".")
}

/// Returns a name as a component of a written path.
pub(crate) fn escaped(name: &str) -> String {
    name.replace('\\', r"\\").replace('.', r"\.")
}

impl StatPath {
    /// The path to the stats themselves.
    pub(crate) fn root() -> Self {
        Self { components: Vec::new() }
    }

    /// Returns the names and indices from the stats to the value.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.components.iter().map(String::as_str)
    }

    /// Returns the value at this path.
    ///
    /// # Errors
    ///
    /// [`PathError`] if there is none.
    pub fn get<'v>(&self, stats: &'v Value) -> Result<&'v Value, PathError> {
        let mut value = stats;
        for (depth, component) in self.components.iter().enumerate() {
            value = step(value, component).ok_or_else(|| PathError {
                at: written(self.components.get(..depth).unwrap_or(&[])),
                field: component.clone(),
                there: names(value),
            })?;
        }
        Ok(value)
    }
}

/// Stats have no value at a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("there is no {field:?} at {at:?}, but {}", listed(there))]
pub struct PathError {
    /// The part of the path that leads to a value; empty for the stats themselves.
    pub at: String,
    /// The component that the value does not have.
    pub field: String,
    /// What it has, as shown in messages: the names of its fields (the first 32), the length of an array, the type of
    /// a scalar.
    pub there: Vec<String>,
}

/// Returns names as they are listed in a message.
pub(crate) fn listed(there: &[String]) -> String {
    if there.is_empty() { "nothing".into() } else { there.join(", ") }
}

fn step<'v>(value: &'v Value, component: &str) -> Option<&'v Value> {
    match value {
        Value::Object(fields) => fields.get(component),
        Value::Array(elements) => elements.get(index(component)?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// The index that a component is: `0` or digits of which the first is not 0, so that each element has one path.
fn index(component: &str) -> Option<usize> {
    let is_index = component == "0" || component.starts_with(|first: char| matches!(first, '1'..='9'));
    component.parse().ok().filter(|_| is_index)
}

fn names(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<_> =
                fields.keys().take(MAX_LISTED).map(|name| PeerText::line(name).to_string()).collect();
            if let more @ 1.. = fields.len().saturating_sub(MAX_LISTED) {
                names.push(format!("{more} more"));
            }
            names
        }
        Value::Array(elements) => vec![format!("an array of {}", elements.len())],
        scalar => vec![kind(scalar).to_owned()],
    }
}

/// Returns the type of a value, for a message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn get(path: &str, stats: &Value) -> Result<Value, PathError> {
        path.parse::<StatPath>().unwrap().get(stats).cloned()
    }

    #[test]
    fn only_plain_decimal_numbers_are_indices() {
        let stats = json!({ "c": [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17] });
        assert_eq!(get("c.0", &stats), Ok(json!(7)));
        assert_eq!(get("c.10", &stats), Ok(json!(17)));
        for path in ["c.+1", "c.01", "c.00", "c.-0", "c. 1", "c.1_0", "c.18446744073709551616"] {
            assert!(get(path, &stats).is_err(), "{path}");
        }
    }

    #[test]
    fn other_numbers_are_no_indices() {
        let stats = json!({ "c": [7, 8] });
        for path in
            ["c.-0", "c.-1", "c.1e0", "c.1e2", "c.0x1", "c.1 ", r"c.1\.0", "c.\u{661}", "c.\u{ff11}", "c.0\0", "c.1.0"]
        {
            assert!(get(path, &stats).is_err(), "{path:?}");
        }
    }

    #[test]
    fn each_name_has_one_written_form() {
        for (path, components) in [
            (r"a\.b", &["a.b"][..]),
            (r"a\\.b", &["a\\", "b"]),
            (r"a\\\.b", &["a\\.b"]),
            (r"\.", &["."]),
            (r"\\", &["\\"]),
            (" ", &[" "]),
            ("a.\u{1b}", &["a", "\u{1b}"]),
        ] {
            let parsed: StatPath = path.parse().unwrap();
            assert_eq!(
                (parsed.components().collect::<Vec<_>>(), parsed.to_string()),
                (components.to_vec(), path.to_owned())
            );
        }
        for path in ["", ".", "..", ".a", "a.", "a..b", r"a\..", r"a\", r"\a", r"a\\\", r"a.\"] {
            assert!(path.parse::<StatPath>().is_err(), "{path}");
        }
    }

    #[test]
    fn names_of_objects_are_no_indices() {
        let stats = json!({ "c": { "+1": 1, "01": 2, "0": 3 } });
        assert_eq!(get("c.+1", &stats), Ok(json!(1)));
        assert_eq!(get("c.01", &stats), Ok(json!(2)));
        assert_eq!(get("c.0", &stats), Ok(json!(3)));
    }

    #[test]
    fn an_error_lists_few_and_short_names() {
        let stats: Value = (0..100).map(|n| (format!("{n:03}{}\u{1b}", "x".repeat(10_000)), json!(n))).collect();
        let error = get("y", &stats).unwrap_err();
        assert_eq!(error.there.len(), MAX_LISTED + 1);
        assert_eq!(error.there.last().unwrap(), "68 more");
        assert!(error.to_string().len() < MAX_LISTED * 250, "{}", error.to_string().len());
        let escape = get("y", &json!({ "\u{1b}[2J": 1 })).unwrap_err();
        assert_eq!(escape.to_string(), r#"there is no "y" at "", but \u{1b}[2J"#);
    }
}
