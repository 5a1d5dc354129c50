//! What comes from outside while a table is shown: keys and signals.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use anyhow::Result;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::signals::{Received, Signals};

/// The signals that are handled: those that end the command, stop it, or say that the terminal has another size.
pub const SIGNALS: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP, Signal::SIGWINCH];

/// A key or a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A byte that the terminal sent for a key.
    Key(u8),
    /// A signal.
    Signal(Received),
}

/// Passes every key and signal to `send`, on a thread of its own, until that returns false. It ends with the process.
///
/// # Errors
///
/// There is no thread left.
pub fn spawn(keys: Option<File>, signals: Signals, mut send: impl FnMut(Input) -> bool + Send + 'static) -> Result<()> {
    let read = move || {
        let mut keys = keys;
        // It ends where descriptors cannot be polled or read, which no peer causes.
        while let Ok(true) = pass(&mut keys, &signals, &mut send) {}
    };
    thread::Builder::new().name("input".into()).spawn(read)?;
    Ok(())
}

/// Waits for keys and signals, and passes those that are there.
fn pass(keys: &mut Option<File>, signals: &Signals, send: &mut impl FnMut(Input) -> bool) -> Result<bool> {
    let keys_are_ready = wait(signals.as_fd(), keys.as_ref().map(AsFd::as_fd))?;
    while let Some(signal) = signals.next()? {
        if !send(Input::Signal(signal)) {
            return Ok(false);
        }
    }
    let Some(open) = keys.as_mut().filter(|_| keys_are_ready) else { return Ok(true) };
    let mut bytes = [0; 64];
    match open.read(&mut bytes) {
        Ok(count @ 1..) => Ok(bytes.iter().take(count).all(|byte| send(Input::Key(*byte)))),
        // The terminal is gone.
        Ok(0) | Err(_) => {
            *keys = None;
            Ok(true)
        }
    }
}

/// Waits until there is a signal or a key; true if there is a key.
fn wait(signals: BorrowedFd<'_>, keys: Option<BorrowedFd<'_>>) -> Result<bool> {
    let descriptors = [Some(signals), keys].into_iter().flatten();
    let mut descriptors: Vec<PollFd<'_>> = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    match poll(&mut descriptors, None) {
        Ok(_) => Ok(descriptors.get(1).is_some_and(|keys| !keys.revents().is_empty())),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
