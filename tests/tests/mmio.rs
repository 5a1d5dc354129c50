//! The device behind virtio-mmio registers, driven by a simulated driver that knows of nothing else.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::ErrorKind;

use proptest::prelude::*;
use scx_vsock::vsock::DeviceError;
use scx_vsock::vsock::packet::Operation;
use scx_vsock::vsock::spec::TX_QUEUE;
use scx_vsock::vsock::test_util::{QUEUE_SIZE, mmio_initialisation};
use scx_vsock_tests::device_thread::DeviceThread;
use scx_vsock_tests::guest_driver::{CID, Connection, Guest, pattern};
use scx_vsock_tests::mmio_driver::{NEEDS_RESET, Registers};

const PORT: u32 = 729;
/// The first port of connects that are refused.
const FIRST_PORT: u32 = 50_000;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
const FAILED: u32 = 128;
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// The guest's device serves an honest connection.
fn serves(guest: &mut Guest<Registers>) {
    guest.received();
    let mut connection = guest.connect_from_host(PORT);
    assert_eq!(connection.transfer_to_host(guest, b"honest", 6), b"honest");
    assert_eq!(connection.transfer_to_guest(guest, b"reply"), b"reply");
    let reset = connection.header(Operation::Rst);
    drop(connection);
    assert_eq!(guest.operations(), [Operation::Shutdown]);
    guest.send(&reset, &[]);
}

#[test]
fn a_driver_that_follows_the_standard_gets_through() {
    let mut guest = Guest::behind_registers();
    serves(&mut guest);
    let listener = guest.handle().listen(7290).unwrap();
    let mut connection = guest.connect_from_guest(&listener, 50_000, 7290);
    let data = pattern(4 << 20);
    assert!(connection.transfer_to_host(&mut guest, &data, 64 << 10) == data);
    assert!(connection.transfer_to_guest(&mut guest, &data) == data);
}

#[test]
fn the_configuration_space_has_any_width() {
    let guest = Guest::behind_registers();
    let read = |offset, width| {
        let mut bytes = vec![0xff; width];
        guest.device.mmio.read(offset, &mut bytes);
        bytes
    };
    let cid = CID.to_le_bytes();
    assert_eq!(read(0x100, 8), cid);
    assert_eq!(read(0x100, 4), cid[..4]);
    assert_eq!(read(0x104, 4), cid[4..]);
    assert_eq!((read(0x100, 2), read(0x101, 1)), (vec![3, 0], vec![0]));
    assert_eq!((read(0x106, 4), read(0x108, 4), read(u64::MAX, 4)), (vec![0; 4], vec![0; 4], vec![0; 4]));
    guest.device.mmio.write(0x100, &[9, 0, 0, 0]);
    assert_eq!(read(0x100, 8), cid);
}

#[test]
fn control_registers_are_four_bytes_wide() {
    let guest = Guest::behind_registers();
    for width in [0, 1, 2, 3, 5, 8, 4096] {
        let mut bytes = vec![0xff; width];
        guest.device.mmio.read(0, &mut bytes);
        assert_eq!(bytes, vec![0; width]);
        guest.device.mmio.write(STATUS, &vec![0; width]);
        assert_eq!(guest.device.status(), 15, "a write of {width} bytes");
    }
    assert_eq!((guest.device.read(1), guest.device.read(2)), (0, 0));
    guest.device.write(STATUS + 1, 0);
    assert_eq!(guest.device.status(), 15);
}

#[test]
fn the_interrupt_says_why_until_it_is_acknowledged() {
    let mut guest = Guest::behind_registers();
    guest.ask_for_interrupts();
    assert_eq!(guest.device.take_interrupt(), 0);
    let _stream = guest.handle().connect(PORT).unwrap();
    guest.service();
    assert_eq!(guest.device.read(0x60), USED_BUFFER);
    assert_eq!(guest.device.take_interrupt(), USED_BUFFER);
    assert_eq!(guest.device.read(0x60), 0);
}

