//! What an epoll event is about.

/// The source of an event, as it is packed into the event's 64 bits.
///
/// A slot's sources carry the slot's generation, so that an event of a connection that is closed by now is not
/// taken for one of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Which kind of source.
    pub source: Source,
    /// The number of the listener or of the slot.
    pub index: u8,
    /// The slot's generation.
    pub generation: u32,
}

/// A kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The timer.
    Timer,
    /// The Ready connection.
    Ready,
    /// A listener.
    Listener,
    /// The host's stream of a slot.
    Host,
    /// The scheduler's stream of a slot.
    Scheduler,
}

impl Token {
    /// The token of a source that is there once, or of a listener.
    pub const fn of(source: Source, index: u8) -> Self {
        Self { source, index, generation: 0 }
    }

    /// Returns the token's 64 bits.
    pub fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index) << 8 | self.source as u64
    }

    /// Returns the token in 64 bits of an event.
    pub fn unpack(bits: u64) -> Self {
        let [source, index, _, _, g0, g1, g2, g3] = bits.to_le_bytes();
        let source = match source {
            0 => Source::Timer,
            1 => Source::Ready,
            2 => Source::Listener,
            3 => Source::Host,
            _ => Source::Scheduler,
        };
        Self { source, index, generation: u32::from_le_bytes([g0, g1, g2, g3]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_survives_its_packing(index: u8, generation: u32) {
            for source in [Source::Timer, Source::Ready, Source::Listener, Source::Host, Source::Scheduler] {
                let token = Token { source, index, generation };
                prop_assert_eq!(Token::unpack(token.pack()), token);
            }
        }
    }
}
