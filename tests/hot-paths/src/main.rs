//! Counts what one operation of each hot path takes, under callgrind, against the numbers in `counts.txt`.
//!
//! ```text
//! hot_paths check COUNTS      compares; exits with 1 if a path takes over 5 % more    (ci/callgrind builds and runs this)
//! hot_paths update COUNTS     writes the file anew
//! hot_paths run PATH          runs the operations of one path, for callgrind
//! ```
//!
//! Instructions are those of this program alone. What its dynamic libraries do is left to them: the C library chooses its
//! copies of memory by the processor, so that their instructions differ between machines; how often it is called does not.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program's output")]

mod client_paths;
mod comparison;
mod counts;
mod device_paths;
mod measured;
mod profile;
mod valgrind;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};

use counts::{Counts, PathCounts};
use measured::HotPath;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("hot_paths: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn paths() -> impl Iterator<Item = &'static HotPath> {
    device_paths::ALL.iter().chain(client_paths::ALL)
}

fn run(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run", name] => run_path(name).map(|()| ExitCode::SUCCESS),
        ["check", file] => check(file.as_ref()),
        ["update", file] => update(file.as_ref()).map(|()| ExitCode::SUCCESS),
        _ => bail!("usage: hot_paths check|update COUNTS, or hot_paths run PATH"),
    }
}

fn run_path(name: &str) -> anyhow::Result<()> {
    let path = paths().find(|path| path.name == name).with_context(|| format!("unknown path {name}"))?;
    (path.run)(path.times)
}

fn count_all() -> anyhow::Result<Counts> {
    let count = |path: &'static HotPath| {
        let counts = valgrind::count(path).with_context(|| format!("cannot count {}", path.name))?;
        Ok(PathCounts { path: path.name.to_owned(), ..counts })
    };
    Ok(Counts(paths().map(count).collect::<anyhow::Result<_>>()?))
}

fn check(file: &Path) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let committed: Counts = text.parse().with_context(|| file.display().to_string())?;
    let report = comparison::compare(&committed, &count_all()?);
    print!("{report}");
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn update(file: &Path) -> anyhow::Result<()> {
    let counts = count_all()?.to_string();
    print!("{counts}");
    std::fs::write(file, counts).with_context(|| file.display().to_string())
}
