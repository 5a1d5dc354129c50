//! Moves bytes between guest memory and a socket, without a copy in user space.
#![allow(
    unsafe_code,
    reason = "guest memory may change under a reader, so only the kernel may be given pointers to it"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use rustix::net::SendFlags;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::volatile_memory::{PtrGuard, PtrGuardMut};

/// Slices that one call takes; the kernel refuses more.
pub const MAX_SLICES: usize = libc::UIO_MAXIOV as usize;

/// Neither waits for room nor raises SIGPIPE.
pub const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

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
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, SEND.bits().cast_signed()) };
    count(sent)
}

/// What [`receive`] read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// At most as many as the memory has room for; zero is the end.
    pub bytes: usize,
    /// Whether there may be more than these now: they fill the memory, or a message with descriptors ended the read early.
    pub may_have_more: bool,
}

/// Reads what is available from a socket into guest memory.
///
/// # Errors
///
/// As `recvmsg(2)`; `WouldBlock` where nothing is there.
pub fn receive<'m, B: BitmapSlice>(
    socket: BorrowedFd<'_>,
    slices: impl Iterator<Item = VolatileSlice<'m, B>>,
) -> io::Result<Read> {
    let slices: Vec<VolatileSlice<'m, B>> = slices.take(MAX_SLICES).collect();
    let guards: Vec<PtrGuardMut> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<libc::iovec> =
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
    let mut message = message(&mut vectors);
    // SAFETY: the guards keep the guest memory that the vectors name mapped through the call, which writes no more
    // than the vectors' lengths; guest memory has no invariants that a write could break.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = count(received)?;
    mark_dirty(&slices, bytes);
    let room: usize = slices.iter().map(VolatileSlice::len).sum();
    Ok(Read { bytes, may_have_more: bytes == room || message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Returns how many bytes of what was sent on a socket its peer has not read, as the kernel counts them: more than were
/// sent.
pub fn unread_bytes(socket: &UnixStream) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one `int` to the address of one.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    // The kernel wakes who waits for room before it takes the last byte off the count.
    usize::try_from(bytes).ok().filter(|&bytes| result == 0 && bytes > 1).unwrap_or(0)
}

/// Marks in the memory's bitmap, where there is one, what the kernel wrote.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use vm_memory::bitmap::AtomicBitmap;
    use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, MmapRegion};

    const MEMORY: usize = 1 << 20;

    #[test]
    fn the_pages_that_were_written_are_marked_and_no_others() {
        let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let region: &MmapRegion<AtomicBitmap> = memory.find_region(GuestAddress(0)).unwrap();
        let bitmap = region.bitmap();
        let page = u64::try_from(MEMORY / bitmap.len()).unwrap();
        // From page 1 into page 2, from page 4 into page 5, and page 8, for which nothing is left.
        let slices = [(2 * page - 1, 2), (5 * page - 1, 100), (8 * page, 100)]
            .map(|(address, length)| memory.get_slice(GuestAddress(address), length).unwrap());
        let (mut host, device) = UnixStream::pair().unwrap();
        host.write_all(&[7; 2 + 50]).unwrap();
        let read = receive(device.as_fd(), slices.into_iter()).unwrap();
        assert_eq!(read, Read { bytes: 2 + 50, may_have_more: false });
        let marked: Vec<usize> = (0..bitmap.len()).filter(|&page| bitmap.is_bit_set(page)).collect();
        assert_eq!(marked, [1, 2, 4, 5]);
    }
}
