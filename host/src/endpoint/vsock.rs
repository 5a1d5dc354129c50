//! Streams over the kernel's AF_VSOCK. rustix has the address family but not its address, which is defined here.
#![allow(unsafe_code, reason = "the kernel reads a socket address that is defined here")]

use std::io;
use std::mem::size_of;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

/// `struct sockaddr_vm` of `linux/vsock.h`.
#[repr(C)]
#[derive(Debug)]
struct VmAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

impl VmAddress {
    fn new(cid: u32, port: u32) -> Self {
        Self { family: AddressFamily::VSOCK.as_raw(), reserved: 0, port, cid, flags: 0, zero: [0; 3] }
    }
}

// SAFETY: the pointer is to a whole `sockaddr_vm`, without padding, that outlives the call of `f`, and the length is
// its size.
unsafe impl SocketAddrArg for VmAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        const LENGTH: SocketAddrLen = 16;
        const { assert!(size_of::<VmAddress>() == 16) };
        f(std::ptr::from_ref(self).cast(), LENGTH)
    }
}

/// Starts to connect a stream to a port of a guest, and returns at once.
pub(super) fn start_stream(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None).map_err(explain)?;
    match connect(&stream, &VmAddress::new(cid, port)) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(stream),
        Err(error) => Err(explain(error)),
    }
}

/// Says what to do about an error of the kernel.
fn explain(error: Errno) -> io::Error {
    match error {
        Errno::AFNOSUPPORT | Errno::NODEV => io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel has no vsock to guests ({error}); run: modprobe vhost_vsock"),
        ),
        Errno::PERM | Errno::ACCESS => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "not permitted to open vsock sockets ({error}); allow AF_VSOCK in the seccomp profile of the container"
            ),
        ),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_kernels_layout() {
        let address = VmAddress::new(0x0102_0304, 729);
        // SAFETY: the callback only reads the address that it is called with.
        let (start, length) = unsafe { address.with_sockaddr(|start, length| (start.cast::<u8>(), length)) };
        // SAFETY: they are the start and the size of `address`, which is alive and has no padding.
        let bytes = unsafe { std::slice::from_raw_parts(start, usize::try_from(length).unwrap()) };
        let expected =
            [&40u16.to_ne_bytes()[..], &[0; 2], &729u32.to_ne_bytes(), &0x0102_0304u32.to_ne_bytes(), &[0; 4]];
        assert_eq!(bytes, expected.concat());
    }
}
