//! Packets of the guest that the device is through with, and that are not in the used ring yet.
//!
//! A driver asks for an interrupt of the transmit queue to free what it has sent, and has nothing else to do then. While
//! packets come one soon after another, several of them are completed together: none much later than [`LONGEST`] after it
//! was taken, and never so many that the driver could be short of descriptors. What costs no interrupt is completed at once,
//! and so is what comes alone: a driver that waits for each of its packets waits in vain once, and then not for a while.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// How long a packet is held at most.
pub const LONGEST: Duration = Duration::from_millis(1);

/// The part of a queue's descriptors that may be held.
const PART: usize = 4;

/// Packets that are completed at once after one was held in vain.
const WITHOUT_HOLD: u16 = 256;

/// The heads of the chains, and since when there are any.
#[derive(Debug, Default)]
pub struct TxCompletions {
    heads: Vec<u16>,
    descriptors: usize,
    /// When the first of them is to be completed; without it, as soon as the queue is served.
    due: Option<Instant>,
    /// When the latest packet came.
    latest: Option<Instant>,
    /// Packets to come that are not held.
    without_hold: u16,
}

impl TxCompletions {
    /// Holds a packet, a chain of so many descriptors, that was taken just now. Returns false if it is to be completed at
    /// once, since no other came just before.
    #[must_use]
    pub fn hold(&mut self, head: u16, descriptors: usize, now: Instant) -> bool {
        let soon = self.latest.is_some_and(|before| now.saturating_duration_since(before) < LONGEST);
        self.latest = Some(now);
        self.without_hold = self.without_hold.saturating_sub(1);
        let may_hold = soon && self.without_hold == 0;
        if may_hold {
            self.push(head, descriptors, now);
        }
        may_hold
    }

    fn push(&mut self, head: u16, descriptors: usize, now: Instant) {
        self.heads.push(head);
        self.descriptors = self.descriptors.saturating_add(descriptors);
        self.due = self.due.or_else(|| now.checked_add(LONGEST));
    }

    fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Returns how long the device may wait before it completes them, or `None` for as long as it wants.
    pub fn due_within(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// Makes those due that are there when the time is over: if the queue cannot be served then, when it next can.
    pub fn on_time(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due <= now) {
            if self.heads.len() == 1 {
                self.without_hold = WITHOUT_HOLD;
            }
            self.due = None;
        }
    }

    /// Whether they are to be completed now.
    ///
    /// # Errors
    ///
    /// If the queue is not in guest memory.
    pub fn is_due<M: GuestMemory>(&self, memory: &M, queue: &Queue, now: Instant) -> Result<bool, Error> {
        let is_late = self.due.is_none_or(|due| due <= now);
        let are_many = self.descriptors >= usize::from(queue.size()) / PART;
        Ok(!self.is_empty() && (is_late || are_many || !self.would_interrupt(memory, queue)?))
    }

    /// Whether the driver has asked for an interrupt at one of them (virtio 1.3, 2.7.7).
    fn would_interrupt<M: GuestMemory>(&self, memory: &M, queue: &Queue) -> Result<bool, Error> {
        if !queue.event_idx_enabled() {
            return Ok(true);
        }
        let used_event = queue.avail_ring().saturating_add(4 + 2 * u64::from(queue.size()));
        let used_event = memory.load(GuestAddress(used_event), Ordering::Relaxed).map_err(Error::GuestMemory)?;
        Ok(usize::from(u16::from_le(used_event).wrapping_sub(queue.next_used())) < self.heads.len())
    }

    /// Completes all. Returns whether there were any.
    ///
    /// # Errors
    ///
    /// If the queue is not in guest memory.
    pub fn publish<M: GuestMemory>(&mut self, memory: &M, queue: &mut Queue) -> Result<bool, Error> {
        let any = !self.is_empty();
        for head in self.heads.drain(..) {
            queue.add_used(memory, head, 0)?;
        }
        (self.descriptors, self.due) = (0, None);
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestMemoryMmap;

    const SIZE: u16 = 16;

    fn with_queue(test: impl FnOnce(&GuestMemoryMmap, &mut Queue)) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let ring = MockSplitQueue::create(&memory, GuestAddress(0x1000), SIZE);
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.set_event_idx(true);
        test(&memory, &mut queue);
    }

    /// Makes the driver ask for an interrupt once this entry was used.
    fn ask_for(memory: &GuestMemoryMmap, queue: &Queue, used_event: u16) {
        let at = GuestAddress(queue.avail_ring() + 4 + 2 * u64::from(SIZE));
        memory.write_obj(used_event.to_le(), at).unwrap();
    }

    #[test]
    fn what_comes_alone_is_not_held() {
        let (mut completions, now) = (TxCompletions::default(), Instant::now());
        assert!(!completions.hold(0, 1, now));
        assert!(!completions.hold(1, 1, now + LONGEST));
        assert!(completions.hold(2, 1, now + LONGEST * 3 / 2));
    }

    #[test]
    fn an_interrupt_is_put_off_for_a_while() {
        with_queue(|memory, queue| {
            let (mut completions, now) = (TxCompletions::default(), Instant::now());
            completions.push(3, 1, now);
            completions.push(1, 1, now + LONGEST / 2);
            assert!(!completions.is_due(memory, queue, now).unwrap());
            assert_eq!(completions.due_within(now), Some(LONGEST));
            assert!(completions.is_due(memory, queue, now + LONGEST).unwrap());
            assert!(completions.publish(memory, queue).unwrap());
            assert_eq!(queue.used_idx(memory, Ordering::Relaxed).unwrap().0, 2);
            assert!(!completions.publish(memory, queue).unwrap() && completions.due_within(now).is_none());
        });
    }

    #[test]
    fn without_an_interrupt_nothing_is_put_off() {
        with_queue(|memory, queue| {
            let (mut completions, now) = (TxCompletions::default(), Instant::now());
            ask_for(memory, queue, 1);
            completions.push(0, 1, now);
            assert!(completions.is_due(memory, queue, now).unwrap());
            completions.push(1, 1, now);
            assert!(!completions.is_due(memory, queue, now).unwrap());
            queue.set_next_used(2);
            assert!(completions.is_due(memory, queue, now).unwrap(), "the interrupt was for what came before");
        });
    }

    #[test]
    fn a_quarter_of_the_descriptors_is_held_at_most() {
        with_queue(|memory, queue| {
            let (mut completions, now) = (TxCompletions::default(), Instant::now());
            completions.push(0, 3, now);
            assert!(!completions.is_due(memory, queue, now).unwrap());
            completions.push(3, 1, now);
            assert!(completions.is_due(memory, queue, now).unwrap());
        });
    }

    #[test]
    fn a_driver_that_waits_for_each_packet_is_not_held_up() {
        with_queue(|memory, queue| {
            let (mut completions, now) = (TxCompletions::default(), Instant::now());
            completions.push(0, 1, now);
            completions.on_time(now);
            assert_eq!(completions.due_within(now), Some(LONGEST), "it is not time yet");
            completions.on_time(now + LONGEST);
            assert!(completions.due_within(now).is_none() && completions.is_due(memory, queue, now).unwrap());
            completions.publish(memory, queue).unwrap();
            let held = (0..u16::MAX).position(|_| completions.hold(0, 1, now));
            assert_eq!(held, Some(usize::from(WITHOUT_HOLD) - 1));
        });
    }
}
