//! A machine on KVM, without a processor: memory, an interrupt controller, and the vsock device.
#![allow(unsafe_code, reason = "KVM is given the memory's address")]

use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use scx_vsock::transport::kvm::{Irq, register_ioeventfds, unregister_ioeventfds};
use scx_vsock::transport::mmio::{Mmio, MmioSnapshot};
use scx_vsock::vsock::Device;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::bus::KvmMmio;
use super::memory_map::{REGISTERS, VSOCK_IRQ};
use crate::device_thread::DeviceThread;

/// Three pages below 4 GiB that KVM needs on Intel processors.
const TSS: usize = 0xfffb_d000;

/// The guest's CID.
const CID: u64 = 3;

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// KVM's part of it.
    pub vm: VmFd,
    /// Its memory, which begins at 0.
    pub memory: Arc<GuestMemoryMmap>,
}

impl Machine {
    /// A machine with this many bytes of memory.
    pub fn new(kvm: &Kvm, bytes: usize) -> Result<Self> {
        let vm = kvm.create_vm()?;
        vm.set_tss_address(TSS)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() })?;
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)])?);
        add_memory(&vm, &memory)?;
        Ok(Self { vm, memory })
    }

    /// Attaches a vsock device. One that is restored from a snapshot is paused.
    pub fn attach_vsock(&self, snapshot: Option<&str>) -> Result<Arc<KvmMmio>> {
        let (device, interrupt) = (Device::new(CID)?, Irq::connect(&self.vm, VSOCK_IRQ)?);
        let memory = Arc::clone(&self.memory);
        let vsock = match snapshot {
            None => Mmio::new(device, memory, interrupt)?,
            Some(snapshot) => {
                Mmio::restore(device, memory, interrupt, &serde_json::from_str::<MmioSnapshot>(snapshot)?)?
            }
        };
        register_ioeventfds(&self.vm, REGISTERS, &vsock)?;
        Ok(Arc::new(vsock))
    }

    /// Serves the device on a thread with an event manager.
    #[must_use]
    pub fn serve(vsock: &Arc<KvmMmio>) -> DeviceThread {
        DeviceThread::serving_mmio(vec![Arc::clone(vsock)])
    }

    /// Detaches a device from a guest that keeps running.
    pub fn detach_vsock(&self, vsock: Arc<KvmMmio>, device_thread: DeviceThread) -> Result<()> {
        unregister_ioeventfds(&self.vm, REGISTERS, &vsock)?;
        if let Ok((_, error)) = device_thread.errors.try_recv() {
            return Err(error.into());
        }
        drop(device_thread);
        Arc::into_inner(vsock).context("the device is still in use")?;
        Ok(())
    }
}

/// Adds a machine's memory, which begins at address 0. The caller keeps the memory alive while the processor runs.
///
/// # Errors
///
/// What KVM refuses.
pub fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<()> {
    let region = memory.find_region(GuestAddress(0)).context("no memory at 0")?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: region.len(),
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: only a processor reaches the memory, which is kept alive as long as one can run.
    unsafe { vm.set_user_memory_region(region)? };
    Ok(())
}
