//! Measures against a peer or a floor in the same run, prints a table and writes `bench.json`.
//!
//! ```text
//! bench FOLDER RELAY_STD        (ci/bench builds everything and runs it)
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
mod client_rows;
mod row;
mod system_calls;

use std::path::Path;
use std::process::ExitCode;

use row::Row;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, relay] = &arguments[..] else {
        eprintln!("usage: bench FOLDER RELAY_STD; ci/bench does it all");
        return ExitCode::from(2);
    };
    let mut rows = Vec::new();
    for measure in agent_rows::ALL.iter().chain(client_rows::ALL) {
        let row = measure(Path::new(relay));
        eprintln!("bench: {}", row.name);
        rows.push(row);
    }
    println!("{}", Row::table(&rows));
    let file = Path::new(folder).join("bench.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&rows).unwrap()).unwrap();
    eprintln!("bench: written to {}", file.display());
    ExitCode::SUCCESS
}
