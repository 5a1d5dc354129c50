//! `scx-vsock stats`: one sample.

use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::target::Target;
use crate::{display, duration};

/// Print a scheduler's stats once
///
/// Many numbers are deltas since the same connection's last read, so that a first read has nothing to count yet: --over
/// reads twice. Without stats, the message and the exit code say why.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock stats vsock://3
  scx-vsock stats hybrid:/run/guest1/v.sock --over 1 --json | jq .nr_running
  scx-vsock stats scx:/var/run/scx/root/stats --target top
  scx-vsock stats vsock://3 --wait 60 || [ $? = 11 ]")]
pub struct Stats {
    #[command(flatten)]
    place: Target,

    /// Which of the scheduler's stats; without it the scheduler chooses its top
    #[arg(long, value_name = "NAME")]
    target: Option<String>,

    /// Count deltas over this time: read, wait, and print what is read then
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    over: Option<Duration>,

    /// Wait first, at most this long, until the scheduler is ready; behind a hybrid socket also for the guest to boot
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    wait: Option<Duration>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Stats {
    /// Asks and prints.
    pub fn run(&self) -> Result<ExitCode> {
        let client = self.place.client();
        if let Some(time) = self.wait {
            self.place.wait(&client, time)?;
        }
        let arguments: Vec<(&str, &str)> = self.target.iter().map(|name| ("target", name.as_str())).collect();
        if let Some(time) = self.over {
            client.stats(&arguments)?;
            thread::sleep(time);
        }
        let stats = client.stats(&arguments)?;
        let text = if self.json { format!("{stats}\n") } else { display::fields(&stats, usize::MAX) };
        anstream::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}
