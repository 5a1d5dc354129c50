//! How a guest is interrupted.

use std::io;

/// The guest's interrupt, an edge: each call stands for a new event.
///
/// ```
/// use std::io;
/// use std::sync::mpsc::{Sender, channel};
/// use scx_vsock::transport::mmio::Interrupt;
///
/// struct Line(Sender<u32>);
///
/// impl Interrupt for Line {
///     fn trigger(&self) -> io::Result<()> {
///         self.0.send(5).map_err(io::Error::other)
///     }
/// }
///
/// let (line, raised) = channel();
/// Line(line).trigger()?;
/// assert_eq!(raised.recv(), Ok(5));
/// # Ok::<(), io::Error>(())
/// ```
pub trait Interrupt {
    /// Raises the interrupt.
    ///
    /// # Errors
    ///
    /// What keeps the interrupt from the guest.
    fn trigger(&self) -> io::Result<()>;
}

impl<F: Fn() -> io::Result<()>> Interrupt for F {
    fn trigger(&self) -> io::Result<()> {
        self()
    }
}
