//! `scx-vsock completions`: completion scripts for shells.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock completions bash >/usr/share/bash-completion/completions/scx-vsock
  scx-vsock completions zsh >/usr/share/zsh/vendor-completions/_scx-vsock
  scx-vsock completions fish >/usr/share/fish/vendor_completions.d/scx-vsock.fish")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script for this command.
    pub fn run(&self, command: &mut Command) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "scx-vsock", &mut script);
        output::print_bytes(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
