//! A copy of this repository's sources with a patch: faults are planted from outside, never in production code.

use std::process::Command;

use tempfile::TempDir;

use crate::agent::repository;

/// What a build of the agent reads: the workspace with all its members.
const SOURCES: [&str; 8] = ["Cargo.toml", "Cargo.lock", "README.md", "ci", "shared", "guest-agent", "host", "tests"];

/// Copies the sources and applies `patch`, a file of this repository, at their top.
///
/// # Panics
///
/// When the patch does not apply.
#[must_use]
pub fn copy(patch: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary folder");
    run(Command::new("cp").arg("-r").args(SOURCES.map(|name| repository().join(name))).arg(copy.path()));
    // No repository around the folder for temporary files takes part.
    let mut apply = Command::new("git");
    apply.arg("apply").arg(repository().join(patch)).current_dir(copy.path()).env("GIT_DIR", copy.path());
    run(&mut apply);
    copy
}

fn run(command: &mut Command) {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
