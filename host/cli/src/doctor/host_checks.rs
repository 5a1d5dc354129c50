//! Checks of this host: QEMU, KVM, busybox, the kernel's vsock, the agent's file, namespaces.
#![allow(unsafe_code, reason = "a child enters its namespaces between fork and exec")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use scx_vsock::guest::qemu::{find_busybox, kvm_runs, qemu_program};
use scx_vsock::guest::{AgentFile, Architecture, Error};

use super::check_result::CheckResult;
use crate::error_report::one_line;

const QEMU: &str = "QEMU";
const KVM: &str = "KVM";
const BUSYBOX: &str = "busybox";
const AGENT_FILE: &str = "agent file";
const AF_VSOCK: &str = "AF_VSOCK";
const VHOST_VSOCK: &str = "/dev/vhost-vsock";
const NAMESPACES: &str = "user namespaces";

/// The fix for a device that this user may not open.
const JOIN_KVM_GROUP: &str = "sudo usermod -aG kvm $USER, then log in again";

/// The files that the checks use where they are given.
pub struct HostFiles<'a> {
    /// The bzImage to test KVM with.
    pub kernel: Option<&'a Path>,
    /// The agent's file.
    pub agent: Option<&'a Path>,
    /// The QEMU program.
    pub qemu: Option<&'a OsStr>,
}

/// Runs every check that needs no guest.
pub fn check(files: &HostFiles<'_>) -> Vec<CheckResult> {
    let qemu = qemu_program(files.qemu, Architecture::NATIVE);
    vec![
        check_qemu(&qemu),
        check_kvm(&qemu, files.kernel),
        check_busybox(),
        check_agent_file(files.agent),
        vsock_sockets().at_most_warning(),
        vhost_vsock().at_most_warning(),
        user_namespaces(),
    ]
}

fn check_qemu(qemu: &OsStr) -> CheckResult {
    const FIX: &str =
        "install QEMU (on Debian: sudo apt install qemu-system-x86), or name the program with --qemu or QEMU";
    let name = qemu.display();
    let output = Command::new(qemu).arg("--version").stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            CheckResult::ok(QEMU, format!("{name}: {}", one_line(text.lines().next().unwrap_or_default())))
        }
        Ok(output) => CheckResult::error(QEMU, format!("{name} --version failed: {}", output.status), FIX),
        Err(error) => CheckResult::error(QEMU, format!("cannot run {name}: {error}"), FIX),
    }
}

/// Guests boot without KVM, only slower.
fn check_kvm(qemu: &OsStr, kernel: Option<&Path>) -> CheckResult {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return kvm_unavailable(&error);
    }
    let kernel = kernel.map_or_else(running_kernel, Path::to_owned);
    if let Err(error) = File::open(&kernel) {
        return CheckResult::warning(
            KVM,
            format!("not tested: cannot open the kernel {}: {error}", kernel.display()),
            "name a bzImage with --kernel",
        );
    }
    if kvm_runs(qemu, &kernel) {
        CheckResult::ok(KVM, format!("runs {}", kernel.display()))
    } else {
        CheckResult::warning(
            KVM,
            format!("does not run {} with {}; guests are emulated, which is slower", kernel.display(), qemu.display()),
            "enable nested virtualization if this is a virtual machine; SCX_VSOCK_ACCELERATOR=tcg skips this test at \
             each boot",
        )
    }
}

fn kvm_unavailable(error: &io::Error) -> CheckResult {
    let slower = "guests are emulated, which is slower";
    if error.kind() == io::ErrorKind::NotFound {
        CheckResult::warning(
            KVM,
            format!("there is no /dev/kvm; {slower}"),
            "sudo modprobe kvm_intel (or kvm_amd); enable virtualization in the firmware, or nested virtualization if \
             this is a virtual machine",
        )
    } else {
        CheckResult::warning(KVM, format!("cannot open /dev/kvm: {error}; {slower}"), JOIN_KVM_GROUP)
    }
}

fn running_kernel() -> PathBuf {
    Path::new("/boot").join(format!("vmlinuz-{}", rustix::system::uname().release().to_string_lossy()))
}

/// A guest's shell and tools.
fn check_busybox() -> CheckResult {
    const FIX: &str = "install busybox (on Debian: sudo apt install busybox-static), or add its folder to PATH";
    match find_busybox() {
        Ok(file) => CheckResult::ok(BUSYBOX, file.display().to_string()),
        Err(_) => CheckResult::error(BUSYBOX, "not in PATH; the guests of boot have its programs", FIX),
    }
}

fn check_agent_file(named: Option<&Path>) -> CheckResult {
    const FIX: &str = "name another file with --agent or SCX_VSOCK_AGENT, or none, for the agent of this command";
    let agent = AgentFile::find(named, Architecture::NATIVE);
    match agent.and_then(|agent| agent.read_for(Architecture::NATIVE).map(|_| agent)) {
        Ok(agent) => CheckResult::ok(AGENT_FILE, agent.to_string()),
        Err(Error::File { path, source, .. }) => {
            CheckResult::error(AGENT_FILE, format!("cannot read {}: {source}", path.display()), FIX)
        }
        Err(error) => CheckResult::error(AGENT_FILE, error.to_string(), FIX),
    }
}

/// Checks whether the kernel, and what confines this process, allow AF_VSOCK sockets.
pub fn vsock_sockets() -> CheckResult {
    match socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None) {
        Ok(_) => CheckResult::ok(AF_VSOCK, "sockets can be created"),
        Err(errno) => match io::Error::from(errno).kind() {
            io::ErrorKind::PermissionDenied => CheckResult::error(
                AF_VSOCK,
                format!("sockets are forbidden: {errno}"),
                "allow AF_VSOCK in the container's seccomp profile (docker run --security-opt seccomp=PROFILE.json)",
            ),
            _ => CheckResult::error(
                AF_VSOCK,
                format!("not supported by this kernel: {errno}"),
                "sudo modprobe vhost_vsock; hybrid: and unix: addresses work without it",
            ),
        },
    }
}

/// Checks the device that connects the kernel's vsock to guests.
pub fn vhost_vsock() -> CheckResult {
    match fs::OpenOptions::new().read(true).write(true).open(VHOST_VSOCK) {
        Ok(_) => CheckResult::ok(VHOST_VSOCK, "can be opened"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => CheckResult::error(
            VHOST_VSOCK,
            "does not exist",
            "sudo modprobe vhost_vsock; scx-vsock serve, boot and hybrid: addresses work without it",
        ),
        Err(error) => CheckResult::error(VHOST_VSOCK, format!("cannot be opened: {error}"), JOIN_KVM_GROUP),
    }
}

/// Checks what `proxy -- CMD` needs.
fn user_namespaces() -> CheckResult {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the flags ask for no shared file descriptors or memory to be split off; the child only loses sight of
    // mounts and users that come later.
    let enter = || Ok(unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?);
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe { command.pre_exec(enter) };
    match command.status() {
        Ok(_) => CheckResult::ok(NAMESPACES, "can be created; proxy -- CMD needs no root"),
        Err(error) => CheckResult::warning(
            NAMESPACES,
            format!("cannot be created, and proxy -- CMD needs one: {error}"),
            "sudo sysctl user.max_user_namespaces=10000, and where they exist kernel.unprivileged_userns_clone=1 and \
             kernel.apparmor_restrict_unprivileged_userns=0; in a container, allow unshare in its seccomp profile",
        ),
    }
}
