//! `scx-vsock stats`: one sample.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use scx_vsock::stats::SchedExt;
use scx_vsock::{SchedStatsClient, SchedStatsError};
use serde_json::{Value, json};

use crate::error_report::wrong_arguments;
use crate::target::Target;
use crate::{display, duration, output};

/// Print a scheduler's stats once
///
/// Many fields are deltas since the previous read on the same connection, so the first read has none. With --over, the
/// stats are read twice and the second answer is printed.
///
/// If there are no stats, the message and the exit code say why; scx-vsock --help lists the exit codes.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock stats vsock://3
  scx-vsock stats hybrid:/run/guest1/v.sock --over 1 --json | jq .nr_running
  scx-vsock stats scx:/var/run/scx/root/stats --target top
  scx-vsock stats vsock://3 --arg nr_samples=5
  scx-vsock stats hybrid:/run/guest1/v.sock --wait 60
  scx-vsock stats vsock://3 --kernel")]
pub struct Stats {
    #[command(flatten)]
    guest: Target,

    /// Which of the scheduler's stats to read; by default the scheduler's top-level ones
    #[arg(long, value_name = "NAME")]
    target: Option<String>,

    /// An argument of the stats request, such as nr_samples=5 for scx_lavd; may be repeated
    #[arg(long = "arg", value_name = "KEY=VALUE", value_parser = parse_argument)]
    arguments: Vec<(String, String)>,

    /// Read twice, this long apart, and print the second answer, whose deltas span that time
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    over: Option<Duration>,

    /// Wait up to this long for the scheduler to serve stats; at a hybrid: address, also for the guest to boot; at others
    /// its agent must be up
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    wait: Option<Duration>,

    /// Also print what the guest's kernel says about sched_ext: its state, its events since the scheduler was enabled, and
    /// its messages; also for a scheduler that serves no stats
    #[arg(long)]
    kernel: bool,

    /// Print JSON; with --kernel, an object with stats (null if there are none) and kernel
    #[arg(long)]
    json: bool,
}

impl Stats {
    /// Reads the stats and prints them.
    pub fn run(&self) -> Result<ExitCode> {
        let arguments = self.request_arguments()?;
        let client = self.guest.client();
        if let Some(timeout) = self.wait {
            Target::wait(&client, timeout)?;
        }
        let stats = self.read(&client, &arguments);
        if self.kernel {
            output::print(&self.with_kernel(stats.as_ref().ok(), &client.sched_ext()?))?;
            stats?;
        } else {
            let stats = stats?;
            output::print(&if self.json { format!("{stats}\n") } else { display::fields(&stats, usize::MAX) })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn read(&self, client: &SchedStatsClient, arguments: &[(&str, &str)]) -> Result<Value, SchedStatsError> {
        if let Some(time) = self.over {
            client.stats(arguments)?;
            thread::sleep(time);
        }
        client.stats(arguments)
    }

    fn with_kernel(&self, stats: Option<&Value>, kernel: &SchedExt) -> String {
        if self.json {
            return format!("{}\n", json!({ "stats": stats, "kernel": kernel }));
        }
        let stats = stats.map(|stats| display::fields(stats, usize::MAX)).unwrap_or_default();
        format!("{stats}{}", display::kernel(kernel))
    }

    fn request_arguments(&self) -> Result<Vec<(&str, &str)>> {
        let target = self.target.iter().map(|name| ("target", name.as_str()));
        let others = self.arguments.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut keys = BTreeSet::new();
        let once = |(key, value)| {
            let is_first = keys.insert(key);
            let twice = || wrong_arguments(format_args!("the argument {key} is given twice; a request has it once"));
            if is_first { Ok((key, value)) } else { Err(twice()) }
        };
        target.chain(others).map(once).collect()
    }
}

fn parse_argument(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, as in nr_samples=5".into()),
    }
}
