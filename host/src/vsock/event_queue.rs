//! The event queue and its one event, the transport reset (virtio 1.3, 5.10.6.7).
//!
//! Drivers handle the event apart from the other queues: one that is told of a reset closes every connection that it
//! has when it comes to it, one made meanwhile included. The buffer that it posts again afterwards tells that it is
//! through, and until then the other queues rest.

use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;

use super::DeviceError;
use super::chain::{Direction, gather};
use super::spec::{EVENT_BYTES, EVENT_TRANSPORT_RESET};

/// How far the driver is with a transport reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportReset {
    /// There is none, or the driver is through.
    #[default]
    None,
    /// The driver is to be told, as soon as it has posted a buffer for that.
    Owed,
    /// The driver was told.
    Told {
        /// The available ring's index then: with another one the driver has posted a buffer again.
        available: u16,
    },
}

impl TransportReset {
    /// Goes on as far as the driver allows; gives whether a buffer of the queue was used.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Chain`], [`DeviceError::Ring`].
    pub fn advance<M: GuestMemory>(&mut self, memory: &M, queue: &mut Queue) -> Result<bool, DeviceError> {
        let mut used = false;
        if *self == Self::Owed {
            used = self.tell(memory, queue)?;
        }
        if let Self::Told { available } = *self
            && is_beyond(memory, queue, available)?
        {
            *self = Self::None;
        }
        Ok(used)
    }

    fn tell<M: GuestMemory>(&mut self, memory: &M, queue: &mut Queue) -> Result<bool, DeviceError> {
        let mut used = false;
        // Buffers that are too short go back unused; a round of them is enough for one turn.
        for _ in 0..queue.size() {
            if !queue.enable_notification(memory)? {
                break;
            }
            let available = queue.avail_idx(memory, Ordering::Acquire)?.0;
            let Some(head) = queue.iter(memory)?.next().map(|chain| chain.head_index()) else { break };
            let told = gather(memory, queue, head, Direction::Writable)?.write(&EVENT_TRANSPORT_RESET.to_le_bytes());
            queue.add_used(memory, head, if told { EVENT_BYTES } else { 0 })?;
            used = true;
            if told {
                *self = Self::Told { available };
                break;
            }
        }
        Ok(used)
    }
}

/// Whether the available ring went on beyond this index; if not, the driver kicks when it does.
fn is_beyond<M: GuestMemory>(memory: &M, queue: &mut Queue, available: u16) -> Result<bool, Error> {
    let next = queue.next_avail();
    queue.set_next_avail(available);
    let beyond = queue.enable_notification(memory);
    queue.set_next_avail(next);
    beyond
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const SIZE: u16 = 4;
    const BUFFER: GuestAddress = GuestAddress(0x1000);
    const WRITE: u16 = 2;

    type Ring<'m> = MockSplitQueue<'m, GuestMemoryMmap<()>>;

    fn memory() -> GuestMemoryMmap<()> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        memory.write_obj(u32::MAX, BUFFER).unwrap();
        memory
    }

    fn ring(memory: &GuestMemoryMmap<()>) -> (Ring<'_>, Queue) {
        let ring = Ring::create(memory, GuestAddress(0x8000), SIZE);
        let queue = ring.create_queue().unwrap();
        (ring, queue)
    }

    /// The driver posts a buffer of so many bytes.
    fn post(ring: &Ring<'_>, len: u32) {
        let posted = ring.avail().idx().load();
        let head = posted % SIZE;
        ring.desc_table().store(head, RawDescriptor::from(Descriptor::new(BUFFER.0, len, WRITE, 0))).unwrap();
        ring.avail().ring().ref_at(usize::from(head)).unwrap().store(head);
        ring.avail().idx().store(posted + 1);
    }

    /// The bytes that are used of each buffer that the driver has back.
    fn used(ring: &Ring<'_>) -> Vec<u32> {
        let used = usize::from(ring.used().idx().load());
        (0..used).map(|index| ring.used().ring().ref_at(index % usize::from(SIZE)).unwrap().load().len()).collect()
    }

    #[test]
    fn a_driver_is_told_when_it_has_a_buffer_and_is_through_when_it_has_posted_it_again() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::Owed;
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Owed);
        post(&ring, 4);
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Told { available: 1 }, vec![4]));
        assert_eq!(memory.read_obj::<u32>(BUFFER).unwrap(), EVENT_TRANSPORT_RESET);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Told { available: 1 });
        post(&ring, 4);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::None, vec![4]));
    }

    #[test]
    fn a_driver_that_has_further_buffers_is_through_only_when_it_posts_one_more() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::Owed;
        post(&ring, 4);
        post(&ring, 4);
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Told { available: 2 }, vec![4]));
        post(&ring, 4);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::None);
    }

    #[test]
    fn buffers_that_are_too_short_go_back_unused_and_the_first_that_is_not_is_used() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::Owed;
        (0..SIZE).for_each(|_| post(&ring, 3));
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Owed, vec![0; 4]));
        post(&ring, 3);
        post(&ring, 4);
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Told { available: SIZE + 2 });
        assert_eq!(used(&ring)[4..], [0, 4]);
    }

    #[test]
    fn a_driver_that_is_owed_nothing_keeps_its_buffers() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::None;
        post(&ring, 4);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::None, vec![]));
    }
}
