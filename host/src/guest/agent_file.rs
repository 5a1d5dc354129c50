//! The agent's program for a guest: the one that this library carries, or a file of the host.
//!
//! The library carries the program for its own architecture always, and for the other one where that one's target was
//! installed when it was compiled. `SCX_VSOCK_AGENT` in the environment of that build names a file to carry instead.

use std::borrow::Cow;
use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::architecture::{Architecture, ElfMachine};
use crate::guest::error::Error;

/// The variable with the path of a file to use instead of the carried ones.
const VARIABLE: &str = "SCX_VSOCK_AGENT";

/// The most bytes of an agent's file, which is read into memory.
const MAX_BYTES: u64 = 64 << 20;

/// The agent's program for a guest.
///
/// ```
/// use scx_vsock::guest::{AgentFile, Architecture};
///
/// let agent = AgentFile::carried(Architecture::NATIVE)?;
/// assert!(agent.read()?.starts_with(b"\x7fELF"));
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentFile {
    /// The program that this library carries for an architecture.
    Carried(Architecture),
    /// A file of the host.
    Named(PathBuf),
}

impl AgentFile {
    /// Returns `named`, else the file that the environment's `SCX_VSOCK_AGENT` names, else the carried program for this
    /// architecture.
    ///
    /// # Errors
    ///
    /// As [`carried`](Self::carried).
    pub fn find(named: Option<&Path>, architecture: Architecture) -> Result<Self, Error> {
        let variable = || env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        match named.map(Path::to_owned).or_else(variable) {
            Some(path) => Ok(Self::Named(path)),
            None => Self::carried(architecture),
        }
    }

    /// Returns the carried program for this architecture.
    ///
    /// # Errors
    ///
    /// [`Error::NoAgent`].
    pub fn carried(architecture: Architecture) -> Result<Self, Error> {
        if carried(architecture).is_empty() {
            return Err(Error::NoAgent { architecture });
        }
        Ok(Self::Carried(architecture))
    }

    /// Returns the program.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the file cannot be read.
    pub fn read(&self) -> Result<Cow<'static, [u8]>, Error> {
        match self {
            Self::Carried(architecture) => Ok(Cow::Borrowed(carried(*architecture))),
            Self::Named(path) => read_file(path).map(Cow::Owned).map_err(Error::unreadable("the agent", path)),
        }
    }

    /// Returns the program for a guest of this architecture. Only a program is checked, not a script.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::WrongArchitecture`].
    pub fn read_for(&self, guest: Architecture) -> Result<Cow<'static, [u8]>, Error> {
        let bytes = self.read()?;
        check_architecture("the agent", &self.to_string(), &bytes, guest)?;
        Ok(bytes)
    }
}

impl fmt::Display for AgentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carried(architecture) => write!(f, "carried for {architecture}"),
            Self::Named(path) => path.display().fmt(f),
        }
    }
}

/// Checks that a program is for the guest's architecture. `what` and `name` are what it is in the error.
pub(super) fn check_architecture(
    what: &'static str,
    name: &str,
    program: &[u8],
    guest: Architecture,
) -> Result<(), Error> {
    match ElfMachine::read(program) {
        Some(machine) if machine.architecture() != Some(guest) => {
            Err(Error::WrongArchitecture { what, name: name.to_owned(), architecture: machine.to_string(), guest })
        }
        _ => Ok(()),
    }
}

/// Reads a file, which may be a device without an end.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let count = File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if count as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 64 MiB"));
    }
    Ok(bytes)
}

/// The program that the build script built for an architecture; empty if there is none.
fn carried(architecture: Architecture) -> &'static [u8] {
    match architecture {
        Architecture::X86_64 => include_bytes!(concat!(env!("OUT_DIR"), "/x86_64/scx-vsock-agent")),
        Architecture::Aarch64 => include_bytes!(concat!(env!("OUT_DIR"), "/aarch64/scx-vsock-agent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_native_program_is_carried() {
        let native = Architecture::NATIVE;
        let agent = AgentFile::carried(native).unwrap();
        assert_eq!(agent.read_for(native).unwrap(), agent.read().unwrap());
        assert_eq!(agent.to_string(), format!("carried for {native}"));
    }

    #[test]
    fn every_carried_program_is_for_its_architecture() {
        for architecture in Architecture::ALL {
            match AgentFile::carried(architecture) {
                Ok(agent) => assert!(agent.read_for(architecture).is_ok()),
                Err(error) => assert!(matches!(error, Error::NoAgent { architecture: of } if of == architecture)),
            }
        }
    }

    #[test]
    fn a_named_file_is_preferred() {
        let agent = AgentFile::find(Some(Path::new("agent")), Architecture::X86_64).unwrap();
        assert_eq!(agent, AgentFile::Named("agent".into()));
        let error = AgentFile::Named("/no/such/agent".into()).read().unwrap_err();
        assert!(error.to_string().starts_with("cannot read the agent /no/such/agent"), "{error}");
        let error = AgentFile::Named("/dev/zero".into()).read().unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("more than 64 MiB"));
    }

    #[test]
    fn a_program_for_another_architecture_is_named() {
        let native = Architecture::NATIVE;
        let other = Architecture::ALL.into_iter().find(|architecture| *architecture != native).unwrap();
        let error = AgentFile::Named("/proc/self/exe".into()).read_for(other).unwrap_err().to_string();
        let expected =
            format!("the agent /proc/self/exe is for {native}, but the guest is for {other}: name one for {other}");
        assert_eq!(error, expected);
        assert!(AgentFile::Named("/proc/self/exe".into()).read_for(native).is_ok());
    }

    #[test]
    fn a_script_is_not_checked() {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), "#!/bin/sh\n").unwrap();
        let agent = AgentFile::Named(script.path().into());
        assert!(Architecture::ALL.into_iter().all(|architecture| agent.read_for(architecture).is_ok()));
    }
}
