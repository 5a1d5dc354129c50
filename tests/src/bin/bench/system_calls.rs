//! Counts a process's system calls with strace.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// How many system calls the process and its threads make during `work`.
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
    let attached = words.next().expect("strace says what it does").unwrap();
    assert!(attached.contains("attached"), "{attached}");
    work();
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(log).unwrap();
    // A call that another thread's interrupts in the log has a second line, and the call that it waited in has one
    // of its own at both ends.
    text.lines().filter(|line| line.contains('(') && !line.contains("resumed>")).count() as f64
}
