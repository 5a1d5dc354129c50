//! `scx-vsock agent` as a process.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use scx_vsock::guest::{AgentFile, Architecture};
use scx_vsock_tests::agent;

fn agent(arguments: &[&str], out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scx-vsock")).arg("agent").args(arguments).arg(out).output().unwrap()
}

fn message(output: &Output) -> String {
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

#[test]
fn the_agents_file_is_that_of_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("agent");
    for arguments in [&[][..], &["--arch", ARCH]] {
        let output = agent(arguments, &out);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert!(fs::read(&out).unwrap() == fs::read(agent::file()).unwrap(), "the bytes of ci/build-agent differ");
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o700, 0o700);
    }
    assert!(Command::new(&out).arg("--version").status().unwrap().success());
}

#[test]
fn an_agent_that_is_not_carried_is_named_with_the_commands_that_add_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("agent");
    for architecture in Architecture::ALL {
        let name = architecture.name();
        let output = agent(&["--arch", name], &out);
        if AgentFile::carried(architecture).is_ok() {
            assert!(output.status.success(), "{output:?}");
            continue;
        }
        let expected = format!(
            "scx-vsock: this build of scx-vsock has no agent for {name}: run rustup target add {name}-unknown-linux-gnu \
             && cargo install --force scx-vsock-cli, or set SCX_VSOCK_AGENT to the agent's file"
        );
        assert_eq!(message(&output), expected);
    }
}

#[test]
fn what_cannot_be_written_is_named() {
    let error = message(&agent(&[], "/proc/nowhere/agent".as_ref()));
    assert!(error.starts_with("scx-vsock: cannot write /proc/nowhere/agent: No such file"), "{error}");
    let error = message(&agent(&[], "/dev/full".as_ref()));
    assert!(error.starts_with("scx-vsock: cannot write /dev/full: No space left on device"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("agent");
    fs::write(&out, "before").unwrap();
    let mut limited = Command::new("prlimit");
    limited.arg("--fsize=100").arg(env!("CARGO_BIN_EXE_scx-vsock")).arg("agent").arg(&out);
    let error = message(&limited.output().unwrap());
    assert_eq!(error, format!("scx-vsock: cannot write {}: File too large (os error 27)", out.display()));
    assert_eq!(fs::read_to_string(&out).unwrap(), "before");
}

#[test]
fn an_unknown_architecture_is_a_usage_error() {
    let output = agent(&["--arch", "arm64"], "/nowhere".as_ref());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("use x86_64 or aarch64"), "{stderr}");
}
