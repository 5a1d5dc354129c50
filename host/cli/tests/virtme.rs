//! A guest that virtme-ng starts, with our device in its QEMU arguments: the command as kernel developers use it.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use scx_vsock_tests::agent;
use scx_vsock_tests::guest::Kernel;
use scx_vsock_tests::program;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

/// A child with all that it starts. Killed on drop.
struct Group(Child);

impl Group {
    fn start(command: &mut Command) -> Self {
        Self(command.process_group(0).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ended_already = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _status = self.0.wait();
    }
}

/// What runs in the guest, which sees the host's files.
fn script(kernel: &Kernel) -> String {
    let root = kernel.modules.ancestors().nth(3).unwrap().display();
    format!(
        "modprobe -d {root} -S {} vmw_vsock_virtio_transport\n{} --socket /run/stats &\nexec {} --socket /run/stats\n",
        kernel.release(),
        program::built("procsched").display(),
        agent::file().display()
    )
}

#[test]
#[ignore = "boots a guest by virtme-ng; run ci/test peers"]
fn three_commands_read_a_guest_of_virtme_ng() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, in_guest, log) = (path("g1.sock"), path("in-guest"), path("log"));
    let kernel = Kernel::of_this_run();
    fs::write(&in_guest, script(kernel)).unwrap();

    let mut serving = Group::start(Command::new(COMMAND).args(["serve", "--socket", &socket]).stderr(Stdio::piped()));
    let message = BufReader::new(serving.0.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(message.contains("waiting for QEMU"), "{message}");

    let line = format!(
        "exec vng --run {} --disable-kvm --cpus 1 --memory 1G --user root \
         --qemu-opts=\"$({COMMAND} serve --socket {socket} --print-qemu-args --device-only)\" -- sh {in_guest} >{log} 2>&1",
        kernel.image.display()
    );
    let _guest = Group::start(Command::new("sh").args(["-c", &line]));

    let uri = format!("hybrid:{socket}.hybrid");
    let output = Command::new(COMMAND).args(["stats", &uri, "--wait", "180", "--over", "500ms"]).output().unwrap();
    let (numbers, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(Path::new(&log)).unwrap_or_default();
    assert!(output.status.success(), "{errors}\n{log}");
    let switches = numbers.lines().find_map(|line| line.trim().strip_prefix("delta.ctxt")).unwrap().trim();
    assert!(switches.parse::<u64>().unwrap() > 0, "{numbers}");
}
