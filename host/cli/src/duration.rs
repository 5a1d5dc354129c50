//! Times as they are written on the command line: `5`, `0.5`, `250ms`, `2s`, `1m`.

use std::time::Duration;

/// The longest that may be asked for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Parses a time of more than nothing. A number alone means seconds.
pub fn parse(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = match text.get(number.len()..).unwrap_or_default() {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        other => return Err(format!("{other:?} is no unit of time: ms, s and m are, as in 250ms")),
    };
    let seconds = number.parse().map(|number: f64| number * unit);
    let duration = seconds.ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match duration {
        Some(duration) if duration > LONGEST => Err("it is more than a day".into()),
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("it is no time above 0, such as 5 (seconds), 0.5 or 250ms".into()),
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
    fn what_is_no_time_is_told_the_form() {
        for (text, said) in [
            ("", "no time above 0"),
            ("0", "no time above 0"),
            ("-1", "no time above 0"),
            ("s", "no time above 0"),
            ("nan", "\"nan\" is no unit"),
            ("inf", "\"inf\" is no unit"),
            ("5h", "\"h\" is no unit of time: ms, s and m are"),
            ("1e400", "no time above 0"),
            ("86401", "more than a day"),
        ] {
            assert!(parse(text).unwrap_err().contains(said), "{text}: {:?}", parse(text));
        }
    }
}
