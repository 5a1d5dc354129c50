//! The state of one connection (virtio 1.3, 5.10.6), without I/O and without a clock.
//!
//! [`Connection::process`] takes a guest's packet and says what follows for the host's stream;
//! [`Connection::dispatch`] gives the control packets that the guest is owed. Payload goes past this machine, which
//! only counts it.

use super::credit::Credit;
use super::packet::{Header, Operation};
use super::spec::{HOST_CID, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Bytes that a connection buffers for the host: the `buf_alloc` that guests are told.
pub const BUFFER_BYTES: u32 = 256 * 1024;

/// Bytes of each payload that are not counted: none, but for the fault that is planted for the fuzz targets.
const UNCOUNTED: u32 = if cfg!(planted_off_by_one) { 1 } else { 0 };

/// What identifies a connection: the guest's CID and the host's are fixed. Open for its size alone.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port of the host's side.
    pub host_port: u32,
    /// Port of the guest's side.
    pub guest_port: u32,
}

impl Key {
    /// The connection that a guest's packet is about.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self { host_port: header.dst_port, guest_port: header.src_port }
    }

    /// A packet to the guest's side of this connection, without credit.
    #[must_use]
    pub fn packet(self, guest_cid: u64, operation: Operation) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            socket_type: TYPE_STREAM,
            op: operation.number(),
            ..Header::default()
        }
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host wants to connect; the guest was not asked yet.
    Wanted,
    /// The host wants to connect; the guest has not answered.
    Requested,
    /// Both sides are connected.
    Established,
    /// The host closed its side, and the guest was told; it owes the reset that confirms it.
    Closing,
    /// The guest closed its side; bytes that it sent before wait for room in the host's socket.
    Draining {
        /// Whether the guest waits for the reset that confirms the close.
        owes_reset: bool,
    },
}

/// What a guest's packet means for the host's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing.
    Nothing,
    /// There may be something to send.
    Send,
    /// The packet's payload is for the host.
    Payload,
    /// The guest sends no more, receives no more, or both: see [`Connection::guest_sends`] and
    /// [`Connection::guest_receives`].
    Shutdown,
    /// The connection is over; no reset is owed.
    Over,
    /// The packet breaks the rules of its connection, which is to be reset.
    Violation,
    /// The packet is of no connection any more: it is answered with a reset, and what came before still reaches the host.
    Late,
}

/// Control packets that the guest is owed.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    state: State,
    /// The credit of both sides.
    pub credit: Credit,
    owed: Owed,
    /// Shutdown flags that the guest has sent; they never go away again.
    guest_shutdown: u32,
    /// Shutdown flags of the host's side.
    host_shutdown: u32,
    /// Those of them that the guest was told.
    told_shutdown: u32,
    /// The guest was asked for credit since it last gave any.
    asked_for_credit: bool,
}

impl Connection {
    /// A connection that the host wants.
    #[must_use]
    pub fn wanted(key: Key) -> Self {
        Self::new(key, State::Wanted)
    }

    /// A connection that the guest's `request` asked for and a listener takes.
    #[must_use]
    pub fn accepted(request: &Header) -> Self {
        let mut connection = Self::new(Key::of(request), State::Established);
        connection.credit.update(request.buf_alloc, request.fwd_cnt);
        connection.owed.response = true;
        connection
    }

    fn new(key: Key, state: State) -> Self {
        Self {
            key,
            state,
            credit: Credit::new(BUFFER_BYTES),
            owed: Owed::default(),
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            asked_for_credit: false,
        }
    }

    /// Where the connection stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the guest may still send payload.
    #[must_use]
    pub fn guest_sends(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND == 0
    }

