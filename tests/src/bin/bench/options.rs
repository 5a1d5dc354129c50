//! The command line.

use std::path::PathBuf;

use crate::measure::{Bench, Measure};

/// What is to be measured.
pub struct Options {
    /// Where `bench.json` is written.
    pub folder: PathBuf,
    /// What it is measured with.
    pub bench: Bench,
    /// The page to write.
    pub page: Option<PathBuf>,
    /// The measurements; without any, all.
    chosen: Vec<String>,
}

impl Options {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn parse(arguments: impl Iterator<Item = String>, all: &[&str]) -> Result<Self, String> {
        let (mut quick, mut page, mut words) = (false, None, Vec::new());
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => quick = true,
                "--page" => page = Some(arguments.next().ok_or("--page needs a path")?.into()),
                option if option.starts_with('-') => {
                    return Err(format!("unknown option {option}: see ci/bench --help"));
                }
                _ => words.push(argument),
            }
        }
        let mut words = words.into_iter();
        let mut next =
            || words.next().ok_or("usage: bench FOLDER RELAY_STD SCX_VSOCK [--quick] [--page PAGE] [ROW...]");
        let folder = next()?.into();
        let bench = Bench { relay: next()?.into(), command: next()?.into(), quick };
        let chosen: Vec<String> = words.collect();
        match chosen.iter().find(|chosen| !all.contains(&chosen.as_str())) {
            Some(unknown) => Err(format!("unknown row {unknown}: use {}", all.join(", "))),
            None => Ok(Self { folder, bench, page, chosen }),
        }
    }

    /// Whether this is to be measured. What is chosen by name is, however long it takes.
    pub fn has(&self, measure: &Measure) -> bool {
        self.has_name(measure.name, measure.is_quick || !self.bench.quick)
    }

    /// Whether a plot of the page is to be measured.
    pub fn has_figure(&self, name: &str) -> bool {
        self.page.is_some() && self.has_name(name, !self.bench.quick)
    }

    /// Whether something of this name is to be measured that is among what is measured without a choice, or not.
    fn has_name(&self, name: &str, otherwise: bool) -> bool {
        if self.chosen.is_empty() { otherwise } else { self.chosen.iter().any(|chosen| chosen == name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&Measure; 2] = [
        &Measure { name: "short", is_quick: true, bound: "", rows: |_| Vec::new() },
        &Measure { name: "long", is_quick: false, bound: "", rows: |_| Vec::new() },
    ];

    fn parse(arguments: &str) -> Result<Options, String> {
        Options::parse(arguments.split(' ').map(str::to_owned), &["short", "long", "plot"])
    }

    fn measured(arguments: &str) -> [bool; 2] {
        let options = parse(arguments).unwrap();
        ALL.map(|measure| options.has(measure))
    }

    #[test]
    fn quick_skips_what_takes_long_unless_it_is_named() {
        assert_eq!(measured("folder relay command"), [true, true]);
        assert_eq!(measured("folder relay command --quick"), [true, false]);
        assert_eq!(measured("folder relay command --quick long"), [false, true]);
    }

    #[test]
    fn plots_are_measured_for_a_page() {
        let has_plot = |arguments: &str| parse(arguments).unwrap().has_figure("plot");
        assert!(has_plot("folder relay command --page page"));
        assert!(has_plot("folder relay command --quick --page page plot"));
        assert!(!has_plot("folder relay command --quick --page page"));
        assert!(!has_plot("folder relay command plot"));
    }

    #[test]
    fn an_unknown_row_is_an_error_with_the_list() {
        let error = parse("folder relay command longer").err().unwrap();
        assert_eq!(error, "unknown row longer: use short, long, plot");
    }
}
