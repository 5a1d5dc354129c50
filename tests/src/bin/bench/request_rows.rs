//! What a request to a QEMU guest costs in packets, interrupts and notifications, by the device's counters. None of it
//! depends on how fast the machine is.

use std::thread;
use std::time::Duration;

use scx_vsock::SchedStatsClient;
use scx_vsock::guest::Guest;

use crate::measure::{Bench, Measure};
use crate::measured_guests::{BOOTS, image, request};
use crate::row::{Goal, Row};

/// The rows of this module.
pub const ALL: &[Measure] = &[Measure {
    name: "request-counts",
    is_quick: true,
    bound: "A request is one packet into the guest, with one interrupt, and its answer one packet out, with one notification. \
            Linux's driver asks for an interrupt when the device has taken the answer, too, so that there are two. A packet \
            that only gives credit comes after each KiB of requests.",
    rows,
}];

/// Bytes of an answer.
const ANSWER: usize = 600;

/// The runs of each pace, in turn.
const RUNS: usize = 5;

/// Requests of a run, back to back and one a second.
const REQUESTS: [(u32, Duration); 2] = [(300, Duration::ZERO), (5, Duration::from_secs(1))];

/// How long an idle device takes at most until its counters have the last request: the answer comes before them.
const SETTLED: Duration = Duration::from_millis(200);

/// The names of the rows, what a request needs, and the goal.
const ROWS: [[(&str, f64, f64); 3]; 2] = [
    [
        ("600 B request through QEMU, packets / need", 2.0, 2.1),
        ("600 B request through QEMU, interrupts into the guest / need", 1.0, 1.3),
        ("600 B request through QEMU, notifications out of it / need", 1.0, 1.3),
    ],
    [
        ("600 B request through QEMU, one a second, packets / need", 2.0, 2.1),
        ("600 B request through QEMU, one a second, interrupts / need", 1.0, 1.3),
        ("600 B request through QEMU, one a second, notifications / need", 1.0, 1.3),
    ],
];

fn rows(bench: &Bench) -> Vec<Row> {
    let guest = image().boot().unwrap();
    let client = guest.client();
    client.wait_for_scheduler(BOOTS).unwrap();
    let mut counts: [[Vec<f64>; 3]; 2] = Default::default();
    for _ in 0..bench.runs(RUNS) {
        for ((times, pace), counts) in REQUESTS.into_iter().zip(&mut counts) {
            let run = count(&guest, &client, times, pace);
            counts.iter_mut().zip(run).for_each(|(counts, count)| counts.push(count));
        }
    }
    let rows = ROWS.into_iter().flatten().zip(counts.iter_mut().flatten());
    rows.map(|((name, need, most), counts)| Row::median(name, counts, &mut [need], Goal::Ours(most))).collect()
}

/// Returns the packets, interrupts and notifications of a request, of so many requests with a pause before each.
fn count(guest: &Guest, client: &SchedStatsClient, times: u32, pause: Duration) -> [f64; 3] {
    let (before, to_guest) = (settled(guest), packets_to(guest));
    for _ in 0..times {
        thread::sleep(pause);
        assert!(client.request_raw(request(ANSWER).trim_end().as_bytes()).unwrap().len() >= ANSWER - 1);
    }
    let after = settled(guest);
    let each = |index: usize| (after[index] - before[index]) as f64 / f64::from(times);
    let into = (packets_to(guest) - to_guest) as f64 / f64::from(times);
    eprintln!("bench: packets a request: {into:.2} into the guest, {:.2} out of it", each(0) - into);
    [each(0), each(1), each(2)]
}

fn packets_to(guest: &Guest) -> u64 {
    guest.handle().counters().to_guest.packets
}

/// Returns the counters of an idle device.
fn settled(guest: &Guest) -> [u64; 3] {
    thread::sleep(SETTLED);
    let counters = guest.handle().counters();
    [counters.from_guest.packets + counters.to_guest.packets, counters.interrupts, counters.notifications]
}
