//! Why a guest does not run any more.

use std::fmt;

use crate::stats::PeerText;

/// Why a guest does not run any more.
///
/// ```
/// use scx_vsock::guest::microvm::Outcome;
///
/// let outcome = Outcome::TripleFault { vcpu: 0, address: 0 };
/// assert_eq!(outcome.to_string(), "a triple fault on vCPU 0 at 0x0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The host ended it.
    Stopped,
    /// It turned itself off.
    PoweredOff,
    /// It reset itself.
    Reset,
    /// Its kernel panicked, and reset or turned off the machine.
    Panicked {
        /// The kernel's reason, as it is on the console: at most 200 bytes.
        reason: String,
    },
    /// An exception could not be handled, nor the exception of that.
    TripleFault {
        /// The vCPU's number.
        vcpu: u32,
        /// The address of its next instruction.
        address: u64,
    },
    /// KVM can neither run nor emulate what the guest does.
    InternalError {
        /// The vCPU's number.
        vcpu: u32,
        /// The address of its next instruction.
        address: u64,
        /// KVM's number of the error (`KVM_INTERNAL_ERROR_*`).
        suberror: u32,
    },
    /// KVM stopped for a reason that this VMM does not know.
    UnknownExit {
        /// The vCPU's number.
        vcpu: u32,
        /// The address of its next instruction.
        address: u64,
        /// KVM's reason.
        exit: String,
    },
    /// The host's kernel failed.
    HostFailed {
        /// What failed, and why.
        reason: String,
    },
}

/// Where a vCPU was when its guest ended. It says why a guest hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuPosition {
    /// The vCPU's number.
    pub vcpu: u32,
    /// The address of its next instruction.
    pub address: u64,
    /// Whether it takes interrupts.
    pub takes_interrupts: bool,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the host stopped the guest"),
            Self::PoweredOff => f.write_str("the guest turned itself off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panicked { reason } => write!(f, "the guest's kernel panicked: {}", PeerText::line(reason)),
            Self::TripleFault { vcpu, address } => write!(f, "a triple fault on vCPU {vcpu} at {address:#x}"),
            Self::InternalError { vcpu, address, suberror } => {
                write!(f, "KVM cannot run the instruction of vCPU {vcpu} at {address:#x} (internal error {suberror})")
            }
            Self::UnknownExit { vcpu, address, exit } => write!(f, "vCPU {vcpu} stopped at {address:#x}: {exit}"),
            Self::HostFailed { reason } => write!(f, "the host's kernel failed: {reason}"),
        }
    }
}
