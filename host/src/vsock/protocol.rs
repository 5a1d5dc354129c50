//! The guest's side of a connection: its protocol (virtio 1.3, 5.10.6), without I/O and without a clock.
//!
//! [`Protocol::process`] takes a packet of the guest and returns what follows for the host's stream;
//! [`Protocol::dispatch`] returns the control packets that the guest is owed. Payload bypasses this machine, which only
//! counts it.
//!
//! | state | entered when | left when |
//! | --- | --- | --- |
//! | `ConnectPending` | the host asks for a connection | REQUEST is sent |
//! | `ConnectSent` | REQUEST was sent | the guest answers RESPONSE or RST |
//! | `Established` | RESPONSE was received, or is pending | either side closes |
//! | `Closing` | SHUTDOWN of both directions was sent | the guest confirms by RST, or its time is over |
//! | `Draining` | the guest closed, and bytes of it wait for the host | the host has read them |

use super::credit::Credit;
use super::key::Key;
use super::limits::BUFFER_BYTES;
use super::packet::{Header, Operation};
use super::spec::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Returns what the host's side reads before any byte of the guest, for the host port of its connection. At most 64
/// bytes.
pub type Preamble = fn(host_port: u32) -> String;

/// The state of a connection.
#[derive(Debug)]
pub enum ConnectionState {
    /// The host asks for the connection; REQUEST is not sent yet.
    ConnectPending {
        /// What the host's side is to read once the guest accepts.
        pending_reply: Option<Preamble>,
    },
    /// REQUEST was sent; the guest has not answered.
    ConnectSent {
        /// What the host's side is to read once the guest accepts.
        pending_reply: Option<Preamble>,
    },
    /// Both sides are connected.
    Established(Established),
    /// The host closed, and the guest owes the RST that confirms it.
    Closing {
        /// Whether the guest asked for an update of credit.
        update_pending: bool,
    },
    /// The guest closed, and bytes of it wait for room in the host's socket.
    Draining {
        /// Whether the guest waits for the RST that confirms the close.
        owes_rst: bool,
    },
}

/// What a connection has while both sides are connected.
#[derive(Debug, Default)]
pub struct Established {
    /// Control packets that the guest is owed.
    pending: ControlSet,
    /// Shutdown flags of the guest; a direction that is shut down stays so.
    guest_shutdown: u32,
    /// Shutdown flags of the host.
    host_shutdown: u32,
    /// The guest was asked for credit, and has given none since.
    credit_requested: bool,
}

/// A control packet, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Response,
    Shutdown,
    CreditRequest,
    CreditUpdate,
}

impl Control {
    const ALL: [Self; 4] = [Self::Response, Self::Shutdown, Self::CreditRequest, Self::CreditUpdate];

    fn operation(self) -> Operation {
        match self {
            Self::Response => Operation::Response,
            Self::Shutdown => Operation::Shutdown,
            Self::CreditRequest => Operation::CreditRequest,
            Self::CreditUpdate => Operation::CreditUpdate,
        }
    }
}

/// A set of control packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ControlSet(u8);

impl ControlSet {
    fn insert(&mut self, control: Control) {
        self.0 |= 1 << control as u8;
    }

    fn remove(&mut self, control: Control) {
        self.0 &= !(1 << control as u8);
    }

    fn contains(self, control: Control) -> bool {
        self.0 & 1 << control as u8 != 0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn pop(&mut self) -> Option<Control> {
        let first = Control::ALL.into_iter().find(|&control| self.contains(control))?;
        self.remove(first);
        Some(first)
    }
}

/// What a packet of the guest means for the host's stream.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Nothing.
    Continue,
    /// The guest accepted. The host's side reads this first.
    Connected(Option<Preamble>),
    /// The packet's payload is for the host.
    Payload,
    /// The guest has shut down these directions, at least one of them now or before.
    Shutdown(u32),
    /// The guest ended the connection.
    Closed,
    /// The connection ends, and the guest is sent RST: its packet breaks the rules, or both sides closed at the same
    /// time.
    SendReset,
    /// The packet is of an earlier connection with these ports: it is answered by RST, and this one stays.
    StalePacket,
}

