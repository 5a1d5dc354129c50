//! The fixture of the guide's page on pytest, and its tests, as they are printed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use scx_vsock_tests::agent;
use scx_vsock_tests::guest::Kernel;

/// The files of the page, by the names in their first lines.
fn files() -> Vec<(String, String)> {
    let page = fs::read_to_string(agent::repository().join("host/guide/pytest.md")).unwrap();
    let blocks = page.split("\n```python\n# ").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks
        .map(|block| block.split_once('\n').unwrap())
        .map(|(name, text)| (name.to_owned(), format!("{text}\n")))
        .collect()
}

#[test]
fn the_fixture_is_short() {
    let files = files();
    assert_eq!(files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["conftest.py", "test_scheduler.py"]);
    let lines = files[0].1.lines().filter(|line| !line.is_empty()).count();
    assert!(lines <= 15, "{lines} lines");
}

#[test]
#[ignore = "boots QEMU guests with scx_bpfland; run ci/test sched-ext"]
fn the_page_is_tested_by_pytest() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, text) in files() {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let script = agent::repository().join("ci/scheduler");
    let scheduler = String::from_utf8(Command::new(script).arg("scx_bpfland").output().unwrap().stdout).unwrap();
    symlink(scheduler.trim(), folder.path().join("scx_bpfland")).unwrap();
    symlink(env!("CARGO_BIN_EXE_scx-vsock"), folder.path().join("scx-vsock")).unwrap();
    let path = format!("{}:{}", folder.path().display(), env::var("PATH").unwrap());
    let Kernel { image, modules, config } = Kernel::of_this_run();
    let mut command = Command::new("pytest");
    command.args(["-v", "-p", "no:cacheprovider"]).current_dir(folder.path()).env("PATH", path);
    let output = command.env("KERNEL", image).env("MODULES", modules).env("CONFIG", config).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("2 passed"), "{printed}");
}