#[test]
fn refusals_that_wait_for_their_time_all_come_by_themselves() {
    const CONNECTS: u32 = 1_000;
    let mut guests = [Guest::behind_registers()];
    let served = DeviceThread::serving(&mut guests);
    let [mut guest] = guests;
    let (mut asked, mut refused) = (0, Vec::new());
    while refused.len() < CONNECTS as usize {
        // Nothing notifies the device while it holds refusals and all connects are sent.
        let request = |number| Guest::header(Operation::Request, FIRST_PORT + number, PORT + 1);
        let before = asked;
        while asked < CONNECTS && guest.queue_packet(&request(asked), &[]) {
            asked += 1;
        }
        if asked > before {
            guest.service();
        }
        let packet = guest.packet();
        assert_eq!(packet.operation(), Operation::Rst);
        refused.push(packet.header.dst_port);
    }
    assert_eq!(refused, (FIRST_PORT..FIRST_PORT + CONNECTS).collect::<Vec<_>>());
    assert_eq!(guest.handle().counters().refused.no_listener, u64::from(CONNECTS));
    assert!(served.errors.try_recv().is_err());
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut guest = Guest::behind_registers();
    let mut connection = guest.connect_from_host(PORT);
    let _reasons = guest.device.take_interrupt();
    guest.skip_available(TX_QUEUE, QUEUE_SIZE + 1);
    assert!(matches!(guest.try_service(), Err(DeviceError::Ring(_))));
    assert_eq!(guest.device.status(), 15 | NEEDS_RESET);
    assert_eq!(guest.device.take_interrupt() & CONFIG_CHANGE, CONFIG_CHANGE);
    guest.service();
    assert!(guest.receive().is_none(), "a device that needs a reset does nothing");
    guest.boot();
    assert!(connection.host_reads_end());
    serves(&mut guest);
}

#[test]
fn a_failed_driver_is_left_alone() {
    let mut guest = Guest::behind_registers();
    guest.device.write(STATUS, FAILED | 15);
    let _stream = guest.handle().connect(PORT).unwrap();
    assert_eq!(guest.operations(), []);
    guest.boot();
    assert_eq!(guest.operations(), [Operation::Request]);
}

#[test]
fn a_queue_that_the_driver_stopped_is_not_touched() {
    let mut guest = Guest::behind_registers();
    let _stream = guest.handle().connect(PORT).unwrap();
    guest.device.write(QUEUE_SEL, 0);
    guest.device.write(QUEUE_READY, 0);
    assert_eq!(guest.operations(), []);
}

#[test]
fn a_queue_of_impossible_size_is_not_ready() {
    let mut guest = Guest::behind_registers();
    let addresses = guest.addresses();
    for size in [0, 3, 100, 257, 512, 0x8000, 0x1_0080, u32::MAX] {
        guest.device.reset();
        for (offset, value) in mmio_initialisation(&addresses, 1 << 32) {
            guest.device.write(offset, if offset == QUEUE_NUM { size } else { value });
        }
        assert_eq!(guest.device.status(), 15);
        for queue in 0..3 {
            guest.device.write(QUEUE_SEL, queue);
            assert_eq!(guest.device.read(QUEUE_READY), 0, "queue {queue} of {size} entries");
        }
        let _waiting = guest.handle().connect(PORT).unwrap();
        assert_eq!(guest.operations(), [], "queues of {size} entries");
        guest.boot();
        serves(&mut guest);
    }
}

#[test]
fn a_running_queue_keeps_its_size() {
    let mut guest = Guest::behind_registers();
    let mut connection = guest.connect_from_host(PORT);
    for size in [0, 1, 64, 256, u32::MAX] {
        for queue in 0..3 {
            guest.device.write(QUEUE_SEL, queue);
            guest.device.write(QUEUE_NUM, size);
            guest.device.write(QUEUE_READY, 1);
            assert_eq!(guest.device.read(QUEUE_READY), 1);
        }
        // More packets than the queue has entries, so that its end is passed.
        for _ in 0..=QUEUE_SIZE {
            assert_eq!(connection.transfer_to_host(&mut guest, b"x", 1), b"x", "{size} entries");
        }
    }
    drop(connection);
    serves(&mut guest);
}

