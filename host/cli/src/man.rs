//! `scx-vsock man`: man pages, made from the help.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, bold, roman};

use crate::{environment, exit, output};

/// Print the man page, or write the pages of all commands to a folder
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock man | man -l -
  scx-vsock man --folder /usr/share/man/man1")]
pub struct Man {
    /// Write a page for scx-vsock and for each of its commands to this folder
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the pages of this command.
    pub fn run(&self, command: Command) -> Result<ExitCode> {
        let mut command = without_help_verb(command);
        command.build();
        let Some(folder) = &self.folder else {
            output::print_bytes(&page(&command, None)?)?;
            return Ok(ExitCode::SUCCESS);
        };
        for (command, parent) in with_verbs(&command, None) {
            let path = folder.join(format!("{}.1", page_name(command)));
            fs::write(&path, page(command, parent)?).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes the verb `help`, for which no page is written.
fn without_help_verb(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help_verb)
}

/// A command and all below it, each with the command that it belongs to.
fn with_verbs<'c>(command: &'c Command, parent: Option<&'c Command>) -> Vec<(&'c Command, Option<&'c Command>)> {
    let below = command.get_subcommands().flat_map(|verb| with_verbs(verb, Some(command)));
    [(command, parent)].into_iter().chain(below).collect()
}

fn page_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command, parent: Option<&Command>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let version = command.get_version().unwrap_or_default();
    let page = Page::new(command.clone()).source(format!("scx-vsock {version}")).manual("scx-vsock manual");
    page.render_title(&mut bytes)?;
    page.render_name_section(&mut bytes)?;
    synopsis(command).to_writer(&mut bytes)?;
    page.render_description_section(&mut bytes)?;
    page.render_options_section(&mut bytes)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut bytes)?;
    }
    let mut rest = Roff::new();
    add_help_sections(&mut rest, &command.get_after_long_help().map(ToString::to_string).unwrap_or_default());
    let verb = page_name(command).strip_prefix("scx-vsock-").unwrap_or_default();
    add_help_sections(&mut rest, &environment::help_of(verb).unwrap_or_default());
    add_exit_codes(&mut rest);
    add_see_also(&mut rest, command, parent);
    rest.to_writer(&mut bytes)?;
    Ok(bytes)
}

/// The usage as the help has it, with the values of options and what comes after `--`.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for (at, line) in usage.trim_start_matches("Usage: ").lines().enumerate() {
        if at > 0 {
            roff.control("br", []);
        }
        roff.text([roman(line.trim())]);
    }
    roff
}

/// The sections after the options in the help, such as the examples. Exit codes have a section of another form.
fn add_help_sections(roff: &mut Roff, help: &str) {
    let exit_codes = exit::help();
    for paragraph in help.split("\n\n").filter(|paragraph| !paragraph.is_empty() && *paragraph != exit_codes) {
        let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        match first.strip_suffix(':') {
            Some(heading) => add_unfilled(roff.control("SH", [heading.to_uppercase().as_str()]), rest),
            None => add_unfilled(roff.control("sp", []), paragraph),
        }
    }
}

/// Adds lines as they are, less their indentation.
fn add_unfilled(roff: &mut Roff, lines: &str) {
    roff.control("nf", []);
    for line in lines.lines() {
        roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    roff.control("fi", []);
}

fn add_exit_codes(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, text) in exit::rows() {
        roff.control("TP", []).text([bold(code)]).text([roman(text)]);
    }
}

fn add_see_also(roff: &mut Roff, command: &Command, parent: Option<&Command>) {
    let pages: Vec<String> =
        parent.into_iter().chain(command.get_subcommands()).map(|other| format!("{}(1)", page_name(other))).collect();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
}
