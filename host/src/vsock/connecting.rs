//! How a connect of the host ends.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::fstat;

use super::counters::Stage;
use super::limits::MAX_CONNECTIONS;
use crate::endpoint::ConnectProgress;
use crate::io::lock::lock;

/// Why a guest's port is not connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The guest answered RST.
    #[error("connection refused by the guest: nobody listens on that port of it")]
    Refused,
    /// The device has all the connections that it may have.
    #[error("the guest's device has {MAX_CONNECTIONS} connections and no place for another: close some")]
    TableFull,
    /// The connection ended before the guest answered: its driver or device was reset, or has no stream sockets.
    #[error("the guest's vsock device was reset before the guest answered")]
    Reset,
    /// No driver of the guest took the request in time.
    #[error("no vsock driver runs in the guest: is it up, and has it the module vmw_vsock_virtio_transport?")]
    NoDriver,
    /// The guest has the request, and did not answer in time.
    #[error("the guest's vsock driver does not answer")]
    NoAnswer,
    /// The device is gone, or too many connects wait for it, or the kernel has no socket pair.
    #[error("cannot ask the guest's vsock device for a connection")]
    Host(#[from] io::Error),
}

/// How far a connect is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Pending,
    Requested,
    Accepted,
    Refused,
    TableFull,
    Reset,
}

#[derive(Debug)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    fn set(&self, progress: Progress) {
        let mut now = self.lock();
        if matches!(*now, Progress::Pending | Progress::Requested) {
            *now = progress;
            self.changed.notify_all();
        }
    }
}

/// The device's side of a connect that somebody waits for. Without a word before it is dropped, that is [`Progress::Reset`].
#[derive(Debug)]
pub struct ConnectReport(Arc<Shared>);

impl ConnectReport {
    /// The connection has come to this state.
    pub fn follow(&self, stage: Stage) {
        match stage {
            Stage::ConnectPending => {}
            Stage::ConnectSent => self.0.set(Progress::Requested),
            Stage::Established | Stage::Closing | Stage::Draining => self.0.set(Progress::Accepted),
        }
    }

    /// The guest answered RST.
    pub fn refused(&self) {
        self.0.set(Progress::Refused);
    }

    /// There is no place for the connection.
    pub fn table_full(&self) {
        self.0.set(Progress::TableFull);
    }
}

impl Drop for ConnectReport {
    fn drop(&mut self) {
        self.0.set(Progress::Reset);
    }
}

/// A connect that the device was asked for. Dropping it cancels the connect.
#[derive(Debug)]
pub struct Connecting {
    stream: UnixStream,
    shared: Arc<Shared>,
}

impl Connecting {
    /// Returns a connect with this host end, and what the device reports to.
    pub(super) fn new(stream: UnixStream) -> (Self, ConnectReport) {
        let shared = Arc::new(Shared { progress: Mutex::new(Progress::Pending), changed: Condvar::new() });
        (Self { stream, shared: Arc::clone(&shared) }, ConnectReport(shared))
    }

    /// Waits at most `within` for the guest's answer, and returns the non-blocking stream. On the device's own thread that
    /// waits in vain.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn wait(self, within: Duration) -> Result<UnixStream, ConnectError> {
        // A moment too far away to be represented never comes.
        let deadline = Instant::now().checked_add(within);
        let mut progress = self.shared.lock();
        loop {
            match *progress {
                Progress::Accepted => break,
                Progress::Refused => return Err(ConnectError::Refused),
                Progress::TableFull => return Err(ConnectError::TableFull),
                Progress::Reset => return Err(ConnectError::Reset),
                Progress::Pending | Progress::Requested => {}
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let is_pending = *progress == Progress::Pending;
                return Err(if is_pending { ConnectError::NoDriver } else { ConnectError::NoAnswer });
            }
            progress = self.shared.changed.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(progress);
        Ok(self.stream)
    }
}

/// Says how far the streams of a port have come, while the device has them.
#[derive(Debug, Default)]
pub(super) struct ConnectWatch {
    /// By the inode of the host's end.
    connects: Mutex<Vec<(u64, Weak<Shared>)>>,
}

impl ConnectWatch {
    /// Watches a connect, and returns its stream.
    ///
    /// # Errors
    ///
    /// The kernel's, if it does not know the stream.
    pub(super) fn watch(&self, connecting: Connecting) -> io::Result<UnixStream> {
        let inode = fstat(&connecting.stream)?.st_ino;
        let mut connects = lock(&self.connects);
        connects.retain(|(_, shared)| shared.strong_count() > 0);
        connects.push((inode, Arc::downgrade(&connecting.shared)));
        Ok(connecting.stream)
    }

    /// Returns how far a stream has come. One that the device does not have any more was connected as far as it can be.
    pub(super) fn progress(&self, stream: impl AsFd) -> ConnectProgress {
        let inode = fstat(stream).map(|stat| stat.st_ino).ok();
        let connects = lock(&self.connects);
        let shared = connects.iter().rfind(|(other, _)| Some(*other) == inode).and_then(|(_, shared)| shared.upgrade());
        match shared.map(|shared| *shared.lock()) {
            Some(Progress::Pending) => ConnectProgress::NoDriver,
            Some(Progress::Requested) => ConnectProgress::Connecting,
            Some(Progress::Accepted | Progress::Refused | Progress::TableFull | Progress::Reset) | None => {
                ConnectProgress::Connected
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LONG: Duration = Duration::from_secs(20);

    fn connecting() -> (Connecting, ConnectReport) {
        Connecting::new(UnixStream::pair().unwrap().0)
    }

    #[test]
    fn a_waiter_learns_how_its_connect_ended() {
        for (report_it, expected) in [
            (ConnectReport::refused as fn(&ConnectReport), "connection refused"),
            (ConnectReport::table_full, "1024 connections"),
            (|_| {}, "was reset"),
        ] {
            let (connecting, report) = connecting();
            let waits = thread::spawn(move || connecting.wait(LONG));
            report.follow(Stage::ConnectSent);
            report_it(&report);
            drop(report);
            let error = waits.join().unwrap().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_accepted_connect_stays_accepted() {
        let (connecting, report) = connecting();
        report.follow(Stage::ConnectSent);
        report.follow(Stage::Established);
        drop(report);
        connecting.wait(Duration::MAX).unwrap();
    }

    #[test]
    fn a_watch_knows_how_far_each_stream_is() {
        let watch = ConnectWatch::default();
        let mut reports = Vec::new();
        for (stage, expected) in [
            (Stage::ConnectPending, ConnectProgress::NoDriver),
            (Stage::ConnectSent, ConnectProgress::Connecting),
            (Stage::Established, ConnectProgress::Connected),
        ] {
            let (connecting, report) = connecting();
            let stream = watch.watch(connecting).unwrap();
            report.follow(stage);
            assert_eq!(watch.progress(&stream), expected);
            reports.push((stream, report));
        }
        drop(reports);
        let (connecting, _report) = connecting();
        watch.watch(connecting).unwrap();
        assert_eq!(lock(&watch.connects).len(), 1, "what is over is forgotten");
    }

    #[test]
    fn in_vain_is_no_driver_or_no_answer() {
        for (stage, expected) in [(Stage::ConnectPending, "no vsock driver"), (Stage::ConnectSent, "does not answer")] {
            let (connecting, report) = connecting();
            report.follow(stage);
            let error = connecting.wait(Duration::ZERO).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
