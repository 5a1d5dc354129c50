//! This package's programs, for the tests of others: they have no other way to them.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::agent;

/// A program of this package, built where it is not yet.
///
/// # Panics
///
/// When it cannot be built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(agent::repository());
    // With the packages whose tests run together, so that what they share is not built in two ways.
    build.args(["build", "--locked", "--quiet", "-p", "scx-vsock-tests", "-p", "scx-vsock-cli", "--bin", name]);
    assert!(build.status().expect("cargo runs").success(), "{name} cannot be built");
    let test = env::current_exe().expect("a program");
    // A test stands in a folder beside the programs.
    test.parent().and_then(Path::parent).expect("two folders").join(name)
}

/// A program that every signal acts upon. Tests may be started with some ignored, as under nohup or behind a shell's `&`,
/// and their children inherit that.
pub fn with_all_signals(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(program);
    command
}

/// Copies a program, to be run from there.
///
/// Another process does it: a child that another thread starts meanwhile would inherit this process' descriptor for
/// writing, and a file that anybody can write to cannot be run.
///
/// # Panics
///
/// When it cannot be copied.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "{} cannot be copied", from.display());
}

/// Makes a shell script that can be run, in the same way.
///
/// # Panics
///
/// When it cannot be made.
pub fn write_script(path: &Path, text: &str) {
    let status = Command::new("sh")
        .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 755 "$0""#])
        .args([path.as_os_str(), text.as_ref()])
        .status()
        .expect("sh runs");
    assert!(status.success(), "{} cannot be written", path.display());
}
