//! `scx-vsock watch`: the stats of several guests as they change.

mod input;
mod selection;
mod table;
mod tally;
mod terminal;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use nix::sys::signal::Signal;
use scx_vsock::endpoint::Handshake;
use scx_vsock::sample::{BackgroundSampler, Schedule};
use scx_vsock::stats::StatPath;
use scx_vsock::{Connect, Endpoint, Sample, Sampler, SchedStatsClient};

use crate::error_report::wrong_arguments;
use crate::expectations::{Evaluations, Expectations};
use crate::signals::Signals;
use crate::target::{uri_parser, uris_help};
use crate::{duration, output, signals};
use input::Input;
use table::Table;
use tally::Tally;
use terminal::Terminal;

/// The most events that wait to be handled; with more, the samplers wait.
const QUEUE_LENGTH: usize = 64;

/// Watch the stats of several guests
///
/// On a terminal, a table shows the newest value of each field and a sparkline of the latest ones, as many as fit. Press q
/// or Ctrl-C to stop.
///
/// If stdout is not a terminal, or with --jsonl, samples are printed as JSON Lines, each tagged with the URI of its guest.
///
/// With --expect, the samples are judged at the end, a line each on stderr. If an expectation is not met, the exit code is 4.
///
/// If no sample had stats, the exit code is that of the latest reason; scx-vsock --help lists the exit codes.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock watch vsock://3 vsock://4
  scx-vsock watch hybrid:/run/guest1/v.sock --field nr_running --field nr_direct_dispatches --interval 250ms
  scx-vsock watch vsock://3 --jsonl --samples 60 >samples.jsonl
  scx-vsock watch vsock://3 --samples 10 --expect 'nr_running <= 64' >samples.jsonl")]
pub struct Watch {
    #[arg(value_name = "URI", required = true, help = uris_help(), value_parser = uri_parser())]
    uris: Vec<Endpoint>,

    /// The time between two samples, in seconds or with a unit (250ms); also how long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = duration::parse)]
    interval: Duration,

    /// A field to show, by its path as meta --fields prints it, with a key or an index for each *; may be repeated; by default every number on a terminal, and everything in JSON Lines
    #[arg(long = "field", value_name = "PATH")]
    fields: Vec<StatPath>,

    /// Exit after this many samples of each guest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,

    /// Print samples as JSON Lines
    #[arg(long)]
    jsonl: bool,

    #[command(flatten)]
    expectations: Expectations,
}

/// What happens while guests are watched.
enum Event {
    /// The guest with this index has a new sample.
    Sample(usize, Box<Sample>),
    Input(Input),
}

/// How watching on a terminal ended.
enum End {
    /// By a key, or because every sample was shown.
    Quit,
    /// By a signal.
    Signal(i32),
}

impl Watch {
    /// Takes samples and prints them, without end or until each guest has --samples of them.
    pub fn run(&self) -> Result<ExitCode> {
        let prints_lines = self.jsonl || !io::stdout().is_terminal();
        if prints_lines && self.samples.is_none() && !self.expectations.is_empty() {
            return Err(wrong_arguments("expectations are judged at the end: say with --samples when that is"));
        }
        let names: Vec<String> = self.uris.iter().map(ToString::to_string).collect();
        let mut evaluations = self.expectations.prepare("watch", &names)?;
        let mut tally = Tally::new(self.uris.len(), self.samples);
        let end = if prints_lines {
            self.print_lines(&mut tally, &mut evaluations).map(|()| End::Quit)
        } else {
            self.show(&mut tally, &mut evaluations)
        };
        if let Ok(End::Signal(number)) = end {
            evaluations.print();
            return signals::end_by(number);
        }
        let needs_no_stats = evaluations.need_no_stats();
        let judged = end.and_then(|_| if needs_no_stats { Ok(()) } else { tally.verdict() });
        evaluations.conclude(judged).map(|()| ExitCode::SUCCESS)
    }

    fn print_lines(&self, tally: &mut Tally, evaluations: &mut Evaluations) -> Result<()> {
        let (sender, events) = sync_channel(QUEUE_LENGTH);
        let samplers = self.start_samplers(&sender, evaluations.ask_the_kernel())?;
        drop(sender);
        let outcome = self.print_each(&events, tally, evaluations);
        // A sampler that waits to send ends with the receiver.
        drop(events);
        drop(samplers);
        outcome
    }

