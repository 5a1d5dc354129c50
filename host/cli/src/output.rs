//! What a verb prints on stdout, and messages on stderr.

use std::fmt;
use std::io::{self, Write};

use anyhow::{Context, Result};

/// Prints a line on stderr, as std's macro of this name, which panics where that cannot be written.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::message(format_args!($($text)*)) };
}

pub(crate) use eprintln;

/// Prints text, with its styles where stdout is a terminal that shows them.
///
/// # Errors
///
/// Stdout cannot be written.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")
}

/// Prints bytes as they are.
///
/// # Errors
///
/// Stdout cannot be written.
pub fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).context("cannot write to stdout")
}

/// Prints a line on stderr. If that cannot be written, there is nobody to tell.
pub fn message(text: fmt::Arguments<'_>) {
    let _written = io::stderr().write_all(format!("{text}\n").as_bytes());
}
