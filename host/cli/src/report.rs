//! `scx-vsock report`: recordings as one page of HTML.

use std::ffi::OsStr;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use scx_vsock::report::{RecordingVerdicts, Report as Page};

use crate::atomic_file::{self, Access};
use crate::display::clean;
use crate::error_report::one_line;
use crate::expectations::{Expectations, NamedVerdicts, Verdicts};
use crate::output::eprintln;

/// Make a page of recordings: plots, and what changed between runs
///
/// FILE has samples as JSON Lines, as boot --jsonl and watch --jsonl print them. The page needs no network: it has a plot of
/// each field over time, with the samples that have no stats and why, new sessions, a table of medians and spreads, what the
/// kernel says, and the verdicts of --expect.
///
/// Files with the same NAME are recordings of one run, which they repeat; a file without a name is a run of its own. The
/// first run is what the others are compared with. With four recordings of each run or more, the page says which changes
/// are more than noise.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock report samples.jsonl -o report.html
  scx-vsock report old=old1.jsonl old=old2.jsonl new=new1.jsonl new=new2.jsonl -o report.html
  scx-vsock report samples.jsonl -o report.html --expect 'nr_running <= 64'")]
pub struct Report {
    /// A recording; one whose path has an equals sign is written ./FILE or NAME=FILE
    #[arg(value_name = "[NAME=]FILE", required = true, value_parser = NamedFile::parser())]
    recordings: Vec<NamedFile>,

    /// The file to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    #[command(flatten)]
    expectations: Expectations,
}

/// A recording and the name of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedFile {
    run: String,
    path: PathBuf,
}

impl NamedFile {
    /// Reads `[NAME=]FILE`. A name has no slash.
    fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        let is_name = |name: &&str| !name.is_empty() && !name.contains('/');
        let (name, path) = bytes.split_at(bytes.iter().position(|&byte| byte == b'=').unwrap_or(0));
        match (str::from_utf8(name).ok().filter(is_name), path.strip_prefix(b"=")) {
            (Some(name), Some(path)) => Self { run: name.to_owned(), path: OsStr::from_bytes(path).into() },
            _ => Self { run: text.to_string_lossy().into_owned(), path: text.into() },
        }
    }

    fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().map(|text| Self::parse(&text))
    }
}

impl Report {
    /// Reads the recordings and writes the page.
    pub fn run(&self) -> Result<ExitCode> {
        let mut page = Page::new(self.expectations.read()?);
        let junit = self.expectations.junit("report")?;
        for NamedFile { run, path } in &self.recordings {
            read(&mut page, run, path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        for note in page.notes() {
            eprintln!("scx-vsock: warning: {}", one_line(&note));
        }
        self.write(&page).with_context(|| format!("cannot write {}", self.output.display()))?;
        let named = |of: RecordingVerdicts| NamedVerdicts { name: clean(&of.source), verdicts: of.verdicts };
        let verdicts = Verdicts::new(page.verdicts().into_iter().map(named).collect(), junit);
        verdicts.print();
        verdicts.conclude(Ok(())).map(|()| ExitCode::SUCCESS)
    }

    /// A user who cannot read the first recording cannot read the page.
    fn write(&self, page: &Page) -> Result<()> {
        let first = self.recordings.first().context("there is no recording")?;
        let access = first.path.metadata()?;
        Ok(atomic_file::write(&self.output, page.to_html().as_bytes(), Access::As(&access))?)
    }
}

fn read(page: &mut Page, run: &str, path: &Path) -> Result<()> {
    let file = BufReader::with_capacity(1 << 16, File::open(path)?);
    Ok(page.read(run, &path.display().to_string(), file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_name_of_its_run() {
        for (text, run, path) in [
            ("a.jsonl", "a.jsonl", "a.jsonl"),
            ("old=a.jsonl", "old", "a.jsonl"),
            ("old=x/a=b.jsonl", "old", "x/a=b.jsonl"),
            ("./old=a.jsonl", "./old=a.jsonl", "./old=a.jsonl"),
            ("=a", "=a", "=a"),
        ] {
            assert_eq!(NamedFile::parse(OsStr::new(text)), NamedFile { run: run.into(), path: path.into() });
        }
    }
}
