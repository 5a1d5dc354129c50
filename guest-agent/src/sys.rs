//! The Linux system calls that the agent makes, in typed arguments.
//!
//! The only module that knows the system-call interface. It uses calls that x86_64 and aarch64 both have.
#![allow(unsafe_code, reason = "system calls have no other form; every wrapper here is safe to call")]
#![allow(clippy::cast_sign_loss, reason = "system call arguments are machine words")]
#![allow(clippy::cast_possible_truncation, reason = "Linux descriptors and counts fit the types of its interface")]
#![allow(clippy::cast_possible_wrap, reason = "Linux descriptors and counts fit the types of its interface")]

use core::mem::{MaybeUninit, size_of};

use linux_raw_sys::errno;
use linux_raw_sys::general::{
    __kernel_itimerspec, __kernel_timespec, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, EPOLL_CLOEXEC, F_SETFL, O_CLOEXEC,
    O_NONBLOCK, O_RDWR, TFD_CLOEXEC, TFD_NONBLOCK, epoll_event, iovec,
};
use linux_raw_sys::net::{AF_UNIX, AF_VSOCK, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_STREAM, msghdr};
use linux_raw_sys::vm_sockets::VMADDR_CID_ANY;
use scx_vsock_wire::line::{copy_prefix, up_to};
pub use syscalls::Errno;
use syscalls::{Sysno, raw_syscall};

use crate::arguments::MAX_PATH_BYTES;

pub use linux_raw_sys::general::{
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP,
};
pub use linux_raw_sys::net::MSG_PEEK;
pub use linux_raw_sys::vm_sockets::VMADDR_CID_HOST;

const EINVAL: i32 = -(errno::EINVAL as i32);

const SOCK_NONBLOCK: u32 = O_NONBLOCK;
const SOCK_CLOEXEC: u32 = O_CLOEXEC;

/// Error numbers as system calls return them: negative.
pub const EAFNOSUPPORT: i32 = -(errno::EAFNOSUPPORT as i32);
/// See [`EAFNOSUPPORT`].
pub const EAGAIN: i32 = -(errno::EAGAIN as i32);
/// See [`EAFNOSUPPORT`].
pub const EINPROGRESS: i32 = -(errno::EINPROGRESS as i32);
/// See [`EAFNOSUPPORT`].
pub const ENOENT: i32 = -(errno::ENOENT as i32);
/// See [`EAFNOSUPPORT`].
pub const EINTR: i32 = -(errno::EINTR as i32);

/// Whether what failed so may succeed later without an event: memory, descriptors, the vsock module or its transport were
/// missing.
#[must_use]
pub fn may_pass(outcome: i32) -> bool {
    matches!(
        outcome.unsigned_abs(),
        errno::EMFILE
            | errno::ENFILE
            | errno::ENOMEM
            | errno::ENOBUFS
            | errno::ENOSPC
            | errno::ENODEV
            | errno::EAFNOSUPPORT
    )
}

/// The number of an open descriptor, or none. A copy of the number: the table that keeps it closes it, once.
///
/// The complement, so that zeroed memory is no descriptor. A call on none fails with `EBADF`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(i32);

impl Fd {
    /// No descriptor.
    pub const NONE: Self = Self(0);

    /// The descriptor of this number, which is now the caller's to close; none where the number is -1.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(!number)
    }

    /// Returns the descriptor's number; -1 without one.
    #[must_use]
    pub const fn number(self) -> i32 {
        !self.0
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_open(self) -> bool {
        self.0 != 0
    }

    /// Closes the descriptor.
    pub fn close(self) {
        close(self.number());
    }

    fn argument(self) -> usize {
        self.number() as u32 as usize
    }
}

/// Closes the descriptor of this number; none where it is negative.
pub fn close(number: i32) {
    // SAFETY: closing touches no memory.
    let _closed = unsafe { raw_syscall!(Sysno::close, number) };
}

/// The directory of absolute paths: none.
pub const NOWHERE: i32 = -1;

