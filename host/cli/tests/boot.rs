//! `scx-vsock boot` as a process: its errors when something is missing, and that nothing outlives it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use scx_vsock_tests::guest::Kernel;
use scx_vsock_tests::program;
use scx_vsock_tests::terminal::Terminal;
use tempfile::TempDir;

fn boot() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(["boot", "--vmm", "qemu"]).env_remove("SCX_VSOCK_AGENT").env_remove("QEMU");
    command
}

/// What is taken for a bzImage: its magic at its offset.
fn bzimage() -> Vec<u8> {
    [&[0; 0x202][..], b"HdrS"].concat()
}

/// What is taken for an arm64 Image.
fn arm64_image() -> Vec<u8> {
    [&[0; 56][..], b"ARM\x64"].concat()
}

/// A folder with a stand-in for every file that a guest needs, so that one can be taken away.
fn stand_ins() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["agent", "qemu", "scheduler", "busybox"] {
        let file = folder.path().join(name);
        program::write_script(&file, "echo it ends");
    }
    fs::write(folder.path().join("kernel"), bzimage()).unwrap();
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

/// A boot whose QEMU is this script.
fn boot_with_qemu(folder: &TempDir, script: &str) -> Command {
    program::write_script(&folder.path().join("qemu"), script);
    let mut command = program::with_all_signals(env!("CARGO_BIN_EXE_scx-vsock"));
    command.arg("boot");
    for name in ["kernel", "agent", "qemu"] {
        command.arg(format!("--{name}")).arg(folder.path().join(name));
    }
    command.env("SCX_VSOCK_ACCELERATOR", "tcg").stderr(Stdio::piped());
    command
}

/// Starts a boot; returns it once its QEMU, which prints a line, runs, with the line.
fn started(command: &mut Command, console: &Path) -> (Child, String) {
    let status = Command::new("mkfifo").arg(console).status().unwrap();
    assert!(status.success());
    let child = command.arg("--console").arg(console).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(File::open(console).unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

#[test]
fn a_missing_temporary_folder_is_named() {
    let folder = stand_ins();
    let output = boot_with_qemu(&folder, "echo it ends").env("TMPDIR", "/no/such/folder").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected =
        "cannot create a temporary folder in /no/such/folder (set TMPDIR to a folder that can be written): No such";
    assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr}");
}

#[test]
fn a_long_temporary_folder_works() {
    let folder = stand_ins();
    let long = folder.path().join("x".repeat(150));
    fs::create_dir(&long).unwrap();
    let output = boot_with_qemu(&folder, "echo it ends").env("TMPDIR", &long).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.ends_with("its last lines: it ends\n"), "{stderr}");
}

#[test]
fn the_console_is_written_to_a_file() {
    let folder = stand_ins();
    let file = folder.path().join("console");
    let output = boot_with_qemu(&folder, "printf 'it \\033[Kends\\n'").arg("--console").arg(&file).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.ends_with("its last lines: it ends\n"), "{stderr}");
    assert_eq!(fs::read(&file).unwrap(), b"it \x1b[Kends\n");
    let output = boot_with_qemu(&folder, "echo it ends").args(["--console", "/nowhere/file"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("cannot create /nowhere/file for the guest's console"), "{stderr}");
}

#[test]
fn a_signal_leaves_no_hybrid_socket() {
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        let folder = stand_ins();
        let socket = folder.path().join("guest");
        let mut command = boot_with_qemu(&folder, "echo $$; exec /bin/sleep 1000");
        let (mut child, line) = started(command.arg("--hybrid").arg(&socket), &folder.path().join("console"));
        let qemu = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let qemu = pidfd_open(qemu, PidfdFlags::empty()).unwrap();
        assert!(socket.exists());
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(program::end_of(&mut child).signal(), Some(signal.as_raw()));
        assert!(!socket.exists() && program::has_ended(&qemu));
    }
}

#[test]
fn a_killed_boots_hybrid_socket_is_replaced() {
    let folder = stand_ins();
    let socket = folder.path().join("guest");
    let mut command = boot_with_qemu(&folder, "echo up; exec /bin/sleep 1000");
    let (mut child, _) = started(command.arg("--hybrid").arg(&socket), &folder.path().join("console"));
    child.kill().unwrap();
    child.wait().unwrap();
    let output = boot_with_qemu(&folder, "echo it ends").arg("--hybrid").arg(&socket).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.ends_with("its last lines: it ends\n") && !socket.exists(), "{stderr}");
}

