//! Traffic over one guest's vsock, the same on both sides: transfers on many connections at once, while other
//! connections come and go in every way.
//!
//! A control connection, which the guest connects first, carries nothing: its end means that a side is done.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::vsock::Listener;

use crate::pattern::{self, LARGE};

/// Connections that each side makes for transfers.
pub const LANES: u8 = 16;

/// The port for transfers, on both sides.
pub const TRANSFERS: u32 = 4_000;
/// The port for connections that come and go, which are sent back what they bring.
pub const PASSING: u32 = 4_001;
/// Where nobody listens.
const NOBODY: u32 = 4_002;

/// How long anything may take that must happen. An emulated guest on a busy machine is slow.
const DEADLINE: Duration = Duration::from_secs(120);

/// Bytes of each write and read where they are small; it divides nothing else here.
const SMALL: usize = 999;

/// Bytes at most that a passing connection brings.
const PASSING_BYTES: u64 = 100_000;

/// One side: how it reaches the other.
pub trait Side: Sync {
    /// Starts a connection to a port of the other side. It may still be connecting.
    ///
    /// # Errors
    ///
    /// What is known at once to prevent it.
    fn connect(&self, port: u32) -> io::Result<OwnedFd>;

    /// Makes the receive buffer of a connection that nothing was sent to as small as this side can.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn shrink(&self, _stream: &UnixStream) -> io::Result<()> {
        Ok(())
    }

    /// The number that makes this side's bytes differ from the other's.
    fn number(&self) -> u64;
}

/// A port that the other side connects to.
pub trait Listen: AsFd + Sync {
    /// The next connection, of which the caller knows that it waits.
    ///
    /// # Errors
    ///
    /// What accepting failed with.
    fn accept(&self) -> io::Result<OwnedFd>;
}

impl Listen for Listener {
    fn accept(&self) -> io::Result<OwnedFd> {
        Self::accept(self).map(OwnedFd::from)
    }
}

impl Listen for OwnedFd {
    fn accept(&self) -> io::Result<OwnedFd> {
        Ok(rustix::net::accept(self)?)
    }
}

/// Sends `bytes` and takes as many on each of `2 * LANES` connections, while other connections come and go. Returns how
/// many of those this side made.
///
/// # Errors
///
/// What went wrong first: bytes that are not those that were sent, a wait that does not end, an end before its time.
pub fn run<L: Listen>(
    side: &dyn Side,
    control: &UnixStream,
    transfers: &L,
    passing: &L,
    bytes: u64,
) -> io::Result<usize> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let echoes = scope.spawn(|| serve_passing(control, passing));
        let passes = scope.spawn(|| pass_until(side, &done));
        let moved = transfer_all(side, transfers, bytes);
        done.store(true, Ordering::Relaxed);
        let passed = passes.join().map_err(|_| ended_early())?;
        control.shutdown(Shutdown::Write)?;
        let echoed = echoes.join().map_err(|_| ended_early())?;
        labelled("a transfer", moved)?;
        labelled("sending back", echoed)?;
        labelled("a passing connection", passed)
    })
}

fn transfer_all(side: &dyn Side, transfers: &impl Listen, bytes: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let mut running = Vec::new();
        for lane in 0..LANES {
            running.push(scope.spawn(move || {
                let stream = connected(side, TRANSFERS)?;
                if piece(lane) == SMALL {
                    side.shrink(&stream)?;
                }
                (&stream).write_all(&[lane])?;
                labelled(&format!("connected lane {lane}"), transfer(side, &stream, lane, bytes))
            }));
        }
        for _ in 0..LANES {
            let stream = wait_and_accept(transfers)?;
            running.push(scope.spawn(move || {
                let mut lane = [0];
                (&stream).read_exact(&mut lane)?;
                labelled(&format!("accepted lane {}", lane[0]), transfer(side, &stream, lane[0], bytes))
            }));
        }
        let ends: Vec<_> = running.into_iter().map(|lane| lane.join().map_err(|_| ended_early())?).collect();
        ends.into_iter().collect()
    })
}

/// Every second connection has small writes and reads.
fn piece(lane: u8) -> usize {
    if lane.is_multiple_of(2) { LARGE } else { SMALL }
}

