//! Many guests' devices on one thread with an event manager.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use scx_vsock::transport::event_manager::Error;
use scx_vsock::transport::mmio;
use scx_vsock::vsock::DeviceError;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::spec::{EVENT_BYTES, EVENT_TRANSPORT_RESET, TX_QUEUE};
use scx_vsock::vsock::test_util::QUEUE_SIZE;
use scx_vsock_tests::device_thread::DeviceThread;
use scx_vsock_tests::guest_driver::{Connection, Guest, pattern};
use scx_vsock_tests::mmio_driver::Registers;
use scx_vsock_tests::peer::DEADLINE;

const PORT: u32 = 729;
const GUESTS: usize = 64;

/// Connects the host to every guest, all at the same time.
fn connect(guests: &mut [Guest<Registers>]) -> Vec<Connection> {
    let streams: Vec<UnixStream> = guests.iter().map(|guest| guest.handle().connect(PORT).unwrap()).collect();
    let connections = guests.iter_mut().zip(streams).map(|(guest, stream)| {
        let request = guest.packet();
        assert_eq!(request.operation(), Operation::Request);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut connection = Connection::new(stream, PORT, request.header.src_port);
        connection.on_packet(&request.header);
        guest.send(&connection.header(Operation::Response), &[]);
        connection
    });
    connections.collect()
}

/// Sends `payload` to a guest and back.
fn echo(guest: &mut Guest<Registers>, connection: &mut Connection, payload: &[u8]) {
    connection.stream.write_all(payload).unwrap();
    let mut back = 0;
    while back < payload.len() {
        let packet = guest.packet();
        connection.on_packet(&packet.header);
        connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
        back += packet.payload.len();
        connection.write(guest, &packet.payload);
    }
    let mut got = vec![0; payload.len()];
    connection.stream.read_exact(&mut got).unwrap();
    assert!(got == payload);
}

#[test]
fn one_thread_serves_many_guests() {
    let mut guests: Vec<Guest<Registers>> = (0..GUESTS).map(|_| Guest::behind_registers()).collect();
    let served = DeviceThread::serving(&mut guests);
    let mut connections = connect(&mut guests);
    for round in 0..20 {
        for (guest, connection) in guests.iter_mut().zip(&mut connections) {
            echo(guest, connection, &pattern(1 + 977 * round));
        }
    }
    assert!(served.errors.try_recv().is_err());
}

#[test]
fn a_hostile_guest_leaves_others_alone() {
    let mut guests: Vec<Guest<Registers>> = (0..4).map(|_| Guest::behind_registers()).collect();
    let served = DeviceThread::serving(&mut guests);
    let mut connections = connect(&mut guests);
    let [broken, busy, honest, _] = guests.as_mut_slice() else { unreachable!() };
    broken.skip_available(TX_QUEUE, QUEUE_SIZE + 1);
    broken.service();
    let (index, error) = served.errors.recv_timeout(DEADLINE).unwrap();
    assert!(matches!((index, &error), (0, Error::Device(mmio::Error::Device(DeviceError::Ring(_))))), "{error}");
    let storm = connections[1].header(Operation::CreditRequest).emit();
    for _ in 0..100 {
        busy.take_sent();
        while busy.queue_bytes(&storm, &[]) {}
        busy.service();
        echo(honest, &mut connections[2], b"honest");
    }
    broken.boot();
    let connection = &mut connect(std::slice::from_mut(broken))[0];
    echo(broken, connection, b"back again");
    assert!(served.errors.try_recv().is_err());
}

#[test]
fn a_guest_on_another_thread_is_restored() {
    let mut guests = vec![Guest::behind_registers()];
    let served = DeviceThread::serving(&mut guests);
    let mut connections = connect(&mut guests);
    echo(&mut guests[0], &mut connections[0], b"before");
    let header = Header { len: 4, ..connections[0].header(Operation::ReadWrite) };
    guests[0].device.mmio.pause();
    guests[0].send(&header, b"held");
    drop(served);
    let mut guests: Vec<_> = guests.into_iter().map(Guest::saved_and_restored).collect();
    let _served = DeviceThread::serving(&mut guests);
    guests[0].device.mmio.resume().unwrap();
    assert_eq!(guests[0].event(), EVENT_TRANSPORT_RESET);
    guests[0].post_event(EVENT_BYTES);
    guests[0].service();
    assert_eq!(guests[0].packet().operation(), Operation::Rst, "of the connection that is gone");
    let mut connections = connect(&mut guests);
    echo(&mut guests[0], &mut connections[0], b"after");
}