/// Kills a boot whose QEMU is this script, which prints the id of a process first; that must end with it.
fn assert_ends_with_boot(script: &str) {
    let folder = stand_ins();
    let mut command = boot_with_qemu(&folder, script);
    let (mut child, line) = started(&mut command, &folder.path().join("console"));
    let qemu = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    let qemu = pidfd_open(qemu, PidfdFlags::empty()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(program::has_ended(&qemu));
}

#[test]
fn what_a_wrapper_of_qemu_started_ends_with_boot() {
    assert_ends_with_boot("/bin/sleep 1000 & echo $!; wait");
}

/// The error of a boot with stand-ins, without an agent of its own and with these further options.
fn error_of(folder: &TempDir, options: &[&str]) -> String {
    let mut command = boot();
    command.args(["--qemu", "/bin/true", "--kernel"]).arg(folder.path().join("kernel")).args(options);
    let output = command.env("PATH", folder.path()).env("SCX_VSOCK_ACCELERATOR", "tcg").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap().lines().last().unwrap().to_owned()
}

#[test]
fn a_qemu_in_a_session_of_its_own_is_asked_to_end() {
    // It reads its end of the QMP connection, and that of the other side never hangs up.
    let qemu = "echo $$; while read -r line <&23; do [[ $line != *quit* ]] || exit; done; exec /bin/sleep 1000";
    assert_ends_with_boot(&format!("setsid bash -c '{qemu}' & wait"));
}

#[test]
fn the_carried_agent_is_in_the_guest() {
    let error = error_of(&stand_ins(), &[]);
    assert!(error.starts_with("scx-vsock: the guest ended before its agent was ready"), "{error}");
}

#[test]
fn a_file_that_is_no_kernel_is_named() {
    let folder = stand_ins();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, "no kernel").unwrap();
    let expected = format!("scx-vsock: {} is no kernel that a guest boots: name a bzImage", kernel.display());
    let error = error_of(&folder, &[]);
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn a_program_for_another_architecture_than_the_kernels_is_named() {
    let folder = stand_ins();
    fs::write(folder.path().join("kernel"), arm64_image()).unwrap();
    let agent = folder.path().join("agent").to_str().unwrap().to_owned();
    for (what, options) in [
        ("the agent", &["--agent", "/proc/self/exe"][..]),
        ("the scheduler", &["--agent", &agent, "--scheduler", "/proc/self/exe"]),
        ("busybox", &["--busybox", "/proc/self/exe"]),
    ] {
        let error = error_of(&folder, options);
        let expected = "/proc/self/exe is for x86_64, but the guest is for aarch64: name one for aarch64";
        assert_eq!(error, format!("scx-vsock: {what} {expected}"));
    }
}

#[test]
fn wrong_arguments_are_named() {
    for (arguments, named) in [
        (&[][..], "--kernel"),
        (&["--kernel", "k", "--samples", "0"], "--samples"),
        (&["--kernel", "k", "--interval", "0"], "--interval"),
        (&["--kernel", "k", "--cpus", "x"], "--cpus"),
        (&["--kernel", "k", "--scheduler-arg", "-v"], "--scheduler"),
        (&["--kernel", "k", "--require-stats"], "--scheduler"),
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
    command.args(arguments);
    command
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_commands_output_and_exit_code_are_boots() {
    let folder = tempfile::tempdir().unwrap();
    let (load, junit) = (folder.path().join("load"), folder.path().join("junit.xml"));
    program::write_script(&load, "echo out; echo err >&2; cat /etc/data; exit 7");
    std::fs::write(folder.path().join("data"), "of a file\n").unwrap();
    let data = format!("{}=/etc/data", folder.path().join("data").display());
    let arguments = ["--program", load.to_str().unwrap(), "--file", &data, "--junit", junit.to_str().unwrap()];
    let output = booted(&[&arguments[..], &["--jsonl", "--", "load"]].concat()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(7) && stderr.contains("\nout\n") && stderr.contains("\nerr\n"), "{stderr}");
    assert!(stderr.contains("\nof a file\n"), "{stderr}");
    assert!(stderr.ends_with("\nscx-vsock: the command exited with status 7\n"), "{stderr}");
    let junit = std::fs::read_to_string(junit).unwrap();
    assert!(junit.contains("<error message=\"the command exited with status 7\""), "{junit}");
    // Without a scheduler the samples say so.
    assert!(String::from_utf8(output.stdout).unwrap().contains(r#""stats":{"Err":"NoSchedulerBinary"}"#));
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_command_that_goes_on_ends_at_the_limit() {
    // The command itself says that the limit is not over yet.
    let arguments = ["--limit", "45s", "--", "sh", "-c", "echo begun; exec sleep 100000"];
    let output = booted(&arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = "scx-vsock: the run had not ended within its limit of 45 s (--limit)\n";
    assert!(output.status.code() == Some(1) && stderr.contains("\nbegun\n") && stderr.ends_with(expected), "{stderr}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_commands_output_comes_clean_to_a_terminal() {
    let mut terminal = Terminal::new(80, 24);
    // It prints before it ends, which is long after the test.
    let script =
        r"printf 'a\033[2J\033]0;t\007b\342\200\256c\342\201\246d\001e\n'; printf 'err\033[1mor\n' >&2; sleep 1000";
    let mut command = booted(&["--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::null()).stderr(terminal.stdio()).spawn().unwrap();
    drop(command);
    let boots = Duration::from_secs(300);
    let mut printed = terminal.wait_for_within(r"ab\u{202e}c\u{2066}de", boots);
    // Two outputs come in any order.
    if !printed.contains("error") {
        printed += &terminal.wait_for_within("error", boots);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    printed += &terminal.rest();
    assert!(!printed.contains(['\u{1b}', '\u{7}', '\u{1}', '\u{202e}', '\u{2066}']), "{printed:?}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_scheduler_that_exits_at_once_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let scheduler = folder.path().join("scx_broken");
    program::write_script(&scheduler, "printf '\\033[31mError:\\033[0m no BTF\\n' >&2; exit 5");
    // No test waits for this time.
    let output = booted(&["--timeout", "9999", "--scheduler", scheduler.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = "scx-vsock: the scheduler scx_broken exited with status 5; its last lines: Error: no BTF";
    assert_eq!((stderr.lines().last().unwrap(), output.status.code()), (expected, Some(3)));
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_scheduler_without_stats_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let scheduler = folder.path().join("scx_quiet");
    program::write_script(&scheduler, "sleep 100000");
    // No test waits for this time.
    let arguments = ["--timeout", "9999", "--no-stats", "--samples", "1", "--jsonl", "--expect", "holes(kernel) = 0"];
    let output = booted(&[&arguments[..], &["--scheduler", scheduler.to_str().unwrap()]].concat()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), stdout.lines().count()), (Some(0), 1), "{stderr}");
    assert!(stdout.contains(r#""stats":{"Err":{"NoScheduler""#) && stdout.contains(r#""kernel":{"Ok":{"#), "{stdout}");
    assert!(stderr.ends_with("scx-vsock: holes(kernel) = 0: held: 1 value\n"), "{stderr}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn missing_vsock_modules_are_named_at_once() {
    let kernel = Kernel::of_this_run();
    let mut command = boot();
    command.args(["--timeout", "9999", "--kernel"]).arg(&kernel.image);
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let error = stderr.lines().last().unwrap();
    let expected = "scx-vsock: the guest's kernel has no virtio-vsock device (name the folder with its modules";
    assert!(output.status.code() == Some(1) && error.starts_with(expected), "{error}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_required_scheduler_that_disappears_ends_the_run() {
    let procsched = program::built("procsched").to_str().unwrap().to_owned();
    // The command prints before it ends, which it never does.
    let script = "echo early; kill $(pidof procsched); sleep 100000";
    let arguments = ["--require-stats", "--scheduler", &procsched, "--", "sh", "-c", script];
    let output = booted(&arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let error = stderr.lines().last().unwrap();
    let expected = "scx-vsock: the scheduler procsched was ended by signal 15; its last lines:";
    assert!(output.status.code() == Some(3) && error.starts_with(expected), "{error}");
    assert!(stderr.contains("\nearly\n"), "{stderr}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_scheduler_that_disappears_is_a_warning() {
    let procsched = program::built("procsched").to_str().unwrap().to_owned();
    let script = "kill $(pidof procsched); while pidof procsched; do :; done; exit 7";
    let output = booted(&["--scheduler", &procsched, "--", "sh", "-c", script]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = "\nscx-vsock: warning: the scheduler procsched was ended by signal 15; its last lines:";
    assert!(output.status.code() == Some(7) && stderr.contains(expected), "{stderr}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_guest_does_not_outlive_a_command_that_is_killed() {
    let mut child = booted(&["--", "sleep", "1000"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("the agent is ready")));
    let started = children(child.id()).into_iter().map(|process| pidfd_open(process, PidfdFlags::empty()).unwrap());
    let started: Vec<OwnedFd> = started.collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(started.len() == 2 && started.iter().all(program::has_ended), "QEMU and its guard have ended");
}

/// The process whose id is in a file.
fn process_of(file: &Path) -> OwnedFd {
    let id = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    pidfd_open(Pid::from_raw(id).unwrap(), PidfdFlags::empty()).unwrap()
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_wrapped_qemu_in_a_session_of_its_own_ends_with_boot() {
    let folder = tempfile::tempdir().unwrap();
    let (wrapper, id) = (folder.path().join("qemu"), folder.path().join("id"));
    program::write_script(&wrapper, &format!("setsid qemu-system-x86_64 -pidfile {} \"$@\" & wait", id.display()));
    for is_killed in [true, false] {
        let mut command = booted(&["--qemu", wrapper.to_str().unwrap(), "--", "cat"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("the agent is ready")));
        let qemu = process_of(&id);
        let signal = if is_killed { Signal::KILL } else { Signal::TERM };
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
        assert!(program::has_ended(&qemu), "{signal:?}");
    }
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
