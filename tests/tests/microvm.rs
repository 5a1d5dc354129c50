//! The device's registers and a Linux kernel's own driver, in a QEMU guest that is a monitor for a guest of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::time::Duration;

use scx_vsock_tests::guest::{Kernel, builder};

const MICROVM: &str = env!("CARGO_BIN_EXE_microvm");
const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");
const PROCSCHED: &str = env!("CARGO_BIN_EXE_procsched");

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_linux_driver_gets_through_with_the_registers() {
    let folder = tempfile::tempdir().unwrap();
    let initramfs = folder.path().join("initramfs");
    let inner = builder().module("virtio_mmio").scheduler(PROCSCHED, &[]).program(GUEST_PEER, "/bin/guest_peer");
    fs::write(&initramfs, inner.initramfs().unwrap()).unwrap();
    let guest = builder()
        .module("kvm_amd")
        // One thread of QEMU less that kicks the processor.
        .cpus(1)
        .program(MICROVM, "/bin/microvm")
        .file(&Kernel::of_this_run().image, "/microvm/vmlinuz")
        .file(&initramfs, "/microvm/initramfs")
        .boot()
        .unwrap();
    let arguments = ["microvm", "/microvm/vmlinuz", "/microvm/initramfs"];
    let output = guest.run_within(&arguments, Duration::from_secs(330)).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status, 0, "{said}{}\n{}", String::from_utf8_lossy(&output.stderr), guest.console().text());
    println!("{said}");
}
