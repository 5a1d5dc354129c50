//! `scx-vsock serve` against vhost-device-vsock, both as processes that serve the same simulated guest.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::test_util::TX_BUFFERS;
use scx_vsock_tests::back_end::BackEnd;
use scx_vsock_tests::front_end::FrontEnd;
use scx_vsock_tests::guest_driver::Connection;
use scx_vsock_tests::peer::Peer;
use vm_memory::{Bytes, GuestAddress};

use crate::measure::{Bench, Measure, micros};
use crate::processors::{Side, on};
use crate::round_trips::{PAYLOAD, round_trips};
use crate::row::{Goal, Row};
use crate::system_calls;

/// The rows of this module.
pub const ALL: &[Measure] = &[
    Measure {
        name: "back-end-round-trip",
        is_quick: true,
        bound: "Wake-ups of the device's thread, which has a processor, and of the guest and the host's program, which share \
                another. The header makes request and answer longer than a buffer, so that each comes as two packets.",
        rows: round_trip,
    },
    Measure {
        name: "back-end-small-round-trip",
        is_quick: true,
        bound: "Wake-ups of the device's thread, which has a processor, and of the guest and the host's program, which share \
                another.",
        rows: small_round_trip,
    },
    Measure {
        name: "back-end-throughput",
        is_quick: true,
        bound: "The kernel's copy of each byte into the host's socket and out of it.",
        rows: throughput,
    },
    Measure {
        name: "back-end-system-calls",
        is_quick: true,
        bound: "Two waits; a read of the host's socket, which fills the buffers of both packets, and a write; and an interrupt \
                written for each queue. Tracing slows each call down, so that what comes soon after another comes later than \
                it would.",
        rows: system_calls_per_round_trip,
    },
];

/// A simulated guest with its back end, and a program of the host that is connected to the guest.
struct Connected {
    front_end: FrontEnd,
    connection: Connection,
    host: Peer,
    back_end: BackEnd,
}

impl Connected {
    fn through(back_end: BackEnd) -> Self {
        let mut front_end = FrontEnd::new(back_end.connect());
        // The back end answers this once its rings run: vhost-device-vsock loses a connection that comes earlier.
        let _config = front_end.config();
        let (host, connection) = front_end.accept(&back_end.hybrid());
        Self { front_end, connection, host, back_end }
    }

    fn both(bench: &Bench) -> [Self; 2] {
        on(Side::Device, || [BackEnd::serve(&bench.command), BackEnd::vhost_device_vsock()]).map(Self::through)
    }

    fn host(&self) -> UnixStream {
        self.host.stream().try_clone().unwrap()
    }
}

/// Measures both back ends in turn, `rounds` times.
fn compare(
    bench: &Bench,
    name: &'static str,
    rounds: usize,
    goal: Goal,
    measure: impl Fn(&mut Connected) -> Vec<f64>,
) -> Vec<Row> {
    let mut both = Connected::both(bench);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..bench.runs(rounds) {
        for (connected, times) in both.iter_mut().zip(&mut times) {
            times.extend(on(Side::Others, || measure(connected)));
        }
    }
    let [mut ours, mut theirs] = times;
    vec![Row::median(name, &mut ours, &mut theirs, goal)]
}

/// System calls of the device's process, by a trace. Its other threads wait meanwhile.
fn system_calls_per_round_trip(bench: &Bench) -> Vec<Row> {
    const TIMES: usize = 500;
    const RUNS: usize = 5;
    /// For each direction a wait, an interrupt, and one call that reads or writes the payload of both packets.
    const NEED: f64 = 6.0;
    let mut connected = Connected::through(on(Side::Device, || BackEnd::serve(&bench.command)));
    let device = connected.back_end.id();
    let mut calls = || {
        let work = || drop(on(Side::Others, || echo_round_trips(&mut connected, PAYLOAD, TIMES)));
        system_calls::during(device, work) / TIMES as f64
    };
    let mut ours: Vec<f64> = (0..bench.runs(RUNS)).map(|_| calls()).collect();
    let name = "vhost-user back end, system calls per 4 KiB round trip / need";
    vec![Row::median(name, &mut ours, &mut [NEED], Goal::Ours(8.0))]
}