/// Does `call` (openat, faccessat) with a path that ends with a zero byte. One that is not absolute begins at `directory`.
fn with_path(call: Sysno, directory: i32, path: &[u8], flags: u32) -> i32 {
    if path.last() != Some(&0) {
        return EINVAL;
    }
    // SAFETY: `path` ends with a zero byte and lives through the call, which only reads it.
    unsafe { raw_syscall!(call, directory, path.as_ptr(), flags) as i32 }
}

/// Opens a file or a directory, as `with_path` has it.
fn open(directory: i32, path: &[u8], flags: u32) -> i32 {
    with_path(Sysno::openat, directory, path, flags)
}

/// Opens a directory; returns its number.
pub fn open_directory(path: &[u8]) -> i32 {
    open(NOWHERE, path, O_CLOEXEC)
}

/// Creates an epoll instance, whose descriptor is readable while events wait.
pub fn create_epoll() -> i32 {
    // SAFETY: no memory is passed.
    unsafe { raw_syscall!(Sysno::epoll_create1, EPOLL_CLOEXEC) as i32 }
}

/// Has `epoll` watch `fd` for `events`, reported with `token`, from now on (`EPOLL_CTL_ADD`) or instead of what it watched
/// it for (`EPOLL_CTL_MOD`).
pub fn watch(epoll: Fd, operation: u32, fd: Fd, events: u32, token: u32) -> i32 {
    let event = epoll_event { events, data: token.into() };
    // SAFETY: `event` is a live epoll_event for the time of the call, which only reads it.
    unsafe { raw_syscall!(Sysno::epoll_ctl, epoll.argument(), operation, fd.argument(), &raw const event) as i32 }
}

/// Events taken in one wait: with the usual table more than there are sources, so that one wait takes them all.
const EVENTS_A_WAIT: usize = 32;

/// Waits at most `timeout_ms` (-1: without end) for events, and passes each one's token and events to `take`.
pub fn wait(epoll: Fd, timeout_ms: i32, mut take: impl FnMut(u64, u32)) -> i32 {
    let mut events = [const { MaybeUninit::<epoll_event>::uninit() }; EVENTS_A_WAIT];
    let (pointer, length) = (events.as_mut_ptr(), events.len());
    // SAFETY: the kernel writes at most `length` events to the buffer, which lives through the call; there is no signal
    // mask, so that its size is ignored.
    let count = unsafe {
        raw_syscall!(Sysno::epoll_pwait, epoll.argument(), pointer, length, timeout_ms as usize, 0usize) as i32
    };
    for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
        // SAFETY: the kernel wrote so many events.
        let event = unsafe { event.assume_init() };
        take(event.data, event.events);
    }
    count
}

/// Creates a disarmed one-shot timer that can be watched.
pub fn create_timer() -> i32 {
    // SAFETY: no memory is passed.
    unsafe { raw_syscall!(Sysno::timerfd_create, CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK) as i32 }
}

/// Makes a timer fire once, `milliseconds` (below 1,000) from now.
pub fn arm(timer: Fd, milliseconds: u32) -> i32 {
    let zero = __kernel_timespec { tv_sec: 0, tv_nsec: 0 };
    let value = __kernel_timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
    let spec = __kernel_itimerspec { it_interval: zero, it_value: value };
    // SAFETY: `spec` lives through the call, which only reads it; no old value is asked for.
    unsafe { raw_syscall!(Sysno::timerfd_settime, timer.argument(), 0usize, &raw const spec, 0usize) as i32 }
}

