//! The device in the VMM's process, against bare sockets and threads.

use std::io::{Read as _, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use scx_vsock::transport::mmio::Mmio;
use scx_vsock::vsock::Device;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::test_util::{
    MAX_PACKET_BYTES, Packet, QUEUE_SIZE, RX_BUFFERS, SimulatedDriver, TX_BUFFERS, guest_memory,
};
use scx_vsock_tests::cgroup::Group;
use scx_vsock_tests::device_thread::DeviceThread;
use scx_vsock_tests::guest_driver::{CID, Connection, Guest};
use scx_vsock_tests::mmio_driver::Registers;
use scx_vsock_tests::peer::DEADLINE;
use vm_memory::{Bytes, GuestAddress};

use crate::bare_pairs::{BarePair, CopyingThread};
use crate::measure::{Bench, Measure, micros};
use crate::processors::{Side, on};
use crate::round_trips::{PAYLOAD, read_polled, round_trips};
use crate::row::{Goal, Row, quantile};

/// The rows of this module.
pub const ALL: &[Measure] = &[
    Measure {
        name: "in-process",
        is_quick: true,
        bound: "Wake-ups of threads and system calls on the host's socket; the device adds its rings and headers. Its thread \
                has a processor, and guest and program share another.",
        rows: in_process_round_trip,
    },
    Measure {
        name: "connect-loop",
        is_quick: true,
        bound: "The receive queue, which a device cannot reorder: what waits in it goes first. Resets and the answer take \
                turns for what is free.",
        rows: beside_a_connect_loop,
    },
    Measure {
        name: "many-guests",
        is_quick: true,
        bound: "Wake-ups of the guest and of the program, which share another processor; system calls, two more than bare \
                pairs need; and the processor's caches: each sample is of another guest, whose rings and sockets were last \
                touched a thousand samples ago. Where processors poll instead of sleeping, so that a wake-up costs little, it \
                is 1.9 times bare pairs.",
        rows: many_guests,
    },
    Measure {
        name: "idle-device",
        is_quick: true,
        bound: "The kernel's memory for a connection's socket pair, an epoll instance and two event descriptors.",
        rows: idle_device,
    },
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

fn in_process_round_trip(bench: &Bench) -> Vec<Row> {
    const ROUNDS: usize = 20;
    const TIMES: usize = 500;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(ROUNDS) {
        on(Side::Others, || {
            ours.extend(device_round_trips(TIMES, echo));
            bare.extend(bare_round_trips(TIMES));
        });
    }
    let name = "in-process device, 4 KiB round trip / bare socket pairs, us";
    vec![Row::median(name, &mut ours, &mut bare, Goal::Ratio(1.2))]
}

/// Round trips from the host by the device's thread to the guest's thread and back, where the guest does this with its
/// connection until the host closes.
fn device_round_trips(times: usize, serve: impl Fn(&mut Guest<Registers>, &mut Connection) + Sync) -> Vec<f64> {
    let mut guests = [Guest::behind_registers()];
    let _served = on(Side::Device, || DeviceThread::serving(&mut guests));
    let [mut guest] = guests;
    let mut connection = connect(&mut guest);
    let mut host = connection.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| serve(&mut guest, &mut connection));
        let times = round_trips(&mut host, PAYLOAD, times);
        host.shutdown(Shutdown::Both).unwrap();
        times
    })
}

/// Packets that the guest of a connect loop takes before it notifies the device and its client looks for the answer.
const TURN: usize = 16;

/// Connects that the loop keeps outstanding: as many as there are receive buffers, and a turn's, so that there is always an
/// RST that waits for a buffer, and that the device could prefer to a request.
const OUTSTANDING: usize = QUEUE_SIZE as usize + TURN;

/// The port of the process' first connect.
const FIRST_LOOP_PORT: u32 = 1 << 16;

/// Repetitions of a round.
const LOOP_ROUNDS: usize = 20;

/// Where the guest's REQUEST packets are: close to each other, as a kernel allocates them.
const CONNECTS: u64 = TX_BUFFERS + QUEUE_SIZE as u64 * MAX_PACKET_BYTES as u64;

/// Bytes of memory for one of them.
const CONNECT_STRIDE: u64 = 64;

