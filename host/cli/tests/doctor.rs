//! `scx-vsock doctor`: every failure that it reports, produced for real.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use scx_vsock_tests::agent::{self, Agent};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::guest::{Kernel, builder};
use scx_vsock_tests::peer::Peer;
use scx_vsock_tests::program;
use scx_vsock_tests::scripted_scheduler::Script;
use scx_vsock_wire::RelayError;
use serde_json::{Value, json};

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

/// The results of the checks, as their JSON has them.
struct Results(Vec<Value>);

impl Results {
    fn of(command: &mut Command) -> (i32, Self) {
        command.arg("--json").stdin(Stdio::null()).env_remove("SCX_VSOCK_AGENT").env_remove("QEMU");
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let results = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
        (output.status.code().unwrap(), Self(results))
    }

    /// Asserts that this check has this state, and this text in its message and its fix.
    fn have(&self, check: &str, state: &str, message: &str, fix: &str) {
        let result = self.0.iter().find(|result| result["check"] == check);
        let result = result.unwrap_or_else(|| panic!("no result of {check}: {:?}", self.0));
        let text = |key: &str| result[key].as_str().unwrap_or_default();
        let as_expected = text("state") == state && text("message").contains(message) && text("fix").contains(fix);
        assert!(as_expected, "{check}: {result}");
        assert_eq!(result["fix"].is_null(), state == "ok", "{result}");
    }
}

fn host_checks(options: &[&str]) -> (i32, Results) {
    Results::of(Command::new(COMMAND).arg("doctor").args(options))
}

fn guest_checks(uri: &str) -> (i32, Results) {
    Results::of(Command::new(COMMAND).args(["doctor", uri, "--deadline", "300ms"]))
}

/// The host checks, with system calls that fail.
fn limited(limits: &str, arguments: &[&str]) -> (i32, Results) {
    Results::of(Command::new(program::built("limited")).args([limits, COMMAND, "doctor"]).args(arguments))
}

#[test]
fn a_missing_or_broken_qemu_is_reported() {
    let fix = "install QEMU (on Debian: sudo apt install qemu-system-x86), or name the program with --qemu or QEMU";
    let (code, results) = host_checks(&["--qemu", "/nowhere/qemu"]);
    results.have("QEMU", "error", "cannot run /nowhere/qemu: No such file", fix);
    assert_eq!(code, 1);
    host_checks(&["--qemu", "/bin/false"]).1.have("QEMU", "error", "/bin/false --version failed: exit status: 1", fix);
    host_checks(&["--qemu", "/bin/true"]).1.have("QEMU", "ok", "/bin/true: ", "");
}

#[test]
fn a_missing_agent_file_is_reported() {
    host_checks(&[]).1.have("agent file", "ok", &format!("carried for {}", std::env::consts::ARCH), "");
    let fix = "name another file with --agent or SCX_VSOCK_AGENT, or none, for the agent of this command";
    host_checks(&["--agent", "/nowhere/agent"]).1.have(
        "agent file",
        "error",
        "cannot read /nowhere/agent: No such file",
        fix,
    );
    let file = agent::file().to_str().unwrap();
    let (code, results) = host_checks(&["--agent", file, "--qemu", "/bin/true"]);
    results.have("agent file", "ok", file, "");
    assert_eq!(code, 0, "nothing else is needed");
}

#[test]
fn a_missing_busybox_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let doctor =
        |path: &Path| Results::of(Command::new(COMMAND).args(["doctor", "--qemu", "/bin/true"]).env("PATH", path)).1;
    let fix = "install busybox (on Debian: sudo apt install busybox-static), or add its folder to PATH";
    doctor(folder.path()).have("busybox", "error", "not in PATH; the guests of boot have its programs", fix);
    program::write_script(&folder.path().join("busybox"), "");
    doctor(folder.path()).have("busybox", "ok", "/busybox", "");
}

