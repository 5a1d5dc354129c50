//! The registers that a vCPU begins with: in long mode with flat segments, or in protected mode without paging.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Address, Bytes, GuestMemoryError, GuestMemoryMmap};

use super::kernel::Entry;
use super::layout::{BOOT_PARAMETERS, GDT, PAGE_TABLES, START_INFO};

const PROTECTED: u64 = 1;
const PAGING: u64 = 1 << 31;
const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const LONG_MODE_ENABLE: u64 = 1 << 8;
const LONG_MODE_ACTIVE: u64 = 1 << 10;
const PAGE: u64 = 4096;

/// The flags' one bit that is always set.
const FLAGS: u64 = 2;

/// Returns the registers of a vCPU that enters the kernel.
pub(super) fn registers(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Long(rip) => kvm_regs { rip, rsi: BOOT_PARAMETERS.raw_value(), rflags: FLAGS, ..kvm_regs::default() },
        Entry::Protected(rip) => kvm_regs { rip, rbx: START_INFO.raw_value(), rflags: FLAGS, ..kvm_regs::default() },
    }
}

/// Sets up the mode of an entry, and writes its tables to memory.
pub(super) fn set_mode(
    memory: &GuestMemoryMmap,
    entry: Entry,
    special: &mut kvm_sregs,
) -> Result<(), GuestMemoryError> {
    special.idt.limit = 0;
    let is_long = matches!(entry, Entry::Long(_));
    // After two empty ones: code and data.
    let code: u64 = if is_long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    for (index, descriptor) in (0..).zip([0, 0, code, 0x00cf_9300_0000_ffff]) {
        memory.write_obj(descriptor, GDT.unchecked_add(8 * index))?;
    }
    (special.gdt.base, special.gdt.limit) = (GDT.raw_value(), 4 * 8 - 1);
    special.cs = flat_segment(2, 0xb, is_long);
    let data = flat_segment(3, 0x3, false);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.cr0 |= PROTECTED;
    if is_long {
        write_page_tables(memory)?;
        special.cr0 |= PAGING;
        special.cr3 = PAGE_TABLES.raw_value();
        special.cr4 |= PHYSICAL_ADDRESS_EXTENSION;
        special.efer |= LONG_MODE_ENABLE | LONG_MODE_ACTIVE;
    }
    Ok(())
}

/// Maps the first GiB to itself, by pages of 2 MiB.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let [top, middle, bottom] = [0, 1, 2].map(|table| PAGE_TABLES.unchecked_add(table * PAGE));
    memory.write_obj(middle.raw_value() | PRESENT_WRITABLE, top)?;
    memory.write_obj(bottom.raw_value() | PRESENT_WRITABLE, middle)?;
    for page in 0..512 {
        memory.write_obj(page << 21 | LARGE | PRESENT_WRITABLE, bottom.unchecked_add(8 * page))?;
    }
    Ok(())
}

/// Returns a segment of all addresses, for code (64-bit code if `long`) or for data.
fn flat_segment(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: index * 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}