/// Returns the microseconds of the monotonic clock that nothing adjusts, as the kernel's log has them but for an offset.
#[must_use]
pub fn now_us() -> u64 {
    let mut now = __kernel_timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the kernel may write to and that lives through the call.
    let _always = unsafe { raw_syscall!(Sysno::clock_gettime, CLOCK_MONOTONIC_RAW, &raw mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// Creates a non-blocking stream socket.
fn socket(family: u32) -> i32 {
    // SAFETY: no memory is passed.
    unsafe { raw_syscall!(Sysno::socket, family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0usize) as i32 }
}

/// Returns the number of a new socket, which is closed where `outcome`, that of a call on it, is a failure.
#[inline(never)]
fn kept(socket: i32, outcome: i32) -> i32 {
    if outcome >= 0 || outcome == EINPROGRESS {
        return socket;
    }
    if socket < 0 {
        return socket;
    }
    Fd::new(socket).close();
    outcome
}

/// `struct sockaddr_vm` as long as a `struct sockaddr`, which is the length that the kernel has.
#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u32,
}

impl VsockAddress {
    const BYTES: usize = size_of::<Self>();
}

/// Creates a non-blocking vsock socket, and binds or connects it.
fn vsock(call: Sysno, cid: u32, port: u32) -> i32 {
    let socket = socket(AF_VSOCK);
    let address = VsockAddress { family: AF_VSOCK as u16, reserved: 0, port, cid, flags: 0 };
    // SAFETY: `address` is a whole address and lives through the call, which only reads it.
    kept(socket, unsafe { raw_syscall!(call, socket, &raw const address, VsockAddress::BYTES) as i32 })
}

/// Creates a non-blocking vsock listener on every CID of this machine.
pub fn listen_vsock(port: u32, backlog: u32) -> i32 {
    let socket = vsock(Sysno::bind, VMADDR_CID_ANY.cast_unsigned(), port);
    kept(socket, listen(socket, backlog))
}

/// Starts a non-blocking vsock connection. It is made, or has failed, when the descriptor becomes writable.
pub fn connect_vsock(cid: u32, port: u32) -> i32 {
    vsock(Sysno::connect, cid, port)
}

/// Makes a bound socket listen. Of one that listens it changes the backlog.
fn listen(socket: i32, backlog: u32) -> i32 {
    // SAFETY: no memory is passed.
    unsafe { raw_syscall!(Sysno::listen, socket, backlog) as i32 }
}

/// Makes an inherited listener non-blocking. Its backlog becomes the longest that the kernel has: who made the socket may
/// have counted on more than this agent would ask for.
pub fn take_listener(socket: i32) -> i32 {
    let outcome = listen(socket, u32::MAX >> 1);
    // SAFETY: no memory is passed.
    let _set = unsafe { raw_syscall!(Sysno::fcntl, socket, F_SETFL, O_NONBLOCK) };
    outcome
}

/// The address of a Unix socket: `struct sockaddr_un`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UnixAddress {
    family: u16,
    path: [u8; MAX_PATH_BYTES],
    end: u8,
}

impl UnixAddress {
    /// The address of no socket.
    pub const NONE: Self = Self { family: 0, path: [0; MAX_PATH_BYTES], end: 0 };

    /// Makes [`NONE`](Self::NONE) the address of the socket at `path`, of which at most [`MAX_PATH_BYTES`] count.
    pub fn set(&mut self, path: &[u8]) {
        self.family = AF_UNIX as u16;
        copy_prefix(&mut self.path, path);
    }
}

/// Connects to a Unix socket, which either succeeds or fails at once; returns the connection's number.
pub fn connect_unix(address: &UnixAddress) -> i32 {
    let socket = socket(AF_UNIX);
    let (pointer, length) = (&raw const *address, size_of::<UnixAddress>());
    // SAFETY: `address` lives through the call, which only reads it; its path ends in a zero byte.
    kept(socket, unsafe { raw_syscall!(Sysno::connect, socket, pointer, length) as i32 })
}

/// A connection that was accepted.
pub struct Accepted {
    /// Its number, or a negative error number.
    pub stream: i32,
    /// The CID of its peer, if it is a vsock's.
    pub cid: Option<u32>,
}

/// Accepts a connection as a non-blocking stream.
pub fn accept(listener: Fd) -> Accepted {
    let mut address = VsockAddress { family: 0, reserved: 0, port: 0, cid: 0, flags: 0 };
    let mut length = VsockAddress::BYTES as u32;
    let flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    // SAFETY: the kernel writes at most `length` bytes to `address` and 4 to `length`; both live through the call,
    // and every bit pattern is a valid address.
    let stream =
        unsafe { raw_syscall!(Sysno::accept4, listener.argument(), &raw mut address, &raw mut length, flags) as i32 };
    Accepted { stream, cid: (u32::from(address.family) == AF_VSOCK).then_some(address.cid) }
}

/// Bytes that a read can skip at most.
pub const MAX_SKIPPED: usize = 3072;

/// Reads from a socket, without waiting, what follows its next `skipped` bytes, and returns how many bytes were there of
/// both, 0 at the stream's end. With the flag `MSG_PEEK` all of them stay in the kernel's queue.
pub fn receive(socket: Fd, skipped: i32, buffer: &mut [u8], flags: u32) -> i32 {
    let mut scratch = MaybeUninit::<[u8; MAX_SKIPPED]>::uninit();
    let skipped = iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: MAX_SKIPPED.min(skipped as usize) as _ };
    let mut vectors = [skipped, iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() as _ }];
    // SAFETY: the vectors have no more bytes than the memory that they name, which lives through the call.
    unsafe { transfer(Sysno::recvmsg, socket, &mut vectors, MSG_DONTWAIT | flags) }
}

