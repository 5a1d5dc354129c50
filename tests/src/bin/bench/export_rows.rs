//! One exporter of a thousand guests.

use std::thread;
use std::time::Duration;

use scx_vsock_tests::thousand_guests::{GUESTS, ThousandGuests};

use crate::measure::{Bench, Measure};
use crate::row::{Goal, Row};

/// The rows of this module.
pub const ALL: &[Measure] = &[
    Measure {
        name: "export-scrape",
        is_quick: false,
        bound: "Reading each guest's answer, parsing it, and writing its part of the page.",
        rows: scrape,
    },
    Measure {
        name: "export-memory",
        is_quick: false,
        bound: "Each guest's session, its newest stats and its part of the page.",
        rows: memory,
    },
];

/// The scrapes that are measured, one a second, with a read of each guest between two.
const SCRAPES: u32 = 10;

/// The processor time of the exporter for a read of each guest and a scrape. The reference is the number of guests.
fn scrape(bench: &Bench) -> Vec<Row> {
    let fleet = ThousandGuests::start(&bench.command);
    let mut times: Vec<f64> = (0..SCRAPES)
        .map(|_| {
            let before = fleet.processor_time();
            thread::sleep(Duration::from_secs(1));
            assert!(!fleet.page().is_empty());
            (fleet.processor_time() - before).as_secs_f64() * 1e3
        })
        .collect();
    let name = "read and scrape of 1,000 guests, CPU ms / guests";
    vec![Row::median(name, &mut times, &mut [GUESTS as f64], Goal::Ours(1_000.0))]
}

/// The memory of the exporter a guest, after some reads and scrapes. The reference is the page's part of a guest.
fn memory(bench: &Bench) -> Vec<Row> {
    let fleet = ThousandGuests::start(&bench.command);
    let mut page = fleet.page();
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(1));
        page = fleet.page();
    }
    let a_guest = f64::from(fleet.peak_kib()) / GUESTS as f64;
    let on_the_page = page.len() as f64 / 1024.0 / GUESTS as f64;
    let name = "memory of an exported guest / of its part of a page, KiB";
    vec![Row::exact(name, a_guest, on_the_page, Goal::Ours(128.0))]
}