fn transfer(side: &dyn Side, stream: &UnixStream, lane: u8, bytes: u64) -> io::Result<()> {
    let numbered = |side: u64| 2 * u64::from(lane) + side;
    let arrived = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            pattern::send_in_pieces(stream, numbered(side.number()), bytes, piece(lane))?;
            stream.shutdown(Shutdown::Write)
        });
        let arrived = labelled("receiving", pattern::receive_in_pieces(stream, piece(lane)));
        labelled("sending", sender.join().map_err(|_| ended_early())?)?;
        arrived
    })?;
    same(arrived, pattern::expected(numbered(1 - side.number()), bytes))
}

/// Makes connections, one after another, each of the next kind, until `done`. Returns how many.
fn pass_until(side: &dyn Side, done: &AtomicBool) -> io::Result<usize> {
    let kinds = [half_closed, dropped_with_bytes_on_their_way, refused, dropped_while_it_connects];
    let mut random = fastrand::Rng::with_seed(side.number());
    let mut passed = 0;
    for kind in kinds.into_iter().cycle() {
        if done.load(Ordering::Relaxed) {
            break;
        }
        labelled(&format!("passing connection {passed}"), kind(side, random.u64(1..PASSING_BYTES)))?;
        passed += 1;
    }
    Ok(passed)
}

fn half_closed(side: &dyn Side, bytes: u64) -> io::Result<()> {
    let stream = connected(side, PASSING)?;
    let arrived = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            pattern::send(&stream, bytes, bytes)?;
            stream.shutdown(Shutdown::Write)
        });
        let arrived = pattern::receive(&stream);
        sender.join().map_err(|_| ended_early())??;
        arrived
    })?;
    same(arrived, pattern::expected(bytes, bytes))
}

/// Little enough that no write waits for the other side.
fn dropped_with_bytes_on_their_way(side: &dyn Side, bytes: u64) -> io::Result<()> {
    pattern::send(&connected(side, PASSING)?, bytes, bytes / 10)
}

fn dropped_while_it_connects(side: &dyn Side, _bytes: u64) -> io::Result<()> {
    side.connect(PASSING).map(drop)
}

fn refused(side: &dyn Side, _bytes: u64) -> io::Result<()> {
    let mut byte = [0];
    match connected(side, NOBODY).and_then(|mut stream| stream.read(&mut byte)) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::InvalidData, "nobody sent a byte")),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sends passing connections what they bring, until the other side makes no more.
fn serve_passing(control: &UnixStream, passing: &impl Listen) -> io::Result<()> {
    thread::scope(|scope| {
        loop {
            let mut fds = [PollFd::new(passing, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout()))? == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
            if fds[0].revents().is_empty() {
                return Ok(());
            }
            let stream = blocking(passing.accept()?)?;
            // One that was dropped ends in an error, which is its own.
            scope.spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    })
}

/// A connection to a port of the other side, which may have been refused on the host, whose streams are connected at
/// once.
///
/// # Errors
///
/// Why it is not connected.
pub fn connected(side: &dyn Side, port: u32) -> io::Result<UnixStream> {
    let stream = side.connect(port)?;
    if poll(&mut [PollFd::new(&stream, PollFlags::OUT)], Some(&timeout()))? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    rustix::net::sockopt::socket_error(&stream)??;
    blocking(stream)
}

/// The next connection that comes.
///
/// # Errors
///
/// `TimedOut` if none comes.
pub fn wait_and_accept(listener: &impl Listen) -> io::Result<UnixStream> {
    if poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout()))? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    blocking(listener.accept()?)
}

/// Reading, writing and shutting down are the same system calls for every family of stream sockets.
fn blocking(stream: OwnedFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn timeout() -> Timespec {
    Timespec::try_from(DEADLINE).expect("a short deadline")
}

fn same(arrived: pattern::Arrived, expected: pattern::Arrived) -> io::Result<()> {
    if arrived == expected {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidData, format!("{arrived:?} arrived of {expected:?}")))
}

fn labelled<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| Error::new(error.kind(), format!("{what}: {error}")))
}

fn ended_early() -> Error {
    Error::other("a thread panicked")
}
