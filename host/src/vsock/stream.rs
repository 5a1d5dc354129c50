//! The host's side of a connection: the device's end of a socket pair, or of a program's own socket.
//!
//! Payload of the guest goes straight into the socket. What the socket has no room for waits in `tx_buf`, which the
//! guest's credit bounds; the guest gets credit for bytes only when they enter the socket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, send, sockopt};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, VolatileSlice};

use super::chain::part_of;
use super::key::Key;
use super::limits::{BUFFER_BYTES, SEND_BUFFER_BYTES};
use super::poller::{Interest, Poller, Token};
use super::transfer::{self, Read, SEND};
use crate::io::descriptors::may_keep;

/// Neither waits for bytes nor takes them.
const PEEK: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::PEEK);

/// Returns the host's and the device's end of a new connection, both non-blocking.
///
/// # Errors
///
/// The kernel's, if it has no socket pair, or only descriptors that are reserved.
pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (host, device) = UnixStream::pair()?;
    for end in [&host, &device] {
        may_keep(end)?;
        end.set_nonblocking(true)?;
        bound_send_buffer(end)?;
    }
    Ok((host, device))
}

/// Makes the kernel keep no more than [`SEND_BUFFER_BYTES`] of what is sent on a socket, and half as much again.
///
/// # Errors
///
/// The kernel's.
pub fn bound_send_buffer(socket: &UnixStream) -> io::Result<()> {
    // The kernel doubles what it is given.
    Ok(sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER_BYTES / 2)?)
}

/// What a read from the host returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes, at least one.
    Bytes(usize),
    /// Nothing now.
    WouldBlock,
    /// The host sends no more.
    End,
}

/// The direction from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadHalf {
    /// A read may return something.
    Ready,
    /// The host has sent its last byte, and reads go on until they return the end.
    Ending,
    /// A read would block.
    Idle,
    /// The host sends no more, or the guest receives no more.
    Closed,
}

/// The direction to the host.
#[derive(Debug)]
enum WriteHalf {
    /// Bytes of the guest in `tx_buf` wait for room in the socket.
    Open { tx_buf: VecDeque<u8> },
    /// The host receives no more.
    Closed,
    /// The host closed its end. Bytes that it sent before may still be there to be read.
    HungUp,
}

/// The device's end of a host stream, with what is known of its readiness.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    read: ReadHalf,
    write: WriteHalf,
    /// What the socket is watched for.
    interest: Interest,
    /// Whether bytes of the guest have entered the socket.
    is_used: bool,
}

/// What is left for the host's program of a stream whose guest is through.
#[derive(Debug)]
pub enum Remains {
    /// Nothing, or the program has closed.
    Nothing,
    /// Bytes that the program has yet to read.
    Unread(UnixStream),
    /// No byte was sent; the program may not have accepted the stream.
    Unused(UnixStream),
}

impl Stream {
    /// Takes over a non-blocking socket and watches it.
    ///
    /// # Errors
    ///
    /// See [`Poller::add`].
    pub fn new(socket: UnixStream, key: Key, poller: &Poller) -> io::Result<Self> {
        poller.add(key, &socket)?;
        let write = WriteHalf::Open { tx_buf: VecDeque::new() };
        Ok(Self { socket, read: ReadHalf::Ready, write, interest: Interest::Read, is_used: false })
    }

    /// Returns what is left for the host's program.
    pub fn into_remains(self) -> Remains {
        if self.is_hung_up() {
            Remains::Nothing
        } else if transfer::unread_bytes(&self.socket) > 0 {
            Remains::Unread(self.socket)
        } else if self.is_used {
            Remains::Nothing
        } else {
            Remains::Unused(self.socket)
        }
    }

    /// A read may return something.
    pub fn on_readable(&mut self) {
        if self.read == ReadHalf::Idle {
            self.read = ReadHalf::Ready;
        }
    }

    /// The host sends no more.
    pub fn on_end(&mut self) {
        if self.read != ReadHalf::Closed {
            self.read = ReadHalf::Ending;
        }
    }

    /// The host closed its end.
    pub fn on_hang_up(&mut self) {
        self.on_end();
        self.write = WriteHalf::HungUp;
    }

