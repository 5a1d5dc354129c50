//! Programs of this package, for tests of other packages, which cargo does not tell where they are.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::agent::repository;

/// The program `name` of this package, up to date.
///
/// # Panics
///
/// When it cannot be built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        // With both packages, as tests are built, nothing but the program itself is built anew.
        .args(["build", "--locked", "--quiet", "-p", "scx-vsock-tests", "-p", "scx-vsock-cli", "--bin", name])
        .current_dir(repository())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let test = env::current_exe().expect("a test is a file");
    // The test is in target/PROFILE/deps.
    test.ancestors().nth(2).expect("two folders up").join(name)
}
