//! Several runs: each kernel with each topology and each scheduler, as often as is asked for.

use std::collections::BTreeMap;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{ArgMatches, Args, Command};

use super::combination::{Combination, combinations};
use super::forwarded::Forwarded;
use super::limited_run::{self, RunResult};
use super::suite_file::{SuiteFile, Time};
use crate::display::clean;
use crate::duration;
use crate::error_report::wrong_arguments;
use crate::expectations::{ExpectationsBroken, JunitFile};
use crate::output::{self, eprintln};

/// How long a run may take if nothing else is said.
const LIMIT: Duration = Duration::from_secs(600);

/// Several runs.
#[derive(Args)]
pub struct SuiteOptions {
    /// Run each combination of the kernels, topologies and schedulers in this TOML file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "modules", "config", "scheduler", "scheduler_args"])]
    suite: Option<PathBuf>,

    /// How often to run each combination, in turns
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: Option<u32>,

    /// End a run that takes longer than this, in seconds or with a unit; by default each of several runs ends after 10m
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    limit: Option<Duration>,

    /// With several runs: how many are done at once; by default 1. Each guest takes memory and processors of its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,

    /// With several runs: the folder for each run's samples, NAME.jsonl, and messages, NAME.log; by default this one
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// The options that say which runs there are, and what a run of several has of its own.
const OF_ALL: [&str; 12] = [
    "suite",
    "repetitions",
    "limit",
    "jobs",
    "folder",
    "kernel",
    "modules",
    "config",
    "topology",
    "scheduler",
    "jsonl",
    "junit",
];

impl SuiteOptions {
    /// Whether there are several runs even of one kernel with one scheduler.
    pub fn is_asked_for(&self) -> bool {
        self.suite.is_some() || self.repetitions.is_some()
    }

    /// How long a run may take, if that was asked for.
    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Checks that nothing is asked for that needs several runs.
    ///
    /// # Errors
    ///
    /// The option that does.
    pub fn check_for_one_run(&self) -> Result<()> {
        let options = [("--jobs", self.jobs.is_some()), ("--folder", self.folder.is_some())];
        match options.into_iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => Err(wrong_arguments(format!(
                "{option} is of several runs: give --suite, --repetitions, or several --kernel, --topology or --scheduler"
            ))),
            None => Ok(()),
        }
    }

    /// Returns the runs that the file describes, or else these. The command line's other options replace the file's.
    ///
    /// # Errors
    ///
    /// Those of [`SuiteFile::read`]; two runs with one name.
    pub fn suite(&self, command: &Command, matches: &ArgMatches, matrix: SuiteFile) -> Result<Suite> {
        let forwarded = Forwarded::of(command, matches, &OF_ALL);
        let (mut file, base) = match &self.suite {
            Some(path) => {
                let mut file = SuiteFile::read(path)?;
                if !matrix.topology.is_empty() {
                    file.topology = matrix.topology;
                }
                (file, path.parent().unwrap_or(Path::new("")))
            }
            None => (matrix, Path::new("")),
        };
        file.forget(|option| forwarded.has(option));
        let mut combinations = combinations(&file, base, self.repetitions.or(file.repetitions).unwrap_or(1))?;
        for of in &mut combinations {
            of.options.extend(forwarded.options.iter().cloned());
            if !forwarded.command.is_empty() {
                of.command.clone_from(&forwarded.command);
            }
        }
        let limit = self.limit.or(file.limit.map(|Time(limit)| limit)).unwrap_or(LIMIT);
        let folder = self.folder.clone().unwrap_or_else(|| PathBuf::from("."));
        Ok(Suite { combinations, limit, jobs: self.jobs.unwrap_or(1), folder })
    }
}

/// Runs of which each ends within a limit.
pub struct Suite {
    combinations: Vec<Combination>,
    limit: Duration,
    /// How many are done at once.
    jobs: u16,
    /// Where recordings and messages are written.
    folder: PathBuf,
}

