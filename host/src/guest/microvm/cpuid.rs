//! The processor's features: what every processor of the last decade has, and no more.
//!
//! Much of what KVM supports depends on registers that a VMM has to set first. A guest that sees all of it may use what is
//! not there: kernels panic early in their boot then. The TSC deadline timer is hidden, too, since nested KVM under
//! emulation loses its interrupts.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::cpuid_topology::{self, LAST_PLAIN, Vendor};
use super::error::Error;
use super::place::Place;
use crate::guest::topology::Topology;

/// Leaves of KVM's that are kept: identity and features, KVM's own, and the same of AMD.
const LEAVES: [(u32, u32); 3] = [(0, 1), (0x4000_0000, 0x4000_0001), (0x8000_0000, 0x8000_0008)];

/// Leaf 1, EDX: everything that x86-64 began with, floating point and SSE2 included.
const FEATURES_EDX: u32 = 0x0789_fbff;
/// Leaf 1, ECX: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, the APIC by registers of the processor, POPCNT, and that there
/// is a hypervisor.
const FEATURES_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 23 | 1 << 31;
/// Leaf 0x40000001, EAX: KVM's clock in both forms, and that it is stable.
///
/// The guest must not end interrupts without an exit under an emulator: QEMU's of SVM (7.2) keeps the interrupt that KVM
/// injected until the next exit, and if another of its threads kicks the processor meanwhile, the guest gets it again,
/// whether it takes interrupts or not; it then waits for a lock of its own.
const KVM_CLOCK: u32 = 1 | 1 << 3 | 1 << 24;
/// Leaf 0x80000001, EDX: those of leaf 1 again, SYSCALL, NX and long mode.
const EXTENDED_EDX: u32 = 0x0183_f3ff | 1 << 11 | 1 << 20 | 1 << 29;
/// Leaf 0x80000001, ECX: LAHF in long mode.
const EXTENDED_ECX: u32 = 1;

/// Returns the features of the vCPU at this place of a topology.
pub(super) fn features(kvm: &Kvm, topology: &Topology, place: Place) -> Result<CpuId, Error> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("to list the vCPU's features"))?;
    let vendor = supported.as_slice().iter().find(|entry| entry.function == 0).map_or(Vendor::Intel, Vendor::of);
    let kept = supported.as_slice().iter().filter(|entry| is_kept(entry.function));
    let mut entries: Vec<_> = kept.map(|entry| reduced(*entry, vendor)).collect();
    entries.iter_mut().for_each(|entry| cpuid_topology::complete(entry, vendor, topology, place));
    entries.extend(cpuid_topology::leaves(vendor, topology, place));
    CpuId::from_entries(&entries).map_err(|error| std::io::Error::other(format!("{error:?}")).into())
}

fn is_kept(leaf: u32) -> bool {
    LEAVES.iter().any(|&(first, last)| (first..=last).contains(&leaf))
}

fn reduced(mut entry: kvm_cpuid_entry2, vendor: Vendor) -> kvm_cpuid_entry2 {
    match entry.function {
        // The last leaf of each kind.
        0 => entry.eax = LAST_PLAIN,
        0x8000_0000 => entry.eax = vendor.last_extended(),
        1 => {
            entry.ecx &= FEATURES_ECX;
            entry.edx &= FEATURES_EDX;
        }
        0x4000_0001 => entry.eax &= KVM_CLOCK,
        0x8000_0001 => {
            entry.ecx &= EXTENDED_ECX;
            entry.edx &= EXTENDED_EDX;
        }
        0x8000_0007 | 0x8000_0008 => (entry.ebx, entry.ecx) = (0, 0),
        _ => {}
    }
    entry
}
