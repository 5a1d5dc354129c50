//! The `scx-vsock` command: a guest's sched_ext scheduler, seen from the host.
//!
//! Each verb is a module of its own. Results go to stdout, everything else to stderr, an error as one line; what the
//! exit code says is in [`exit`].
#![allow(clippy::print_stderr, reason = "a command's messages")]

mod boot;
mod completions;
mod display;
mod doctor;
mod duration;
mod error_report;
mod exit;
mod export;
mod image;
mod man;
mod meta;
mod proxy;
mod serve;
mod signals;
mod stats;
mod target;
mod watch;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// See a guest's sched_ext scheduler from the host.
#[derive(Parser)]
#[command(name = "scx-vsock", version, propagate_version = true, max_term_width = 100, after_long_help = exit::help())]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
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
    Image(image::Image),
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
            Self::Image(verb) => verb.run(),
            Self::Completions(verb) => verb.run(),
            Self::Man(verb) => verb.run(),
        }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return error_report::about_arguments(&error),
    };
    match arguments.verb.run() {
        Ok(code) => code,
        // Whoever read the output has seen enough.
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
