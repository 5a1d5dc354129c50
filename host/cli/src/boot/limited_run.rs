//! One run of a suite: this command as a process of its own, which ends within a limit whatever happens in its guest.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::combination::Combination;
use crate::expectations::JunitSuite;

/// Bytes of a run's messages that are kept. A command could print without end.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// How long the end of the messages of a run that has ended may take.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// How a run ended.
#[derive(Debug)]
pub struct RunResult {
    /// The run's name.
    pub name: String,
    /// Its case, and those of its expectations.
    pub suite: JunitSuite,
    /// Where its samples are, a line each.
    recording: PathBuf,
    /// How many samples it recorded.
    pub samples: usize,
    /// How long it took.
    pub took: Duration,
    /// Its exit code; `None` if it was ended.
    pub code: Option<u8>,
}

/// Runs a combination, and writes its samples to `NAME.jsonl` and its messages to `NAME.log` in the folder.
///
/// # Errors
///
/// The files cannot be written, or no process can be started.
pub fn run(combination: &Combination, folder: &Path, limit: Duration) -> Result<RunResult> {
    let Combination { name, .. } = combination;
    let started = Instant::now();
    let private = tempfile::tempdir().context("cannot create a temporary folder")?;
    let junit = private.path().join("junit.xml");
    let recording = folder.join(format!("{name}.jsonl"));
    let log = folder.join(format!("{name}.log"));
    let cannot_write = |path: &Path| format!("cannot write {}", path.display());
    let samples = File::create(&recording).with_context(|| cannot_write(&recording))?;
    let messages = File::create(&log).with_context(|| cannot_write(&log))?;
    let mut child = spawn(combination, &junit, private.path(), samples)?;
    let copied = copy_messages(&mut child, messages);
    let status = wait(&mut child, limit)?;
    // A program that the run has started may hold its output for a moment longer.
    let _copied = copied.recv_timeout(LOG_TIMEOUT);
    let code = status.map(|status| status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
    let report = fs::read_to_string(&junit).unwrap_or_default();
    let problem = problem(status, limit);
    let suite = JunitSuite::of_run(name, &report, problem.as_deref());
    let samples = File::open(&recording).map_or(0, |file| BufReader::new(file).split(b'\n').count());
    Ok(RunResult { name: name.clone(), suite, recording, samples, took: started.elapsed(), code })
}

impl RunResult {
    /// Prints what the run recorded, in one piece.
    ///
    /// # Errors
    ///
    /// The recording cannot be read, or stdout not be written.
    pub fn print_samples(&self) -> Result<()> {
        let mut samples =
            File::open(&self.recording).with_context(|| format!("cannot read {}", self.recording.display()))?;
        let mut stdout = io::stdout().lock();
        io::copy(&mut samples, &mut stdout).and_then(|_| stdout.flush()).context("cannot write to stdout")
    }
}

/// What the run's own report does not say.
fn problem(status: Option<ExitStatus>, limit: Duration) -> Option<String> {
    match status {
        None => Some(format!("it had not ended within its limit of {} s, and was ended", limit.as_secs_f32())),
        Some(status) if status.code().is_none() => Some(format!("it was ended: {status}")),
        Some(_) => None,
    }
}

fn spawn(combination: &Combination, junit: &Path, temporary: &Path, samples: File) -> Result<Child> {
    let mut command = Command::new(env::current_exe().context("cannot find this program")?);
    command
        .arg("boot")
        .args(&combination.options)
        .arg("--jsonl")
        .arg("--run-name")
        .arg(&combination.name)
        .arg("--ends-with")
        .arg(std::process::id().to_string());
    command.arg("--junit").arg(junit).env("TMPDIR", temporary);
    if !combination.command.is_empty() {
        command.arg("--").args(&combination.command);
    }
    command.stdin(Stdio::null()).stdout(samples).stderr(Stdio::piped());
    command.spawn().context("cannot start a run")
}

/// Copies the messages of a process on a thread of its own, up to a bound; all of them are read.
fn copy_messages(child: &mut Child, mut to: File) -> Receiver<()> {
    let (sender, copied) = mpsc::channel();
    if let Some(mut from) = child.stderr.take() {
        thread::spawn(move || {
            let _not_written = io::copy(&mut from.by_ref().take(MAX_LOG_BYTES), &mut to);
            if io::copy(&mut from, &mut io::sink()).is_ok_and(|dropped| dropped > 0) {
                let _not_written = to.write_all(b"\n(the rest was dropped)\n");
            }
            let _received = sender.send(());
        });
    }
    copied
}

/// Waits until a process ends; `None` if it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("cannot watch a run")?;
    loop {
        let left = limit.saturating_sub(started.elapsed());
        let timeout = Timespec::try_from(left).context("cannot watch a run")?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                child.kill().context("cannot end a run")?;
                child.wait().context("cannot end a run")?;
                return Ok(None);
            }
            Ok(_) => return Ok(Some(child.wait().context("cannot watch a run")?)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot watch a run"),
        }
    }
}
