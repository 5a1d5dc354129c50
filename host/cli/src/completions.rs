//! `scx-vsock completions`: what shells need to complete this command's words.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Arguments;

/// Print a shell's completions of this command
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock completions bash >/usr/share/bash-completion/completions/scx-vsock
  scx-vsock completions zsh >/usr/share/zsh/vendor-completions/_scx-vsock
  scx-vsock completions fish >~/.config/fish/completions/scx-vsock.fish")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints.
    pub fn run(&self) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "scx-vsock", &mut script);
        io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
