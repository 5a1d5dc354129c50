//! Bytes between guest memory and a socket, without a copy in between.
#![allow(
    unsafe_code,
    reason = "guest memory may change under a reader, so only the kernel may be given pointers to it"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::volatile_memory::{PtrGuard, PtrGuardMut};

/// Slices that one call takes; the kernel refuses more.
const MAX_SLICES: usize = libc::UIO_MAXIOV as usize;

/// Writes guest memory to a socket, as much as there is room for, without raising SIGPIPE.
///
/// # Errors
///
/// As `sendmsg(2)`; `WouldBlock` where there is no room.
pub fn send<'m, B: BitmapSlice>(
    socket: BorrowedFd<'_>,
    slices: impl Iterator<Item = VolatileSlice<'m, B>>,
) -> io::Result<usize> {
    let guards: Vec<PtrGuard> = slices.take(MAX_SLICES).map(|slice| slice.ptr_guard()).collect();
    let mut vectors: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: guard.len() })
        .collect();
    let message = message(&mut vectors);
    // SAFETY: the guards keep the guest memory that the vectors name mapped through the call, which only reads it; the
    // kernel copes with memory that changes meanwhile.
    let sent =
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    count(sent)
}

/// Reads from a socket into guest memory what is there.
///
/// # Errors
///
/// As `recvmsg(2)`; `WouldBlock` where nothing is there.
pub fn receive<'m, B: BitmapSlice>(
    socket: BorrowedFd<'_>,
    slices: impl Iterator<Item = VolatileSlice<'m, B>>,
) -> io::Result<usize> {
    let slices: Vec<VolatileSlice<'m, B>> = slices.take(MAX_SLICES).collect();
    let guards: Vec<PtrGuardMut> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<libc::iovec> =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let mut message = message(&mut vectors);
    // SAFETY: the guards keep the guest memory that the vectors name mapped through the call, which writes no more
    // than the vectors' lengths; guest memory has no invariants that a write could break.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let received = count(received)?;
    mark_dirty(&slices, received);
    Ok(received)
}

/// Tells the memory's bitmap, where there is one, what was written behind its back.
fn mark_dirty<B: BitmapSlice>(slices: &[VolatileSlice<'_, B>], written: usize) {
    let mut left = written;
    for slice in slices {
        let here = slice.len().min(left);
        slice.bitmap().mark_dirty(0, here);
        left -= here;
    }
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: vectors.as_mut_ptr(),
        msg_iovlen: vectors.len() as _,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

fn count(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
