//! The device as a vhost-user back end, between a simulated front end with its guest and the host's streams.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use scx_vsock::transport::vhost_user::{Error, Event, EventPurpose, Server};
use scx_vsock::vsock::DeviceError;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::spec::{EVENT_TRANSPORT_RESET, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TX_QUEUE};
use scx_vsock::vsock::test_util::{GUEST_BUFFER_BYTES, RX_BUFFERS, TX_BUFFERS};
use scx_vsock_tests::front_end::{FrontEnd, SET_VRING_CALL, SET_VRING_KICK};
use scx_vsock_tests::guest_driver::{CID, Connection, NEXT, RawRings, is_readable};
use scx_vsock_tests::pattern::{self, Arrived};
use scx_vsock_tests::peer::DEADLINE;
use vm_memory::{Bytes, GuestAddress};

const PORT: u32 = 729;

fn started() -> (Server, FrontEnd) {
    let (server, stream) = connected();
    (server, FrontEnd::new(stream))
}

/// A back end and a connection to it.
fn connected() -> (Server, UnixStream) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    (Server::start(listener, CID).unwrap(), stream)
}

/// Connects the host to the guest's port.
fn connect(server: &Server, front_end: &mut FrontEnd) -> Connection {
    let stream = server.handle().connect(PORT).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = front_end.expect(Operation::Request);
    let mut connection = Connection::new(stream, PORT, request.header.src_port);
    connection.on_packet(&request.header);
    front_end.send(&connection.header(Operation::Response), &[]);
    connection
}

/// Sends a few bytes each way.
fn greet(front_end: &mut FrontEnd, connection: &mut Connection) {
    connection.stream.write_all(b"to the guest").unwrap();
    loop {
        let packet = front_end.packet();
        if packet.operation() == Operation::ReadWrite {
            assert_eq!(packet.payload, b"to the guest");
            break;
        }
    }
    let header = Header { len: 11, ..connection.header(Operation::ReadWrite) };
    front_end.send(&header, b"to the host");
    let mut got = [0; 11];
    connection.stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"to the host");
}

#[test]
fn the_configuration_space_is_the_guests_cid() {
    let (_server, mut front_end) = started();
    assert_eq!(front_end.config(), CID.to_le_bytes());
}

#[test]
fn sixteen_mebibytes_go_each_way_unharmed() {
    const BYTES: u64 = 16 << 20;
    let (server, mut front_end) = started();
    let mut connection = connect(&server, &mut front_end);
    let stream = connection.stream.try_clone().unwrap();
    let sender = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        pattern::send(&sender, 2, BYTES).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let receiving = thread::spawn(move || pattern::receive(&stream).unwrap());
    let arrived = exchange(&mut front_end, &mut connection, BYTES);
    sending.join().unwrap();
    assert_eq!(arrived, pattern::expected(2, BYTES));
    assert_eq!(receiving.join().unwrap(), pattern::expected(1, BYTES));
}

/// The guest's side: sends stream 1 and takes what comes, until both directions have ended.
fn exchange(front_end: &mut FrontEnd, connection: &mut Connection, bytes: u64) -> Arrived {
    const MOST: usize = 16 * 1024;
    let mut pieces = pattern::pieces(1, bytes);
    let mut unsent = pieces.next().unwrap();
    let (mut arrived, mut checksum) = (0u64, crc32fast::Hasher::new());
    let (mut unsaid, mut host_ended, mut guest_ended) = (0, false, false);
    while !(host_ended && guest_ended) {
        while let Some(packet) = front_end.driver.receive() {
            connection.on_packet(&packet.header);
            checksum.update(&packet.payload);
            arrived += packet.payload.len() as u64;
            connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
            unsaid += packet.header.len;
            host_ended |= packet.operation() == Operation::Shutdown;
            assert_ne!(packet.operation(), Operation::Rst);
        }
        if unsaid > GUEST_BUFFER_BYTES / 2 && front_end.queue(&connection.header(Operation::CreditUpdate), &[]) {
            unsaid = 0;
        }
        while !unsent.is_empty() && connection.credit() > 0 {
            let size = unsent.len().min(MOST).min(connection.credit() as usize);
            let len = u32::try_from(size).unwrap();
            let header = Header { len, ..connection.header(Operation::ReadWrite) };
            if !front_end.queue(&header, &unsent[..size]) {
                break;
            }
            connection.sent = connection.sent.wrapping_add(len);
            unsent.drain(..size);
            if unsent.is_empty() {
                unsent = pieces.next().unwrap_or_default();
            }
        }
        if unsent.is_empty() && !guest_ended {
            let header = Header { flags: SHUTDOWN_SEND, ..connection.header(Operation::Shutdown) };
            guest_ended = front_end.queue(&header, &[]);
        }
        front_end.kick();
        if !(host_ended && guest_ended) {
            front_end.wait();
        }
    }
    Arrived { bytes: arrived, checksum: checksum.finalize() }
}

