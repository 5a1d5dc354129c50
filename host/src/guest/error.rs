//! Why a guest cannot be booted or used.
//!
//! As everywhere in this crate, the text of an error does not repeat that of its source: print the chain.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::architecture::Architecture;
use crate::stats::SchedStatsError;

/// Why a guest cannot be booted or used. Each text names the cause and the fix.
///
/// ```
/// use scx_vsock::guest::{Error, Guest};
///
/// let error = Guest::builder().kernel("/no/such/vmlinuz").boot().unwrap_err();
/// assert!(matches!(&error, Error::File { what: "the kernel", source, .. } if source.raw_os_error() == Some(2)));
/// assert_eq!(error.to_string(), "cannot read the kernel /no/such/vmlinuz (name a file that is there and can be read)");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that the guest needs cannot be read.
    #[error("cannot read {what} {} ({fix})", path.display())]
    File {
        /// What the file is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What to do.
        fix: &'static str,
        /// What reading it failed with.
        source: io::Error,
    },
    /// A program that the guest needs is not in `PATH`.
    #[error("cannot find {program} in PATH: {fix}")]
    NotInPath {
        /// The program's name.
        program: String,
        /// What to do.
        fix: &'static str,
    },
    /// No kernel was named.
    #[error("no kernel was given: name a bzImage, such as /boot/vmlinuz-$(uname -r)")]
    NoKernel,
    /// The file that was named as the kernel is none.
    #[error(
        "{} is no kernel that a guest boots: name a bzImage, a vmlinux or an arm64 Image, such as \
         /boot/vmlinuz-$(uname -r)",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// This build does not carry the agent's program for an architecture.
    #[error(
        "this build of scx-vsock has no agent for {architecture}: run rustup target add {architecture}-unknown-linux-gnu \
         && cargo install --force scx-vsock-cli, or set SCX_VSOCK_AGENT to the agent's file"
    )]
    NoAgent {
        /// The architecture.
        architecture: Architecture,
    },
    /// A program is for another architecture than the guest.
    #[error("{what} {name} is for {architecture}, but the guest is for {guest}: name one for {guest}")]
    WrongArchitecture {
        /// What the program is.
        what: &'static str,
        /// The program's name.
        name: String,
        /// What it is for.
        architecture: String,
        /// The guest's architecture.
        guest: Architecture,
    },
    /// A kernel module that the guest needs is missing.
    #[error("the kernel module {name} is not in {}: name the folder with the modules of this kernel", folder.display())]
    NoModule {
        /// The module.
        name: String,
        /// The folder with the kernel's modules.
        folder: PathBuf,
    },
    /// A shared library that a program needs is missing.
    #[error("{} needs {library}, which is not on this host: install the package that contains it", program.display())]
    NoLibrary {
        /// The program.
        program: PathBuf,
        /// The library.
        library: String,
    },
    /// The shared libraries of a program cannot be determined.
    #[error("cannot read the shared libraries of {} (name an ELF executable or a script): {reason}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why not.
        reason: String,
    },
    /// An argument of a program in the guest has a NUL character, which no argument can have.
    #[error("the argument {argument:?} has a NUL character: remove it")]
    NulInArgument {
        /// The argument.
        argument: String,
    },
    /// QEMU cannot be started.
    #[error("cannot run {program} (install QEMU, Debian's package {}, or set QEMU to its path)", qemu_package(program))]
    NoQemu {
        /// The program that was started.
        program: String,
        /// What starting it failed with.
        source: io::Error,
    },
    /// The socket to QEMU needs a temporary folder, which cannot be created.
    #[error("cannot create a temporary folder in {} (set TMPDIR to a folder that can be written)", folder.display())]
    TemporaryFolder {
        /// Where it was to be created.
        folder: PathBuf,
        /// What creating it failed with.
        source: io::Error,
    },
    /// The guest ended before its agent was ready.
    #[error("the guest ended before its agent was ready{}; its last lines: {console}", in_parentheses(how.as_deref()))]
    Ended {
        /// How it ended, if its VMM knows.
        how: Option<String>,
        /// The last lines of the guest's console or of QEMU.
        console: String,
    },
    /// The agent did not report in time that it is ready.
    #[error("the guest's agent was not ready within {} s; the guest's last lines: {console}", within.as_secs_f32())]
    NotReady {
        /// The time limit.
        within: Duration,
        /// The last lines of the guest's console.
        console: String,
    },
    /// The guest's kernel has no virtio-vsock device, so that the agent cannot be reached.
    #[error(
        "the guest's kernel has no virtio-vsock device (name the folder with its modules by --modules or \
         GuestBuilder::modules, or a kernel with CONFIG_VIRTIO_VSOCKETS=y); the guest's last lines: {console}"
    )]
    NoVsock {
        /// The last lines of the guest's console.
        console: String,
    },
    /// The agent exited.
    #[error("the guest's agent {}; the guest's last lines: {console}", exit_text(*status))]
    AgentEnded {
        /// The exit status as a shell has it.
        status: i32,
        /// The last lines of the guest's console.
        console: String,
    },
    /// The scheduler exited.
    #[error("the scheduler {scheduler} {}{}; its last lines: {console}", exit_text(*status), config_advice(*lacks_config))]
    SchedulerEnded {
        /// The scheduler's name.
        scheduler: String,
        /// The exit status as a shell has it.
        status: i32,
        /// Whether it is one that reads the kernel's configuration, and the guest has none.
        lacks_config: bool,
        /// What the guest printed last while the scheduler ran.
        console: String,
    },
    /// The scheduler runs, but could not be reached in time.
    #[error("the scheduler {scheduler} does not serve stats{}; its last lines: {console}", config_advice(*lacks_config))]
    NoStats {
        /// The scheduler's name.
        scheduler: String,
        /// Whether it is one that reads the kernel's configuration, and the guest has none.
        lacks_config: bool,
        /// What the guest printed last while the scheduler ran.
        console: String,
        /// Why it cannot be reached.
        source: SchedStatsError,
    },
    /// A file for the guest's console cannot be created.
    #[error("cannot create {} for the guest's console (name a file that can be written)", path.display())]
    ConsoleFile {
        /// Its path.
        path: PathBuf,
        /// What creating it failed with.
        source: io::Error,
    },
    /// A command in the guest did not end in time.
    #[error("{command:?} did not end within {} s in the guest", within.as_secs_f32())]
    CommandTimedOut {
        /// The command.
        command: String,
        /// The time limit.
        within: Duration,
    },
    /// No further command can be run in the guest: it ended, a command timed out, or an answer was malformed.
    #[error("the guest runs no further commands: {reason}")]
    CommandChannel {
        /// Why not.
        reason: String,
    },
    /// QEMU did not execute a QMP command.
    #[error("QEMU did not execute the QMP command {command:?} (if the guest has ended, its console says why)")]
    Qmp {
        /// The command's name.
        command: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The guest cannot have this topology.
    #[error(transparent)]
    Topology(#[from] super::topology::TopologyError),
    /// A guest cannot be the microVM that was asked for.
    #[error("the guest cannot be a microVM (--vmm qemu or GuestBuilder::vmm(Vmm::Qemu) takes QEMU): {reason}")]
    NoMicrovm {
        /// Why not.
        reason: String,
    },
    /// A microVM has no reset button.
    #[error("a microVM cannot be reset: take QEMU (--vmm qemu, GuestBuilder::vmm(Vmm::Qemu)), or boot another guest")]
    NoResetButton,
    /// A guest under QEMU cannot be saved.
    #[error("a guest under QEMU has no snapshot: boot it on a microVM (GuestBuilder::vmm(Vmm::Microvm))")]
    NoSnapshot,
    /// A guest that runs a command is not saved, since nobody would wait for that command in the guests of its state.
    #[error("the guest runs a command: take the snapshot after its end, or start the command in the background")]
    CommandRuns,
    /// The microVM cannot be made or used.
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    #[error(transparent)]
    Microvm(#[from] super::microvm::Error),
    /// The vhost-user back end failed.
    #[error(transparent)]
    Backend(#[from] crate::transport::vhost_user::Error),
    /// The host lacks something that every guest needs.
    #[error("the host has no port, descriptor, memory or thread for the guest")]
    Host(#[from] io::Error),
}

impl Error {
    /// Returns a conversion of what reading a file of the caller's choice failed with.
    pub(crate) fn unreadable(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.into(), fix: "name a file that is there and can be read", source }
    }
}

fn in_parentheses(text: Option<&str>) -> String {
    text.map(|text| format!(" ({text})")).unwrap_or_default()
}

/// What an exit status of a shell means.
fn exit_text(status: i32) -> String {
    match status {
        126 => "cannot be executed".into(),
        129.. => format!("was ended by signal {}", status.saturating_sub(128)),
        _ => format!("exited with status {status}"),
    }
}

/// The Debian package of a QEMU program.
fn qemu_package(program: &str) -> &'static str {
    if program.ends_with("aarch64") { "qemu-system-arm" } else { "qemu-system-x86" }
}

fn config_advice(lacks_config: bool) -> &'static str {
    if lacks_config {
        " (scx_* schedulers need the kernel's configuration: name its file, such as /boot/config-RELEASE)"
    } else {
        ""
    }
}

const _: () = {
    const fn shared_between_threads<T: std::error::Error + Send + Sync + 'static>() {}
    shared_between_threads::<Error>();
};

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: i32, lacks_config: bool) -> String {
        let (scheduler, console) = ("scx_a".into(), "its line".into());
        Error::SchedulerEnded { scheduler, status, lacks_config, console }.to_string()
    }

    #[test]
    fn the_end_of_a_scheduler_says_how() {
        assert_eq!(ended(1, false), "the scheduler scx_a exited with status 1; its last lines: its line");
        assert!(ended(139, false).contains("was ended by signal 11;"));
        assert!(ended(126, false).contains("cannot be executed;"));
    }

    #[test]
    fn a_scheduler_without_configuration_gets_advice() {
        let advice = "(scx_* schedulers need the kernel's configuration: name its file, such as /boot/config-RELEASE)";
        assert!(ended(1, true).contains(advice) && !ended(1, false).contains(advice));
        let source = SchedStatsError::TimedOut { after_ms: 1 };
        let unserved = Error::NoStats { scheduler: "scx_a".into(), lacks_config: true, console: String::new(), source };
        assert!(unserved.to_string().contains(advice));
    }
}
