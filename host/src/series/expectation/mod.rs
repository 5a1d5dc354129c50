//! What must be true of a series, as one line of text, and whether it was.
//!
//! An [`Expectation`] is parsed from text or built in code. An [`Evaluation`] takes the samples one by one, keeps a bounded
//! part of them, and has a [`Verdict`] at any time. It does no I/O and has no clock: times are those of the samples.
//!
//! | text | what must be true |
//! | --- | --- |
//! | `nr_running <= 64` | of every value; the word `always` may come first |
//! | `eventually nr_direct_dispatches > 0 within 5s` | of one value at least |
//! | `at_end nr_queued = 0` | of the last sample |
//! | `per_second(nr_direct_dispatches) > 100 after 2s` | of a field that is a delta, by the time that it spans |
//! | `rate(totals.ctxt) > 10` | of a counter that grows, by its change from sample to sample in a second |
//! | `nondecreasing totals.ctxt` | no value is less than the one before it |
//! | `steady(load) within 20% after 2s` | no value differs from the mean by more |
//! | `holes(stats) <= 2` | of how many samples had no stats so far |
//! | `kernel:state = enabled` | of what the kernel says, as [`Sample::kernel`](crate::Sample::kernel) has it |
//!
//! ```
//! use scx_vsock::SampleSeries;
//! use scx_vsock::series::expectation::{Expectation, Verdict};
//!
//! let series = SampleSeries::from_json_lines(concat!(
//!     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":1000,"stats":{"Ok":{"nr_running":60}}}"#, "\n",
//!     r#"{"tag":"b","elapsed_ms":2000,"session":1,"interval_ms":1000,"stats":{"Ok":{"nr_running":70}}}"#, "\n",
//! ))?;
//! let expectation: Expectation = "nr_running <= 64".parse()?;
//! let verdict = series.check(&expectation);
//! assert!(!verdict.is_held());
//! assert_eq!(verdict.to_string(), r#"broken: sample 2 ("b") at 2.000 s is 70, not <= 64; before it 60"#);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod evaluation;
#[allow(clippy::module_inception, reason = "the file is named after the noun that it defines")]
mod expectation;
mod nearest;
mod observation;
mod observer;
mod parse;
mod parse_error;
mod term;
#[cfg(test)]
mod tests;
mod value;
mod verdict;
mod words;

pub use evaluation::Evaluation;
pub use expectation::{Condition, Expectation, Test, Window};
pub use observation::{NoValue, Observation};
pub use parse::MAX_EXPECTATION_BYTES;
pub use parse_error::ParseExpectationError;
pub use term::{Source, Term};
pub use value::Operand;
pub use verdict::{Break, Verdict};