#[test]
fn forbidden_vsock_or_namespaces_are_reported() {
    let (_, results) = limited("socket:40=1,unshare=1", &[]);
    results.have("AF_VSOCK", "warning", "forbidden: Operation not permitted", "seccomp profile");
    results.have(
        "user namespaces",
        "warning",
        "cannot be created, and proxy -- CMD needs one: Operation not permitted",
        "user.max_user_namespaces",
    );
    let (code, results) = limited("socket:40=1", &["vsock://3"]);
    results.have("AF_VSOCK", "error", "forbidden: Operation not permitted", "seccomp profile");
    assert_eq!((code, results.0.iter().any(|result| result["check"] == "agent")), (1, false));
    let (code, results) = limited("socket:40=97", &["vsock://3"]);
    results.have(
        "AF_VSOCK",
        "error",
        "not supported by this kernel: Address family not supported",
        "modprobe vhost_vsock",
    );
    assert_eq!(code, 1);
}

#[test]
fn a_kvm_that_cannot_be_used_is_reported() {
    let slower = "guests are emulated, which is slower";
    // A machine without the device has another message.
    if Path::new("/dev/kvm").exists() && rustix::process::getuid().is_root() {
        let folder = tempfile::tempdir().unwrap();
        let copied = folder.path().join("scx-vsock");
        program::copy(Path::new(COMMAND), &copied);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let before = fs::metadata("/dev/kvm").unwrap().permissions().mode();
        let (_, results) = Results::of(Command::new(copied).arg("doctor").uid(65_534).gid(65_534));
        // Where everybody may open it, the test in a guest covers this.
        if before & 0o006 != 0o006 {
            results.have(
                "KVM",
                "warning",
                &format!("cannot open /dev/kvm: Permission denied (os error 13); {slower}"),
                "usermod",
            );
        }
        let (_, results) = host_checks(&["--kernel", "/nowhere/vmlinuz"]);
        results.have(
            "KVM",
            "warning",
            "not tested: cannot open the kernel /nowhere/vmlinuz: No such file",
            "name a bzImage with --kernel",
        );
        // A QEMU that exits at once runs no kernel.
        let (_, results) = host_checks(&["--kernel", COMMAND, "--qemu", "/bin/true"]);
        results.have(
            "KVM",
            "warning",
            &format!("does not run {COMMAND} with /bin/true; {slower}"),
            "enable nested virtualization",
        );
    } else if !Path::new("/dev/kvm").exists() {
        host_checks(&[]).1.have(
            "KVM",
            "warning",
            &format!("there is no /dev/kvm; {slower}"),
            "sudo modprobe kvm_intel",
        );
    }
}

#[test]
fn a_missing_agent_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let uri = |scheme: &str| format!("{scheme}:{}", path.display());
    let fix = "start the guest, and scx-vsock-agent in it";
    let (code, results) = guest_checks(&uri("unix"));
    results.have("agent", "error", "there is no such socket; start the agent", fix);
    assert_eq!((code, results.0.len()), (21, 1));
    drop(UnixListener::bind(&path).unwrap());
    guest_checks(&uri("hybrid")).1.have("agent", "error", "connection refused: the VMM", fix);
    fs::remove_file(&path).unwrap();
    let _silent = UnixListener::bind(&path).unwrap();
    let (code, results) = guest_checks(&uri("unix"));
    results.have("agent", "error", "no hello within 300 ms", fix);
    assert_eq!(code, 21);
}

#[test]
fn a_newer_or_busy_agent_is_reported() {
    let hello =
        r#"{"hello":{"protocol":9,"min_protocol":5,"agent":"7.0","max_request_bytes":1,"max_response_bytes":1}}"#;
    let newer = FakeAgent::start([Script::new().send(format!("{hello}\n"))]);
    let (_, results) = guest_checks(&format!("unix:{}", newer.path().display()));
    results.have(
        "agent",
        "error",
        "agent 7.0 speaks protocol 5 to 9, this host 1 to 1",
        "start the guest, and scx-vsock-agent in it",
    );
    let agent = Agent::start();
    let _taken: Vec<Peer> = (0..8).map(|_| agent.host()).collect();
    let (code, results) = guest_checks(&format!("unix:{}", agent.host_path(0).display()));
    results.have("agent", "error", "all 8 sessions", "close a client of this guest");
    assert_eq!(code, 22);
}

