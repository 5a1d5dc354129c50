//! `scx-vsock agent`: the agent's file, which this command carries.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use scx_vsock::guest::{AgentFile, Architecture};

use crate::atomic_file::{self, Access};

/// Write the agent's file, to put it into a guest image
///
/// The agent is a static program: install it in the image as /usr/sbin/scx-vsock-agent and start it at boot. This command
/// carries the agent for its own architecture, and for the other one if that one's target was installed when it was built.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock agent image/usr/sbin/scx-vsock-agent
  scx-vsock agent --arch aarch64 scx-vsock-agent.arm64")]
pub struct Agent {
    /// The file to write
    out: PathBuf,

    /// The guest's architecture, x86_64 or aarch64; by default that of this command
    #[arg(long, value_name = "ARCH", default_value_t = Architecture::NATIVE)]
    arch: Architecture,
}

impl Agent {
    /// Writes the file.
    pub fn run(&self) -> Result<ExitCode> {
        let agent = AgentFile::carried(self.arch)?.read()?;
        atomic_file::write(&self.out, &agent, Access::Program)
            .with_context(|| format!("cannot write {}", self.out.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
