//! Runs a path under callgrind.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::counts::PathCounts;
use crate::measured::{HotPath, MEASURED, ONE_OPERATION};
use crate::profile::{self, Total};

/// Returns the counts of an operation of a path. The path runs in a process of its own, so that none depends on another.
pub fn count(path: &HotPath) -> anyhow::Result<PathCounts> {
    let program = std::env::current_exe()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("profile");
    run(&program, path.name, &file)?;
    let program = program.to_str().context("the program's path is no text")?;
    let operation = |number: usize| {
        let file = format!("{}.{number}", file.display());
        let text = std::fs::read_to_string(&file).with_context(|| format!("no profile of operation {number}"))?;
        Ok(profile::of_object(&text, program))
    };
    let totals = (1..=path.times).map(operation).collect::<anyhow::Result<Vec<Total>>>()?;
    let [instructions, calls] =
        [median(totals.iter().map(|total| total.instructions)), median(totals.iter().map(|total| total.calls))];
    if instructions == 0 {
        bail!("callgrind counted nothing of {program}");
    }
    Ok(PathCounts { instructions, calls, ..PathCounts::default() })
}

fn median(counts: impl Iterator<Item = u64>) -> u64 {
    let mut counts: Vec<u64> = counts.collect();
    counts.sort_unstable();
    counts.get(counts.len() / 2).copied().unwrap_or(0)
}

fn run(program: &Path, path: &str, file: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--tool=callgrind", "--demangle=no", "--collect-atstart=no"])
        .arg(format!("--toggle-collect=*{MEASURED}*"))
        .arg(format!("--dump-after=*{ONE_OPERATION}*"))
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(program)
        .args(["run", path]);
    let output = command.output().context("cannot run valgrind")?;
    if !output.status.success() {
        bail!("valgrind: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
