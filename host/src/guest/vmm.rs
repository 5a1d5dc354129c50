//! The VMM that a guest runs on, and why that one.

use std::fmt;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use std::sync::OnceLock;

use super::architecture::Architecture;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use super::microvm::{KvmUnusable, PROBE_TIMEOUT, probe};
use super::qemu::Accelerator;

/// Which VMM a guest is to run on.
///
/// ```no_run
/// use scx_vsock::guest::{Guest, Vmm};
///
/// let guest = Guest::builder().kernel("/boot/vmlinuz").vmm(Vmm::Qemu).boot()?;
/// assert!(guest.vmm().to_string().starts_with("QEMU with "));
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vmm {
    /// A microVM where KVM runs Linux, as a probe of at most two seconds shows; else QEMU with KVM; else QEMU with TCG.
    #[default]
    Auto,
    /// A microVM in this process (feature `microvm`, on x86_64).
    Microvm,
    /// QEMU, with KVM where it runs the kernel.
    Qemu,
}

/// The VMM that a guest runs on, and why that one.
///
/// ```no_run
/// # let guest = scx_vsock::guest::Guest::builder().kernel("/boot/vmlinuz").boot()?;
/// eprintln!("the guest runs on {}", guest.vmm());
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenVmm {
    running: RunningVmm,
    reason: String,
}

/// What runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunningVmm {
    /// A microVM in this process.
    Microvm,
    /// QEMU.
    Qemu(Accelerator),
}

impl ChosenVmm {
    pub(super) fn new(running: RunningVmm, reason: impl Into<String>) -> Self {
        Self { running, reason: reason.into() }
    }

    /// Returns what runs the guest.
    #[must_use]
    pub fn running(&self) -> RunningVmm {
        self.running
    }

    /// Returns why: text for people.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for ChosenVmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.running {
            RunningVmm::Microvm => "a microVM",
            RunningVmm::Qemu(Accelerator::Kvm) => "QEMU with KVM",
            RunningVmm::Qemu(Accelerator::Tcg) => "QEMU with TCG",
        };
        write!(f, "{name}: {}", self.reason)
    }
}

/// What a choice depends on.
#[derive(Clone, Debug)]
pub(super) struct Circumstances {
    pub(super) wanted: Vmm,
    /// The kernel's.
    pub(super) architecture: Architecture,
    /// What was asked for only QEMU has, if anything.
    pub(super) only_qemu_has: Option<&'static str>,
    /// Why the kernel is none for a microVM, if it is none.
    pub(super) kernel_lacks: Option<String>,
}

/// What is to run the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Microvm(String),
    /// QEMU, why, and whether KVM is known not to run any guest.
    Qemu {
        reason: String,
        without_kvm: bool,
    },
    /// What was asked for cannot be, and why.
    Refused(String),
}

/// Why a guest cannot be a microVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) reason: String,
    pub(super) without_kvm: bool,
}

impl Obstacle {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), without_kvm: false }
    }
}

impl Circumstances {
    /// Chooses, and calls `probe` only if the choice depends on it.
    pub(super) fn choose(self, probe: impl FnOnce() -> Result<(), Obstacle>) -> Choice {
        let wanted = self.wanted;
        match (wanted, self.find_obstacle(probe)) {
            (Vmm::Qemu, _) => Choice::Qemu { reason: "it was asked for".into(), without_kvm: false },
            (Vmm::Microvm, None) => Choice::Microvm("it was asked for".into()),
            (Vmm::Auto, None) => Choice::Microvm("KVM runs Linux here".into()),
            (Vmm::Microvm, Some(obstacle)) => Choice::Refused(obstacle.reason),
            (Vmm::Auto, Some(Obstacle { reason, without_kvm })) => Choice::Qemu { reason, without_kvm },
        }
    }

