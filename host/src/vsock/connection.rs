//! One connection: the value that owns its protocol state, its credit, its stream and what is pending.
//!
//! A packet of the guest enters at [`Connection::process`], an event of the host's stream at [`Connection::on_event`];
//! both return an [`Outcome`] for the muxer. Packets for the guest leave at [`Connection::dispatch`].

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vm_memory::bitmap::BitmapSlice;

use super::burst::GuestPacket;
use super::chain::{Chain, part_of};
use super::counters::Stage;
use super::packet::{Header, Operation};
use super::poller::{Poller, StreamEvent};
use super::protocol::{Action, ConnectionState, Preamble, Protocol};
use super::spec::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::stream::{Received, Remains, Stream};

/// How long the guest may take to confirm a close, or to accept a connection whose host has closed. What a Linux guest
/// has received by then stays readable there.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// Buffers of the guest that one read may fill.
pub const MAX_BUFFERS: usize = 4;

/// The headers of packets for the guest, one for each of the first buffers.
pub type Packets = heapless::Vec<Header, MAX_BUFFERS>;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It stays.
    Continue,
    /// It is removed.
    Closed,
    /// It is removed, and the guest is sent RST.
    SendReset,
    /// It stays, and the packet is answered by RST: it is of an earlier connection with the same ports.
    StalePacket,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// The guest's side.
    protocol: Protocol,
    /// The host's side.
    stream: Stream,
    /// When the guest's time is over to do what ends the connection.
    deadline: Option<Instant>,
}

impl Connection {
    /// Returns a connection between `protocol` and a non-blocking socket.
    ///
    /// # Errors
    ///
    /// See [`Poller::add`].
    pub fn new(protocol: Protocol, socket: UnixStream, poller: &Poller) -> io::Result<Self> {
        let stream = Stream::new(socket, protocol.key(), poller)?;
        Ok(Self { protocol, stream, deadline: None })
    }

