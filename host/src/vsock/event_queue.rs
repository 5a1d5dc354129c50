//! The event queue and its one event, the transport reset (virtio 1.3, 5.10.6.7).
//!
//! Drivers handle the event apart from the other queues: one that receives it closes every connection that it has by
//! then, those made meanwhile included. The buffer that it posts again afterwards shows that it is done; until then the
//! other queues are not served.

use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;

use super::chain::{Direction, gather};
use super::error::DeviceError;
use super::spec::{EVENT_BYTES, EVENT_TRANSPORT_RESET};

/// How far a transport reset is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportReset {
    /// There is none, or the driver has handled it.
    #[default]
    Idle,
    /// The event is to be sent, as soon as the driver has posted a buffer for it.
    Pending,
    /// The event was sent.
    Sent {
        /// The available ring's index at that time: once it moves on, the driver has posted a buffer again.
        avail_idx: u16,
    },
}

impl TransportReset {
    /// Continues as far as the driver allows. Returns whether a buffer of the queue was used.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Chain`], [`DeviceError::Ring`].
    pub fn advance<M: GuestMemory>(&mut self, memory: &M, queue: &mut Queue) -> Result<bool, DeviceError> {
        let mut used = false;
        if *self == Self::Pending {
            used = self.send(memory, queue)?;
        }
        if let Self::Sent { avail_idx } = *self
            && has_moved_on(memory, queue, avail_idx)?
        {
            *self = Self::Idle;
        }
        Ok(used)
    }

    fn send<M: GuestMemory>(&mut self, memory: &M, queue: &mut Queue) -> Result<bool, DeviceError> {
        let mut used = false;
        // Buffers that are too short are returned unused; one round of them is enough for one call.
        for _ in 0..queue.size() {
            if !queue.enable_notification(memory)? {
                break;
            }
            let avail_idx = queue.avail_idx(memory, Ordering::Acquire)?.0;
            let Some(head) = queue.iter(memory)?.next().map(|chain| chain.head_index()) else { break };
            let sent = gather(memory, queue, head, Direction::Writable)?.write(&EVENT_TRANSPORT_RESET.to_le_bytes());
            queue.add_used(memory, head, if sent { EVENT_BYTES } else { 0 })?;
            used = true;
            if sent {
                *self = Self::Sent { avail_idx };
                break;
            }
        }
        Ok(used)
    }
}

/// Whether the available ring has moved on from this index; if not, the driver notifies the queue when it does.
fn has_moved_on<M: GuestMemory>(memory: &M, queue: &mut Queue, avail_idx: u16) -> Result<bool, Error> {
    let next = queue.next_avail();
    queue.set_next_avail(avail_idx);
    let moved_on = queue.enable_notification(memory);
    queue.set_next_avail(next);
    moved_on
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
    fn a_reset_ends_when_its_buffer_is_posted_again() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::Pending;
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Pending);
        post(&ring, 4);
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Sent { avail_idx: 1 }, vec![4]));
        assert_eq!(memory.read_obj::<u32>(BUFFER).unwrap(), EVENT_TRANSPORT_RESET);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Sent { avail_idx: 1 });
        post(&ring, 4);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Idle, vec![4]));
    }

    #[test]
    fn further_buffers_do_not_end_a_reset() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::Pending;
        post(&ring, 4);
        post(&ring, 4);
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Sent { avail_idx: 2 }, vec![4]));
        post(&ring, 4);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Idle);
    }

    #[test]
    fn short_event_buffers_are_returned_unused() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::Pending;
        (0..SIZE).for_each(|_| post(&ring, 3));
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Pending, vec![0; 4]));
        post(&ring, 3);
        post(&ring, 4);
        assert!(reset.advance(&memory, &mut queue).unwrap());
        assert_eq!(reset, TransportReset::Sent { avail_idx: SIZE + 2 });
        assert_eq!(used(&ring)[4..], [0, 4]);
    }

    #[test]
    fn without_a_reset_buffers_stay() {
        let memory = memory();
        let (ring, mut queue) = ring(&memory);
        let mut reset = TransportReset::Idle;
        post(&ring, 4);
        assert!(!reset.advance(&memory, &mut queue).unwrap());
        assert_eq!((reset, used(&ring)), (TransportReset::Idle, vec![]));
    }
}
