//! A file that describes a suite: kernels, topologies, schedulers, what runs in the guests and what must be true.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use scx_vsock::guest::Topology;
use scx_vsock::series::expectation::Expectation;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::duration;
use crate::text_file;

/// The least similarity of a key that is proposed, from 0 to 1.
const MIN_SIMILARITY: f64 = 0.7;

const KEYS: [&str; 12] = [
    "kernel",
    "topology",
    "scheduler",
    "repetitions",
    "limit",
    "samples",
    "interval",
    "timeout",
    "memory",
    "cpus",
    "command",
    "expect",
];
const KERNEL_KEYS: [&str; 4] = ["name", "file", "modules", "config"];
const SCHEDULER_KEYS: [&str; 6] = ["name", "program", "args", "no-stats", "require-stats", "expect"];

/// What a file says.
#[derive(Debug, Default, Deserialize)]
pub struct SuiteFile {
    #[serde(default)]
    pub kernel: Vec<Kernel>,
    /// How the guests' processors are arranged, each as `--topology` has it.
    #[serde(default)]
    pub topology: Vec<Spanned<String>>,
    #[serde(default)]
    pub scheduler: Vec<Scheduler>,
    pub repetitions: Option<u32>,
    pub limit: Option<Time>,
    pub samples: Option<u32>,
    pub interval: Option<Time>,
    pub timeout: Option<Time>,
    pub memory: Option<u32>,
    pub cpus: Option<u32>,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub expect: Vec<Spanned<String>>,
}

/// A time as options have it: a text such as `"90s"`, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

/// A kernel; paths are as seen from the file's folder.
#[derive(Debug, Deserialize)]
pub struct Kernel {
    pub name: Option<String>,
    pub file: PathBuf,
    pub modules: Option<PathBuf>,
    pub config: Option<PathBuf>,
}

/// A scheduler and how it is started.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Scheduler {
    pub name: Option<String>,
    pub program: PathBuf,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub no_stats: bool,
    #[serde(default)]
    pub require_stats: bool,
    /// What must be true beside what all runs have.
    #[serde(default)]
    pub expect: Vec<Spanned<String>>,
}

/// What is wrong with a file, and where.
#[derive(Debug)]
struct Problem {
    at: Option<Range<usize>>,
    text: String,
}

impl SuiteFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no suite: with the line, the column and the key.
    pub fn read(path: &Path) -> Result<Self> {
        text_file::read(path, "a suite file", Self::parse)
    }

    /// Drops what the command line says as well.
    pub fn forget(&mut self, is_given: impl Fn(&str) -> bool) {
        let numbers = [("samples", &mut self.samples), ("memory", &mut self.memory), ("cpus", &mut self.cpus)];
        numbers.into_iter().filter(|(name, _)| is_given(name)).for_each(|(_, number)| *number = None);
        let times = [("interval", &mut self.interval), ("timeout", &mut self.timeout)];
        times.into_iter().filter(|(name, _)| is_given(name)).for_each(|(_, time)| *time = None);
    }

    /// Parses the text of a file; a problem names its place.
    fn parse(text: &str) -> Result<Self, String> {
        let table = DeTable::parse(text).map_err(|error| located(text, None, &Problem::of(&error)))?;
        let table = table.get_ref();
        let parsed = check_all_keys(table).and_then(|()| {
            let suite: Self = toml::from_str(text).map_err(|error| Problem::of(&error))?;
            suite.check().map(|()| suite)
        });
        parsed.map_err(|problem| located(text, Some(table), &problem))
    }

    /// Checks what is a text in the file, but has a form of its own.
    fn check(&self) -> Result<(), Problem> {
        for topology in &self.topology {
            let parsed = topology.get_ref().parse::<Topology>();
            parsed.map_err(|error| Problem { at: Some(topology.span()), text: error.to_string() })?;
        }
        let of_schedulers = self.scheduler.iter().flat_map(|scheduler| &scheduler.expect);
        for expectation in self.expect.iter().chain(of_schedulers) {
            let parsed = expectation.get_ref().parse::<Expectation>();
            parsed.map_err(|error| Problem { at: Some(expectation.span()), text: error.to_string() })?;
        }
        if self.kernel.is_empty() {
            return Err(Problem { at: None, text: "there is no [[kernel]]".into() });
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Seconds;
        impl Visitor<'_> for Seconds {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as 90 or \"90s\"")
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Time, E> {
                self.visit_str(&seconds.to_string())
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Time, E> {
                self.visit_str(&seconds.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                duration::parse(text).map(Time).map_err(E::custom)
            }
        }
        from.deserialize_any(Seconds)
    }
}

impl Problem {
    fn of(error: &toml::de::Error) -> Self {
        Self { at: error.span(), text: error.message().to_owned() }
    }
}

/// Looks for keys that nothing reads.
fn check_all_keys(table: &DeTable<'_>) -> Result<(), Problem> {
    check_keys(table, &KEYS)?;
    for (name, keys) in [("kernel", &KERNEL_KEYS[..]), ("scheduler", &SCHEDULER_KEYS)] {
        let Some(DeValue::Array(items)) = table.get(name).map(Spanned::get_ref) else { continue };
        for item in items.iter() {
            if let DeValue::Table(table) = item.get_ref() {
                check_keys(table, keys)?;
            }
        }
    }
    Ok(())
}

fn check_keys(table: &DeTable<'_>, known: &[&str]) -> Result<(), Problem> {
    let Some(unknown) = table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) else { return Ok(()) };
    let name = unknown.get_ref().as_ref();
    let rated = known.iter().map(|key| (strsim::jaro_winkler(name, key), key));
    let nearest = rated.filter(|(of, _)| *of >= MIN_SIMILARITY).max_by(|(one, _), (other, _)| one.total_cmp(other));
    let hint =
        nearest.map_or_else(|| format!("there are {}", known.join(", ")), |(_, key)| format!("the nearest is {key}"));
    Err(Problem { at: Some(unknown.span()), text: format!("there is no key {name:?}; {hint}") })
}

