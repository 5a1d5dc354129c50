//! `scx-vsock boot` as a process: its errors when something is missing, and that nothing outlives it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use scx_vsock_tests::agent;
use scx_vsock_tests::guest::Kernel;
use scx_vsock_tests::program;
use tempfile::TempDir;

fn boot() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.arg("boot").env_remove("SCX_VSOCK_AGENT").env_remove("QEMU");
    command
}

/// A folder with a stand-in for every file that a guest needs, so that one can be taken away.
fn stand_ins() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["kernel", "agent", "qemu", "scheduler", "busybox"] {
        let file = folder.path().join(name);
        program::write_script(&file, "echo it ends");
    }
    folder
}

/// The exit code and the error of boot with all stand-ins but one, and the path of that one.
fn error_without(missing: &str) -> (i32, String, PathBuf) {
    let folder = stand_ins();
    let path = |name: &str| folder.path().join(name);
    if !missing.is_empty() {
        fs::remove_file(path(missing)).unwrap();
    }
    let mut command = boot();
    for name in ["kernel", "agent", "qemu", "scheduler"] {
        command.arg(format!("--{name}")).arg(path(name));
    }
    let output = command.env("PATH", folder.path()).env("SCX_VSOCK_ACCELERATOR", "tcg").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let error = stderr.lines().last().unwrap().to_owned();
    (output.status.code().unwrap(), error, path(missing))
}

#[test]
fn a_missing_file_is_named_with_its_fix() {
    for (missing, fix) in [
        ("kernel", "name a file that is there and can be read"),
        ("agent", "name a file that is there and can be read"),
        ("qemu", "install QEMU, Debian's package qemu-system-x86, or set QEMU to its path"),
        ("scheduler", "name the scheduler's file, or put its folder into PATH"),
    ] {
        let (code, error, path) = error_without(missing);
        assert!(error.contains(&format!("{} ({fix}): No such file", path.display())), "{error}");
        assert_eq!(code, 1);
    }
    let (code, error, _) = error_without("busybox");
    assert!(
        code == 1 && error.contains("cannot find busybox in PATH: install it (Debian's package busybox-static)"),
        "{error}"
    );
}

#[test]
fn a_qemu_that_exits_at_once_is_quoted() {
    let (code, error, _) = error_without("");
    assert_eq!(error, "scx-vsock: the guest ended before its agent was ready; its last lines: it ends");
    assert_eq!(code, 1);
}

#[test]
fn a_missing_agent_is_named_with_its_fix() {
    let folder = stand_ins();
    let output = boot()
        .arg("--kernel")
        .arg(folder.path().join("kernel"))
        .env("PATH", folder.path())
        .args(["--qemu", "/bin/true"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.trim_end().ends_with("set SCX_VSOCK_AGENT to its path, or put scx-vsock-agent beside this program"),
        "{stderr}"
    );
}

#[test]
fn wrong_arguments_are_named() {
    for (arguments, named) in [
        (&[][..], "--kernel"),
        (&["--kernel", "k", "--samples", "0"], "--samples"),
        (&["--kernel", "k", "--interval", "0"], "--interval"),
        (&["--kernel", "k", "--cpus", "x"], "--cpus"),
        (&["--kernel", "k", "--scheduler-arg", "-v"], "--scheduler"),
        (&["--kernel", "k", "--samples", "3", "--", "true"], "--samples"),
        (&["--kernel", "k", "true"], "'true'"),
        (&["--colonel", "k"], "--colonel"),
    ] {
        let output = boot().args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(named), "{arguments:?}: {stderr}");
    }
}

fn booted(arguments: &[&str]) -> Command {
    let kernel = Kernel::of_this_run();
    let mut command = boot();
    command.arg("--kernel").arg(&kernel.image).arg("--modules").arg(&kernel.modules);
    command.arg("--agent").arg(agent::file()).args(arguments);
    command
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_commands_output_and_exit_code_are_boots() {
    let output = booted(&["--jsonl", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(7) && stderr.ends_with("out\nerr\n"), "{stderr}");
    // Without a scheduler the samples say so.
    assert!(String::from_utf8(output.stdout).unwrap().contains(r#""stats":{"Err":"NoSchedulerBinary"}"#));
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_scheduler_that_exits_at_once_is_named() {
    let output = booted(&["--timeout", "15", "--scheduler", "/bin/false"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let error = stderr.lines().last().unwrap();
    // The agent is there, and says what it found instead of a scheduler.
    assert!(output.status.code() == Some(11) && error.contains("false does not serve stats"), "{error}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_guest_does_not_outlive_a_command_that_is_killed() {
    let mut child = booted(&["--", "sleep", "1000"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("the agent is ready")));
    let guest = children(child.id()).pop().unwrap();
    let guest = pidfd_open(guest, PidfdFlags::empty()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let within = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&guest, PollFlags::IN)], Some(&within)).unwrap(), 1, "QEMU still runs");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn others_reach_the_guest_by_its_hybrid_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest").to_str().unwrap().to_owned();
    let procsched = program::built("procsched").to_str().unwrap().to_owned();
    let options = ["--hybrid", &path, "--scheduler", &procsched, "--", "sleep", "1000"];
    let mut child = booted(&options).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let uri = format!("hybrid:{path}");
    let stats = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
        command.args(["stats", &uri]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    assert!(lines.any(|line| line.unwrap().contains("booting")));
    let early = stats(&["--wait", "300"]);
    assert!(lines.any(|line| line.unwrap().contains("procsched serves stats")));
    for asks in [early, stats(&[])] {
        let output = asks.wait_with_output().unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains("totals.ctxt"), "{:?}", output.stderr);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_wrong_hybrid_socket_fails_before_booting() {
    let output = boot().args(["--kernel", "/nowhere/k", "--hybrid", "/nowhere/guest"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = "scx-vsock: the folder of /nowhere/guest does not exist: create it, or choose another path\n";
    assert_eq!((stderr.as_str(), output.status.code()), (expected, Some(1)));
}

/// The processes that a process started.
fn children(process: u32) -> Vec<Pid> {
    let tasks = fs::read_dir(Path::new("/proc").join(process.to_string()).join("task")).unwrap();
    let text: Vec<String> =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap()).collect();
    let ids = text.iter().flat_map(|text| text.split_whitespace());
    ids.filter_map(|id| Pid::from_raw(id.parse().unwrap())).collect()
}
