//! Why a microVM cannot be made or used.
//!
//! As everywhere in this crate, the text of an error does not repeat that of its source: print the chain.

use std::io;
use std::path::PathBuf;

use super::outcome::Outcome;
use crate::guest::topology::TopologyError;
use crate::transport::{kvm, mmio};
use crate::vsock::DeviceError;

/// Why a microVM cannot be made or used. Each text names the cause and the fix.
///
/// ```
/// use scx_vsock::guest::microvm::Error;
///
/// assert_eq!(
///     Error::TooManyVcpus { asked: 65, max: 64 }.to_string(),
///     "65 vCPUs are more than the 64 that a microVM has here at most: ask for fewer (--cpus, GuestBuilder::cpus)"
/// );
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no KVM.
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd, enable virtualization in the firmware (in a virtual machine: of its \
         host), or boot with QEMU, which emulates"
    )]
    NoKvm,
    /// This user may not use KVM.
    #[error("no permission to open /dev/kvm: add this user to its group (sudo usermod -aG kvm $USER) and log in again")]
    NoPermission,
    /// KVM cannot be opened.
    #[error("cannot open /dev/kvm")]
    Open {
        /// What opening it failed with.
        source: io::Error,
    },
    /// KVM lacks something that microVMs need.
    #[error("this KVM has no {capability}: use Linux 4.12 or newer on the host, or boot with QEMU")]
    Lacks {
        /// What it lacks, in KVM's words.
        capability: &'static str,
    },
    /// A machine without a vCPU.
    #[error("a guest has at least one vCPU: ask for one or more (--cpus, GuestBuilder::cpus)")]
    NoVcpu,
    /// More vCPUs than KVM or a microVM can have.
    #[error(
        "{asked} vCPUs are more than the {max} that a microVM has here at most: ask for fewer (--cpus, GuestBuilder::cpus)"
    )]
    TooManyVcpus {
        /// The number that was asked for.
        asked: u32,
        /// The most that there can be.
        max: u32,
    },
    /// The guest cannot have this topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The kernel cannot be read.
    #[error("cannot read the kernel {} (name a file that is there and can be read)", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What reading it failed with.
        source: io::Error,
    },
    /// The file that was named as the kernel is none.
    #[error(
        "{} is no kernel that a microVM boots: name a bzImage, such as /boot/vmlinuz-$(uname -r), or a vmlinux with \
         CONFIG_PVH=y",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// A bzImage for 32-bit processors.
    #[error("{} has no 64-bit entry point: name a kernel for x86_64", path.display())]
    Not64Bit {
        /// The file.
        path: PathBuf,
    },
    /// A vmlinux that cannot begin without firmware.
    #[error("{} has no PVH entry point: name its bzImage, or a vmlinux with CONFIG_PVH=y", path.display())]
    NoPvhEntry {
        /// The file.
        path: PathBuf,
    },
    /// Kernel and initramfs do not fit into memory.
    #[error(
        "{memory_mib} MiB of memory are too little for the guest's kernel and initramfs, which take {needed_mib} MiB: give it \
         more, and room to run (--memory, GuestBuilder::memory_mib)"
    )]
    TooLittleMemory {
        /// Memory below 3 GiB.
        memory_mib: u64,
        /// What they take at least.
        needed_mib: u64,
    },
    /// The kernel's command line is too long, or has characters that it cannot have.
    #[error(
        "the kernel's command line must be at most {max} bytes of printable ASCII: shorten it (GuestBuilder::kernel_argument)"
    )]
    CommandLine {
        /// The most bytes.
        max: usize,
    },
    /// KVM refuses a part of the machine.
    #[error("KVM refuses {what}")]
    Kvm {
        /// What it refuses.
        what: &'static str,
        /// KVM's error.
        source: io::Error,
    },
    /// KVM does not restore a register of a vCPU.
    #[error("KVM does not restore the register {index:#x} of a vCPU to {value:#x}: boot another guest instead")]
    Msr {
        /// The model-specific register's number.
        index: u32,
        /// The value that it had.
        value: u64,
    },
    /// The interrupts or queue notifications cannot be connected.
    #[error(transparent)]
    Connect(#[from] kvm::Error),
    /// The vsock device cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The vsock device's registers cannot be made, paused or restored.
    #[error(transparent)]
    Registers(#[from] mmio::Error),
    /// The guest has ended.
    #[error("the guest has ended: {0}")]
    Ended(Outcome),
    /// A vCPU does not stop.
    #[error("a vCPU did not stop within {within_s} s, and the guest runs on: does the console's file system hang?")]
    NotStopped {
        /// The time limit in seconds.
        within_s: u64,
    },
    /// The guest is not paused.
    #[error("the guest runs: pause it first")]
    NotPaused,
    /// The host lacks memory, a descriptor or a thread.
    #[error("the host has no memory, descriptor or thread for the guest")]
    Host(#[from] io::Error),
}

impl Error {
    /// Returns a conversion of KVM's error.
    pub(super) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Kvm { what, source: errno.into() }
    }
}
