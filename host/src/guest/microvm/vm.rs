//! KVM's part of a machine: memory and interrupt controllers.
#![allow(unsafe_code, reason = "KVM is given the memory's address; its state is a union, or has a variable length")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_pit_config, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::os::fd::FromRawFd;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use super::error::Error;
use super::layout::{ABOVE_HOLE, HOLE, TSS};

/// What microVMs need of KVM, and what that is called.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "interrupt controller"),
    (Cap::UserMemory, "user memory"),
    (Cap::SetTssAddr, "address of the task state"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// The most vCPUs of a microVM.
const MAX_VCPUS: u32 = 64;

/// Opens `/dev/kvm`.
///
/// # Errors
///
/// [`Error::NoKvm`], [`Error::NoPermission`], [`Error::Open`], [`Error::Lacks`].
pub(super) fn open_kvm() -> Result<Kvm, Error> {
    open_kvm_at("/dev/kvm")
}

fn open_kvm_at(path: &str) -> Result<Kvm, Error> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoKvm,
        io::ErrorKind::PermissionDenied => Error::NoPermission,
        // The device's file without its driver.
        _ if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Error::NoKvm,
        _ => Error::Open { source },
    })?;
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    match NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some(&(_, capability)) => Err(Error::Lacks { capability }),
        None => Ok(kvm),
    }
}

/// Checks the number of vCPUs.
///
/// # Errors
///
/// [`Error::NoVcpu`], [`Error::TooManyVcpus`].
pub(super) fn check_vcpus(kvm: &Kvm, vcpus: u32) -> Result<(), Error> {
    let max = u32::try_from(kvm.get_max_vcpus()).unwrap_or(MAX_VCPUS).min(MAX_VCPUS);
    match vcpus {
        0 => Err(Error::NoVcpu),
        _ if vcpus <= max => Ok(()),
        _ => Err(Error::TooManyVcpus { asked: vcpus, max }),
    }
}

/// Memory and interrupt controllers, without a vCPU.
#[derive(Debug)]
pub(super) struct Vm {
    fd: VmFd,
    memory: Arc<GuestMemoryMmap>,
    msrs: Arc<[u32]>,
}

impl Vm {
    /// Returns a machine with this many bytes of memory.
    pub(super) fn new(kvm: &Kvm, bytes: u64) -> Result<Self, Error> {
        Self::with_memory(kvm, map_memory(bytes)?)
    }

    /// Returns a machine with this memory.
    pub(super) fn with_memory(kvm: &Kvm, memory: GuestMemoryMmap) -> Result<Self, Error> {
        let fd = kvm.create_vm().map_err(Error::kvm("a machine"))?;
        fd.set_tss_address(TSS).map_err(Error::kvm("an address for the task state"))?;
        fd.create_irq_chip().map_err(Error::kvm("an interrupt controller"))?;
        let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        fd.create_pit2(timer).map_err(Error::kvm("a timer"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            add_memory(&fd, slot, region)?;
        }
        let msrs = kvm.get_msr_index_list().map_err(Error::kvm("to list the vCPU's registers"))?;
        Ok(Self { fd, memory: Arc::new(memory), msrs: msrs.as_slice().into() })
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Returns the numbers of a vCPU's model-specific registers.
    pub(super) fn msrs(&self) -> &Arc<[u32]> {
        &self.msrs
    }

    /// Reads the clock that KVM shows to guests, in nanoseconds.
    pub(super) fn clock(&self) -> Result<u64, Error> {
        Ok(self.fd.get_clock().map_err(Error::kvm("to read the guest's clock"))?.clock)
    }

    /// Sets the clock that KVM shows to guests.
    pub(super) fn set_clock(&self, clock: u64) -> Result<(), Error> {
        let clock = kvm_clock_data { clock, ..kvm_clock_data::default() };
        self.fd.set_clock(&clock).map_err(Error::kvm("the guest's clock"))
    }
}

fn map_memory(bytes: u64) -> Result<GuestMemoryMmap, Error> {
    let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
    let size = |bytes: u64| usize::try_from(bytes).map_err(|_| too_large());
    let mut ranges = vec![(GuestAddress(0), size(bytes.min(HOLE))?)];
    if bytes > HOLE {
        ranges.push((ABOVE_HOLE, size(bytes - HOLE)?));
    }
    GuestMemoryMmap::from_ranges(&ranges).map_err(|error| Error::Host(io::Error::other(error)))
}

fn add_memory(vm: &VmFd, slot: u32, region: &vm_memory::GuestRegionMmap) -> Result<(), Error> {
    let mapped: &MmapRegion = region;
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: mapped.as_ptr().expose_provenance() as u64,
    };
    // SAFETY: only vCPUs reach the memory, and each of them keeps it alive.
    unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("the guest's memory"))
}

/// Writes a vCPU's floating-point and vector registers.
pub(super) fn write_extended_state(vcpu: &VcpuFd, state: &kvm_xsave) -> Result<(), Error> {
    // SAFETY: KVM reads more than 4,096 bytes only if this process had permission for AMX, for which nothing here asks.
    unsafe { vcpu.set_xsave(state) }.map_err(Error::kvm("the vCPU's vector registers"))
}

/// Returns KVM's number of an internal error, after that exit.
pub(super) fn suberror(vcpu: &mut VcpuFd) -> u32 {
    let state = &vcpu.get_kvm_run().__bindgen_anon_1;
    // SAFETY: any bits are a valid number. After the exit it is this field of the union that KVM has written.
    unsafe { state.internal.suberror }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_opened_is_named() {
        let message = |path: &str| open_kvm_at(path).unwrap_err().to_string();
        assert!(message("/no/such/kvm").starts_with("there is no /dev/kvm: load kvm_intel or kvm_amd"));
        assert_eq!(message("/"), "cannot open /dev/kvm");
        assert!(message("/dev/null").starts_with("this KVM has no interrupt controller"));
        assert!(Error::NoPermission.to_string().contains("sudo usermod -aG kvm"));
    }
}