    /// Whether the guest still takes payload.
    #[must_use]
    pub fn guest_receives(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Whether payload may be sent to the guest, credit permitting.
    #[must_use]
    pub fn may_send(&self) -> bool {
        self.state == State::Established && self.guest_receives() && self.host_shutdown & SHUTDOWN_SEND == 0
    }

    /// Takes a guest's packet.
    pub fn process(&mut self, operation: Operation, packet: &Header) -> Reaction {
        self.update_credit(packet);
        match (self.state, operation) {
            (State::Requested, Operation::Response) => {
                self.state = State::Established;
                Reaction::Send
            }
            (_, Operation::Reset) => Reaction::Over,
            (State::Established, Operation::ReadWrite) if self.guest_sends() => {
                self.credit.receive(packet.len).map_or(Reaction::Violation, |()| Reaction::Payload)
            }
            (State::Established, Operation::Shutdown) => {
                self.guest_shutdown |= packet.flags & SHUTDOWN_BOTH;
                Reaction::Shutdown
            }
            (State::Established | State::Closing, Operation::CreditRequest) => {
                self.owed.credit_update = true;
                Reaction::Send
            }
            (State::Established, Operation::CreditUpdate) => Reaction::Send,
            // Both sides closed at the same time: the guest waits for its reset as the host does.
            (State::Closing, Operation::Shutdown) if packet.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH => {
                Reaction::Violation
            }
            // The guest has given up an attempt to connect, and tries again from the same port: one response is for both.
            (State::Established, Operation::Request) if self.owed.response => Reaction::Nothing,
            // Packets that were under way when the host closed.
            (State::Closing, Operation::ReadWrite | Operation::CreditUpdate | Operation::Shutdown) => Reaction::Nothing,
            // Each shutdown of a guest's program is a packet, whatever was shut down before (5.10.6.5).
            (State::Draining { .. }, Operation::CreditUpdate | Operation::CreditRequest | Operation::Shutdown) => {
                Reaction::Nothing
            }
            (State::Draining { .. }, _) => Reaction::Late,
            _ => Reaction::Violation,
        }
    }

    fn update_credit(&mut self, packet: &Header) {
        let before = self.credit.available();
        self.credit.update(packet.buf_alloc, packet.fwd_cnt);
        if self.credit.available() > before {
            self.asked_for_credit = false;
        }
        self.owe_update();
    }

    /// The guest closed its side, and bytes of it still wait.
    pub fn drain(&mut self, owes_reset: bool) {
        self.state = State::Draining { owes_reset };
    }

    /// Bytes of the guest entered the host's socket.
    pub fn forward(&mut self, count: u32) {
        self.credit.forward(count);
        self.owe_update();
    }

    fn owe_update(&mut self) {
        if self.credit.owes_update() && self.state == State::Established {
            self.owed.credit_update = true;
        }
    }

    /// The host sends no more ([`SHUTDOWN_SEND`]), takes no more ([`SHUTDOWN_RECEIVE`]) or both.
    pub fn shut_down(&mut self, flags: u32) {
        self.host_shutdown |= flags;
    }

    /// Whether payload could be sent, or credit be asked for that was not asked for yet.
    #[must_use]
    pub fn has_or_may_ask_for_credit(&self) -> bool {
        !self.asked_for_credit || self.credit.available() > 0
    }

    /// There is payload for the guest and no credit: asks for some, once.
    pub fn want_credit(&mut self) {
        if !self.asked_for_credit {
            self.asked_for_credit = true;
            self.owed.credit_request = true;
        }
    }

    /// Whether [`dispatch`](Self::dispatch) has a packet.
    #[must_use]
    pub fn owes_packet(&self) -> bool {
        let owed = self.owed.response || self.owed.credit_update || self.owed.credit_request;
        match self.state {
            State::Wanted => true,
            State::Established => owed || self.host_shutdown != self.told_shutdown,
            State::Closing => self.owed.credit_update,
            State::Requested | State::Draining { .. } => false,
        }
    }

    /// The next control packet for the guest.
    pub fn dispatch(&mut self, guest_cid: u64) -> Option<Header> {
        if !self.owes_packet() {
            return None;
        }
        let (operation, flags) = self.next_operation();
        let mut packet = self.packet(guest_cid, operation);
        packet.flags = flags;
        Some(packet)
    }

    fn next_operation(&mut self) -> (Operation, u32) {
        if self.state == State::Wanted {
            self.state = State::Requested;
            return (Operation::Request, 0);
        }
        if std::mem::take(&mut self.owed.response) {
            return (Operation::Response, 0);
        }
        if self.state == State::Established && self.host_shutdown != self.told_shutdown {
            self.told_shutdown = self.host_shutdown;
            if self.host_shutdown == SHUTDOWN_BOTH {
                self.state = State::Closing;
            }
            return (Operation::Shutdown, self.host_shutdown);
        }
        if std::mem::take(&mut self.owed.credit_request) {
            return (Operation::CreditRequest, 0);
        }
        self.owed.credit_update = false;
        (Operation::CreditUpdate, 0)
    }

    /// A packet with `len` bytes of payload for the guest.
    pub fn payload(&mut self, guest_cid: u64, len: u32) -> Header {
        self.credit.send(len - UNCOUNTED);
        let mut packet = self.packet(guest_cid, Operation::ReadWrite);
        packet.len = len;
        packet
    }

    /// A packet of this connection. Each carries the credit fields, so that an update that was owed is thereby given.
    fn packet(&mut self, guest_cid: u64, operation: Operation) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        self.owed.credit_update = false;
        Header { buf_alloc, fwd_cnt, ..self.key.packet(guest_cid, operation) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: u64 = 3;

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

    fn established() -> Connection {
        let mut connection = Connection::wanted(key());
        assert_eq!(connection.dispatch(CID).unwrap().op, Operation::Request.number());
        assert_eq!(connection.process(Operation::Response, &guest(Operation::Response)), Reaction::Send);
        connection
    }

    fn operations(connection: &mut Connection) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| connection.dispatch(CID)).map(|packet| (packet.op, packet.flags)).collect()
    }

