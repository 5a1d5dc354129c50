//! How QEMU runs the guest's instructions.

use std::collections::HashMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use command_fds::CommandFdExt;

use super::child_process::ChildProcess;
use super::platform::Platform;
use super::qmp_ends::QmpEnds;
use crate::guest::architecture::Architecture;
use crate::guest::console::Console;
use crate::guest::kernel_image;
use crate::io::lock::lock;

/// How long a kernel may take to print its first line under KVM. One that runs at all needs a small part of it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How QEMU runs the guest's instructions.
///
/// ```no_run
/// use std::time::Duration;
/// use scx_vsock::guest::{Architecture, qemu::Accelerator};
///
/// let accelerator = Accelerator::find("qemu-system-x86_64", "/boot/vmlinuz".as_ref());
/// println!("qemu-system-x86_64 {}", accelerator.arguments(Architecture::X86_64).join(" "));
/// let boot_timeout = match accelerator {
///     Accelerator::Kvm => Duration::from_secs(20),
///     Accelerator::Tcg => Duration::from_secs(120),
/// };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// On the host's processor, through `/dev/kvm`.
    Kvm,
    /// By translation, anywhere.
    Tcg,
}

impl Accelerator {
    /// Returns KVM where it runs this kernel under this QEMU, else TCG, as always for a kernel of another architecture. It
    /// is tried once for each pair in a process. The
    /// environment's `SCX_VSOCK_ACCELERATOR`, `kvm` or `tcg`, decides without a trial.
    #[must_use]
    pub fn find(qemu: impl AsRef<OsStr>, kernel: &Path) -> Self {
        let qemu = qemu.as_ref();
        static FOUND: LazyLock<Cache> = LazyLock::new(Cache::default);
        match env::var("SCX_VSOCK_ACCELERATOR").as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            _ => FOUND.get_or_probe(qemu, kernel, || if kvm_runs(qemu, kernel) { Self::Kvm } else { Self::Tcg }),
        }
    }

    /// Returns QEMU's arguments for it, in a guest of this architecture.
    #[must_use]
    pub fn arguments(self, architecture: Architecture) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", Platform::of(architecture).tcg_cpu],
        }
    }
}

/// A QEMU program and a kernel.
type Pair = (OsString, PathBuf);

/// What was found for each pair.
#[derive(Debug, Default)]
struct Cache(Mutex<HashMap<Pair, Arc<OnceLock<Accelerator>>>>);

impl Cache {
    /// Returns what was found for this pair. The first caller probes; others wait for its result.
    fn get_or_probe(&self, qemu: &OsStr, kernel: &Path, probe: impl FnOnce() -> Accelerator) -> Accelerator {
        let found = {
            let mut pairs = lock(&self.0);
            Arc::clone(pairs.entry((qemu.to_owned(), kernel.to_owned())).or_default())
        };
        *found.get_or_init(probe)
    }
}

/// Whether the kernel prints its first line under KVM. Opening `/dev/kvm` proves nothing: nested and paravirtual KVM can
/// fail or hang later.
#[must_use]
pub fn kvm_runs(qemu: impl AsRef<OsStr>, kernel: &Path) -> bool {
    let is_native = kernel_image::architecture(kernel).is_ok_and(|of_kernel| of_kernel == Architecture::NATIVE);
    if !is_native || std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let platform = Platform::of(Architecture::NATIVE);
    let mut command = Command::new(qemu);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-m", "256", "-machine", platform.machine])
        .args(Accelerator::Kvm.arguments(Architecture::NATIVE))
        .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
        .args(QmpEnds::arguments())
        .args(["-append", &format!("console={} panic=-1", platform.console), "-kernel"])
        .arg(kernel);
    boots(command).is_ok_and(|boots| boots)
}

/// Whether a QEMU without a file system for its kernel prints the kernel's first line.
fn boots(mut command: Command) -> io::Result<bool> {
    let (_qmp, qemu_qmp) = QmpEnds::pair()?;
    let leaver = qemu_qmp.leaver()?;
    command.fd_mappings(qemu_qmp.mappings().into()).map_err(io::Error::other)?;
    let console = Console::default();
    let process = ChildProcess::start(command, console.clone(), leaver)?;
    // The kernel panics soon after its first line, which ends QEMU.
    let _exited = process.exits_within(PROBE_TIMEOUT);
    drop(process);
    Ok(console.text().contains("Linux version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_of_qemu_and_kernel_is_probed_once() {
        let cache = Cache::default();
        let get = |qemu: &str, kernel: &str, probed| cache.get_or_probe(qemu.as_ref(), kernel.as_ref(), || probed);
        assert_eq!(get("qemu", "vmlinuz", Accelerator::Kvm), Accelerator::Kvm);
        assert_eq!(get("qemu", "other-vmlinuz", Accelerator::Tcg), Accelerator::Tcg);
        assert_eq!(get("other-qemu", "vmlinuz", Accelerator::Tcg), Accelerator::Tcg);
        assert_eq!(cache.get_or_probe("qemu".as_ref(), "vmlinuz".as_ref(), || unreachable!()), Accelerator::Kvm);
    }

    #[test]
    fn kvm_uses_the_hosts_processor() {
        let arguments = Accelerator::Kvm.arguments(Architecture::NATIVE);
        assert_eq!(arguments, ["-accel", "kvm", "-cpu", "host"]);
    }
}
