//! Why the agent cannot be added to an initramfs.

use std::io;

/// Why the agent cannot be added to an initramfs. Offsets are in bytes from the beginning.
///
/// ```
/// use scx_vsock::guest::initramfs::inject::{InitramfsError, add_agent};
///
/// let error = add_agent(b"text", b"agent", &[]).unwrap_err();
/// assert!(matches!(error, InitramfsError::Unknown { at: 0 }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// There is nothing but zeros.
    #[error("it is {}: name an initramfs", if *bytes == 0 { "empty".to_owned() } else { format!("{bytes} bytes of zeros") })]
    Empty {
        /// How many bytes it has.
        bytes: usize,
    },
    /// The boot configuration at the end is malformed.
    #[error(
        "it ends in a boot configuration whose size or checksum is wrong: make the initramfs anew, and append the \
         configuration by bootconfig -a"
    )]
    InvalidBootconfig,
    /// Something that is neither an archive nor compressed.
    #[error("byte {at} begins neither a newc archive nor data of gzip, xz or zstd: name an initramfs")]
    Unknown {
        /// Its offset.
        at: usize,
    },
    /// An unsupported compression.
    #[error("byte {at} begins data of {by}: unpack it first")]
    Compression {
        /// Its offset.
        at: usize,
        /// The program that unpacks it.
        by: &'static str,
    },
    /// An archive or its compression is malformed.
    #[error("cannot read the archive at byte {at} (make the initramfs anew)")]
    InvalidArchive {
        /// Its offset.
        at: usize,
        /// What is wrong with it.
        source: io::Error,
    },
    /// An archive, or what follows one, is where kernels do not look for it.
    #[error("the archive at byte {at} is not at a multiple of 4, where kernels look for it: pad what is before it")]
    Misaligned {
        /// Its offset.
        at: usize,
    },
    /// There is no `/init` to start the agent before.
    #[error("it has no /init, before which the agent could be started: add one, or start the agent in another way")]
    NoInit,
    /// The `/init` cannot be moved.
    #[error("its /init is {what}: make it a file of its own, or a link to a file")]
    UnusableInit {
        /// What it is.
        what: &'static str,
    },
    /// There is no shell to start the agent with.
    #[error(
        "it has neither sh nor busybox as a program in /bin or /usr/bin, to start the agent with: start it from the init \
         itself"
    )]
    NoShell,
    /// The base is for an architecture that has no agent.
    #[error("its shell is for {machine}, for which there is no agent: use an image for x86_64 or aarch64")]
    Architecture {
        /// What the shell is for.
        machine: String,
    },
    /// A folder of the base is where a file of the agent goes.
    #[error("it has a folder at /{path}, where the agent needs a file: remove the folder")]
    Occupied {
        /// The path.
        path: &'static str,
    },
    /// An argument of the agent has a NUL character, which no argument can have.
    #[error("the argument {argument:?} has a NUL character: remove it")]
    NulInArgument {
        /// The argument.
        argument: String,
    },
    /// The agent or the init is too large for the format.
    #[error("the agent does not fit into an archive")]
    TooLarge(#[from] io::Error),
}
