//! Queue notifications and interrupts by KVM itself, past the VMM.
//!
//! A guest's write to `QueueNotify` makes the device's descriptor readable and the guest goes on at once (ioeventfd); the
//! device's thread interrupts the guest without the help of another (irqfd). All other registers are accessed seldom, and
//! come to the VMM as exits of the processor.
#![allow(unsafe_code, reason = "the descriptor type of KVM's crate is made of a raw descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::mmio::{Interrupt, Mmio, QUEUE_NOTIFY};

/// Why KVM does not take over.
///
/// ```no_run
/// use scx_vsock::transport::kvm::Irq;
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// let error = Irq::connect(&vm, 5).unwrap_err(); // without `vm.create_irq_chip()`
/// assert!(error.to_string().ends_with("is there an interrupt controller in the kernel?"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Queue notifications come as exits instead, and are to be passed to [`Mmio::write`].
    #[error("KVM does not take the vsock device's queue notifications at {address:#x}")]
    Notify {
        /// The guest address of `QueueNotify`.
        address: u64,
        /// KVM's error.
        source: io::Error,
    },
    /// The guest cannot be interrupted.
    #[error("KVM does not take the vsock device's interrupt {gsi}; is there an interrupt controller in the kernel?")]
    Interrupt {
        /// The interrupt's number.
        gsi: u32,
        /// KVM's error, or the host's kernel's that has no descriptor for it.
        source: io::Error,
    },
}

/// Registers an ioeventfd for the queue notifications of `device`, whose registers begin at the guest address `base`.
///
/// ```no_run
/// # use scx_vsock::{transport::{kvm::{Irq, register_ioeventfds, unregister_ioeventfds}, mmio::Mmio}, vsock::Device};
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
/// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// vm.create_irq_chip()?;
/// let device = Mmio::new(Device::new(3)?, memory, Irq::connect(&vm, 5)?)?;
/// register_ioeventfds(&vm, 0xd000_0000, &device)?; // the address that the guest has of the registers
/// // ... before another device takes its place:
/// unregister_ioeventfds(&vm, 0xd000_0000, &device)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Notify`].
pub fn register_ioeventfds<A: GuestAddressSpace, I: Interrupt>(
    vm: &VmFd,
    base: u64,
    device: &Mmio<A, I>,
) -> Result<(), Error> {
    with_notify(base, device, |notify, address| vm.register_ioevent(notify, address, NoDatamatch))
}

/// Undoes [`register_ioeventfds`]. To be called before the device is dropped while its guest runs on.
///
/// # Errors
///
/// [`Error::Notify`].
pub fn unregister_ioeventfds<A: GuestAddressSpace, I: Interrupt>(
    vm: &VmFd,
    base: u64,
    device: &Mmio<A, I>,
) -> Result<(), Error> {
    with_notify(base, device, |notify, address| vm.unregister_ioevent(notify, address, NoDatamatch))
}

fn with_notify<A: GuestAddressSpace, I: Interrupt>(
    base: u64,
    device: &Mmio<A, I>,
    change: impl FnOnce(&EventFd, &IoEventAddress) -> Result<(), Errno>,
) -> Result<(), Error> {
    let address = base.saturating_add(QUEUE_NOTIFY);
    let notify = event_of(device.notify_fd());
    notify
        .and_then(|notify| Ok(change(&notify, &IoEventAddress::Mmio(address))?))
        .map_err(|source| Error::Notify { address, source })
}

/// Returns a duplicate of an event descriptor, as KVM's crate has them. KVM holds on to the event itself.
fn event_of(fd: BorrowedFd<'_>) -> io::Result<EventFd> {
    let duplicate = fd.try_clone_to_owned()?;
    // SAFETY: the descriptor was just duplicated, so that nothing else owns it, and it is an event's.
    Ok(unsafe { EventFd::from_raw_fd(duplicate.into_raw_fd()) })
}

/// An interrupt that KVM raises. It ends when this is dropped.
///
/// ```no_run
/// use scx_vsock::transport::kvm::Irq;
/// use scx_vsock::transport::mmio::Interrupt;
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// vm.create_irq_chip()?;
/// let interrupt = Irq::connect(&vm, 5)?;
/// interrupt.trigger()?; // as the device does
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Irq(EventFd);

impl Irq {
    /// Connects the interrupt `gsi` of the kernel's interrupt controller: an edge.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupt`].
    pub fn connect(vm: &VmFd, gsi: u32) -> Result<Self, Error> {
        let failed = |source| Error::Interrupt { gsi, source };
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(failed)?;
        vm.register_irqfd(&event, gsi).map_err(|errno| failed(errno.into()))?;
        Ok(Self(event))
    }
}

impl Interrupt for Irq {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}
