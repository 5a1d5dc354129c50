//! The guest's serial ports: the console, and one for commands.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use scx_vsock::transport::kvm::Irq;
use scx_vsock::transport::mmio::Interrupt;
use vm_superio::serial::{Error, NoEvents};
use vm_superio::{Serial, Trigger};

/// The address of a serial port.
#[derive(Clone, Copy, Debug)]
pub struct SerialAddress {
    /// Its first port.
    pub port: u16,
    /// Its interrupt.
    pub irq: u32,
}

impl SerialAddress {
    /// The number of ports that it has.
    pub const PORTS: u8 = 8;

    /// Returns the register at this port, if it is one of its.
    #[must_use]
    pub fn register(self, port: u16) -> Option<u8> {
        let register = u8::try_from(port.checked_sub(self.port)?).ok()?;
        (register < Self::PORTS).then_some(register)
    }
}

/// The console, which Linux calls `ttyS0`.
pub const CONSOLE: SerialAddress = SerialAddress { port: 0x3f8, irq: 4 };
/// The one for commands, `ttyS1`.
pub const COMMANDS: SerialAddress = SerialAddress { port: 0x2f8, irq: 3 };

/// A serial port, shared by the processor and the writer of its input.
pub struct SerialPort<W: Write> {
    uart: Mutex<Uart<W>>,
}

struct Uart<W: Write> {
    serial: Serial<Line, NoEvents, W>,
    /// Typed bytes that the port has had no room for.
    typed: VecDeque<u8>,
}

/// The port's interrupt line.
struct Line(Irq);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

impl<W: Write> SerialPort<W> {
    /// Returns a port whose output goes to `output`.
    pub fn new(interrupt: Irq, output: W) -> Self {
        Self { uart: Mutex::new(Uart { serial: Serial::new(Line(interrupt), output), typed: VecDeque::new() }) }
    }

    /// The guest reads a register.
    pub fn read(&self, register: u8) -> Result<u8, Error<io::Error>> {
        let mut uart = self.lock();
        let value = uart.serial.read(register);
        uart.refill()?;
        Ok(value)
    }

    /// The guest writes a register.
    pub fn write(&self, register: u8, value: u8) -> Result<(), Error<io::Error>> {
        let mut uart = self.lock();
        match uart.serial.write(register, value) {
            // Nobody reads the output any more.
            Err(Error::IOError(_)) => {}
            written => written?,
        }
        uart.refill()
    }

    /// Sends bytes to the guest.
    pub fn type_in(&self, bytes: &[u8]) -> Result<(), Error<io::Error>> {
        let mut uart = self.lock();
        uart.typed.extend(bytes);
        uart.refill()
    }

    fn lock(&self) -> MutexGuard<'_, Uart<W>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SerialPort<UnixStream> {
    /// Ends the connection to the writer.
    pub fn hang_up(&self) {
        let _has_ended = self.lock().serial.writer().shutdown(Shutdown::Both);
    }
}

impl<W: Write> Uart<W> {
    /// Moves typed bytes to the port, as far as it has room.
    fn refill(&mut self) -> Result<(), Error<io::Error>> {
        let room = self.serial.fifo_capacity().min(self.typed.len());
        if room > 0 {
            let bytes: Vec<u8> = self.typed.range(..room).copied().collect();
            let taken = self.serial.enqueue_raw_bytes(&bytes)?;
            self.typed.drain(..taken);
        }
        Ok(())
    }
}

impl<W: Write> fmt::Debug for SerialPort<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SerialPort").finish_non_exhaustive()
    }
}
