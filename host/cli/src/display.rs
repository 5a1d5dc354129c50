//! Samples as text for people.

use std::fmt::Write;

use anstyle::Style;
use scx_vsock::Sample;
use scx_vsock::stats::{KernelMessage, PeerText, SchedExt};
use serde_json::Value;

/// The style of names and values. anstream removes it where stdout is not a terminal.
pub const BOLD: Style = Style::new().bold();

/// The style of details.
pub const DIM: Style = Style::new().dimmed();

/// The most fields shown of one sample among many.
const MAX_FIELDS: usize = 24;

/// A sample as a heading and a line for each field.
pub fn sample(sample: &Sample) -> String {
    let mut text = heading(sample);
    text += &kernel_summary(sample).map(|summary| format!("  {summary}\n")).unwrap_or_default();
    match &sample.stats {
        Ok(stats) => text += &fields(stats, MAX_FIELDS),
        Err(reason) => text += &format!("  no stats: {reason}\n"),
    }
    text
}

/// The state of sched_ext and the scheduler that the kernel runs, where it was asked and has answered.
pub fn kernel_summary(sample: &Sample) -> Option<String> {
    let kernel = sample.kernel.as_ref()?.as_ref().ok()?;
    Some(match (&kernel.state, &kernel.ops) {
        (Some(state), Some(ops)) if !ops.is_empty() => format!("sched_ext {}: {}", clean(state), clean(ops)),
        (Some(state), _) => format!("sched_ext {}", clean(state)),
        (None, _) => "no sched_ext".into(),
    })
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
fn rows(stats: &Value) -> Vec<(String, String)> {
    let rows = scalars(stats).into_iter();
    rows.map(|(path, value)| (path, value_text(value))).collect()
}

/// Every number with its dotted path, the least nested first.
pub fn number_rows(stats: &Value) -> Vec<(String, String)> {
    let numbers = scalars(stats).into_iter().filter(|(_, value)| value.is_number());
    numbers.map(|(path, value)| (path, value_text(value))).collect()
}

/// A value on one line; of one that has values inside, only its size.
pub fn value_text(value: &Value) -> String {
    match value {
        Value::Object(fields) => format!("{} fields", fields.len()),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::String(text) => clean(text),
        scalar => scalar.to_string(),
    }
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

/// What a guest's kernel says about sched_ext: a line for each of its files and events, and its messages.
pub fn kernel(said: &SchedExt) -> String {
    if said.state.is_none() {
        return "the guest's kernel has no sched_ext\n".into();
    }
    let SchedExt { log, log_errno, truncated, .. } = said;
    let files = SchedExt { log: None, log_errno: None, truncated: false, ..said.clone() };
    let files = serde_json::to_value(files).unwrap_or_default();
    let mut text = format!("sched_ext\n{}", fields(&files, usize::MAX));
    for KernelMessage { time_us, text: message } in log.iter().flatten() {
        let time = time_us.map(|time| format!("{:>14}  ", seconds(time / 1000))).unwrap_or_default();
        text += &format!("  {DIM}{time}{DIM:#}{}\n", clean(message));
    }
    if let Some(errno) = log_errno {
        text += &format!("  the agent cannot read the kernel's log: {}\n", std::io::Error::from_raw_os_error(*errno));
    }
    if *truncated {
        text += "  the agent's buffer has no room for the rest\n";
    }
    text
}

fn scalars(stats: &Value) -> Vec<(String, &Value)> {
    let mut scalars = Vec::new();
    collect("", stats, &mut scalars);
    scalars.sort_by_key(|(path, _)| path.matches('.').count());
    scalars
}

fn collect<'v>(path: &str, value: &'v Value, scalars: &mut Vec<(String, &'v Value)>) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| collect(&join(&component(name)), value, scalars)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| collect(&join(&at.to_string()), value, scalars));
        }
        scalar => scalars.push((path.to_owned(), scalar)),
    }
}

/// A name as a component of a path that --field takes.
fn component(name: &str) -> String {
    clean(&name.replace('\\', r"\\").replace('.', r"\."))
}

/// A guest's text as it can be shown: one line of it, truncated, with control characters as escapes.
pub fn clean(text: &str) -> String {
    PeerText::line(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scx_vsock::MissingStatsReason;
    use serde_json::json;

    fn sample_of(stats: Result<Value, MissingStatsReason>) -> Sample {
        let sample =
            json!({ "tag": "sample 2", "elapsed_ms": 2_017, "session": 1, "interval_ms": 1_001, "stats": stats });
        serde_json::from_value(sample).unwrap()
    }

    fn plain(of: &Sample) -> String {
        anstream::adapter::strip_str(&sample(of)).to_string()
    }

    #[test]
    fn a_sample_is_a_heading_and_its_fields() {
        let text = plain(&sample_of(Ok(json!({"cpus": [{"busy": 3}], "name": "a\u{1b}[2J\u{202e}b\u{2066}"}))));
        assert_eq!(
            text,
            "sample 2 at 2.017 s (session 1, deltas over 1.001 s)\n  name         a\\u{1b}[2J\\u{202e}b\\u{2066}\n  cpus.0.busy                 3\n"
        );
    }

    #[test]
    fn a_path_is_one_that_field_takes() {
        let stats = json!({ "a.b": { "c\\d": [1] } });
        let rows = rows(&stats);
        let [(path, value)] = rows.as_slice() else { unreachable!("one scalar") };
        let path: scx_vsock::stats::StatPath = path.parse().unwrap();
        assert_eq!((path.get(&stats).unwrap(), value.as_str()), (&json!(1), "1"));
    }

    #[test]
    fn what_the_kernel_says_has_its_files_and_its_messages() {
        let said = serde_json::from_value(json!({
            "state": "enabled\u{1b}[2J", "uptime_us": 9, "events": { "SCX_EV_A": "3" },
            "log": [{ "time_us": 9_120_627, "text": "sched_ext: on" }, { "text": "\u{202e}" }], "log_errno": 1, "truncated": true,
        }));
        let text = anstream::adapter::strip_str(&kernel(&said.unwrap())).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.first(), Some(&"sched_ext"));
        for expected in [
            "  state            enabled\\u{1b}[2J",
            "  events.SCX_EV_A                 3",
            "         9.120 s  sched_ext: on",
            "  \\u{202e}",
            "  the agent cannot read the kernel's log: Operation not permitted (os error 1)",
            "  the agent's buffer has no room for the rest",
        ] {
            assert!(lines.contains(&expected), "{expected}: {text}");
        }
        assert_eq!(kernel(&SchedExt::default()), "the guest's kernel has no sched_ext\n");
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
