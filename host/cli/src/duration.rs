//! Times as they are written on the command line: `5`, `0.5`, `250ms`, `2s`, `1m`.

use std::time::Duration;

const MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Parses a time above 0 and of at most a day. A number alone means seconds.
///
/// # Errors
///
/// A message that says which form is expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = match text.get(number.len()..).unwrap_or_default() {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        other => return Err(format!("unknown unit {other:?}; use ms, s or m, as in 250ms")),
    };
    let seconds = number.parse().map(|number: f64| number * unit);
    let duration = seconds.ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match duration {
        Some(duration) if duration > MAX => Err("the maximum is 24 hours".into()),
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("expected a time above 0, such as 5 (seconds), 0.5 or 250ms".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        for (text, ms) in
            [("5", 5_000), ("0.5", 500), ("250ms", 250), ("2s", 2_000), ("1.5m", 90_000), ("86400", 86_400_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn wrong_times_are_refused() {
        for (text, expected) in [
            ("", "expected a time above 0"),
            ("0", "expected a time above 0"),
            ("-1", "expected a time above 0"),
            ("s", "expected a time above 0"),
            ("nan", "unknown unit \"nan\""),
            ("inf", "unknown unit \"inf\""),
            ("5h", "unknown unit \"h\"; use ms, s or m"),
            ("1e400", "expected a time above 0"),
            ("86401", "24 hours"),
        ] {
            assert!(parse(text).unwrap_err().contains(expected), "{text}: {:?}", parse(text));
        }
    }
}
