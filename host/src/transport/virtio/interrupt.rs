//! How a guest is interrupted.

use std::io;

use crate::vsock::Interrupts;

/// `ISR status` and `InterruptStatus`: the device has used a buffer.
pub const USED_BUFFER: u32 = 1;
/// `ISR status` and `InterruptStatus`: the configuration has changed, the device's status included (2.1.2).
pub const CONFIG_CHANGE: u32 = 2;

/// What a guest is interrupted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes {
    /// The queues of which a buffer was used.
    pub queues: Interrupts,
    /// Whether the configuration has changed, the device's status included.
    pub config: bool,
}

impl Causes {
    /// Returns every cause that these bits of the interrupt status may stand for.
    pub(super) fn all_of(bits: u32) -> Self {
        let used = bits & USED_BUFFER != 0;
        Self { queues: Interrupts { rx: used, tx: used, event: used }, config: bits & CONFIG_CHANGE != 0 }
    }

    /// Returns the bits of the interrupt status ([`USED_BUFFER`], [`CONFIG_CHANGE`]).
    #[must_use]
    pub fn bits(self) -> u32 {
        let used = if self.queues.any() { USED_BUFFER } else { 0 };
        let config = if self.config { CONFIG_CHANGE } else { 0 };
        used | config
    }
}

/// The interrupts of a guest, edges: each call stands for new events. A transport with one interrupt raises it; one with a
/// vector for each queue and one for the configuration raises those of the causes.
///
/// ```
/// use std::io;
/// use std::sync::mpsc::{Sender, channel};
/// use scx_vsock::transport::virtio::{Causes, Interrupt};
/// use scx_vsock::vsock::Interrupts;
///
/// /// The vector of each queue, then that of the configuration.
/// struct Msix(Sender<usize>);
///
/// impl Interrupt for Msix {
///     fn trigger(&self, Causes { queues: Interrupts { rx, tx, event }, config }: Causes) -> io::Result<()> {
///         let raised = [rx, tx, event, config].into_iter().enumerate().filter(|(_, raised)| *raised);
///         raised.map(|(vector, _)| vector).try_for_each(|vector| self.0.send(vector).map_err(io::Error::other))
///     }
/// }
///
/// let (vectors, raised) = channel();
/// Msix(vectors).trigger(Causes { config: true, ..Causes::default() })?;
/// assert_eq!(raised.recv(), Ok(3));
/// # Ok::<(), io::Error>(())
/// ```
pub trait Interrupt {
    /// Raises the interrupts of these causes.
    ///
    /// # Errors
    ///
    /// What keeps an interrupt from the guest.
    fn trigger(&self, causes: Causes) -> io::Result<()>;
}

impl<F: Fn(Causes) -> io::Result<()>> Interrupt for F {
    fn trigger(&self, causes: Causes) -> io::Result<()> {
        self(causes)
    }
}
