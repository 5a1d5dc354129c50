//! Counts a process's system calls with strace.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Returns how many system calls the process and its threads make during `work`.
pub fn during(process: u32, work: impl FnOnce()) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("calls");
    let mut strace = Command::new("strace")
        .args(["-f", "-p", &process.to_string(), "-o"])
        .arg(&log)
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace runs");
    let mut words = BufReader::new(strace.stderr.take().unwrap()).lines();
    let attached = words.next().expect("strace reports that it attached").unwrap();
    assert!(attached.contains("attached"), "{attached}");
    work();
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(log).unwrap();
    // Where another thread's call interrupts one in the log, the latter has a second line, "resumed". So has the call in
    // which the process waited at each end of the log.
    text.lines().filter(|line| line.contains('(') && !line.contains("resumed>")).count() as f64
}
