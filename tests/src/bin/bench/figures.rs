//! The plots of the page: round trips by the answer's size, and the cost by the number of guests.

use crate::device_rows::{bare_per_sample, cpu_per_sample};
use crate::figure::{Figure, Plot};
use crate::measure::Bench;
use crate::measured_guests::{OurGuest, PeerGuest};
use crate::row::quantile;

/// The name of a plot's measurement, and the function that makes it.
pub type Draw = (&'static str, fn(&Bench) -> Figure);

/// The plots.
pub const ALL: &[Draw] = &[("answer-sizes", answer_sizes), ("guest-counts", guest_counts)];

/// Runs, in turn.
const RUNS: usize = 5;

fn medians(lines: Vec<Vec<Vec<f64>>>) -> Vec<Vec<f64>> {
    let median = |mut runs: Vec<f64>| {
        runs.sort_by(f64::total_cmp);
        quantile(&runs, 0.5)
    };
    lines.into_iter().map(|line| line.into_iter().map(median).collect()).collect()
}

fn named(names: &[&'static str], numbers: Vec<Vec<f64>>) -> Vec<(&'static str, Vec<f64>)> {
    names.iter().copied().zip(numbers).collect()
}

fn answer_sizes(bench: &Bench) -> Figure {
    const SIZES: [(usize, &str); 4] =
        [(600, "600 B"), (3 * 1024, "3 KiB"), (64 * 1024, "64 KiB"), (256 * 1024, "256 KiB")];
    const TIMES: usize = 100;
    let (ours, peer) = (OurGuest::boot(), PeerGuest::boot(bench));
    let mut lines = vec![vec![Vec::new(); SIZES.len()]; 4];
    for _ in 0..bench.runs(RUNS) {
        for (index, (bytes, _)) in SIZES.into_iter().enumerate() {
            lines[0][index].push(ours.round_trip(bytes, TIMES));
            lines[1][index].push(peer.round_trip(bytes, TIMES));
            lines[2][index].push(peer.serial_round_trip(bytes, TIMES));
            lines[3][index].push(ours.inside(bytes, TIMES));
        }
    }
    let names = ["scx-vsock", "vhost-device-vsock + socat", "virtio-serial + std relay", "inside the guest"];
    let plot = Plot {
        file: "performance-answers.svg",
        title: "Round trip through QEMU by the answer's size",
        bound: "A small answer waits for wake-ups. A large one is copied: by the scheduler and the agent into sockets, by the \
                guest's driver into packets of 64 KiB at most, and by the device into the host's socket.",
        across: "answer",
        upwards: "us",
        positions: SIZES.iter().map(|(bytes, label)| (*bytes as f64, *label)).collect(),
        lines: named(&names, medians(lines)),
    };
    plot.figure()
}

fn guest_counts(bench: &Bench) -> Figure {
    const COUNTS: [(usize, &str); 4] = [(1, "1"), (10, "10"), (100, "100"), (1_000, "1,000")];
    const SAMPLES: usize = 20_000;
    let mut lines = vec![vec![Vec::new(); COUNTS.len()]; 2];
    for _ in 0..bench.runs(RUNS) {
        for (index, (guests, _)) in COUNTS.into_iter().enumerate() {
            lines[0][index].push(cpu_per_sample(guests, SAMPLES));
            lines[1][index].push(bare_per_sample(guests, SAMPLES));
        }
    }
    let plot = Plot {
        file: "performance-guests.svg",
        title: "CPU time of the devices' thread per sample by the number of guests",
        bound: "System calls, and with many guests the processor's caches: each sample is of another guest, whose rings, \
                buffers and sockets were last touched as many samples ago as there are guests.",
        across: "guests on one thread",
        upwards: "us",
        positions: COUNTS.iter().map(|(guests, label)| (*guests as f64, *label)).collect(),
        lines: named(&["in-process devices", "bare socket pairs"], medians(lines)),
    };
    plot.figure()
}
