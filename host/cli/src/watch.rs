//! `scx-vsock watch`: several guests' stats as they change.

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
use table::Table;

/// Samples that wait to be printed. With more, whoever samples waits too.
const WAITING: usize = 64;

/// Watch several guests' stats, with the way that each number took
///
/// On a terminal it is a table that is drawn anew with each sample; elsewhere, or with --jsonl, samples are printed as
/// JSON Lines, tagged with their guest's place. Ctrl-C ends it.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock watch vsock://3 vsock://4
  scx-vsock watch hybrid:/run/guest1/v.sock --field delta.ctxt --field load.one --interval 250ms
  scx-vsock watch vsock://3 --jsonl --samples 60 >samples.jsonl")]
pub struct Watch {
    /// The guests' agents: vsock://CID[:PORT], hybrid:PATH[?port=N] or unix:PATH; or scx:PATH, a scheduler without one
    #[arg(value_name = "URI", required = true)]
    uris: Vec<Endpoint>,

    /// The time between two samples, in seconds or with a unit (250ms); also the time within which each must be there
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = duration::parse)]
    interval: Duration,

    /// A field to show, by its dotted path (meta --fields lists them); may be repeated; without it the first ones
    #[arg(long = "field", value_name = "PATH")]
    fields: Vec<StatPath>,

    /// End after this many samples of each guest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,

    /// Print samples as JSON Lines
    #[arg(long)]
    jsonl: bool,
}

impl Watch {
    /// Samples and prints until there are as many samples as were asked for.
    pub fn run(&self) -> Result<ExitCode> {
        let (sender, samples) = sync_channel(WAITING);
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
            // When nobody prints any more, the process ends.
            let _printed = sender.send((guest, Sample { tag: name.clone(), ..sample }));
        };
        Ok(Sampler::new(Some(client)).spawn(Schedule::Every(self.interval), sink)?)
    }

    fn print_lines(&self, samples: &Receiver<(usize, Sample)>) -> Result<ExitCode> {
        let mut stdout = io::stdout().lock();
        for (_, sample) in self.wanted(samples) {
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
        for (guest, sample) in self.wanted(samples) {
            table.note(guest, &sample);
            let (width, height) = terminal_size::terminal_size()
                .map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0)));
            let lines = table.lines(width, height.saturating_sub(1));
            // Up to where the last table began, and all below it away.
            let up = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            drawn = lines.len();
            let mut stdout = anstream::stdout().lock();
            // A terminal takes these whether it is to show colours or not.
            io::stdout().write_all(format!("{up}\r\x1b[J").as_bytes())?;
            stdout.write_all(text.as_bytes())?;
            stdout.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The samples up to the last one that was asked for.
    fn wanted<'r>(&self, samples: &'r Receiver<(usize, Sample)>) -> impl Iterator<Item = (usize, Sample)> + 'r {
        let most = self.samples.unwrap_or(u64::MAX);
        let mut counts = vec![0; self.uris.len()];
        let mut left = self.uris.len();
        std::iter::from_fn(move || {
            while left > 0 {
                let (guest, sample) = samples.recv().ok()?;
                let count: &mut u64 = counts.get_mut(guest)?;
                *count += 1;
                if *count == most {
                    left -= 1;
                }
                if *count <= most {
                    return Some((guest, sample));
                }
            }
            None
        })
    }
}
