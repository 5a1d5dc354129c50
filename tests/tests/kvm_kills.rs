//! Guests that are killed at every moment leave nothing, on this machine's KVM. In a process of its own, whose memory it
//! counts.
#![allow(clippy::unwrap_used, reason = "tests")]

use scx_vsock::guest::microvm::Outcome;
use scx_vsock_tests::counting_allocator::CountingAllocator;
use scx_vsock_tests::held_resources::HeldResources;
use scx_vsock_tests::small_guest::{LONG, Output, guest};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const KILLS: usize = 20;

/// `mov dx, 0x3f8; 1: out dx, al; inc al; jmp 1b`: counts on the console.
const COUNTS: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xee, 0xfe, 0xc0, 0xeb, 0xfb];

/// `mov dx, 0x602; mov al, 1; out dx, al`: resets the machine.
const RESETS: [u8; 7] = [0x66, 0xba, 0x02, 0x06, 0xb0, 1, 0xee];

/// The moments at which a guest is killed.
const MOMENTS: [fn(); 5] = [before_it_runs, as_it_begins, while_it_prints, while_it_is_paused, after_its_end];

fn before_it_runs() {
    drop(guest(&COUNTS, 4, &Output::default()).unwrap());
}

fn as_it_begins() {
    let (microvm, _host) = guest(&COUNTS, 4, &Output::default()).unwrap();
    microvm.resume().unwrap();
}

fn while_it_prints() {
    let output = Output::default();
    let (microvm, _host) = guest(&COUNTS, 4, &output).unwrap();
    let _listener = microvm.handle().listen(5000).unwrap();
    microvm.resume().unwrap();
    output.wait_for(50);
    assert_eq!(microvm.end().0, Outcome::Stopped);
}

fn while_it_is_paused() {
    let (microvm, _host) = guest(&COUNTS, 4, &Output::default()).unwrap();
    microvm.resume().unwrap();
    microvm.pause().unwrap();
}

fn after_its_end() {
    let (microvm, _host) = guest(&RESETS, 4, &Output::default()).unwrap();
    microvm.resume().unwrap();
    assert_eq!(microvm.wait(LONG).unwrap(), Some(Outcome::Reset));
}

#[test]
#[ignore = "needs /dev/kvm; run ci/test kvm"]
fn killed_guests_leave_nothing() {
    const GUEST_MEMORY: usize = 16 << 20;
    // What a process makes once.
    MOMENTS.iter().for_each(|kill| kill());
    let before = HeldResources::now(ALLOCATOR.bytes());
    MOMENTS.iter().cycle().take(KILLS).for_each(|kill| kill());
    let after = HeldResources::now(ALLOCATOR.bytes());
    println!("{after:?}, before {before:?}");
    after.check_nothing_left(&before, GUEST_MEMORY);
}
