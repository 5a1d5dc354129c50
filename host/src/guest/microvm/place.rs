//! Where each processor is in a topology, and its APIC id.

use crate::guest::topology::{Topology, bits_for};

/// Where the parts of an APIC id begin: after the thread's bits that of the core, after these that of the LLC domain, after
/// these that of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ApicIdBits {
    pub(super) core: u32,
    pub(super) llc: u32,
    pub(super) socket: u32,
}

impl ApicIdBits {
    pub(super) fn of(topology: &Topology) -> Self {
        let core = bits_for(topology.threads());
        let llc = core + bits_for(topology.cores());
        Self { core, llc, socket: llc + bits_for(topology.llcs()) }
    }
}

/// Where a processor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) apic_id: u32,
    /// The number of its core in its LLC domain.
    pub(super) core: u32,
    /// The number of its LLC domain among all.
    pub(super) llc: u32,
    /// The number of its NUMA node.
    pub(super) node: u32,
}

impl Place {
    /// Returns the place of a processor.
    pub(super) fn of(topology: &Topology, cpu: u32) -> Self {
        let bits = ApicIdBits::of(topology);
        let core = cpu / topology.threads();
        let llc = core / topology.cores();
        let socket = llc / topology.llcs();
        let (thread, core, llc_of_socket) = (cpu % topology.threads(), core % topology.cores(), llc % topology.llcs());
        let apic_id = thread | (core << bits.core) | (llc_of_socket << bits.llc) | (socket << bits.socket);
        let llcs_of_node = (topology.sockets() * topology.llcs() / topology.nodes()).max(1);
        Self { apic_id, core, llc, node: llc / llcs_of_node }
    }

    /// Returns the places of all processors, in the order of their numbers.
    pub(super) fn all(topology: &Topology) -> impl Iterator<Item = Self> {
        (0..topology.cpus()).map(move |cpu| Self::of(topology, cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_has_its_place() {
        let topology = "sockets=2,llcs=2,cores=3,threads=2,nodes=2".parse().unwrap();
        let places: Vec<_> = Place::all(&topology).collect();
        assert_eq!(places.len(), 24);
        assert_eq!(places[0], Place { apic_id: 0, core: 0, llc: 0, node: 0 });
        // The last thread of the first socket's second LLC domain: bits 0, 1 to 2, 3.
        assert_eq!(places[11], Place { apic_id: 0b1101, core: 2, llc: 1, node: 0 });
        assert_eq!(places[12], Place { apic_id: 0b1_0000, core: 0, llc: 2, node: 1 });
        let ids: std::collections::BTreeSet<_> = places.iter().map(|place| place.apic_id).collect();
        assert_eq!(ids.len(), 24);
    }
}