#[test]
fn a_guest_that_is_paused_keeps_its_connections() {
    let (server, mut front_end) = started();
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
    let stood_at = front_end.stop();
    front_end.start(stood_at);
    greet(&mut front_end, &mut connection);
}

#[test]
fn a_guest_that_boots_anew_knows_of_no_connection() {
    let (server, mut front_end) = started();
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
    front_end.reboot();
    assert_eq!(connection.stream.read(&mut [0]).unwrap(), 0);
    let mut next = connect(&server, &mut front_end);
    greet(&mut front_end, &mut next);
}

#[test]
fn a_connect_waits_for_the_guest_to_boot() {
    let (server, mut front_end) = started();
    front_end.stop();
    let mut stream = server.handle().connect(PORT).unwrap();
    stream.write_all(b"early").unwrap();
    front_end.driver.restart();
    front_end.start([0; 3]);
    let request = front_end.expect(Operation::Request);
    let connection = Connection::new(stream, PORT, request.header.src_port);
    front_end.send(&connection.header(Operation::Response), &[]);
    assert_eq!(front_end.expect(Operation::ReadWrite).payload, b"early");
}

#[test]
fn a_broken_ring_stops_until_a_reboot() {
    let (server, mut front_end) = started();
    front_end.driver.skip_available(TX_QUEUE, 1_000);
    front_end.kick();
    let error = wait_for_error(&server);
    assert!(matches!(error, Error::Device(DeviceError::Ring(_) | DeviceError::Chain(_))), "{error}");
    assert!(server.take_event().is_none());
    front_end.reboot();
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
}

/// The front end cuts guest memory at `bytes` and kicks: the process lives, another guest's device goes on, and this one
/// is reported and serves again in other memory.
fn memory_is_cut(bytes: u64) {
    let (other_server, mut other) = started();
    let mut untouched = connect(&other_server, &mut other);
    let (server, mut front_end) = started();
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
    front_end.queue(&connection.header(Operation::CreditRequest), &[]);
    front_end.cut_memory(bytes);
    front_end.kick();
    let error = wait_for_error(&server);
    assert!(matches!(error, Error::Device(DeviceError::MemoryGone)), "{error}");
    greet(&mut other, &mut untouched);
    front_end.kick();
    greet(&mut other, &mut untouched);
    assert!(server.take_event().is_none());
    front_end.reboot_in_other_memory();
    assert_eq!(connection.stream.read(&mut [0]).unwrap(), 0);
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
}

#[test]
fn truncated_memory_stops_its_own_device() {
    memory_is_cut(0);
}

#[test]
fn truncated_buffers_stop_their_own_device() {
    memory_is_cut(RX_BUFFERS);
}

#[test]
#[ignore = "ends its process: the test below runs it in one of its own"]
fn reads_a_file_of_its_own_that_was_cut() {
    let (_server, front_end) = started();
    front_end.cut_memory(0);
    let _ended: u8 = front_end.driver.memory().read_obj(GuestAddress(0)).unwrap();
}

#[test]
fn other_sigbus_still_ends_the_process() {
    const SIGBUS: i32 = 7;
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "reads_a_file_of_its_own_that_was_cut"]);
    let output = child.output().unwrap();
    assert_eq!(output.status.signal(), Some(SIGBUS), "{output:?}");
}

#[test]
fn a_truncated_payload_ends_its_connection() {
    let (server, mut front_end) = started();
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
    // The header is in a page that stays, the payload behind the cut: only the kernel reads it.
    let (cut, len) = (TX_BUFFERS + 0x10_0000, 100);
    let header = Header { len, ..connection.header(Operation::ReadWrite) };
    front_end.driver.memory().write_slice(&header.emit(), GuestAddress(TX_BUFFERS)).unwrap();
    front_end.driver.take_sent();
    front_end.driver.queue_raw(&[(TX_BUFFERS, 44, NEXT, 1), (cut, len, 0, 0)]);
    front_end.cut_memory(cut);
    front_end.kick();
    let shutdown = front_end.expect(Operation::Shutdown);
    assert_eq!(shutdown.header.flags, SHUTDOWN_RECEIVE);
    while let Some(event) = server.take_event() {
        assert!(!matches!(event, Event::Error(_)), "{event:?}");
    }
}

#[test]
fn an_impossible_ring_size_ends_the_session() {
    let (other_server, mut other) = started();
    let mut untouched = connect(&other_server, &mut other);
    for size in [0, 1025, u16::MAX] {
        let (server, mut front_end) = started();
        let mut connection = connect(&server, &mut front_end);
        greet(&mut front_end, &mut connection);
        front_end.resize(1, size);
        let error = wait_for_end(&server).unwrap();
        assert_eq!(error.to_string(), "the front end broke the vhost-user protocol: invalid parameters", "{size}");
        assert_eq!(connection.stream.read(&mut [0]).unwrap(), 0);
        greet(&mut other, &mut untouched);
    }
}

