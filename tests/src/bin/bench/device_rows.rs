//! What the device costs in the monitor's own process, against bare sockets and threads.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use scx_vsock::transport::mmio::Mmio;
use scx_vsock::vsock::Device;
use scx_vsock::vsock::packet::Operation;
use scx_vsock_tests::cgroup::{Group, resident_bytes};
use scx_vsock_tests::device_thread::DeviceThread;
use scx_vsock_tests::guest_driver::{CID, Connection, Driver, Guest, memory};
use scx_vsock_tests::mmio_driver::Registers;
use scx_vsock_tests::peer::DEADLINE;

use crate::row::{Goal, Row};
use crate::{Measure, Programs, micros};

/// Measurements.
pub const ALL: &[Measure] =
    &[("in-process", in_process_round_trip), ("many-guests", sample_of_many_guests), ("idle-device", idle_device)];

const PORT: u32 = 729;

/// Bytes that go there and back.
pub const PAYLOAD: usize = 4096;

/// Connects the host to a guest whose device another thread serves.
fn connect(guest: &mut Guest<Registers>) -> Connection {
    let stream = guest.handle().connect(PORT).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = guest.packet();
    assert_eq!(request.operation(), Operation::Request);
    let mut connection = Connection::new(stream, PORT, request.header.src_port);
    connection.note(&request.header);
    guest.send(&connection.header(Operation::Response), &[]);
    connection
}

/// Sends back what comes, until the host closes.
fn echo(guest: &mut Guest<Registers>, connection: &mut Connection) {
    loop {
        let packet = guest.packet();
        connection.note(&packet.header);
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

/// Microseconds of each of so many round trips.
pub fn round_trips(host: &mut UnixStream, times: usize) -> Vec<f64> {
    let payload = [b'x'; PAYLOAD];
    let mut back = [0; PAYLOAD];
    let mut round_trip = || {
        let started = Instant::now();
        host.write_all(&payload).unwrap();
        host.read_exact(&mut back).unwrap();
        micros(started.elapsed())
    };
    (0..times).map(|_| round_trip()).collect()
}

fn in_process_round_trip(_: &Programs) -> Row {
    const ROUNDS: usize = 20;
    const TIMES: usize = 500;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.extend(through_the_device(TIMES));
        bare.extend(through_a_thread(TIMES));
    }
    Row::of("in-process round trip of 4 KiB / same hops, bare, us", &mut ours, &mut bare, Goal::Ratio(1.5))
}

/// From the host to the device's thread, the guest's, the device's and back.
fn through_the_device(times: usize) -> Vec<f64> {
    let mut guests = [Guest::behind_registers()];
    let _served = DeviceThread::serving(&mut guests);
    let [mut guest] = guests;
    let mut connection = connect(&mut guest);
    let mut host = connection.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| echo(&mut guest, &mut connection));
        let times = round_trips(&mut host, times);
        host.shutdown(Shutdown::Both).unwrap();
        times
    })
}

/// The floor: a thread that knows what comes next stands for the device's, and socket pairs for all else.
fn through_a_thread(times: usize) -> Vec<f64> {
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

fn sample_of_many_guests(_: &Programs) -> Row {
    const MANY: usize = 1_000;
    const SAMPLES: usize = 20_000;
    const ROUNDS: usize = 5;
    let (mut many, mut one) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(sample(1, SAMPLES));
        many.push(sample(MANY, SAMPLES));
    }
    let name = "a sample of one of 1,000 guests / of one, us of the thread";
    Row::of(name, &mut many, &mut one, Goal::Ratio(1.2))
}

/// Microseconds that the thread of all devices runs for one request and its answer.
fn sample(guests: usize, samples: usize) -> f64 {
    const REQUEST: &[u8] = b"{\"req\":\"stats\",\"args\":{}}\n";
    let answer = [b'x'; 600];
    let mut guests: Vec<_> = (0..guests).map(|_| Guest::behind_registers()).collect();
    let served = DeviceThread::serving(&mut guests);
    let mut connections: Vec<Connection> = guests.iter_mut().map(connect).collect();
    let ask = |guest: &mut Guest<Registers>, connection: &mut Connection| {
        connection.stream.write_all(REQUEST).unwrap();
        let packet = guest.packet();
        assert_eq!(packet.payload, REQUEST);
        connection.note(&packet.header);
        connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
        connection.write(guest, &answer);
        connection.stream.read_exact(&mut [0; 600]).unwrap();
    };
    // Once before it is measured: what is made at the first use is not a sample's cost.
    guests.iter_mut().zip(&mut connections).for_each(|(guest, connection)| ask(guest, connection));
    let before = served.processor_time();
    for _ in 0..samples / guests.len() {
        guests.iter_mut().zip(&mut connections).for_each(|(guest, connection)| ask(guest, connection));
    }
    micros(served.processor_time() - before) / samples as f64
}

/// The device of a guest with one idle connection; a thread that waits, as other back ends have one for each device.
fn idle_device(_: &Programs) -> Row {
    const DEVICES: usize = 1_000;
    let group = Group::enter();
    if group.is_none() {
        eprintln!("bench: idle-device: without the kernel's memory, since no control group can be made");
    }
    let held = || group.as_ref().map_or_else(resident_bytes, Group::bytes);
    // What belongs to the guest is there before.
    let drivers: Vec<Driver> = (0..DEVICES).map(|_| driver()).collect();
    let before = held();
    let devices: Vec<_> = drivers.into_iter().map(device).collect();
    let ours = held() - before;
    drop(devices);
    let threads = threads_hold(DEVICES, &held);
    let kib = |bytes: usize| bytes as f64 / DEVICES as f64 / 1024.0;
    Row::exact("idle device with a connection / a thread, KiB", kib(ours), kib(threads), Goal::Ours(64.0))
}

/// A driver whose part of guest memory is in use.
fn driver() -> Driver {
    let mut driver = Driver::new(memory());
    driver.restart();
    driver
}

/// A device that runs, and a connection that nothing goes over.
fn device(driver: Driver) -> (Guest<Registers>, Connection) {
    let memory = Arc::new(driver.memory().clone());
    let device = Device::new(CID).unwrap();
    let registers = Registers::of(|line| Mmio::new(device, memory, line)).unwrap();
    registers.initialise(&driver.addresses());
    let mut guest = Guest::attached(registers, driver);
    let connection = guest.connect_from_host(PORT);
    (guest, connection)
}

fn threads_hold(count: usize, held: &impl Fn() -> usize) -> usize {
    let before = held();
    let (there, end) = (Barrier::new(count + 1), Barrier::new(count + 1));
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                there.wait();
                end.wait();
            });
        }
        there.wait();
        let holds = held() - before;
        end.wait();
        holds
    })
}