impl Established {
    fn process(&mut self, operation: Operation, packet: &Header, credit: &mut Credit) -> Action {
        match operation {
            Operation::ReadWrite if self.guest_shutdown & SHUTDOWN_SEND == 0 => {
                credit.receive(packet.len).map_or(Action::SendReset, |()| Action::Payload)
            }
            Operation::Shutdown => {
                self.guest_shutdown |= packet.flags & SHUTDOWN_BOTH;
                Action::Shutdown(self.guest_shutdown)
            }
            Operation::CreditRequest => {
                self.pending.insert(Control::CreditUpdate);
                Action::Continue
            }
            Operation::CreditUpdate => Action::Continue,
            // The guest gave up an attempt to connect and tries again from the same port: one response is for both.
            Operation::Request if self.pending.contains(Control::Response) => Action::Continue,
            _ => Action::SendReset,
        }
    }

    fn shut_down(&mut self, flags: u32) {
        if self.host_shutdown & flags != flags {
            self.host_shutdown |= flags;
            self.pending.insert(Control::Shutdown);
        }
    }

    fn may_send(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_RECEIVE == 0 && self.host_shutdown & SHUTDOWN_SEND == 0
    }
}

/// The guest's side of a connection.
#[derive(Debug)]
pub struct Protocol {
    key: Key,
    state: ConnectionState,
    credit: Credit,
}

impl Protocol {
    /// Returns a connection that the host asks for. Its stream is to begin with what `preamble` returns.
    #[must_use]
    pub fn connect(key: Key, preamble: Option<Preamble>) -> Self {
        Self::new(key, ConnectionState::ConnectPending { pending_reply: preamble })
    }

    /// Returns a connection that the guest's `request` asked for and the host accepted.
    #[must_use]
    pub fn accept(request: &Header) -> Self {
        let mut established = Established::default();
        established.pending.insert(Control::Response);
        let mut protocol = Self::new(Key::of(request), ConnectionState::Established(established));
        protocol.credit.update(request.buf_alloc, request.fwd_cnt);
        protocol
    }

    fn new(key: Key, state: ConnectionState) -> Self {
        Self { key, state, credit: Credit::new(BUFFER_BYTES) }
    }

    /// Returns the connection's ports.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// Returns the state.
    #[must_use]
    pub fn state(&self) -> &ConnectionState {
        &self.state
    }

    /// Returns the bytes that the guest has given credit for.
    #[must_use]
    pub fn available_credit(&self) -> u32 {
        self.credit.available()
    }

    /// Whether the guest sends no more payload.
    #[must_use]
    pub fn guest_has_sent_all(&self) -> bool {
        matches!(&self.state, ConnectionState::Established(open) if open.guest_shutdown & SHUTDOWN_SEND != 0)
    }

    /// Whether payload may be sent to the guest, credit permitting.
    #[must_use]
    pub fn may_send(&self) -> bool {
        matches!(&self.state, ConnectionState::Established(open) if open.may_send())
    }

    /// Whether the guest is owed a packet once the host has payload: that, or a request for credit.
    #[must_use]
    pub fn can_progress(&self) -> bool {
        match &self.state {
            ConnectionState::Established(open) => {
                open.may_send() && (!open.credit_requested || self.credit.available() > 0)
            }
            _ => false,
        }
    }

    /// Takes a packet of the guest.
    pub fn process(&mut self, operation: Operation, packet: &Header) -> Action {
        self.update_credit(packet);
        match (&mut self.state, operation) {
            (_, Operation::Rst) => Action::Closed,
            (ConnectionState::ConnectSent { pending_reply }, Operation::Response) => {
                let preamble = *pending_reply;
                self.state = ConnectionState::Established(Established::default());
                Action::Connected(preamble)
            }
            (ConnectionState::Established(open), operation) => open.process(operation, packet, &mut self.credit),
            (ConnectionState::Closing { update_pending }, Operation::CreditRequest) => {
                *update_pending = true;
                Action::Continue
            }
            // Both sides closed at the same time: the guest waits for its RST as the host does.
            (ConnectionState::Closing { .. }, Operation::Shutdown) if packet.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH => {
                Action::SendReset
            }
            // Packets that were in flight when the host closed.
            (ConnectionState::Closing { .. }, Operation::ReadWrite | Operation::CreditUpdate | Operation::Shutdown) => {
                Action::Continue
            }
            // Each shutdown(2) of a guest's program is a packet, whatever was shut down before (5.10.6.5).
            (
                ConnectionState::Draining { .. },
                Operation::CreditUpdate | Operation::CreditRequest | Operation::Shutdown,
            ) => Action::Continue,
            (ConnectionState::Draining { .. }, _) => Action::StalePacket,
            _ => Action::SendReset,
        }
    }

