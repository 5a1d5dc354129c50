//! arm64 guests on this machine: the agent that the library carries, the stand-in scheduler and the whole path. The lane
//! `aarch64` of `ci/test` compiles the programs for them first.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use scx_vsock::guest::{Guest, GuestBuilder};
use scx_vsock_tests::agent::repository;
use scx_vsock_tests::guest::{output, wait_for_scheduler};

/// What `ci/kernel` prints for this kernel, a path each: image, modules, configuration, busybox.
fn builder(kernel: &str) -> GuestBuilder {
    let printed = Command::new(repository().join("ci/kernel")).arg(kernel).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let [image, modules, config, busybox] = printed.lines().collect::<Vec<_>>().try_into().unwrap();
    Guest::builder().kernel(image).modules(modules).config(config).busybox(busybox).scheduler(procsched(), &[])
}

/// The stand-in scheduler for arm64: beside this test's target folder for this machine.
fn procsched() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).map(Path::to_owned).unwrap();
    target.join("aarch64-unknown-linux-gnu/debug/procsched")
}

fn serves_its_numbers(kernel: &str) {
    let guest = builder(kernel).boot().unwrap();
    wait_for_scheduler(&guest);
    assert_eq!(String::from_utf8(output(&guest, &["uname", "-m"])).unwrap().trim_end(), "aarch64");
    let switches = |stats: serde_json::Value| stats["totals"]["ctxt"].as_u64().unwrap();
    let first = switches(guest.client().stats(&[]).unwrap());
    output(&guest, &["ls", "-R", "/sys/devices"]);
    assert!(switches(guest.client().stats(&[]).unwrap()) > first);
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test aarch64"]
fn a_guest_with_debians_stable_kernel_serves_its_numbers() {
    serves_its_numbers("stable:arm64");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test aarch64"]
fn a_guest_with_a_kernel_that_has_sched_ext_serves_its_numbers() {
    serves_its_numbers("sched-ext:arm64");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test aarch64"]
fn a_guest_with_pages_of_16_kib_serves_its_numbers() {
    serves_its_numbers("sched-ext:arm64-16k");
}
