//! The guest's serial ports: the console, and one for commands.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard};

use vm_superio::serial::{Error, NoEvents};
use vm_superio::{Serial, SerialState, Trigger};

use crate::io::lock::lock;
use crate::transport::mmio::Interrupt;

/// The registers for enabled interrupts, for the reason of the current one (IIR), and for the line's control and status.
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_REASON: u8 = 2;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;
/// There is input, as a bit of the enabled interrupts and of the status.
const INPUT: u8 = 1;
/// That reason, and those bits that are none.
const INPUT_IS_REASON: u8 = 4;
const NO_REASON: u8 = 0xf0;
/// The first two registers are those of the speed.
const SPEED_REGISTERS: u8 = 1 << 7;

/// The most bytes of input that wait until the port has room.
const MAX_TYPED: usize = 4096;

/// A serial port, shared by the vCPUs and the writer of its input.
pub(super) struct SerialPort<W: Write, I: Interrupt> {
    uart: Mutex<Uart<W, I>>,
    has_room: Condvar,
}

struct Uart<W: Write, I: Interrupt> {
    serial: Serial<Line<I>, NoEvents, W>,
    /// Bytes of input that the port has had no room for.
    typed: VecDeque<u8>,
    /// Nobody writes input any more, or takes it.
    closed: bool,
}

/// The state of a port: its registers, and the input that it has had no room for.
#[derive(Clone, Debug, Default)]
pub(super) struct PortState {
    serial: SerialState,
    typed: VecDeque<u8>,
}

/// The port's interrupt line.
struct Line<I>(I);

impl<I: Interrupt> Trigger for Line<I> {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// What became of a byte that the guest wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It was written, or nobody reads the output any more.
    Done,
    /// The output takes no more now. The same byte is to be written again.
    Full,
}

impl<W: Write, I: Interrupt> SerialPort<W, I> {
    /// Returns a port in this state, whose output goes to `output`. It raises the interrupt that the state has.
    ///
    /// # Errors
    ///
    /// What keeps the interrupt from the guest.
    pub(super) fn new(state: PortState, interrupt: I, output: W) -> io::Result<Self> {
        let PortState { serial, typed } = state;
        let serial = Serial::from_state(&serial, Line(interrupt), NoEvents, output).map_err(|error| match error {
            Error::Trigger(error) | Error::IOError(error) => error,
            Error::FullFifo => io::ErrorKind::InvalidInput.into(),
        })?;
        Ok(Self { uart: Mutex::new(Uart { serial, typed, closed: false }), has_room: Condvar::new() })
    }

    /// Returns the port's state.
    pub(super) fn state(&self) -> PortState {
        let uart = self.lock();
        PortState { serial: uart.serial.state(), typed: uart.typed.clone() }
    }

    /// The guest reads a register.
    ///
    /// # Errors
    ///
    /// What keeps the interrupt from the guest.
    pub(super) fn read(&self, register: u8) -> io::Result<u8> {
        let mut uart = self.lock();
        let value = uart.serial.read(register);
        self.refill(&mut uart)?;
        if register == INTERRUPT_REASON && uart.input_interrupts() {
            return Ok((value & NO_REASON) | INPUT_IS_REASON);
        }
        Ok(value)
    }

    /// The guest writes a register.
    ///
    /// # Errors
    ///
    /// What keeps the interrupt from the guest.
    pub(super) fn write(&self, register: u8, value: u8) -> io::Result<Written> {
        let mut uart = self.lock();
        let written = match uart.serial.write(register, value) {
            Err(Error::Trigger(error)) => return Err(error),
            Err(Error::IOError(error)) if error.kind() == io::ErrorKind::WouldBlock => Written::Full,
            _ => Written::Done,
        };
        self.refill(&mut uart)?;
        Ok(written)
    }

    /// Sends bytes to the guest, once it has read most of those before. Returns whether it still reads.
    ///
    /// # Errors
    ///
    /// What keeps the interrupt from the guest.
    pub(super) fn type_in(&self, bytes: &[u8]) -> io::Result<bool> {
        let mut uart = self.lock();
        while !uart.closed && uart.typed.len() + bytes.len() > MAX_TYPED {
            uart = self.has_room.wait(uart).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        uart.typed.extend(bytes);
        self.refill(&mut uart)?;
        Ok(!uart.closed)
    }

    /// Ends the input.
    pub(super) fn close_input(&self) {
        self.lock().closed = true;
        self.has_room.notify_all();
    }

    /// Calls `look` with what the output goes to.
    pub(super) fn with_output<T>(&self, look: impl FnOnce(&W) -> T) -> T {
        look(self.lock().serial.writer())
    }

    fn lock(&self) -> MutexGuard<'_, Uart<W, I>> {
        lock(&self.uart)
    }

    /// Moves input to the port, as far as it has room.
    fn refill(&self, uart: &mut Uart<W, I>) -> io::Result<()> {
        let room = uart.serial.fifo_capacity().min(uart.typed.len());
        if room > 0 {
            let bytes: Vec<u8> = uart.typed.range(..room).copied().collect();
            let taken = match uart.serial.enqueue_raw_bytes(&bytes) {
                Ok(taken) => taken,
                Err(Error::Trigger(error)) => return Err(error),
                // A port in loopback mode takes no input.
                Err(_) => 0,
            };
            uart.typed.drain(..taken);
            self.has_room.notify_all();
        }
        Ok(())
    }
}