    fn update_credit(&mut self, packet: &Header) {
        let before = self.credit.available();
        self.credit.update(packet.buf_alloc, packet.fwd_cnt);
        if let ConnectionState::Established(open) = &mut self.state
            && self.credit.available() > before
        {
            open.credit_requested = false;
        }
        self.schedule_update();
    }

    /// The guest closed, and bytes of it wait for the host.
    pub fn drain(&mut self, owes_rst: bool) {
        self.state = ConnectionState::Draining { owes_rst };
    }

    /// Accounts for bytes of the guest that entered the host's socket.
    pub fn forward(&mut self, count: u32) {
        self.credit.forward(count);
        self.schedule_update();
    }

    fn schedule_update(&mut self) {
        if let ConnectionState::Established(open) = &mut self.state
            && self.credit.needs_update()
        {
            open.pending.insert(Control::CreditUpdate);
        }
    }

    /// The host sends no more ([`SHUTDOWN_SEND`]), receives no more ([`SHUTDOWN_RECEIVE`]) or both.
    pub fn shut_down(&mut self, flags: u32) {
        if let ConnectionState::Established(open) = &mut self.state {
            open.shut_down(flags);
        }
    }

    /// Asks the guest for credit, unless it was asked and has given none since: the host has payload and there is no
    /// credit for it.
    pub fn request_credit(&mut self) {
        if let ConnectionState::Established(open) = &mut self.state
            && !open.credit_requested
        {
            open.credit_requested = true;
            open.pending.insert(Control::CreditRequest);
        }
    }