#[test]
fn a_missing_or_silent_scheduler_is_reported() {
    let agent = Agent::start();
    let uri = format!("unix:{}", agent.host_path(0).display());
    let (code, results) = guest_checks(&uri);
    results.have("agent", "ok", "version 0.1.0", "");
    // The agent is on this host, whose kernel may have no sched_ext.
    let has_sched_ext = Path::new("/sys/kernel/sched_ext").exists();
    let fix = if has_sched_ext { "start a scheduler that serves stats" } else { "CONFIG_SCHED_CLASS_EXT=y" };
    results.have("scheduler socket", "error", "the stats socket does not exist", fix);
    assert_eq!(code, 11);
    let listener = agent.scheduler();
    let (code, results) = guest_checks(&uri);
    results.have("scheduler socket", "ok", "accepts connections", "");
    results.have(
        "scheduler",
        "error",
        "no answer within 300 ms",
        "check the scheduler's log in the guest and restart it",
    );
    assert_eq!(code, 19);
    // The connection of the call that timed out.
    drop(Peer::accept(&listener));
    for (answer, message, fix, code) in [
        ("", "closed its connection during its answer", "check the scheduler's log", 20),
        ("{\"errno\":22,\"args\":{\"resp\":\"no\"}}\n", "answered with errno 22", "update the scheduler", 14),
        ("hello\n", "the protocol allows", "does not speak scx_stats", 23),
    ] {
        let results = thread::scope(|scope| {
            let asks = scope.spawn(|| guest_checks(&uri));
            let mut scheduler = Peer::accept(&listener);
            scheduler.line();
            scheduler.send(answer);
            drop(scheduler);
            asks.join().unwrap()
        });
        results.1.have("scheduler", "error", message, fix);
        assert_eq!(results.0, code);
    }
    drop(listener);
    guest_checks(&uri).1.have("scheduler socket", "error", "the scheduler that created it has exited", fix);
}

#[test]
fn a_kernel_without_sched_ext_is_the_fault() {
    let without = RelayError::NoScheduler { errno: 2, sched_ext: "", ops: "", cause: "" };
    let agent = FakeAgent::start([Script::agent().sched_ext(&json!({ "uptime_us": 1 })).line().relay_error(without)]);
    let (code, results) = guest_checks(&format!("unix:{}", agent.path().display()));
    results.have(
        "scheduler socket",
        "error",
        "the guest has no sched_ext",
        "boot a kernel of version 6.12 or later with CONFIG_SCHED_CLASS_EXT=y",
    );
    assert_eq!(code, 11);
}

