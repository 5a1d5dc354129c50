//! The Linux system calls that the agent makes, in typed arguments.
//!
//! The only module that knows the system-call interface. It uses calls that x86_64 and aarch64 both have.
#![allow(unsafe_code, reason = "system calls have no other form; every wrapper here is safe to call")]
#![allow(clippy::cast_sign_loss, reason = "system call arguments are machine words")]
#![allow(clippy::cast_possible_truncation, reason = "Linux descriptors and counts fit the types of its interface")]
#![allow(clippy::cast_possible_wrap, reason = "Linux descriptors and counts fit the types of its interface")]

use core::ffi::CStr;
use core::mem::size_of;

use linux_raw_sys::general::{
    __kernel_itimerspec, __kernel_timespec, AT_FDCWD, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, EPOLL_CLOEXEC,
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, F_GETFL, F_SETFL, O_CLOEXEC, O_NONBLOCK, O_RDWR, TFD_CLOEXEC, TFD_NONBLOCK,
    epoll_event, iovec,
};
use linux_raw_sys::net::{
    AF_UNIX, AF_VSOCK, MSG_DONTWAIT, MSG_NOSIGNAL, SO_ACCEPTCONN, SOCK_STREAM, SOL_SOCKET, msghdr, sockaddr_un,
};
use scx_vsock_wire::line::up_to;
pub use syscalls::Errno;
use syscalls::{Sysno, syscall};

use crate::arguments::MAX_PATH_BYTES;

pub use linux_raw_sys::general::{EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP};
pub use linux_raw_sys::vm_sockets::{VMADDR_CID_ANY, VMADDR_CID_HOST};

/// What a system call returns. A descriptor or a count of 32 bits beside an error number fits one register.
pub type Result<T> = core::result::Result<T, Errno>;

const SOCK_NONBLOCK: u32 = O_NONBLOCK;
const SOCK_CLOEXEC: u32 = O_CLOEXEC;

/// The number of an open descriptor. A copy of the number: whoever keeps it in a table closes it, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(i32);

impl Fd {
    /// Takes over a descriptor that somebody else opened for this program.
    #[must_use]
    pub const fn inherited(raw: i32) -> Self {
        Self(raw)
    }

    /// Returns the descriptor's number.
    #[must_use]
    pub fn raw(self) -> i32 {
        self.0
    }

    /// Closes the descriptor.
    pub fn close(self) {
        // SAFETY: closing touches no memory.
        let _closed = unsafe { syscall!(Sysno::close, self.argument()) };
    }

    fn argument(self) -> usize {
        self.0 as usize
    }
}

/// Opens a file of the kernel's or a device.
fn open(path: &CStr, flags: u32) -> Result<Fd> {
    // SAFETY: `path` is a C string that lives through the call.
    unsafe { syscall!(Sysno::openat, AT_FDCWD as usize, path.as_ptr(), flags, 0usize) }.map(|fd| Fd(fd as i32))
}

/// One event of an [`Epoll`].
pub type Event = epoll_event;

/// Space for one event.
pub const NO_EVENT: Event = Event { events: 0, data: 0 };

/// An epoll instance.
#[derive(Clone, Copy, Debug)]
pub struct Epoll(Fd);

impl Epoll {
    /// No instance.
    pub const NONE: Self = Self(Fd(0));

    /// Creates an instance.
    pub fn new() -> Result<Self> {
        // SAFETY: no memory is passed.
        unsafe { syscall!(Sysno::epoll_create1, EPOLL_CLOEXEC) }.map(|fd| Self(Fd(fd as i32)))
    }

    /// Returns the instance's descriptor, readable while events wait.
    #[must_use]
    pub fn fd(self) -> Fd {
        self.0
    }

    /// Watches `fd` for `events`, reported with `token`.
    pub fn add(self, fd: Fd, events: u32, token: u64) -> Result<()> {
        self.control(EPOLL_CTL_ADD, fd, events, token)
    }

    /// Changes what a watched `fd` is watched for.
    pub fn modify(self, fd: Fd, events: u32, token: u64) -> Result<()> {
        self.control(EPOLL_CTL_MOD, fd, events, token)
    }

    fn control(self, operation: u32, fd: Fd, events: u32, token: u64) -> Result<()> {
        let event = Event { events, data: token };
        // SAFETY: `event` is a live epoll_event for the time of the call, which only reads it.
        unsafe { syscall!(Sysno::epoll_ctl, self.0.argument(), operation, fd.argument(), &raw const event) }.map(drop)
    }

