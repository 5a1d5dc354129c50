//! The layout of the guest's physical addresses, as far as its kernel does not choose it.

use vm_memory::GuestAddress;

/// The global descriptor table that the kernel begins with.
pub(super) const GDT: GuestAddress = GuestAddress(0x500);
/// Where a PVH kernel finds the rest.
pub(super) const START_INFO: GuestAddress = GuestAddress(0x6000);
/// The initramfs, for a PVH kernel.
pub(super) const MODULE_LIST: GuestAddress = GuestAddress(0x6100);
/// Memory, for a PVH kernel.
pub(super) const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6200);
/// The boot parameters, which Linux calls the zero page.
pub(super) const BOOT_PARAMETERS: GuestAddress = GuestAddress(0x7000);
/// The top of the page tables that the kernel begins with; the other two follow it.
pub(super) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line.
pub(super) const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Where usable memory below 1 MiB ends.
pub(super) const LOW_END: u64 = 0x9_fc00;
/// The root of the ACPI tables, where the kernel looks for firmware's.
pub(super) const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// Where memory above the firmware's hole begins. The kernel is loaded here.
pub(super) const HIGH: GuestAddress = GuestAddress(0x10_0000);
/// Where memory ends for devices, up to 4 GiB.
pub(super) const HOLE: u64 = 0xc000_0000;
/// Where memory goes on after the devices.
pub(super) const ABOVE_HOLE: GuestAddress = GuestAddress(1 << 32);
/// The vsock device's registers.
pub(super) const REGISTERS: u32 = 0xd000_0000;
/// The interrupt controller.
pub(super) const IO_APIC: u32 = 0xfec0_0000;
/// Each vCPU's own interrupt controller.
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages below 4 GiB that KVM needs on Intel processors.
pub(super) const TSS: usize = 0xfffb_d000;

/// The vsock device's interrupt.
pub(super) const VSOCK_IRQ: u32 = 5;
