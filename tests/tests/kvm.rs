//! The device on this machine's KVM, driven by a guest of a few instructions.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

const KVM_GUEST: &str = env!("CARGO_BIN_EXE_kvm_guest");

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn notifications_and_interrupts_use_kvm() {
    let output = Command::new(KVM_GUEST).arg("1000").output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.starts_with("1000 echoes, ") && stdout.ends_with(" 0 of them as exits\n"), "{stdout}");
}
