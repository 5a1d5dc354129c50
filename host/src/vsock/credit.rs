//! Credit: how much each side may send (virtio 1.3, 5.10.6.3).
//!
//! The counters are free-running and wrap. Credit that follows from a peer's counters is clamped at zero: a peer that
//! shrinks its buffer is sent nothing more until its counters allow it. One that claims to have taken out more than was
//! sent gets nothing either or, where its buffer is nearly as large as the counters reach, less than it claims.
//!
//! The arithmetic is the same for every width of the counters, so that tests can try all values of a narrow one.

/// An unsigned integer as a counter: `u32` on the wire.
pub trait Counter: Copy + Default + Ord {
    /// Returns the sum, modulo the width.
    #[must_use]
    fn wrapping_add(self, other: Self) -> Self;
    /// Returns the difference, modulo the width.
    #[must_use]
    fn wrapping_sub(self, other: Self) -> Self;
    /// Returns the difference, or zero where it would be negative.
    #[must_use]
    fn saturating_sub(self, other: Self) -> Self;
    /// Returns half of it, rounded down.
    #[must_use]
    fn half(self) -> Self;
}

macro_rules! counter {
    ($integer:ty) => {
        impl Counter for $integer {
            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn wrapping_sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            fn saturating_sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }

            fn half(self) -> Self {
                self / 2
            }
        }
    };
}

counter!(u32);
#[cfg(test)]
counter!(u8);

/// The credit of one connection, in both directions.
#[derive(Clone, Debug)]
pub struct Credit<N = u32> {
    /// Bytes sent to the guest.
    sent: N,
    /// The guest's `buf_alloc`.
    guest_buffer: N,
    /// The guest's `fwd_cnt`.
    guest_forwarded: N,
    /// The host's `buf_alloc`.
    buffer: N,
    /// Bytes received from the guest.
    received: N,
    /// The host's `fwd_cnt`: bytes that entered the host's socket.
    forwarded: N,
    /// The `fwd_cnt` of the last packet to the guest.
    advertised: N,
}

/// A guest sent more than it had credit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverCredit;

impl<N: Counter> Credit<N> {
    /// Returns the credit of a new connection whose host side buffers `buffer` bytes.
    #[must_use]
    pub fn new(buffer: N) -> Self {
        let zero = N::default();
        Self {
            sent: zero,
            guest_buffer: zero,
            guest_forwarded: zero,
            buffer,
            received: zero,
            forwarded: zero,
            advertised: zero,
        }
    }

    /// Takes the credit fields of a packet of the guest.
    pub fn update(&mut self, buf_alloc: N, fwd_cnt: N) {
        self.guest_buffer = buf_alloc;
        self.guest_forwarded = fwd_cnt;
    }

