//! Released sched_ext schedulers, and the domains that they say they have.

use std::path::PathBuf;
use std::process::Command;

use crate::agent::repository;

/// Arguments with which scx_lavd prints its compute domains.
pub const LAVD_SHOWS_DOMAINS: [&str; 2] = ["--log-level", "info,scx_lavd=debug"];

/// Returns the scheduler that `ci/scheduler` builds by this name.
///
/// # Panics
///
/// When it builds none.
#[must_use]
pub fn fetched_scheduler(name: &str) -> PathBuf {
    let built = Command::new(repository().join("ci/scheduler")).arg(name).output().expect("ci/scheduler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8(built.stdout).expect("a path").trim().into()
}

/// Returns the processors of each of scx_rusty's domains, as bits: its log has lines such as ` DOM[00] mask= 00000003`.
///
/// # Panics
///
/// If a line is another one.
#[must_use]
pub fn rusty_domains(log: &str) -> Vec<u64> {
    let mask = |line: &str| {
        let mask = line.split_once("mask=").expect("a mask").1.trim().trim_start_matches("0x");
        u64::from_str_radix(mask, 16).expect("a number")
    };
    log.lines().filter(|line| line.contains(" DOM[")).map(mask).collect()
}

/// Returns how many compute domains scx_lavd has: its log has a line `nr_cpdoms: 2,`.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn lavd_domains(log: &str) -> usize {
    let number =
        log.lines().find_map(|line| line.trim().strip_prefix("nr_cpdoms: ")?.trim_end_matches(',').parse().ok());
    number.unwrap_or_else(|| panic!("no number of domains: {log}"))
}
