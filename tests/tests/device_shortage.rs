//! The device and its hybrid socket where the process may have no further descriptors. Alone in their process, which they
//! make short of them one after the other.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::unix_bridge::UnixBridge;
use scx_vsock::vsock::{Device, DeviceError};
use scx_vsock_tests::guest_driver::{CID, Guest, is_readable};
use scx_vsock_tests::peer::DEADLINE;

const EMFILE: i32 = 24;

/// Held by the test that makes the process short of descriptors.
static SHORTAGE: Mutex<()> = Mutex::new(());

/// Runs `f` while this process can open no descriptor.
fn without_descriptors<T>(f: impl FnOnce() -> T) -> T {
    // All below the lowest free one are taken.
    let lowest_free = std::os::fd::AsRawFd::as_raw_fd(&File::open("/").unwrap());
    with_descriptors_below(u64::try_from(lowest_free).unwrap(), f)
}

/// Runs `f` while this process may have only descriptors below this one, and keeps the others that it has.
fn with_descriptors_below<T>(lowest: u64, f: impl FnOnce() -> T) -> T {
    let limit = getrlimit(Resource::Nofile);
    let current = Some(lowest);
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    let result = f();
    setrlimit(Resource::Nofile, limit).unwrap();
    result
}

#[test]
fn without_descriptors_open_connections_go_on() {
    let _alone = SHORTAGE.lock().unwrap();
    let mut guest = Guest::new();
    let handle = guest.device.handle();
    let listener = handle.listen(1).unwrap();
    let mut connection = guest.connect_from_guest(&listener, 50_000, 1);
    without_descriptors(|| {
        assert_eq!(handle.listen(2).unwrap_err().raw_os_error(), Some(EMFILE));
        assert_eq!(handle.connect(729).unwrap_err().raw_os_error(), Some(EMFILE));
        assert!(matches!(Device::new(CID), Err(DeviceError::Host(error)) if error.raw_os_error() == Some(EMFILE)));
        for guest_port in 0..300 {
            let request = Guest::header(Operation::Request, guest_port, 1);
            guest.send(&request, &[]);
            let reset = guest.received().pop().unwrap().header;
            let expected = Header { src_port: 1, dst_port: guest_port, ..reset };
            assert_eq!((reset.op, reset), (Operation::Rst.number(), expected));
        }
        assert!(listener.accept().is_err());
        assert_eq!(connection.transfer_to_host(&mut guest, b"still", 5), b"still");
        assert_eq!(connection.transfer_to_guest(&mut guest, b"on"), b"on");
    });
    assert_eq!(guest.device.connections(), 1);
    handle.listen(2).unwrap();
    guest.connect_from_guest(&listener, 50_001, 1);
    guest.serves_on();
}

#[test]
fn a_hybrid_socket_serves_more_programs_than_the_kernel_waits_for() {
    const PROGRAMS: usize = 40;
    const LIMIT: u64 = 30;
    let _alone = SHORTAGE.lock().unwrap();
    let mut guest = Guest::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    let _bridge = UnixBridge::start_for(OwnedUnixListener::bind(&path).unwrap(), guest.handle()).unwrap();
    let mut programs: Vec<UnixStream> = (0..PROGRAMS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut connects = |mut program: UnixStream| {
        program.write_all(b"CONNECT 729\n").unwrap();
        assert!(is_readable(guest.device.fd(), DEADLINE), "nobody reads the line");
        assert_eq!(guest.operations(), [Operation::Request]);
        program
    };
    // The last one is served after the others were accepted.
    let mut connected = vec![connects(programs.pop().unwrap())];
    with_descriptors_below(LIMIT, || {
        for program in programs.drain(..3) {
            connected.push(connects(program));
        }
    });
}
