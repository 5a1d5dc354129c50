//! The programs of this workspace, for the tests of other packages, which have no `CARGO_BIN_EXE_` variables for them.

use std::env;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::agent;

/// Builds a program of this workspace, unless it is up to date, and returns its path.
///
/// # Panics
///
/// When it cannot be built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(agent::repository());
    // What cargo has set for the test: a build script of a dependency that reads it would run again, here and then outside.
    let is_of_test = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"CARGO_PKG_") || name.starts_with(b"CARGO_MANIFEST_")
    };
    env::vars_os().map(|(name, _)| name).filter(|name| is_of_test(name)).for_each(|name| {
        build.env_remove(name);
    });
    // Together with the command's package, as its tests are built: cargo then unifies features in the same way.
    build.args(["build", "--locked", "--quiet", "-p", "scx-vsock-tests", "-p", "scx-vsock-cli"]);
    build.args(["-p", "scx-vsock-procsched", "--bin", name]);
    assert!(build.status().expect("cargo runs").success(), "{name} cannot be built");
    let test = env::current_exe().expect("a program");
    // Cargo puts a test into a folder `deps` beside the programs.
    test.parent().and_then(Path::parent).expect("two folders").join(name)
}

/// Returns a command that runs a program with the default action for every signal.
///
/// Tests may be started with some signals ignored, by nohup or a shell's `&`, and their children inherit that.
pub fn with_all_signals(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(program);
    command
}

/// Waits for the end of a process.
///
/// # Panics
///
/// When it has not ended after a minute. It is killed then.
pub fn end_of(child: &mut Child) -> ExitStatus {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("it was not waited for");
    let has_ended = has_ended(&process);
    let _ended_already = child.kill();
    let status = child.wait().expect("its end can be waited for");
    assert!(has_ended, "the process goes on");
    status
}

/// Waits for at most a minute until a process ends. Returns whether it did.
///
/// # Panics
///
/// When the kernel refuses to wait for it.
#[must_use]
pub fn has_ended(process: &OwnedFd) -> bool {
    let within = Timespec { tv_sec: 60, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&within)).expect("a descriptor to wait on") == 1
}

/// Copies a program, so that the copy can be run.
///
/// A process of its own copies it: a child that another thread forks meanwhile would inherit this process's descriptor
/// for writing, and a file that is open for writing cannot be executed (ETXTBSY).
///
/// # Panics
///
/// When it cannot be copied.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "{} cannot be copied", from.display());
}

/// Writes an executable shell script, by a process of its own like [`copy`].
///
/// # Panics
///
/// When it cannot be written.
pub fn write_script(path: &Path, text: &str) {
    let status = Command::new("sh")
        .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 755 "$0""#])
        .args([path.as_os_str(), text.as_ref()])
        .status()
        .expect("sh runs");
    assert!(status.success(), "{} cannot be written", path.display());
}
