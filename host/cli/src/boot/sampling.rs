//! The samples of a booted guest, printed as they are taken.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scx_vsock::guest::{CommandOutput, Error, qemu::Guest};
use scx_vsock::sample::Schedule;
use scx_vsock::{Sample, Sampler};

use crate::display;

/// How long a command may run in the guest.
const COMMAND_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// How samples are taken and printed.
pub struct Sampling {
    /// When they are due.
    pub schedule: Schedule,
    /// Whether they are printed as JSON Lines.
    pub jsonl: bool,
}

/// A command that ended in the guest. The guest ends when this is dropped.
type Ended = (Result<CommandOutput, Error>, Guest);

impl Sampling {
    /// Takes this many samples. Where stats are expected, the last sample must have some.
    pub fn take(&self, count: u32, sampler: &mut Sampler, expects_stats: bool) -> Result<ExitCode> {
        let started = Instant::now();
        let mut last = Ok(());
        let mut n = 1;
        for _ in 0..count {
            thread::sleep(self.time_until(started, n));
            let sample = sampler.sample(format!("sample {n}"));
            self.print(&sample)?;
            last = sample.stats.map(drop);
            n = self.schedule.next_after(n, started.elapsed());
        }
        match last {
            Err(reason) if expects_stats => Err(reason).context("the last sample has no stats"),
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    /// Runs a command in the guest, and takes samples until it ends.
    pub fn take_while_running(&self, guest: Guest, command: &[String], sampler: &mut Sampler) -> Result<ExitCode> {
        let end = start(guest, command.to_vec());
        let (output, _guest) = self.take_until(&end, sampler)?;
        self.print(&sampler.sample("end"))?;
        let output = output?;
        io::stderr().write_all(&output.stdout)?;
        io::stderr().write_all(&output.stderr)?;
        Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)))
    }

    fn take_until(&self, end: &Receiver<Ended>, sampler: &mut Sampler) -> Result<Ended> {
        let started = Instant::now();
        let mut n = 1;
        loop {
            match end.recv_timeout(self.time_until(started, n)) {
                Ok(ended) => return Ok(ended),
                Err(RecvTimeoutError::Timeout) => self.print(&sampler.sample(format!("sample {n}")))?,
                Err(RecvTimeoutError::Disconnected) => bail!("the thread that runs the command ended"),
            }
            n = self.schedule.next_after(n, started.elapsed());
        }
    }

    /// The time until sample `n` is due.
    fn time_until(&self, started: Instant, n: u64) -> Duration {
        self.schedule.due(n).unwrap_or(Duration::MAX).saturating_sub(started.elapsed())
    }

    fn print(&self, sample: &Sample) -> Result<()> {
        let mut stdout = anstream::stdout().lock();
        if self.jsonl {
            serde_json::to_writer(&mut stdout, sample).map_err(io::Error::from)?;
            stdout.write_all(b"\n")?;
        } else {
            stdout.write_all(display::sample(sample).as_bytes())?;
        }
        Ok(stdout.flush()?)
    }
}

/// Runs a command on a thread of its own. The thread is not joined: if samples can no longer be printed, the guest ends
/// with this process.
fn start(guest: Guest, command: Vec<String>) -> Receiver<Ended> {
    let (sender, end) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = guest.run_within(&command, COMMAND_DEADLINE);
        let _received = sender.send((output, guest));
    });
    end
}