#[test]
fn a_reset_keeps_pending_connects() {
    let mut guest = Guest::behind_registers();
    let mut connection = guest.connect_from_host(PORT);
    guest.device.reset();
    assert!(connection.host_reads_end());
    let waiting = guest.handle().connect(PORT).unwrap();
    guest.boot();
    assert_eq!(guest.operations(), [Operation::Request]);
    drop(waiting);
}

#[test]
fn a_driver_without_stream_sockets_gets_none() {
    let mut guest = Guest::behind_registers();
    let addresses = guest.addresses();
    // NO_IMPLIED_STREAM without STREAM.
    guest.device.initialise_with(&addresses, 1 << 32 | 1 << 29 | 1 << 2);
    let listener = guest.handle().listen(1).unwrap();
    guest.restart();
    guest.send(&Guest::header(Operation::Request, 50_000, 1), &[]);
    assert_eq!(guest.operations(), [Operation::Rst]);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let stream = guest.handle().connect(PORT).unwrap();
    assert_eq!(guest.operations(), []);
    assert!(Connection::new(stream, PORT, 1).host_reads_end());
    // The next driver may have them again, and what is asked for before it comes waits for it.
    guest.device.reset();
    let _waiting = guest.handle().connect(PORT).unwrap();
    guest.service();
    guest.boot();
    assert_eq!(guest.operations(), [Operation::Request]);
    serves(&mut guest);
}

#[test]
fn pending_connects_need_no_notification() {
    let mut guest = Guest::behind_registers();
    guest.device.reset();
    let _waiting = guest.handle().connect(PORT).unwrap();
    guest.service();
    guest.restart();
    let addresses = guest.addresses();
    guest.device.initialise(&addresses);
    let _kept_back = guest.take_notifications();
    assert_eq!(guest.operations(), [Operation::Request]);
}

#[test]
fn without_socket_features_there_are_streams() {
    let mut guest = Guest::behind_registers();
    let addresses = guest.addresses();
    guest.device.initialise_with(&addresses, 1 << 32 | 1 << 29);
    guest.restart();
    serves(&mut guest);
}

/// What a guest may do to its registers.
#[derive(Clone, Debug)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Serve,
}

fn access() -> impl Strategy<Value = Access> {
    let registers = (0u64..0x48).prop_map(|word| word * 4);
    let offset = prop_oneof![8 => registers, 1 => 0u64..0x200, 1 => any::<u64>()];
    let telling = prop::sample::select(vec![0, 1, 2, 3, 11, 15, 128, 0x40, 0x1000, 0x10_0000, 0x20_0000, u32::MAX]);
    let word = prop_oneof![4 => telling, 1 => any::<u32>()].prop_map(|word| word.to_le_bytes().to_vec());
    let bytes = prop_oneof![8 => word, 1 => prop::collection::vec(any::<u8>(), 0..12)];
    prop_oneof![
        1 => (offset.clone(), 0usize..12).prop_map(|(offset, width)| Access::Read(offset, width)),
        6 => (offset, bytes).prop_map(|(offset, bytes)| Access::Write(offset, bytes)),
        1 => Just(Access::Serve),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn any_writes_leave_a_usable_device(
        from_running: bool,
        accesses in prop::collection::vec(access(), 0..200),
    ) {
        let mut guest = Guest::behind_registers();
        if !from_running {
            guest.device.reset();
        }
        let waiting = guest.handle().connect(PORT).unwrap();
        for access in accesses {
            match access {
                Access::Read(offset, width) => guest.device.mmio.read(offset, &mut vec![0; width]),
                Access::Write(offset, bytes) => guest.device.mmio.write(offset, &bytes),
                // The rings may be anywhere by now: the device may find them broken.
                Access::Serve => drop(guest.device.mmio.service()),
            }
        }
        drop(waiting);
        guest.boot();
        guest.received();
        serves(&mut guest);
    }
}
