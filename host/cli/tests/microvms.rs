//! `scx-vsock boot` with a microVM: on nested KVM, in a QEMU guest that emulates an AMD processor; and why there is none.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use scx_vsock_tests::nested_guest::{OUTER_MODULES, outer_guest};
use scx_vsock_tests::program;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

/// How long the command may take: several times what it needs on an idle machine, since others may be at work.
const ENDS: Duration = Duration::from_secs(300);

/// What a kernel that is none has of a bzImage: its magic at its offset.
fn bzimage() -> Vec<u8> {
    [&[0; 0x202][..], b"HdrS"].concat()
}

#[test]
fn what_keeps_a_guest_from_being_a_microvm_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, config) = (folder.path().join("vmlinuz"), folder.path().join("config"));
    fs::write(&kernel, bzimage()).unwrap();
    let boot = |arguments: &[&str]| {
        let mut command = Command::new(COMMAND);
        command.args(["boot", "--vmm", "microvm", "--kernel"]).arg(&kernel).args(arguments);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("scx-vsock: booting")).collect();
        assert_eq!((lines.len(), output.status.code()), (1, Some(1)), "{stderr}");
        lines[0].to_owned()
    };
    // Whatever KVM is like here, this is no kernel.
    boot(&[]);
    fs::write(&config, "CONFIG_ACPI=y\nCONFIG_SERIAL_8250_CONSOLE=y\n").unwrap();
    let modules = folder.path().join("6.1.0");
    let line = boot(&["--config", config.to_str().unwrap(), "--modules", modules.to_str().unwrap()]);
    let expected = "scx-vsock: the guest cannot be a microVM (--vmm qemu or GuestBuilder::vmm(Vmm::Qemu) takes QEMU): the \
                    kernel's configuration does not set CONFIG_VIRTIO_MMIO";
    assert_eq!(line, expected);
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn boot_takes_a_microvm_where_kvm_runs_linux() {
    let guest = outer_guest().program(COMMAND, "/bin/scx-vsock").program(program::built("procsched"), "/bin/procsched");
    let guest = guest.boot().unwrap();
    let boot =
        "scx-vsock boot --kernel /microvm/vmlinuz --scheduler procsched --memory 256 --cpus 2 --samples 2 --jsonl";
    let command: Vec<&str> = boot.split(' ').chain(["--modules", OUTER_MODULES]).collect();
    let output = guest.run_within(&command, ENDS).unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    println!("{stderr}{stdout}");
    assert_eq!(output.status, 0, "{stderr}");
    assert!(stderr.contains("scx-vsock: on a microVM: KVM runs Linux here\n"), "{stderr}");
    assert_eq!(stdout.lines().filter(|line| line.contains("\"ctxt\"")).count(), 2, "{stdout}");
}
