//! The layout of the guest's physical memory, as far as its kernel does not choose it.

use vm_memory::GuestAddress;

/// The global descriptor table that the kernel begins with.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The boot parameters, which Linux calls the zero page.
pub const BOOT_PARAMETERS: GuestAddress = GuestAddress(0x7000);
/// The top of the page tables that the kernel begins with; the other two follow it.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Where usable memory below 1 MiB ends.
pub const LOW_END: u64 = 0x9_fc00;
/// The root of the ACPI tables, where the kernel looks for firmware's.
pub const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// Where memory above the firmware's hole begins. The kernel is loaded here.
pub const HIGH: GuestAddress = GuestAddress(0x10_0000);
/// The vsock device's registers.
pub const REGISTERS: u64 = 0xd000_0000;
/// The interrupt controller.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The processor's own interrupt controller.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// The vsock device's interrupt.
pub const VSOCK_IRQ: u32 = 5;