    /// Returns the bytes that may be sent to the guest now.
    #[must_use]
    pub fn available(&self) -> N {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Accounts for bytes sent to the guest.
    pub fn send(&mut self, count: N) {
        self.sent = self.sent.wrapping_add(count);
    }

    /// Accounts for bytes received from the guest.
    ///
    /// # Errors
    ///
    /// If the guest had no credit for them; nothing is accounted for then.
    pub fn receive(&mut self, count: N) -> Result<(), OverCredit> {
        let held = self.received.wrapping_sub(self.forwarded);
        if count > self.buffer.saturating_sub(held) {
            return Err(OverCredit);
        }
        self.received = self.received.wrapping_add(count);
        Ok(())
    }

    /// Accounts for bytes of the guest that entered the host's socket.
    pub fn forward(&mut self, count: N) {
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// Whether the guest should be sent an update now: since the last packet half of what it may have in flight was
    /// forwarded. One that has used up its credit is sent one in any case; one that has not needs no packet of its own.
    ///
    /// Linux has no more in flight than its own buffer could take, however large that of the peer is (since the fix of
    /// CVE-2026-23086).
    #[must_use]
    pub fn needs_update(&self) -> bool {
        let unsent = self.forwarded.wrapping_sub(self.advertised);
        unsent > N::default() && unsent >= self.buffer.min(self.guest_buffer).half()
    }

    /// Returns the credit fields of a packet that is sent to the guest now: `buf_alloc` and `fwd_cnt`.
    pub fn advertise(&mut self) -> (N, N) {
        self.advertised = self.forwarded;
        (self.buffer, self.forwarded)
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
    fn an_update_is_due_after_half_the_buffer() {
        let mut credit = Credit::new(BUFFER);
        credit.update(u32::MAX, 0);
        credit.receive(BUFFER).unwrap();
        credit.forward(BUFFER / 2 - 1);
        assert!(!credit.needs_update());
        credit.forward(1);
        assert!(credit.needs_update());
        assert_eq!(credit.advertise(), (BUFFER, BUFFER / 2));
        assert!(!credit.needs_update());
    }

    #[test]
    fn a_smaller_guest_buffer_halves_the_update() {
        let mut credit = Credit::new(BUFFER);
        credit.update(u32::MAX, 0);
        credit.receive(BUFFER).unwrap();
        credit.forward(100);
        assert!(!credit.needs_update());
        credit.update(200, 0);
        assert!(credit.needs_update(), "the guest shrank its buffer");
        credit.advertise();
        credit.update(0, 0);
        assert!(!credit.needs_update(), "the guest knows all");
        credit.forward(1);
        assert!(credit.needs_update());
    }

    /// Each of these goes through every state that the counters of one direction can be in, 8 bits wide, and compares
    /// with integers that do not wrap: a sum of 256 more than the counter shows stands for all the rounds before.
    mod in_every_state {
        use super::*;

        const ROUND: u16 = 256;

        fn all() -> impl Iterator<Item = u8> {
            0..=u8::MAX
        }

        fn sending(sent: u16, guest_buffer: u8, taken: u16) -> Credit<u8> {
            let [sent, _] = sent.to_le_bytes();
            let [guest_forwarded, _] = taken.to_le_bytes();
            Credit { sent, guest_buffer, guest_forwarded, ..Credit::new(0) }
        }

        #[test]
        fn credit_is_the_guests_buffer_less_what_is_under_way_or_nothing() {
            for (sent, under_way) in all().flat_map(|sent| all().map(move |under_way| (sent, under_way))) {
                let sent = ROUND + u16::from(sent);
                let taken = sent - u16::from(under_way);
                for guest_buffer in all() {
                    let expected = i16::from(guest_buffer) - i16::from(under_way);
                    let available = sending(sent, guest_buffer, taken).available();
                    assert_eq!(i16::from(available), expected.max(0), "{sent} {taken} {guest_buffer}");
                }
            }
        }

        #[test]
        fn a_guest_that_is_ahead_by_some_bytes_gets_fewer_than_those() {
            for (sent, ahead) in all().flat_map(|sent| (1..=u8::MAX).map(move |ahead| (sent, ahead))) {
                let sent = ROUND + u16::from(sent);
                for guest_buffer in all() {
                    let available = sending(sent, guest_buffer, sent + u16::from(ahead)).available();
                    assert!(available < ahead, "{sent} {ahead} {guest_buffer}: {available}");
                    // Nothing, unless its buffer is as large as the counters reach.
                    let reaches = u16::from(guest_buffer) + u16::from(ahead) > ROUND;
                    assert_eq!(available > 0, reaches, "{sent} {ahead} {guest_buffer}: {available}");
                }
            }
        }

        #[test]
        fn what_is_sent_uses_up_as_much_credit() {
            for (sent, count) in all().flat_map(|sent| all().map(move |count| (sent, count))) {
                for guest_buffer in [count, u8::MAX] {
                    let mut credit = sending(u16::from(sent), guest_buffer, u16::from(sent));
                    credit.send(count);
                    assert_eq!(credit.available(), guest_buffer - count, "{sent} {count}");
                }
            }
        }

        #[test]
        fn the_host_never_holds_more_than_its_buffer_and_takes_all_that_fits() {
            for buffer in all() {
                for (forwarded, held) in all().flat_map(|forwarded| (0..=buffer).map(move |held| (forwarded, held))) {
                    let received = forwarded.wrapping_add(held);
                    for count in all() {
                        let mut credit = Credit { received, forwarded, ..Credit::new(buffer) };
                        let fits = u16::from(held) + u16::from(count) <= u16::from(buffer);
                        assert_eq!(credit.receive(count).is_ok(), fits, "{buffer} {forwarded} {held} {count}");
                        let now_held = credit.received.wrapping_sub(forwarded);
                        assert_eq!(
                            now_held,
                            if fits { held + count } else { held },
                            "{buffer} {forwarded} {held} {count}"
                        );
                    }
                }
            }
        }

        #[test]
        fn forwarded_bytes_are_held_no_more() {
            for (forwarded, held) in all().flat_map(|forwarded| all().map(move |held| (forwarded, held))) {
                for count in 0..=held {
                    let received = forwarded.wrapping_add(held);
                    let mut credit = Credit {
                        guest_buffer: u8::MAX,
                        received,
                        forwarded,
                        advertised: forwarded,
                        ..Credit::new(u8::MAX)
                    };
                    credit.forward(count);
                    assert_eq!(received.wrapping_sub(credit.forwarded), held - count, "{forwarded} {held} {count}");
                    assert_eq!(credit.needs_update(), count >= 127, "{forwarded} {count}");
                    assert_eq!(credit.advertise(), (u8::MAX, forwarded.wrapping_add(count)));
                    assert!(!credit.needs_update());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn wrapping_counters_agree_with_unbounded_ones(
            start: u32,
            steps in proptest::collection::vec((0u8..4, 0u32..BUFFER * 2), 0..300),
        ) {
            let mut credit = Credit::new(BUFFER);
            for counter in
                [&mut credit.sent, &mut credit.guest_forwarded, &mut credit.received, &mut credit.forwarded, &mut credit.advertised]
            {
                *counter = start;
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
