//! The library's build script: what it carries where it does not build the agent. That it builds the agent as
//! `ci/build-agent` does is a test of the command.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scx_vsock_tests::agent::repository;
use tempfile::TempDir;

/// The build script, and the folder that it writes to.
struct Recipe {
    folder: TempDir,
}

impl Recipe {
    fn compile() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc
            .args(["--edition", "2024", "-o"])
            .arg(folder.path().join("recipe"))
            .arg(repository().join("host/build.rs"));
        assert!(rustc.status().unwrap().success());
        Self { folder }
    }

    /// Runs it with only these variables beside the folder.
    fn run(&self, variables: &[(&str, &Path)]) -> Output {
        let mut command = Command::new(self.folder.path().join("recipe"));
        command.env_clear().env("OUT_DIR", self.folder.path()).env("CARGO_FEATURE_QEMU", "1");
        command.envs(variables.iter().copied()).output().unwrap()
    }

    fn carried(&self, architecture: &str) -> PathBuf {
        self.folder.path().join(architecture).join("scx-vsock-agent")
    }
}

#[test]
fn a_given_program_is_carried_and_no_cargo_runs() {
    let recipe = Recipe::compile();
    let program = env::current_exe().unwrap();
    let output = recipe.run(&[("SCX_VSOCK_AGENT", &program)]);
    assert!(output.status.success(), "{output:?}");
    for architecture in ["x86_64", "aarch64"] {
        let expected = if architecture == env::consts::ARCH { fs::read(&program).unwrap() } else { Vec::new() };
        assert!(fs::read(recipe.carried(architecture)).unwrap() == expected, "{architecture}");
    }
}

#[test]
fn a_given_file_that_is_no_program_is_named() {
    let recipe = Recipe::compile();
    for (file, error) in [
        ("/etc/passwd", "/etc/passwd is no program for x86_64 or aarch64: set SCX_VSOCK_AGENT to the agent's file\n"),
        ("/nowhere/agent", "cannot read /nowhere/agent (set SCX_VSOCK_AGENT to the agent's file): No such file"),
    ] {
        let output = recipe.run(&[("SCX_VSOCK_AGENT", file.as_ref())]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.starts_with(error), "{stderr}");
    }
}

#[test]
fn documentation_is_built_without_an_agent() {
    let recipe = Recipe::compile();
    let output = recipe.run(&[("DOCS_RS", "1".as_ref())]);
    assert!(output.status.success(), "{output:?}");
    assert!(["x86_64", "aarch64"].iter().all(|name| fs::read(recipe.carried(name)).unwrap().is_empty()));
}