    fn print_each(&self, events: &Receiver<Event>, tally: &mut Tally, evaluations: &mut Evaluations) -> Result<()> {
        while !tally.is_complete() {
            let Ok(Event::Sample(guest, sample)) = events.recv() else { break };
            let mut sample = *sample;
            if tally.admits(guest, &sample) {
                evaluations.record(guest, &sample);
                if !self.fields.is_empty() {
                    sample.stats = sample.stats.map(|stats| selection::select(&stats, &self.fields));
                }
                let mut line = serde_json::to_vec(&sample)?;
                line.push(b'\n');
                output::print_bytes(&line)?;
            }
        }
        Ok(())
    }

    /// Shows the table, and prints it once more when the terminal is restored.
    fn show(&self, tally: &mut Tally, evaluations: &mut Evaluations) -> Result<End> {
        // Before any thread is started, so that each has them blocked.
        let signals = Signals::block(&input::SIGNALS)?;
        let terminal = Terminal::enter()?;
        let (sender, events) = sync_channel(QUEUE_LENGTH);
        let samplers = self.start_samplers(&sender, true)?;
        input::spawn(terminal.keys()?, signals, move |input| sender.send(Event::Input(input)).is_ok())?;
        let mut table = Table::new(self.uris.iter().map(ToString::to_string), &self.fields);
        let record = |guest: usize, sample: &Sample| evaluations.record(guest, sample);
        let end = draw_each(&events, &terminal, &mut table, tally, record);
        let (width, height) = terminal.size();
        drop(terminal);
        drop(events);
        drop(samplers);
        if let Ok(End::Quit) = end {
            let lines = table.lines(width, height.saturating_sub(1));
            output::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        }
        end
    }

    /// Starts a sampler for each guest, which also asks the kernel if wanted.
    fn start_samplers(&self, events: &SyncSender<Event>, asks_kernel: bool) -> Result<Vec<BackgroundSampler>> {
        let start = |(guest, uri)| self.start_sampler(guest, uri, asks_kernel, events.clone());
        self.uris.iter().enumerate().map(start).collect()
    }

    fn start_sampler(
        &self,
        guest: usize,
        uri: &Endpoint,
        asks_kernel: bool,
        events: SyncSender<Event>,
    ) -> Result<BackgroundSampler> {
        let client = || SchedStatsClient::builder(uri.clone()).deadline(self.interval).build();
        let mut sampler = Sampler::new(Some(client()));
        // Without an agent there is nobody to ask.
        if asks_kernel && uri.handshake() != Handshake::Plain {
            sampler = sampler.kernel(client());
        }
        let name = uri.to_string();
        let sink = move |mut sample: Sample, _late| {
            sample.tag.clone_from(&name);
            // It fails only when the command is about to end.
            let _sent = events.send(Event::Sample(guest, Box::new(sample)));
        };
        Ok(sampler.spawn(Schedule::Every(self.interval), sink)?)
    }
}

/// Draws the table at each event, until there is an end.
fn draw_each(
    events: &Receiver<Event>,
    terminal: &Terminal,
    table: &mut Table,
    tally: &mut Tally,
    mut record: impl FnMut(usize, &Sample),
) -> Result<End> {
    while !tally.is_complete() {
        let (width, height) = terminal.size();
        terminal.draw(&table.lines(width, height), height)?;
        match events.recv()? {
            Event::Sample(guest, sample) => {
                if tally.admits(guest, &sample) {
                    record(guest, &sample);
                    table.record(guest, &sample);
                }
            }
            Event::Input(Input::Key(b'q' | b'Q')) => break,
            Event::Input(Input::Key(_)) => {}
            Event::Input(Input::Signal(signal)) => match Signal::try_from(signal.number) {
                Ok(Signal::SIGWINCH) => terminal.clear()?,
                Ok(Signal::SIGTSTP) => terminal.stop_process()?,
                _ => return Ok(End::Signal(signal.number)),
            },
        }
    }
    Ok(End::Quit)
}
