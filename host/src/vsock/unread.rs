//! Streams of connections that are over for the guest, with bytes that the host's program has yet to read.
//!
//! The kernel keeps these bytes for the program, in a socket that it may not even have accepted. A guest that connects,
//! sends and resets in a loop could make it keep any number of them, so the device keeps its end of each such stream, and
//! with it the place of a connection, until the program has read all or closed.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::admission::{Admission, Origin};
use super::poller::{Interest, Poller, StreamEvent, Token};
use super::stream::Remains;
use super::transfer;

/// What ends such a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    /// The program reads all, or closes.
    Drained,
    /// The program does anything: nothing was sent to it, so that there is nothing else to know by whether it has
    /// accepted the connection.
    Accepted,
}

#[derive(Debug)]
struct UnreadStream {
    socket: UnixStream,
    origin: Origin,
    awaits: Awaits,
}

impl UnreadStream {
    fn is_over(&self, event: StreamEvent) -> bool {
        match self.awaits {
            Awaits::Drained => transfer::unread_bytes(&self.socket) == 0,
            Awaits::Accepted => event != StreamEvent::Writable,
        }
    }
}

/// The streams, by a number of their own: the guest may use the ports again.
#[derive(Debug, Default)]
pub struct UnreadStreams {
    streams: HashMap<u32, UnreadStream>,
    next: u32,
}

impl UnreadStreams {
    /// Takes what is left of a connection that the guest asked for, or gives its place back if nothing is.
    pub fn take(&mut self, remains: Remains, origin: Origin, poller: &Poller, admission: &mut Admission) {
        match self.keep(remains, origin, poller) {
            Ok(true) => {}
            // One that cannot be watched is closed, and its program reads what there is.
            Ok(false) | Err(_) => admission.leave(origin),
        }
    }

    /// Returns whether anything is kept.
    fn keep(&mut self, remains: Remains, origin: Origin, poller: &Poller) -> io::Result<bool> {
        let (socket, awaits) = match remains {
            Remains::Nothing => return Ok(false),
            Remains::Unread(socket) => (socket, Awaits::Drained),
            Remains::Unused(socket) => (socket, Awaits::Accepted),
        };
        let (ends, interest) = match awaits {
            Awaits::Drained => (Shutdown::Both, Interest::ReadWrite),
            Awaits::Accepted => (Shutdown::Write, Interest::Read),
        };
        socket.shutdown(ends)?;
        let number = self.next;
        self.next = if number == Token::LAST_UNREAD { 0 } else { number + 1 };
        poller.modify(Token::Unread(number), &socket, interest)?;
        self.streams.insert(number, UnreadStream { socket, origin, awaits });
        Ok(true)
    }

    /// Takes an event of a stream. One that is over gives its place back.
    pub fn on_event(&mut self, number: u32, event: StreamEvent, admission: &mut Admission) {
        if self.streams.get(&number).is_some_and(|stream| stream.is_over(event))
            && let Some(stream) = self.streams.remove(&number)
        {
            admission.leave(stream.origin);
        }
    }

    /// Returns the number of streams.
    pub fn len(&self) -> usize {
        self.streams.len()
    }
}
