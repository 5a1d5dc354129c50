//! The ACPI tables of the machine: the minimum ("hardware-reduced", ACPI 6.5, 4.1), with two serial ports and a
//! virtio-mmio device, since packaged kernels do not accept one on their command line.

use acpi_tables::aml::{self, Name, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{ACPI, IO_APIC, LOCAL_APIC, REGISTERS, VSOCK_IRQ};
use super::place::Place;
use super::power;
use super::serial_address::{COMMANDS, CONSOLE, SerialAddress};
use super::srat::Nodes;
use crate::guest::topology::Topology;
use crate::transport::mmio::BYTES;

const OEM: [u8; 6] = *b"SCXVSK";
const TABLE: [u8; 8] = *b"MICROVM ";
const REVISION: u32 = 1;

/// PC hardware that is absent, so that the kernel does not probe it: graphics, and a battery-backed clock.
const NO_VGA: u16 = 1 << 2;
const NO_CLOCK: u16 = 1 << 5;

/// Tables begin at multiples of this.
const ALIGNMENT: u64 = 64;

/// The bytes of the vsock device's registers.
const REGISTER_BYTES: u32 = 0x200;
const _: () = assert!(REGISTER_BYTES as u64 == BYTES);

/// Writes the tables of a machine with these processors, and this memory of its nodes in MiB. Their root is at [`ACPI`].
pub(super) fn write(memory: &GuestMemoryMmap, topology: &Topology, nodes: &[u32]) -> Result<(), GuestMemoryError> {
    let mut tables = Tables { memory, next: ACPI.unchecked_add(ALIGNMENT) };
    let devices = tables.add(&Definition(devices()))?;
    let description = tables.add(&description(devices))?;
    let interrupts = tables.add(&interrupts(topology))?;
    let mut list = XSDT::new(OEM, TABLE, REVISION);
    list.add_entry(description.raw_value());
    list.add_entry(interrupts.raw_value());
    if nodes.len() > 1 {
        list.add_entry(tables.add(&Nodes::new((OEM, TABLE), topology, nodes, memory))?.raw_value());
    }
    let list = tables.add(&list)?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, list.raw_value())), ACPI)
}

struct Tables<'a> {
    memory: &'a GuestMemoryMmap,
    next: GuestAddress,
}

impl Tables<'_> {
    /// Writes a table after the previous ones, and returns its address.
    fn add(&mut self, table: &dyn Aml) -> Result<GuestAddress, GuestMemoryError> {
        let (address, bytes) = (self.next, bytes(table));
        self.memory.write_slice(&bytes, address)?;
        self.next = address.unchecked_add((bytes.len() as u64).next_multiple_of(ALIGNMENT));
        Ok(address)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The fixed ACPI description table: the registers by which the guest turns itself off, and what is absent.
fn description(devices: GuestAddress) -> impl Aml {
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(devices.raw_value())
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = (NO_VGA | NO_CLOCK).into();
    table.sleep_control_reg = port(power::SLEEP_CONTROL);
    table.sleep_status_reg = port(power::SLEEP_STATUS);
    table.reset_reg = port(power::RESET);
    table.reset_value = power::RESET_VALUE;
    table.finalize()
}

fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, number.into())
}

/// The vCPUs and one interrupt controller.
fn interrupts(topology: &Topology) -> impl Aml {
    let mut table = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for (vcpu, place) in (0..).zip(Place::all(topology)) {
        let [apic_id, ..] = place.apic_id.to_le_bytes();
        table.add_structure(ProcessorLocalApic::new(vcpu, apic_id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, IO_APIC, 0));
    table
}

/// A table of definitions.
struct Definition(Vec<u8>);

impl Aml for Definition {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
        table.append_slice(&self.0);
        sink.vec(table.as_slice());
    }
}

fn devices() -> Vec<u8> {
    let zero = 0u8;
    let off = aml::Package::new(vec![&power::OFF, &zero, &zero, &zero]);
    let off = Name::new(Path::new("_S5_"), &off);
    [bytes(&off), serial("COM1", 1, CONSOLE), serial("COM2", 2, COMMANDS), vsock()].concat()
}

fn serial(name: &str, number: u8, address: SerialAddress) -> Vec<u8> {
    let ports = aml::IO::new(address.port, address.port, 1, SerialAddress::PORTS);
    device(name, &aml::EISAName::new("PNP0501"), number, &ports, address.irq)
}

/// "LNRO0005" is the identity of every virtio-mmio device; its registers identify the kind.
fn vsock() -> Vec<u8> {
    let registers = aml::Memory32Fixed::new(true, REGISTERS, REGISTER_BYTES);
    device("VSCK", &"LNRO0005", 0, &registers, VSOCK_IRQ)
}

/// A device with one range of addresses and one edge-triggered interrupt.
fn device(name: &str, identity: &dyn Aml, number: u8, range: &dyn Aml, irq: u32) -> Vec<u8> {
    let interrupt = aml::Interrupt::new(true, true, false, false, irq);
    let identity = Name::new(Path::new("_HID"), identity);
    let number = Name::new(Path::new("_UID"), &number);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![range, &interrupt]));
    let path = Path::new(&format!("_SB_.{name}"));
    bytes(&aml::Device::new(path, vec![&identity, &number, &resources]))
}
