//! A timer that cancels a run.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::RunControl;

/// Cancels its run when its time is over. Disarmed on drop.
///
/// ```
/// use std::time::Duration;
///
/// let run = scx_vsock::RunControl::new();
/// let watchdog = run.watchdog(Duration::from_secs(600))?;
/// // ... each phase that ends in time gives the next one its own ...
/// watchdog.extend(Duration::from_secs(60));
/// drop(watchdog);
/// assert!(!run.is_cancelled());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    due: Mutex<Due>,
    changed: Condvar,
}

/// When the run is to be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    At(Instant),
    Never,
}

impl Shared {
    fn due(&self) -> MutexGuard<'_, Due> {
        // Whole at every point where a thread could panic.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, due: Due) {
        *self.due() = due;
        self.changed.notify_all();
    }

    fn wait(&self, control: &RunControl) {
        let mut due = self.due();
        while let Due::At(at) = *due {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Under the lock, so that no cancel comes behind a disarm that has returned.
                *due = Due::Never;
                return control.cancel();
            }
            due = self.changed.wait_timeout(due, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Watchdog {
    pub(super) fn start(control: RunControl, after: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared { due: Mutex::new(Due::after(after)), changed: Condvar::new() });
        let waits = Arc::clone(&shared);
        let thread = thread::Builder::new().name("watchdog".into()).spawn(move || waits.wait(&control))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets the time anew: the run is cancelled this long from now. False if that has happened already, or the
    /// watchdog was disarmed.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let run = scx_vsock::RunControl::new();
    /// let watchdog = run.watchdog(Duration::from_secs(600))?;
    /// assert!(watchdog.extend(Duration::from_secs(1_200)));
    /// watchdog.disarm();
    /// assert!(!watchdog.extend(Duration::from_secs(60)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn extend(&self, after: Duration) -> bool {
        let mut due = self.shared.due();
        let armed = *due != Due::Never;
        if armed {
            *due = Due::after(after);
            self.shared.changed.notify_all();
        }
        armed
    }

    /// Lets the run go on without end. Once this returns the watchdog does not cancel it any more.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let run = scx_vsock::RunControl::new();
    /// let watchdog = run.watchdog(Duration::from_secs(600))?;
    /// watchdog.disarm();
    /// assert!(!run.is_cancelled());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn disarm(&self) {
        self.shared.set(Due::Never);
    }
}

impl Due {
    /// A time that is beyond the clock's range never comes.
    fn after(duration: Duration) -> Self {
        Instant::now().checked_add(duration).map_or(Self::Never, Self::At)
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("due", &*self.shared.due()).finish_non_exhaustive()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.disarm();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_cancels_its_run_in_time() {
        let control = RunControl::new();
        let mut watchdog = control.watchdog(Duration::from_millis(1)).unwrap();
        watchdog.thread.take().unwrap().join().unwrap();
        assert!(control.is_cancelled() && !watchdog.extend(Duration::from_secs(1)));
    }

    #[test]
    fn a_watchdog_that_is_disarmed_or_dropped_never_cancels() {
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
    fn an_extended_watchdog_cancels_at_its_new_time() {
        let control = RunControl::new();
        let mut watchdog = control.watchdog(Duration::from_secs(3_600)).unwrap();
        assert!(watchdog.extend(Duration::from_millis(1)));
        watchdog.thread.take().unwrap().join().unwrap();
        assert!(control.is_cancelled());
    }
}
