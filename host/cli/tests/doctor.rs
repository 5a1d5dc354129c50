//! `scx-vsock doctor`: every failure that it names, produced for real.
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
use serde_json::Value;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

/// What a doctor found: the state, what was found and what mends it, of each check.
struct Findings(Vec<Value>);

impl Findings {
    fn of(command: &mut Command) -> (i32, Self) {
        command.arg("--json").stdin(Stdio::null()).env_remove("SCX_VSOCK_AGENT").env_remove("QEMU");
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let findings = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
        (output.status.code().unwrap(), Self(findings))
    }

    /// That this check is in this state, and said this, with a mend that says that.
    fn have(&self, check: &str, state: &str, found: &str, mend: &str) {
        let finding = self.0.iter().find(|finding| finding["check"] == check);
        let finding = finding.unwrap_or_else(|| panic!("nothing about {check}: {:?}", self.0));
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        let as_expected = text("state") == state && text("found").contains(found) && text("mend").contains(mend);
        assert!(as_expected, "{check}: {finding}");
        assert_eq!(finding["mend"].is_null(), state == "good", "{finding}");
    }
}

fn machine(options: &[&str]) -> (i32, Findings) {
    Findings::of(Command::new(COMMAND).arg("doctor").args(options))
}

fn way(uri: &str) -> (i32, Findings) {
    Findings::of(Command::new(COMMAND).args(["doctor", uri, "--deadline", "300ms"]))
}

/// The same, with system calls that fail.
fn limited(limits: &str, arguments: &[&str]) -> (i32, Findings) {
    Findings::of(Command::new(program::built("limited")).args([limits, COMMAND, "doctor"]).args(arguments))
}

#[test]
fn a_qemu_that_is_missing_or_broken_is_named() {
    let mend = "install QEMU, Debian's package qemu-system-x86, or name its program by --qemu or QEMU";
    let (code, findings) = machine(&["--qemu", "/nowhere/qemu"]);
    findings.have("QEMU", "bad", "/nowhere/qemu cannot be run: No such file", mend);
    assert_eq!(code, 1);
    machine(&["--qemu", "/bin/false"]).1.have("QEMU", "bad", "/bin/false --version ends with exit status: 1", mend);
    machine(&["--qemu", "/bin/true"]).1.have("QEMU", "good", "/bin/true: ", "");
}

#[test]
fn an_agents_file_that_is_missing_or_unreadable_is_named() {
    machine(&[]).1.have(
        "agent's file",
        "bad",
        "it was not found",
        "build it with ci/build-agent and set SCX_VSOCK_AGENT",
    );
    let mend = "name a file that is there and can be read by --agent or SCX_VSOCK_AGENT";
    machine(&["--agent", "/nowhere/agent"]).1.have("agent's file", "bad", "/nowhere/agent: No such file", mend);
    let file = agent::file().to_str().unwrap();
    let (code, findings) = machine(&["--agent", file, "--qemu", "/bin/true"]);
    findings.have("agent's file", "good", file, "");
    assert_eq!(code, 0, "nothing else is needed");
}

#[test]
fn a_container_that_forbids_vsock_or_namespaces_is_named() {
    let (_, findings) = limited("socket:40=1,unshare=1", &[]);
    findings.have("AF_VSOCK", "note", "forbidden: Operation not permitted", "seccomp profile");
    findings.have("user namespaces", "note", "cannot be made (Operation not permitted", "user.max_user_namespaces");
    let (code, findings) = limited("socket:40=1", &["vsock://3"]);
    findings.have("AF_VSOCK", "bad", "forbidden: Operation not permitted", "seccomp profile");
    assert_eq!((code, findings.0.iter().any(|finding| finding["check"] == "agent")), (1, false));
    let (code, findings) = limited("socket:40=97", &["vsock://3"]);
    findings.have("AF_VSOCK", "bad", "this kernel has none: Address family not supported", "modprobe vhost_vsock");
    assert_eq!(code, 1);
}

