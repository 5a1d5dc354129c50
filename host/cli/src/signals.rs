//! The signals that ask this command to end, as events instead of interruptions.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that are read instead of being acted upon.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub number: i32,
    /// Whether it came from the terminal, which then sent it to every process in the foreground.
    pub from_terminal: bool,
}

impl Signals {
    /// Takes these signals over, those excepted that this process was started to ignore. To be called while there is
    /// one thread; processes that are started inherit it, and undo it with [`give_back`].
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot.
    pub fn take(signals: &[Signal]) -> Result<Self> {
        let ignored = ignored();
        let taken: SigSet = signals.iter().copied().filter(|&signal| ignored & bit(signal) == 0).collect();
        taken.thread_block()?;
        Ok(Self(SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next signal that came; none if there is no other.
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot be read.
    pub fn next(&self) -> Result<Option<Received>> {
        let Some(info) = self.0.read_signal().context("cannot read which signal came")? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo)?;
        Ok(Some(Received { number, from_terminal: info.ssi_code == SENT_BY_KERNEL }))
    }
}

/// `SI_KERNEL` of `asm-generic/siginfo.h`.
const SENT_BY_KERNEL: i32 = 0x80;

/// Lets all signals act on this thread, as they do where nothing was taken.
///
/// # Errors
///
/// What the kernel says if it cannot.
pub fn give_back() -> Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// The signals that are ignored, such as SIGHUP under nohup; a bit each. None where the kernel does not tell.
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
