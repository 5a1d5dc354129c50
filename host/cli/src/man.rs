//! `scx-vsock man`: the manual's pages, made from the help.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, bold, roman};

use crate::{Arguments, exit};

/// Print this command's man page, or write one for each verb
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock man | man -l -
  scx-vsock man --folder /usr/share/man/man1")]
pub struct Man {
    /// Write a page for the command and each verb into this folder
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl Man {
    /// Prints or writes.
    pub fn run(&self) -> Result<ExitCode> {
        let mut command = Arguments::command();
        command.build();
        let Some(folder) = &self.folder else {
            io::stdout().write_all(&page(&command)?)?;
            return Ok(ExitCode::SUCCESS);
        };
        for of in with_verbs(&command) {
            let path = folder.join(format!("{}.1", of.get_display_name().unwrap_or_else(|| of.get_name())));
            let write = fs::write(&path, page(of)?);
            write.with_context(|| format!("cannot write {} (name a folder that is there)", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A command, and those below it.
fn with_verbs(command: &Command) -> Vec<&Command> {
    let verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help");
    [command].into_iter().chain(verbs.flat_map(with_verbs)).collect()
}

/// A page, with what exit codes say at its end.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    // The table has a section of its own.
    let shown = match command.get_after_long_help() {
        Some(help) if help.to_string() == exit::help() => command.clone().after_long_help(""),
        _ => command.clone(),
    };
    let mut bytes = Vec::new();
    Page::new(shown).render(&mut bytes)?;
    let mut codes = Roff::new();
    codes.control("SH", ["EXIT STATUS"]);
    for (code, text) in exit::rows() {
        codes.control("TP", []).text([bold(code)]).text([roman(text)]);
    }
    codes.to_writer(&mut bytes)?;
    Ok(bytes)
}
