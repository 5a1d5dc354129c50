//! Errors as one line on stderr.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::output::eprintln;
use anyhow::{Context, Result};
use clap::Command;
use clap::error::ErrorKind;
use scx_vsock::stats::is_hidden;

/// Returns the error of arguments that are valid one by one, but not together.
pub fn wrong_arguments(message: impl Display) -> anyhow::Error {
    clap::Error::raw(ErrorKind::ArgumentConflict, message).into()
}

/// Prints the help that was asked for, or one line about wrong arguments.
///
/// # Errors
///
/// The error, if it is about something else; or the help cannot be written.
pub fn report_usage(error: anyhow::Error, command: &Command) -> Result<ExitCode> {
    let error: clap::Error = error.downcast()?;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.print().and_then(|()| io::stdout().flush()).context("cannot write the help")?;
        }
        _ => {
            let help = format!("{} --help", command_name(command, env::args_os().skip(1)));
            eprintln!("scx-vsock: {}; try '{help}'", usage_problem(&error.render().to_string()));
        }
    }
    Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)))
}

/// The command's name with the verbs that the words begin with.
fn command_name(mut command: &Command, words: impl Iterator<Item = OsString>) -> String {
    let mut name = command.get_name().to_owned();
    for word in words {
        let Some(verb) = command.find_subcommand(&word) else { break };
        name = format!("{name} {}", verb.get_name());
        command = verb;
    }
    name
}

/// The problem that clap's message begins with, without the usage after it.
fn usage_problem(rendered: &str) -> String {
    let problem = rendered.split("\n\nUsage: ").next().unwrap_or_default();
    let problem = problem.split("\n\nFor more information").next().unwrap_or_default();
    one_line(problem.strip_prefix("error: ").unwrap_or(problem))
}

/// Joins the lines of a text to one, without characters that act on a terminal, or reorder or hide text.
pub fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut joined = String::new();
    for line in lines {
        joined += match joined.chars().last() {
            None => "",
            Some(':' | ';' | ',') => " ",
            Some(_) => "; ",
        };
        joined.extend(line.chars().filter(|&character| !is_hidden(character)));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        let rendered = "error: unrecognized subcommand 'bot'\n\n  tip: a similar subcommand exists: 'boot'\n\n\
                        Usage: scx-vsock <COMMAND>\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_problem(rendered), "unrecognized subcommand 'bot'; tip: a similar subcommand exists: 'boot'");
        let rendered = "error: the following required arguments were not provided:\n  --kernel <FILE>\n\n\
                        Usage: scx-vsock boot --kernel <FILE> [-- <CMD>...]\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_problem(rendered), "the following required arguments were not provided: --kernel <FILE>");
        let rendered = "error: invalid value 'x' for '--cpus <N>': no\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_problem(rendered), "invalid value 'x' for '--cpus <N>': no");
    }

    #[test]
    fn the_help_is_that_of_the_verb() {
        let verbs = Command::new("scx-vsock")
            .subcommands([Command::new("boot"), Command::new("image").subcommand(Command::new("add"))]);
        let name = |words: &[&str]| command_name(&verbs, words.iter().map(OsString::from));
        assert_eq!(name(&[]), "scx-vsock");
        assert_eq!(name(&["bot"]), "scx-vsock");
        assert_eq!(name(&["boot", "--cpus", "image"]), "scx-vsock boot");
        assert_eq!(name(&["image", "add", "boot"]), "scx-vsock image add");
    }

    #[test]
    fn many_lines_become_one() {
        assert_eq!(one_line("a\n  b:\n\nc\u{1b}[2J\u{202e}\n"), "a; b: c[2J");
        assert_eq!(one_line(""), "");
    }
}
