//! The `scx-vsock` command: a guest's sched_ext scheduler, seen from the host.
//!
//! Each verb is a module of its own. Results go to stdout, everything else to stderr, an error as one line.
#![allow(clippy::print_stderr, reason = "a command's messages")]

mod boot;
mod display;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// See a guest's sched_ext scheduler from the host.
#[derive(Parser)]
#[command(name = "scx-vsock", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Boot(boot::Boot),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Boot(boot) => boot.run(),
    };
    match outcome {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scx-vsock: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
