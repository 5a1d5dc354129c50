//! What a verb prints on stdout.

use std::io::{self, Write};

use anyhow::{Context, Result};

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
