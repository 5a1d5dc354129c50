//! `scx-vsock image`: the agent in guest images.

mod atomic_file;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use scx_vsock::guest::initramfs::inject::{self, add_agent};
use scx_vsock::guest::{Error, qemu::find_agent};

/// Put the agent into a guest image
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock image add initrd.gz initrd-with-agent")]
pub struct Image {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Add(Add),
}

/// Add the agent to an initramfs
///
/// BASE is an initramfs with an /init and a shell, uncompressed or compressed by gzip, xz or zstd. OUT is BASE with an
/// archive appended, which the kernel unpacks over it: the agent, and an init that starts the agent and then runs the
/// init of BASE. An agent that is in BASE already is replaced. A user who cannot read BASE cannot read OUT.
///
/// The guest must stay in its initramfs (not switch to another root), and its kernel must have the virtio-vsock driver, built in or loaded by the
/// init of BASE. For QEMU, serve --print-qemu-args prints the arguments for the vsock device.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock image add initrd.gz initrd-with-agent
  scx-vsock image add initrd.gz initrd-with-agent --agent-arg --map --agent-arg 729=/run/stats")]
struct Add {
    /// The initramfs to read
    base: PathBuf,

    /// The file to write, which may be BASE
    out: PathBuf,

    /// The agent's file; by default $SCX_VSOCK_AGENT, else scx-vsock-agent in the folder of this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,

    /// An argument for the agent; may be repeated
    #[arg(long = "agent-arg", value_name = "ARG", allow_hyphen_values = true)]
    agent_args: Vec<String>,
}

impl Image {
    /// Runs the action.
    pub fn run(&self) -> Result<ExitCode> {
        let Action::Add(add) = &self.action;
        add.run()
    }
}

impl Add {
    fn run(&self) -> Result<ExitCode> {
        let agent = find_agent(self.agent.as_deref()).ok_or(Error::NoAgent)?;
        let (base, source) = read(&self.base).with_context(|| format!("cannot read {}", self.base.display()))?;
        let (agent, _) = read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
        let arguments: Vec<&str> = self.agent_args.iter().map(String::as_str).collect();
        let image =
            add_agent(&base, &agent, &arguments).with_context(|| format!("cannot use {}", self.base.display()))?;
        atomic_file::write(&self.out, &image, &source)
            .with_context(|| format!("cannot write {}", self.out.display()))?;
        eprintln!(
            "scx-vsock: wrote {}, {} bytes more than {}: its /init starts /{} and then runs /{}",
            self.out.display(),
            image.len() - base.len(),
            self.base.display(),
            inject::AGENT,
            inject::INIT,
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn read(path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((bytes, file.metadata()?))
}
