//! `scx-vsock image`: the agent in guest images.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use scx_vsock::guest::initramfs::inject::{self, BaseInitramfs, InitramfsWithAgent};
use scx_vsock::guest::{AgentFile, Architecture, Error};

use crate::atomic_file::{self, Access};
use crate::error_report::one_line;
use crate::output::eprintln;

/// The most bytes of an initramfs, which is read into memory.
const MAX_BYTES: u64 = 1 << 30;

/// What to do where the modules of the transport are missing.
const TRANSPORT_FIX: &str = "unless the guest's kernel has the virtio-vsock transport built in, no host reaches the agent; \
    echo vmw_vsock_virtio_transport >>/etc/initramfs-tools/modules for update-initramfs, or pass \
    --add-drivers vmw_vsock_virtio_transport to dracut";

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
/// The guest must stay in its initramfs (not switch to another root), and its kernel must have the virtio-vsock driver,
/// built in or loaded by the init of BASE; where BASE lacks the driver's modules, a warning names them. For QEMU,
/// serve --print-qemu-args prints the arguments for the vsock device.
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

    /// The agent's file; by default $SCX_VSOCK_AGENT, else the agent that this command carries for the image's architecture
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
        let unusable = || format!("cannot use {}", self.base.display());
        let (bytes, source) = read(&self.base).with_context(|| format!("cannot read {}", self.base.display()))?;
        let base = BaseInitramfs::read(&bytes).with_context(unusable)?;
        let agent = self.agent_for(base.architecture().with_context(unusable)?)?;
        let arguments: Vec<&str> = self.agent_args.iter().map(String::as_str).collect();
        let image = base.add_agent(&agent, &arguments).with_context(unusable)?;
        atomic_file::write(&self.out, &image.bytes, Access::As(&source))
            .with_context(|| format!("cannot write {}", self.out.display()))?;
        self.report(bytes.len(), &image);
        Ok(ExitCode::SUCCESS)
    }

    /// The agent for an image of this architecture; `None` is one that cannot be determined.
    fn agent_for(&self, architecture: Option<Architecture>) -> Result<Cow<'static, [u8]>, Error> {
        let agent = AgentFile::find(self.agent.as_deref(), architecture.unwrap_or(Architecture::NATIVE))?;
        match architecture {
            Some(architecture) => agent.read_for(architecture),
            None => agent.read(),
        }
    }

    fn report(&self, before: usize, image: &InitramfsWithAgent) {
        let (base, out, after) = (self.base.display(), self.out.display(), image.bytes.len());
        let (bytes, than) = (after.abs_diff(before), if after < before { "fewer" } else { "more" });
        let (agent, init) = (inject::AGENT, inject::INIT);
        let wrote =
            format!("wrote {out}, {bytes} bytes {than} than {base}: its /init starts /{agent} and then runs /{init}");
        eprintln!("scx-vsock: {}", one_line(&wrote));
        if let Some(modules) = english_list(&image.missing_modules) {
            let warning = format!("warning: {base} has no kernel module {modules}: {TRANSPORT_FIX}");
            eprintln!("scx-vsock: {}", one_line(&warning));
        }
    }
}

/// Joins names as "a, b and c". `None` if there are none.
fn english_list(names: &[&str]) -> Option<String> {
    let (last, others) = names.split_last()?;
    Some(if others.is_empty() { (*last).to_owned() } else { format!("{} and {last}", others.join(", ")) })
}

/// Reads a file, or a pipe to its end.
fn read(path: &Path) -> io::Result<(Vec<u8>, Metadata)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut bytes = Vec::new();
    if metadata.len() <= MAX_BYTES {
        // A device may have no end.
        (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    }
    if metadata.len().max(bytes.len() as u64) > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 GiB: name an initramfs"));
    }
    Ok((bytes, metadata))
}