impl Suite {
    /// Runs all of them, and prints a table at the end; with `jsonl` the samples of each run when it has ended, and the
    /// table as a message. The exit code is that of the first run that failed; that of broken expectations if there is
    /// nothing worse.
    ///
    /// # Errors
    ///
    /// Files cannot be written, or [`ExpectationsBroken`].
    pub fn run(&self, jsonl: bool, junit: Option<&JunitFile>) -> Result<ExitCode> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        let results = self.results(jsonl)?;
        let table = table(&results, &self.folder);
        if jsonl {
            eprintln!("{}", table.trim_end());
        } else {
            output::print(&table)?;
        }
        if let Some(junit) = junit {
            junit.write_suites(results.iter().map(|result| &result.suite))?;
        }
        let failed = results.iter().find(|result| result.failure().is_some());
        if let Some(failed) = failed {
            return Ok(ExitCode::from(failed.code.filter(|code| *code != 0).unwrap_or(1)));
        }
        let broken = results.iter().map(|result| result.suite.broken.len()).sum();
        if broken > 0 {
            let all = results.iter().map(|result| result.suite.expectations).sum();
            return Err(ExpectationsBroken { broken, all }.into());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Runs all, so many at once, and returns their results in order. Nothing is begun after an error.
    fn results(&self, jsonl: bool) -> Result<Vec<RunResult>> {
        let next = AtomicUsize::new(0);
        let ended: Vec<Result<Vec<_>>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs).map(|_| scope.spawn(|| self.work(&next, jsonl))).collect();
            let join = |worker: ScopedJoinHandle<'_, _>| worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            workers.into_iter().map(join).collect()
        });
        let mut numbered = BTreeMap::new();
        for results in ended {
            numbered.extend(results?);
        }
        Ok(numbered.into_values().collect())
    }

    /// Runs what no other thread has begun, until nothing is left.
    fn work(&self, next: &AtomicUsize, jsonl: bool) -> Result<Vec<(usize, RunResult)>> {
        let mut results = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(combination) = self.combinations.get(at) else { return Ok(results) };
            eprintln!("scx-vsock: run {} of {}: {}", at + 1, self.combinations.len(), combination.name);
            let result = limited_run::run(combination, &self.folder, self.limit)
                .and_then(|result| if jsonl { result.print_samples().map(|()| result) } else { Ok(result) });
            if result.is_err() {
                next.store(self.combinations.len(), Ordering::Relaxed);
            }
            results.push((at, result?));
        }
    }
}

impl RunResult {
    /// Why the run failed; a broken expectation is no failure of the run.
    fn failure(&self) -> Option<String> {
        let of_command = || match self.code {
            Some(0) => None,
            Some(_) if !self.suite.broken.is_empty() => None,
            Some(code) => Some(format!("the command exited with status {code}")),
            None => Some("it was ended".into()),
        };
        self.suite.error.clone().or_else(of_command)
    }

    fn outcome(&self) -> String {
        match self.failure() {
            Some(failure) => format!("failed: {failure}"),
            None if !self.suite.broken.is_empty() => {
                format!("{} of {} expectations not met", self.suite.broken.len(), self.suite.expectations)
            }
            None if self.suite.expectations > 0 => "ok, all expectations met".into(),
            None => "ok".into(),
        }
    }
}

/// A line for each run; below it, what was not met, and where the messages are.
fn table(results: &[RunResult], folder: &Path) -> String {
    let width = results.iter().map(|result| result.name.len()).max().unwrap_or(0);
    let mut table = String::new();
    for result in results {
        let RunResult { name, samples, took, .. } = result;
        let (seconds, outcome) = (took.as_secs_f32(), result.outcome());
        table.push_str(&format!("{name:<width$}  {samples:>6} samples  {seconds:>7.1} s  {outcome}\n"));
        result.suite.broken.iter().for_each(|broken| table.push_str(&format!("  {broken}\n")));
        if !result.suite.broken.is_empty() || result.failure().is_some() {
            let log = folder.join(format!("{name}.log"));
            table.push_str(&format!("  its messages: {}\n", clean(&log.display().to_string())));
        }
    }
    table
}