#[test]
fn a_kvm_without_permission_and_a_kernel_to_try_it_with_are_named() {
    let slower = "guests are emulated, which is slower";
    // On a machine without the device itself this is what is said instead.
    if Path::new("/dev/kvm").exists() && rustix::process::getuid().is_root() {
        let folder = tempfile::tempdir().unwrap();
        let copied = folder.path().join("scx-vsock");
        program::copy(Path::new(COMMAND), &copied);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let before = fs::metadata("/dev/kvm").unwrap().permissions().mode();
        let (_, findings) = Findings::of(Command::new(copied).arg("doctor").uid(65_534).gid(65_534));
        // Where everybody may open it, a guest of another test shows what is said else.
        if before & 0o006 != 0o006 {
            findings.have(
                "KVM",
                "note",
                &format!("cannot be opened (Permission denied (os error 13)); {slower}"),
                "usermod",
            );
        }
        let (_, findings) = machine(&["--kernel", "/nowhere/vmlinuz"]);
        findings.have("KVM", "note", "without a kernel: /nowhere/vmlinuz: No such file", "name a bzImage by --kernel");
        // QEMU that ends at once runs no kernel.
        let (_, findings) = machine(&["--kernel", COMMAND, "--qemu", "/bin/true"]);
        findings.have(
            "KVM",
            "note",
            &format!("opens but does not run {COMMAND} under /bin/true; {slower}"),
            "none, where",
        );
    } else if !Path::new("/dev/kvm").exists() {
        machine(&[]).1.have("KVM", "note", &format!("there is no /dev/kvm; {slower}"), "modprobe kvm_intel");
    }
}

#[test]
fn a_guest_without_an_agent_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let uri = |scheme: &str| format!("{scheme}:{}", path.display());
    let mend = "start the guest and scx-vsock-agent in it";
    let (code, findings) = way(&uri("unix"));
    findings.have("agent", "bad", "No such file or directory", mend);
    assert_eq!((code, findings.0.len()), (21, 1));
    drop(UnixListener::bind(&path).unwrap());
    way(&uri("hybrid")).1.have("agent", "bad", "Connection refused", mend);
    fs::remove_file(&path).unwrap();
    let _silent = UnixListener::bind(&path).unwrap();
    let (code, findings) = way(&uri("unix"));
    findings.have("agent", "bad", "no answer within 300 ms", "see whether the guest is up and not paused");
    assert_eq!(code, 19);
}

#[test]
fn an_agent_of_another_version_or_without_a_session_is_named() {
    let hello =
        r#"{"hello":{"protocol":9,"min_protocol":5,"agent":"7.0","max_request_bytes":1,"max_response_bytes":1}}"#;
    let newer = FakeAgent::start([Script::new().send(format!("{hello}\n"))]);
    let (_, findings) = way(&format!("unix:{}", newer.path().display()));
    findings.have("agent", "bad", "agent 7.0 speaks protocol 5 to 9, this host 1 to 1", "do what it says");
    let agent = Agent::start();
    let _taken: Vec<Peer> = (0..8).map(|_| agent.host()).collect();
    let (code, findings) = way(&format!("unix:{}", agent.host_path(0).display()));
    findings.have("agent", "bad", "all 8 sessions", "end a program that holds a session");
    assert_eq!(code, 22);
}

#[test]
fn a_scheduler_that_is_missing_silent_or_gone_is_named() {
    let agent = Agent::start();
    let uri = format!("unix:{}", agent.host_path(0).display());
    let (code, findings) = way(&uri);
    findings.have("agent", "good", "version 0.1.0", "");
    findings.have("scheduler socket", "bad", "its stats socket is not there", "start the guest's scheduler");
    assert_eq!(code, 11);
    let listener = agent.scheduler();
    let (code, findings) = way(&uri);
    findings.have("scheduler socket", "good", "accepts connections", "");
    findings.have("scheduler", "bad", "no answer within 300 ms", "see the scheduler's log in the guest; restart it");
    assert_eq!(code, 19);
    // The connection that was given up.
    drop(Peer::accept(&listener));
    for (answer, found, mend, code) in [
        ("", "went away during its answer", "see the scheduler's log", 20),
        ("{\"errno\":22,\"args\":{\"resp\":\"no\"}}\n", "answered with errno 22", "update the scheduler", 14),
        ("hello\n", "the protocol allows", "it is no scx_stats server", 23),
    ] {
        let findings = thread::scope(|scope| {
            let asks = scope.spawn(|| way(&uri));
            let mut scheduler = Peer::accept(&listener);
            scheduler.line();
            scheduler.send(answer);
            drop(scheduler);
            asks.join().unwrap()
        });
        findings.1.have("scheduler", "bad", found, mend);
        assert_eq!(findings.0, code);
    }
    drop(listener);
    way(&uri).1.have("scheduler socket", "bad", "refuses: whoever made it is gone", "start the guest's scheduler");
}

