//! What this machine has: QEMU, KVM, the kernel's vsock, the agent's file, namespaces.
#![allow(unsafe_code, reason = "a child enters its namespaces between fork and exec")]

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use scx_vsock::guest::qemu::{find_agent, kvm_runs, qemu_program};

use super::{Doctor, Finding};
use crate::error_report::one_line;

/// Every check that needs no guest.
pub fn check(options: &Doctor) -> Vec<Finding> {
    let qemu = qemu_program(options.qemu.as_deref());
    vec![
        check_qemu(&qemu),
        check_kvm(&qemu, options.kernel.as_deref()),
        check_agent_file(options.agent.as_deref()),
        vsock_sockets().at_most_a_note(),
        vhost_vsock().at_most_a_note(),
        user_namespaces(),
    ]
}

fn check_qemu(qemu: &str) -> Finding {
    const MEND: &str = "install QEMU, Debian's package qemu-system-x86, or name its program by --qemu or QEMU";
    let output = Command::new(qemu).arg("--version").stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Finding::good("QEMU", format!("{qemu}: {}", one_line(text.lines().next().unwrap_or_default())))
        }
        Ok(output) => Finding::bad("QEMU", format!("{qemu} --version ends with {}", output.status), MEND),
        Err(error) => Finding::bad("QEMU", format!("{qemu} cannot be run: {error}"), MEND),
    }
}

/// Guests boot without it, only slower.
fn check_kvm(qemu: &str, kernel: Option<&Path>) -> Finding {
    let slower = "guests are emulated, which is slower";
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return match error.kind() {
            io::ErrorKind::NotFound => Finding::note(
                "KVM",
                format!("there is no /dev/kvm; {slower}"),
                "enable virtualisation in the firmware and modprobe kvm_intel or kvm_amd; a virtual machine needs nested \
                 virtualisation",
            ),
            _ => Finding::note(
                "KVM",
                format!("/dev/kvm cannot be opened ({error}); {slower}"),
                "become a member of its group: usermod -aG kvm $USER, and log in again",
            ),
        };
    }
    let kernel = kernel.map_or_else(running_kernel, Path::to_owned);
    if let Err(error) = File::open(&kernel) {
        return Finding::note(
            "KVM",
            format!("/dev/kvm opens, but cannot be tried without a kernel: {}: {error}", kernel.display()),
            "name a bzImage by --kernel",
        );
    }
    if kvm_runs(qemu, &kernel) {
        Finding::good("KVM", format!("runs {}", kernel.display()))
    } else {
        Finding::note(
            "KVM",
            format!("/dev/kvm opens but does not run {} under {qemu}; {slower}", kernel.display()),
            "none, where this machine's KVM is an emulated or a nested one; SCX_VSOCK_ACCELERATOR=tcg saves the trying",
        )
    }
}

fn running_kernel() -> PathBuf {
    Path::new("/boot").join(format!("vmlinuz-{}", rustix::system::uname().release().to_string_lossy()))
}

fn check_agent_file(named: Option<&Path>) -> Finding {
    let Some(file) = find_agent(named) else {
        return Finding::bad(
            "agent's file",
            "it was not found",
            "build it with ci/build-agent and set SCX_VSOCK_AGENT to the path it prints",
        );
    };
    match File::open(&file) {
        Ok(_) => Finding::good("agent's file", file.display().to_string()),
        Err(error) => Finding::bad(
            "agent's file",
            format!("{}: {error}", file.display()),
            "name a file that is there and can be read by --agent or SCX_VSOCK_AGENT",
        ),
    }
}

/// Whether this kernel, and whoever confines this process, know AF_VSOCK.
pub fn vsock_sockets() -> Finding {
    match socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None) {
        Ok(_) => Finding::good("AF_VSOCK", "sockets of this kind can be made"),
        Err(errno) => match io::Error::from(errno).kind() {
            io::ErrorKind::PermissionDenied => Finding::bad(
                "AF_VSOCK",
                format!("sockets of this kind are forbidden: {errno}"),
                "allow AF_VSOCK in the container's seccomp profile (docker run --security-opt seccomp=profile.json)",
            ),
            _ => Finding::bad(
                "AF_VSOCK",
                format!("this kernel has none: {errno}"),
                "modprobe vhost_vsock, which loads vsock; hybrid: and unix: places need neither",
            ),
        },
    }
}

/// The device through which this kernel's vsock leads to guests.
pub fn vhost_vsock() -> Finding {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(_) => Finding::good("/dev/vhost-vsock", "can be opened"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::bad(
            "/dev/vhost-vsock",
            "is not there",
            "modprobe vhost_vsock; or do without: scx-vsock serve or boot, and hybrid: places",
        ),
        Err(error) => Finding::bad(
            "/dev/vhost-vsock",
            format!("cannot be opened: {error}"),
            "become a member of its group: usermod -aG kvm $USER, and log in again",
        ),
    }
}

/// What `proxy -- COMMAND` needs to hide the host's own scheduler from a command.
fn user_namespaces() -> Finding {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the flags ask for no shared file descriptors or memory to be split off; the child only loses sight of
    // mounts and users that come later.
    let enter = || Ok(unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?);
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe { command.pre_exec(enter) };
    match command.status() {
        Ok(_) => Finding::good("user namespaces", "can be made; proxy -- COMMAND needs no root"),
        Err(error) => Finding::note(
            "user namespaces",
            format!("cannot be made ({error}); proxy -- COMMAND needs them"),
            "sysctl user.max_user_namespaces=10000 and, where they are there, kernel.unprivileged_userns_clone=1 and \
             kernel.apparmor_restrict_unprivileged_userns=0; in a container, allow unshare in its seccomp profile",
        ),
    }
}
