//! One exporter of a thousand guests.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use scx_vsock_tests::exporter::{Exporter, get};
use scx_vsock_tests::meta_scheduler::answer;
use scx_vsock_tests::scheduler_shapes::scheduler_shape;

use crate::measure::{Measure, Programs};
use crate::row::{Goal, Row};

/// The rows of this module.
pub const ALL: &[Measure] = &[("export-scrape", scrape), ("export-memory", memory)];

const GUESTS: usize = 1_000;

/// The scrapes that are measured, one a second, with a read of each guest between two.
const SCRAPES: usize = 10;

/// The processor time of the exporter for a read of each guest and a scrape. The reference is the number of guests.
fn scrape(programs: &Programs) -> Row {
    let fleet = Fleet::start(programs);
    let before = fleet.processor_ms();
    for _ in 0..SCRAPES {
        thread::sleep(Duration::from_secs(1));
        fleet.page();
    }
    let each = (fleet.processor_ms() - before) / SCRAPES as f64;
    check(&fleet.page());
    Row::exact("read and scrape of 1,000 guests, CPU ms / guests", each, GUESTS as f64, Goal::Ours(1_000.0))
}

/// The memory of the exporter a guest, after some reads and scrapes. The reference is the page's part of a guest.
fn memory(programs: &Programs) -> Row {
    let fleet = Fleet::start(programs);
    let mut page = fleet.page();
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(1));
        page = fleet.page();
    }
    let a_guest = fleet.peak_kib() / GUESTS as f64;
    let on_the_page = page.len() as f64 / 1024.0 / GUESTS as f64;
    Row::exact("memory of an exported guest / of its part of a page, KiB", a_guest, on_the_page, Goal::Ours(256.0))
}

/// Has promtool read a page, where it is installed.
fn check(page: &str) {
    let promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("bench: no promtool to check the page of 1,000 guests with");
        return;
    };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    assert!(promtool.wait().unwrap().success(), "promtool refuses the page");
}

/// An exporter of schedulers that answer as scx_bpfland does.
struct Fleet {
    exporter: Exporter,
    _folder: tempfile::TempDir,
}

impl Fleet {
    fn start(programs: &Programs) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("stats");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || serve(&listener));
        let guests = folder.path().join("guests");
        let line = |at: usize| format!("guest{at}=scx:{}\n", socket.display());
        fs::write(&guests, (0..GUESTS).map(line).collect::<String>()).unwrap();
        let mut command = Command::new(&programs.command);
        command.args(["export", "--interval", "1", "--guests"]).arg(guests);
        let fleet = Self { exporter: Exporter::start(command), _folder: folder };
        assert_eq!(fleet.page().matches("\nscx_vsock_up{").count(), GUESTS);
        assert!(!fleet.page().contains("scx_vsock_missing_stats_total{"), "a guest did not answer");
        fleet
    }

    fn page(&self) -> String {
        get(self.exporter.at(), "/metrics", "").body
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(Path::new("/proc").join(self.exporter.id().to_string()).join(file)).unwrap()
    }

    fn processor_ms(&self) -> f64 {
        let schedstat = self.proc("schedstat");
        schedstat.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e6
    }

    fn peak_kib(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// Serves every connection on this thread, until the benchmark ends.
fn serve(listener: &UnixListener) {
    let shape = scheduler_shape("scx_bpfland");
    let [meta, stats] = [answer(&shape.meta), answer(&shape.answer)];
    let mut connections: Vec<BufReader<UnixStream>> = Vec::new();
    loop {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(connections.iter().map(|connection| PollFd::new(connection.get_ref(), PollFlags::IN)));
        poll(&mut fds, None).unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut was_ready = ready.iter().skip(1).copied();
        connections.retain_mut(|connection| !was_ready.next().unwrap_or(false) || respond(connection, &meta, &stats));
        if ready[0] {
            connections.push(BufReader::new(listener.accept().unwrap().0));
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
