//! Several runs of `scx-vsock boot`: each ends, whatever happens in its guest, and the table and the report say how.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use scx_vsock::SampleSeries;
use scx_vsock_tests::agent::repository;
use scx_vsock_tests::guest::Kernel;
use scx_vsock_tests::program;
use tempfile::TempDir;

/// A QEMU whose guest depends on the name of its kernel: one that never says anything, one that prints without end, and
/// one that crashes.
const QEMU: &str = r#"case "$*" in
    *hang*) exec sleep 100000 ;;
    *flood*) exec yes 'a console line' ;;
    *) echo 'kernel panic'; exit 1 ;;
esac"#;

/// A folder with that QEMU, an agent, a busybox and kernels of these names.
fn folder(kernels: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    program::write_script(&folder.path().join("qemu"), QEMU);
    program::write_script(&folder.path().join("agent"), "echo");
    for kernel in kernels {
        fs::write(folder.path().join(kernel), [&[0; 0x202][..], b"HdrS"].concat()).unwrap();
    }
    folder
}

fn boot(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(["boot", "--qemu", "./qemu", "--agent", "agent"]).current_dir(folder);
    command.env("SCX_VSOCK_ACCELERATOR", "tcg").env_remove("QEMU").env_remove("SCX_VSOCK_AGENT");
    command
}

/// The exit code of a command, what it printed and the lines of its messages.
fn run(command: &mut Command) -> (i32, String, Vec<String>) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let lines = text(output.stderr).lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), text(output.stdout), lines)
}

/// The names of the runs in a table.
fn names(table: &str) -> Vec<&str> {
    let rows = table.lines().filter(|line| !line.starts_with(' '));
    rows.map(|line| line.split(' ').next().unwrap()).collect()
}

#[test]
fn a_guest_that_hangs_floods_or_crashes_ends_with_its_run() {
    let folder = folder(&["hang", "flood", "crash"]);
    let mut command = boot(folder.path());
    for kernel in ["hang", "flood", "crash"] {
        command.args(["--kernel", kernel]);
    }
    command.args(["--limit", "2s", "--folder", "out", "--junit", "all.xml", "--expect", "nr <= 1"]);
    let (code, table, lines) = run(&mut command);
    assert_eq!(code, 1, "{lines:?}");
    let (rows, messages): (Vec<&str>, Vec<&str>) = table.lines().partition(|line| !line.starts_with(' '));
    assert_eq!(messages, ["hang", "flood", "crash"].map(|name| format!("  its messages: out/{name}.log")));
    let ended = "failed: it had not ended within its limit of 2 s, and was ended";
    assert!(rows[0].starts_with("hang        0 samples") && rows[0].ends_with(ended), "{table}");
    assert!(rows[1].starts_with("flood") && rows[1].ends_with(ended), "{table}");
    assert!(
        rows[2].ends_with("failed: the guest ended before its agent was ready; its last lines: kernel panic"),
        "{table}"
    );
    assert_eq!(
        lines,
        ["hang", "flood", "crash"]
            .iter()
            .zip(1..)
            .map(|(name, at)| format!("scx-vsock: run {at} of 3: {name}"))
            .collect::<Vec<_>>()
    );
    let report = fs::read_to_string(folder.path().join("all.xml")).unwrap();
    // A run that was ended has no verdicts; one that failed before its first sample has not judged any.
    assert!(report.contains(r#"tests="4" skipped="1" failures="0" errors="3""#), "{report}");
    assert!(report.contains(r#"<testsuite name="hang""#) && report.contains("kernel panic"), "{report}");
    for name in ["hang", "flood", "crash"] {
        assert!(folder.path().join(format!("out/{name}.jsonl")).exists());
    }
    let log = fs::read_to_string(folder.path().join("out/crash.log")).unwrap();
    assert!(log.contains("scx-vsock: booting crash"), "{log}");
}

#[test]
fn a_suite_file_names_its_runs() {
    let folder = folder(&["crash"]);
    fs::create_dir(folder.path().join("sub")).unwrap();
    let suite = "repetitions = 2\nlimit = '1m'\n[[kernel]]\nname = 'mine'\nfile = '../crash'\n";
    fs::write(folder.path().join("sub/suite.toml"), suite).unwrap();
    let (code, table, lines) = run(boot(folder.path()).args(["--suite", "sub/suite.toml"]));
    assert_eq!((code, lines.len()), (1, 2), "{lines:?}");
    assert_eq!(names(&table), ["mine-1", "mine-2"]);
    let (_, table, _) = run(boot(folder.path()).args(["--suite", "sub/suite.toml", "--repetitions", "1"]));
    assert_eq!(names(&table), ["mine"]);
    let of_one =
        ["--suite", "sub/suite.toml", "--repetitions", "1", "--topology", "cores=2", "--topology", "threads=2"];
    let (_, table, _) = run(boot(folder.path()).args(of_one));
    assert_eq!(names(&table), ["mine-cores2", "mine-threads2"]);
}

/// A QEMU that ends when another one has been started beside it.
const IN_PAIRS: &str = r#"case "$*" in
    *first*) echo >pipe ;;
    *) read -r line <pipe ;;
esac
echo 'kernel panic'; exit 1"#;

#[test]
fn jobs_are_runs_at_once() {
    let folder = folder(&["first", "second"]);
    program::write_script(&folder.path().join("qemu"), IN_PAIRS);
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    let arguments = ["--kernel", "first", "--kernel", "second", "--repetitions", "2", "--jobs", "2", "--limit", "60s"];
    let (_, table, lines) = run(boot(folder.path()).args(arguments));
    assert_eq!(names(&table), ["first-1", "second-1", "first-2", "second-2"], "{lines:?}");
    assert_eq!(table.matches("its last lines: kernel panic\n").count(), 4, "{table}");
}

#[test]
fn the_guides_suite_is_one() {
    let folder = folder(&[]);
    let page = fs::read_to_string(repository().join("host/guide/suite.md")).unwrap();
    let suite = page.split("\n```toml\n").nth(1).unwrap().split("\n```").next().unwrap();
    fs::write(folder.path().join("suite.toml"), suite).unwrap();
    let (code, table, _) = run(boot(folder.path()).args(["--suite", "suite.toml"]));
    assert_eq!(names(&table), ["old-1", "new-1", "old-2", "new-2", "old-3", "new-3", "old-4", "new-4"], "{table}");
    assert!(code == 1 && table.matches("failed: ").count() == 8 && table.contains("vmlinuz"), "{table}");
}

#[test]
fn wrong_suites_are_one_line() {
    let folder = folder(&["a"]);
    fs::write(folder.path().join("suite.toml"), "[[kernel]]\nfile = 'a'\nmodule = 'm'\n").unwrap();
    for (arguments, message) in [
        (
            &["--suite", "suite.toml"][..],
            "suite.toml: line 3, column 1: there is no key \"module\"; the nearest is modules; try 'scx-vsock boot --help'",
        ),
        (&["--suite", "nowhere"], "cannot read nowhere: No such file or directory (os error 2)"),
        (
            &["--kernel", "a", "--kernel", "a"],
            "two runs are named a; give kernels and schedulers names of their own; try 'scx-vsock boot --help'",
        ),
        (
            &["--kernel", "a", "--kernel", "b", "--modules", "m"],
            "--kernel is given 2 times and --modules 1 times; give --modules for every kernel or for none; try 'scx-vsock boot --help'",
        ),
        (
            &["--kernel", "a", "--repetitions", "2", "--console", "c"],
            "--console and --hybrid are of one run, and there are several; try 'scx-vsock boot --help'",
        ),
        (
            &["--kernel", "a", "--jobs", "2"],
            "--jobs is of several runs: give --suite, --repetitions, or several --kernel, --topology or --scheduler; try 'scx-vsock boot --help'",
        ),
        (&["--kernel", "a", "--kernel", "b", "--folder", "qemu"], "cannot create qemu: File exists (os error 17)"),
    ] {
        let (_, _, lines) = run(boot(folder.path()).args(arguments));
        assert_eq!(lines, [format!("scx-vsock: {message}")]);
    }
}

#[test]
fn a_run_ends_with_the_suite() {
    let folder = folder(&["hang"]);
    let script = "echo $$ >>started; exec sleep 100000";
    program::write_script(&folder.path().join("qemu"), script);
    let status = Command::new("mkfifo").arg(folder.path().join("started")).status().unwrap();
    assert!(status.success());
    let mut suite =
        boot(folder.path()).args(["--kernel", "hang", "--repetitions", "2"]).stderr(Stdio::null()).spawn().unwrap();
    let process = fs::read_to_string(folder.path().join("started")).unwrap();
    let process = rustix::process::Pid::from_raw(process.trim().parse().unwrap()).unwrap();
    let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
    suite.kill().unwrap();
    assert_eq!(suite.wait().unwrap().signal(), Some(9));
    // It becomes readable when the process ends.
    let mut wait = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut wait, None), Ok(1));
}

