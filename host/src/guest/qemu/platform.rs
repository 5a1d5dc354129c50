//! What differs between the machines that QEMU emulates.

use crate::guest::architecture::Architecture;

/// QEMU's machine for an architecture, and what a kernel calls its devices.
#[derive(Debug)]
pub(in crate::guest) struct Platform {
    pub(in crate::guest) qemu: &'static str,
    pub(in crate::guest) machine: &'static str,
    /// The processor without KVM.
    pub(in crate::guest) tcg_cpu: &'static str,
    /// The console's device in the guest.
    pub(in crate::guest) console: &'static str,
    /// QEMU's arguments for a second serial port on the chardev `commands`, and its device in the guest.
    pub(in crate::guest) command_port: [&'static str; 2],
    pub(in crate::guest) command_device: &'static str,
    /// Arguments of every kernel.
    pub(in crate::guest) kernel_arguments: &'static [&'static str],
}

const PC: Platform = Platform {
    qemu: "qemu-system-x86_64",
    machine: "pc",
    tcg_cpu: "max",
    console: "ttyS0",
    command_port: ["-serial", "chardev:commands"],
    command_device: "/dev/ttyS1",
    // On a busy machine an emulated timer misses the ticks that the kernel's check of it counts, and the guest panics
    // ("IO-APIC + timer doesn't work"). Under KVM the kernel skips that check by itself.
    kernel_arguments: &["no_timer_check"],
};

const VIRT: Platform = Platform {
    qemu: "qemu-system-aarch64",
    machine: "virt",
    // With QEMU's own algorithm for pointer authentication: the architecture's is slow to emulate.
    tcg_cpu: "max,pauth-impdef=on",
    console: "ttyAMA0",
    // The machine has one serial port of its own.
    command_port: ["-device", "pci-serial,chardev=commands"],
    command_device: "/dev/ttyS0",
    kernel_arguments: &[],
};

impl Platform {
    /// Returns the platform of guests of this architecture.
    pub(in crate::guest) fn of(architecture: Architecture) -> &'static Self {
        match architecture {
            Architecture::X86_64 => &PC,
            Architecture::Aarch64 => &VIRT,
        }
    }
}
