//! Descriptor chains against a walk that knows nothing of slices: one byte after the other.

use scx_vsock::vsock::chain::{Chain, ChainError, Direction, gather};
use scx_vsock::vsock::packet::Header;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Script;
use crate::guest_driver::{INDIRECT, NEXT, WRITE};

/// Regions of guest memory: two that meet, and one after a hole.
const REGIONS: [(u64, usize); 3] = [(0, 0x1800), (0x1800, 0x800), (0x3000, 0x1000)];

/// Where the table of descriptors is; no buffer overlaps it on purpose, but any may.
const TABLE: u64 = 0x3800;

/// Runs a script: the first bytes make a table, the rest asks for parts of the chain.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let ranges = REGIONS.map(|(start, size)| (GuestAddress(start), size));
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("guest memory");
    for (start, size) in REGIONS {
        let bytes: Vec<u8> = (start..start + size as u64).map(pattern).collect();
        memory.write_slice(&bytes, GuestAddress(start)).expect("guest memory");
    }
    let size = 1 << script.below(5);
    let direction = if script.byte().is_multiple_of(2) { Direction::Readable } else { Direction::Writable };
    let head = u16::from(script.byte() % 20);
    let descriptors: Vec<_> = (0..size).map(|_| descriptor(&mut script, direction)).collect();
    for (index, &(address, len, flags, next)) in (0u64..).zip(&descriptors) {
        let bytes =
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        memory.write_slice(&bytes, GuestAddress(TABLE + 16 * index)).expect("guest memory");
    }
    let mut queue = Queue::new(16).expect("a size");
    queue.set_size(size);
    queue.set_desc_table_address(Some(0x3800), Some(0));
    let expected = walk(&descriptors, head, direction);
    match (gather(&memory, &queue, head, direction), expected) {
        (Ok(chain), Ok(addresses)) => agrees(&memory, &chain, &addresses, &mut script),
        (got, expected) => assert_eq!(got.map(|_| ()), expected.map(|_| ())),
    }
}

fn pattern(address: u64) -> u8 {
    u8::try_from((address * 31 + address / 251) % 256).expect("a byte")
}

fn descriptor(script: &mut Script<'_>, direction: Direction) -> (u64, u32, u16, u16) {
    let kind = script.byte();
    let address = match kind >> 6 {
        0 => script.long(),
        _ => u64::from(script.short() % 0x4200),
    };
    let len = match (kind >> 4) % 4 {
        0 => script.word(),
        1 => u32::from(script.short() % 0x900),
        _ => u32::from(script.byte()),
    };
    let right = if direction == Direction::Writable { WRITE } else { 0 };
    let flags = match kind % 16 {
        0 => script.short(),
        1 => right | INDIRECT,
        2 => right ^ WRITE,
        3..=6 => right,
        _ => right | NEXT,
    };
    (address, len, flags, u16::from(script.byte() % 20))
}

fn is_in_memory(address: u64) -> bool {
    REGIONS.iter().any(|&(start, size)| (start..start + size as u64).contains(&address))
}

/// The address of each byte of the chain.
fn walk(table: &[(u64, u32, u16, u16)], head: u16, direction: Direction) -> Result<Vec<u64>, ChainError> {
    let mut addresses = Vec::new();
    let mut index = head;
    for _ in 0..table.len() {
        let &(address, len, flags, next) = table.get(usize::from(index)).ok_or(ChainError::Index { index })?;
        if flags & INDIRECT != 0 {
            return Err(ChainError::Indirect { address });
        }
        if (flags & WRITE != 0) != (direction == Direction::Writable) {
            return Err(ChainError::Direction { address });
        }
        for offset in 0..u64::from(len) {
            let byte = address.checked_add(offset).filter(|&byte| is_in_memory(byte));
            addresses.push(byte.ok_or(ChainError::Outside { address, len })?);
        }
        if flags & NEXT == 0 {
            return Ok(addresses);
        }
        index = next;
    }
    Err(ChainError::Endless)
}

/// The chain has exactly these bytes, in this order.
fn agrees(memory: &GuestMemoryMmap, chain: &Chain<'_, ()>, addresses: &[u64], script: &mut Script<'_>) {
    assert_eq!((chain.len(), chain.is_empty()), (addresses.len(), addresses.is_empty()));
    let read = |address: &u64| memory.read_obj::<u8>(GuestAddress(*address)).expect("guest memory");
    let bytes: Vec<u8> = addresses.iter().map(read).collect();
    let header = bytes.first_chunk().map(Header::parse);
    assert_eq!(chain.read_header(), header);
    let (offset, count) = (usize::from(script.byte()), usize::from(script.short()));
    let mut got = Vec::new();
    for slice in chain.slices_of(offset, count) {
        let mut piece = vec![0; slice.len()];
        slice.copy_to(&mut piece);
        got.extend(piece);
    }
    let expected = bytes.get(offset..).unwrap_or(&[]);
    assert_eq!(got, &expected[..count.min(expected.len())]);
    let header = Header { src_cid: script.long(), len: script.word(), ..Header::default() };
    assert_eq!(chain.write_header(&header), bytes.len() >= Header::BYTES);
    if bytes.len() >= Header::BYTES && no_address_twice(&addresses[..Header::BYTES]) {
        let written: Vec<u8> = addresses[..Header::BYTES].iter().map(read).collect();
        assert_eq!(written, header.emit());
    }
}

fn no_address_twice(addresses: &[u64]) -> bool {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}
