//! Measures against a peer or a floor in the same run, prints a table and writes `bench.json`.
//!
//! ```text
//! bench FOLDER RELAY_STD SCX_VSOCK [--quick] [--page PAGE] [ROW...]     (ci/bench builds them and runs this)
//! ```
//!
//! It exits with 1 where something could not be measured. That a goal does not hold is a result.
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
mod bare_pairs;
mod client_rows;
mod device_rows;
mod export_rows;
mod figure;
mod figures;
mod first_sample_rows;
mod guest_rows;
mod machine;
mod measure;
mod measured_guests;
mod options;
mod page;
mod processors;
mod request_rows;
mod round_trips;
mod row;
mod system_calls;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use figure::Figure;
use measure::Measure;
use options::Options;
use page::Page;
use row::Row;

fn main() -> ExitCode {
    let all: Vec<&Measure> = [
        agent_rows::ALL,
        request_rows::ALL,
        client_rows::ALL,
        device_rows::ALL,
        back_end_rows::ALL,
        guest_rows::ALL,
        first_sample_rows::ALL,
        export_rows::ALL,
    ]
    .into_iter()
    .flatten()
    .collect();
    let names: Vec<&str> =
        all.iter().map(|measure| measure.name).chain(figures::ALL.iter().map(|(name, _)| *name)).collect();
    match Options::parse(std::env::args().skip(1), &names) {
        Ok(options) => run(&options, &all),
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options, all: &[&'static Measure]) -> ExitCode {
    let mut page = Page::default();
    let mut failed = Vec::new();
    for measure in all {
        if !options.has(measure) {
            page.skipped.push(measure.name);
            continue;
        }
        match attempt(measure.name, || (measure.rows)(&options.bench)).filter(|rows| rows.iter().all(Row::is_measured))
        {
            Some(rows) => page.measured.push((measure, rows)),
            None => failed.push(measure.name),
        }
    }
    for (name, draw) in figures::ALL.iter().filter(|(name, _)| options.has_figure(name)) {
        match attempt(name, || draw(&options.bench)) {
            Some(figure) => page.figures.push(figure),
            None => failed.push(name),
        }
    }
    finish(options, &page, &failed)
}

/// Measures something. A panic, which is printed where it happens, costs this measurement alone.
fn attempt<T>(name: &str, measure: impl FnOnce() -> T) -> Option<T> {
    eprintln!("bench: {name}");
    catch_unwind(AssertUnwindSafe(measure)).ok()
}

fn finish(options: &Options, page: &Page, failed: &[&str]) -> ExitCode {
    let rows: Vec<&Row> = page.rows().collect();
    println!("{}", Row::table(&rows));
    let json = options.folder.join("bench.json");
    write(&json, &serde_json::to_vec_pretty(&rows).unwrap());
    if options.bench.quick {
        println!("skipped by --quick: {}", page.skipped.join(", "));
    }
    if !failed.is_empty() {
        println!("NOT MEASURED: {}", failed.join(", "));
        return ExitCode::FAILURE;
    }
    if let Some(path) = &options.page {
        write(path, page.text().as_bytes());
        page.figures.iter().for_each(|Figure { file, svg, .. }| write(&path.with_file_name(file), svg.as_bytes()));
    }
    ExitCode::SUCCESS
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    eprintln!("bench: wrote {}", path.display());
}