#[test]
fn a_changing_ring_size_harms_its_own_device() {
    let (other_server, mut other) = started();
    let mut untouched = connect(&other_server, &mut other);
    for size in [1, 2, 100, 1024] {
        let (server, mut front_end) = started();
        let mut connection = connect(&server, &mut front_end);
        greet(&mut front_end, &mut connection);
        for queue in [0, 1] {
            front_end.resize(queue, size);
        }
        connection.stream.write_all(b"to wherever").unwrap();
        front_end.queue(&connection.header(Operation::CreditRequest), &[]);
        front_end.kick();
        greet(&mut other, &mut untouched);
        front_end.reboot();
        let mut connection = connect(&server, &mut front_end);
        greet(&mut front_end, &mut connection);
    }
}

/// Waits until the server's descriptor is ready, and returns the events.
fn wait_for_event(server: &Server) -> PollFlags {
    let mut fds = [PollFd::new(server, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::try_from(DEADLINE).unwrap())).unwrap(), 1, "nothing within {DEADLINE:?}");
    fds[0].revents()
}

/// Waits for an error, and passes over other events.
fn wait_for_error(server: &Server) -> Error {
    loop {
        match server.take_event() {
            Some(Event::Error(error)) => return error,
            Some(_) => {}
            None => assert!(wait_for_event(server).contains(PollFlags::IN), "it ended without an error"),
        }
    }
}

/// Waits until the server has ended, and returns why if it was for an error.
fn wait_for_end(server: &Server) -> Option<Error> {
    let mut latest = None;
    loop {
        while let Some(event) = server.take_event() {
            if let Event::Error(error) = event {
                latest = Some(error);
            }
        }
        if !wait_for_event(server).contains(PollFlags::IN) {
            return latest;
        }
    }
}

#[test]
fn the_owner_hears_of_the_front_end_and_the_driver() {
    let (server, stream) = connected();
    let mut front_end = FrontEnd::new(stream);
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
    assert!(matches!(server.take_event(), Some(Event::Connected)));
    assert!(matches!(server.take_event(), Some(Event::Running)));
    assert!(server.take_event().is_none());
    front_end.reboot();
    let mut next = connect(&server, &mut front_end);
    greet(&mut front_end, &mut next);
    assert!(matches!(server.take_event(), Some(Event::Running)));
    assert!(server.take_event().is_none());
}

#[test]
fn a_front_end_may_hand_over_all_three_queues() {
    let (server, stream) = connected();
    let mut front_end = FrontEnd::with_event_queue(stream);
    assert_eq!(front_end.queue_count(), 3);
    front_end.resize(2, 128);
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
    let stood_at = front_end.stop();
    front_end.start(stood_at);
    greet(&mut front_end, &mut connection);
    front_end.reboot();
    assert_eq!(connection.stream.read(&mut [0]).unwrap(), 0);
    let mut next = connect(&server, &mut front_end);
    greet(&mut front_end, &mut next);
    assert!(front_end.driver.take_event().is_none(), "a driver that boots needs no reset");
}

#[test]
fn a_guest_of_another_device_is_sent_a_reset() {
    let (before, stream) = connected();
    let mut front_end = FrontEnd::with_event_queue(stream);
    let mut connection = connect(&before, &mut front_end);
    greet(&mut front_end, &mut connection);
    let (after, stream) = connected();
    let mut front_end = front_end.moved_to(stream);
    while !front_end.driver.has_event() {
        front_end.wait();
    }
    assert_eq!(front_end.driver.take_event(), Some(Some(EVENT_TRANSPORT_RESET)));
    let waiting = after.handle().connect(PORT).unwrap();
    assert!(front_end.driver.receive().is_none(), "nothing comes before the driver has handled the reset");
    front_end.driver.post_events();
    front_end.kick();
    let request = front_end.expect(Operation::Request);
    let mut connection = Connection::new(waiting, PORT, request.header.src_port);
    connection.stream.set_nonblocking(false).unwrap();
    connection.on_packet(&request.header);
    front_end.send(&connection.header(Operation::Response), &[]);
    greet(&mut front_end, &mut connection);
}

fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Fills a counter: a blocking write to it waits until somebody reads it.
fn fill(counter: &OwnedFd) {
    rustix::io::write(counter, &(u64::MAX - 1).to_ne_bytes()).unwrap();
}

/// Has the back end interrupt the guest by this descriptor from now on.
fn set_call(front_end: &mut FrontEnd, queue: u64, call: &OwnedFd) {
    front_end.send_descriptor(SET_VRING_CALL, queue, call.as_fd());
    // The answer to a later message: the one before was handled.
    assert_eq!(front_end.queue_count(), 3);
}