/// A problem with its line, its column and the key whose value it is in.
fn located(text: &str, table: Option<&DeTable<'_>>, problem: &Problem) -> String {
    let Some(at) = &problem.at else { return problem.text.clone() };
    let before = text.get(..at.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let key = table.and_then(|table| key_of(table, at)).map(|key| format!(", {key}")).unwrap_or_default();
    format!("line {line}, column {column}{key}: {}", problem.text)
}

/// The path of the key whose value has this place.
fn key_of(table: &DeTable<'_>, at: &Range<usize>) -> Option<String> {
    let (key, value) = table.iter().find(|(_, value)| holds(value, at))?;
    let rest = match value.get_ref() {
        DeValue::Table(table) => key_of(table, at),
        DeValue::Array(items) => items.iter().filter(|item| holds(item, at)).find_map(|item| match item.get_ref() {
            DeValue::Table(table) => key_of(table, at),
            _ => None,
        }),
        _ => None,
    };
    let key = key.get_ref();
    Some(rest.map_or_else(|| key.to_string(), |rest| format!("{key}.{rest}")))
}

/// Whether a place is in a value. Tables with headers of their own span only these, so that what is inside decides.
fn holds(value: &Spanned<DeValue<'_>>, at: &Range<usize>) -> bool {
    let span = value.span();
    let inside = match value.get_ref() {
        DeValue::Table(table) => table.iter().any(|(_, value)| holds(value, at)),
        DeValue::Array(items) => items.iter().any(|item| holds(item, at)),
        _ => false,
    };
    inside || (span.start <= at.start && at.end <= span.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITE: &str = "repetitions = 2\nlimit = \"90s\"\nexpect = [\"nr <= 1\"]\ncommand = [\"true\"]\n\
        [[kernel]]\nfile = \"vmlinuz\"\n[[scheduler]]\nprogram = \"scx_a\"\nargs = [\"-s\", \"5\"]\nno-stats = true\n";

    #[test]
    fn a_suite_is_read() {
        let suite = SuiteFile::parse(SUITE).unwrap();
        assert_eq!((suite.repetitions, suite.kernel.len(), suite.expect.len()), (Some(2), 1, 1));
        assert!(suite.scheduler[0].no_stats && suite.scheduler[0].args == ["-s", "5"]);
    }

    #[test]
    fn problems_name_their_place_and_key() {
        for (from, to, expected) in [
            (
                "repetitions",
                "repetition",
                "line 1, column 1: there is no key \"repetition\"; the nearest is repetitions",
            ),
            ("no-stats", "nostats", "line 10, column 1: there is no key \"nostats\"; the nearest is no-stats"),
            (
                "limit",
                "zzz",
                "line 2, column 1: there is no key \"zzz\"; there are kernel, topology, scheduler, repetitions, limit, samples, interval, timeout, memory, cpus, command, expect",
            ),
            ("= 2", "= \"2\"", "line 1, column 15, repetitions: invalid type: string \"2\", expected u32"),
            ("\"90s\"", "\"90x\"", "line 2, column 9, limit: unknown unit \"x\"; use ms, s or m, as in 250ms"),
            (
                "nr <= 1",
                "nr <=",
                "line 3, column 11, expect: column 6: expected a number, such as 64 or 0.5, but found the end",
            ),
            (
                "[\"-s\", \"5\"]",
                "\"-s\"",
                "line 9, column 8, scheduler.args: invalid type: string \"-s\", expected a sequence",
            ),
            (
                "repetitions = 2",
                "topology = ['cores=4', 'dies=2']",
                "line 1, column 24, topology: \"dies=2\" is no part of a topology: write it as sockets=2,llcs=1,cores=2,threads=2,nodes=2,memory=256+768, all optional",
            ),
            ("= true", "= ", "line 10, column 12: string values must be quoted, expected literal string"),
        ] {
            let error = SuiteFile::parse(&SUITE.replacen(from, to, 1)).unwrap_err();
            assert_eq!(error, expected);
        }
        for empty in ["", "kernel = []"] {
            assert_eq!(SuiteFile::parse(empty).unwrap_err(), "there is no [[kernel]]");
        }
    }

    #[test]
    fn a_time_is_a_text_or_a_number_of_seconds() {
        let limit = |text: &str| SuiteFile::parse(&SUITE.replace("\"90s\"", text)).map(|suite| suite.limit.unwrap());
        for text in ["90", "1.5", "'1m'"] {
            assert_eq!(Ok(limit(text).unwrap().0), duration::parse(text.trim_matches('\'')));
        }
        assert_eq!(
            limit("[]").unwrap_err(),
            "line 2, column 9, limit: invalid type: sequence, expected a time such as 90 or \"90s\""
        );
        assert!(limit("-1").unwrap_err().starts_with("line 2, column 9, limit: "));
    }
}