    #[test]
    fn a_request_carries_the_hosts_buffer_and_addresses() {
        let request = Connection::wanted(key()).dispatch(CID).unwrap();
        assert_eq!((request.src_cid, request.dst_cid), (HOST_CID, CID));
        assert_eq!((request.src_port, request.dst_port), (50_000, 729));
        assert_eq!((request.buf_alloc, request.fwd_cnt), (BUFFER_BYTES, 0));
    }

    #[test]
    fn an_accepted_request_is_answered_once_and_has_its_credit() {
        let mut connection = Connection::accepted(&guest(Operation::Request));
        assert_eq!(operations(&mut connection), [(Operation::Response.number(), 0)]);
        assert_eq!(connection.credit.available(), 1000);
    }

    #[test]
    fn payload_before_the_response_is_a_violation() {
        let mut connection = Connection::wanted(key());
        connection.dispatch(CID);
        assert_eq!(connection.process(Operation::ReadWrite, &guest(Operation::ReadWrite)), Reaction::Violation);
    }

    #[test]
    fn a_response_to_what_was_not_asked_is_a_violation() {
        let mut connection = Connection::wanted(key());
        assert_eq!(connection.process(Operation::Response, &guest(Operation::Response)), Reaction::Violation);
        let mut connection = established();
        assert_eq!(connection.process(Operation::Response, &guest(Operation::Response)), Reaction::Violation);
    }

    #[test]
    fn a_second_request_is_a_violation() {
        assert_eq!(established().process(Operation::Request, &guest(Operation::Request)), Reaction::Violation);
    }

    #[test]
    fn shutdown_flags_stay() {
        let mut connection = established();
        let mut packet = guest(Operation::Shutdown);
        packet.flags = SHUTDOWN_SEND;
        assert_eq!(connection.process(Operation::Shutdown, &packet), Reaction::Shutdown);
        packet.flags = 0;
        assert_eq!(connection.process(Operation::Shutdown, &packet), Reaction::Shutdown);
        assert!(!connection.guest_sends() && connection.guest_receives());
        assert_eq!(connection.process(Operation::ReadWrite, &guest(Operation::ReadWrite)), Reaction::Violation);
    }

    #[test]
    fn payload_over_credit_is_a_violation() {
        let mut connection = established();
        let mut packet = guest(Operation::ReadWrite);
        packet.len = BUFFER_BYTES;
        assert_eq!(connection.process(Operation::ReadWrite, &packet), Reaction::Payload);
        packet.len = 1;
        assert_eq!(connection.process(Operation::ReadWrite, &packet), Reaction::Violation);
    }

    #[test]
    fn the_guest_is_told_once_when_half_of_the_buffer_was_forwarded() {
        let mut connection = established();
        let mut packet = guest(Operation::ReadWrite);
        packet.len = BUFFER_BYTES;
        connection.process(Operation::ReadWrite, &packet);
        connection.forward(BUFFER_BYTES / 2);
        assert_eq!(operations(&mut connection), [(Operation::CreditUpdate.number(), 0)]);
    }

