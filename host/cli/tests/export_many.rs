//! `scx-vsock export` with a thousand guests: its processor time, its memory, and its page as promtool reads it.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use scx_vsock_tests::thousand_guests::{GUESTS, ThousandGuests};

/// Reads of all guests, and scrapes.
const SCRAPES: u32 = 5;

/// KiB of a guest that is as large as scx_bpfland's, as the guide states it.
const GUEST_KIB: usize = 128;

#[test]
#[ignore = "reads 1,000 guests and needs promtool; run ci/test fleet"]
fn a_thousand_guests_cost_less_than_a_second_a_scrape() {
    let fleet = ThousandGuests::start(Path::new(env!("CARGO_BIN_EXE_scx-vsock")));
    let before = fleet.processor_time();
    let mut page = String::new();
    for _ in 0..SCRAPES {
        // Each guest is read meanwhile.
        thread::sleep(Duration::from_secs(1));
        page = fleet.page();
    }
    let each = (fleet.processor_time() - before) / SCRAPES;
    let peak = fleet.peak_kib();
    eprintln!("{each:?} of processor time a read and scrape, at most {peak} KiB, a page of {} bytes", page.len());
    assert!(each < Duration::from_secs(1), "{each:?}");
    assert!(usize::try_from(peak).unwrap() < GUESTS * GUEST_KIB, "{peak} KiB");
    let mut promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success(), "promtool refuses the page");
}
