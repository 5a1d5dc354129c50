//! Snapshots of microVMs on this machine's KVM, driven by guests of a few instructions.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use scx_vsock::guest::microvm::{Error, Microvm, MicrovmSnapshot, Outcome};
use scx_vsock_tests::held_resources::descriptors_and_threads;
use scx_vsock_tests::small_guest::{LONG, Output, guest};

/// `mov dx, 0x3f8; 1: out dx, al; inc al; jmp 1b`: counts on the console.
const COUNTS: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xee, 0xfe, 0xc0, 0xeb, 0xfb];

/// The same on the second serial port.
const COUNTS_ELSEWHERE: [u8; 9] = [0x66, 0xba, 0xf8, 0x02, 0xee, 0xfe, 0xc0, 0xeb, 0xfb];

/// Adds each byte from the second serial port to one in memory, and prints that.
///
/// ```text
/// 1: mov dx, 0x2fd; 2: in al, dx; test al, 1; jz 2b; mov dx, 0x2f8; in al, dx
/// add [0x200000], al; mov al, [0x200000]; mov dx, 0x3f8; out dx, al; jmp 1b
/// ```
const SUMS: [u8; 32] = [
    0x66, 0xba, 0xfd, 0x02, 0xec, 0xa8, 1, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x02, 0xec, // it has read a byte
    0, 0x05, 0, 0, 0x20, 0, 0xa0, 0, 0, 0x20, 0, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe0,
];

/// A restored guest that runs, what it prints, and the other end of its second serial port.
fn restored(snapshot: &MicrovmSnapshot) -> (Microvm, Output, UnixStream) {
    let (output, (host, commands)) = (Output::default(), UnixStream::pair().unwrap());
    let microvm = snapshot.restore(Box::new(output.clone()), commands).unwrap();
    assert_eq!(output.len(), 0, "it begins paused");
    microvm.resume().unwrap();
    (microvm, output, host)
}

fn assert_counts_on(from: u8, bytes: &[u8]) {
    let expected: Vec<u8> = (1..=bytes.len()).map(|count| from.wrapping_add(count.to_le_bytes()[0])).collect();
    assert_eq!(bytes, expected, "after {from}");
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn a_restored_guest_goes_on_where_the_source_stood() {
    let output = Output::default();
    let (source, _host) = guest(&COUNTS, 2, &output).unwrap();
    source.resume().unwrap();
    for _ in 0..20 {
        output.wait_for(output.len() + 50);
        source.pause().unwrap();
        let snapshot = source.snapshot().unwrap();
        let printed = output.wait_for(1);
        let (other, others, _host) = restored(&snapshot);
        assert_counts_on(*printed.last().unwrap(), &others.wait_for(50));
        assert_eq!(output.len(), printed.len(), "the source is paused");
        assert_eq!(other.end().0, Outcome::Stopped);
        source.resume().unwrap();
    }
    let all = output.wait_for(1);
    assert_counts_on(all[0], &all[1..]);
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn a_byte_that_waits_for_its_reader_is_restored() {
    let (source, mut host) = guest(&COUNTS_ELSEWHERE, 1, &Output::default()).unwrap();
    source.resume().unwrap();
    // Until nothing more fits into the stream.
    assert_eq!(source.wait(std::time::Duration::from_millis(500)).unwrap(), None);
    source.pause().unwrap();
    let snapshots = [source.snapshot().unwrap(), source.snapshot().unwrap()];
    host.set_nonblocking(true).unwrap();
    let mut written = Vec::new();
    host.read_to_end(&mut written).unwrap_err();
    let last = *written.last().unwrap();
    let next = |host: &mut UnixStream| {
        let mut bytes = [0; 1000];
        host.set_nonblocking(false).unwrap();
        host.set_read_timeout(Some(LONG)).unwrap();
        host.read_exact(&mut bytes).unwrap();
        bytes
    };
    for snapshot in snapshots {
        let (_other, _output, mut others) = restored(&snapshot);
        assert_counts_on(last, &next(&mut others));
    }
    source.resume().unwrap();
    assert_counts_on(last, &next(&mut host));
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn restored_guests_are_independent() {
    let output = Output::default();
    let (source, mut host) = guest(&SUMS, 1, &output).unwrap();
    source.resume().unwrap();
    host.write_all(&[100]).unwrap();
    output.wait_for(1);
    source.pause().unwrap();
    let snapshot = source.snapshot().unwrap();
    let guests = [restored(&snapshot), restored(&snapshot)];
    source.resume().unwrap();
    host.write_all(&[3]).unwrap();
    for ((_, _, host), byte) in guests.iter().zip([1, 2]) {
        (&*host).write_all(&[byte]).unwrap();
    }
    assert_eq!(guests.each_ref().map(|(_, output, _)| output.wait_for(1)), [vec![101], vec![102]]);
    assert_eq!(output.wait_for(2), [100, 103]);
    // Another snapshot, of a guest that was restored itself.
    let [_, (second, ..)] = &guests;
    second.pause().unwrap();
    let generations = [second.snapshot().unwrap(), snapshot];
    drop((source, guests));
    let sums = generations.map(|snapshot| {
        let (_microvm, output, mut host) = restored(&snapshot);
        host.write_all(&[10]).unwrap();
        output.wait_for(1)
    });
    assert_eq!(sums, [[112], [110]]);
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn only_a_paused_guest_has_a_snapshot() {
    let (microvm, _host) = guest(&COUNTS, 1, &Output::default()).unwrap();
    assert!(matches!(microvm.snapshot(), Err(Error::NotPaused)), "no instruction has run");
    microvm.resume().unwrap();
    assert!(matches!(microvm.snapshot(), Err(Error::NotPaused)));
    // mov dx, 0x602; mov al, 1; out dx, al
    let (microvm, _host) = guest(&[0x66, 0xba, 0x02, 0x06, 0xb0, 1, 0xee], 1, &Output::default()).unwrap();
    microvm.resume().unwrap();
    microvm.wait(LONG).unwrap();
    assert!(matches!(microvm.snapshot(), Err(Error::Ended(Outcome::Reset))));
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn restored_guests_leave_no_thread_and_no_descriptor() {
    let output = Output::default();
    let snapshot_and_restore = || {
        let (source, _host) = guest(&COUNTS, 4, &output).unwrap();
        source.resume().unwrap();
        source.pause().unwrap();
        let snapshot = source.snapshot().unwrap();
        for _ in 0..5 {
            restored(&snapshot).1.wait_for(1);
        }
    };
    snapshot_and_restore();
    let before = descriptors_and_threads();
    snapshot_and_restore();
    assert_eq!(descriptors_and_threads(), before);
}
