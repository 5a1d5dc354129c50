//! A descriptor chain as one sequence of bytes, however it is split.
//!
//! Drivers put header and payload into one descriptor, into two, or split the payload over many; that has no meaning
//! (virtio 1.3, 2.7.4.2). A chain that does not end, leaves guest memory or has a descriptor of the wrong direction is a
//! broken ring, not a bad packet. So is an indirect table, which no transport offers: a chain has at most as many
//! descriptors as its queue (2.7.5.2), which bounds the work of gathering it.

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::packet::Header;

/// Bytes of a descriptor (2.7.5).
const DESCRIPTOR_BYTES: u64 = 16;

/// Why a descriptor chain is broken.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// It has more descriptors than its queue.
    #[error("a descriptor chain does not end: it has more descriptors than its queue")]
    Endless,
    /// A descriptor that its queue does not have.
    #[error("a descriptor chain goes on at {index}, and its queue has no such descriptor")]
    Index {
        /// The descriptor's number.
        index: u16,
    },
    /// A table of descriptors, which was not offered.
    #[error("a descriptor refers to an indirect table at {address:#x}, which was not negotiated")]
    Indirect {
        /// The table's guest address.
        address: u64,
    },
    /// A buffer is not wholly in guest memory.
    #[error("a descriptor of {len} bytes at {address:#x} is not in guest memory")]
    Outside {
        /// The buffer's guest address.
        address: u64,
        /// The buffer's length.
        len: u32,
    },
    /// A device-writable descriptor in the transmit queue, or a device-readable one in the receive queue.
    #[error("a descriptor at {address:#x} has the wrong direction")]
    Direction {
        /// The buffer's guest address.
        address: u64,
    },
}

/// The direction of a queue's chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads them: the transmit queue.
    Readable,
    /// The device writes them: the receive queue.
    Writable,
}

impl Direction {
    fn permissions(self) -> Permissions {
        match self {
            Self::Readable => Permissions::Read,
            Self::Writable => Permissions::Write,
        }
    }
}

/// The bytes of a chain.
#[derive(Debug)]
pub struct Chain<'m, B: BitmapSlice> {
    slices: Vec<VolatileSlice<'m, B>>,
    length: usize,
}

/// Returns the buffers of the chain of `queue` that begins at the descriptor `head`.
///
/// # Errors
///
/// See [`ChainError`].
pub fn gather<'m, M: GuestMemory>(
    memory: &'m M,
    queue: &Queue,
    head: u16,
    direction: Direction,
) -> Result<Chain<'m, BS<'m, M::Bitmap>>, ChainError> {
    let mut chain = Chain { slices: Vec::with_capacity(4), length: 0 };
    let mut index = head;
    for _ in 0..queue.size() {
        let descriptor = read_descriptor(memory, queue, index)?;
        chain.push(memory, &descriptor, direction)?;
        if !descriptor.has_next() {
            return Ok(chain);
        }
        index = descriptor.next();
    }
    Err(ChainError::Endless)
}

/// Returns a copy of a descriptor: the guest can change its memory at any time.
fn read_descriptor<M: GuestMemory>(memory: &M, queue: &Queue, index: u16) -> Result<Descriptor, ChainError> {
    if index >= queue.size() {
        return Err(ChainError::Index { index });
    }
    let address = queue.desc_table().saturating_add(DESCRIPTOR_BYTES * u64::from(index));
    let outside = ChainError::Outside { address, len: 16 };
    let descriptor: Descriptor = memory.read_obj(GuestAddress(address)).map_err(|_| outside)?;
    if descriptor.refers_to_indirect_table() {
        return Err(ChainError::Indirect { address: descriptor.addr().0 });
    }
    Ok(descriptor)
}