#[test]
#[ignore = "boots QEMU guests; run ci/test schedulers"]
fn schedulers_that_hang_crash_or_flood_end_with_their_runs() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = Kernel::of_this_run();
    for (name, script) in
        [("hangs", "sleep 100000"), ("crashes", "kill -SEGV $$"), ("floods", "while :; do echo flood; done")]
    {
        program::write_script(&folder.path().join(name), script);
    }
    let suite = format!(
        "limit = '120s'\nsamples = 2\nexpect = ['holes(kernel) = 0']\n[[kernel]]\nfile = {:?}\nmodules = {:?}\n\
         [[scheduler]]\nprogram = './hangs'\n[[scheduler]]\nprogram = './crashes'\n[[scheduler]]\nprogram = './floods'\nno-stats = true\n",
        kernel.image, kernel.modules
    );
    fs::write(folder.path().join("suite.toml"), suite).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    let arguments = ["boot", "--suite", "suite.toml", "--jobs", "2", "--jsonl"];
    let (code, samples, lines) = run(command.current_dir(folder.path()).args(arguments));
    let table = lines.get(3..).unwrap_or_default().join("\n");
    let rows: Vec<&str> = table.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!((code, rows.len()), (1, 3), "{lines:?}");
    assert!(rows[0].contains("failed: it had not ended within its limit of 120 s"), "{table}");
    assert!(rows[1].contains("failed: the scheduler crashes"), "{table}");
    assert!(rows[2].contains("2 samples") && rows[2].ends_with("ok, all expectations met"), "{table}");
    let named = samples.lines().map(|line| line.starts_with("{\"run\":\"floods\",\"tag\":\"sample "));
    assert_eq!(named.collect::<Vec<_>>(), [true, true], "{samples}");
    let read = SampleSeries::from_json_lines(&samples).unwrap();
    assert!(read.samples().len() == 2 && read.samples().iter().all(|sample| sample.kernel.is_some()), "{samples}");
}