impl<W: Write, I: Interrupt> Uart<W, I> {
    /// Whether input is a reason for an interrupt. It stays one until all of it is read: Linux reads at most 256 bytes before
    /// it looks for the reason again. The emulation forgets it with the first byte.
    fn input_interrupts(&mut self) -> bool {
        let mut has = |register, bit| self.serial.read(register) & bit != 0;
        has(LINE_STATUS, INPUT) && !has(LINE_CONTROL, SPEED_REGISTERS) && has(INTERRUPT_ENABLE, INPUT)
    }
}

impl<W: Write, I: Interrupt> fmt::Debug for SerialPort<W, I> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;

    type Port = SerialPort<UnixStream, fn() -> io::Result<()>>;

    /// The registers for data and for line control's mirror (MCR).
    const DATA: u8 = 0;
    const MODEM_CONTROL: u8 = 4;
    const LOOPBACK: u8 = 1 << 4;

    fn no_interrupt() -> io::Result<()> {
        Ok(())
    }

    fn port() -> (Port, UnixStream) {
        let (output, reader) = UnixStream::pair().unwrap();
        output.set_nonblocking(true).unwrap();
        (Port::new(PortState::default(), no_interrupt, output).unwrap(), reader)
    }

    #[test]
    fn a_full_output_loses_no_byte() {
        let (port, mut reader) = port();
        let mut count = 0usize;
        while port.write(DATA, count.to_le_bytes()[0]).unwrap() == Written::Done {
            count += 1;
        }
        let mut bytes = vec![0; count];
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().enumerate().all(|(index, &byte)| byte == index.to_le_bytes()[0]));
        assert_eq!(port.write(DATA, b'x').unwrap(), Written::Done);
        reader.read_exact(&mut bytes[..1]).unwrap();
        assert_eq!(bytes[0], b'x');
    }

    #[test]
    fn an_output_that_nobody_reads_is_dropped() {
        let (port, reader) = port();
        drop(reader);
        assert_eq!(port.write(DATA, b'x').unwrap(), Written::Done);
    }

    #[test]
    fn input_waits_for_the_guest_and_arrives_in_order() {
        let (port, _reader) = port();
        let port = Arc::new(port);
        let sent: Vec<u8> = (0..3 * MAX_TYPED).map(|index| index.to_le_bytes()[0]).collect();
        let (typing, bytes) = (Arc::clone(&port), sent.clone());
        let typist = thread::spawn(move || bytes.chunks(100).all(|chunk| typing.type_in(chunk).unwrap()));
        let mut received = Vec::new();
        while received.len() < sent.len() {
            if port.read(LINE_STATUS).unwrap() & INPUT != 0 {
                received.push(port.read(DATA).unwrap());
            }
        }
        assert!(typist.join().unwrap());
        assert_eq!(received, sent);
    }

    /// What Linux reads at an interrupt: as long as there is a reason, at most this many bytes.
    fn read_as_linux(port: &Port) -> Vec<u8> {
        const AT_ONCE: usize = 256;
        const NO_INTERRUPT: u8 = 1;
        let mut received = Vec::new();
        while port.read(INTERRUPT_REASON).unwrap() & NO_INTERRUPT == 0 {
            let bytes = (0..AT_ONCE).map_while(|_| {
                let has_data = port.read(LINE_STATUS).unwrap() & INPUT != 0;
                has_data.then(|| port.read(DATA).unwrap())
            });
            received.extend(bytes);
        }
        received
    }

    #[test]
    fn input_is_a_reason_until_all_of_it_is_read() {
        let (port, _reader) = port();
        port.write(INTERRUPT_ENABLE, INPUT).unwrap();
        for length in [1, 255, 256, 257, 300, 319, 320, 600] {
            assert!(port.type_in(&vec![b'x'; length]).unwrap());
            assert_eq!(read_as_linux(&port).len(), length);
        }
        port.write(INTERRUPT_ENABLE, 0).unwrap();
        assert!(port.type_in(b"x").unwrap());
        assert_eq!(read_as_linux(&port), b"", "the guest has not asked for it");
    }

    #[test]
    fn a_closed_input_ends_the_wait_of_its_writer() {
        let (port, _reader) = port();
        let port = Arc::new(port);
        let typing = Arc::clone(&port);
        let typist = thread::spawn(move || while typing.type_in(&[b'x'; 1000]).unwrap() {});
        port.close_input();
        typist.join().unwrap();
    }

    #[test]
    fn another_port_goes_on_with_the_input() {
        let (port, _reader) = port();
        port.write(INTERRUPT_ENABLE, INPUT).unwrap();
        let sent: Vec<u8> = (0..200).collect();
        assert!(port.type_in(&sent).unwrap());
        assert_eq!(port.read(DATA).unwrap(), 0);
        let (interrupts, raised) = std::sync::mpsc::channel();
        let interrupt = move || interrupts.send(()).map_err(io::Error::other);
        let other = SerialPort::new(port.state(), interrupt, io::sink()).unwrap();
        raised.try_recv().unwrap();
        let received: Vec<u8> = (1..200).map(|_| other.read(DATA).unwrap()).collect();
        assert_eq!(received, sent[1..]);
    }

    #[test]
    fn loopback_keeps_the_input() {
        let (port, _reader) = port();
        port.write(MODEM_CONTROL, LOOPBACK).unwrap();
        assert!(port.type_in(b"ab").unwrap());
        port.write(MODEM_CONTROL, 0).unwrap();
        port.write(LINE_STATUS, 0).unwrap();
        assert_eq!([port.read(DATA).unwrap(), port.read(DATA).unwrap()], *b"ab");
    }
}
