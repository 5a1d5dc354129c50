//! How QEMU runs the guest's instructions.

use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::process::Process;
use crate::guest::console::Console;

/// How long KVM has to show that it can run a kernel. A kernel that runs at all needs a small part of it.
const PROBE: Duration = Duration::from_secs(3);

/// How QEMU runs the guest's instructions.
///
/// ```no_run
/// use scx_vsock::guest::qemu::Accelerator;
///
/// let patience = match Accelerator::find("qemu-system-x86_64", "/boot/vmlinuz".as_ref()) {
///     Accelerator::Kvm => std::time::Duration::from_secs(20),
///     Accelerator::Tcg => std::time::Duration::from_secs(120),
/// };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the host's processor, through `/dev/kvm`.
    Kvm,
    /// By translation, anywhere.
    Tcg,
}

impl Accelerator {
    /// KVM where it truly runs this kernel, found out once for all guests of this process; else TCG. The environment's
    /// `SCX_VSOCK_ACCELERATOR`, `kvm` or `tcg`, decides without trying.
    ///
    /// ```no_run
    /// use scx_vsock::guest::qemu::Accelerator;
    ///
    /// let accelerator = Accelerator::find("qemu-system-x86_64", "/boot/vmlinuz".as_ref());
    /// println!("qemu-system-x86_64 {}", accelerator.arguments().join(" "));
    /// ```
    #[must_use]
    pub fn find(qemu: &str, kernel: &Path) -> Self {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        *FOUND.get_or_init(|| match env::var("SCX_VSOCK_ACCELERATOR").as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            _ if kvm_runs(qemu, kernel) => Self::Kvm,
            _ => Self::Tcg,
        })
    }

    /// QEMU's arguments for it.
    ///
    /// ```
    /// use scx_vsock::guest::qemu::Accelerator;
    ///
    /// assert_eq!(Accelerator::Kvm.arguments(), ["-accel", "kvm", "-cpu", "host"]);
    /// ```
    #[must_use]
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", "max"],
        }
    }
}

/// Whether the kernel comes as far as its first words under KVM. That `/dev/kvm` can be opened says nothing: nested
/// and paravirtual ones fail or hang later.
///
/// ```no_run
/// use scx_vsock::guest::qemu::{kvm_runs, qemu_program};
///
/// if !kvm_runs(&qemu_program(None), "/boot/vmlinuz".as_ref()) {
///     println!("/dev/kvm is not there, or does not run this kernel");
/// }
/// ```
#[must_use]
pub fn kvm_runs(qemu: &str, kernel: &Path) -> bool {
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let mut command = Command::new(qemu);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256"])
        .args(Accelerator::Kvm.arguments())
        .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
        .args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel);
    let console = Console::default();
    let Ok(process) = Process::start(command, console.clone()) else { return false };
    // Without a root file system the kernel panics soon after its first words, which ends QEMU.
    let _it_ended = process.ends_within(PROBE);
    drop(process);
    console.text().contains("Linux version")
}
