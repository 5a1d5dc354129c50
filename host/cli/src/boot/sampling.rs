//! The samples of a booted guest, printed as they are taken.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scx_vsock::guest::Guest;
use scx_vsock::guest::{Error, FaultWatch};
use scx_vsock::sample::Schedule;
use scx_vsock::{Sample, Sampler};
use serde::Serialize;

use super::command_text::CommandPrinter;
use crate::expectations::Evaluations;
use crate::output::eprintln;
use crate::{display, error_report};

/// How long a command may run in the guest.
const COMMAND_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// A command that failed in the guest. Its status is the exit code of boot.
#[derive(Debug, thiserror::Error)]
#[error("the command exited with status {status}{}", hint(*status))]
pub struct CommandFailed {
    /// The status.
    pub status: u8,
}

/// What to do about a status that a shell gives.
fn hint(status: u8) -> &'static str {
    match status {
        127 => ": the guest has no such program, only busybox and what --program adds",
        _ => "",
    }
}

/// How samples are taken, printed and judged.
pub struct Sampling<'e> {
    /// When they are due.
    pub schedule: Schedule,
    /// Whether they are printed as JSON Lines.
    pub jsonl: bool,
    /// The name of the run, if it is one of several.
    pub run: Option<&'e str>,
    /// When the run must have ended, and the limit that says so.
    pub end: Option<(Instant, Duration)>,
    /// Whether a fault of the guest, or a last sample without stats, ends the run with an error.
    pub requires_stats: bool,
    /// What must be true of them.
    pub evaluations: &'e mut Evaluations,
}

/// A sample as a line of JSON, with the name of its run.
#[derive(Serialize)]
struct Line<'l> {
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'l str>,
    #[serde(flatten)]
    sample: &'l Sample,
}

/// What happens while samples are taken.
enum RunEvent {
    /// The command exited with this status.
    CommandEnded(Result<i32, Error>),
    /// The scheduler or the agent exited.
    Fault,
}

/// A guest and what happens in it.
struct Run {
    guest: Arc<Guest>,
    events: Receiver<RunEvent>,
    sender: Sender<RunEvent>,
    _watch: FaultWatch,
}

impl Sampling<'_> {
    /// Takes this many samples. Where stats are expected, the last sample must have some.
    pub fn take(&mut self, guest: Guest, count: u32, sampler: &mut Sampler, expects_stats: bool) -> Result<()> {
        let run = Run::new(guest);
        let started = Instant::now();
        let mut last = Ok(());
        let mut n = 1;
        for _ in 0..count {
            self.wait(&run, started, n)?;
            let sample = sampler.sample(format!("sample {n}"));
            self.record(&sample)?;
            last = sample.stats.map(drop);
            n = self.schedule.next_after(n, started.elapsed());
        }
        match last {
            Err(reason) if expects_stats => Err(reason).context("the last sample has no stats"),
            _ => Ok(()),
        }
    }

    /// Runs a command in the guest, and takes samples until it ends.
    pub fn take_while_running(&mut self, guest: Guest, command: &[String], sampler: &mut Sampler) -> Result<()> {
        let run = Run::new(guest);
        run.start(command.to_vec());
        let status = self.take_until_ended(&run, sampler)?;
        let last = sampler.sample("end");
        self.record(&last)?;
        if self.requires_stats {
            last.stats.context("the last sample has no stats")?;
        }
        match status? {
            0 => Ok(()),
            status => Err(CommandFailed { status: u8::try_from(status).unwrap_or(1) }.into()),
        }
    }

    fn take_until_ended(&mut self, run: &Run, sampler: &mut Sampler) -> Result<Result<i32, Error>> {
        let started = Instant::now();
        let mut n = 1;
        loop {
            if let Some(ended) = self.wait(run, started, n)? {
                return Ok(ended);
            }
            self.record(&sampler.sample(format!("sample {n}")))?;
            n = self.schedule.next_after(n, started.elapsed());
        }
    }

    /// Waits until sample `n` is due, or the command ends. Reports a fault of the guest.
    fn wait(&self, run: &Run, started: Instant, n: u64) -> Result<Option<Result<i32, Error>>> {
        loop {
            let due = self.time_until(started, n);
            let left = self.end.map(|(end, limit)| (end.saturating_duration_since(Instant::now()), limit));
            if let Some((Duration::ZERO, limit)) = left {
                bail!("the run had not ended within its limit of {} s (--limit)", limit.as_secs_f32());
            }
            match run.events.recv_timeout(left.map_or(due, |(left, _)| left.min(due))) {
                Ok(RunEvent::CommandEnded(ended)) => return Ok(Some(ended)),
                Ok(RunEvent::Fault) => self.report_fault(run)?,
                Err(RecvTimeoutError::Timeout) if self.time_until(started, n).is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the thread that runs the command ended"),
            }
        }
    }

    /// Prints a fault of the guest as a warning, or fails with it where stats are required.
    fn report_fault(&self, run: &Run) -> Result<()> {
        match run.guest.fault() {
            Some(fault) if self.requires_stats => Err(fault.into()),
            Some(fault) => {
                eprintln!("scx-vsock: warning: {}", error_report::one_line(&fault.to_string()));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The time until sample `n` is due.
    fn time_until(&self, started: Instant, n: u64) -> Duration {
        self.schedule.due(n).unwrap_or(Duration::MAX).saturating_sub(started.elapsed())
    }

    /// Judges a sample and prints it.
    fn record(&mut self, sample: &Sample) -> Result<()> {
        self.evaluations.record(0, sample);
        let mut stdout = anstream::stdout().lock();
        if self.jsonl {
            serde_json::to_writer(&mut stdout, &Line { run: self.run, sample }).map_err(io::Error::from)?;
            stdout.write_all(b"\n")?;
        } else {
            stdout.write_all(display::sample(sample).as_bytes())?;
        }
        Ok(stdout.flush()?)
    }
}

impl Run {
    fn new(guest: Guest) -> Self {
        let (sender, events) = mpsc::channel();
        let of_watch = sender.clone();
        let watch = guest.watch_faults(move || {
            let _ended = of_watch.send(RunEvent::Fault);
        });
        Self { guest: Arc::new(guest), events, sender, _watch: watch }
    }

    /// Runs a command on a thread of its own, and prints its outputs. The thread is not joined: if samples can no longer be
    /// printed, the guest ends with this process.
    fn start(&self, command: Vec<String>) {
        let (guest, sender) = (Arc::clone(&self.guest), self.sender.clone());
        thread::spawn(move || {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let mut printer = CommandPrinter::new();
            let status = guest.run_streaming(&command, COMMAND_DEADLINE, |stream, piece| {
                printer.print(stream, piece);
                Ok(())
            });
            let _received = sender.send(RunEvent::CommandEnded(status));
        });
    }
}