    /// Waits at most `timeout_ms` (-1: without end) for events and returns those that are there; none when a signal
    /// came first.
    pub fn wait(self, events: &mut [Event], timeout_ms: i32) -> Result<&[Event]> {
        let (pointer, length) = (events.as_mut_ptr(), events.len());
        // SAFETY: the kernel writes at most `length` events to the buffer, which lives through the call; the signal
        // mask is null, so its size is ignored.
        let got = unsafe {
            syscall!(Sysno::epoll_pwait, self.0.argument(), pointer, length, timeout_ms as usize, 0usize, 0usize)
        };
        match got {
            Ok(count) => Ok(events.split_at(count.min(length)).0),
            Err(Errno::EINTR) => Ok(&[]),
            Err(errno) => Err(errno),
        }
    }
}

/// A one-shot timer that can be watched.
#[derive(Clone, Copy, Debug)]
pub struct Timer(Fd);

impl Timer {
    /// No timer.
    pub const NONE: Self = Self(Fd(0));

    /// Creates a disarmed timer.
    pub fn new() -> Result<Self> {
        // SAFETY: no memory is passed.
        unsafe { syscall!(Sysno::timerfd_create, CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK) }
            .map(|fd| Self(Fd(fd as i32)))
    }

    /// Returns the timer's descriptor.
    #[must_use]
    pub fn fd(self) -> Fd {
        self.0
    }

    /// Makes the timer fire once, `milliseconds` (below 1,000) from now.
    pub fn arm(self, milliseconds: u32) -> Result<()> {
        let zero = __kernel_timespec { tv_sec: 0, tv_nsec: 0 };
        let value = __kernel_timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
        let spec = __kernel_itimerspec { it_interval: zero, it_value: value };
        // SAFETY: `spec` lives through the call, which only reads it; no old value is asked for.
        unsafe { syscall!(Sysno::timerfd_settime, self.0.argument(), 0usize, &raw const spec, 0usize) }.map(drop)
    }
}

