//! Which form of the metrics a scraper accepts: media ranges with weights (RFC 9110, 12.4.2 and 12.5.1).

/// Returns whether a scraper prefers OpenMetrics to Prometheus' older text. The older text is the default: wildcards do
/// not select OpenMetrics. Whatever is no media range is ignored.
pub(super) fn prefers_open_metrics<'h>(accept: impl Iterator<Item = &'h str>) -> bool {
    let ranges: Vec<MediaRange<'_>> = accept.flat_map(|value| value.split(',')).filter_map(MediaRange::parse).collect();
    let weight = |of: [&str; 2]| {
        let named = ranges.iter().filter(|range| range.is(of)).map(|range| range.weight);
        named.max()
    };
    let plain = [["text", "plain"], ["text", "*"], ["*", "*"]].into_iter().find_map(weight).unwrap_or(0);
    weight(["application", "openmetrics-text"]).is_some_and(|open_metrics| open_metrics > 0 && open_metrics >= plain)
}

/// A media type or a wildcard, and its weight in thousandths.
struct MediaRange<'h> {
    kind: &'h str,
    subtype: &'h str,
    weight: u16,
}

impl<'h> MediaRange<'h> {
    fn parse(range: &'h str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let weight = parts
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        let weight = weight.map_or(Some(1000), |(_, value)| thousandths(value.trim()))?;
        Some(Self { kind, subtype, weight })
    }

    fn is(&self, [kind, subtype]: [&str; 2]) -> bool {
        self.kind.eq_ignore_ascii_case(kind) && self.subtype.eq_ignore_ascii_case(subtype)
    }
}

/// A weight from 0 to 1 with at most three decimals.
fn thousandths(weight: &str) -> Option<u16> {
    let (whole, decimals) = weight.split_once('.').unwrap_or((weight, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let decimals: u16 = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(decimals),
        "1" if decimals == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_weight_decides() {
        let open = "application/openmetrics-text";
        for (accept, expected) in [
            (vec![open], true),
            (vec!["APPLICATION/OpenMetrics-Text; version=1.0.0"], true),
            (vec!["text/plain;q=0.9,application/openmetrics-text;q=0.1"], false),
            (vec!["text/plain;q=0.1 , application/openmetrics-text ; Q=0.9"], true),
            (vec!["application/openmetrics-text;q=0"], false),
            (vec!["application/openmetrics-text;q=0.000,*/*"], false),
            (vec!["application/openmetrics-textual"], false),
            (vec!["text/plain;q=0.5", open], true),
            (vec!["text/*;q=0.8,application/openmetrics-text;q=0.7"], false),
            (vec!["*/*"], false),
            (vec!["application/*"], false),
            (vec!["application/openmetrics-text;q=2"], false),
            (vec!["", ",;", "application/openmetrics-text;q=", "q=1"], false),
            (vec![], false),
        ] {
            assert_eq!(prefers_open_metrics(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    #[test]
    fn weights_have_at_most_three_decimals() {
        let weights = ["0", "1", "0.", "0.5", "1.000", "0.123", "0.1234", "1.1", "-1", "0.+1", "NaN"].map(thousandths);
        let expected = [Some(0), Some(1000), Some(0), Some(500), Some(1000), Some(123), None, None, None, None, None];
        assert_eq!(weights, expected);
    }
}
