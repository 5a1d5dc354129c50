//! Values of samples, and what they are compared with.

use std::fmt;

use serde_json::{Number, Value};

use super::words::{quoted, written};

/// What a value must be equal to, or differ from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A number. Integers of 64 bits compare exactly.
    Number(Number),
    /// A text.
    Text(String),
    /// `true` or `false`.
    Boolean(bool),
}

impl From<&str> for Operand {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Operand {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Operand {
    fn from(boolean: bool) -> Self {
        Self::Boolean(boolean)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::Text(text) if number(text).is_some() || boolean(text).is_some() => f.write_str(&quoted(text)),
            Self::Text(text) => f.write_str(&written(text)),
        }
    }
}

/// Returns the number that a text is.
pub(super) fn number(text: &str) -> Option<Number> {
    serde_json::from_str(text).ok()
}

/// Returns what a text is as a word.
pub(super) fn boolean(text: &str) -> Option<bool> {
    text.parse().ok()
}

/// The type that a value must have to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueType {
    Number,
    Text,
    Boolean,
}

impl ValueType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Text => "a string",
            Self::Boolean => "a boolean",
        }
    }

    /// Returns a value that has this type. The kernel's files are texts, also those that hold a number.
    pub fn of(self, value: &Value, is_of_kernel: bool) -> Option<Value> {
        match (self, value) {
            (Self::Number, Value::Number(_)) | (Self::Text, Value::String(_)) | (Self::Boolean, Value::Bool(_)) => {
                Some(value.clone())
            }
            (Self::Number, Value::String(text)) if is_of_kernel => number(text).map(Value::Number),
            _ => None,
        }
    }
}