#[test]
fn hops_without_a_fault_are_ok() {
    let meta = r#"{"errno":0,"args":{"resp":{"Top":{"fields":{}}}}}"#;
    let said = json!({ "state": "enabled", "ops": "bpfland_1.1.4\u{1b}[2J", "uptime_us": 1 });
    let older = Script::agent().line().relay_error(RelayError::UnknownVerb {});
    let answers = || Script::agent().line().stats(meta);
    let agent = FakeAgent::start([Script::agent().sched_ext(&said).line().stats(meta), older, answers()]);
    let uri = format!("unix:{}", agent.path().display());
    let kernel = "✓ kernel           sched_ext is enabled: bpfland_1.1.4\\u{1b}[2J\n";
    for kernel in [kernel, ""] {
        let output = Command::new(COMMAND).args(["doctor", &uri]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let expected = format!(
            "✓ agent            version 0.1.0 at {uri}\n{kernel}✓ scheduler socket accepts connections\n\
             ✓ scheduler        answers; its stats have 1 struct\n"
        );
        assert_eq!((text, output.status.code()), (expected, Some(0)));
    }
    let plain = FakeAgent::start([Script::new().line().send(format!("{meta}\n"))]);
    let (code, results) = guest_checks(&format!("scx:{}", plain.path().display()));
    results.have("scheduler", "ok", "its stats have 1 struct", "");
    assert_eq!((code, results.0.len()), (0, 2));
    let (code, results) = guest_checks("scx:/nowhere/stats");
    results.have(
        "scheduler socket",
        "error",
        "scx:/nowhere/stats: the stats socket does not exist",
        "start a scheduler",
    );
    assert_eq!(code, 11);
}

#[test]
fn a_fix_has_a_line_of_its_own() {
    let output = Command::new(COMMAND).args(["doctor", "unix:/nowhere"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("✗ agent            no agent to talk to: unix:/nowhere: there is no such socket"),
        "{text}"
    );
    assert!(lines[1].starts_with("                   fix: start the guest, and scx-vsock-agent in it"), "{text}");
}

/// Runs the doctor in a guest, as this user.
fn in_guest(guest: &scx_vsock::guest::Guest, user: &str, arguments: &str) -> Results {
    let line = format!("su {user} -c 'scx-vsock doctor {arguments} --json'");
    let output = guest.run(&["sh", "-c", &line]).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    Results(serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}")))
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn vsock_and_its_device_are_checked() {
    let guest = builder().module("vhost_vsock").program(COMMAND, "/bin/scx-vsock").boot().unwrap();
    let run = |line: &str| assert_eq!(guest.run(&["sh", "-c", line]).unwrap().status, 0, "{line}");
    run(
        "echo root:x:0:0::/:/bin/sh >/etc/passwd; echo user:x:1000:1000::/:/bin/sh >>/etc/passwd; chmod 755 / /bin /lib64",
    );
    let results = in_guest(&guest, "root", "");
    results.have("/dev/vhost-vsock", "ok", "can be opened", "");
    results.have("AF_VSOCK", "ok", "sockets can be created", "");
    results.have("KVM", "warning", "there is no /dev/kvm", "modprobe kvm_intel");
    results.have("QEMU", "error", "cannot run qemu-system-x86_64: No such file", "install QEMU");
    run("chmod 600 /dev/vhost-vsock");
    in_guest(&guest, "user", "").have(
        "/dev/vhost-vsock",
        "warning",
        "cannot be opened: Permission denied",
        "usermod -aG kvm",
    );
    run("rm /dev/vhost-vsock");
    in_guest(&guest, "root", "").have("/dev/vhost-vsock", "warning", "does not exist", "modprobe vhost_vsock");
    let results = in_guest(&guest, "root", "vsock://77");
    results.have("agent", "error", "vsock://77", "start the guest, and scx-vsock-agent");
    run("mknod /dev/kvm c 10 232; chmod 600 /dev/kvm");
    in_guest(&guest, "user", "").have("KVM", "warning", "cannot open /dev/kvm: Permission denied", "usermod -aG kvm");
    // A module goes once what held it has, the agent's socket for one, which the kernel gives no event for.
    run("killall scx-vsock-agent; for module in vhost_vsock vmw_vsock_virtio_transport \
         vmw_vsock_virtio_transport_common vsock; do until rmmod $module; do usleep 20000; done; done");
    let results = in_guest(&guest, "root", "vsock://77");
    results.have(
        "AF_VSOCK",
        "error",
        "not supported by this kernel: Address family not supported",
        "modprobe vhost_vsock",
    );
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn kvm_is_tried_with_a_kernel() {
    let kernel = Kernel::of_this_run().image.to_str().unwrap();
    let (_, results) = host_checks(&["--kernel", kernel]);
    let kvm = results.0.iter().find(|result| result["check"] == "KVM").unwrap();
    let message = kvm["message"].as_str().unwrap();
    // The result depends on the machine, but it must be one of a trial.
    let tried =
        message.starts_with("runs ") || message.contains("does not run") || message.starts_with("there is no /dev/kvm");
    assert!(tried, "{kvm}");
}