    fn find_obstacle(self, probe: impl FnOnce() -> Result<(), Obstacle>) -> Option<Obstacle> {
        if self.wanted == Vmm::Qemu {
            return None;
        }
        if cfg!(not(all(feature = "microvm", target_arch = "x86_64"))) {
            return Some(Obstacle::new("this build has no microVM"));
        }
        if self.architecture != Architecture::NATIVE {
            return Some(Obstacle::new(format!("the kernel is for {}", self.architecture)));
        }
        if let Some(option) = self.only_qemu_has {
            return Some(Obstacle::new(option));
        }
        if let Some(reason) = self.kernel_lacks {
            return Some(Obstacle::new(reason));
        }
        probe().err()
    }
}

/// Probes KVM, once in a process.
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
pub(super) fn probe_kvm() -> Result<(), Obstacle> {
    static PROBED: OnceLock<Result<(), Obstacle>> = OnceLock::new();
    let obstacle = |unusable: KvmUnusable| Obstacle {
        without_kvm: !matches!(unusable, KvmUnusable::TooSlow { .. }),
        reason: format!("{:#}", anyhow::Error::from(unusable)),
    };
    PROBED.get_or_init(|| probe(PROBE_TIMEOUT).map_err(obstacle)).clone()
}

#[cfg(not(all(feature = "microvm", target_arch = "x86_64")))]
pub(super) fn probe_kvm() -> Result<(), Obstacle> {
    Ok(())
}

#[cfg(all(test, feature = "microvm", target_arch = "x86_64"))]
mod tests {
    use super::*;

    const USUAL: Circumstances = Circumstances {
        wanted: Vmm::Auto,
        architecture: Architecture::NATIVE,
        only_qemu_has: None,
        kernel_lacks: None,
    };

    fn slow() -> Result<(), Obstacle> {
        Err(Obstacle { reason: "no KVM".into(), without_kvm: true })
    }

    fn never() -> Result<(), Obstacle> {
        unreachable!("the choice does not depend on it")
    }

    fn qemu(reason: &str, without_kvm: bool) -> Choice {
        Choice::Qemu { reason: reason.into(), without_kvm }
    }

    #[test]
    fn a_microvm_is_chosen_where_kvm_runs_linux() {
        assert_eq!(USUAL.choose(|| Ok(())), Choice::Microvm("KVM runs Linux here".into()));
        assert_eq!(USUAL.choose(slow), qemu("no KVM", true));
    }

    #[test]
    fn what_was_asked_for_is_chosen_or_refused() {
        let asked = |wanted| Circumstances { wanted, ..USUAL };
        assert_eq!(asked(Vmm::Qemu).choose(never), qemu("it was asked for", false));
        assert_eq!(asked(Vmm::Microvm).choose(|| Ok(())), Choice::Microvm("it was asked for".into()));
        assert_eq!(asked(Vmm::Microvm).choose(slow), Choice::Refused("no KVM".into()));
    }

    #[test]
    fn what_a_microvm_lacks_is_named() {
        let arm = Circumstances { architecture: Architecture::Aarch64, ..USUAL };
        assert_eq!(arm.choose(never), qemu("the kernel is for aarch64", false));
        let named = Circumstances { only_qemu_has: Some("a QEMU program was named"), ..USUAL };
        assert_eq!(named.choose(never), qemu("a QEMU program was named", false));
        let lacks = Circumstances { kernel_lacks: Some("no ACPI".into()), ..USUAL };
        assert_eq!(lacks.clone().choose(never), qemu("no ACPI", false));
        let refused = Circumstances { wanted: Vmm::Microvm, ..lacks };
        assert_eq!(refused.choose(never), Choice::Refused("no ACPI".into()));
    }

    #[test]
    fn the_choice_is_one_line() {
        let chosen = ChosenVmm::new(RunningVmm::Qemu(Accelerator::Tcg), "no KVM");
        assert_eq!(chosen.to_string(), "QEMU with TCG: no KVM");
        assert_eq!(
            ChosenVmm::new(RunningVmm::Microvm, "KVM runs Linux here").to_string(),
            "a microVM: KVM runs Linux here"
        );
    }
}
