//! The `scx-vsock` command: a guest's sched_ext scheduler, seen from the host.
//!
//! Each verb is a module of its own. Results go to stdout, messages to stderr, an error as one line. The exit codes are
//! in [`exit`].

mod agent;
mod atomic_file;
mod boot;
mod completions;
mod descriptor_limit;
mod display;
mod doctor;
mod duration;
mod environment;
mod error_report;
mod exit;
mod expectations;
mod export;
mod image;
mod man;
mod meta;
mod output;
mod proxy;
mod report;
mod sandbox;
mod serve;
mod signals;
mod stats;
mod target;
mod text_file;
mod watch;

use std::io;
use std::process::ExitCode;

use crate::output::eprintln;
use clap::{CommandFactory, Parser, Subcommand};

/// Read the stats of a guest's sched_ext scheduler from the host
#[derive(Parser)]
#[command(name = "scx-vsock", version, propagate_version = true, max_term_width = 100, after_long_help = after_help())]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const ADDRESSES: &str = "\
Addresses of agents:
  vsock://CID[:PORT]    the guest with this CID on this host; port 729 by default
  hybrid:PATH[?port=N]  the Unix socket of Firecracker, Cloud Hypervisor or scx-vsock serve
  unix:PATH             an agent that listens on a Unix socket of this host
  scx:PATH              a scheduler's own stats socket on this host, without an agent";

fn after_help() -> String {
    format!("{ADDRESSES}\n\n{}\n\n{}", environment::help(), exit::help())
}

// One line a verb, in the order of the help.
#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the whole run")]
enum Verb {
    Stats(stats::Stats),
    Watch(watch::Watch),
    Meta(meta::Meta),
    Proxy(proxy::Proxy),
    Export(export::Export),
    Serve(serve::Serve),
    Doctor(doctor::Doctor),
    Boot(boot::Boot),
    Report(report::Report),
    Image(image::Image),
    Agent(agent::Agent),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Verb {
    fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Stats(verb) => verb.run(),
            Self::Watch(verb) => verb.run(),
            Self::Meta(verb) => verb.run(),
            Self::Proxy(verb) => verb.run(),
            Self::Export(verb) => verb.run(),
            Self::Serve(verb) => verb.run(),
            Self::Doctor(verb) => verb.run(),
            Self::Boot(verb) => verb.run(),
            Self::Report(verb) => verb.run(),
            Self::Image(verb) => verb.run(),
            Self::Agent(verb) => verb.run(),
            Self::Completions(verb) => verb.run(&mut Arguments::command()),
            Self::Man(verb) => verb.run(Arguments::command()),
        }
    }
}

fn main() -> ExitCode {
    let outcome = Arguments::try_parse().map_err(anyhow::Error::from).and_then(|arguments| arguments.verb.run());
    match outcome.or_else(|error| error_report::report_usage(error, &Arguments::command())) {
        Ok(code) => code,
        // The reader closed the pipe: it has read what it needs.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scx-vsock: {}", error_report::one_line(&format!("{error:#}")));
            exit::code(&error)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
