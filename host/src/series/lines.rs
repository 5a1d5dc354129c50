//! A series as JSON Lines, out and in.

use std::io::{self, BufRead, Read, Write};

use super::series::SampleSeries;
use crate::sample::Sample;
use crate::stats::{MAX_JSON_DEPTH, PeerText, nest_too_deep};

/// Bytes of the longest line that is read. An answer has at most 256 KiB, and escapes make few of them longer.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// What was read of a recording: a line that is no sample costs that line alone.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Recording {
    /// The samples, in the order of their lines.
    pub series: SampleSeries,
    /// The lines that are no samples.
    pub errors: Vec<LineError>,
}

/// A line of a recording that is no sample.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("line {line} is no sample: {problem}")]
pub struct LineError {
    /// The line's number, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

impl SampleSeries {
    /// Writes a line for each sample, in serde's own form.
    ///
    /// # Errors
    ///
    /// What the write failed with; [`io::ErrorKind::InvalidData`] at a sample whose stats nest more than
    /// [`MAX_JSON_DEPTH`] levels deep, which no client returns and no reader takes.
    pub fn write_json_lines(&self, mut to: impl Write) -> io::Result<()> {
        for sample in &self.samples {
            if nest_too_deep(&sample.stats) {
                let problem = format!("sample {:?} {}", PeerText::line(&sample.tag), too_deep());
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            serde_json::to_writer(&mut to, sample)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Returns the lines of [`write_json_lines`](Self::write_json_lines) as text.
    ///
    /// # Errors
    ///
    /// As [`write_json_lines`](Self::write_json_lines).
    pub fn to_json_lines(&self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.write_json_lines(&mut bytes)?;
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    /// Reads lines of which each must be a sample, losslessly.
    ///
    /// # Errors
    ///
    /// [`LineError`] of the first line that is none.
    pub fn from_json_lines(text: &str) -> Result<Self, LineError> {
        let unread = |error: io::Error| LineError { line: 1, problem: error.to_string() };
        let Recording { series, errors } = Self::read_json_lines(text.as_bytes()).map_err(unread)?;
        errors.into_iter().next().map_or(Ok(series), Err)
    }

    /// Reads what [`write_json_lines`](Self::write_json_lines) wrote, losslessly. A line that is no sample, has more than
    /// [`MAX_LINE_BYTES`] or nests too deep is reported with its number and skipped.
    ///
    /// # Errors
    ///
    /// What a read failed with.
    pub fn read_json_lines(from: impl BufRead) -> io::Result<Recording> {
        let mut recording = Recording::default();
        let mut lines = SampleLines::new(from);
        while let Some(read) = lines.next()? {
            match read {
                Ok(sample) => recording.series.push(sample),
                Err(error) => recording.errors.push(error),
            }
        }
        Ok(recording)
    }
}

/// Reads the samples of a recording one by one, each line by itself.
pub(crate) struct SampleLines<R> {
    from: R,
    line: usize,
    bytes: Vec<u8>,
}

impl<R: BufRead> SampleLines<R> {
    /// Returns a reader of this, which has read nothing.
    pub fn new(from: R) -> Self {
        Self { from, line: 0, bytes: Vec::new() }
    }

    /// Reads the next line: a sample, or what is wrong with it. `None` at the end.
    ///
    /// # Errors
    ///
    /// What a read failed with.
    pub fn next(&mut self) -> io::Result<Option<Result<Sample, LineError>>> {
        self.bytes.clear();
        if self.from.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut self.bytes)? == 0 {
            return Ok(None);
        }
        self.line = self.line.saturating_add(1);
        let read = if self.bytes.len() >= MAX_LINE_BYTES && !self.bytes.ends_with(b"\n") {
            self.from.skip_until(b'\n')?;
            Err(format!("it has more than {MAX_LINE_BYTES} bytes"))
        } else {
            parse(&self.bytes)
        };
        Ok(Some(read.map_err(|problem| LineError { line: self.line, problem })))
    }
}

fn parse(line: &[u8]) -> Result<Sample, String> {
    let line = line.strip_suffix(b"\n").ok_or("it has no end; the text was truncated there")?;
    let sample: Sample = serde_json::from_slice(line).map_err(|error| PeerText::line(error).to_string())?;
    if nest_too_deep(&sample.stats) { Err(format!("it {}", too_deep())) } else { Ok(sample) }
}

fn too_deep() -> String {
    format!("nests more than {MAX_JSON_DEPTH} levels deep")
}