/// Writes to a socket what there is room for, without raising SIGPIPE.
///
/// No bytes at all show whether the peer still reads: this succeeds after the peer ended only its sending side and
/// fails after it closed, on vsock and on Unix sockets, where epoll reports the two alike.
#[inline(never)]
pub fn send(socket: Fd, bytes: &[u8]) -> i32 {
    let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes`, which live through the call; no address is given.
    unsafe { raw_syscall!(Sysno::sendto, socket.argument(), bytes.as_ptr(), bytes.len(), flags, 0usize, 0usize) as i32 }
}

/// Writes to a socket what there is room for of three pieces in order, without raising SIGPIPE.
pub fn send_pieces(socket: Fd, pieces: &[&[u8]; 3]) -> i32 {
    let vector = |piece: &[u8]| iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() as _ };
    let [first, second, third] = *pieces;
    let mut vectors = [vector(first), vector(second), vector(third)];
    // SAFETY: the kernel only reads the pieces, which live through the call.
    unsafe { transfer(Sysno::sendmsg, socket, &mut vectors, MSG_DONTWAIT | MSG_NOSIGNAL) }
}

/// Does `call` (sendmsg, recvmsg) with these vectors.
///
/// # Safety
///
/// The memory that the vectors name must live through the call and be read, or with recvmsg written, by nobody else.
#[inline(never)]
unsafe fn transfer(call: Sysno, socket: Fd, vectors: &mut [iovec], flags: u32) -> i32 {
    let message = msghdr {
        msg_name: core::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: vectors.as_mut_ptr().cast(),
        msg_iovlen: vectors.len(),
        msg_control: core::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    // SAFETY: `message` and the vectors live through the call, and so does what they name, as the caller says.
    unsafe { raw_syscall!(call, socket.argument(), &raw const message, flags) as i32 }
}

/// Reads the beginning of a small file in an open directory; nothing where that cannot be read. The path ends with a zero
/// byte.
pub fn read_file<'b>(directory: i32, path: &[u8], buffer: &'b mut [u8]) -> &'b [u8] {
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    let file = open(directory, path, O_CLOEXEC | O_NONBLOCK);
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which lives through the call.
    let count = unsafe { raw_syscall!(Sysno::read, file, pointer, length) as i32 };
    close(file);
    up_to(buffer, usize::try_from(count).unwrap_or(0))
}

/// Reads the newest messages of the kernel's log that fit into the buffer, whole and as text; returns their length.
pub fn read_kernel_log(buffer: &mut [u8]) -> i32 {
    /// `SYSLOG_ACTION_READ_ALL` of syslog(2).
    const READ_ALL: usize = 3;
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which lives through the call.
    unsafe { raw_syscall!(Sysno::syslog, READ_ALL, pointer, length) as i32 }
}

/// Whether a path exists, which ends with a zero byte.
#[must_use]
pub fn exists(path: &[u8]) -> bool {
    with_path(Sysno::faccessat, NOWHERE, path, 0) == 0
}

/// Opens what is closed of standard input, output and error, so that no socket becomes one of them.
///
/// An early init may have no `/dev/null` yet; the root directory takes no bytes either.
pub fn open_standard_descriptors() {
    loop {
        let mut fd = open(NOWHERE, b"/dev/null\0", O_RDWR);
        if fd < 0 {
            fd = open(NOWHERE, b"/\0", 0);
        }
        if !(0..=2).contains(&fd) {
            return close(fd);
        }
    }
}

/// Returns this process's id.
#[must_use]
pub fn process_id() -> u32 {
    // SAFETY: no memory is passed.
    unsafe { raw_syscall!(Sysno::getpid) as u32 }
}

/// Writes to a descriptor, as much as it takes at once.
#[inline(never)]
pub fn write(fd: i32, bytes: &[u8]) {
    // SAFETY: the kernel reads `bytes`, which live through the call.
    let _written = unsafe { raw_syscall!(Sysno::write, fd as usize, bytes.as_ptr(), bytes.len()) };
}

/// Ends the process.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: no memory is passed, and nothing of this process runs afterwards.
        let _never = unsafe { raw_syscall!(Sysno::exit_group, status as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_file_is_read_and_a_missing_one_is_empty() {
        let mut buffer = [0; 16];
        let kernel = open_directory(b"/proc/sys/kernel\0");
        assert_eq!(read_file(kernel, b"ostype\0", &mut buffer), b"Linux\n");
        assert_eq!(read_file(kernel, b"ostype\0", &mut buffer[..3]), b"Lin");
        assert_eq!(read_file(kernel, b"nothing\0", &mut buffer), b"");
        close(kernel);
        let absolute = b"/proc/sys/kernel/ostype\0";
        assert_eq!(read_file(NOWHERE, absolute, &mut buffer), b"Linux\n");
        assert_eq!(read_file(NOWHERE, b"ostype\0", &mut buffer), b"");
        assert_eq!(read_file(NOWHERE, b"/proc\0", &mut buffer), b"");
    }

    #[test]
    fn the_kernel_log_is_read_within_the_buffer_or_refused() {
        let mut buffer = [0xff; 4096];
        let count = read_kernel_log(&mut buffer[..512]);
        assert!(count <= 512 && (count >= 0 || count == -Errno::EPERM.into_raw()), "{count}");
        assert!(buffer[512..].iter().all(|&byte| byte == 0xff));
    }

    #[test]
    fn what_is_no_epoll_instance_has_no_events() {
        assert!(wait(Fd::NONE, 0, |_, _| {}) < 0);
    }

    #[test]
    fn an_address_is_truncated_to_what_the_kernel_takes() {
        let mut address = UnixAddress::NONE;
        address.set(&[b'x'; 2 * MAX_PATH_BYTES]);
        assert_eq!(address.end, 0, "its path ends in a zero byte");
        assert_eq!(connect_unix(&address), -Errno::ENOENT.into_raw());
    }

    #[test]
    fn a_path_without_a_zero_byte_never_reaches_the_kernel() {
        assert!(exists(b"/proc\0"));
        assert!(!exists(b"/proc"));
        assert!(!exists(b""));
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for errno in [Errno::ENODEV, Errno::EAFNOSUPPORT, Errno::EMFILE, Errno::ENOMEM, Errno::ENOSPC] {
            assert!(may_pass(-errno.into_raw()), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EPERM, Errno::ECONNRESET] {
            assert!(!may_pass(-errno.into_raw()), "{errno}");
        }
        assert!(!may_pass(0));
    }

    #[test]
    fn an_empty_send_fails_only_after_a_full_close() {
        use std::net::Shutdown;
        use std::os::fd::AsRawFd;
        use std::os::unix::net::UnixStream;

        let (host, guest) = UnixStream::pair().unwrap();
        let fd = Fd::new(guest.as_raw_fd());
        assert_eq!(send(fd, b""), 0);
        host.shutdown(Shutdown::Write).unwrap();
        assert_eq!(send(fd, b""), 0);
        drop(host);
        assert_eq!(send(fd, b""), -Errno::EPIPE.into_raw());
    }
}
