//! Credit: how much each side may send (virtio 1.3, 5.10.6.3).
//!
//! The counters are free-running and wrap. What follows from a peer's counters is clamped at zero: a peer that
//! shrinks its buffer, or claims to have taken out more than was sent, gets nothing more until its numbers allow it.

use std::num::Wrapping;

/// The credit of one connection, both ways.
#[derive(Clone, Debug)]
pub struct Credit {
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// The guest's `buf_alloc`.
    guest_buffer: u32,
    /// The guest's `fwd_cnt`.
    guest_forwarded: Wrapping<u32>,
    /// The host's `buf_alloc`.
    buffer: u32,
    /// Bytes received from the guest.
    received: Wrapping<u32>,
    /// The host's `fwd_cnt`: bytes that entered the host's socket.
    forwarded: Wrapping<u32>,
    /// The `fwd_cnt` that the guest was last told.
    told: Wrapping<u32>,
}

/// A guest sent more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverCredit;

impl Credit {
    /// The credit of a new connection whose host side buffers `buffer` bytes.
    #[must_use]
    pub fn new(buffer: u32) -> Self {
        let zero = Wrapping(0);
        Self { sent: zero, guest_buffer: 0, guest_forwarded: zero, buffer, received: zero, forwarded: zero, told: zero }
    }

    /// Takes over the credit fields of a guest's packet.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_buffer = buf_alloc;
        self.guest_forwarded = Wrapping(fwd_cnt);
    }

    /// Bytes that may be sent to the guest now.
    #[must_use]
    pub fn available(&self) -> u32 {
        let in_flight = self.sent - self.guest_forwarded;
        self.guest_buffer.saturating_sub(in_flight.0)
    }

    /// Accounts for bytes sent to the guest.
    pub fn send(&mut self, count: u32) {
        self.sent += count;
    }

    /// Accounts for bytes received from the guest.
    ///
    /// # Errors
    ///
    /// When the guest had no credit for them; nothing is accounted for then.
    pub fn receive(&mut self, count: u32) -> Result<(), OverCredit> {
        let held = (self.received - self.forwarded).0;
        if count > self.buffer.saturating_sub(held) {
            return Err(OverCredit);
        }
        self.received += count;
        Ok(())
    }

    /// Accounts for bytes of the guest that entered the host's socket.
    pub fn forward(&mut self, count: u32) {
        self.forwarded += count;
    }

    /// Whether so much was forwarded since the guest was last told that it should be told now. Half of the buffer: a
    /// guest that has used up its credit is told in any case, and one that has not needs no packet of its own.
    #[must_use]
    pub fn owes_update(&self) -> bool {
        (self.forwarded - self.told).0 >= self.buffer / 2
    }

    /// The credit fields of a packet to the guest, `buf_alloc` and `fwd_cnt`, which the guest is thereby told.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.buffer, self.forwarded.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUFFER: u32 = 4096;

    #[test]
    fn a_guest_that_said_nothing_gets_nothing() {
        assert_eq!(Credit::new(BUFFER).available(), 0);
    }

    #[test]
    fn credit_counts_down_to_zero_and_up_again() {
        let mut credit = Credit::new(BUFFER);
        credit.update(100, 0);
        credit.send(100);
        assert_eq!(credit.available(), 0);
        credit.update(100, 60);
        assert_eq!(credit.available(), 60);
    }

    #[test]
    fn a_shrunken_buffer_is_no_credit_instead_of_a_huge_one() {
        let mut credit = Credit::new(BUFFER);
        credit.update(100, 0);
        credit.send(80);
        credit.update(10, 0);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn a_guest_that_forwarded_more_than_was_sent_gets_nothing() {
        let mut credit = Credit::new(BUFFER);
        credit.update(100, 1);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn a_guest_may_fill_the_buffer_and_not_one_byte_more() {
        let mut credit = Credit::new(BUFFER);
        assert_eq!(credit.receive(BUFFER + 1), Err(OverCredit));
        assert_eq!(credit.receive(BUFFER), Ok(()));
        assert_eq!(credit.receive(1), Err(OverCredit));
        assert_eq!(credit.receive(0), Ok(()));
        credit.forward(1);
        assert_eq!(credit.receive(1), Ok(()));
        assert_eq!(credit.receive(u32::MAX), Err(OverCredit));
    }

    #[test]
    fn the_guest_is_told_when_half_of_the_buffer_was_forwarded() {
        let mut credit = Credit::new(BUFFER);
        credit.receive(BUFFER).unwrap();
        credit.forward(BUFFER / 2 - 1);
        assert!(!credit.owes_update());
        credit.forward(1);
        assert!(credit.owes_update());
        assert_eq!(credit.tell(), (BUFFER, BUFFER / 2));
        assert!(!credit.owes_update());
    }

    proptest! {
        #[test]
        fn wrapping_counters_agree_with_unbounded_ones(
            start: u32,
            steps in proptest::collection::vec((0u8..4, 0u32..BUFFER * 2), 0..300),
        ) {
            let mut credit = Credit::new(BUFFER);
            for counter in
                [&mut credit.sent, &mut credit.guest_forwarded, &mut credit.received, &mut credit.forwarded, &mut credit.told]
            {
                *counter = Wrapping(start);
            }
            let (mut sent, mut taken, mut received, mut forwarded) = (0u64, 0u64, 0u64, 0u64);
            credit.update(BUFFER, start);
            for (step, count) in steps {
                match step {
                    0 => {
                        let count = count.min(credit.available());
                        credit.send(count);
                        sent += u64::from(count);
                    }
                    1 => {
                        taken += u64::from(count).min(sent - taken);
                        let low = u32::try_from(taken & 0xffff_ffff).unwrap();
                        credit.update(BUFFER, start.wrapping_add(low));
                    }
                    2 => {
                        let fits = received - forwarded + u64::from(count) <= u64::from(BUFFER);
                        prop_assert_eq!(credit.receive(count).is_ok(), fits);
                        received += if fits { u64::from(count) } else { 0 };
                    }
                    _ => {
                        let count = u64::from(count).min(received - forwarded);
                        credit.forward(u32::try_from(count).unwrap());
                        forwarded += count;
                    }
                }
                prop_assert_eq!(u64::from(credit.available()), u64::from(BUFFER) - (sent - taken));
            }
        }
    }
}
