//! A machine of one processor on KVM, with memory, an interrupt controller and nothing else.
#![allow(unsafe_code, reason = "KVM is given the memory's address")]

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::Failure;
use crate::program::{CODE, GDT, IDT, STACK};

/// Three pages below 4 GiB that some processors need.
const TSS: usize = 0xfffb_d000;

/// A machine that runs nothing yet.
pub struct Machine {
    /// The machine.
    pub vm: VmFd,
    /// Its processor.
    pub processor: VcpuFd,
    memory: GuestMemoryMmap,
}

impl Machine {
    /// A machine with this memory, which begins at address 0.
    pub fn new(vm: VmFd, memory: &GuestMemoryMmap) -> Result<Self, Failure> {
        vm.set_tss_address(TSS)?;
        vm.create_irq_chip()?;
        let region = memory.find_region(GuestAddress(0)).ok_or("no memory at 0")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: region.len(),
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the machine holds on to the memory for as long as its processor can run.
        unsafe { vm.set_user_memory_region(region)? };
        let processor = vm.create_vcpu(0)?;
        let machine = Self { vm, processor, memory: memory.clone() };
        machine.prepare()?;
        Ok(machine)
    }

    /// Memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Protected mode with flat segments, at the program's beginning.
    fn prepare(&self) -> Result<(), Failure> {
        let mut special = self.processor.get_sregs()?;
        special.cs = segment(1, 0xb);
        let data = segment(2, 0x3);
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

/// All of 4 GiB, for code or data.
fn segment(index: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: index * 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..kvm_segment::default()
    }
}

/// A machine, or why KVM has none.
pub fn on_kvm() -> Result<VmFd, kvm_ioctls::Error> {
    Kvm::new()?.create_vm()
}
