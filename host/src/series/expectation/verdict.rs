//! Whether an expectation held.

use std::fmt;

use super::observation::{NoValue, Observation, value_text};

/// Whether an expectation held. Its `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// What must be true was true.
    Held {
        /// How many samples had a value.
        values: u64,
        /// How many had none.
        without: u64,
    },
    /// It was not.
    Broken(Box<Break>),
    /// There was nothing to judge. This fails, as `Broken` does.
    NoData {
        /// How many samples there were, none with a value.
        samples: u64,
        /// Why they had none: the reason that says the most.
        reason: NoValue,
    },
}

/// Where an expectation broke.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Break {
    /// The sample and its value.
    pub at: Observation,
    /// The sample before it in the window.
    pub before: Option<Observation>,
    /// The sample after it in the window.
    pub after: Option<Observation>,
    /// What the value had to be, such as `<= 64`.
    pub wanted: String,
}

impl Verdict {
    /// Returns whether what must be true was true.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }

    /// Returns the verdict's name: `held`, `broken` or `no data`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Held { .. } => "held",
            Self::Broken(_) => "broken",
            Self::NoData { .. } => "no data",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name())?;
        match self {
            Self::Held { values, without: 0 } => write!(f, "{}", counted(*values, "value")),
            Self::Held { values, without } => write!(f, "{}; {without} without", counted(*values, "value")),
            Self::Broken(broken) => broken.fmt(f),
            Self::NoData { samples: 0, reason } => reason.fmt(f),
            Self::NoData { samples, reason } => write!(f, "{reason} ({})", counted(*samples, "sample")),
        }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, before, after, wanted } = self;
        write!(f, "{at} is {}, not {wanted}", value_text(&at.value))?;
        for (name, beside) in [("before", before), ("after", after)] {
            if let Some(beside) = beside {
                write!(f, "; {name} it {}", value_text(&beside.value))?;
            }
        }
        Ok(())
    }
}

fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
