//! The device's end of a connection's socket pair.
//!
//! Guest payload goes straight into the socket. What it has no room for waits in a spill, which the guest's credit
//! bounds; the guest is told that bytes were taken only when they enter the socket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv, send, sockopt};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, VolatileSlice};

use super::chain::Chain;
use super::connection::BUFFER_BYTES;
use super::transfer::{self, SEND};

/// Kernel memory at which one end of a pair takes no more, whatever the system's default is. A write that begins below
/// it may go beyond by half of it.
pub const SEND_BUFFER_BYTES: usize = 208 * 1024;

/// Neither waits for bytes nor takes them.
const PEEK: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::PEEK);

/// The host's and the device's end of a new connection, neither of which blocks.
///
/// # Errors
///
/// What the kernel says if it has no socket pair.
pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (host, device) = UnixStream::pair()?;
    for end in [&host, &device] {
        end.set_nonblocking(true)?;
        // The kernel doubles what it is given.
        sockopt::set_socket_send_buffer_size(end, SEND_BUFFER_BYTES / 2)?;
    }
    Ok((host, device))
}

/// The device's end of a socket pair, with what is known of its readiness.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// Guest bytes that the socket had no room for.
    spill: VecDeque<u8>,
    /// Whether a read may give something, or the host's end.
    readable: bool,
    /// The host will send no more.
    host_sent_all: bool,
    /// The host closed its end wholly, or for receiving.
    host_takes_nothing: bool,
    /// The host closed its end wholly. What it sent before may still be here.
    host_is_gone: bool,
}

/// What a read from the host's side gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromHost {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The host will send no more.
    End,
}

impl Stream {
    /// The stream on a non-blocking socket.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            spill: VecDeque::new(),
            readable: true,
            host_sent_all: false,
            host_takes_nothing: false,
            host_is_gone: false,
        }
    }

    /// Takes note that a read may give something.
    pub fn note_readable(&mut self) {
        self.readable = true;
    }

    /// Takes note that the host closed its end.
    pub fn note_hang_up(&mut self) {
        self.readable = true;
        self.host_takes_nothing = true;
        self.host_is_gone = true;
        self.spill = VecDeque::new();
    }

    /// Whether there may be something of the host's to send to the guest.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.readable && !self.host_sent_all
    }

    /// Whether the host will send no more, all of which was read. Looks for that without reading anything.
    #[must_use]
    pub fn finds_end(&mut self) -> bool {
        if !self.host_sent_all && self.is_at_end() {
            self.end();
        }
        self.host_sent_all
    }

    /// An error is at the end, too: a host that closed without reading all leaves one behind its last byte.
    fn is_at_end(&self) -> bool {
        match recv(&self.socket, &mut [0], PEEK) {
            Ok((_, count)) => count == 0,
            Err(errno) => !is_transient(&errno.into()),
        }
    }

    /// Whether the host takes no more bytes.
    #[must_use]
    pub fn host_takes_nothing(&self) -> bool {
        self.host_takes_nothing
    }

    /// Whether the host closed its end wholly.
    #[must_use]
    pub fn host_is_gone(&self) -> bool {
        self.host_is_gone
    }

    /// Whether guest bytes wait for room in the socket.
    #[must_use]
    pub fn is_spilling(&self) -> bool {
        !self.spill.is_empty()
    }

    /// Bytes of memory that hold guest bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.spill.capacity()
    }

    /// Takes the guest's payload, the `count` bytes of `chain` from `offset` on; gives how many of them entered the
    /// socket (or found nobody to take them). The rest waits in the spill.
    pub fn take<B: BitmapSlice>(&mut self, chain: &Chain<'_, B>, offset: usize, count: usize) -> usize {
        let mut entered = 0;
        if self.spill.is_empty() {
            match transfer::send(self.socket.as_fd(), chain.slices_of(offset, count)) {
                Ok(sent) => entered = sent,
                Err(error) if is_transient(&error) => {}
                Err(_) => self.host_takes_nothing = true,
            }
        }
        if self.host_takes_nothing {
            return count;
        }
        for slice in chain.slices_of(offset + entered, count - entered) {
            self.spill_slice(&slice);
        }
        entered
    }

    /// Sends the host a few bytes that are not the guest's. False if they did not enter the socket as a whole.
    pub fn say(&self, bytes: &[u8]) -> bool {
        send(&self.socket, bytes, SEND).is_ok_and(|sent| sent == bytes.len())
    }

    fn spill_slice<B: BitmapSlice>(&mut self, slice: &VolatileSlice<'_, B>) {
        if self.spill.is_empty() {
            // All that the guest has credit for, so that it never grows: growing would double it.
            self.spill.reserve_exact(usize::try_from(BUFFER_BYTES).unwrap_or(0));
        }
        let mut copy = vec![0; slice.len()];
        if slice.read_slice(&mut copy, 0).is_ok() {
            self.spill.extend(copy);
        }
    }

    /// Moves waiting bytes into the socket; gives how many entered it (or found nobody to take them).
    pub fn flush(&mut self) -> usize {
        let before = self.spill.len();
        while let (true, (front, _)) = (self.is_spilling(), self.spill.as_slices()) {
            match send(&self.socket, front, SEND) {
                Ok(sent) => drop(self.spill.drain(..sent)),
                Err(error) if is_transient(&error.into()) => break,
                Err(_) => {
                    self.host_takes_nothing = true;
                    self.spill = VecDeque::new();
                }
            }
        }
        if self.spill.is_empty() {
            // An idle connection holds no memory.
            self.spill = VecDeque::new();
        }
        before - self.spill.len()
    }

    /// Reads from the host into the chain's bytes from `offset` on, at most `count`.
    pub fn give<B: BitmapSlice>(&mut self, chain: &Chain<'_, B>, offset: usize, count: usize) -> FromHost {
        match transfer::receive(self.socket.as_fd(), chain.slices_of(offset, count)) {
            Ok(0) => self.end(),
            Ok(received) => FromHost::Bytes(received),
            Err(error) if is_transient(&error) => {
                self.readable = false;
                FromHost::Nothing
            }
            Err(_) => self.end(),
        }
    }

    fn end(&mut self) -> FromHost {
        self.readable = false;
        self.host_sent_all = true;
        FromHost::End
    }

    /// The guest will send no more: so the host reads the end behind the last byte.
    pub fn finish_sending(&self) {
        let _closed_already = self.socket.shutdown(Shutdown::Write);
    }

    /// The guest will receive no more: so the host's writes fail.
    pub fn refuse_receiving(&mut self) {
        let _closed_already = self.socket.shutdown(Shutdown::Read);
        self.readable = false;
        self.host_sent_all = true;
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether an operation may succeed later.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
