//! The devices that the guest reaches through ports and through addresses without memory.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::net::{SendFlags, send};
use vm_memory::GuestMemoryMmap;

use super::layout::REGISTERS;
use super::outcome::Outcome;
use super::panic_watch::PanicWatch;
use super::power;
use super::serial::{PortState, SerialPort, Written};
use super::serial_address::{COMMANDS, CONSOLE};
use crate::transport::mmio::{BYTES, Interrupt, Mmio, QUEUE_NOTIFY};

/// The vsock device of a guest whose interrupts are `I`.
pub type VsockMmio<I> = Mmio<Arc<GuestMemoryMmap>, I>;

/// The guest's devices. Any thread that runs a vCPU passes the guest's accesses to them.
///
/// An access to an address or a port without a device, and one of another width than a register has, reads as all ones and
/// writes nothing.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::sync::Arc;
/// use scx_vsock::guest::microvm::{Bus, Outcome, PortWrite};
/// use scx_vsock::transport::mmio::Mmio;
/// use scx_vsock::vsock::Device;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let interrupt = || Ok(()); // ... the guest's
/// let (commands, _host) = UnixStream::pair()?;
/// let vsock = Mmio::new(Device::new(3)?, memory, interrupt)?;
/// let bus = Bus::new(Box::new(std::io::stdout()), commands, [interrupt; 2], Arc::new(vsock))?;
/// assert_eq!(bus.write_port(0x3f8, b"\n"), PortWrite::Done, "a byte on the console");
/// assert_eq!(bus.write_port(0x600, &[0x34]), PortWrite::Ended(Outcome::PoweredOff));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Bus<I: Interrupt> {
    console: SerialPort<ConsoleOutput, I>,
    commands: SerialPort<CommandOutput, I>,
    /// The stream of `commands` once more, to wait for it and to end it.
    stream: UnixStream,
    vsock: RwLock<Arc<VsockMmio<I>>>,
    notify_exits: AtomicU64,
}

/// The state of a guest's serial ports.
#[derive(Clone, Debug, Default)]
pub(super) struct PortStates {
    console: PortState,
    commands: PortState,
    panic: PanicWatch,
}

/// What became of a guest's write to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum PortWrite {
    /// It was done.
    Done,
    /// The stream of the second serial port takes no more. The write is to be repeated once it does: see
    /// [`Bus::commands_fd`].
    Full,
    /// The guest ends.
    Ended(Outcome),
}

impl<I: Interrupt> Bus<I> {
    /// Returns devices of which no register was written: a console that writes to `console`; a second serial port whose
    /// other end is that of `commands`, which becomes non-blocking; their interrupts, in this order; the vsock device.
    ///
    /// # Errors
    ///
    /// What the stream failed with.
    pub fn new(
        console: Box<dyn Write + Send>,
        commands: UnixStream,
        interrupts: [I; 2],
        vsock: Arc<VsockMmio<I>>,
    ) -> io::Result<Self> {
        Self::with_ports(PortStates::default(), console, commands, interrupts, vsock)
    }

    /// As [`new`](Self::new), with serial ports in these states.
    pub(super) fn with_ports(
        states: PortStates,
        console: Box<dyn Write + Send>,
        commands: UnixStream,
        interrupts: [I; 2],
        vsock: Arc<VsockMmio<I>>,
    ) -> io::Result<Self> {
        commands.set_nonblocking(true)?;
        let [of_console, of_commands] = interrupts;
        let output = ConsoleOutput { output: console, panic: states.panic };
        Ok(Self {
            console: SerialPort::new(states.console, of_console, output)?,
            stream: commands.try_clone()?,
            commands: SerialPort::new(states.commands, of_commands, CommandOutput { stream: commands, sent: 0 })?,
            vsock: RwLock::new(vsock),
            notify_exits: AtomicU64::new(0),
        })
    }

