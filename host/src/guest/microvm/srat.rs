//! The ACPI table of NUMA nodes (System Resource Affinity Table, ACPI 6.5, 5.2.16).

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::place::Place;
use crate::guest::topology::Topology;

/// The table's header, with the reserved number that is 1 and eight reserved bytes.
const HEADER: u32 = 48;
const RESERVED_AT: usize = 36;
const REVISION: u8 = 3;

/// Kinds of entries, their sizes, and that they count.
const PROCESSOR: [u8; 2] = [0, 16];
const MEMORY: [u8; 2] = [1, 40];
const ENABLED: u32 = 1;

/// The table.
#[derive(Debug)]
pub(super) struct Nodes {
    table: Vec<u8>,
}

impl Nodes {
    /// Returns the table of a topology with this memory, of which each node has so many MiB.
    pub(super) fn new(oem: ([u8; 6], [u8; 8]), topology: &Topology, nodes: &[u32], memory: &GuestMemoryMmap) -> Self {
        let mut table = Sdt::new(*b"SRAT", HEADER, REVISION, oem.0, oem.1, 1);
        table.write_u32(RESERVED_AT, 1);
        for place in Place::all(topology) {
            table.append_slice(&processor(place));
        }
        for (node, start, length) in ranges(nodes, memory) {
            table.append_slice(&range(node, start, length));
        }
        Self { table: table.as_slice().to_vec() }
    }
}

impl Aml for Nodes {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.table);
    }
}

fn processor(place: Place) -> Vec<u8> {
    let [node, high @ ..] = place.node.to_le_bytes();
    let [apic_id, ..] = place.apic_id.to_le_bytes();
    let mut entry = [&PROCESSOR[..], &[node, apic_id], &ENABLED.to_le_bytes(), &[0], &high].concat();
    // The clock domain: one.
    entry.extend([0; 4]);
    entry
}

fn range(node: u32, start: u64, length: u64) -> Vec<u8> {
    let mut entry = [&MEMORY[..], &node.to_le_bytes(), &[0; 2], &start.to_le_bytes(), &length.to_le_bytes()].concat();
    entry.extend([0; 4]);
    entry.extend(ENABLED.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// Divides memory among nodes with so many MiB: each range's node, start and length. The last node has the rest.
fn ranges(nodes: &[u32], memory: &GuestMemoryMmap) -> Vec<(u32, u64, u64)> {
    let mut shares = (0..).zip(nodes.iter().map(|&mib| u64::from(mib) << 20)).peekable();
    let (mut ranges, mut node, mut left) = (Vec::new(), 0, 0);
    for region in memory.iter() {
        let (mut start, mut length) = (region.start_addr().raw_value(), region.len());
        while length > 0 {
            if left == 0 {
                (node, left) = shares.next().unwrap_or((node, length));
            }
            let is_last = shares.peek().is_none();
            let part = if is_last { length } else { length.min(left) };
            ranges.push((node, start, part));
            (start, length, left) = (start + part, length - part, left.saturating_sub(part));
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_divided_across_the_hole() {
        let mib = |mib: usize| mib << 20;
        let regions = [(GuestAddress(0), mib(6)), (GuestAddress(1 << 32), mib(7))];
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        let above = 1 << 32;
        assert_eq!(ranges(&[13], &memory), [(0, 0, 6 * MIB), (0, above, 7 * MIB)]);
        let thirds = [(0, 0, 4 * MIB), (1, 4 * MIB, 2 * MIB), (1, above, 2 * MIB), (2, above + 2 * MIB, 5 * MIB)];
        assert_eq!(ranges(&[4, 4, 5], &memory), thirds);
        let uneven = [(0, 0, 6 * MIB), (0, above, MIB), (1, above + MIB, 6 * MIB)];
        assert_eq!(ranges(&[7, 6], &memory), uneven);
    }

    #[test]
    fn the_table_has_an_entry_for_each_processor_and_range() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let topology = "sockets=2,cores=2,nodes=2".parse().unwrap();
        let Nodes { table } = Nodes::new((*b"SCXVSK", *b"MICROVM "), &topology, &[4, 4], &memory);
        assert_eq!(table.len(), 48 + 4 * 16 + 2 * 40);
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "the checksum");
        // The last processor, of node 1.
        assert_eq!(table[48 + 3 * 16..48 + 4 * 16], [0, 16, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
