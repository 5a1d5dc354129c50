//! What must be true of a series.

use std::fmt;
use std::time::Duration;

use serde_json::{Number, Value};

use super::term::Term;
use super::value::{Operand, ValueType};
use crate::series::number;

/// What must be true of a series, as one line of text; its `Display` is the text's canonical form.
///
/// ```
/// use std::time::Duration;
/// use scx_vsock::series::expectation::{Condition, Expectation, Source, Term, Test};
///
/// let parsed: Expectation = "always  kernel:state=enabled after 500ms".parse()?;
/// let state = Term::Value(Source::Kernel, "state".parse()?);
/// let built = Expectation::new(Condition::Always(state, Test::Equals("enabled".into()))).after(Duration::from_millis(500));
/// assert_eq!(parsed, built);
/// assert_eq!(parsed.to_string(), "kernel:state = enabled after 500ms");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expectation {
    pub(super) condition: Condition,
    pub(super) window: Window,
}

/// What must be true of the values of a series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The test holds for every value.
    Always(Term, Test),
    /// The test holds for one value at least.
    Eventually(Term, Test),
    /// The test holds for the value of the last sample, which must have one.
    AtEnd(Term, Test),
    /// No number is less than the one before it on the same baseline.
    Nondecreasing(Term),
    /// No number differs from the mean of all by more than this, in percent of the mean.
    Steady(Term, Number),
}

/// What a value is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// `<`
    Less(Number),
    /// `<=`
    AtMost(Number),
    /// `>`
    Greater(Number),
    /// `>=`
    AtLeast(Number),
    /// `=`
    Equals(Operand),
    /// `!=`
    Differs(Operand),
}

/// Which samples count, by their time from the sampler's start; both ends are inside. Of whole milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// The earliest time in milliseconds.
    pub after_ms: Option<u64>,
    /// The latest time in milliseconds.
    pub within_ms: Option<u64>,
}

impl Expectation {
    /// Returns the expectation that this is true of all samples.
    #[must_use]
    pub fn new(condition: Condition) -> Self {
        Self { condition, window: Window::default() }
    }

    /// Returns the expectation without samples that were taken before this time.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.window.after_ms = Some(milliseconds(time));
        self
    }

    /// Returns the expectation without samples that were taken after this time.
    #[must_use]
    pub fn within(mut self, time: Duration) -> Self {
        self.window.within_ms = Some(milliseconds(time));
        self
    }

    /// Returns what must be true.
    #[must_use]
    pub const fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Returns which samples count.
    #[must_use]
    pub const fn window(&self) -> Window {
        self.window
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Condition {
    /// Returns the value that this is about.
    #[must_use]
    pub const fn term(&self) -> &Term {
        match self {
            Self::Always(term, _)
            | Self::Eventually(term, _)
            | Self::AtEnd(term, _)
            | Self::Nondecreasing(term)
            | Self::Steady(term, _) => term,
        }
    }

    /// Returns the type of the values that count.
    pub(super) const fn value_type(&self) -> ValueType {
        match self {
            Self::Always(_, test) | Self::Eventually(_, test) | Self::AtEnd(_, test) => test.value_type(),
            Self::Nondecreasing(_) | Self::Steady(..) => ValueType::Number,
        }
    }
}

impl Test {
    const fn value_type(&self) -> ValueType {
        match self {
            Self::Equals(Operand::Text(_)) | Self::Differs(Operand::Text(_)) => ValueType::Text,
            Self::Equals(Operand::Boolean(_)) | Self::Differs(Operand::Boolean(_)) => ValueType::Boolean,
            _ => ValueType::Number,
        }
    }

    /// Whether the test holds for a value of its type.
    pub(super) fn holds(&self, value: &Value) -> bool {
        let order = |operand: &Number| {
            number::Number::of(value)?.partial_cmp(&number::Number::of(&Value::Number(operand.clone()))?)
        };
        match self {
            Self::Less(operand) => order(operand).is_some_and(std::cmp::Ordering::is_lt),
            Self::AtMost(operand) => order(operand).is_some_and(std::cmp::Ordering::is_le),
            Self::Greater(operand) => order(operand).is_some_and(std::cmp::Ordering::is_gt),
            Self::AtLeast(operand) => order(operand).is_some_and(std::cmp::Ordering::is_ge),
            Self::Equals(Operand::Number(operand)) => order(operand).is_some_and(std::cmp::Ordering::is_eq),
            Self::Differs(Operand::Number(operand)) => order(operand).is_some_and(std::cmp::Ordering::is_ne),
            Self::Equals(operand) => is(value, operand),
            Self::Differs(operand) => !is(value, operand),
        }
    }
}

fn is(value: &Value, operand: &Operand) -> bool {
    match operand {
        Operand::Text(text) => value == text,
        Operand::Boolean(boolean) => value == boolean,
        Operand::Number(_) => false,
    }
}

impl Window {
    /// Whether a sample of this time counts.
    pub(super) fn contains(self, elapsed_ms: u64) -> bool {
        self.after_ms.is_none_or(|after| elapsed_ms >= after)
            && self.within_ms.is_none_or(|within| elapsed_ms <= within)
    }

    /// Whether a sample can count.
    pub(super) fn is_possible(self) -> bool {
        self.after_ms.zip(self.within_ms).is_none_or(|(after, within)| after <= within)
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.condition, self.window)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always(term, test) => write!(f, "{term} {test}"),
            Self::Eventually(term, test) => write!(f, "eventually {term} {test}"),
            Self::AtEnd(term, test) => write!(f, "at_end {term} {test}"),
            Self::Nondecreasing(term) => write!(f, "nondecreasing {term}"),
            Self::Steady(term, tolerance) => write!(f, "steady({term}) within {tolerance}%"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Less(operand) => write!(f, "< {operand}"),
            Self::AtMost(operand) => write!(f, "<= {operand}"),
            Self::Greater(operand) => write!(f, "> {operand}"),
            Self::AtLeast(operand) => write!(f, ">= {operand}"),
            Self::Equals(operand) => write!(f, "= {operand}"),
            Self::Differs(operand) => write!(f, "!= {operand}"),
        }
    }
}

/// With a space before each part, as it follows a condition.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, ms) in [("after", self.after_ms), ("within", self.within_ms)] {
            match ms {
                Some(ms) if ms.is_multiple_of(1000) => write!(f, " {name} {}s", ms / 1000)?,
                Some(ms) => write!(f, " {name} {ms}ms")?,
                None => {}
            }
        }
        Ok(())
    }
}
