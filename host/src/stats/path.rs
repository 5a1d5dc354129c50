//! Dotted paths into stats.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::sample::Sample;
use crate::series::SnapshotError;

/// A path into stats: `layers.batch.cpus.0`. A dot or a backslash that belongs to a name stands behind a backslash.
///
/// ```
/// use scx_vsock::series::StatPath;
///
/// let path: StatPath = r"cgroups.system\.slice.util".parse()?;
/// assert_eq!(path.components().collect::<Vec<_>>(), ["cgroups", "system.slice", "util"]);
/// assert_eq!(path.to_string(), r"cgroups.system\.slice.util");
/// # Ok::<(), scx_vsock::series::ParsePathError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StatPath {
    pub(crate) components: Vec<String>,
}

/// A text that is no path.
///
/// ```
/// let error = "layers..util".parse::<scx_vsock::series::StatPath>().unwrap_err();
/// assert_eq!(error.to_string(), r#""layers..util" is no path: an empty component at byte 7"#);
/// ```
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
                    _ => return fail("a backslash that is before neither a dot nor a backslash", at),
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

/// A name as a component of a written path.
pub(crate) fn escaped(name: &str) -> String {
    name.replace('\\', r"\\").replace('.', r"\.")
}

impl StatPath {
    /// The path to the stats themselves.
    pub(crate) fn root() -> Self {
        Self { components: Vec::new() }
    }

    /// The names and indices on the way.
    ///
    /// ```
    /// let path: scx_vsock::series::StatPath = "cpus.0".parse()?;
    /// assert_eq!(path.components().last(), Some("0"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.components.iter().map(String::as_str)
    }

    /// The value at this path in a sample.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// let path: scx_vsock::series::StatPath = "nr".parse()?;
    /// assert_eq!(path.look_up(&series.samples()[0])?, 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SnapshotError::MissingStats`], [`SnapshotError::MissingField`].
    pub fn look_up<'s>(&self, sample: &'s Sample) -> Result<&'s Value, SnapshotError> {
        let stats = sample
            .stats
            .as_ref()
            .map_err(|reason| SnapshotError::MissingStats { tag: sample.tag.clone(), reason: reason.clone() })?;
        let mut value = stats;
        for (depth, component) in self.components.iter().enumerate() {
            value = step(value, component).ok_or_else(|| SnapshotError::MissingField {
                tag: sample.tag.clone(),
                at: written(self.components.get(..depth).unwrap_or(&[])),
                field: component.clone(),
                there: what_is_there(value),
            })?;
        }
        Ok(value)
    }
}

fn step<'v>(value: &'v Value, component: &str) -> Option<&'v Value> {
    match value {
        Value::Object(fields) => fields.get(component),
        Value::Array(elements) => elements.get(component.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn what_is_there(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => fields.keys().cloned().collect(),
        Value::Array(elements) => vec![format!("an array of {}", elements.len())],
        scalar => vec![kind(scalar).to_owned()],
    }
}

/// What a value is, for a message.
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