/// Returns the microseconds of the monotonic clock that nothing adjusts, as the kernel's log has them but for an offset.
#[must_use]
pub fn now_us() -> u64 {
    let mut now = __kernel_timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the kernel may write to and that lives through the call.
    let _always = unsafe { syscall!(Sysno::clock_gettime, CLOCK_MONOTONIC_RAW, &raw mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// Returns the milliseconds of that clock.
#[must_use]
pub fn now_ms() -> u64 {
    now_us() / 1_000
}

fn socket(family: u32) -> Result<Fd> {
    // SAFETY: no memory is passed.
    unsafe { syscall!(Sysno::socket, family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0usize) }
        .map(|fd| Fd(fd as i32))
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

    fn new(cid: u32, port: u32) -> Self {
        Self { family: AF_VSOCK as u16, reserved: 0, port, cid, flags: 0 }
    }
}

/// Calls `prepare` with a new socket, which is closed where that fails.
fn prepared(family: u32, prepare: impl FnOnce(Fd) -> Result<()>) -> Result<Fd> {
    let fd = socket(family)?;
    prepare(fd).map(|()| fd).inspect_err(|_| fd.close())
}

/// Creates a non-blocking vsock listener on every CID of this machine.
pub fn listen_vsock(port: u32, backlog: u32) -> Result<Fd> {
    prepared(AF_VSOCK, |listener| {
        let address = VsockAddress::new(VMADDR_CID_ANY.cast_unsigned(), port);
        // SAFETY: `address` is a whole address and lives through the call, which only reads it.
        unsafe { syscall!(Sysno::bind, listener.argument(), &raw const address, VsockAddress::BYTES) }?;
        // SAFETY: no memory is passed.
        unsafe { syscall!(Sysno::listen, listener.argument(), backlog) }.map(drop)
    })
}

/// Starts a non-blocking vsock connection. It is made, or has failed, when the descriptor becomes writable.
pub fn connect_vsock(cid: u32, port: u32) -> Result<Fd> {
    prepared(AF_VSOCK, |stream| {
        let address = VsockAddress::new(cid, port);
        // SAFETY: `address` is a whole address and lives through the call, which only reads it.
        match unsafe { syscall!(Sysno::connect, stream.argument(), &raw const address, VsockAddress::BYTES) } {
            Ok(_) | Err(Errno::EINPROGRESS) => Ok(()),
            Err(errno) => Err(errno),
        }
    })
}

/// The address of a Unix socket.
#[derive(Clone, Copy)]
pub struct UnixAddress(sockaddr_un);

impl UnixAddress {
    /// The address of no socket.
    pub const NONE: Self = Self(sockaddr_un { sun_family: 0, sun_path: [0; MAX_PATH_BYTES + 1] });

    /// The address of the socket at `path`, of which at most [`MAX_PATH_BYTES`] count.
    #[must_use]
    pub fn new(path: &[u8]) -> Self {
        let mut address = Self::NONE;
        address.0.sun_family = AF_UNIX as u16;
        for (to, from) in address.0.sun_path.iter_mut().zip(path.iter().take(MAX_PATH_BYTES)) {
            *to = *from as _;
        }
        address
    }
}

impl core::fmt::Debug for UnixAddress {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.debug_struct("UnixAddress").finish_non_exhaustive()
    }
}

/// Connects to a Unix socket, which either succeeds or fails at once.
pub fn connect_unix(address: &UnixAddress) -> Result<Fd> {
    prepared(AF_UNIX, |stream| {
        let (pointer, length) = (&raw const address.0, size_of::<sockaddr_un>());
        // SAFETY: `address` lives through the call, which only reads it; its path ends in a zero byte.
        unsafe { syscall!(Sysno::connect, stream.argument(), pointer, length) }.map(drop)
    })
}

/// Who is at the other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A vsock peer with this CID.
    Vsock(u32),
    /// A peer of another family (a Unix socket).
    Local,
}

/// Accepts a connection as a non-blocking stream.
pub fn accept(listener: Fd) -> Result<(Fd, Peer)> {
    let mut address = VsockAddress::new(0, 0);
    let mut length = VsockAddress::BYTES as u32;
    let flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    // SAFETY: the kernel writes at most `length` bytes to `address` and 4 to `length`; both live through the call,
    // and every bit pattern is a valid address.
    let stream = unsafe { syscall!(Sysno::accept4, listener.argument(), &raw mut address, &raw mut length, flags) }
        .map(|fd| Fd(fd as i32))?;
    let vsock = u32::from(address.family) == AF_VSOCK && length as usize >= VsockAddress::BYTES;
    Ok((stream, if vsock { Peer::Vsock(address.cid) } else { Peer::Local }))
}

/// Whether a socket listens.
pub fn is_listening(socket: Fd) -> Result<bool> {
    let mut value = 0i32;
    let mut length = size_of::<i32>() as u32;
    let (option, value_at, length_at) = (SO_ACCEPTCONN, &raw mut value, &raw mut length);
    // SAFETY: the kernel writes at most 4 bytes to `value` and 4 to `length`; both live through the call.
    unsafe { syscall!(Sysno::getsockopt, socket.argument(), SOL_SOCKET, option, value_at, length_at) }?;
    Ok(value != 0)
}

/// Reads from a socket without waiting; 0 at the stream's end.
pub fn receive(socket: Fd, buffer: &mut [u8]) -> Result<u32> {
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which lives through the call; no address is
    // asked for.
    unsafe { syscall!(Sysno::recvfrom, socket.argument(), pointer, length, MSG_DONTWAIT, 0usize, 0usize) }
        .map(|count| count as u32)
}

/// Writes to a socket what there is room for, without raising SIGPIPE.
///
/// No bytes at all show whether the peer still reads: this succeeds after the peer ended only its sending side and
/// fails after it closed, on vsock and on Unix sockets, where epoll reports the two alike.
pub fn send(socket: Fd, bytes: &[u8]) -> Result<u32> {
    let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes`, which live through the call; no address is given.
    unsafe { syscall!(Sysno::sendto, socket.argument(), bytes.as_ptr(), bytes.len(), flags, 0usize, 0usize) }
        .map(|count| count as u32)
}

/// Writes to a socket what there is room for of three pieces in order, without raising SIGPIPE.
pub fn send_pieces(socket: Fd, pieces: [&[u8]; 3]) -> Result<u32> {
    let mut vectors =
        pieces.map(|piece| iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() as _ });
    let message = msghdr {
        msg_name: core::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: vectors.as_mut_ptr().cast(),
        msg_iovlen: vectors.len(),
        msg_control: core::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    // SAFETY: `message` and the vectors and pieces that it points to live through the call, which only reads them.
    unsafe { syscall!(Sysno::sendmsg, socket.argument(), &raw const message, MSG_DONTWAIT | MSG_NOSIGNAL) }
        .map(|count| count as u32)
}

/// Makes an inherited descriptor non-blocking.
pub fn set_nonblocking(fd: Fd) -> Result<()> {
    // SAFETY: no memory is passed.
    let flags = unsafe { syscall!(Sysno::fcntl, fd.argument(), F_GETFL) }?;
    // SAFETY: no memory is passed.
    unsafe { syscall!(Sysno::fcntl, fd.argument(), F_SETFL, flags | O_NONBLOCK as usize) }.map(drop)
}

/// Reads the beginning of a small file; nothing where that cannot be read.
pub fn read_file<'b>(path: &CStr, buffer: &'b mut [u8]) -> &'b [u8] {
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    let Ok(file) = open(path, O_CLOEXEC | O_NONBLOCK) else { return &[] };
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which lives through the call.
    let count = unsafe { syscall!(Sysno::read, file.argument(), pointer, length) };
    file.close();
    up_to(buffer, count.unwrap_or(0))
}

/// Reads the newest messages of the kernel's log that fit into the buffer, whole and as text.
pub fn read_kernel_log(buffer: &mut [u8]) -> Result<&[u8]> {
    /// `SYSLOG_ACTION_READ_ALL` of syslog(2).
    const READ_ALL: usize = 3;
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which lives through the call.
    let count = unsafe { syscall!(Sysno::syslog, READ_ALL, pointer, length) }?;
    Ok(up_to(buffer, count))
}

/// Whether a path exists.
#[must_use]
pub fn exists(path: &CStr) -> bool {
    // SAFETY: `path` is a C string that lives through the call.
    unsafe { syscall!(Sysno::faccessat, AT_FDCWD as usize, path.as_ptr(), 0usize) }.is_ok()
}

/// Opens what is closed of standard input, output and error, so that no socket becomes one of them.
///
/// An early init may have no `/dev/null` yet; the root directory takes no bytes either.
pub fn open_standard_descriptors() {
    loop {
        match open(c"/dev/null", O_RDWR).or_else(|_| open(c"/", 0)) {
            Ok(Fd(0..=2)) => {}
            Ok(other) => return other.close(),
            Err(_) => return,
        }
    }
}

/// Returns this process's id.
#[must_use]
pub fn process_id() -> u32 {
    // SAFETY: no memory is passed.
    unsafe { syscall!(Sysno::getpid) }.map_or(0, |id| id as u32)
}

/// Writes to a descriptor, as much as it takes at once.
pub fn write(fd: i32, bytes: &[u8]) {
    // SAFETY: the kernel reads `bytes`, which live through the call.
    let _written = unsafe { syscall!(Sysno::write, fd as usize, bytes.as_ptr(), bytes.len()) };
}

/// Ends the process.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: no memory is passed, and nothing of this process runs afterwards.
        let _never = unsafe { syscall!(Sysno::exit_group, status as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_file_is_read_and_a_missing_one_is_empty() {
        let mut buffer = [0; 16];
        assert_eq!(read_file(c"/proc/sys/kernel/ostype", &mut buffer), b"Linux\n");
        assert_eq!(read_file(c"/proc/sys/kernel/ostype", &mut buffer[..3]), b"Lin");
        assert_eq!(read_file(c"/proc/nowhere", &mut buffer), b"");
        assert_eq!(read_file(c"/proc", &mut buffer), b"");
    }

    #[test]
    fn the_kernel_log_is_read_within_the_buffer_or_refused() {
        let mut buffer = [0xff; 4096];
        match read_kernel_log(&mut buffer[..512]) {
            Ok(log) => assert!(log.len() <= 512),
            Err(errno) => assert_eq!(errno, Errno::EPERM),
        }
        assert!(buffer[512..].iter().all(|&byte| byte == 0xff));
    }

    #[test]
    fn what_is_no_epoll_instance_has_no_events() {
        assert!(Epoll::NONE.wait(&mut [NO_EVENT], 0).is_err());
    }

    #[test]
    fn an_address_is_truncated_to_what_the_kernel_takes() {
        let address = UnixAddress::new(&[b'x'; 2 * MAX_PATH_BYTES]);
        assert_eq!(address.0.sun_path.last(), Some(&0), "its path ends in a zero byte");
        assert_eq!(connect_unix(&address), Err(Errno::ENOENT));
        assert_eq!(format!("{address:?}"), "UnixAddress { .. }");
    }

    #[test]
    fn an_empty_send_fails_only_after_a_full_close() {
        use std::net::Shutdown;
        use std::os::fd::AsRawFd;
        use std::os::unix::net::UnixStream;

        let (host, guest) = UnixStream::pair().unwrap();
        let fd = Fd::inherited(guest.as_raw_fd());
        assert_eq!(send(fd, b""), Ok(0));
        host.shutdown(Shutdown::Write).unwrap();
        assert_eq!(send(fd, b""), Ok(0));
        drop(host);
        assert_eq!(send(fd, b""), Err(Errno::EPIPE));
    }
}
