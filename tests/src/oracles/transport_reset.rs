//! A transport reset as it is seen from outside of the device: no packet is taken or sent before the driver got the event
//! and has made a buffer available again, and it gets one.

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
    /// There is none, or the driver has handled it.
    Idle,
    /// The event is to be sent.
    Pending,
    /// The event was sent.
    Sent {
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
            Self::Idle => false,
            Self::Pending => true,
            Self::Sent { events } => events == before.events,
        };
        if *self != Self::Idle && before.events != after.events {
            *self = Self::Unknown;
            return;
        }
        assert!(*self == Self::Pending || !event, "an event without a reset, or twice: {before:?} {after:?}");
        assert!(
            !stays || !(rx || tx),
            "a packet passes before the driver has handled the event: {self:?} {before:?} {after:?}"
        );
        *self = match *self {
            Self::Pending if event && length == EVENT_BYTES => Self::Sent { events: before.events },
            reset if stays => reset,
            _ => Self::Idle,
        };
    }
}
