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
    __kernel_itimerspec, __kernel_timespec, AT_FDCWD, CLOCK_MONOTONIC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD,
    F_GETFL, F_SETFL, O_CLOEXEC, O_NONBLOCK, TFD_CLOEXEC, TFD_NONBLOCK, epoll_event, iovec,
};
use linux_raw_sys::net::{
    AF_UNIX, AF_VSOCK, MSG_DONTWAIT, MSG_NOSIGNAL, SO_ACCEPTCONN, SO_ERROR, SOCK_STREAM, SOL_SOCKET, msghdr,
    sockaddr_un,
};
pub use syscalls::Errno;
use syscalls::{Sysno, syscall};

pub use linux_raw_sys::general::{EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP};
pub use linux_raw_sys::vm_sockets::{VMADDR_CID_ANY, VMADDR_CID_HOST};

/// What a system call gives.
pub type Result<T> = core::result::Result<T, Errno>;

const SOCK_NONBLOCK: u32 = O_NONBLOCK;
const SOCK_CLOEXEC: u32 = O_CLOEXEC;

/// An open descriptor, closed on drop.
#[derive(Debug)]
pub struct Fd(i32);

impl Fd {
    /// Takes over a descriptor that somebody else opened for this program.
    #[must_use]
    pub fn inherited(raw: i32) -> Self {
        Self(raw)
    }

    /// The descriptor's number.
    #[must_use]
    pub fn raw(&self) -> i32 {
        self.0
    }

    fn argument(&self) -> usize {
        self.0 as usize
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: closing touches no memory, and this value is the descriptor's only owner.
        let _closed = unsafe { syscall!(Sysno::close, self.argument()) };
    }
}

/// One event of an [`Epoll`].
pub type Event = epoll_event;

/// Space for one event.
pub const NO_EVENT: Event = Event { events: 0, data: 0 };

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll(Fd);

impl Epoll {
    /// A new instance.
    pub fn new() -> Result<Self> {
        // SAFETY: no memory is passed.
        unsafe { syscall!(Sysno::epoll_create1, EPOLL_CLOEXEC) }.map(|fd| Self(Fd(fd as i32)))
    }

    /// The instance's descriptor, readable while events wait.
    #[must_use]
    pub fn fd(&self) -> &Fd {
        &self.0
    }

    /// Watches `fd` for `events`, reported with `token`.
    pub fn add(&self, fd: &Fd, events: u32, token: u64) -> Result<()> {
        self.control(EPOLL_CTL_ADD, fd, events, token)
    }

    /// Changes what a watched `fd` is watched for.
    pub fn modify(&self, fd: &Fd, events: u32, token: u64) -> Result<()> {
        self.control(EPOLL_CTL_MOD, fd, events, token)
    }

    fn control(&self, operation: u32, fd: &Fd, events: u32, token: u64) -> Result<()> {
        let event = Event { events, data: token };
        // SAFETY: `event` is a live epoll_event for the time of the call, which only reads it.
        unsafe { syscall!(Sysno::epoll_ctl, self.0.argument(), operation, fd.argument(), &raw const event) }.map(drop)
    }

    /// Waits at most `timeout_ms` (-1: without end) for events and returns those that are there; none when a signal
    /// came first.
    pub fn wait<'e>(&self, events: &'e mut [Event], timeout_ms: i32) -> Result<&'e [Event]> {
        let (pointer, length) = (events.as_mut_ptr(), events.len());
        // SAFETY: the kernel writes at most `length` events to the buffer, which lives through the call; the signal
        // mask is null, so its size is ignored.
        let got = unsafe {
            syscall!(Sysno::epoll_pwait, self.0.argument(), pointer, length, timeout_ms as usize, 0usize, 0usize)
        };
        match got {
            Ok(count) => Ok(events.get(..count).unwrap_or(&[])),
            Err(Errno::EINTR) => Ok(&[]),
            Err(errno) => Err(errno),
        }
    }
}

/// A one-shot timer that can be watched.
#[derive(Debug)]
pub struct Timer(Fd);

impl Timer {
    /// A disarmed timer.
    pub fn new() -> Result<Self> {
        // SAFETY: no memory is passed.
        unsafe { syscall!(Sysno::timerfd_create, CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK) }
            .map(|fd| Self(Fd(fd as i32)))
    }

    /// The timer's descriptor.
    #[must_use]
    pub fn fd(&self) -> &Fd {
        &self.0
    }

