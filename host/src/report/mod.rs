//! Recordings as one page of HTML: plots, what changed between runs, and verdicts.
//!
//! A [`Report`] reads recordings, which are [JSON Lines](crate::SampleSeries::write_json_lines), sample by sample. Of each
//! number it keeps 8 bytes a sample; lines, fields, runs and recordings are bounded. The page has everything inside: it
//! loads nothing, runs no script, and follows the reader's choice of light or dark.
//!
//! ```
//! use scx_vsock::report::Report;
//!
//! let line = r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":1000,"stats":{"Ok":{"nr_running":2}}}"#;
//! let mut report = Report::new(vec!["nr_running <= 64".parse()?]);
//! report.read("before", "before.jsonl", format!("{line}\n").as_bytes())?;
//! let page = report.to_html();
//! assert!(page.starts_with("<!DOCTYPE html>") && page.contains("nr_running"));
//! assert!(report.verdicts()[0].verdicts[0].1.is_held());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod column;
mod comparison;
mod field_names;
mod kernel_record;
mod marks;
mod page;
mod plot;
mod polyline;
mod quantity;
mod rank_test;
mod recording;
#[allow(clippy::module_inception, reason = "the file is named after the noun that it defines")]
mod report;
mod runs;
mod summary;
#[cfg(test)]
mod tests;

pub use recording::ReadError;
pub use report::{RecordingVerdicts, Report};
pub use runs::{MAX_RECORDINGS, MAX_RUNS};
