//! The processor's leaves about its place among the others and about caches.
//!
//! They are written by hand: KVM on an emulated processor supports none of them, and on another one they describe the host.
//! Intel has leaves 4 and 0xB; AMD 0xB, 0x80000008, 0x8000001D and 0x8000001E with TOPOEXT (AMD64 Architecture
//! Programmer's Manual, volume 3, E.4; Intel 64 Software Developer's Manual, volume 2, CPUID).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::place::{ApicIdBits, Place};
use crate::guest::topology::Topology;

/// Whose leaves a processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    Intel,
    /// AMD, and those that have its leaves.
    Amd,
}

/// The last leaves of each kind.
pub(super) const LAST_PLAIN: u32 = 0xb;
const LAST_EXTENDED: [u32; 2] = [0x8000_0008, 0x8000_001e];

/// Leaf 1, EDX: the processor's package has several threads.
const SEVERAL_THREADS: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: the package has several cores; the leaves about topology are there.
const SEVERAL_CORES: u32 = 1 << 1;
const TOPOEXT: u32 = 1 << 22;

/// A cache, in the units of the leaves.
struct Cache {
    /// 1 for data, 2 for instructions, 3 for both.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
}

/// 32 KiB of data and of instructions and 1 MiB for each core, and 16 MiB for each LLC domain.
const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways: 8, sets: 64 },
    Cache { kind: 2, level: 1, ways: 8, sets: 64 },
    Cache { kind: 3, level: 2, ways: 16, sets: 1024 },
    Cache { kind: 3, level: 3, ways: 16, sets: 16_384 },
];

/// Leaf 0x80000006, EDX, of the same last-level cache: in units of 512 KiB, 16 ways, one line a tag, lines of 64 bytes.
const LAST_LEVEL: u32 = 32 << 18 | 8 << 12 | 1 << 8 | 64;

impl Vendor {
    /// Returns the vendor that leaf 0 names.
    pub(super) fn of(leaf: &kvm_cpuid_entry2) -> Self {
        if leaf.ebx.to_le_bytes() == *b"Genu" { Self::Intel } else { Self::Amd }
    }

    /// Returns the last of the extended leaves.
    pub(super) fn last_extended(self) -> u32 {
        let [intel, amd] = LAST_EXTENDED;
        if self == Self::Intel { intel } else { amd }
    }
}

/// Completes a leaf that other facts are in, too.
pub(super) fn complete(entry: &mut kvm_cpuid_entry2, vendor: Vendor, topology: &Topology, place: Place) {
    let of_socket = topology.cpus() / topology.sockets();
    let bits = ApicIdBits::of(topology);
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xff00) | (((1 << bits.socket) & 0xff) << 16) | (place.apic_id << 24);
            entry.edx |= if of_socket > 1 { SEVERAL_THREADS } else { 0 };
        }
        0x8000_0001 if vendor == Vendor::Amd => {
            entry.ecx |= TOPOEXT | if of_socket > 1 { SEVERAL_CORES } else { 0 };
        }
        0x8000_0006 if vendor == Vendor::Amd => entry.edx = LAST_LEVEL,
        0x8000_0008 if vendor == Vendor::Amd => entry.ecx = ((of_socket - 1) & 0xff) | (bits.socket << 12),
        _ => {}
    }
}

/// Returns the leaves that have nothing else.
pub(super) fn leaves(vendor: Vendor, topology: &Topology, place: Place) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = extended_topology(topology, place).to_vec();
    let of_caches = if vendor == Vendor::Intel { 4 } else { 0x8000_001d };
    leaves.extend((0..).zip(&CACHES).map(|(index, cache)| leaf_of_cache(of_caches, index, cache, vendor, topology)));
    // An empty one ends the list.
    leaves.push(leaf(of_caches, 4, [0; 4]));
    if vendor == Vendor::Amd {
        leaves.push(leaf_of_place(topology, place));
    }
    leaves
}

