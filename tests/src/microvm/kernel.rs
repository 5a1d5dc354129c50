//! The guest's kernel, and how it is entered: in long mode, without any firmware (Linux, `x86/boot.rst`, "64-bit Boot
//! Protocol").

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{XLF_KERNEL_64, boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Cmdline, KernelLoader, load_cmdline};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::memory_map::{ACPI, BOOT_PARAMETERS, COMMAND_LINE, GDT, HIGH, LOW_END, PAGE_TABLES};

/// The most bytes of the kernel's command line.
const MAX_COMMAND_LINE: usize = 2048;
/// The offset of the kernel's entry point in long mode.
const ENTRY_64: u64 = 0x200;
/// The type of a boot loader without an assigned number.
const OTHER_LOADER: u8 = 0xff;
/// Memory that the kernel may use.
const E820_RAM: u32 = 1;
const PAGE: u64 = 4096;

/// What a guest boots.
#[derive(Clone, Copy, Debug)]
pub struct GuestImage<'a> {
    /// The bzImage.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// The kernel's command line.
    pub command_line: &'a str,
}

/// Loads the image, and returns the kernel's entry point.
pub fn load(memory: &GuestMemoryMmap, image: &GuestImage<'_>) -> Result<GuestAddress> {
    let named = || image.kernel.display().to_string();
    let mut file = File::open(image.kernel).with_context(named)?;
    let kernel = BzImage::load(memory, Some(HIGH), &mut file, Some(HIGH)).with_context(named)?;
    let mut parameters = boot_params { acpi_rsdp_addr: ACPI.raw_value(), ..boot_params::default() };
    parameters.hdr = kernel.setup_header.context("the kernel has no header")?;
    ensure!(parameters.hdr.xloadflags & XLF_KERNEL_64 != 0, "{}: no 64-bit kernel", named());
    parameters.hdr.type_of_loader = OTHER_LOADER;

    let mut line = Cmdline::new(MAX_COMMAND_LINE)?;
    line.insert_str(image.command_line)?;
    load_cmdline(memory, COMMAND_LINE, &line)?;
    parameters.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE.raw_value())?;

    let initramfs = fs::read(image.initramfs).with_context(|| image.initramfs.display().to_string())?;
    let address = top(memory, initramfs.len() as u64, kernel.kernel_end)?;
    memory.write_slice(&initramfs, address)?;
    parameters.hdr.ramdisk_image = u32::try_from(address.raw_value())?;
    parameters.hdr.ramdisk_size = u32::try_from(initramfs.len())?;

    let high = memory.last_addr().unchecked_offset_from(HIGH) + 1;
    for (entry, (addr, size)) in parameters.e820_table.iter_mut().zip([(0, LOW_END), (HIGH.raw_value(), high)]) {
        *entry = boot_e820_entry { addr, size, r#type: E820_RAM };
        parameters.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&parameters, BOOT_PARAMETERS), memory)?;
    Ok(kernel.kernel_load.unchecked_add(ENTRY_64))
}

/// Returns the page where this many bytes begin that end with memory, after the kernel.
fn top(memory: &GuestMemoryMmap, size: u64, kernel_end: u64) -> Result<GuestAddress> {
    let end = memory.last_addr().raw_value() + 1;
    let address = end.checked_sub(size).map(|address| address & !(PAGE - 1)).filter(|&address| address > kernel_end);
    Ok(GuestAddress(address.context("the guest's memory is too small for its image")?))
}

/// Returns the registers of a processor that enters the kernel.
#[must_use]
pub fn registers(entry: GuestAddress) -> kvm_regs {
    kvm_regs { rip: entry.raw_value(), rsi: BOOT_PARAMETERS.raw_value(), rflags: 2, ..kvm_regs::default() }
}

const PROTECTED: u64 = 1;
const PAGING: u64 = 1 << 31;
const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const LONG_MODE_ENABLE: u64 = 1 << 8;
const LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Sets up long mode with flat segments, and writes its tables to memory.
pub fn enter_long_mode(memory: &GuestMemoryMmap, special: &mut kvm_sregs) -> Result<()> {
    write_page_tables(memory)?;
    // After two empty ones: code and data.
    let descriptors: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (index, descriptor) in (0..).zip(descriptors) {
        memory.write_obj(descriptor, GDT.unchecked_add(8 * index))?;
    }
    (special.gdt.base, special.gdt.limit) = (GDT.raw_value(), 4 * 8 - 1);
    special.idt.limit = 0;
    special.cs = flat_segment(2, 0xb, true);
    let data = flat_segment(3, 0x3, false);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.cr0 |= PROTECTED | PAGING;
    special.cr3 = PAGE_TABLES.raw_value();
    special.cr4 |= PHYSICAL_ADDRESS_EXTENSION;
    special.efer |= LONG_MODE_ENABLE | LONG_MODE_ACTIVE;
    Ok(())
}

/// Maps the first GiB to itself, by pages of 2 MiB.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<()> {
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
#[must_use]
pub fn flat_segment(index: u16, kind: u8, long: bool) -> kvm_segment {
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
