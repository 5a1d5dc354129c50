//! The guest's kicks and interrupts by KVM itself, without a way through the monitor.
//!
//! A guest's write to `QueueNotify` makes the device's descriptor readable and the guest goes on at once (ioeventfd);
//! the device's thread interrupts the guest without the help of another (irqfd). All other registers are accessed
//! seldom, and come to the monitor as exits of the processor.
#![allow(unsafe_code, reason = "the descriptor type of KVM's crate is made of a raw descriptor")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::mmio::{Interrupt, Mmio, QUEUE_NOTIFY};

/// Why KVM does not do it.
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
    /// The guest's kicks come as exits instead, and are to be given to [`Mmio::write`].
    #[error("KVM does not watch for the vsock device's kicks at {address:#x}")]
    Notify {
        /// The guest address of `QueueNotify`.
        address: u64,
        /// What KVM says.
        source: io::Error,
    },
    /// The guest cannot be interrupted.
    #[error("KVM does not take the vsock device's interrupt {gsi}; is there an interrupt controller in the kernel?")]
    Interrupt {
        /// The interrupt's number.
        gsi: u32,
        /// What KVM says, or the host's kernel without a descriptor for it.
        source: io::Error,
    },
}

/// Has KVM take the guest's kicks for `device`, whose registers begin at the guest address `base`.
///
/// ```no_run
/// # use scx_vsock::{transport::{kvm::{Irq, register_ioeventfds}, mmio::Mmio}, vsock::Device};
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
/// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// vm.create_irq_chip()?;
/// let device = Mmio::new(Device::new(3)?, memory, Irq::connect(&vm, 5)?)?;
/// register_ioeventfds(&vm, 0xd000_0000, &device)?; // where the guest is told that the registers are
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
    with_kicks(base, device, |kick, address| vm.register_ioevent(kick, address, NoDatamatch))
}

/// Undoes [`register_ioeventfds`], before the device goes while its guest stays.
///
/// ```no_run
/// # use scx_vsock::transport::{kvm::{Error, Irq, unregister_ioeventfds, register_ioeventfds}, mmio::Mmio};
/// # type Memory = std::sync::Arc<vm_memory::GuestMemoryMmap>;
/// # fn replace(vm: &kvm_ioctls::VmFd, device: Mmio<Memory, Irq>, next: Mmio<Memory, Irq>) -> Result<(), Error> {
/// unregister_ioeventfds(vm, 0xd000_0000, &device)?;
/// drop(device);
/// register_ioeventfds(vm, 0xd000_0000, &next)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Notify`].
pub fn unregister_ioeventfds<A: GuestAddressSpace, I: Interrupt>(
    vm: &VmFd,
    base: u64,
    device: &Mmio<A, I>,
) -> Result<(), Error> {
    with_kicks(base, device, |kick, address| vm.unregister_ioevent(kick, address, NoDatamatch))
}

fn with_kicks<A: GuestAddressSpace, I: Interrupt>(
    base: u64,
    device: &Mmio<A, I>,
    change: impl FnOnce(&EventFd, &IoEventAddress) -> Result<(), Errno>,
) -> Result<(), Error> {
    let address = base.saturating_add(QUEUE_NOTIFY);
    let kick = event_of(device.notify_fd());
    kick.and_then(|kick| Ok(change(&kick, &IoEventAddress::Mmio(address))?))
        .map_err(|source| Error::Notify { address, source })
}

/// A duplicate of an event descriptor, as KVM's crate has them. KVM holds on to the event itself.
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
/// interrupt.trigger()?; // what the device does by itself
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Irq(EventFd);

impl Irq {
    /// Connects the interrupt `gsi` of the kernel's interrupt controller: an edge.
    ///
    /// ```no_run
    /// # use scx_vsock::{transport::{kvm::Irq, mmio::Mmio}, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
    /// # vm.create_irq_chip()?;
    /// let device = Mmio::new(Device::new(3)?, memory, Irq::connect(&vm, 5)?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
