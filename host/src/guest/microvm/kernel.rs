//! Loads the guest's kernel and initramfs without any firmware: a bzImage by the 64-bit boot protocol (Linux,
//! `x86/boot.rst`), a vmlinux by PVH (Xen, `misc/pvh.pandoc`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Cmdline, Elf, KernelLoader, KernelLoaderResult, load_cmdline};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::error::Error;
use super::layout::{
    ACPI, BOOT_PARAMETERS, COMMAND_LINE, HIGH, HOLE, LOW_END, MODULE_LIST, PVH_MEMORY_MAP, START_INFO,
};

/// The most bytes of the kernel's command line, with the NUL at its end.
const MAX_COMMAND_LINE: usize = 2048;
/// The offset of the kernel's entry point in long mode.
const ENTRY_64: u64 = 0x200;
/// The type of a boot loader without an assigned number.
const OTHER_LOADER: u8 = 0xff;
/// Memory that the kernel may use, in both protocols' words.
const RAM: u32 = 1;
/// Identifies the beginning of a PVH kernel's information.
const START_MAGIC: u32 = 0x336e_c578;
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// What a guest boots.
#[derive(Clone, Debug, Default)]
pub(super) struct BootImage {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: Vec<u8>,
    pub(super) command_line: String,
}

/// How the first vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// In long mode at this address, with the boot parameters.
    Long(u64),
    /// In protected mode without paging at this address, with a PVH kernel's information.
    Protected(u64),
}

/// Loads the image, and returns where its kernel begins.
pub(super) fn load(memory: &GuestMemoryMmap, image: &BootImage) -> Result<Entry, Error> {
    let path = image.kernel.as_path();
    let mut file = File::open(path).map_err(|source| Error::Kernel { path: path.into(), source })?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|_| Error::NotAKernel { path: path.into() })?;
    load_command_line(memory, &image.command_line)?;
    if magic == *b"\x7fELF" { load_pvh(memory, image, &mut file) } else { load_bzimage(memory, image, &mut file) }
}

fn load_command_line(memory: &GuestMemoryMmap, text: &str) -> Result<(), Error> {
    let invalid = |_| Error::CommandLine { max: MAX_COMMAND_LINE - 1 };
    let mut line = Cmdline::new(MAX_COMMAND_LINE).map_err(invalid)?;
    line.insert_str(text).map_err(invalid)?;
    load_cmdline(memory, COMMAND_LINE, &line).map_err(|_| too_small(memory, HIGH.raw_value()))
}

fn load_bzimage(memory: &GuestMemoryMmap, image: &BootImage, file: &mut File) -> Result<Entry, Error> {
    let loaded = BzImage::load(memory, Some(HIGH), file, Some(HIGH));
    let loaded = loaded.map_err(|_| load_error(memory, &image.kernel))?;
    let not_a_kernel = || Error::NotAKernel { path: image.kernel.clone() };
    let header = loaded.setup_header.ok_or_else(not_a_kernel)?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Error::Not64Bit { path: image.kernel.clone() });
    }
    let initramfs = load_initramfs(memory, &image.initramfs, end_of(&header, &loaded), header.initrd_addr_max.into())?;
    let mut parameters = boot_params { acpi_rsdp_addr: ACPI.raw_value(), hdr: header, ..boot_params::default() };
    parameters.hdr.type_of_loader = OTHER_LOADER;
    parameters.hdr.cmd_line_ptr = below_4_gib(COMMAND_LINE.raw_value());
    parameters.hdr.ramdisk_image = below_4_gib(initramfs.raw_value());
    parameters.hdr.ramdisk_size = below_4_gib(image.initramfs.len() as u64);
    for (entry, (addr, size)) in parameters.e820_table.iter_mut().zip(usable(memory)) {
        *entry = boot_e820_entry { addr, size, r#type: RAM };
        parameters.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&parameters, BOOT_PARAMETERS), memory)
        .map_err(|_| too_small(memory, HIGH.raw_value()))?;
    Ok(Entry::Long(loaded.kernel_load.raw_value() + ENTRY_64))
}

