//! A thread that cancels a run after a time.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, getpid};

use super::in_flight::InFlight;

/// Cancels its run when its time is over. Disarmed on drop.
///
/// Its thread is not part of a process that is forked later: there, the watchdog cancels nothing.
///
/// ```
/// use std::time::Duration;
///
/// let run = scx_vsock::RunControl::new();
/// let watchdog = run.watchdog(Duration::from_secs(600))?;
/// // ... after each phase of the run, the next one is allowed a minute ...
/// watchdog.extend(Duration::from_secs(60));
/// drop(watchdog);
/// assert!(!run.is_cancelled());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Watchdog {
    timer: Arc<Timer>,
    thread: Option<JoinHandle<()>>,
    /// The process that has the thread.
    process: Pid,
}

struct Timer {
    due: Mutex<Due>,
    changed: Condvar,
}

/// When the run is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    At(Instant),
    /// Armed for a time beyond the clock's range.
    Unbounded,
    /// Disarmed, or cancelled already.
    Never,
}

impl Timer {
    fn due(&self) -> MutexGuard<'_, Due> {
        // Whole at every point where a thread could panic.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, due: Due) {
        *self.due() = due;
        self.changed.notify_all();
    }

    fn run(&self, in_flight: &InFlight) {
        let mut due = self.due();
        loop {
            let left = match *due {
                Due::Never => return,
                Due::Unbounded => Duration::MAX,
                Due::At(at) => at.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                // Under the lock, so that no cancel comes after a disarm that has returned.
                *due = Due::Never;
                return in_flight.cancel();
            }
            due = self.changed.wait_timeout(due, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Watchdog {
    pub(super) fn start(in_flight: Arc<InFlight>, after: Duration) -> io::Result<Self> {
        let timer = Arc::new(Timer { due: Mutex::new(Due::after(after)), changed: Condvar::new() });
        let in_thread = Arc::clone(&timer);
        let thread = thread::Builder::new().name("watchdog".into()).spawn(move || in_thread.run(&in_flight))?;
        Ok(Self { timer, thread: Some(thread), process: getpid() })
    }

    /// Sets a new time: the run is cancelled this long from now, however long that is. Returns false if it was cancelled
    /// already, or the watchdog was disarmed.
    pub fn extend(&self, after: Duration) -> bool {
        let mut due = self.timer.due();
        let armed = *due != Due::Never;
        if armed {
            *due = Due::after(after);
            self.timer.changed.notify_all();
        }
        armed
    }

    /// Disarms the watchdog for good. Once this returns it does not cancel the run any more.
    pub fn disarm(&self) {
        self.timer.set(Due::Never);
    }
}

impl Due {
    fn after(duration: Duration) -> Self {
        Instant::now().checked_add(duration).map_or(Self::Unbounded, Self::At)
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("due", &*self.timer.due()).finish_non_exhaustive()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if getpid() != self.process {
            // A forked process has no such thread: it can neither be joined nor detached, nor unlock the timer.
            return std::mem::forget(self.thread.take());
        }
        self.disarm();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::RunControl;

    #[test]
    fn a_watchdog_cancels_its_run() {
        let control = RunControl::new();
        let mut watchdog = control.watchdog(Duration::from_millis(1)).unwrap();
        watchdog.thread.take().unwrap().join().unwrap();
        assert!(control.is_cancelled() && !watchdog.extend(Duration::from_secs(1)));
    }

    #[test]
    fn a_disarmed_or_dropped_watchdog_never_cancels() {
        let control = RunControl::new();
        let watchdog = control.watchdog(Duration::from_secs(3_600)).unwrap();
        assert!(watchdog.extend(Duration::from_secs(7_200)));
        watchdog.disarm();
        assert!(!watchdog.extend(Duration::ZERO));
        drop(watchdog);
        drop(control.watchdog(Duration::MAX).unwrap());
        assert!(!control.is_cancelled());
    }

    #[test]
    fn the_longest_duration_keeps_a_watchdog_armed() {
        let control = RunControl::new();
        let mut watchdog = control.watchdog(Duration::MAX).unwrap();
        assert!(watchdog.extend(Duration::MAX));
        assert!(watchdog.extend(Duration::from_millis(1)), "it was disarmed");
        watchdog.thread.take().unwrap().join().unwrap();
        assert!(control.is_cancelled());
    }

    #[test]
    fn an_extended_watchdog_cancels_later() {
        let control = RunControl::new();
        let mut watchdog = control.watchdog(Duration::from_secs(3_600)).unwrap();
        assert!(watchdog.extend(Duration::from_millis(1)));
        watchdog.thread.take().unwrap().join().unwrap();
        assert!(control.is_cancelled());
    }
}