fn round_trip(bench: &Bench) -> Vec<Row> {
    let name = "vhost-user back end, 4 KiB round trip / vhost-device-vsock, us";
    compare(bench, name, 20, Goal::Ratio(0.4), |connected| echo_round_trips(connected, PAYLOAD, 500))
}

fn small_round_trip(bench: &Bench) -> Vec<Row> {
    let name = "vhost-user back end, 64 B round trip / vhost-device-vsock, us";
    compare(bench, name, 20, Goal::Ratio(0.4), |connected| echo_round_trips(connected, 64, 500))
}

/// Returns the microseconds of each of `times` round trips of so many bytes through the guest, which echoes.
fn echo_round_trips(connected: &mut Connected, bytes: usize, times: usize) -> Vec<f64> {
    let mut host = connected.host();
    let Connected { front_end, connection, .. } = connected;
    let mut left = times * bytes;
    thread::scope(|scope| {
        scope.spawn(move || {
            while left > 0 {
                let packet = front_end.packet();
                connection.on_packet(&packet.header);
                if packet.operation() == Operation::ReadWrite {
                    left -= packet.payload.len();
                    connection.fwd_cnt = connection.fwd_cnt.wrapping_add(packet.header.len);
                    let header = Header { len: packet.header.len, ..connection.header(Operation::ReadWrite) };
                    connection.sent = connection.sent.wrapping_add(header.len);
                    front_end.send(&header, &packet.payload);
                }
            }
        });
        round_trips(&mut host, bytes, times)
    })
}

/// The payload of a packet, in bytes.
const PACKET: u32 = 64 * 1024;

fn throughput(bench: &Bench) -> Vec<Row> {
    let name = "vhost-user back end, 256 MiB in 64 KiB / vhost-device-vsock, us";
    compare(bench, name, 7, Goal::Ratio(1.0 / 3.0), |connected| vec![transfer(connected, 4096)])
}

/// Returns the microseconds until the host has read `packets` packets, which the guest sends as credit allows.
fn transfer(connected: &mut Connected, packets: usize) -> f64 {
    let mut host = connected.host();
    let Connected { front_end, connection, .. } = connected;
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || send(front_end, connection, packets));
        let mut left = packets * PACKET as usize;
        let mut bytes = vec![0; 4 * PACKET as usize];
        while left > 0 {
            let count = host.read(&mut bytes).unwrap();
            assert!(count > 0, "the connection ended {left} bytes before the end");
            left -= count;
        }
    });
    micros(started.elapsed())
}

/// Sends packets whose payload is in guest memory already, so that the back end does most of the work.
fn send(front_end: &mut FrontEnd, connection: &mut Connection, packets: usize) {
    let payload = TX_BUFFERS + 0x10_0000;
    let mut sent = 0;
    while sent < packets {
        front_end.driver.take_sent();
        let before = sent;
        let mut received = false;
        while let Some(packet) = front_end.driver.receive() {
            connection.on_packet(&packet.header);
            received = true;
        }
        while sent < packets && connection.credit() >= PACKET {
            let header = Header { len: PACKET, ..connection.header(Operation::ReadWrite) };
            // More headers than descriptors: the one that is written is not in use.
            let place = TX_BUFFERS + 64 * (sent as u64 % 1024);
            front_end.driver.memory().write_slice(&header.emit(), GuestAddress(place)).unwrap();
            if !front_end.driver.queue_pieces(&[(place, Header::BYTES as u32), (payload, PACKET)]) {
                break;
            }
            connection.sent = connection.sent.wrapping_add(PACKET);
            sent += 1;
        }
        if sent > before {
            front_end.notify();
        } else if !received {
            front_end.wait();
        }
    }
}
