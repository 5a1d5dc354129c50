//! The device and the microVM on this machine's KVM, driven by guests of a few instructions.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::Duration;

use scx_vsock::guest::microvm::test_util::CODE;
use scx_vsock::guest::microvm::{KvmUnusable, Outcome, PROBE_TIMEOUT, ProbeStep, probe};
use scx_vsock_tests::held_resources::descriptors_and_threads;
use scx_vsock_tests::small_guest::{LONG, Output, guest};

const KVM_GUEST: &str = env!("CARGO_BIN_EXE_kvm_guest");

/// `mov dx, PORT; mov al, VALUE; out dx, al`
fn write_port(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn power_off() -> Vec<u8> {
    write_port(0x600, 0x34)
}

/// `jmp $`
const FOREVER: [u8; 2] = [0xeb, 0xfe];

/// A guest that prints this text on its console, and goes on with `then`.
fn print(text: &str, then: &[u8]) -> Vec<u8> {
    // mov esi, TEXT; mov dx, 0x3f8; 1: lodsb; test al, al; jz 2f; out dx, al; jmp 1b; 2:
    let code = [&[0x66, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8], then].concat();
    let address = CODE + 5 + u32::try_from(code.len()).unwrap();
    [&[0xbe], &address.to_le_bytes()[..], &code, text.as_bytes(), &[0]].concat()
}

fn outcome_of(code: &[u8]) -> Outcome {
    let (microvm, _host) = guest(code, 1, &Output::default()).unwrap();
    microvm.resume().unwrap();
    microvm.wait(LONG).unwrap().unwrap()
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn notifications_and_interrupts_use_kvm() {
    let output = Command::new(KVM_GUEST).arg("1000").output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.starts_with("1000 echoes, ") && stdout.ends_with(" 0 of them as exits\n"), "{stdout}");
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn each_end_of_a_guest_has_an_outcome() {
    assert_eq!(outcome_of(&power_off()), Outcome::PoweredOff);
    assert_eq!(outcome_of(&write_port(0x602, 1)), Outcome::Reset);
    assert_eq!(outcome_of(&write_port(0x64, 0xfe)), Outcome::Reset);
    let panic = print("Kernel panic - not syncing: no init\r\n", &write_port(0x602, 1));
    assert_eq!(outcome_of(&panic), Outcome::Panicked { reason: "no init".into() });
    let undefined_instruction = [0x0f, 0x0b];
    let outcome = outcome_of(&undefined_instruction);
    assert!(matches!(outcome, Outcome::TripleFault { vcpu: 0, .. } | Outcome::InternalError { .. }), "{outcome}");
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn a_guest_that_writes_everywhere_ends_as_it_says() {
    // xor edx, edx; 1: mov al, 0; out dx, al; inc edx; cmp edx, 0x10000; jnz 1b
    let ports = [0x31, 0xd2, 0xb0, 0, 0xee, 0x42, 0x81, 0xfa, 0, 0, 1, 0, 0x75, 0xf4];
    // mov edi, 0xd0000000; 1: mov [edi], edi; mov [edi], bl; add edi, 4; cmp edi, 0xd0000200; jnz 1b
    let registers = [0xbf, 0, 0, 0, 0xd0, 0x89, 0x3f, 0x88, 0x1f, 0x83, 0xc7, 4, 0x81, 0xff, 0, 2, 0, 0xd0, 0x75, 0xf1];
    // mov [0xc0000000], eax; mov eax, [0xdffffff0]
    let nothing = [0xa3, 0, 0, 0, 0xc0, 0xa1, 0xf0, 0xff, 0xff, 0xdf];
    assert_eq!(outcome_of(&[&ports[..], &registers, &nothing, &power_off()].concat()), Outcome::PoweredOff);
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn a_guest_that_floods_its_console_can_be_paused_and_ended() {
    // mov dx, 0x3f8; 1: out dx, al; jmp 1b
    let output = Output::default();
    let (microvm, _host) = guest(&[0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd], 1, &output).unwrap();
    microvm.resume().unwrap();
    for _ in 0..20 {
        output.wait_for(output.len() + 50);
        microvm.pause().unwrap();
        let printed = output.len();
        microvm.pause().unwrap();
        assert_eq!(microvm.wait(Duration::from_millis(1)).unwrap(), None);
        assert_eq!(output.len(), printed, "a paused guest prints nothing");
        microvm.resume().unwrap();
    }
    assert_eq!(microvm.end().0, Outcome::Stopped);
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn a_guest_whose_messages_nobody_reads_can_be_paused_and_ended() {
    // mov dx, 0x2f8; mov ebx, 300000; 1: out dx, al; dec ebx; jnz 1b; then the console
    let flood = [0x66, 0xba, 0xf8, 0x02, 0xbb, 0xe0, 0x93, 0x04, 0, 0xee, 0x4b, 0x75, 0xfc];
    let output = Output::default();
    let (microvm, host) = guest(&[&flood[..], &print("read", &FOREVER)].concat(), 1, &output).unwrap();
    microvm.resume().unwrap();
    for _ in 0..3 {
        assert_eq!(microvm.wait(Duration::from_millis(300)).unwrap(), None);
        microvm.pause().unwrap();
        microvm.resume().unwrap();
    }
    drop(host);
    let (outcome, positions) = microvm.end();
    assert_eq!((outcome, positions.len()), (Outcome::Stopped, 1));
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn guests_leave_no_thread_and_no_descriptor() {
    drop(guest(&FOREVER, 4, &Output::default()).unwrap());
    let before = descriptors_and_threads();
    for _ in 0..20 {
        let (microvm, _host) = guest(&FOREVER, 4, &Output::default()).unwrap();
        microvm.resume().unwrap();
    }
    assert_eq!(descriptors_and_threads(), before);
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn too_many_vcpus_are_refused() {
    let refused = |vcpus| guest(&FOREVER, vcpus, &Output::default()).unwrap_err().to_string();
    assert!(refused(0).starts_with("a guest has at least one vCPU"));
    assert!(refused(65).starts_with("65 vCPUs are more than the "));
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn a_probe_says_in_one_line_whether_kvm_runs_linux() {
    let threads = || descriptors_and_threads().1;
    let before = threads();
    match probe(PROBE_TIMEOUT) {
        Ok(()) => println!("KVM runs Linux here"),
        Err(unusable) => {
            let text = unusable.to_string();
            println!("{text}");
            assert!(text.starts_with("/dev/kvm opens, but ") && !text.contains('\n'), "{text}");
        }
    }
    assert_eq!(threads(), before, "the vCPU's thread has ended");
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn a_probe_without_time_stops_its_guest() {
    let threads = || descriptors_and_threads().1;
    let before = threads();
    let outcome = probe(Duration::ZERO);
    assert!(matches!(outcome, Err(KvmUnusable::TooSlow { step: ProbeStep::LongMode, .. })), "{outcome:?}");
    assert_eq!(threads(), before);
}
