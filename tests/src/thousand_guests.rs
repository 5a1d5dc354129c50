//! An exporter of a thousand stand-in guests, and what it takes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::exporter::{Exporter, get};
use crate::meta_scheduler::answer;
use crate::scheduler_shapes::scheduler_shape;

/// How many guests there are.
pub const GUESTS: usize = 1_000;

/// An exporter of a thousand schedulers that answer as scx_bpfland does, each of which it reads once a second.
#[derive(Debug)]
pub struct ThousandGuests {
    exporter: Exporter,
    _folder: tempfile::TempDir,
}

impl ThousandGuests {
    /// Starts the exporter, and waits until it has the stats of each guest.
    ///
    /// # Panics
    ///
    /// When it has not.
    #[must_use]
    pub fn start(command: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("stats");
        let listener = UnixListener::bind(&socket).expect("a socket");
        thread::spawn(move || serve(&listener));
        let guests = folder.path().join("guests");
        let line = |at: usize| format!("guest{at}=scx:{}\n", socket.display());
        fs::write(&guests, (0..GUESTS).map(line).collect::<String>()).expect("a file");
        let mut command = Command::new(command);
        command.args(["export", "--interval", "1", "--guests"]).arg(guests);
        let fleet = Self { exporter: Exporter::start(command), _folder: folder };
        assert_eq!(fleet.page().matches("\nscx_vsock_up{").count(), GUESTS);
        assert!(!fleet.page().contains("scx_vsock_missing_stats_total{"), "a guest did not answer");
        fleet
    }

    /// Scrapes a page in the older text.
    #[must_use]
    pub fn page(&self) -> String {
        get(self.exporter.at(), "/metrics", "").body
    }

    /// The processor time that the exporter has taken so far.
    ///
    /// # Panics
    ///
    /// When the kernel does not say.
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        let schedstat = self.proc("schedstat");
        let nanoseconds = schedstat.split_whitespace().next().and_then(|time| time.parse().ok());
        Duration::from_nanos(nanoseconds.expect("a time"))
    }

    /// The most memory in KiB that the exporter has had so far.
    ///
    /// # Panics
    ///
    /// When the kernel does not say.
    #[must_use]
    pub fn peak_kib(&self) -> u32 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).expect("a size")
    }

    fn proc(&self, file: &str) -> String {
        let path = Path::new("/proc").join(self.exporter.id().to_string()).join(file);
        fs::read_to_string(path).expect("it runs")
    }
}

/// Serves every connection on this thread, until the process ends.
fn serve(listener: &UnixListener) {
    let shape = scheduler_shape("scx_bpfland");
    let [meta, stats] = [answer(&shape.meta), answer(&shape.answer)];
    let mut connections: Vec<BufReader<UnixStream>> = Vec::new();
    loop {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(connections.iter().map(|connection| PollFd::new(connection.get_ref(), PollFlags::IN)));
        poll(&mut fds, None).expect("poll works");
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut was_ready = ready.iter().skip(1).copied();
        connections.retain_mut(|connection| !was_ready.next().unwrap_or(false) || respond(connection, &meta, &stats));
        if ready[0] {
            connections.push(BufReader::new(listener.accept().expect("a connection").0));
        }
    }
}

/// Answers one request; returns false at the end.
fn respond(connection: &mut BufReader<UnixStream>, meta: &str, stats: &str) -> bool {
    let mut line = String::new();
    if connection.read_line(&mut line).unwrap_or(0) == 0 {
        return false;
    }
    let reply = if line.contains("stats_meta") { meta } else { stats };
    connection.get_ref().write_all(reply.as_bytes()).is_ok()
}