    /// Returns how many bytes the guest has written to its second serial port.
    pub(super) fn commands_sent(&self) -> u64 {
        self.commands.with_output(|output| output.sent)
    }

    /// Returns the states of the serial ports.
    pub(super) fn ports(&self) -> PortStates {
        let panic = self.console.with_output(|output| output.panic.clone());
        PortStates { console: self.console.state(), commands: self.commands.state(), panic }
    }

    /// The guest reads from a port.
    ///
    /// # Errors
    ///
    /// The guest's end: an interrupt cannot be raised.
    pub fn read_port(&self, port: u16, data: &mut [u8]) -> Result<(), Outcome> {
        data.fill(0xff);
        let [byte] = data else { return Ok(()) };
        let value = if let Some(register) = CONSOLE.register(port) {
            self.console.read(register)
        } else if let Some(register) = COMMANDS.register(port) {
            self.commands.read(register)
        } else {
            return Ok(());
        };
        *byte = value.map_err(no_interrupt)?;
        Ok(())
    }

    /// The guest writes to a port.
    pub fn write_port(&self, port: u16, data: &[u8]) -> PortWrite {
        let &[byte] = data else { return PortWrite::Done };
        let written = if let Some(register) = CONSOLE.register(port) {
            // A console that would block loses bytes; the guest goes on.
            self.console.write(register, byte).map(|_| Written::Done)
        } else if let Some(register) = COMMANDS.register(port) {
            self.commands.write(register, byte)
        } else {
            return power::on_write(port, byte)
                .map_or(PortWrite::Done, |outcome| PortWrite::Ended(self.end_of(outcome)));
        };
        match written {
            Ok(Written::Done) => PortWrite::Done,
            Ok(Written::Full) => PortWrite::Full,
            Err(error) => PortWrite::Ended(no_interrupt(error)),
        }
    }

