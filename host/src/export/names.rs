//! A guest's texts as OpenMetrics takes them: names of few characters, help of one line.

use std::collections::HashMap;

/// Bytes of the longest name that is made of one text.
const MAX_NAME: usize = 100;

/// Bytes of the longest metric name, but for what makes it unique and unreserved.
const MAX_METRIC_NAME: usize = 200;

/// Characters of the longest help.
const MAX_HELP: usize = 200;

/// The prefix of every guest's metric, so that it begins with a letter.
const PREFIX: &str = "scx_";

/// The prefix of this crate's own metrics, and what a guest's have instead.
const OWN: &str = "scx_vsock_";
const NOT_OWN: &str = "scx_guest_vsock_";

/// Suffixes that a gauge's name must not have, and what it has after one: those that OpenMetrics reserves for parts of
/// counters, histograms and the like, and those of this crate's own. So no metric of one scheduler has the name of another
/// scheduler's metric of another type.
const RESERVED: [&str; 10] = [
    "_accumulated",
    "_bucket",
    "_count",
    "_created",
    "_distribution_seconds",
    "_gcount",
    "_gsum",
    "_info",
    "_sum",
    "_total",
];
const SUFFIX: &str = "_value";

/// Returns a metric's name without what its type adds to it, made of the names of its path.
pub(super) fn stem<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let parts: Vec<String> = parts.into_iter().map(word).collect();
    let mut name = format!("{PREFIX}{}", parts.join("_"));
    name.truncate(MAX_METRIC_NAME);
    match name.strip_prefix(OWN) {
        Some(suffix) => format!("{NOT_OWN}{suffix}"),
        None => name,
    }
}

/// Returns the name of a gauge.
pub(super) fn gauge(stem: String) -> String {
    if RESERVED.iter().any(|end| stem.ends_with(end)) { stem + SUFFIX } else { stem }
}

/// Returns the name of the counter that adds up what a gauge had, without `_total`.
pub(super) fn accumulated(gauge: &str) -> String {
    format!("{gauge}_accumulated")
}

/// Returns the name of the gauge that has a text as a label.
pub(super) fn info(stem: &str) -> String {
    format!("{stem}_info")
}

/// Returns the name of a histogram, without its unit. Promtool wants no type in a name.
pub(super) fn histogram(stem: &str) -> String {
    format!("{stem}_distribution")
}

/// Returns a label's name. Those that begin with two underscores are Prometheus' own.
pub(super) fn label(text: &str) -> String {
    let name = word(text);
    let name = name.trim_start_matches(|first: char| !first.is_ascii_alphabetic());
    if name.is_empty() { "key".to_owned() } else { name.to_owned() }
}

/// Returns the text in letters, digits and underscores.
fn word(text: &str) -> String {
    text.chars().take(MAX_NAME).map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect()
}

/// Returns a text that needs no escapes in any format.
pub(super) fn help(text: &str) -> String {
    let line = text.chars().take(MAX_HELP).map(|char| match char {
        '\\' => '/',
        '"' => '\'',
        char if char.is_control() => ' ',
        char => char,
    });
    line.collect::<String>().trim().to_owned()
}

/// Names that are taken, each with the number that the next one of its kind is tried with: a guest that has the same name
/// many times costs no more than one that has many names.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<String, u32>);

impl Names {
    /// Whether the name is taken.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Takes the name, with a number after it if it is taken already, and returns it.
    pub(super) fn take(&mut self, name: String) -> String {
        let Some(&first) = self.0.get(&name) else {
            self.0.insert(name.clone(), 2);
            return name;
        };
        let numbered = (first..u32::MAX).map(|number| (number, format!("{name}_{number}")));
        let free = numbered.into_iter().find(|(_, name)| !self.0.contains_key(name));
        let (number, unique) = free.unwrap_or((u32::MAX, name.clone()));
        self.0.insert(name, number.saturating_add(1));
        self.0.insert(unique.clone(), 2);
        unique
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_made_safe_and_stay_readable() {
        assert_eq!(stem(["totals", "cpu", "user"]), "scx_totals_cpu_user");
        assert_eq!(stem(["nr.events\n# EOF"]), "scx_nr_events___EOF");
        assert_eq!(stem(["9\u{e9}"]), "scx_9_");
        assert_eq!(stem(["vsock_up"]), "scx_guest_vsock_up");
        assert_eq!(stem(["vsock", "up"]), "scx_guest_vsock_up");
        assert_eq!(gauge(stem(["total"])), "scx_total_value");
        assert_eq!(gauge(stem(["d", "nr_total"])), "scx_d_nr_total_value");
        assert_eq!(gauge(stem(["subtotal"])), "scx_subtotal");
        assert_eq!(label("layer"), "layer");
        assert_eq!(label("__name__"), "name__");
        assert_eq!(label("7 of 9"), "of_9");
        assert_eq!(label("\u{1f600}"), "key");
        assert_eq!(help(" a \"b\"\n\\c "), "a 'b' /c");
    }

    #[test]
    fn metrics_of_two_types_never_share_a_name() {
        let others = [accumulated("scx_n"), info("scx_n"), format!("{}_seconds", histogram("scx_n"))];
        for name in others {
            assert_ne!(gauge(name.clone()), name);
        }
    }

    #[test]
    fn a_taken_name_is_numbered() {
        let mut names = Names::default();
        let taken = ["a_3", "a", "a", "a", "a_2", "a"].map(|name| names.take(name.to_owned()));
        assert_eq!(taken, ["a_3", "a", "a_2", "a_4", "a_2_2", "a_5"]);
        assert!(names.contains("a_4") && !names.contains("a_6"));
    }

    #[test]
    fn many_equal_names_cost_linear_time() {
        let (sender, last) = mpsc::channel();
        thread::spawn(move || {
            let mut names = Names::default();
            (0..200_000).for_each(|_| drop(names.take("a".to_owned())));
            sender.send(names.contains("a_200000")).unwrap();
        });
        // In the square of their number it would be hours.
        assert_eq!(last.recv_timeout(Duration::from_secs(60)), Ok(true));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_bad_name(parts in proptest::collection::vec(".{0,200}", 1..5)) {
            let name = gauge(stem(parts.iter().map(String::as_str)));
            let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
            prop_assert!(name.starts_with("scx_") && name.chars().all(is_word) && !name.starts_with(OWN));
            let label = label(&parts[0]);
            prop_assert!(label.starts_with(|first: char| first.is_ascii_alphabetic()) && label.chars().all(is_word));
            prop_assert!(!help(&parts[0]).contains(['\n', '\r', '\\', '"']));
        }
    }
}