    /// Whether [`dispatch`](Self::dispatch) has a packet.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        match &self.state {
            ConnectionState::ConnectPending { .. } => true,
            ConnectionState::Established(open) => !open.pending.is_empty(),
            ConnectionState::Closing { update_pending } => *update_pending,
            ConnectionState::ConnectSent { .. } | ConnectionState::Draining { .. } => false,
        }
    }

    /// Returns the next control packet for the guest.
    pub fn dispatch(&mut self, guest_cid: u64) -> Option<Header> {
        let (operation, flags) = self.next_operation()?;
        Some(Header { flags, ..self.packet(guest_cid, operation) })
    }

    fn next_operation(&mut self) -> Option<(Operation, u32)> {
        match &mut self.state {
            ConnectionState::ConnectPending { pending_reply } => {
                self.state = ConnectionState::ConnectSent { pending_reply: *pending_reply };
                Some((Operation::Request, 0))
            }
            ConnectionState::Established(open) => {
                let control = open.pending.pop()?;
                let flags = if control == Control::Shutdown { open.host_shutdown } else { 0 };
                if flags == SHUTDOWN_BOTH {
                    self.state = ConnectionState::Closing { update_pending: false };
                }
                Some((control.operation(), flags))
            }
            ConnectionState::Closing { update_pending } => {
                std::mem::take(update_pending).then_some((Operation::CreditUpdate, 0))
            }
            ConnectionState::ConnectSent { .. } | ConnectionState::Draining { .. } => None,
        }
    }

    /// Returns a packet with `len` bytes of payload for the guest.
    pub fn payload(&mut self, guest_cid: u64, len: u32) -> Header {
        self.credit.send(len);
        Header { len, ..self.packet(guest_cid, Operation::ReadWrite) }
    }

    /// Every packet carries the credit fields, so that it is an update of credit, too.
    fn packet(&mut self, guest_cid: u64, operation: Operation) -> Header {
        if let ConnectionState::Established(open) = &mut self.state {
            open.pending.remove(Control::CreditUpdate);
        }
        let (buf_alloc, fwd_cnt) = self.credit.advertise();
        Header { buf_alloc, fwd_cnt, ..self.key.packet(guest_cid, operation) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vsock::spec::{HOST_CID, TYPE_STREAM};

    const CID: u64 = 3;

    impl PartialEq for Action {
        fn eq(&self, other: &Self) -> bool {
            format!("{self:?}") == format!("{other:?}")
        }
    }

    fn is_closing(protocol: &Protocol) -> bool {
        matches!(protocol.state(), ConnectionState::Closing { .. })
    }

    fn guest(operation: Operation) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: 729,
            dst_port: 50_000,
            socket_type: TYPE_STREAM,
            op: operation.number(),
            buf_alloc: 1000,
            ..Header::default()
        }
    }

    fn key() -> Key {
        Key::of(&guest(Operation::Request))
    }

    fn established() -> Protocol {
        let mut protocol = Protocol::connect(key(), None);
        assert_eq!(protocol.dispatch(CID).unwrap().op, Operation::Request.number());
        assert_eq!(protocol.process(Operation::Response, &guest(Operation::Response)), Action::Connected(None));
        protocol
    }

    fn operations(protocol: &mut Protocol) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| protocol.dispatch(CID)).map(|packet| (packet.op, packet.flags)).collect()
    }

    #[test]
    fn a_request_has_the_hosts_buffer_and_addresses() {
        let request = Protocol::connect(key(), None).dispatch(CID).unwrap();
        assert_eq!((request.src_cid, request.dst_cid), (HOST_CID, CID));
        assert_eq!((request.src_port, request.dst_port), (50_000, 729));
        assert_eq!((request.buf_alloc, request.fwd_cnt), (BUFFER_BYTES, 0));
    }

    #[test]
    fn an_accepted_request_is_answered_once() {
        let mut protocol = Protocol::accept(&guest(Operation::Request));
        assert_eq!(operations(&mut protocol), [(Operation::Response.number(), 0)]);
        assert_eq!(protocol.credit.available(), 1000);
    }

    #[test]
    fn payload_before_the_response_resets() {
        let mut protocol = Protocol::connect(key(), None);
        protocol.dispatch(CID);
        assert_eq!(protocol.process(Operation::ReadWrite, &guest(Operation::ReadWrite)), Action::SendReset);
    }

    #[test]
    fn an_unexpected_response_resets() {
        let mut protocol = Protocol::connect(key(), None);
        assert_eq!(protocol.process(Operation::Response, &guest(Operation::Response)), Action::SendReset);
        let mut protocol = established();
        assert_eq!(protocol.process(Operation::Response, &guest(Operation::Response)), Action::SendReset);
    }

    #[test]
    fn a_second_request_resets() {
        assert_eq!(established().process(Operation::Request, &guest(Operation::Request)), Action::SendReset);
    }

    #[test]
    fn shutdown_flags_stay() {
        let mut protocol = established();
        let mut packet = guest(Operation::Shutdown);
        packet.flags = SHUTDOWN_SEND;
        assert_eq!(protocol.process(Operation::Shutdown, &packet), Action::Shutdown(SHUTDOWN_SEND));
        packet.flags = 0;
        assert_eq!(protocol.process(Operation::Shutdown, &packet), Action::Shutdown(SHUTDOWN_SEND));
        assert!(protocol.guest_has_sent_all() && protocol.may_send());
        assert_eq!(protocol.process(Operation::ReadWrite, &guest(Operation::ReadWrite)), Action::SendReset);
    }

    #[test]
    fn payload_over_credit_resets() {
        let mut protocol = established();
        let mut packet = guest(Operation::ReadWrite);
        packet.len = BUFFER_BYTES;
        assert_eq!(protocol.process(Operation::ReadWrite, &packet), Action::Payload);
        packet.len = 1;
        assert_eq!(protocol.process(Operation::ReadWrite, &packet), Action::SendReset);
    }

    #[test]
    fn half_of_the_buffer_is_one_update() {
        let mut protocol = established();
        let mut packet = guest(Operation::ReadWrite);
        packet.len = BUFFER_BYTES;
        protocol.process(Operation::ReadWrite, &packet);
        protocol.forward(BUFFER_BYTES / 2);
        assert_eq!(operations(&mut protocol), [(Operation::CreditUpdate.number(), 0)]);
    }

    #[test]
    fn payload_carries_the_pending_update() {
        let mut protocol = established();
        let mut packet = guest(Operation::ReadWrite);
        packet.len = BUFFER_BYTES;
        protocol.process(Operation::ReadWrite, &packet);
        protocol.forward(BUFFER_BYTES);
        assert_eq!(protocol.payload(CID, 5).fwd_cnt, BUFFER_BYTES);
        assert_eq!(operations(&mut protocol), []);
    }

    #[test]
    fn credit_is_requested_once() {
        let mut protocol = established();
        protocol.payload(CID, 1000);
        protocol.request_credit();
        protocol.request_credit();
        assert_eq!(operations(&mut protocol), [(Operation::CreditRequest.number(), 0)]);
        protocol.request_credit();
        assert_eq!(operations(&mut protocol), []);
        let mut update = guest(Operation::CreditUpdate);
        update.fwd_cnt = 10;
        protocol.process(Operation::CreditUpdate, &update);
        protocol.request_credit();
        assert_eq!(operations(&mut protocol), [(Operation::CreditRequest.number(), 0)]);
    }

    #[test]
    fn a_half_close_then_a_close_are_two_packets() {
        let mut protocol = established();
        protocol.shut_down(SHUTDOWN_SEND);
        assert_eq!(operations(&mut protocol), [(Operation::Shutdown.number(), SHUTDOWN_SEND)]);
        assert!(!protocol.may_send());
        protocol.shut_down(SHUTDOWN_RECEIVE);
        assert_eq!(operations(&mut protocol), [(Operation::Shutdown.number(), SHUTDOWN_BOTH)]);
        assert!(is_closing(&protocol));
        assert_eq!(protocol.process(Operation::Rst, &guest(Operation::Rst)), Action::Closed);
    }

    #[test]
    fn packets_in_flight_at_the_close_are_ignored() {
        let mut protocol = established();
        protocol.shut_down(SHUTDOWN_BOTH);
        protocol.dispatch(CID);
        let mut payload = guest(Operation::ReadWrite);
        payload.len = 10;
        assert_eq!(protocol.process(Operation::ReadWrite, &payload), Action::Continue);
        assert_eq!(protocol.process(Operation::CreditUpdate, &guest(Operation::CreditUpdate)), Action::Continue);
    }

    #[test]
    fn a_simultaneous_close_ends_with_rst() {
        let mut protocol = established();
        protocol.shut_down(SHUTDOWN_BOTH);
        protocol.dispatch(CID);
        let mut shutdown = guest(Operation::Shutdown);
        shutdown.flags = SHUTDOWN_BOTH;
        assert_eq!(protocol.process(Operation::Shutdown, &shutdown), Action::SendReset);
    }

    fn shutdown(flags: u32) -> Header {
        Header { flags, ..guest(Operation::Shutdown) }
    }

    /// A connection that the host has closed, with SHUTDOWN sent.
    fn closing() -> Protocol {
        let mut protocol = established();
        protocol.shut_down(SHUTDOWN_BOTH);
        protocol.dispatch(CID);
        assert!(is_closing(&protocol));
        protocol
    }

    #[test]
    fn every_packet_advertises_256_kib() {
        let request = Protocol::connect(key(), None).dispatch(CID).unwrap();
        assert_eq!((request.socket_type, request.buf_alloc), (TYPE_STREAM, 262_144));
    }

    #[test]
    fn payload_needs_an_open_direction() {
        let mut protocol = Protocol::connect(key(), None);
        assert!(!protocol.may_send());
        protocol.dispatch(CID);
        assert!(!protocol.may_send());
        let mut protocol = established();
        assert!(protocol.may_send());
        protocol.shut_down(SHUTDOWN_RECEIVE);
        assert!(protocol.may_send());
        protocol.shut_down(SHUTDOWN_SEND);
        assert!(!protocol.may_send());
        let mut protocol = established();
        protocol.process(Operation::Shutdown, &shutdown(SHUTDOWN_SEND));
        assert!(protocol.may_send() && protocol.guest_has_sent_all());
        protocol.process(Operation::Shutdown, &shutdown(SHUTDOWN_RECEIVE));
        assert!(!protocol.may_send());
    }

    #[test]
    fn a_credit_request_is_answered_while_closing() {
        for mut protocol in [established(), closing()] {
            let action = protocol.process(Operation::CreditRequest, &guest(Operation::CreditRequest));
            assert_eq!(action, Action::Continue);
            assert_eq!(operations(&mut protocol), [(Operation::CreditUpdate.number(), 0)]);
        }
    }

    #[test]
    fn an_update_of_credit_has_no_answer() {
        let mut protocol = established();
        let action = protocol.process(Operation::CreditUpdate, &guest(Operation::CreditUpdate));
        assert_eq!(action, Action::Continue);
        assert_eq!(operations(&mut protocol), []);
    }

    #[test]
    fn a_half_close_in_flight_is_ignored() {
        for flags in [0, SHUTDOWN_SEND, SHUTDOWN_RECEIVE] {
            assert_eq!(closing().process(Operation::Shutdown, &shutdown(flags)), Action::Continue);
        }
    }

    #[test]
    fn a_draining_connection_takes_nothing_more() {
        for owes_rst in [false, true] {
            let draining = || {
                let mut protocol = established();
                protocol.drain(owes_rst);
                protocol
            };
            assert!(matches!(draining().state(), ConnectionState::Draining { owes_rst: owes } if *owes == owes_rst));
            for operation in [Operation::CreditUpdate, Operation::CreditRequest, Operation::Shutdown] {
                assert_eq!(draining().process(operation, &guest(operation)), Action::Continue);
            }
            for operation in [Operation::ReadWrite, Operation::Request, Operation::Response] {
                assert_eq!(draining().process(operation, &guest(operation)), Action::StalePacket);
            }
            assert_eq!(draining().process(Operation::Rst, &guest(Operation::Rst)), Action::Closed);
        }
    }

    #[test]
    fn a_repeated_request_shares_the_response() {
        let request = guest(Operation::Request);
        let mut protocol = Protocol::accept(&request);
        assert_eq!(protocol.process(Operation::Request, &request), Action::Continue);
        assert_eq!(operations(&mut protocol), [(Operation::Response.number(), 0)]);
        assert_eq!(protocol.process(Operation::Request, &request), Action::SendReset);
    }

    #[test]
    fn an_empty_update_is_not_asked_about_again() {
        let mut protocol = established();
        protocol.payload(CID, 1000);
        protocol.request_credit();
        assert_eq!(operations(&mut protocol), [(Operation::CreditRequest.number(), 0)]);
        protocol.process(Operation::CreditUpdate, &guest(Operation::CreditUpdate));
        protocol.request_credit();
        assert_eq!(operations(&mut protocol), []);
    }

    #[test]
    fn without_credit_a_connection_asks_once() {
        let mut protocol = established();
        assert!(protocol.can_progress());
        protocol.payload(CID, 1000);
        assert!(protocol.can_progress());
        protocol.request_credit();
        assert!(!protocol.can_progress());
        // It was asked for, and there is some.
        protocol.credit.update(1001, 0);
        assert!(protocol.can_progress());
    }

    #[test]
    fn only_an_open_connection_sends_updates() {
        let mut protocol = established();
        protocol.credit.update(u32::MAX, 0);
        protocol.forward(BUFFER_BYTES / 2 - 1);
        assert_eq!(operations(&mut protocol), []);
        // From now on the guest has no more in flight.
        let shrinks = Header { buf_alloc: BUFFER_BYTES / 2, ..guest(Operation::CreditUpdate) };
        assert_eq!(protocol.process(Operation::CreditUpdate, &shrinks), Action::Continue);
        assert_eq!(operations(&mut protocol), [(Operation::CreditUpdate.number(), 0)]);
        let mut protocol = closing();
        protocol.forward(BUFFER_BYTES);
        assert_eq!(operations(&mut protocol), []);
    }
}
