//! The device where the kernel has no descriptors left. Alone in its process, which it makes short of them.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::fs::File;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::{Device, DeviceError};
use scx_vsock_tests::guest_driver::{CID, Guest};

const EMFILE: i32 = 24;

/// Runs `f` while this process can open no descriptor.
fn without_descriptors<T>(f: impl FnOnce() -> T) -> T {
    let limit = getrlimit(Resource::Nofile);
    // All below the lowest free one are taken.
    let lowest_free = std::os::fd::AsRawFd::as_raw_fd(&File::open("/").unwrap());
    let current = Some(u64::try_from(lowest_free).unwrap());
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    let result = f();
    setrlimit(Resource::Nofile, limit).unwrap();
    result
}

#[test]
fn without_descriptors_open_connections_go_on() {
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
