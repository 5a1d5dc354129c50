//! The device in the VMM's process, against bare sockets and threads.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier};
use std::thread;

use scx_vsock::transport::mmio::Mmio;
use scx_vsock::vsock::Device;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::test_util::{SimulatedDriver, guest_memory};
use scx_vsock_tests::cgroup::{Group, resident_bytes};
use scx_vsock_tests::device_thread::DeviceThread;
use scx_vsock_tests::guest_driver::{CID, Connection, Guest};
use scx_vsock_tests::mmio_driver::Registers;
use scx_vsock_tests::peer::DEADLINE;

use crate::measure::{Measure, Programs, micros};
use crate::round_trips::{PAYLOAD, round_trips};
use crate::row::{Goal, Row, quantile};

/// The rows of this module.
pub const ALL: &[Measure] = &[
    ("in-process", in_process_round_trip),
    ("connect-loop", beside_a_connect_loop),
    ("many-guests", many_guests),
    ("idle-device", idle_device),
];

const PORT: u32 = 729;

/// Connects from the host to a guest whose device another thread serves.
fn connect(guest: &mut Guest<Registers>) -> Connection {
    let stream = guest.handle().connect(PORT).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = guest.packet();
    assert_eq!(request.operation(), Operation::Request);
    let mut connection = Connection::new(stream, PORT, request.header.src_port);
    connection.on_packet(&request.header);
    guest.send(&connection.header(Operation::Response), &[]);
    connection
}

/// Echoes in the guest, until the host closes.
fn echo(guest: &mut Guest<Registers>, connection: &mut Connection) {
    loop {
        let packet = guest.packet();
        connection.on_packet(&packet.header);
        match packet.operation() {
            Operation::ReadWrite => {
                connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
                connection.write(guest, &packet.payload);
            }
            Operation::Shutdown => return,
            _ => {}
        }
    }
}

fn in_process_round_trip(_: &Programs) -> Row {
    const ROUNDS: usize = 20;
    const TIMES: usize = 500;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.extend(device_round_trips(TIMES, echo));
        bare.extend(bare_round_trips(TIMES));
    }
    Row::median("in-process device, 4 KiB round trip / bare socket pairs, us", &mut ours, &mut bare, Goal::Ratio(1.5))
}

/// Round trips from the host by the device's thread to the guest's thread and back, where the guest does this with its
/// connection until the host closes.
fn device_round_trips(times: usize, serve: impl Fn(&mut Guest<Registers>, &mut Connection) + Sync) -> Vec<f64> {
    let mut guests = [Guest::behind_registers()];
    let _served = DeviceThread::serving(&mut guests);
    let [mut guest] = guests;
    let mut connection = connect(&mut guest);
    let mut host = connection.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| serve(&mut guest, &mut connection));
        let times = round_trips(&mut host, times);
        host.shutdown(Shutdown::Both).unwrap();
        times
    })
}

/// Requests of an agent's client while a process of the guest connects to a closed port in a loop, against alone.
fn beside_a_connect_loop(_: &Programs) -> Row {
    const ROUNDS: usize = 10;
    const TIMES: usize = 2_000;
    /// More than there are receive buffers: each RST is answered by another REQUEST.
    const OUTSTANDING: usize = 150;
    let p99 = |outstanding| {
        let mut times = device_round_trips(TIMES, |guest, connection| echo_and_connect(guest, connection, outstanding));
        times.sort_by(f64::total_cmp);
        quantile(&times, 0.99)
    };
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        beside.push(p99(OUTSTANDING));
        alone.push(p99(0));
    }
    Row::median("request beside a guest's connect loop / alone, p99 us", &mut beside, &mut alone, Goal::Ratio(2.0))
}

/// Echoes in the guest until the host closes, while a process connects anew for each connect that is refused.
fn echo_and_connect(guest: &mut Guest<Registers>, connection: &mut Connection, outstanding: usize) {
    let mut wanted = outstanding;
    let mut guest_port = 1 << 16;
    loop {
        let request = |guest_port| Guest::header(Operation::Request, guest_port, PORT + 1).emit();
        while wanted > 0 && guest.queue_bytes(&request(guest_port), &[]) {
            wanted -= 1;
            guest_port += 1;
        }
        let _sent = guest.try_service();
        let packet = guest.packet();
        match packet.operation() {
            Operation::Rst => wanted += 1,
            Operation::Shutdown => return,
            Operation::ReadWrite => {
                connection.on_packet(&packet.header);
                connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
                answer(guest, connection, &packet.payload);
            }
            _ => connection.on_packet(&packet.header),
        }
    }
}

/// Sends the answer as soon as the transmit queue has room.
fn answer(guest: &mut Guest<Registers>, connection: &mut Connection, payload: &[u8]) {
    let len = u32::try_from(payload.len()).unwrap();
    let header = Header { len, ..connection.header(Operation::ReadWrite) };
    let bytes = [&header.emit()[..], payload].concat();
    while !guest.queue_bytes(&bytes, &[Header::BYTES]) {
        guest.take_sent();
    }
    let _sent = guest.try_service();
    connection.sent = connection.sent.wrapping_add(len);
}

