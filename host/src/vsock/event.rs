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
