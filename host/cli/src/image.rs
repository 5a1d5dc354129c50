//! `scx-vsock image`: the agent in guest images.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use scx_vsock::guest::initramfs::inject::{self, add_agent};
use scx_vsock::guest::{Error, qemu::find_agent};

/// Put the agent into a guest's image
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

/// Add the agent and its start to an initramfs
///
/// BASE is an initramfs, as it is or compressed by gzip, xz or zstd, with an /init and a shell; OUT is BASE with an archive
/// behind it, which the kernel unpacks over it: the agent, and an init that starts it and becomes BASE's own. The guest
/// must live in its initramfs, and its kernel must have virtio-vsock, built in or loaded by the init. An agent that BASE
/// has from before is replaced.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock image add initrd.gz initrd-with-agent
  scx-vsock image add initrd.gz initrd-with-agent --agent-arg --map --agent-arg 729=/run/stats
  scx-vsock serve --print-qemu-args prints what gives a QEMU guest its vsock device, and how to reach it then.")]
struct Add {
    /// The initramfs to begin with
    base: PathBuf,

    /// The file to write, which may be BASE
    out: PathBuf,

    /// The agent's file; without it SCX_VSOCK_AGENT, then scx-vsock-agent beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,

    /// An argument for the agent; may be repeated
    #[arg(long = "agent-arg", value_name = "ARG", allow_hyphen_values = true)]
    agent_args: Vec<String>,
}

impl Image {
    /// Does it.
    pub fn run(&self) -> Result<ExitCode> {
        let Action::Add(add) = &self.action;
        add.run()
    }
}

impl Add {
    fn run(&self) -> Result<ExitCode> {
        let agent = find_agent(self.agent.as_deref()).ok_or(Error::NoAgent)?;
        let read = |path: &PathBuf| {
            fs::read(path).with_context(|| format!("cannot read {} (name a file that can be read)", path.display()))
        };
        let (base, agent) = (read(&self.base)?, read(&agent)?);
        let arguments: Vec<&str> = self.agent_args.iter().map(String::as_str).collect();
        let whole =
            add_agent(&base, &agent, &arguments).with_context(|| format!("cannot use {}", self.base.display()))?;
        write(&self.out, &whole)
            .with_context(|| format!("cannot write {} (name a file that can be written)", self.out.display()))?;
        eprintln!(
            "scx-vsock: {}: {} bytes more than {}; its /init starts /{} and becomes /{}",
            self.out.display(),
            whole.len() - base.len(),
            self.base.display(),
            inject::AGENT,
            inject::INIT,
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes a file whole or not at all: what it replaces may be there only once. Its permissions stay, and its owner where
/// this user may give files away.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return fs::write(path, bytes);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As usual for a new file, less what the user takes away.
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    if let Some(old) = old {
        let _may_not = fchown(&file, Some(old.uid()), Some(old.gid()));
        file.as_file().set_permissions(old.permissions())?;
    }
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
