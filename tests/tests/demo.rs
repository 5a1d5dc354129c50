//! The demo as a newcomer runs it, and its messages when something is missing.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use scx_vsock::Sample;
use scx_vsock_tests::agent::repository;

fn demo(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(repository().join("ci/demo"));
    // A newcomer has no settings of a test run.
    for name in ["KERNEL", "MODULES", "CONFIG", "SCX_VSOCK_AGENT"] {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn it_prints_samples_as_json_lines_only() {
    let output = demo(&["--jsonl"], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let samples: Vec<Sample> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(samples.len() >= 3, "{samples:?}");
    let switches = |sample: &Sample| sample.stats.as_ref().unwrap()["totals"]["ctxt"].as_u64().unwrap();
    assert!(samples.windows(2).all(|pair| switches(&pair[0]) < switches(&pair[1])));
    assert!(samples.iter().all(|sample| sample.session == 1 && sample.interval_ms.is_some()));
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn without_jsonl_it_prints_text() {
    let output = demo(&[], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    assert!(printed.contains("sample 2 at 2.") && printed.contains("delta.ctxt"), "{printed}");
}

/// Returns the exit code and the last line of a failing demo.
fn failure(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let output = demo(arguments, environment);
    assert_eq!(text(&output.stdout), "");
    (output.status.code().unwrap(), text(&output.stderr).lines().last().unwrap_or_default().to_owned())
}

#[test]
#[ignore = "needs what the demo needs; run ci/test qemu"]
fn the_last_line_names_what_is_wrong() {
    let (code, line) = failure(&["scx-bpfland"], &[]);
    assert_eq!(
        (code, line.as_str()),
        (2, "demo: 'scx-bpfland' is not a scheduler such as scx_bpfland; without a name the stand-in runs")
    );

    let (code, line) = failure(&["--json"], &[]);
    assert_eq!((code, line.as_str()), (2, "demo: unknown option '--json': the only one is --jsonl"));

    let (code, line) = failure(&[], &[("KERNEL", "/nowhere/vmlinuz")]);
    assert!(code == 1 && line.contains("cannot read the kernel /nowhere/vmlinuz"), "{line}");

    let (code, line) = failure(&[], &[("QEMU", "/nowhere/qemu")]);
    assert!(code == 1 && line.contains("cannot run /nowhere/qemu") && line.contains("qemu-system-x86"), "{line}");

    let (code, line) = failure(&["scx_nonesuch"], &[]);
    assert!(code == 1 && line.contains("building scx_nonesuch failed"), "{line}");
}

#[test]
#[ignore = "needs what the demo needs; run ci/test qemu"]
fn an_unwritable_cache_is_named_with_its_fix() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let cache = file.join("cache");
    let (code, line) = failure(&[], &[("SCX_VSOCK_CACHE", cache.to_str().unwrap())]);
    let expected = format!(
        "kernel: cannot write to the cache {}: make it writable, or set SCX_VSOCK_CACHE to a folder that is",
        cache.display()
    );
    assert_eq!((code, line), (1, expected));
}
