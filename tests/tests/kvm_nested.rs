//! The device on the kernel's own KVM, in a QEMU guest that emulates an AMD processor.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use scx_vsock_tests::guest::{Kernel, builder_with_kvm};

/// The program that `tests/kvm.rs` runs on this machine.
const KVM_GUEST: &str = env!("CARGO_BIN_EXE_kvm_guest");

/// How long the program may take: several times what it needs on an idle machine, since others may be at work.
const ENDS: Duration = Duration::from_secs(300);

/// Echoes in the nested guest, which is emulated on both levels.
const ROUNDS: &str = "20";

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn notifications_and_interrupts_use_nested_kvm() {
    let guest = builder_with_kvm(Kernel::of_this_run()).program(KVM_GUEST, "/bin/kvm_guest").boot().unwrap();
    let output = guest.run_within(&["kvm_guest", ROUNDS], ENDS).unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status, 0, "{stdout}{}\n{}", String::from_utf8_lossy(&output.stderr), guest.console().text());
    assert!(stdout.starts_with(&format!("{ROUNDS} echoes, ")) && stdout.ends_with(" 0 of them as exits\n"), "{stdout}");
}