    #[test]
    fn payload_to_the_guest_carries_the_update_that_was_owed() {
        let mut connection = established();
        let mut packet = guest(Operation::ReadWrite);
        packet.len = BUFFER_BYTES;
        connection.process(Operation::ReadWrite, &packet);
        connection.forward(BUFFER_BYTES);
        assert_eq!(connection.payload(CID, 5).fwd_cnt, BUFFER_BYTES);
        assert_eq!(operations(&mut connection), []);
    }

    #[test]
    fn credit_is_asked_for_once_until_some_comes() {
        let mut connection = established();
        connection.payload(CID, 1000);
        connection.want_credit();
        connection.want_credit();
        assert_eq!(operations(&mut connection), [(Operation::CreditRequest.number(), 0)]);
        connection.want_credit();
        assert_eq!(operations(&mut connection), []);
        let mut update = guest(Operation::CreditUpdate);
        update.fwd_cnt = 10;
        connection.process(Operation::CreditUpdate, &update);
        connection.want_credit();
        assert_eq!(operations(&mut connection), [(Operation::CreditRequest.number(), 0)]);
    }

    #[test]
    fn a_half_close_then_a_close_are_told_one_by_one() {
        let mut connection = established();
        connection.shut_down(SHUTDOWN_SEND);
        assert_eq!(operations(&mut connection), [(Operation::Shutdown.number(), SHUTDOWN_SEND)]);
        assert!(!connection.may_send());
        connection.shut_down(SHUTDOWN_RECEIVE);
        assert_eq!(operations(&mut connection), [(Operation::Shutdown.number(), SHUTDOWN_BOTH)]);
        assert_eq!(connection.state(), State::Closing);
        assert_eq!(connection.process(Operation::Reset, &guest(Operation::Reset)), Reaction::Over);
    }

    #[test]
    fn packets_under_way_when_the_host_closed_are_no_violation() {
        let mut connection = established();
        connection.shut_down(SHUTDOWN_BOTH);
        connection.dispatch(CID);
        let mut payload = guest(Operation::ReadWrite);
        payload.len = 10;
        assert_eq!(connection.process(Operation::ReadWrite, &payload), Reaction::Nothing);
        assert_eq!(connection.process(Operation::CreditUpdate, &guest(Operation::CreditUpdate)), Reaction::Nothing);
    }

    #[test]
    fn both_sides_closing_at_once_end_with_a_reset() {
        let mut connection = established();
        connection.shut_down(SHUTDOWN_BOTH);
        connection.dispatch(CID);
        let mut shutdown = guest(Operation::Shutdown);
        shutdown.flags = SHUTDOWN_BOTH;
        assert_eq!(connection.process(Operation::Shutdown, &shutdown), Reaction::Violation);
    }

    fn shutdown(flags: u32) -> Header {
        Header { flags, ..guest(Operation::Shutdown) }
    }

    /// A connection that the host has closed, which the guest was told.
    fn closing() -> Connection {
        let mut connection = established();
        connection.shut_down(SHUTDOWN_BOTH);
        connection.dispatch(CID);
        assert_eq!(connection.state(), State::Closing);
        connection
    }

    #[test]
    fn every_packet_is_of_a_stream_and_tells_of_256_kib() {
        let request = Connection::wanted(key()).dispatch(CID).unwrap();
        assert_eq!((request.socket_type, request.buf_alloc), (TYPE_STREAM, 262_144));
    }

    #[test]
    fn payload_goes_to_a_guest_that_has_answered_until_either_side_ends_that_way() {
        let mut connection = Connection::wanted(key());
        assert!(!connection.may_send());
        connection.dispatch(CID);
        assert!(!connection.may_send());
        let mut connection = established();
        assert!(connection.may_send() && connection.guest_receives());
        connection.shut_down(SHUTDOWN_RECEIVE);
        assert!(connection.may_send());
        connection.shut_down(SHUTDOWN_SEND);
        assert!(!connection.may_send());
        let mut connection = established();
        connection.process(Operation::Shutdown, &shutdown(SHUTDOWN_SEND));
        assert!(connection.may_send() && connection.guest_receives() && !connection.guest_sends());
        connection.process(Operation::Shutdown, &shutdown(SHUTDOWN_RECEIVE));
        assert!(!connection.may_send() && !connection.guest_receives());
    }

