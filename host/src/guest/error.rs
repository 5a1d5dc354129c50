//! Why a guest cannot be booted or used.
//!
//! As everywhere in this crate, an error's text leaves out that of its source: print the chain.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a guest cannot be booted or used. Each text names the thing and what mends it.
///
/// ```
/// use scx_vsock::guest::{Error, qemu::Guest};
///
/// let error = Guest::builder().kernel("/no/such/vmlinuz").boot().unwrap_err();
/// assert!(matches!(&error, Error::File { what: "the kernel", source, .. } if source.raw_os_error() == Some(2)));
/// println!("{error}"); // names the file, and what mends it
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that the guest needs cannot be read.
    #[error("cannot read {what} {} ({mend})", path.display())]
    File {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What mends it.
        mend: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Nobody said which kernel to boot.
    #[error("no kernel was given: name a bzImage, such as /boot/vmlinuz-$(uname -r)")]
    NoKernel,
    /// The agent's file was not found.
    #[error(
        "the agent's file was not found: build it with ci/build-agent and set SCX_VSOCK_AGENT to the path it prints"
    )]
    NoAgent,
    /// A module that the guest needs is not there.
    #[error("the kernel module {name} is not in {}: name the folder with the modules of this very kernel", folder.display())]
    NoModule {
        /// The module.
        name: String,
        /// The folder with the kernel's modules.
        folder: PathBuf,
    },
    /// A shared library that a program needs is not there.
    #[error("{} needs {library}, which is not on this machine: install the package that has it", program.display())]
    NoLibrary {
        /// The program.
        program: PathBuf,
        /// The library.
        library: String,
    },
    /// A program that is to run in the guest cannot be understood.
    #[error("the shared libraries of {} cannot be found out: {reason}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        reason: String,
    },
    /// QEMU cannot be started.
    #[error("cannot run {program} (install QEMU, Debian's package qemu-system-x86, or set QEMU to its path)")]
    NoQemu {
        /// What was run.
        program: String,
        /// Why it cannot be.
        source: io::Error,
    },
    /// The guest ended before its agent was ready.
    #[error("the guest ended before its agent was ready; its last words: {console}")]
    Ended {
        /// The console's last lines, or QEMU's own words.
        console: String,
    },
    /// The agent did not say that it is ready.
    #[error("the guest's agent was not ready within {} s; its last words: {console}", within.as_secs())]
    NotReady {
        /// How long it was waited for.
        within: Duration,
        /// Its last words.
        console: String,
    },
    /// A command did not end in time, or the guest did not.
    #[error("{command:?} did not end within {} s in the guest", within.as_secs())]
    CommandTimedOut {
        /// The command.
        command: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// The guest's answer to a command is not what it must be.
    #[error("the guest cannot run commands any more: {reason}")]
    Commands {
        /// Why.
        reason: String,
    },
    /// QEMU's monitor did not do what it was told.
    #[error("QEMU did not do {command:?} (a guest that ended says why on its console)")]
    Qmp {
        /// The monitor's command.
        command: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The vhost-user back end failed.
    #[error(transparent)]
    Backend(#[from] crate::transport::vhost_user::Error),
    /// The host's kernel has no descriptors, memory or threads for it.
    #[error("the host's kernel refuses what a guest needs")]
    Host(#[from] io::Error),
}

impl Error {
    /// What reading a file that the caller named failed with.
    pub(crate) fn unreadable(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.into(), mend: "name a file that is there and can be read", source }
    }
}

const _: () = {
    const fn shared_between_threads<T: std::error::Error + Send + Sync + 'static>() {}
    shared_between_threads::<Error>();
};
