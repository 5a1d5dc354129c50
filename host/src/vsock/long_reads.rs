//! Which connection's host writes more at a time than one receive buffer holds: several buffers are filled by one read for
//! it. For others, another buffer would be looked up in vain each time.

use super::key::Key;

/// What the latest payloads to the guest say of the connection that sent them.
#[derive(Debug, Default)]
pub struct LongReads {
    /// The last payload filled its buffer, which was the only one.
    filled: Option<Key>,
    /// What it read last did not fit one buffer.
    long: Option<Key>,
}

impl LongReads {
    /// Whether this connection's next read may fill more than one buffer.
    pub fn is_expected(&self, key: Key) -> bool {
        self.long == Some(key)
    }

    /// A connection read into a buffer that was the only one, and filled it or not.
    pub fn on_single(&mut self, key: Key, filled: bool) {
        if self.filled == Some(key) {
            self.long = Some(key);
        }
        self.filled = filled.then_some(key);
    }

    /// A connection read into several buffers, and needed more than one of them or not.
    pub fn on_several(&mut self, key: Key, needed: bool) {
        self.filled = None;
        self.long = needed.then_some(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Key = Key { host_port: 1 << 30, guest_port: 729 };
    const OTHER: Key = Key { host_port: 1 << 30, guest_port: 730 };

    #[test]
    fn what_goes_on_after_a_full_buffer_is_long() {
        let mut reads = LongReads::default();
        reads.on_single(ONE, true);
        assert!(!reads.is_expected(ONE), "it may have been all");
        reads.on_single(ONE, false);
        assert!(reads.is_expected(ONE) && !reads.is_expected(OTHER));
        reads.on_several(ONE, true);
        assert!(reads.is_expected(ONE));
        reads.on_several(ONE, false);
        reads.on_single(ONE, false);
        assert!(!reads.is_expected(ONE));
    }

    #[test]
    fn another_connections_packet_is_no_continuation() {
        let mut reads = LongReads::default();
        reads.on_single(ONE, true);
        reads.on_single(OTHER, true);
        reads.on_single(ONE, false);
        assert!(!reads.is_expected(ONE) && !reads.is_expected(OTHER));
    }
}