/// An agent's requests while a process of the guest connects to a closed port in a loop, against alone.
///
/// The rings are queues that the device cannot reorder: were all connects answered at once, a request would go around with
/// each of them. The guest does little for a packet, and the client shares its thread, since with a thread each the
/// kernel's scheduler decides where two processors are busy.
fn beside_a_connect_loop(bench: &Bench) -> Vec<Row> {
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(LOOP_ROUNDS) {
        beside.push(loop_round(OUTSTANDING));
        alone.push(loop_round(0));
    }
    let name = "request beside a guest's connect loop / alone, p99 us";
    vec![Row::median(name, &mut beside, &mut alone, Goal::Ratio(2.0))]
}

/// Returns the 99th percentile, in microseconds, of requests to an agent in a guest that keeps so many connects to a closed
/// port outstanding.
fn loop_round(outstanding: usize) -> f64 {
    const TIMES: usize = 1_000;
    let mut guests = [Guest::behind_registers()];
    let _served = DeviceThread::serving(&mut guests);
    let [mut guest] = guests;
    let connection = connect(&mut guest);
    connection.stream.set_nonblocking(true).unwrap();
    let mut looping = LoopingGuest { guest, connection, wanted: outstanding, asked: 0, refused: 0 };
    let mut times: Vec<f64> = (0..TIMES).map(|_| micros(looping.request())).collect();
    assert!(outstanding == 0 || looping.refused > 0, "the loop runs");
    times.sort_by(f64::total_cmp);
    quantile(&times, 0.99)
}

/// A guest whose agent answers, while a process connects anew for each connect that is refused.
struct LoopingGuest {
    guest: Guest<Registers>,
    connection: Connection,
    /// Connects that the process is to ask for.
    wanted: usize,
    /// Those that it has asked for.
    asked: usize,
    /// Those that were refused.
    refused: usize,
}

impl LoopingGuest {
    /// Returns the time from a request of the host to its answer.
    fn request(&mut self) -> Duration {
        let started = Instant::now();
        (&self.connection.stream).write_all(&[b'x'; PAYLOAD]).unwrap();
        let mut missing = PAYLOAD;
        while missing > 0 {
            assert!(started.elapsed() < DEADLINE, "no answer within {DEADLINE:?}");
            if self.turn() == 0 {
                self.guest.device.wait_or(&self.guest, &self.connection.stream);
            }
            missing -= self.connection.read_some(missing);
        }
        started.elapsed()
    }

    /// Takes a few packets, and sends what follows from them. Returns how many there were.
    fn turn(&mut self) -> usize {
        let mut taken = 0;
        while taken < TURN
            && let Some(packet) = self.guest.receive()
        {
            self.on_packet(&packet);
            taken += 1;
        }
        while self.wanted > 0 && self.connect_again() {}
        self.guest.service();
        taken
    }

    /// Returns false if the transmit queue is full.
    fn connect_again(&mut self) -> bool {
        let number = self.asked;
        let header = Guest::header(Operation::Request, FIRST_LOOP_PORT + number as u32, PORT + 1);
        // More places than the queue has.
        let place = CONNECTS + CONNECT_STRIDE * (number % (2 * QUEUE_SIZE as usize)) as u64;
        self.guest.memory().write_slice(&header.emit(), GuestAddress(place)).unwrap();
        let queued = self.guest.queue_pieces(&[(place, Header::BYTES as u32)]);
        if queued {
            self.wanted -= 1;
            self.asked += 1;
        }
        queued
    }

    fn on_packet(&mut self, packet: &Packet) {
        match packet.operation() {
            Operation::Rst => {
                self.refused += 1;
                self.wanted += 1;
            }
            Operation::ReadWrite => {
                let connection = &mut self.connection;
                connection.on_packet(&packet.header);
                connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
                answer(&mut self.guest, connection, &packet.payload);
            }
            _ => self.connection.on_packet(&packet.header),
        }
    }
}

/// Sends the answer as soon as the transmit queue has room.
fn answer(guest: &mut Guest<Registers>, connection: &mut Connection, payload: &[u8]) {
    let len = u32::try_from(payload.len()).unwrap();
    let header = Header { len, ..connection.header(Operation::ReadWrite) };
    while !guest.queue_packet(&header, payload) {
        guest.take_sent();
    }
    connection.sent = connection.sent.wrapping_add(len);
}