impl<'m, B: BitmapSlice> Chain<'m, B> {
    /// Adds a descriptor's buffer.
    fn push<M: GuestMemory>(
        &mut self,
        memory: &'m M,
        descriptor: &Descriptor,
        direction: Direction,
    ) -> Result<(), ChainError>
    where
        M::Bitmap: vm_memory::bitmap::WithBitmapSlice<'m, S = B>,
    {
        let (address, len) = (descriptor.addr(), descriptor.len());
        if descriptor.is_write_only() != (direction == Direction::Writable) {
            return Err(ChainError::Direction { address: address.0 });
        }
        let outside = ChainError::Outside { address: address.0, len };
        let count = usize::try_from(len).map_err(|_| outside)?;
        for slice in memory.get_slices(address, count, direction.permissions()).map_err(|_| outside)? {
            let slice = slice.map_err(|_| outside)?;
            self.length += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    /// Returns a chain of one buffer.
    #[cfg(test)]
    pub fn of(slice: VolatileSlice<'m, B>) -> Self {
        Self { length: slice.len(), slices: vec![slice] }
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Returns the number of pieces that guest memory has them in.
    #[must_use]
    pub fn slices(&self) -> usize {
        self.slices.len()
    }

    /// Whether the chain has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns a copy of the header at the beginning, or `None` if the chain is shorter. The guest can change its memory at
    /// any time: only the copy counts.
    #[must_use]
    pub fn read_header(&self) -> Option<Header> {
        let mut bytes = [0; Header::BYTES];
        let mut rest = bytes.as_mut_slice();
        for slice in self.slices_of(0, Header::BYTES) {
            let copied = slice.copy_to(rest);
            rest = rest.get_mut(copied..).unwrap_or(&mut []);
        }
        rest.is_empty().then(|| Header::parse(&bytes))
    }

    /// Writes the header to the beginning. Returns false if the chain is shorter; a part may be written then.
    #[must_use]
    pub fn write_header(&self, header: &Header) -> bool {
        self.write(&header.emit())
    }

    /// Writes bytes to the beginning. Returns false if the chain is shorter; a part may be written then.
    #[must_use]
    pub fn write(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        for slice in self.slices_of(0, bytes.len()) {
            let count = slice.len().min(rest.len());
            let (now, later) = rest.split_at(count);
            if slice.write_slice(now, 0).is_err() {
                return false;
            }
            rest = later;
        }
        rest.is_empty()
    }

    /// Returns the slices that make up `count` bytes from `offset` on, or as many as there are.
    pub fn slices_of(&self, offset: usize, count: usize) -> impl Iterator<Item = VolatileSlice<'m, B>> {
        part_of(self.slices.iter().cloned(), offset, count)
    }
}

/// Returns the slices that make up `count` bytes of `slices` from `offset` on, or as many as there are.
pub fn part_of<'m, B: BitmapSlice>(
    slices: impl Iterator<Item = VolatileSlice<'m, B>>,
    offset: usize,
    count: usize,
) -> impl Iterator<Item = VolatileSlice<'m, B>> {
    let mut skip = offset;
    let mut left = count;
    slices.filter_map(move |slice| {
        let from = skip.min(slice.len());
        skip -= from;
        let length = (slice.len() - from).min(left);
        left -= length;
        if length == 0 { None } else { slice.subslice(from, length).ok() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestMemoryMmap;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)]).unwrap()
    }

    /// Puts one chain of (address, length, flags) into the ring of `memory` and gathers it.
    fn gathered<T>(
        memory: &GuestMemoryMmap,
        descriptors: &[(u64, u32, u16)],
        direction: Direction,
        check: impl FnOnce(Result<Chain<'_, ()>, ChainError>) -> T,
    ) -> T {
        let ring = MockSplitQueue::create(memory, GuestAddress(0x8000), 16);
        for (index, &(address, len, flags)) in (0u16..).zip(descriptors) {
            let descriptor = Descriptor::new(address, len, flags, index + 1);
            ring.desc_table().store(index, RawDescriptor::from(descriptor)).unwrap();
        }
        let queue: Queue = ring.create_queue().unwrap();
        check(gather(memory, &queue, 0, direction))
    }

    #[test]
    fn a_header_may_be_split_anywhere() {
        let memory = memory();
        let header = Header { src_cid: 3, dst_cid: 2, len: 7, op: 5, socket_type: 1, fwd_cnt: 9, ..Header::default() };
        memory.write_slice(&header.emit(), GuestAddress(0x1000)).unwrap();
        for cut in 0..=44u32 {
            let split = [(0x1000, cut, NEXT), (0x1000 + u64::from(cut), 44 - cut + 7, 0)];
            gathered(&memory, &split, Direction::Readable, |chain| {
                let chain = chain.unwrap();
                assert_eq!(chain.len(), 51);
                assert_eq!(chain.read_header(), Some(header), "cut at {cut}");
                assert_eq!(chain.slices_of(44, 100).map(|slice| slice.len()).sum::<usize>(), 7);
            });
        }
    }

    #[test]
    fn slices_do_not_depend_on_the_split() {
        let memory = memory();
        let bytes: Vec<u8> = (0..12).collect();
        memory.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
        let split = [(0x1000, 3, NEXT), (0x1003, 0, NEXT), (0x1003, 5, NEXT), (0x1008, 4, 0)];
        gathered(&memory, &split, Direction::Readable, |chain| {
            let chain = chain.unwrap();
            assert!(!chain.is_empty());
            for offset in 0..=bytes.len() {
                for count in 0..=bytes.len() + 1 {
                    let mut part = Vec::new();
                    for slice in chain.slices_of(offset, count) {
                        let mut copy = vec![0; slice.len()];
                        slice.copy_to(&mut copy);
                        part.extend(copy);
                    }
                    let end = bytes.len().min(offset + count);
                    assert_eq!(part, bytes[offset..end], "{count} bytes from {offset} on");
                }
            }
        });
    }

    #[test]
    fn a_buffer_may_cross_memory_regions() {
        let memory = memory();
        gathered(&memory, &[(0xfff0, 0x40, WRITE)], Direction::Writable, |chain| {
            let chain = chain.unwrap();
            let header = Header { src_port: 7, ..Header::default() };
            assert!(chain.write_header(&header));
            assert_eq!(chain.read_header(), Some(header));
        });
    }

    #[test]
    fn a_chain_shorter_than_a_header_has_none() {
        let memory = memory();
        gathered(&memory, &[(0x1000, 43, 0)], Direction::Readable, |chain| {
            let chain = chain.unwrap();
            assert_eq!(chain.read_header(), None);
            assert!(!chain.write_header(&Header::default()));
        });
    }

    #[test]
    fn a_chain_is_no_longer_than_its_queue() {
        let memory = memory();
        let mut descriptors = [(0x1000, 1, NEXT); 16];
        gathered(&memory, &descriptors, Direction::Readable, |chain| {
            assert_eq!(chain.unwrap_err(), ChainError::Endless);
        });
        descriptors[15].2 = 0;
        gathered(&memory, &descriptors, Direction::Readable, |chain| assert_eq!(chain.unwrap().len(), 16));
    }

    #[test]
    fn loops_and_bad_indices_are_refused() {
        let memory = memory();
        let ring = MockSplitQueue::create(&memory, GuestAddress(0x8000), 16);
        let queue: Queue = ring.create_queue().unwrap();
        for (next, expected) in [(0, ChainError::Endless), (16, ChainError::Index { index: 16 })] {
            let descriptor = Descriptor::new(0x1000, 1, NEXT, next);
            ring.desc_table().store(0, RawDescriptor::from(descriptor)).unwrap();
            assert_eq!(gather(&memory, &queue, 0, Direction::Readable).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_table_that_is_not_in_memory_is_named() {
        let memory = memory();
        for (table, address) in [(0x1_fff0, 0x2_0000), (u64::MAX - 15, u64::MAX)] {
            let mut queue = Queue::new(16).unwrap();
            queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
            let error = gather(&memory, &queue, 1, Direction::Readable).unwrap_err();
            assert_eq!(error, ChainError::Outside { address, len: 16 });
        }
    }

    #[test]
    fn descriptors_without_bytes_add_nothing() {
        let memory = memory();
        gathered(&memory, &[(0x1000, 0, NEXT), (0x1000, 0, 0)], Direction::Readable, |chain| {
            assert!(chain.unwrap().is_empty());
        });
    }

    #[test]
    fn an_indirect_table_is_a_broken_ring() {
        let memory = memory();
        gathered(&memory, &[(0x1000, 1, NEXT), (0x3000, 16, INDIRECT)], Direction::Readable, |chain| {
            assert_eq!(chain.unwrap_err(), ChainError::Indirect { address: 0x3000 });
        });
    }

    #[test]
    fn a_buffer_that_leaves_memory_is_named() {
        let memory = memory();
        gathered(&memory, &[(0x1_ffff, 2, 0)], Direction::Readable, |chain| {
            assert_eq!(chain.unwrap_err(), ChainError::Outside { address: 0x1_ffff, len: 2 });
        });
        gathered(&memory, &[(u64::MAX, 2, 0)], Direction::Readable, |chain| {
            assert_eq!(chain.unwrap_err(), ChainError::Outside { address: u64::MAX, len: 2 });
        });
    }

    #[test]
    fn a_descriptor_of_the_wrong_direction_is_named() {
        let memory = memory();
        gathered(&memory, &[(0x1000, 44, WRITE)], Direction::Readable, |chain| {
            assert_eq!(chain.unwrap_err(), ChainError::Direction { address: 0x1000 });
        });
        gathered(&memory, &[(0x1000, 44, 0)], Direction::Writable, |chain| {
            assert_eq!(chain.unwrap_err(), ChainError::Direction { address: 0x1000 });
        });
    }
}
