//! Signals as events: blocked, and read from a descriptor.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A descriptor that reports blocked signals.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The signal's number.
    pub number: i32,
    /// Whether the terminal sent it, and so sent it to every process in the foreground.
    pub from_terminal: bool,
}

impl Signals {
    /// Blocks these signals and reports them, except those that this process was started to ignore. Must be called
    /// while there is one thread. Child processes inherit the block, and end it with [`unblock_all`].
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn block(signals: &[Signal]) -> Result<Self> {
        let ignored = ignored();
        let blocked: SigSet = signals.iter().copied().filter(|&signal| ignored & bit(signal) == 0).collect();
        blocked.thread_block()?;
        Ok(Self(SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next signal that was received; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn next(&self) -> Result<Option<Received>> {
        let Some(info) = self.0.read_signal().context("cannot read from signalfd")? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo)?;
        Ok(Some(Received { number, from_terminal: info.ssi_code == SENT_BY_KERNEL }))
    }
}

/// `SI_KERNEL` of `asm-generic/siginfo.h`.
const SENT_BY_KERNEL: i32 = 0x80;

/// Ends the block of all signals of this thread.
///
/// # Errors
///
/// The kernel's error.
pub fn unblock_all() -> Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Ends this process as the signal with this number does, so that its parent sees that. Returns only if that is ignored.
///
/// # Errors
///
/// The kernel's error.
pub fn end_by(number: i32) -> Result<ExitCode> {
    unblock_all()?;
    raise(Signal::try_from(number)?)?;
    Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX)))
}

/// The ignored signals, such as SIGHUP under nohup, as a mask; empty where /proc is not mounted.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u32).saturating_sub(1)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
