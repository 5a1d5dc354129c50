//! A machine of one processor on KVM, with memory, an interrupt controller and nothing else.

#![allow(unsafe_code, reason = "KVM is given the memory's address")]

use anyhow::{Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::program::{CODE, GDT, IDT, STACK};

/// Three pages below 4 GiB that KVM needs on Intel processors.
const TSS: usize = 0xfffb_d000;

/// A machine that runs nothing yet.
pub struct Machine {
    /// KVM's machine.
    pub vm: VmFd,
    /// Its processor.
    pub processor: VcpuFd,
    memory: GuestMemoryMmap,
}

impl Machine {
    /// Returns a machine with this memory, which begins at address 0.
    pub fn new(vm: VmFd, memory: &GuestMemoryMmap) -> Result<Self> {
        vm.set_tss_address(TSS)?;
        vm.create_irq_chip()?;
        let processor = vm.create_vcpu(0)?;
        let machine = Self { vm, processor, memory: memory.clone() };
        machine.add_memory()?;
        machine.prepare()?;
        Ok(machine)
    }

    /// Returns the machine's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn add_memory(&self) -> Result<()> {
        let region = self.memory.find_region(GuestAddress(0)).context("no memory at 0")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: region.len(),
            userspace_addr: self.memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: only the processor reaches the memory, which is kept alive beside it.
        unsafe { self.vm.set_user_memory_region(region)? };
        Ok(())
    }

    /// Enters protected mode with flat segments, at the beginning of the program.
    fn prepare(&self) -> Result<()> {
        let mut special = self.processor.get_sregs()?;
        special.cs = flat_segment(1, 0xb);
        let data = flat_segment(2, 0x3);
        (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
        (special.gdt.base, special.gdt.limit) = (GDT, 3 * 8 - 1);
        (special.idt.base, special.idt.limit) = (IDT, 256 * 8 - 1);
        special.cr0 |= 1;
        self.processor.set_sregs(&special)?;
        let registers = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..kvm_regs::default() };
        self.processor.set_regs(&registers)?;
        Ok(())
    }
}

/// Creates a machine, if KVM can.
pub fn on_kvm() -> Result<VmFd, kvm_ioctls::Error> {
    Kvm::new()?.create_vm()
}

/// Returns a segment of all addresses, for code or for data.
fn flat_segment(index: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector: index * 8,
        type_: kind,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}