    /// The guest reads where there is no memory.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match offset(address) {
            Some(offset) => self.vsock().read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes where there is no memory.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some(offset) = offset(address) {
            self.notify_exits.fetch_add(u64::from(offset == QUEUE_NOTIFY), Ordering::Relaxed);
            self.vsock().write(offset, data);
        }
    }

    /// Sends bytes to the guest's second serial port, once there is room. Returns whether the guest still runs.
    ///
    /// # Errors
    ///
    /// The interrupt cannot be raised.
    pub fn type_in(&self, bytes: &[u8]) -> io::Result<bool> {
        for piece in bytes.chunks(MAX_PIECE) {
            if !self.commands.type_in(piece)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends the stream of the second serial port and all connections of the vsock device, as the guest has ended.
    pub fn hang_up(&self) {
        self.commands.close_input();
        let _has_ended = self.stream.shutdown(Shutdown::Both);
        // As a driver resets it.
        self.vsock().write(STATUS, &[0; 4]);
    }

    /// Returns the stream of the second serial port. It is writable when a [`PortWrite::Full`] is to be repeated.
    #[must_use]
    pub fn commands_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Returns the vsock device.
    #[must_use]
    pub fn vsock(&self) -> Arc<VsockMmio<I>> {
        Arc::clone(&self.vsock.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the vsock device. No vCPU may run.
    pub(super) fn replace_vsock(&self, vsock: Arc<VsockMmio<I>>) {
        *self.vsock.write().unwrap_or_else(PoisonError::into_inner) = vsock;
    }

    /// Returns how many queue notifications came here, instead of through an ioeventfd.
    #[must_use]
    pub fn notify_exits(&self) -> u64 {
        self.notify_exits.load(Ordering::Relaxed)
    }

    /// Returns the outcome of a guest that ended so: a panic, if its kernel printed one before.
    pub(super) fn end_of(&self, outcome: Outcome) -> Outcome {
        let ends_a_panic = matches!(outcome, Outcome::PoweredOff | Outcome::Reset | Outcome::TripleFault { .. });
        match self.console.with_output(|output| output.panic.reason()) {
            Some(reason) if ends_a_panic => Outcome::Panicked { reason },
            _ => outcome,
        }
    }
}

/// The most bytes that a serial port's input takes at once.
const MAX_PIECE: usize = 256;

/// The offset of the vsock device's register for its status (virtio 1.3, 4.2.2).
const STATUS: u64 = 0x70;

/// Returns the offset of a register of the vsock device.
fn offset(address: u64) -> Option<u64> {
    address.checked_sub(REGISTERS.into()).filter(|&offset| offset < BYTES)
}

fn no_interrupt(error: io::Error) -> Outcome {
    Outcome::HostFailed { reason: format!("the interrupt of a serial port: {error}") }
}

/// Where the second serial port's output goes. A write to a stream that nobody reads any more raises no signal.
struct CommandOutput {
    stream: UnixStream,
    /// How many bytes were written.
    sent: u64,
}

impl Write for CommandOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = send(&self.stream, bytes, SendFlags::NOSIGNAL)?;
        self.sent += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the console's output goes.
struct ConsoleOutput {
    output: Box<dyn Write + Send>,
    panic: PanicWatch,
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.panic.take(bytes);
        match self.output.write_all(bytes) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    use crate::guest::microvm::power::{RESET, RESET_VALUE};
    use crate::vsock::Device;

    type NoInterrupt = fn() -> io::Result<()>;

    fn bus() -> (Bus<NoInterrupt>, UnixStream) {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let interrupt: NoInterrupt = || Ok(());
        let vsock = Arc::new(Mmio::new(Device::new(3).unwrap(), memory, interrupt).unwrap());
        let (commands, host) = UnixStream::pair().unwrap();
        (Bus::new(Box::new(io::sink()), commands, [interrupt; 2], vsock).unwrap(), host)
    }

    fn print(bus: &Bus<NoInterrupt>, text: &[u8]) {
        for byte in text {
            assert_eq!(bus.write_port(CONSOLE.port, &[*byte]), PortWrite::Done);
        }
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic() {
        let (bus, _host) = bus();
        let reset = || bus.write_port(RESET, &[RESET_VALUE]);
        assert_eq!(reset(), PortWrite::Ended(Outcome::Reset));
        print(&bus, b"Kernel panic - not syncing: no init\r\n");
        assert_eq!(reset(), PortWrite::Ended(Outcome::Panicked { reason: "no init".into() }));
        let failed = Outcome::HostFailed { reason: String::new() };
        assert_eq!(bus.end_of(failed.clone()), failed);
    }

    #[test]
    fn what_is_not_there_reads_as_ones() {
        let (bus, _host) = bus();
        for port in [0, 0x2f7, 0x400, 0xffff] {
            let mut data = [0; 1];
            bus.read_port(port, &mut data).unwrap();
            assert_eq!(data, [0xff]);
        }
        let mut wide = [0; 4];
        bus.read_port(CONSOLE.port, &mut wide).unwrap();
        assert_eq!(wide, [0xff; 4], "a serial port's registers are a byte wide");
        for address in [0xcfff_ffff, u64::from(REGISTERS) + BYTES, u64::MAX] {
            let mut data = [0; 8];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 8]);
            bus.write(address, &data);
        }
        let mut magic = [0; 4];
        bus.read(REGISTERS.into(), &mut magic);
        assert_eq!(&magic, b"virt");
    }

    #[test]
    fn a_guest_that_nobody_listens_to_is_held_until_the_end() {
        let (bus, host) = bus();
        while bus.write_port(COMMANDS.port, b"x") == PortWrite::Done {}
        assert_eq!(bus.write_port(COMMANDS.port, b"x"), PortWrite::Full);
        bus.hang_up();
        assert_eq!(bus.write_port(COMMANDS.port, b"x"), PortWrite::Done);
        assert!(!bus.type_in(b"x").unwrap());
        drop(host);
    }
}