    /// Whether a read may return something.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        matches!(self.read, ReadHalf::Ready | ReadHalf::Ending)
    }

    /// Whether all that the host sends was read.
    #[must_use]
    pub fn is_read_closed(&self) -> bool {
        self.read == ReadHalf::Closed
    }

    /// Whether the host receives no more.
    #[must_use]
    pub fn is_write_closed(&self) -> bool {
        !matches!(self.write, WriteHalf::Open { .. })
    }

    /// Whether the host closed its end.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        matches!(self.write, WriteHalf::HungUp)
    }

    /// Checks for the host's end without reading anything. Returns whether all that the host sends was read.
    #[must_use]
    pub fn poll_end(&mut self) -> bool {
        if self.read != ReadHalf::Closed && self.is_at_end() {
            self.read = ReadHalf::Closed;
        }
        self.is_read_closed()
    }

    /// An error is an end, too: a host that closes before it has read all leaves one after its last byte.
    fn is_at_end(&self) -> bool {
        match recv(&self.socket, &mut [0], PEEK) {
            Ok((_, count)) => count == 0,
            Err(errno) => !is_transient(&errno.into()),
        }
    }

    /// Whether bytes of the guest wait for room in the socket.
    #[must_use]
    pub fn has_buffered(&self) -> bool {
        matches!(&self.write, WriteHalf::Open { tx_buf } if !tx_buf.is_empty())
    }

    /// Bytes of the guest that wait for room in the socket.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        match &self.write {
            WriteHalf::Open { tx_buf } => tx_buf.len(),
            WriteHalf::Closed | WriteHalf::HungUp => 0,
        }
    }

    /// Bytes of memory that hold bytes of the guest.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match &self.write {
            WriteHalf::Open { tx_buf } => tx_buf.capacity(),
            WriteHalf::Closed | WriteHalf::HungUp => 0,
        }
    }

    /// Writes the guest's `payload` of `count` bytes. Returns how many of them entered the socket, or were dropped because the
    /// host receives no more; the others wait in `tx_buf`.
    pub fn write<'m, B: BitmapSlice, P>(&mut self, payload: impl Fn() -> P, count: usize) -> usize
    where
        P: Iterator<Item = VolatileSlice<'m, B>>,
    {
        let WriteHalf::Open { tx_buf } = &mut self.write else { return count };
        let mut entered = 0;
        if tx_buf.is_empty() {
            match transfer::send(self.socket.as_fd(), payload()) {
                Ok(sent) => {
                    entered = sent;
                    self.is_used |= sent > 0;
                }
                Err(error) => match SendFailure::of(&error) {
                    SendFailure::NoRoom => {}
                    SendFailure::NoMemory => self.interest = Interest::Read,
                    SendFailure::Closed => {
                        self.write = WriteHalf::Closed;
                        return count;
                    }
                },
            }
        }
        if entered < count {
            part_of(payload(), entered, count - entered).for_each(|slice| buffer(tx_buf, &slice));
        }
        entered
    }

    /// Writes a few bytes of the device's own. Returns false if the socket has no room for all of them.
    #[must_use]
    pub fn write_preamble(&mut self, bytes: &[u8]) -> bool {
        if self.is_write_closed() {
            return true;
        }
        match send(&self.socket, bytes, SEND) {
            Ok(sent) => sent == bytes.len(),
            Err(errno) if is_transient(&errno.into()) => false,
            Err(_) => {
                self.write = WriteHalf::Closed;
                true
            }
        }
    }

    /// Whether [`flush`](Self::flush) may have something to do.
    #[must_use]
    pub fn awaits_room(&self) -> bool {
        self.interest == Interest::ReadWrite
    }

    /// Moves bytes from `tx_buf` into the socket. Returns how many, those included that were dropped because the host
    /// receives no more.
    pub fn flush(&mut self) -> usize {
        let WriteHalf::Open { tx_buf } = &mut self.write else { return 0 };
        let before = tx_buf.len();
        while let (false, (bytes, _)) = (tx_buf.is_empty(), tx_buf.as_slices()) {
            match send(&self.socket, bytes, SEND) {
                Ok(sent) => {
                    self.is_used |= sent > 0;
                    drop(tx_buf.drain(..sent));
                }
                Err(errno) => match SendFailure::of(&errno.into()) {
                    SendFailure::NoRoom => return before - tx_buf.len(),
                    SendFailure::NoMemory => {
                        self.interest = Interest::Read;
                        return before - tx_buf.len();
                    }
                    SendFailure::Closed => {
                        self.write = WriteHalf::Closed;
                        return before;
                    }
                },
            }
        }
        // An idle connection holds no memory.
        *tx_buf = VecDeque::new();
        before
    }

    /// Watches the socket for room as long as bytes wait for it. Watching it anew reports the room that there is.
    ///
    /// # Errors
    ///
    /// See [`Poller::modify`].
    pub fn update_interest(&mut self, key: Key, poller: &Poller) -> io::Result<()> {
        let interest = if self.has_buffered() { Interest::ReadWrite } else { Interest::Read };
        if interest != self.interest {
            poller.modify(Token::Connection(key), &self.socket, interest)?;
            self.interest = interest;
        }
        Ok(())
    }

    /// Reads from the host into `room`.
    pub fn read<'m, B: BitmapSlice>(&mut self, room: impl Iterator<Item = VolatileSlice<'m, B>>) -> Received {
        match transfer::receive(self.socket.as_fd(), room) {
            Ok(Read { bytes: bytes @ 1.., may_have_more }) => {
                // An event reports what comes from now on; the end has had its own.
                if !may_have_more && self.read == ReadHalf::Ready {
                    self.read = ReadHalf::Idle;
                }
                Received::Bytes(bytes)
            }
            Err(error) if is_transient(&error) => {
                self.read = ReadHalf::Idle;
                Received::WouldBlock
            }
            Ok(_) | Err(_) => {
                self.read = ReadHalf::Closed;
                Received::End
            }
        }
    }

    /// The guest sends no more: the host reads the end after the last byte.
    pub fn shut_down_write(&self) {
        let _closed_already = self.socket.shutdown(Shutdown::Write);
    }

    /// The guest receives no more: the host's writes fail.
    pub fn shut_down_read(&mut self) {
        let _closed_already = self.socket.shutdown(Shutdown::Read);
        self.read = ReadHalf::Closed;
    }
}

