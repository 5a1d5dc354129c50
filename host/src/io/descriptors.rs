//! Descriptors that are kept free for what cannot be received again.
//!
//! A descriptor in a control message (SCM_RIGHTS) is lost where the process may not have one more, and its sender does not
//! learn of it. So that connections, which anybody can open, never take the last ones, none keeps a number near the limit
//! while some are reserved. Those below the reserved numbers are for everybody.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

#[cfg(feature = "vhost-user")]
use super::eventfd::{EventFd, Notify};

/// How many are reserved in this process.
static RESERVED: AtomicU64 = AtomicU64::new(0);

/// Descriptors that connections leave free until this is dropped, of those that the process may have half at most.
#[cfg(feature = "vhost-user")]
#[derive(Debug)]
pub(crate) struct Reservation(u64);

#[cfg(feature = "vhost-user")]
impl Reservation {
    pub(crate) fn new(count: u64) -> Self {
        RESERVED.fetch_add(count, Ordering::Relaxed);
        Self(count)
    }

    /// Returns whether the process can have all of them now.
    ///
    /// # Errors
    ///
    /// The kernel's, if it cannot.
    pub(crate) fn check(&self) -> io::Result<()> {
        let held: io::Result<Vec<EventFd>> = (0..self.0).map(|_| EventFd::new()).collect();
        held.map(drop)
    }
}

#[cfg(feature = "vhost-user")]
impl Drop for Reservation {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Returns whether a connection may keep this descriptor.
///
/// # Errors
///
/// That there are too many, if its number is a reserved one.
pub(crate) fn may_keep(connection: &impl AsFd) -> io::Result<()> {
    let reserved = RESERVED.load(Ordering::Relaxed);
    let Some(limit) = getrlimit(Resource::Nofile).current.filter(|_| reserved > 0) else { return Ok(()) };
    let is_kept =
        u64::try_from(connection.as_fd().as_raw_fd()).is_ok_and(|number| number < unreserved(limit, reserved));
    if is_kept { Ok(()) } else { Err(Errno::MFILE.into()) }
}

/// Returns the first number that is reserved.
fn unreserved(limit: u64, reserved: u64) -> u64 {
    limit.saturating_sub(reserved.min(limit / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_half_of_the_descriptors_are_reserved() {
        let reserved = [(1024, 32), (64, 32), (40, 32), (u64::MAX, u64::MAX), (0, 1)];
        let first = reserved.map(|(limit, reserved)| unreserved(limit, reserved));
        assert_eq!(first, [992, 32, 20, u64::MAX / 2 + 1, 0]);
    }
}
