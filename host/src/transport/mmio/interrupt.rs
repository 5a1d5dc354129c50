//! How a guest is interrupted.

use std::io;

use crate::transport::virtio::{self, Causes};

/// The guest's interrupt, an edge: each call stands for new events, whose causes the guest reads from `InterruptStatus`.
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

/// The one interrupt of a device behind these registers, whatever the cause.
#[derive(Debug)]
pub struct Line<I>(pub I);

impl<I: Interrupt> virtio::Interrupt for Line<I> {
    fn trigger(&self, _causes: Causes) -> io::Result<()> {
        self.0.trigger()
    }
}
