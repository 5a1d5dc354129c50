//! The counts of all paths, and the file with them.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;

/// What one operation of a path takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// The path's name.
    pub path: String,
    /// Instructions of the program.
    pub instructions: u64,
    /// Calls of dynamic libraries.
    pub calls: u64,
}

/// The counts of all paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub Vec<PathCounts>);

impl Counts {
    /// Returns the counts of a path.
    pub fn of(&self, path: &str) -> Option<&PathCounts> {
        self.0.iter().find(|counts| counts.path == path)
    }
}

const HEADING: &str = "\
# What one operation of each hot path takes on x86_64: instructions of the program, and calls of the C library (memory that
# is allocated, freed and copied, and std's system calls). `ci/callgrind --update` writes this file; `ci/callgrind` fails
# where a number is over 5 % greater.
";

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADING}{:<14} {:>13} {:>6}", "# path", "instructions", "calls")?;
        self.0.iter().try_for_each(|PathCounts { path, instructions, calls }| {
            writeln!(f, "{path:<14} {instructions:>13} {calls:>6}")
        })
    }
}

impl FromStr for Counts {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(counts_of).collect::<anyhow::Result<_>>().map(Self)
    }
}

fn counts_of(line: &str) -> anyhow::Result<PathCounts> {
    let mut words = line.split_whitespace();
    let mut next = || words.next().with_context(|| format!("expected a path and two numbers: {line}"));
    let (path, instructions, calls) = (next()?.to_owned(), next()?.parse()?, next()?.parse()?);
    Ok(PathCounts { path, instructions, calls })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_read() {
        let counts = Counts(vec![
            PathCounts { path: "request".into(), instructions: 12_345, calls: 6 },
            PathCounts { path: "decode".into(), instructions: 0, calls: 0 },
        ]);
        assert_eq!(counts.to_string().parse::<Counts>().unwrap(), counts);
    }

    #[test]
    fn a_broken_line_is_an_error() {
        for text in ["request", "request 1", "request one 2"] {
            assert!(text.parse::<Counts>().is_err(), "{text}");
        }
    }
}
