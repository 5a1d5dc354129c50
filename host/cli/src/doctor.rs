//! `scx-vsock doctor`: what works between this host and a guest's scheduler, and how to fix the rest.

mod check_result;
mod guest_checks;
mod host_checks;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use scx_vsock::Endpoint;
use serde_json::Value;

use crate::target::{uri_help, uri_parser};
use crate::{duration, output};
use check_result::CheckResult;
use host_checks::HostFiles;

/// Check the setup and suggest fixes
///
/// Without a URI, doctor checks what this host needs to boot guests and to reach them. With a URI, it checks each hop to
/// that guest's scheduler.
///
/// Each check prints ✓ (ok), ! (warning: something works less well, or only some commands need it) or ✗ (error). The line
/// below a warning or an error says how to fix it. The exit code is that of the first error.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock doctor
  scx-vsock doctor --kernel /boot/vmlinuz-7.2.0
  scx-vsock doctor vsock://3
  scx-vsock doctor hybrid:/run/guest1/v.sock --json | jq '.[] | select(.state == \"error\")'")]
pub struct Doctor {
    #[arg(value_name = "URI", help = uri_help(), value_parser = uri_parser())]
    uri: Option<Endpoint>,

    /// How long to wait for all answers of the guest together, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,

    /// The bzImage to test KVM with; by default /boot/vmlinuz-$(uname -r)
    #[arg(long, value_name = "FILE", conflicts_with = "uri")]
    kernel: Option<PathBuf>,

    /// The agent's file; by default $SCX_VSOCK_AGENT, else the agent that this command carries
    #[arg(long, value_name = "FILE", conflicts_with = "uri")]
    agent: Option<PathBuf>,

    /// The QEMU program; by default $QEMU, else that of this host's architecture, such as qemu-system-x86_64
    #[arg(long, value_name = "PROGRAM", conflicts_with = "uri")]
    qemu: Option<OsString>,

    /// Print JSON: a list of objects with check, state (ok, warning or error), message and fix
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Runs the checks and prints their results.
    pub fn run(&self) -> Result<ExitCode> {
        let results = match &self.uri {
            Some(uri) => guest_checks::check(uri, self.deadline),
            None => host_checks::check(&HostFiles {
                kernel: self.kernel.as_deref(),
                agent: self.agent.as_deref(),
                qemu: self.qemu.as_deref(),
            }),
        };
        output::print(&if self.json {
            format!("{}\n", Value::from(results.iter().map(CheckResult::json).collect::<Vec<_>>()))
        } else {
            results.iter().map(CheckResult::text).collect()
        })?;
        let first_error = results.iter().find(|result| result.is_error());
        Ok(ExitCode::from(first_error.map_or(0, CheckResult::exit_code)))
    }
}
