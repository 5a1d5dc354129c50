//! What one can see of a transport reset from outside of the device: no packet goes either way before the driver was told
//! of it and has made an event buffer available again, and it is told once.

use scx_vsock::vsock::spec::EVENT_BYTES;

/// How far a device is with its queues.
#[derive(Clone, Copy, Debug)]
pub struct Queues {
    /// Chains that it has used of the receive, the transmit and the event queue.
    pub used: [u16; 3],
    /// Buffers that there are in the event queue by now, as its ring in guest memory says.
    pub events: u16,
}

/// How far a driver is with a transport reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportReset {
    /// There is none, or the driver is through.
    None,
    /// The driver is to be told.
    Owed,
    /// The driver was told.
    Told {
        /// Buffers that there were in the event queue then.
        events: u16,
    },
    /// Nobody can say: a buffer lies over the event queue's ring, and the device has written there.
    Unknown,
}

impl TransportReset {
    /// The device did what there was to do, and wrote `length` bytes into the last event buffer that it used.
    pub fn follow(&mut self, before: &Queues, after: &Queues, length: u32) {
        let [rx, tx, event] = [0, 1, 2].map(|queue| before.used[queue] != after.used[queue]);
        let stays = match *self {
            Self::Unknown => return,
            Self::None => false,
            Self::Owed => true,
            Self::Told { events } => events == before.events,
        };
        if *self != Self::None && before.events != after.events {
            *self = Self::Unknown;
            return;
        }
        assert!(
            *self == Self::Owed || !event,
            "the driver is told of what there is not, or twice: {before:?} {after:?}"
        );
        assert!(!stays || !(rx || tx), "a packet goes before the driver is through: {self:?} {before:?} {after:?}");
        *self = match *self {
            Self::Owed if event && length == EVENT_BYTES => Self::Told { events: before.events },
            reset if stays => reset,
            _ => Self::None,
        };
    }
}
