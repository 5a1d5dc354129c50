//! This package's programs, for the tests of others: they have no other way to them.

use std::env;
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
