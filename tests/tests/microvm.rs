//! The device's mmio registers and Linux's own driver, in a QEMU guest that runs a VMM with a guest of its own.

use scx_vsock_tests::guest::Kernel;
use scx_vsock_tests::nested_guest::{Programs, run_microvm};

const PROGRAMS: Programs<'_> =
    Programs { microvm: env!("CARGO_BIN_EXE_microvm"), guest_peer: env!("CARGO_BIN_EXE_guest_peer") };

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_linux_driver_works_with_the_mmio_registers() {
    run_microvm(PROGRAMS, Kernel::of_this_run(), &[]);
}