/// The floor: a thread that copies in a fixed order in place of the device's, with socket pairs on both sides.
fn bare_round_trips(times: usize) -> Vec<f64> {
    let (mut host, mut outer) = UnixStream::pair().unwrap();
    let (mut inner, mut guest) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let copy = move || {
            let mut bytes = [0; PAYLOAD];
            for _ in 0..times {
                read_polled(&mut outer, &mut bytes);
                inner.write_all(&bytes).unwrap();
                read_polled(&mut inner, &mut bytes);
                outer.write_all(&bytes).unwrap();
            }
        };
        on(Side::Device, || scope.spawn(copy));
        scope.spawn(move || {
            let mut bytes = [0; PAYLOAD];
            for _ in 0..times {
                read_polled(&mut guest, &mut bytes);
                guest.write_all(&bytes).unwrap();
            }
        });
        round_trips(&mut host, PAYLOAD, times)
    })
}

fn many_guests(bench: &Bench) -> Vec<Row> {
    const MANY: usize = 1_000;
    const SAMPLES: usize = 20_000;
    const ROUNDS: usize = 5;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(ROUNDS) {
        on(Side::Others, || {
            bare.push(bare_per_sample(MANY, SAMPLES));
            ours.push(cpu_per_sample(MANY, SAMPLES));
        });
    }
    let name = "sample of each of 1,000 guests / bare socket pairs, thread us";
    vec![Row::median(name, &mut ours, &mut bare, Goal::Ratio(1.3))]
}

/// A request and an answer of a usual size.
const REQUEST: &[u8] = b"{\"req\":\"stats\",\"args\":{}}\n";
const ANSWER: [u8; 600] = [b'x'; 600];

/// Returns the CPU microseconds of a thread per sample, where it copies between socket pairs in place of devices.
pub fn bare_per_sample(guests: usize, samples: usize) -> f64 {
    let (mut pairs, served) = on(Side::Device, || CopyingThread::serving(guests));
    let exchange = |BarePair { host, guest }: &mut BarePair| {
        host.write_all(REQUEST).unwrap();
        guest.read_exact(&mut [0; REQUEST.len()]).unwrap();
        guest.write_all(&ANSWER).unwrap();
        host.read_exact(&mut [0; ANSWER.len()]).unwrap();
    };
    pairs.iter_mut().for_each(exchange);
    let before = served.processor_time();
    for _ in 0..samples / guests {
        pairs.iter_mut().for_each(exchange);
    }
    let took = served.processor_time() - before;
    drop(pairs);
    served.join();
    micros(took) / samples as f64
}

/// Touches each receive buffer, as a guest has long done that has run for a while: the first touch of a page costs as much as
/// a sample.
fn make_buffers_resident(guest: &Guest<Registers>) {
    let stride = (TX_BUFFERS - RX_BUFFERS) / u64::from(QUEUE_SIZE);
    for number in 0..u64::from(QUEUE_SIZE) {
        guest.memory().write_slice(&[0], GuestAddress(RX_BUFFERS + number * stride)).unwrap();
    }
}

/// Returns the CPU microseconds of the devices' thread per sample: one request and its answer.
pub fn cpu_per_sample(guests: usize, samples: usize) -> f64 {
    let mut guests: Vec<_> = (0..guests).map(|_| Guest::behind_registers()).collect();
    guests.iter().for_each(make_buffers_resident);
    let served = on(Side::Device, || DeviceThread::serving(&mut guests));
    let mut connections: Vec<Connection> = guests.iter_mut().map(connect).collect();
    let exchange = |guest: &mut Guest<Registers>, connection: &mut Connection| {
        connection.stream.write_all(REQUEST).unwrap();
        let packet = guest.packet();
        assert_eq!(packet.payload, REQUEST);
        connection.on_packet(&packet.header);
        connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
        connection.write(guest, &ANSWER);
        connection.stream.read_exact(&mut [0; ANSWER.len()]).unwrap();
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
fn idle_device(_: &Bench) -> Vec<Row> {
    const DEVICES: usize = 1_000;
    let group = Group::enter().expect("a cgroup, which measures kernel memory, can be made: run this as root");
    let used = || group.bytes();
    // The guest's own memory is in use before the first measurement.
    let drivers: Vec<SimulatedDriver> = (0..DEVICES).map(|_| driver()).collect();
    let before = used();
    let devices: Vec<_> = drivers.into_iter().map(device).collect();
    let ours = used() - before;
    drop(devices);
    let threads = memory_of_threads(DEVICES, &used);
    let kib = |bytes: usize| bytes as f64 / DEVICES as f64 / 1024.0;
    let name = "idle in-process device with a connection / a thread, KiB";
    vec![Row::exact(name, kib(ours), kib(threads), Goal::Ours(64.0))]
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