/// Has the device use a buffer of each queue, and waits for that without interrupts.
fn use_buffers(front_end: &mut FrontEnd, connection: &Connection) {
    front_end.driver.ask_for_interrupts();
    front_end.send(&connection.header(Operation::CreditRequest), &[]);
    let until = Instant::now() + DEADLINE;
    while front_end.driver.receive().is_none() {
        assert!(Instant::now() < until, "no answer within {DEADLINE:?}");
        thread::yield_now();
    }
}

#[test]
fn an_interrupt_that_would_wait_is_skipped() {
    let (server, mut front_end) = started();
    let connection = connect(&server, &mut front_end);
    let full = counter();
    fill(&full);
    fcntl_setfl(&full, OFlags::empty()).unwrap();
    for queue in [0, 1] {
        set_call(&mut front_end, queue, &full);
    }
    for _ in 0..3 {
        use_buffers(&mut front_end, &connection);
    }
    drop(server);
}

#[test]
fn a_server_that_waits_in_an_interrupt_can_be_dropped() {
    let (server, mut front_end) = started();
    let connection = connect(&server, &mut front_end);
    let call = counter();
    set_call(&mut front_end, 0, &call);
    use_buffers(&mut front_end, &connection);
    // The back end has written to the descriptor, which it was given as one with which no write waits.
    assert!(is_readable(&call, DEADLINE), "no interrupt within {DEADLINE:?}");
    rustix::io::read(&call, &mut [0; 8]).unwrap();
    fill(&call);
    fcntl_setfl(&call, OFlags::empty()).unwrap();
    use_buffers(&mut front_end, &connection);
    drop(server);
}

#[test]
fn the_last_kicks_of_a_session_are_counted() {
    const KICKS: u64 = 500;
    let (server, mut front_end) = started();
    connect(&server, &mut front_end);
    (0..KICKS).for_each(|_| front_end.kick());
    drop(front_end);
    wait_for_end(&server);
    // The front end has the event queue.
    let counted = server.handle().counters().notifications;
    assert!(counted >= 2 * KICKS, "{counted} notifications");
}

#[test]
fn descriptors_that_are_no_events_end_the_session() {
    let (other_server, mut other) = started();
    let mut untouched = connect(&other_server, &mut other);
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    let file = tempfile::tempfile().unwrap();
    let null = File::open("/dev/null").unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    for (purpose, request) in [(EventPurpose::Kick, SET_VRING_KICK), (EventPurpose::Call, SET_VRING_CALL)] {
        for fd in [reader.as_fd(), writer.as_fd(), file.as_fd(), null.as_fd(), socket.as_fd()] {
            let (server, mut front_end) = started();
            let mut connection = connect(&server, &mut front_end);
            front_end.start_with_descriptor(1, request, fd);
            let error = wait_for_end(&server).unwrap();
            let named = matches!(error, Error::NotAnEvent { purpose: of, queue: 1 } if of == purpose);
            assert!(named, "{error}");
            assert_eq!(connection.stream.read(&mut [0]).unwrap(), 0);
            assert!(server.handle().connect(PORT).is_err());
            greet(&mut other, &mut untouched);
        }
    }
}

#[test]
fn a_stray_connection_is_no_front_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::start(UnixListener::bind(&path).unwrap(), CID).unwrap();
    let waiting = server.handle().connect(PORT).unwrap();
    for bytes in [&b""[..], b"CONNECT 729\n", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 100]] {
        let mut stray = UnixStream::connect(&path).unwrap();
        // The server may close it before it has sent all.
        let _sent = stray.write_all(bytes);
    }
    let mut front_end = FrontEnd::new(UnixStream::connect(&path).unwrap());
    let request = front_end.expect(Operation::Request);
    let mut connection = Connection::new(waiting, PORT, request.header.src_port);
    connection.stream.set_nonblocking(false).unwrap();
    connection.on_packet(&request.header);
    front_end.send(&connection.header(Operation::Response), &[]);
    greet(&mut front_end, &mut connection);
    assert!(matches!(server.take_event(), Some(Event::Connected)));
}

#[test]
fn when_the_front_end_goes_everything_ends() {
    let (server, mut front_end) = started();
    let mut connection = connect(&server, &mut front_end);
    greet(&mut front_end, &mut connection);
    let listener = server.handle().listen(7_290).unwrap();
    drop(front_end);
    assert_eq!(connection.stream.read(&mut [0]).unwrap(), 0);
    assert!(wait_for_end(&server).is_none());
    assert!(server.handle().connect(PORT).is_err() && server.handle().listen(1).is_err());
    assert!(listener.accept_within(DEADLINE).is_err());
}
