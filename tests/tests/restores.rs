//! Many connections over many restores, with the driver of any Linux, in a QEMU guest that runs a VMM with a guest of its
//! own.

use scx_vsock_tests::guest::Kernel;
use scx_vsock_tests::nested_guest::{Programs, run_microvm};

const PROGRAMS: Programs<'_> =
    Programs { microvm: env!("CARGO_BIN_EXE_microvm"), guest_peer: env!("CARGO_BIN_EXE_guest_peer") };

#[test]
#[ignore = "boots a QEMU guest; run ci/test restores"]
fn no_connection_is_lost_over_many_restores() {
    // Whatever runs in the nested guest, KVM is that of the newest kernel.
    run_microvm(PROGRAMS, &Kernel::fetched("sched-ext"), &["restores"]);
}
