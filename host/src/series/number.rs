//! A number of a sample, as JSON has it.

use std::cmp::Ordering;

use serde_json::Value;

/// A number of a sample. Numbers compare exactly, also integers beyond 2^53 with floats.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    /// An integer of 64 bits, with or without a sign.
    Integer(i128),
    /// Any other.
    Float(f64),
}

impl Number {
    /// Returns the number that a value is.
    pub fn of(value: &Value) -> Option<Self> {
        let unsigned = value.as_u64().map(i128::from);
        let integer = unsigned.or_else(|| value.as_i64().map(i128::from)).map(Self::Integer);
        integer.or_else(|| value.as_f64().map(Self::Float))
    }

    /// Returns the number as a float; beyond 2^53 the nearest one.
    #[allow(clippy::cast_precision_loss, reason = "documented")]
    pub const fn as_f64(self) -> f64 {
        match self {
            Self::Integer(number) => number as f64,
            Self::Float(number) => number,
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (*self, *other) {
            (Self::Integer(one), Self::Integer(other)) => Some(one.cmp(&other)),
            (Self::Float(one), Self::Float(other)) => one.partial_cmp(&other),
            (Self::Integer(one), Self::Float(other)) => compare(one, other),
            (Self::Float(one), Self::Integer(other)) => compare(other, one).map(Ordering::reverse),
        }
    }
}

/// Compares an integer of 64 bits with a float.
#[allow(clippy::cast_possible_truncation, reason = "it saturates beyond any integer of 64 bits")]
fn compare(integer: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    let whole = float.floor();
    let fraction = if float > whole { Ordering::Less } else { Ordering::Equal };
    Some(integer.cmp(&(whole as i128)).then(fraction))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_and_floats_compare_exactly() {
        let order = |one: Value, other: Value| Number::of(&one).unwrap().partial_cmp(&Number::of(&other).unwrap());
        for (one, other, expected) in [
            (json!(u64::MAX), json!(u64::MAX - 1), Ordering::Greater),
            (json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992.0), Ordering::Greater),
            (json!(64), json!(64.0), Ordering::Equal),
            (json!(64), json!(64.5), Ordering::Less),
            (json!(-3), json!(-3.5), Ordering::Greater),
            (json!(u64::MAX), json!(1e300), Ordering::Less),
            (json!(i64::MIN), json!(-1e300), Ordering::Greater),
        ] {
            assert_eq!(order(one.clone(), other.clone()), Some(expected), "{one} {other}");
            assert_eq!(order(other, one), Some(expected.reverse()));
        }
        assert_eq!(Number::Integer(1).partial_cmp(&Number::Float(f64::NAN)), None);
        assert_eq!(Number::of(&json!("1")), None);
    }
}
