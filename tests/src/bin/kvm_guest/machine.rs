//! A machine of one processor on KVM, with memory, an interrupt controller and nothing else.

use anyhow::Result;
use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use scx_vsock_tests::microvm::{add_memory, flat_segment};
use vm_memory::GuestMemoryMmap;

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
        add_memory(&vm, memory)?;
        let processor = vm.create_vcpu(0)?;
        let machine = Self { vm, processor, memory: memory.clone() };
        machine.prepare()?;
        Ok(machine)
    }

    /// Returns the machine's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Enters protected mode with flat segments, at the beginning of the program.
    fn prepare(&self) -> Result<()> {
        let mut special = self.processor.get_sregs()?;
        special.cs = flat_segment(1, 0xb, false);
        let data = flat_segment(2, 0x3, false);
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
