//! The device's mmio registers and Linux's own driver, in a QEMU guest that runs a VMM with a guest of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::time::Duration;

use scx_vsock_tests::guest::{Kernel, builder, builder_with_kvm};
use scx_vsock_tests::microvm::STUCK;
use scx_vsock_tests::program;

const MICROVM: &str = env!("CARGO_BIN_EXE_microvm");
const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");

/// How long the program may take. It has a limit of its own.
const ENDS: Duration = Duration::from_secs(270);

/// How often the guest is booted when the emulated processor fails.
const ATTEMPTS: usize = 3;

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_linux_driver_works_with_the_mmio_registers() {
    let folder = tempfile::tempdir().unwrap();
    let initramfs = folder.path().join("initramfs");
    let inner = builder()
        .module("virtio_mmio")
        .scheduler(program::built("procsched"), &[])
        .program(GUEST_PEER, "/bin/guest_peer");
    fs::write(&initramfs, inner.initramfs().unwrap()).unwrap();
    let guest = builder_with_kvm()
        // One thread of QEMU less that interrupts the processor.
        .cpus(1)
        .program(MICROVM, "/bin/microvm")
        .file(&Kernel::of_this_run().image, "/microvm/vmlinuz")
        .file(&initramfs, "/microvm/initramfs")
        .boot()
        .unwrap();
    for attempt in 1.. {
        let output = guest.run_within(&["microvm", "/microvm/vmlinuz", "/microvm/initramfs"], ENDS).unwrap();
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        println!("{stdout}{stderr}");
        // This failure is the emulator's, which no device can cause.
        if output.status == 0 || attempt == ATTEMPTS || !stderr.contains(STUCK) {
            assert_eq!(output.status, 0, "{}", guest.console().text());
            break;
        }
    }
}
