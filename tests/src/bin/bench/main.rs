//! Measures against a peer or a floor in the same run, prints a table and writes `bench.json`.
//!
//! ```text
//! bench FOLDER RELAY_STD SCX_VSOCK [ROW...]       (ci/bench builds them and runs this)
//! ```
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark that fails says where; its numbers are small"
)]

mod agent_rows;
mod back_end_rows;
mod client_rows;
mod device_rows;
mod export_rows;
mod guest_rows;
mod measure;
mod round_trips;
mod row;
mod system_calls;

use std::path::Path;
use std::process::ExitCode;

use measure::{Measure, Programs};
use row::Row;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, relay, command, chosen @ ..] = &arguments[..] else {
        eprintln!("usage: bench FOLDER RELAY_STD SCX_VSOCK [ROW...]; ci/bench passes the arguments");
        return ExitCode::from(2);
    };
    let modules =
        [agent_rows::ALL, client_rows::ALL, device_rows::ALL, back_end_rows::ALL, guest_rows::ALL, export_rows::ALL];
    let all: Vec<&Measure> = modules.into_iter().flatten().collect();
    if let Some(unknown) = chosen.iter().find(|chosen| all.iter().all(|(name, _)| name != chosen)) {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        eprintln!("bench: unknown row {unknown}: use {}", names.join(", "));
        return ExitCode::from(2);
    }
    let programs = Programs { relay: relay.into(), command: command.into() };
    let mut rows = Vec::new();
    for (name, measure) in all {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            eprintln!("bench: {name}");
            rows.push(measure(&programs));
        }
    }
    println!("{}", Row::table(&rows));
    let file = Path::new(folder).join("bench.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&rows).unwrap()).unwrap();
    eprintln!("bench: wrote {}", file.display());
    ExitCode::SUCCESS
}