/// The floor: a thread that copies in a fixed order in place of the device's, with socket pairs on both sides.
fn bare_round_trips(times: usize) -> Vec<f64> {
    let (mut host, mut outer) = UnixStream::pair().unwrap();
    let (mut inner, mut guest) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut bytes = [0; PAYLOAD];
            for _ in 0..times {
                outer.read_exact(&mut bytes).unwrap();
                inner.write_all(&bytes).unwrap();
                inner.read_exact(&mut bytes).unwrap();
                outer.write_all(&bytes).unwrap();
            }
        });
        scope.spawn(move || {
            let mut bytes = [0; PAYLOAD];
            for _ in 0..times {
                guest.read_exact(&mut bytes).unwrap();
                guest.write_all(&bytes).unwrap();
            }
        });
        round_trips(&mut host, times)
    })
}

fn many_guests(_: &Programs) -> Row {
    const MANY: usize = 1_000;
    const SAMPLES: usize = 20_000;
    const ROUNDS: usize = 5;
    let (mut many, mut one) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(cpu_per_sample(1, SAMPLES));
        many.push(cpu_per_sample(MANY, SAMPLES));
    }
    let name = "sample of each of 1,000 guests / of one guest, thread us";
    Row::median(name, &mut many, &mut one, Goal::Ratio(1.2))
}

/// Returns the CPU microseconds of the devices' thread per sample: one request and its answer.
fn cpu_per_sample(guests: usize, samples: usize) -> f64 {
    const REQUEST: &[u8] = b"{\"req\":\"stats\",\"args\":{}}\n";
    let answer = [b'x'; 600];
    let mut guests: Vec<_> = (0..guests).map(|_| Guest::behind_registers()).collect();
    let served = DeviceThread::serving(&mut guests);
    let mut connections: Vec<Connection> = guests.iter_mut().map(connect).collect();
    let exchange = |guest: &mut Guest<Registers>, connection: &mut Connection| {
        connection.stream.write_all(REQUEST).unwrap();
        let packet = guest.packet();
        assert_eq!(packet.payload, REQUEST);
        connection.on_packet(&packet.header);
        connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
        connection.write(guest, &answer);
        connection.stream.read_exact(&mut [0; 600]).unwrap();
    };
    // Once before the measurement, without what is allocated at the first use.
    guests.iter_mut().zip(&mut connections).for_each(|(guest, connection)| exchange(guest, connection));
    let before = served.processor_time();
    for _ in 0..samples / guests.len() {
        guests.iter_mut().zip(&mut connections).for_each(|(guest, connection)| exchange(guest, connection));
    }
    micros(served.processor_time() - before) / samples as f64
}

/// A device with one idle connection, against a waiting thread: other back ends have one for each device.
fn idle_device(_: &Programs) -> Row {
    const DEVICES: usize = 1_000;
    let group = Group::enter();
    if group.is_none() {
        eprintln!("bench: idle-device: kernel memory is not included, since no cgroup can be made");
    }
    let used = || group.as_ref().map_or_else(resident_bytes, Group::bytes);
    // The guest's own memory is in use before the first measurement.
    let drivers: Vec<SimulatedDriver> = (0..DEVICES).map(|_| driver()).collect();
    let before = used();
    let devices: Vec<_> = drivers.into_iter().map(device).collect();
    let ours = used() - before;
    drop(devices);
    let threads = memory_of_threads(DEVICES, &used);
    let kib = |bytes: usize| bytes as f64 / DEVICES as f64 / 1024.0;
    Row::exact("idle in-process device with a connection / a thread, KiB", kib(ours), kib(threads), Goal::Ours(64.0))
}

/// Returns a driver whose guest memory is resident.
fn driver() -> SimulatedDriver {
    let mut driver = SimulatedDriver::new(guest_memory());
    driver.restart();
    driver
}

/// Returns a running device with one idle connection.
fn device(driver: SimulatedDriver) -> (Guest<Registers>, Connection) {
    let memory = Arc::new(driver.memory().clone());
    let device = Device::new(CID).unwrap();
    let registers = Registers::of(|line| Mmio::new(device, memory, line)).unwrap();
    registers.initialise(&driver.addresses());
    let mut guest = Guest::attached(registers, driver);
    let connection = guest.connect_from_host(PORT);
    (guest, connection)
}

fn memory_of_threads(count: usize, used: &impl Fn() -> usize) -> usize {
    let before = used();
    let (started, end) = (Barrier::new(count + 1), Barrier::new(count + 1));
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                started.wait();
                end.wait();
            });
        }
        started.wait();
        let bytes = used() - before;
        end.wait();
        bytes
    })
}