    /// Goes off once, `milliseconds` (below 1,000) from now.
    pub fn arm(&self, milliseconds: u32) -> Result<()> {
        let zero = __kernel_timespec { tv_sec: 0, tv_nsec: 0 };
        let value = __kernel_timespec { tv_sec: 0, tv_nsec: i64::from(milliseconds) * 1_000_000 };
        let spec = __kernel_itimerspec { it_interval: zero, it_value: value };
        // SAFETY: `spec` lives through the call, which only reads it; no old value is asked for.
        unsafe { syscall!(Sysno::timerfd_settime, self.0.argument(), 0usize, &raw const spec, 0usize) }.map(drop)
    }
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

/// A non-blocking vsock listener on every CID of this machine.
pub fn listen_vsock(port: u32, backlog: u32) -> Result<Fd> {
    let listener = socket(AF_VSOCK)?;
    let address = VsockAddress::new(VMADDR_CID_ANY.cast_unsigned(), port);
    // SAFETY: `address` is a whole address and lives through the call, which only reads it.
    unsafe { syscall!(Sysno::bind, listener.argument(), &raw const address, VsockAddress::BYTES) }?;
    // SAFETY: no memory is passed.
    unsafe { syscall!(Sysno::listen, listener.argument(), backlog) }?;
    Ok(listener)
}

/// Starts a non-blocking vsock connection. It is complete when the descriptor becomes writable and
/// [`take_error`] has none.
pub fn dial_vsock(cid: u32, port: u32) -> Result<Fd> {
    let stream = socket(AF_VSOCK)?;
    let address = VsockAddress::new(cid, port);
    // SAFETY: `address` is a whole address and lives through the call, which only reads it.
    let dialled = unsafe { syscall!(Sysno::connect, stream.argument(), &raw const address, VsockAddress::BYTES) };
    match dialled {
        Ok(_) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(errno) => Err(errno),
    }
}

/// Connects to a Unix socket, which either succeeds or fails at once.
pub fn connect_unix(path: &[u8]) -> Result<Fd> {
    let mut address = sockaddr_un { sun_family: AF_UNIX as u16, sun_path: [0; 108] };
    if path.len() >= address.sun_path.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as _;
    }
    let stream = socket(AF_UNIX)?;
    // SAFETY: `address` lives through the call, which only reads it; its path ends in a zero byte.
    unsafe { syscall!(Sysno::connect, stream.argument(), &raw const address, size_of::<sockaddr_un>()) }?;
    Ok(stream)
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
pub fn accept(listener: &Fd) -> Result<(Fd, Peer)> {
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

/// The pending error of a socket, which is thereby taken; `Ok` where there is none.
pub fn take_error(socket: &Fd) -> Result<()> {
    match socket_option(socket, SO_ERROR)? {
        0 => Ok(()),
        error => Err(Errno::new(error)),
    }
}

/// Whether a socket listens.
pub fn is_listening(socket: &Fd) -> Result<bool> {
    socket_option(socket, SO_ACCEPTCONN).map(|listens| listens != 0)
}

fn socket_option(socket: &Fd, option: u32) -> Result<i32> {
    let mut value = 0i32;
    let mut length = size_of::<i32>() as u32;
    // SAFETY: the kernel writes at most 4 bytes to `value` and 4 to `length`; both live through the call.
    unsafe { syscall!(Sysno::getsockopt, socket.argument(), SOL_SOCKET, option, &raw mut value, &raw mut length) }?;
    Ok(value)
}

/// Reads what is there from a socket; 0 at the stream's end.
pub fn receive(socket: &Fd, buffer: &mut [u8]) -> Result<usize> {
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which lives through the call; no address is
    // asked for.
    unsafe { syscall!(Sysno::recvfrom, socket.argument(), pointer, length, MSG_DONTWAIT, 0usize, 0usize) }
}

/// Writes what there is room for, without raising SIGPIPE.
pub fn send(socket: &Fd, bytes: &[u8]) -> Result<usize> {
    let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes`, which live through the call; no address is given.
    unsafe { syscall!(Sysno::sendto, socket.argument(), bytes.as_ptr(), bytes.len(), flags, 0usize, 0usize) }
}

/// Writes what there is room for of three pieces in order, without raising SIGPIPE.
pub fn send_pieces(socket: &Fd, pieces: [&[u8]; 3]) -> Result<usize> {
    if let [only, [], []] = pieces {
        return send(socket, only);
    }
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
}

/// Makes an inherited descriptor non-blocking.
pub fn set_nonblocking(fd: &Fd) -> Result<()> {
    // SAFETY: no memory is passed.
    let flags = unsafe { syscall!(Sysno::fcntl, fd.argument(), F_GETFL) }?;
    // SAFETY: no memory is passed.
    unsafe { syscall!(Sysno::fcntl, fd.argument(), F_SETFL, flags | O_NONBLOCK as usize) }.map(drop)
}

/// Reads the front of a small file.
pub fn read_file<'b>(path: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    let flags = O_CLOEXEC | O_NONBLOCK;
    // SAFETY: `path` is a C string that lives through the call.
    let file =
        unsafe { syscall!(Sysno::openat, AT_FDCWD as usize, path.as_ptr(), flags, 0usize) }.map(|fd| Fd(fd as i32))?;
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which lives through the call.
    let count = unsafe { syscall!(Sysno::read, file.argument(), pointer, length) }?;
    Ok(buffer.get(..count).unwrap_or(&[]))
}

/// Whether a path exists.
#[must_use]
pub fn exists(path: &CStr) -> bool {
    // SAFETY: `path` is a C string that lives through the call.
    unsafe { syscall!(Sysno::faccessat, AT_FDCWD as usize, path.as_ptr(), 0usize) }.is_ok()
}

/// This process's id.
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
    fn the_front_of_a_file_is_read_and_a_missing_one_named() {
        let mut buffer = [0; 16];
        assert_eq!(read_file(c"/proc/sys/kernel/ostype", &mut buffer), Ok(&b"Linux\n"[..]));
        assert_eq!(read_file(c"/proc/sys/kernel/ostype", &mut buffer[..3]), Ok(&b"Lin"[..]));
        assert_eq!(read_file(c"/proc/nowhere", &mut buffer), Err(Errno::ENOENT));
        assert_eq!(read_file(c"/proc", &mut buffer), Err(Errno::EISDIR));
    }
}