    #[test]
    fn a_request_for_credit_is_answered_while_open_and_while_closing() {
        for mut connection in [established(), closing()] {
            let reaction = connection.process(Operation::CreditRequest, &guest(Operation::CreditRequest));
            assert_eq!(reaction, Reaction::Send);
            assert_eq!(operations(&mut connection), [(Operation::CreditUpdate.number(), 0)]);
        }
    }

    #[test]
    fn an_update_of_credit_gives_an_open_connection_its_turn_and_no_answer() {
        let mut connection = established();
        let reaction = connection.process(Operation::CreditUpdate, &guest(Operation::CreditUpdate));
        assert_eq!(reaction, Reaction::Send);
        assert_eq!(operations(&mut connection), []);
    }

    #[test]
    fn a_half_close_that_was_under_way_when_the_host_closed_is_no_violation() {
        for flags in [0, SHUTDOWN_SEND, SHUTDOWN_RECEIVE] {
            assert_eq!(closing().process(Operation::Shutdown, &shutdown(flags)), Reaction::Nothing);
        }
    }

    #[test]
    fn of_a_guest_that_has_closed_nothing_is_taken_any_more_and_nothing_of_before_is_lost() {
        for owes_reset in [false, true] {
            let draining = || {
                let mut connection = established();
                connection.drain(owes_reset);
                connection
            };
            assert_eq!(draining().state(), State::Draining { owes_reset });
            for operation in [Operation::CreditUpdate, Operation::CreditRequest, Operation::Shutdown] {
                assert_eq!(draining().process(operation, &guest(operation)), Reaction::Nothing);
            }
            for operation in [Operation::ReadWrite, Operation::Request, Operation::Response] {
                assert_eq!(draining().process(operation, &guest(operation)), Reaction::Late);
            }
            assert_eq!(draining().process(Operation::Reset, &guest(Operation::Reset)), Reaction::Over);
        }
    }

    #[test]
    fn a_request_again_is_no_violation_as_long_as_the_response_waits() {
        let request = guest(Operation::Request);
        let mut connection = Connection::accepted(&request);
        assert_eq!(connection.process(Operation::Request, &request), Reaction::Nothing);
        assert_eq!(operations(&mut connection), [(Operation::Response.number(), 0)]);
        assert_eq!(connection.process(Operation::Request, &request), Reaction::Violation);
    }

    #[test]
    fn an_update_that_gives_nothing_is_no_reason_to_ask_again() {
        let mut connection = established();
        connection.payload(CID, 1000);
        connection.want_credit();
        assert_eq!(operations(&mut connection), [(Operation::CreditRequest.number(), 0)]);
        connection.process(Operation::CreditUpdate, &guest(Operation::CreditUpdate));
        connection.want_credit();
        assert_eq!(operations(&mut connection), []);
    }

    #[test]
    fn a_connection_without_credit_has_its_turn_once_to_ask_and_again_when_some_came() {
        let mut connection = established();
        assert!(connection.has_or_may_ask_for_credit());
        connection.payload(CID, 1000);
        assert!(connection.has_or_may_ask_for_credit());
        connection.want_credit();
        assert!(!connection.has_or_may_ask_for_credit());
        // Asked for and not yet told otherwise, but there is some.
        connection.credit.update(1001, 0);
        assert!(connection.has_or_may_ask_for_credit());
    }

    #[test]
    fn what_was_forwarded_is_told_by_itself_only_of_an_open_connection_and_by_halves() {
        let mut connection = established();
        connection.credit.update(u32::MAX, 0);
        connection.forward(BUFFER_BYTES / 2 - 1);
        assert_eq!(operations(&mut connection), []);
        // From now on the guest lets no more be under way.
        let shrinks = Header { buf_alloc: BUFFER_BYTES / 2, ..guest(Operation::CreditUpdate) };
        assert_eq!(connection.process(Operation::CreditUpdate, &shrinks), Reaction::Send);
        assert_eq!(operations(&mut connection), [(Operation::CreditUpdate.number(), 0)]);
        let mut connection = closing();
        connection.forward(BUFFER_BYTES);
        assert_eq!(operations(&mut connection), []);
    }
}
