//! `scx-vsock report` as a process: the page, its warnings, verdicts, and what is wrong input.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The exit code of a command, what it printed and the lines of its messages.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, Vec<String>) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_scx-vsock")).arg("report").args(arguments).current_dir(folder).output();
    let output = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let lines = text(output.stderr).lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), text(output.stdout), lines)
}

/// A folder with a recording `NAME.jsonl` for each of these.
fn folder(recordings: &[(&str, &[Value])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, stats) in recordings {
        fs::write(folder.path().join(format!("{name}.jsonl")), recording(stats)).unwrap();
    }
    folder
}

fn recording(stats: &[Value]) -> String {
    let line = |(at, stats)| json!({ "tag": "t", "elapsed_ms": at * 1000, "session": 1, "interval_ms": 1000, "stats": { "Ok": stats } });
    (0..).zip(stats).map(line).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_page_is_made_of_runs() {
    let folder = folder(&[("a", &[json!({ "nr": 1 })]), ("b", &[json!({ "nr": 2 }), json!({ "nr": 3 })])]);
    let (code, printed, lines) = run(folder.path(), &["old=a.jsonl", "b.jsonl", "-o", "out.html"]);
    assert_eq!((code, printed.as_str(), lines.as_slice()), (0, "", &[][..]));
    let page = fs::read_to_string(folder.path().join("out.html")).unwrap();
    assert!(page.contains("<title>Report: old, b.jsonl</title>"), "{page}");
    let (code, printed, _) = run(folder.path(), &["a.jsonl", "-o", "/dev/stdout"]);
    assert!(code == 0 && printed.starts_with("<!DOCTYPE html>"));
}

#[test]
fn verdicts_are_printed_and_reported() {
    let folder = folder(&[("a", &[json!({ "nr": 1 })]), ("b", &[json!({ "nr": 70 })])]);
    fs::write(folder.path().join("all"), "eventually nr > 0\n").unwrap();
    let arguments =
        ["a.jsonl", "b.jsonl", "-o", "out.html", "--junit", "out.xml", "--expect-file", "all", "--expect", "nr <= 64"];
    let (code, _, lines) = run(folder.path(), &arguments);
    let expected = [
        "scx-vsock: a.jsonl: nr <= 64: held: 1 value",
        "scx-vsock: a.jsonl: eventually nr > 0: held: 1 value",
        "scx-vsock: b.jsonl: nr <= 64: broken: sample 1 (\"t\") at 0.000 s is 70, not <= 64",
        "scx-vsock: b.jsonl: eventually nr > 0: held: 1 value",
        "scx-vsock: 1 of 4 expectations was not met",
    ];
    assert_eq!((code, lines), (4, expected.map(str::to_owned).to_vec()));
    assert!(fs::read_to_string(folder.path().join("out.html")).unwrap().contains("1 of 4 were not met."));
    assert!(
        fs::read_to_string(folder.path().join("out.xml")).unwrap().contains(r#"tests="5" skipped="0" failures="1""#)
    );
}

#[test]
fn what_is_odd_is_a_warning() {
    let folder = folder(&[("a", &[json!({ "nr": 1, "new": 2 })]), ("b", &[json!({ "nr": 2 })])]);
    let text = fs::read_to_string(folder.path().join("b.jsonl")).unwrap() + "{\"tag\":\n";
    fs::write(folder.path().join("b.jsonl"), text).unwrap();
    let (code, _, lines) = run(folder.path(), &["a.jsonl", "b.jsonl", "-o", "out.html"]);
    let expected = [
        "scx-vsock: warning: b.jsonl: line 2 is no sample: EOF while parsing a value at line 1 column 7",
        "scx-vsock: warning: run b.jsonl has no new, which other runs have",
    ];
    assert_eq!((code, lines), (0, expected.map(str::to_owned).to_vec()));
}

#[test]
fn what_cannot_be_used_is_one_line() {
    let folder = folder(&[("a", &[json!({ "nr": 1 })])]);
    fs::write(folder.path().join("empty"), "").unwrap();
    fs::write(folder.path().join("page"), "<html>\n</html>\n").unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    let no_sample =
        "cannot read page: line 1 is no sample: expected value at line 1 column 1 (and none of its 2 lines is)";
    for (arguments, message) in [
        (["nowhere", "-o", "out"], "cannot read nowhere: No such file or directory (os error 2)"),
        (["folder", "-o", "out"], "cannot read folder: Is a directory (os error 21)"),
        (["empty", "-o", "out"], "cannot read empty: it is empty: there is no sample"),
        (["page", "-o", "out"], no_sample),
        (["a.jsonl", "-o", "none/out"], "cannot write none/out: No such file or directory (os error 2) at path"),
        (["a.jsonl", "-o", "folder"], "cannot write folder: Is a directory (os error 21)"),
    ] {
        let (code, printed, lines) = run(folder.path(), &arguments);
        assert_eq!((code, printed.as_str(), lines.len()), (1, "", 1), "{arguments:?}: {lines:?}");
        assert!(lines[0].starts_with(&format!("scx-vsock: {message}")), "{lines:?}");
        assert!(!folder.path().join("out").exists());
    }
    let (code, _, lines) = run(folder.path(), &["a.jsonl", "-o", "out", "--expect", "nr <="]);
    assert!(code == 2 && lines[0].contains("column 6: expected a number"), "{lines:?}");
}

#[test]
fn a_page_is_no_more_readable_than_its_recording() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder(&[("a", &[json!({ "nr": 1 })])]);
    let path: PathBuf = folder.path().join("a.jsonl");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(run(folder.path(), &["a.jsonl", "-o", "out.html"]).0, 0);
    assert_eq!(fs::metadata(folder.path().join("out.html")).unwrap().permissions().mode() & 0o777, 0o600);
}