fn buffer<B: BitmapSlice>(tx_buf: &mut VecDeque<u8>, slice: &VolatileSlice<'_, B>) {
    if tx_buf.is_empty() {
        // All that the guest has credit for, so that it never grows: growing would double it.
        tx_buf.reserve_exact(usize::try_from(BUFFER_BYTES).unwrap_or(0));
    }
    let mut copy = vec![0; slice.len()];
    if slice.read_slice(&mut copy, 0).is_ok() {
        tx_buf.extend(copy);
    }
}

/// Why the host's socket took no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendFailure {
    /// An event says when there is room.
    NoRoom,
    /// The kernel, or the process's control group, has no memory for them now. No event says when there is, so that the
    /// socket is watched anew.
    NoMemory,
    /// The host receives no more.
    Closed,
}

impl SendFailure {
    fn of(error: &io::Error) -> Self {
        let is_memory =
            [Errno::NOBUFS, Errno::NOMEM].map(Errno::raw_os_error).map(Some).contains(&error.raw_os_error());
        if is_memory {
            Self::NoMemory
        } else if is_transient(error) {
            Self::NoRoom
        } else {
            Self::Closed
        }
    }
}

/// Whether an operation may succeed later.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_memory_is_no_closed_host() {
        for (errno, expected) in [
            (Errno::NOBUFS, SendFailure::NoMemory),
            (Errno::NOMEM, SendFailure::NoMemory),
            (Errno::AGAIN, SendFailure::NoRoom),
            (Errno::INTR, SendFailure::NoRoom),
            (Errno::PIPE, SendFailure::Closed),
            (Errno::CONNRESET, SendFailure::Closed),
        ] {
            assert_eq!(SendFailure::of(&errno.into()), expected, "{errno}");
        }
    }
}
