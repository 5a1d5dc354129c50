//! `scx-vsock watch`: the stats of several guests as they change.

mod table;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use scx_vsock::sample::{BackgroundSampler, Schedule};
use scx_vsock::series::StatPath;
use scx_vsock::{Endpoint, Sample, Sampler, SchedStatsClient};

use crate::duration;
use crate::target::{uri_parser, uris_help};
use table::Table;

/// The most samples that wait to be printed; with more, the samplers wait.
const QUEUE_LENGTH: usize = 64;

/// Watch the stats of several guests
///
/// On a terminal, a table shows the newest value of each field and a sparkline of the latest ones. If stdout is not a
/// terminal, or with --jsonl, samples are printed as JSON Lines, each tagged with the URI of its guest. Press Ctrl-C to stop.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock watch vsock://3 vsock://4
  scx-vsock watch hybrid:/run/guest1/v.sock --field delta.ctxt --field load.one --interval 250ms
  scx-vsock watch vsock://3 --jsonl --samples 60 >samples.jsonl")]
pub struct Watch {
    #[arg(value_name = "URI", required = true, help = uris_help(), value_parser = uri_parser())]
    uris: Vec<Endpoint>,

    /// The time between two samples, in seconds or with a unit (250ms); also how long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = duration::parse)]
    interval: Duration,

    /// A field to show, by its path as meta --fields prints it; may be repeated; by default the first numeric fields
    #[arg(long = "field", value_name = "PATH")]
    fields: Vec<StatPath>,

    /// Exit after this many samples of each guest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,

    /// Print samples as JSON Lines
    #[arg(long)]
    jsonl: bool,
}

impl Watch {
    /// Takes samples and prints them, without end or until each guest has --samples of them.
    pub fn run(&self) -> Result<ExitCode> {
        let (sender, samples) = sync_channel(QUEUE_LENGTH);
        let guests = self.uris.iter().enumerate();
        let _samplers: Vec<BackgroundSampler> =
            guests.map(|(guest, uri)| self.sampler(guest, uri, sender.clone())).collect::<Result<_>>()?;
        drop(sender);
        if self.jsonl || !io::stdout().is_terminal() { self.print_lines(&samples) } else { self.draw(&samples) }
    }

    fn sampler(&self, guest: usize, uri: &Endpoint, sender: SyncSender<(usize, Sample)>) -> Result<BackgroundSampler> {
        let client = SchedStatsClient::builder(uri.clone()).deadline(self.interval).build();
        let name = uri.to_string();
        let sink = move |sample: Sample, _late| {
            // It fails only when the process is about to end.
            let _sent = sender.send((guest, Sample { tag: name.clone(), ..sample }));
        };
        Ok(Sampler::new(Some(client)).spawn(Schedule::Every(self.interval), sink)?)
    }

    fn print_lines(&self, samples: &Receiver<(usize, Sample)>) -> Result<ExitCode> {
        let mut stdout = io::stdout().lock();
        for (_, sample) in self.limited(samples) {
            let mut line = serde_json::to_vec(&sample)?;
            line.push(b'\n');
            stdout.write_all(&line)?;
            stdout.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn draw(&self, samples: &Receiver<(usize, Sample)>) -> Result<ExitCode> {
        let mut table = Table::new(self.uris.iter().map(ToString::to_string), &self.fields);
        let mut drawn = 0;
        for (guest, sample) in self.limited(samples) {
            table.record(guest, &sample);
            let (width, height) = terminal_size::terminal_size()
                .map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0)));
            let lines = table.lines(width, height.saturating_sub(1));
            // The cursor goes to the first line of the last table, and all from there on is cleared.
            let up = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            drawn = lines.len();
            let mut stdout = anstream::stdout().lock();
            // Needed without colors, too, so that anstream must not remove them.
            io::stdout().write_all(format!("{up}\r\x1b[J").as_bytes())?;
            stdout.write_all(text.as_bytes())?;
            stdout.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The samples, at most --samples of each guest.
    fn limited<'r>(&self, samples: &'r Receiver<(usize, Sample)>) -> impl Iterator<Item = (usize, Sample)> + 'r {
        let limit = self.samples.unwrap_or(u64::MAX);
        let mut counts = vec![0; self.uris.len()];
        let mut left = self.uris.len();
        std::iter::from_fn(move || {
            while left > 0 {
                let (guest, sample) = samples.recv().ok()?;
                let count: &mut u64 = counts.get_mut(guest)?;
                *count += 1;
                if *count == limit {
                    left -= 1;
                }
                if *count <= limit {
                    return Some((guest, sample));
                }
            }
            None
        })
    }
}