#[test]
fn a_way_without_a_fault_is_ticked() {
    let meta = r#"{"errno":0,"args":{"resp":{"Top":{"fields":{}}}}}"#;
    let agent = FakeAgent::start([Script::agent().line().stats(meta)]);
    let uri = format!("unix:{}", agent.path().display());
    let output = Command::new(COMMAND).args(["doctor", &uri]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = format!(
        "✓ agent            version 0.1.0 at {uri}\n✓ scheduler socket accepts connections\n\
         ✓ scheduler        answers, and describes 1 structs\n"
    );
    assert_eq!((text, output.status.code()), (expected, Some(0)));
    let plain = FakeAgent::start([Script::new().line().send(format!("{meta}\n"))]);
    let (code, findings) = way(&format!("scx:{}", plain.path().display()));
    findings.have("scheduler", "good", "describes 1 structs", "");
    assert_eq!((code, findings.0.len()), (0, 2));
    let (code, findings) = way("scx:/nowhere/stats");
    findings.have("scheduler socket", "bad", "scx:/nowhere/stats: its stats socket is not there", "start the guest's");
    assert_eq!(code, 11);
}

#[test]
fn what_is_to_be_mended_has_a_line_below() {
    let output = Command::new(COMMAND).args(["doctor", "unix:/nowhere"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("✗ agent            no agent to talk to: unix:/nowhere: No such file"), "{text}");
    assert!(lines[1].starts_with("                   mend: do what it says"), "{text}");
}

/// Runs the doctor in a guest, as this user.
fn in_guest(guest: &scx_vsock::guest::qemu::Guest, user: &str, arguments: &str) -> Findings {
    let line = format!("su {user} -c 'scx-vsock doctor {arguments} --json'");
    let output = guest.run(&["sh", "-c", &line]).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    Findings(serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}")))
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_kernels_own_vsock_is_checked_with_its_device_and_permissions() {
    let guest = builder().module("vhost_vsock").program(COMMAND, "/bin/scx-vsock").boot().unwrap();
    let run = |line: &str| assert_eq!(guest.run(&["sh", "-c", line]).unwrap().status, 0, "{line}");
    run(
        "echo root:x:0:0::/:/bin/sh >/etc/passwd; echo user:x:1000:1000::/:/bin/sh >>/etc/passwd; chmod 755 / /bin /lib64",
    );
    let findings = in_guest(&guest, "root", "");
    findings.have("/dev/vhost-vsock", "good", "can be opened", "");
    findings.have("AF_VSOCK", "good", "can be made", "");
    findings.have("KVM", "note", "there is no /dev/kvm", "modprobe kvm_intel");
    findings.have("QEMU", "bad", "qemu-system-x86_64 cannot be run: No such file", "install QEMU");
    run("chmod 600 /dev/vhost-vsock");
    in_guest(&guest, "user", "").have(
        "/dev/vhost-vsock",
        "note",
        "cannot be opened: Permission denied",
        "usermod -aG kvm",
    );
    run("rm /dev/vhost-vsock");
    in_guest(&guest, "root", "").have("/dev/vhost-vsock", "note", "is not there", "modprobe vhost_vsock");
    let findings = in_guest(&guest, "root", "vsock://77");
    findings.have("agent", "bad", "vsock://77:729", "start the guest and scx-vsock-agent");
    run("mknod /dev/kvm c 10 232; chmod 600 /dev/kvm");
    in_guest(&guest, "user", "").have("KVM", "note", "/dev/kvm cannot be opened (Permission denied", "usermod -aG kvm");
    // A module goes once what held it has, the agent's socket for one, which the kernel gives no event for.
    run("killall scx-vsock-agent; for module in vhost_vsock vmw_vsock_virtio_transport \
         vmw_vsock_virtio_transport_common vsock; do until rmmod $module; do usleep 20000; done; done");
    let findings = in_guest(&guest, "root", "vsock://77");
    findings.have("AF_VSOCK", "bad", "this kernel has none: Address family not supported", "modprobe vhost_vsock");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_kvm_that_runs_no_kernel_is_told_from_one_that_does() {
    let kernel = Kernel::of_this_run().image.to_str().unwrap();
    let (_, findings) = machine(&["--kernel", kernel]);
    let kvm = findings.0.iter().find(|finding| finding["check"] == "KVM").unwrap();
    let found = kvm["found"].as_str().unwrap();
    // What it is depends on the machine, but never that it could not be tried.
    let tried =
        found.starts_with("runs ") || found.contains("does not run") || found.starts_with("there is no /dev/kvm");
    assert!(tried, "{kvm}");
}
