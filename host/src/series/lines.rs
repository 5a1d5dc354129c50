//! A series as JSON Lines, out and in.

use std::io::{self, BufRead, Write};

use super::SampleSeries;
use crate::sample::Sample;

/// A line that is no sample.
///
/// ```
/// let error = scx_vsock::SampleSeries::from_json_lines("{\"tag\":\"a\"").unwrap_err();
/// assert_eq!(error.to_string(), "line 1 has no end; the text was cut in the middle");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The line is not a sample's JSON.
    #[error("line {line} is no sample")]
    Sample {
        /// The line's number, counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// The line has no end: the text was cut there, and so may the sample have been.
    #[error("line {line} has no end; the text was cut in the middle")]
    Cut {
        /// The line's number, counted from 1.
        line: usize,
    },
    /// The text could not be read.
    #[error("line {line} cannot be read")]
    Read {
        /// The line's number, counted from 1.
        line: usize,
        /// Why.
        source: io::Error,
    },
}

impl SampleSeries {
    /// Writes a line for each sample, in serde's own form.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// let mut file = Vec::new();
    /// series.write_json_lines(&mut file)?;
    /// assert_eq!(file, lines.as_bytes());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the write failed with.
    pub fn write_json_lines(&self, mut to: impl Write) -> io::Result<()> {
        for sample in &self.samples {
            serde_json::to_writer(&mut to, sample)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    }

    /// The lines of [`write_json_lines`](Self::write_json_lines) as text.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert_eq!(series.to_json_lines(), lines);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn to_json_lines(&self) -> String {
        let mut bytes = Vec::new();
        // Writing to memory does not fail, and a sample's keys are texts.
        let _written = self.write_json_lines(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads what [`write_json_lines`](Self::write_json_lines) wrote, losslessly.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert_eq!(series.samples().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LineError`] with the number of the first line that is no sample.
    pub fn from_json_lines(text: &str) -> Result<Self, LineError> {
        Self::read_json_lines(text.as_bytes())
    }

    /// Reads what [`write_json_lines`](Self::write_json_lines) wrote, losslessly.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert_eq!(SampleSeries::read_json_lines(lines.as_bytes())?, series);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LineError`] with the number of the first line that is no sample or cannot be read.
    pub fn read_json_lines(mut from: impl BufRead) -> Result<Self, LineError> {
        let mut series = Self::new();
        let mut text = String::new();
        for line in 1.. {
            text.clear();
            let bytes = from.read_line(&mut text).map_err(|source| LineError::Read { line, source })?;
            if bytes == 0 {
                break;
            }
            let Some(sample) = text.strip_suffix('\n') else { return Err(LineError::Cut { line }) };
            let sample: Sample = serde_json::from_str(sample).map_err(|source| LineError::Sample { line, source })?;
            series.push(sample);
        }
        Ok(series)
    }
}
