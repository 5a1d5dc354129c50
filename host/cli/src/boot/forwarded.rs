//! The options of a command line that each run of several has as well.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::combination::option;

/// Options and the command that runs in the guest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The names of the options that were given.
    ids: Vec<String>,
    /// The options with their values.
    pub options: Vec<OsString>,
    /// The command.
    pub command: Vec<OsString>,
}

impl Forwarded {
    /// Returns what the command line has but these.
    pub fn of(command: &Command, matches: &ArgMatches, skipped: &[&str]) -> Self {
        let mut forwarded = Self::default();
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            if skipped.contains(&id) || matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            forwarded.ids.push(id.to_owned());
            let values = matches.get_raw(id).into_iter().flatten();
            match argument.get_long() {
                None => forwarded.command.extend(values.map(OsString::from)),
                Some(long) if !argument.get_action().takes_values() => {
                    forwarded.options.push(format!("--{long}").into())
                }
                Some(long) => forwarded.options.extend(values.map(|value| option(long, value))),
            }
        }
        forwarded
    }

    /// Whether the option with this name was given.
    pub fn has(&self, id: &str) -> bool {
        self.ids.iter().any(|given| given == id)
    }
}
