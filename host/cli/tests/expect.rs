//! `--expect` of `watch` and `boot` as processes: verdicts, the exit code, the report, and what is wrong input.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::iter;
use std::path::Path;
use std::process::Command;

use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::scripted_scheduler::Script;
use scx_vsock_wire::RelayError;
use serde_json::json;

/// The exit code of a command, what it printed and the lines of its messages.
fn run(arguments: &[&str]) -> (i32, String, Vec<String>) {
    let output = Command::new(env!("CARGO_BIN_EXE_scx-vsock")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let lines = text(output.stderr).lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), text(output.stdout), lines)
}

/// An agent whose scheduler always reports three running tasks.
fn agent() -> FakeAgent {
    let answer = json!({ "errno": 0, "args": { "resp": { "nr_running": 3 } } }).to_string();
    FakeAgent::start(iter::repeat(Script::agent().forever(Script::new().line().stats(answer))))
}

/// Two samples, for each of which the agent has a second.
fn watch<'a>(uri: &'a str, expectations: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["watch", uri, "--interval", "1s", "--samples", "2"];
    expectations.iter().for_each(|text| arguments.extend(["--expect", text]));
    arguments
}

fn uri(agent: &FakeAgent) -> String {
    format!("unix:{}", agent.path().display())
}

#[test]
fn what_holds_is_success() {
    let agent = agent();
    let (code, printed, lines) = run(&watch(&uri(&agent), &["nr_running<=64", "eventually nr_running > 0 within 1m"]));
    assert_eq!((code, printed.lines().count()), (0, 2), "{lines:?}");
    let expected = [
        "scx-vsock: nr_running <= 64: held: 2 values",
        "scx-vsock: eventually nr_running > 0 within 60s: held: 2 values",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn what_is_broken_or_has_no_data_is_a_failure() {
    let (agent, folder) = (agent(), tempfile::tempdir().unwrap());
    let (address, report) = (uri(&agent), folder.path().join("report.xml"));
    let mut arguments = watch(&address, &["nr_running <= 2", "nr_runing <= 2", "holes(stats) = 0"]);
    arguments.extend(["--junit", report.to_str().unwrap()]);
    let (code, _, lines) = run(&arguments);
    assert_eq!(code, 4);
    assert!(lines[0].starts_with("scx-vsock: nr_running <= 2: broken: sample 1 ("), "{lines:?}");
    assert!(lines[0].ends_with("is 3, not <= 2; after it 3"), "{lines:?}");
    let no_data = "scx-vsock: nr_runing <= 2: no data: there is no nr_runing; the nearest is nr_running (2 samples)";
    let rest = [no_data, "scx-vsock: holes(stats) = 0: held: 2 values", "scx-vsock: 2 of 3 expectations were not met"];
    assert_eq!(lines[1..], rest);
    let report = fs::read_to_string(report).unwrap();
    assert!(report.contains(r#"tests="4" skipped="0" failures="2" errors="0""#), "{report}");
    assert!(report.contains(r#"<testcase name="nr_running &lt;= 2""#), "{report}");
}

#[test]
fn guests_are_judged_each_by_itself() {
    let (one, other) = (agent(), agent());
    let (one, other) = (uri(&one), uri(&other));
    let mut arguments = watch(&one, &["nr_running = 3"]);
    arguments.insert(2, &other);
    let (code, _, lines) = run(&arguments);
    let line = |uri: &str| format!("scx-vsock: {uri}: nr_running = 3: held: 2 values");
    assert_eq!((code, lines), (0, vec![line(&one), line(&other)]));
}

#[test]
fn what_the_kernel_says_is_judged_without_stats() {
    let said = json!({ "state": "enabled", "ops": "simple", "enable_seq": "1", "uptime_us": 1 });
    let none = RelayError::NoScheduler { errno: 2, sched_ext: "enabled", ops: "simple", cause: "" };
    let stats = Script::new().line().relay_error(none);
    // The session for stats is the first, since the baseline is primed.
    let scripts = [Script::agent().forever(stats), Script::agent().forever(Script::new().sched_ext(&said))];
    let agent = FakeAgent::start(scripts);
    let address = uri(&agent);
    let (code, printed, lines) = run(&watch(&address, &["kernel:state = enabled", "nondecreasing kernel:enable_seq"]));
    assert_eq!(code, 0, "{lines:?}");
    assert!(printed.contains(r#""kernel":{"Ok":{"state":"enabled""#), "{printed}");
    assert_eq!(lines[0], "scx-vsock: kernel:state = enabled: held: 2 values");
}

#[test]
fn wrong_expectations_end_it_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("expectations");
    fs::write(&file, "# all\nnr_running <= 64\nnr_running <=\n").unwrap();
    let file = file.to_str().unwrap();
    let boot = ["boot", "--kernel", "/nowhere"];
    for (arguments, message) in [
        (
            ["--expect", "nr_running <= lots"],
            r#"invalid value 'nr_running <= lots' for '--expect <EXPR>': column 15: expected a number, such as 64 or 0.5, but found "lots""#.to_owned(),
        ),
        (
            ["--expect", " "],
            "invalid value ' ' for '--expect <EXPR>': column 2: expected a path, such as nr_running or kernel:state, but found the end".to_owned(),
        ),
        (
            ["--expect-file", file],
            format!("{file}: line 3, column 14: expected a number, such as 64 or 0.5, but found the end"),
        ),
    ] {
        let (code, _, lines) = run(&[&boot[..], &arguments].concat());
        assert_eq!(lines, [format!("scx-vsock: {message}; try 'scx-vsock boot --help'")]);
        assert_eq!(code, 2);
    }
    let (code, _, lines) = run(&["watch", "unix:/nowhere", "--expect", "nr <= 1"]);
    assert!(code == 2 && lines[0].contains("say with --samples when that is; try"), "{lines:?}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    for (arguments, message) in [
        (["--expect-file", "/nowhere/x"], "scx-vsock: cannot read /nowhere/x: No such file or directory (os error 2)"),
        (["--junit", "/nowhere/x"], "scx-vsock: cannot write /nowhere/x: No such file or directory (os error 2)"),
        (
            ["--expect-file", "/dev/zero"],
            "scx-vsock: /dev/zero has more than 262144 bytes: name a file with an expectation a line",
        ),
    ] {
        let (code, _, lines) = run(&[&["boot", "--kernel", "/nowhere"][..], &arguments].concat());
        assert_eq!((code, lines), (1, vec![message.to_owned()]));
    }
}

#[test]
fn a_guest_that_does_not_boot_is_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.xml");
    assert!(!Path::exists(&report));
    let junit = report.to_str().unwrap();
    let (code, _, lines) = run(&["boot", "--kernel", "/nowhere", "--junit", junit, "--expect", "nr <= 1"]);
    assert!(code == 1 && lines.last().unwrap().contains("/nowhere"), "{lines:?}");
    let report = fs::read_to_string(report).unwrap();
    // What was never judged did not fail: there is one cause, and one error.
    assert!(report.contains(r#"tests="2" skipped="1" failures="0" errors="1""#), "{report}");
    assert!(report.contains("<error message=") && report.contains("/nowhere"), "{report}");
}