/// Leaf 0xB: threads of a core, then threads of a socket, then the end.
fn extended_topology(topology: &Topology, place: Place) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let (bits, of_socket) = (ApicIdBits::of(topology), topology.cpus() / topology.sockets());
    [
        leaf(0xb, 0, [bits.core, topology.threads(), THREADS << 8, place.apic_id]),
        leaf(0xb, 1, [bits.socket, of_socket, 1 | CORES << 8, place.apic_id]),
        leaf(0xb, 2, [0, 0, 2, place.apic_id]),
    ]
}

fn leaf_of_cache(function: u32, index: u32, cache: &Cache, vendor: Vendor, topology: &Topology) -> kvm_cpuid_entry2 {
    const INITIALISES_ITSELF: u32 = 1 << 8;
    const LINE: u32 = 64;
    let bits = ApicIdBits::of(topology);
    let sharing_ids: u32 = 1 << if cache.level == 3 { bits.llc } else { bits.core };
    let cores_of_socket: u32 = 1 << (bits.socket - bits.core);
    let of_socket = if vendor == Vendor::Intel { ((cores_of_socket - 1) & 0x3f) << 26 } else { 0 };
    let eax = cache.kind | (cache.level << 5) | INITIALISES_ITSELF | ((sharing_ids - 1) << 14) | of_socket;
    leaf(function, index, [eax, (LINE - 1) | ((cache.ways - 1) << 22), cache.sets - 1, 0])
}

/// Leaf 0x8000001E: the core's number in its socket, and the node, which is the LLC domain.
fn leaf_of_place(topology: &Topology, place: Place) -> kvm_cpuid_entry2 {
    let core = place.llc % topology.llcs() * topology.cores() + place.core;
    let cores = (core & 0xff) | ((topology.threads() - 1) << 8);
    let nodes = (place.llc & 0xff) | ((topology.llcs() - 1) << 8);
    kvm_cpuid_entry2 { flags: 0, ..leaf(0x8000_001e, 0, [place.apic_id, cores, nodes, 0]) }
}

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vendor: Vendor, cpu: u32) -> Vec<kvm_cpuid_entry2> {
        let topology: Topology = "sockets=2,llcs=2,cores=3,threads=2".parse().unwrap();
        leaves(vendor, &topology, Place::of(&topology, cpu))
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let found = leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index)).unwrap();
        [found.eax, found.ebx, found.ecx, found.edx]
    }

    #[test]
    fn intel_has_leaves_4_and_b() {
        let leaves = of(Vendor::Intel, 11);
        assert_eq!(find(&leaves, 0xb, 0), [1, 2, 0x100, 0b1101]);
        assert_eq!(find(&leaves, 0xb, 1), [4, 12, 0x201, 0b1101]);
        // 16 MiB for the 8 ids of an LLC domain; 8 core ids in a socket.
        assert_eq!(find(&leaves, 4, 3), [7 << 26 | 7 << 14 | 0x163, 15 << 22 | 63, 16_383, 0]);
        assert_eq!(find(&leaves, 4, 0)[0] >> 14 & 0xfff, 1, "a core's threads share its first cache");
        assert!(leaves.iter().all(|leaf| leaf.function < 0x8000_0000));
    }

    #[test]
    fn amd_has_its_own() {
        let leaves = of(Vendor::Amd, 11);
        assert_eq!(find(&leaves, 0x8000_001e, 0), [0b1101, 5 | 1 << 8, 1 | 1 << 8, 0]);
        assert_eq!(find(&leaves, 0x8000_001d, 3)[0] >> 14 & 0xfff, 7);
        assert!(leaves.iter().all(|leaf| leaf.function != 4));
    }

    #[test]
    fn one_processor_has_no_siblings() {
        let topology = Topology::plain(1);
        let place = Place::of(&topology, 0);
        let mut first = leaf(1, 0, [0, 0xff00_0800, 0, 0]);
        complete(&mut first, Vendor::Intel, &topology, place);
        assert_eq!((first.ebx, first.edx), (0x0001_0800, 0));
    }
}
