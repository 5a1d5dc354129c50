//! One exporter of a thousand guests.

use std::thread;
use std::time::Duration;

use scx_vsock_tests::thousand_guests::{GUESTS, ThousandGuests};

use crate::measure::{Measure, Programs};
use crate::row::{Goal, Row};

/// The rows of this module.
pub const ALL: &[Measure] = &[("export-scrape", scrape), ("export-memory", memory)];

/// The scrapes that are measured, one a second, with a read of each guest between two.
const SCRAPES: u32 = 10;

/// The processor time of the exporter for a read of each guest and a scrape. The reference is the number of guests.
fn scrape(programs: &Programs) -> Row {
    let fleet = ThousandGuests::start(&programs.command);
    let before = fleet.processor_time();
    for _ in 0..SCRAPES {
        thread::sleep(Duration::from_secs(1));
        assert!(!fleet.page().is_empty());
    }
    let each = (fleet.processor_time() - before).as_secs_f64() * 1e3 / f64::from(SCRAPES);
    Row::exact("read and scrape of 1,000 guests, CPU ms / guests", each, GUESTS as f64, Goal::Ours(1_000.0))
}

/// The memory of the exporter a guest, after some reads and scrapes. The reference is the page's part of a guest.
fn memory(programs: &Programs) -> Row {
    let fleet = ThousandGuests::start(&programs.command);
    let mut page = fleet.page();
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(1));
        page = fleet.page();
    }
    let a_guest = f64::from(fleet.peak_kib()) / GUESTS as f64;
    let on_the_page = page.len() as f64 / 1024.0 / GUESTS as f64;
    Row::exact("memory of an exported guest / of its part of a page, KiB", a_guest, on_the_page, Goal::Ours(128.0))
}
