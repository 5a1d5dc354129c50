//! A text file that somebody wrote by hand.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::error_report::{one_line, wrong_arguments};

/// Bytes of the longest file.
const MAX_BYTES: u64 = 256 * 1024;

/// Reads a file by `parse`. `wanted` says what file to name instead of one that is too long.
///
/// # Errors
///
/// It cannot be read, is too long, or is not what `parse` takes.
pub fn read<T, E: Display>(path: &Path, wanted: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T> {
    let cannot_read = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let file = File::open(path).with_context(cannot_read)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).with_context(cannot_read)?;
    if text.len() as u64 > MAX_BYTES {
        bail!("{} has more than {MAX_BYTES} bytes: name {wanted}", path.display());
    }
    parse(&text).map_err(|problem| wrong_arguments(one_line(&format!("{}: {problem}", path.display()))))
}