/// Where memory ends that the kernel unpacks itself into.
fn end_of(header: &setup_header, loaded: &KernelLoaderResult) -> u64 {
    let load = header.pref_address.max(loaded.kernel_load.raw_value());
    load.saturating_add(header.init_size.into()).max(loaded.kernel_end)
}

fn load_pvh(memory: &GuestMemoryMmap, image: &BootImage, file: &mut File) -> Result<Entry, Error> {
    let loaded = Elf::load(memory, None, file, Some(HIGH)).map_err(|_| load_error(memory, &image.kernel))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(Error::NoPvhEntry { path: image.kernel.clone() });
    };
    let initramfs = load_initramfs(memory, &image.initramfs, loaded.kernel_end, u64::MAX)?;
    let module = hvm_modlist_entry {
        paddr: initramfs.raw_value(),
        size: image.initramfs.len() as u64,
        ..hvm_modlist_entry::default()
    };
    let ranges: Vec<_> =
        usable(memory).map(|(addr, size)| hvm_memmap_table_entry { addr, size, type_: RAM, reserved: 0 }).collect();
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: MODULE_LIST.raw_value(),
        cmdline_paddr: COMMAND_LINE.raw_value(),
        rsdp_paddr: ACPI.raw_value(),
        memmap_paddr: PVH_MEMORY_MAP.raw_value(),
        memmap_entries: below_4_gib(ranges.len() as u64),
        ..hvm_start_info::default()
    };
    let mut parameters = BootParams::new(&info, START_INFO);
    parameters.set_modules(&[module], MODULE_LIST);
    parameters.set_sections(&ranges, PVH_MEMORY_MAP);
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(|_| too_small(memory, HIGH.raw_value()))?;
    Ok(Entry::Protected(entry.raw_value()))
}

/// Writes the initramfs to the end of memory below the devices, after the kernel.
fn load_initramfs(memory: &GuestMemoryMmap, bytes: &[u8], from: u64, max: u64) -> Result<GuestAddress, Error> {
    let size = bytes.len() as u64;
    let end = low_end(memory).min(max.saturating_add(1));
    let address = end.checked_sub(size).map(|address| address & !(PAGE - 1)).filter(|&address| address >= from);
    let needed = || too_small(memory, from.saturating_add(size).saturating_add(PAGE));
    let address = GuestAddress(address.ok_or_else(needed)?);
    memory.write_slice(bytes, address).map_err(|_| needed())?;
    Ok(address)
}

/// The ranges of memory that the kernel may use: address and size.
fn usable(memory: &GuestMemoryMmap) -> impl Iterator<Item = (u64, u64)> {
    let high = low_end(memory).saturating_sub(HIGH.raw_value());
    let above = memory.iter().map(|region| (region.start_addr().raw_value(), region.len()));
    [(0, LOW_END), (HIGH.raw_value(), high)].into_iter().chain(above.filter(|&(address, _)| address > HOLE))
}

/// Where memory below the devices ends.
fn low_end(memory: &GuestMemoryMmap) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, |region| region.len())
}

/// An image that cannot be loaded is none, unless memory ends before it does.
fn load_error(memory: &GuestMemoryMmap, kernel: &Path) -> Error {
    let size = std::fs::metadata(kernel).map_or(0, |metadata| metadata.len());
    if HIGH.raw_value().saturating_add(size) > low_end(memory) {
        too_small(memory, HIGH.raw_value().saturating_add(size))
    } else {
        Error::NotAKernel { path: kernel.into() }
    }
}

fn too_small(memory: &GuestMemoryMmap, needed: u64) -> Error {
    Error::TooLittleMemory { memory_mib: low_end(memory) / MIB, needed_mib: needed.div_ceil(MIB) }
}

