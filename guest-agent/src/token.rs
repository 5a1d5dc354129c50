//! What an epoll event is about.

/// The source of an event, as it is packed into the event's 64 bits.
///
/// A slot's sources carry the slot's generation, so that an event of a connection that is closed by now is not
/// taken for one of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The timer.
    Timer,
    /// The Ready connection.
    Ready,
    /// The n-th listener.
    Listener(u8),
    /// The host's stream of a slot.
    Host {
        /// Which slot.
        slot: u8,
        /// The slot's generation.
        generation: u32,
    },
    /// The scheduler's stream of a slot.
    Scheduler {
        /// Which slot.
        slot: u8,
        /// The slot's generation.
        generation: u32,
    },
}

impl Token {
    /// The token's 64 bits.
    pub fn pack(self) -> u64 {
        let (kind, index, generation) = match self {
            Self::Timer => (0, 0, 0),
            Self::Ready => (1, 0, 0),
            Self::Listener(index) => (2, index, 0),
            Self::Host { slot, generation } => (3, slot, generation),
            Self::Scheduler { slot, generation } => (4, slot, generation),
        };
        u64::from(generation) << 32 | u64::from(index) << 8 | kind
    }

    /// The token in 64 bits of an event.
    pub fn unpack(bits: u64) -> Self {
        let [kind, slot, _, _, g0, g1, g2, g3] = bits.to_le_bytes();
        let generation = u32::from_le_bytes([g0, g1, g2, g3]);
        match kind {
            0 => Self::Timer,
            1 => Self::Ready,
            2 => Self::Listener(slot),
            3 => Self::Host { slot, generation },
            _ => Self::Scheduler { slot, generation },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_survives_its_packing(slot: u8, generation: u32) {
            let tokens = [
                Token::Timer,
                Token::Ready,
                Token::Listener(slot),
                Token::Host { slot, generation },
                Token::Scheduler { slot, generation },
            ];
            for token in tokens {
                prop_assert_eq!(Token::unpack(token.pack()), token);
            }
        }
    }
}