    /// Returns when the guest's time is over, if it has any.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Bytes of memory that hold bytes of the guest.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.stream.held_bytes()
    }

    /// Returns which state the connection is in.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.protocol.state() {
            ConnectionState::ConnectPending { .. } => Stage::ConnectPending,
            ConnectionState::ConnectSent { .. } => Stage::ConnectSent,
            ConnectionState::Established(_) => Stage::Established,
            ConnectionState::Closing { .. } => Stage::Closing,
            ConnectionState::Draining { .. } => Stage::Draining,
        }
    }

    /// Whether the guest does not know of the connection yet.
    #[must_use]
    pub fn is_connect_pending(&self) -> bool {
        self.stage() == Stage::ConnectPending
    }

    /// Whether the host closed, and the guest has yet to confirm it.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.stage() == Stage::Closing
    }

    /// Whether the guest closed, and bytes of it wait for the host.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.stage() == Stage::Draining
    }

    /// Bytes of the guest that wait for room in the host's socket.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.stream.buffered_bytes()
    }

    /// Returns what follows from ending the connection now.
    pub fn end_at_once(&self) -> Outcome {
        match self.protocol.state() {
            ConnectionState::Draining { owes_rst: false } => Outcome::Closed,
            _ => Outcome::SendReset,
        }
    }

    /// Returns what is left for the host's program, once the guest is through.
    pub fn into_remains(self) -> Remains {
        self.stream.into_remains()
    }

    /// Whether the host closed its end.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        self.stream.is_hung_up()
    }

    /// Whether the host closed its end, and nothing that it sent before can be sent to the guest now.
    #[must_use]
    pub fn waits_for_guest_alone(&self) -> bool {
        self.stream.is_hung_up() && (!self.stream.is_readable() || self.protocol.available_credit() == 0)
    }

    /// Whether there may be something to send: a control packet, or payload that the guest has given credit for or may
    /// be asked for credit for.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.protocol.has_packet() || (self.stream.is_readable() && self.protocol.can_progress())
    }

    /// Takes packets of the guest up to the first without payload, which is taken, too. Payload enters the host's stream
    /// together: credit that it gives back counts from then on. Returns how many were taken, and what follows from the last
    /// one.
    pub fn process<B: BitmapSlice>(&mut self, packets: &[GuestPacket<'_, B>], poller: &Poller) -> (usize, Outcome) {
        let mut payload = 0;
        let mut other = None;
        for packet in packets {
            match self.action(packet) {
                Action::Payload => payload += 1,
                action => {
                    other = Some(action);
                    break;
                }
            }
        }
        let taken = payload + usize::from(other.is_some());
        let forwarded = match packets.get(..payload) {
            Some(payload @ [_, ..]) => self.forward(payload, poller),
            _ => Outcome::Continue,
        };
        match other {
            Some(action) if forwarded == Outcome::Continue => (taken, self.follow(action)),
            _ => (taken, forwarded),
        }
    }

    fn action<B: BitmapSlice>(&mut self, packet: &GuestPacket<'_, B>) -> Action {
        match Operation::parse(packet.header.op) {
            None => Action::SendReset,
            Some(Operation::ReadWrite) if !packet.is_whole() => Action::SendReset,
            Some(operation) => self.protocol.process(operation, &packet.header),
        }
    }

    /// Does what follows from an action other than payload.
    fn follow(&mut self, action: Action) -> Outcome {
        match action {
            Action::Continue | Action::Payload => Outcome::Continue,
            Action::Connected(preamble) => self.on_connected(preamble),
            Action::Shutdown(flags) => self.on_guest_shutdown(flags),
            Action::Closed => self.close(false),
            Action::SendReset => Outcome::SendReset,
            Action::StalePacket => Outcome::StalePacket,
        }
    }

    /// The guest accepted.
    fn on_connected(&mut self, preamble: Option<Preamble>) -> Outcome {
        self.deadline = None;
        if preamble.is_some_and(|preamble| !self.send_reply(preamble)) {
            return Outcome::SendReset;
        }
        if self.stream.is_read_closed() {
            self.on_host_end();
        }
        Outcome::Continue
    }

    /// Writes what the host's program is to read first. Returns false if its socket has no room for that. A program that
    /// receives no more may have sent something: it stays connected.
    fn send_reply(&mut self, preamble: Preamble) -> bool {
        let written = self.stream.write_preamble(preamble(self.protocol.key().host_port).as_bytes());
        if self.stream.is_write_closed() {
            self.protocol.shut_down(SHUTDOWN_RECEIVE);
        }
        written
    }

    /// Moves the payload of packets to the host.
    fn forward<B: BitmapSlice>(&mut self, packets: &[GuestPacket<'_, B>], poller: &Poller) -> Outcome {
        let payload = || packets.iter().flat_map(GuestPacket::payload);
        let count = packets.iter().map(GuestPacket::payload_bytes).sum();
        let entered = self.stream.write(payload, count);
        self.protocol.forward(u32::try_from(entered).unwrap_or(u32::MAX));
        self.after_write(poller)
    }

    fn on_guest_shutdown(&mut self, flags: u32) -> Outcome {
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.stream.shut_down_read();
        }
        if flags == SHUTDOWN_BOTH {
            return self.close(true);
        }
        self.finish_writing();
        Outcome::Continue
    }

    /// Takes an event of the host's stream.
    pub fn on_event(&mut self, event: StreamEvent, poller: &Poller) -> Outcome {
        match event {
            StreamEvent::Writable => {}
            StreamEvent::Readable => self.stream.on_readable(),
            StreamEvent::Ended => self.stream.on_end(),
            StreamEvent::HungUp => self.stream.on_hang_up(),
        }
        // The end needs no credit, and a guest that gives none is sent it all the same.
        if matches!(event, StreamEvent::Ended | StreamEvent::HungUp) && self.stream.poll_end() {
            self.on_host_end();
        }
        match self.protocol.state() {
            ConnectionState::ConnectPending { pending_reply } | ConnectionState::ConnectSent { pending_reply }
                if self.stream.is_write_closed() =>
            {
                // A program that does not wait for its reply may have sent something before it closed.
                if pending_reply.is_none() || self.stream.is_read_closed() {
                    return if self.is_connect_pending() { Outcome::Closed } else { Outcome::SendReset };
                }
                self.deadline = self.deadline.or_else(close_deadline);
                Outcome::Continue
            }
            _ => self.flush(poller),
        }
    }

    /// The host sends no more.
    fn on_host_end(&mut self) {
        self.protocol.shut_down(if self.stream.is_write_closed() { SHUTDOWN_BOTH } else { SHUTDOWN_SEND });
    }

    /// Moves waiting bytes into the host's socket.
    fn flush(&mut self, poller: &Poller) -> Outcome {
        if !self.stream.awaits_room() {
            return Outcome::Continue;
        }
        let entered = self.stream.flush();
        self.protocol.forward(u32::try_from(entered).unwrap_or(u32::MAX));
        self.after_write(poller)
    }

    fn after_write(&mut self, poller: &Poller) -> Outcome {
        if self.stream.is_write_closed() {
            self.protocol.shut_down(SHUTDOWN_RECEIVE);
        }
        if self.stream.update_interest(self.protocol.key(), poller).is_err() {
            return Outcome::SendReset;
        }
        if let ConnectionState::Draining { owes_rst } = *self.protocol.state() {
            return self.close(owes_rst);
        }
        self.finish_writing();
        Outcome::Continue
    }

    /// Ends the direction to the host once the guest sends no more and all that it sent has entered the socket.
    fn finish_writing(&self) {
        if self.protocol.guest_has_sent_all() && !self.stream.has_buffered() {
            self.stream.shut_down_write();
        }
    }

    /// The guest closed. Nothing that it sent before is lost: while bytes wait for the host, so does the close.
    fn close(&mut self, owes_rst: bool) -> Outcome {
        if self.stream.has_buffered() {
            self.protocol.drain(owes_rst);
            Outcome::Continue
        } else if owes_rst {
            Outcome::SendReset
        } else {
            Outcome::Closed
        }
    }

    /// Returns the next packets for the guest: one, or as many with payload as one read has filled of these buffers, where it
    /// is written after the space for the header.
    pub fn dispatch<B: BitmapSlice>(&mut self, guest_cid: u64, buffers: &[Chain<'_, B>]) -> Packets {
        let mut packets = self.control_packet(guest_cid);
        if packets.is_empty() {
            packets = self.dispatch_payload(guest_cid, buffers);
        }
        if self.is_closing() && self.deadline.is_none() {
            self.deadline = close_deadline();
        }
        packets
    }

    fn control_packet(&mut self, guest_cid: u64) -> Packets {
        self.protocol.dispatch(guest_cid).into_iter().collect()
    }

    fn dispatch_payload<B: BitmapSlice>(&mut self, guest_cid: u64, buffers: &[Chain<'_, B>]) -> Packets {
        if !self.protocol.may_send() || !self.stream.is_readable() {
            return Packets::new();
        }
        let credit = self.protocol.available_credit();
        if credit == 0 {
            self.protocol.request_credit();
            return self.control_packet(guest_cid);
        }
        let room = buffers.iter().flat_map(|buffer| buffer.slices_of(Header::BYTES, usize::MAX));
        match self.stream.read(part_of(room, 0, usize::try_from(credit).unwrap_or(usize::MAX))) {
            Received::Bytes(count) => self.payload_packets(guest_cid, buffers, count),
            Received::WouldBlock => Packets::new(),
            Received::End => {
                self.on_host_end();
                self.control_packet(guest_cid)
            }
        }
    }

    /// Returns the packets of so many bytes of payload in these buffers.
    fn payload_packets<B: BitmapSlice>(&mut self, guest_cid: u64, buffers: &[Chain<'_, B>], bytes: usize) -> Packets {
        let mut left = bytes;
        let lengths = buffers.iter().map_while(|buffer| {
            let here = buffer.len().saturating_sub(Header::BYTES).min(left);
            left -= here;
            (here > 0).then_some(here)
        });
        lengths.filter_map(|here| u32::try_from(here).ok()).map(|len| self.protocol.payload(guest_cid, len)).collect()
    }

    /// Makes the guest's time be over at `deadline`.
    #[cfg(test)]
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }
}

fn close_deadline() -> Option<Instant> {
    Instant::now().checked_add(CLOSE_TIMEOUT)
}