/// An address or a size below the devices.
fn below_4_gib(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::microvm::test_util::{elf_without_pvh, pvh_kernel};

    fn memory(mib: usize) -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
    }

    fn image(kernel: &[u8], initramfs_bytes: usize) -> (tempfile::NamedTempFile, BootImage) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), kernel).unwrap();
        let kernel = file.path().to_owned();
        (file, BootImage { kernel, initramfs: vec![7; initramfs_bytes], command_line: "console=ttyS0".into() })
    }

    fn load_bytes(kernel: &[u8], initramfs_bytes: usize, mib: usize) -> Result<(Entry, GuestMemoryMmap), Error> {
        let (_file, image) = image(kernel, initramfs_bytes);
        let memory = memory(mib);
        Ok((load(&memory, &image)?, memory))
    }

    /// A bzImage of the version of the protocol that has all fields, which unpacks itself into 8 MiB.
    fn bzimage(xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0; 0x2000];
        image[0x1f1] = 1; // sectors of setup after the first
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x211] = 1; // loaded high
        image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x80_0000_u32.to_le_bytes());
        image
    }

    #[test]
    fn a_bzimage_begins_in_long_mode() {
        let (entry, memory) = load_bytes(&bzimage(1), 5000, 16).unwrap();
        assert_eq!(entry, Entry::Long(0x10_0200));
        let parameters: boot_params = memory.read_obj(BOOT_PARAMETERS).unwrap();
        let (address, size) = (parameters.hdr.ramdisk_image, parameters.hdr.ramdisk_size);
        assert_eq!((address, size), (0x00ff_e000, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(address.into())).unwrap(), 7);
        assert_eq!(parameters.e820_entries, 2);
    }

    #[test]
    fn a_vmlinux_begins_at_its_pvh_entry() {
        let (entry, memory) = load_bytes(&pvh_kernel(&[0xf4]), 10, 16).unwrap();
        assert_eq!(entry, Entry::Protected(0x10_0000));
        let info: hvm_start_info = memory.read_obj(START_INFO).unwrap();
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.memmap_entries, module.size), (START_MAGIC, 1, 2, 10));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_0000)).unwrap(), 0xf4);
    }

    #[test]
    fn memory_goes_on_after_the_devices() {
        let ranges = [(GuestAddress(0), 8 << 20), (GuestAddress(1 << 32), 4 << 20)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let usable: Vec<_> = usable(&memory).collect();
        assert_eq!(usable, [(0, LOW_END), (1 << 20, 7 << 20), (1 << 32, 4 << 20)]);
    }

    #[test]
    fn what_cannot_boot_is_named() {
        let message = |kernel: &[u8], initramfs, mib| load_bytes(kernel, initramfs, mib).unwrap_err().to_string();
        for other in [&b""[..], b"#!/bin/sh\n", &[0; 0x1000], b"\x7fELF", &[0xff; 0x1000]] {
            let text = message(other, 0, 16);
            assert!(text.contains("is no kernel that a microVM boots: name a bzImage"), "{text}");
        }
        assert!(message(&bzimage(0), 0, 16).contains("has no 64-bit entry point"));
        assert!(message(&elf_without_pvh(), 0, 16).contains("CONFIG_PVH=y"));
        let text = message(&bzimage(1), 9 << 20, 16);
        assert_eq!(
            text,
            "16 MiB of memory are too little for the guest's kernel and initramfs, which take 19 MiB: give it more, and room \
             to run (--memory, GuestBuilder::memory_mib)"
        );
        assert!(message(&bzimage(1), 0, 1).contains("1 MiB of memory are too little"));
        let (_file, mut image) = image(&bzimage(1), 0);
        image.command_line = "x".repeat(MAX_COMMAND_LINE);
        assert!(load(&memory(16), &image).unwrap_err().to_string().contains("at most 2047 bytes"));
        image.kernel = "/no/such/vmlinuz".into();
        assert!(load(&memory(16), &image).unwrap_err().to_string().starts_with("cannot read the kernel /no/such"));
    }
}
