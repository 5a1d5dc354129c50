//! Samples as text for people.

use std::fmt::Write;

use anstyle::Style;
use scx_vsock::Sample;
use scx_vsock::stats::is_hidden;
use serde_json::Value;

/// The style of names and values. anstream removes it where stdout is not a terminal.
pub const BOLD: Style = Style::new().bold();

/// The style of details.
pub const DIM: Style = Style::new().dimmed();

/// The most fields shown of one sample among many.
const MAX_FIELDS: usize = 24;

/// The most characters shown of a guest's text.
const MAX_CHARACTERS: usize = 200;

/// A sample as a heading and a line for each field.
pub fn sample(sample: &Sample) -> String {
    let mut text = heading(sample);
    match &sample.stats {
        Ok(stats) => text += &fields(stats, MAX_FIELDS),
        Err(reason) => text += &format!("  no stats: {reason}\n"),
    }
    text
}

/// Milliseconds as seconds.
pub fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

fn heading(sample: &Sample) -> String {
    let span = match sample.interval_ms {
        Some(ms) => format!("deltas over {}", seconds(ms)),
        None => "new baseline".into(),
    };
    format!("{} at {} (session {}, {span})\n", sample.tag, seconds(sample.elapsed_ms), sample.session)
}

/// Every scalar with its dotted path, the least nested first.
pub fn rows(stats: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    collect("", stats, &mut rows);
    rows.sort_by_key(|(path, _)| path.matches('.').count());
    rows
}

/// A line for each scalar, aligned, up to `max` of them.
pub fn fields(stats: &Value, max: usize) -> String {
    let rows = rows(stats);
    let width = rows.iter().take(max).map(|(path, _)| path.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (path, value) in rows.iter().take(max) {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "  {path:<width$}  {BOLD}{value:>16}{BOLD:#}");
    }
    if let Some(more @ 1..) = rows.len().checked_sub(max) {
        let _written = writeln!(text, "  and {more} more fields: --jsonl prints all");
    }
    text
}

fn collect(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let join = |name: &str| if path.is_empty() { clean(name) } else { format!("{path}.{}", clean(name)) };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| collect(&join(name), value, rows)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| collect(&join(&at.to_string()), value, rows));
        }
        Value::String(text) => rows.push((path.to_owned(), clean(text))),
        scalar => rows.push((path.to_owned(), scalar.to_string())),
    }
}

/// A guest's text without characters that act on a terminal, or reorder or hide text, and truncated.
pub fn clean(text: &str) -> String {
    text.chars().filter(|&character| !is_hidden(character)).take(MAX_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scx_vsock::MissingStatsReason;
    use serde_json::json;

    fn sample_of(stats: Result<Value, MissingStatsReason>) -> Sample {
        Sample { tag: "sample 2".into(), elapsed_ms: 2_017, session: 1, interval_ms: Some(1_001), stats }
    }

    fn plain(of: &Sample) -> String {
        anstream::adapter::strip_str(&sample(of)).to_string()
    }

    #[test]
    fn a_sample_is_a_heading_and_its_fields() {
        let text = plain(&sample_of(Ok(json!({"cpus": [{"busy": 3}], "name": "a\u{1b}[2J\u{202e}b\u{2066}"}))));
        assert_eq!(
            text,
            "sample 2 at 2.017 s (session 1, deltas over 1.001 s)\n  name                    a[2Jb\n  cpus.0.busy                 3\n"
        );
    }

    #[test]
    fn a_missing_sample_says_why() {
        let text = plain(&sample_of(Err(MissingStatsReason::TimedOut { after_ms: 5 })));
        assert!(text.contains("no stats: no answer within 5 ms"), "{text}");
    }

    #[test]
    fn a_huge_sample_is_truncated() {
        let many: Vec<u32> = (0..100).collect();
        let text = plain(&sample_of(Ok(json!(many))));
        assert_eq!(text.lines().count(), 1 + MAX_FIELDS + 1);
        assert!(text.ends_with("and 76 more fields: --jsonl prints all\n"), "{text}");
    }
}
