//! The architectures of guests.

use std::fmt;
use std::str::FromStr;

use crate::guest::error::Error;

/// Where an ELF header has the machine (System V gABI, "ELF Header").
const MACHINE_AT: usize = 18;

/// An architecture of a guest.
///
/// ```
/// use scx_vsock::guest::Architecture;
///
/// assert_eq!("aarch64".parse::<Architecture>()?, Architecture::Aarch64);
/// assert_eq!(Architecture::X86_64.to_string(), "x86_64");
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// 64-bit x86, which Debian calls amd64.
    X86_64,
    /// 64-bit Arm, which Debian calls arm64. Pages may have 4, 16 or 64 KiB.
    Aarch64,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The architecture that this program was compiled for, or x86_64 if that is none of these.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// Returns the name as Linux, Rust and QEMU have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Returns the machine in the ELF header of programs.
    pub(super) fn elf_machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = |architecture: &Self| architecture.name() == name;
        Self::ALL.into_iter().find(known).ok_or_else(|| Error::UnknownArchitecture { name: name.to_owned() })
    }
}

/// The machine that a program or a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ElfMachine(pub(super) u16);

impl ElfMachine {
    /// Reads it from the beginning of a file; `None` if that is not an ELF file.
    pub(super) fn read(beginning: &[u8]) -> Option<Self> {
        let machine = beginning.get(MACHINE_AT..MACHINE_AT + 2)?;
        let machine = u16::from_le_bytes(machine.try_into().ok()?);
        beginning.starts_with(b"\x7fELF").then_some(Self(machine))
    }

    /// Returns the architecture; `None` if it is another one.
    pub(super) fn architecture(self) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|architecture| architecture.elf_machine() == self.0)
    }
}

impl fmt::Display for ElfMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.architecture() {
            Some(architecture) => architecture.fmt(f),
            None => write!(f, "another architecture (ELF machine {})", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.name().parse::<Architecture>().unwrap(), architecture);
            assert_eq!(ElfMachine(architecture.elf_machine()).architecture(), Some(architecture));
        }
        let error = "arm64".parse::<Architecture>().unwrap_err();
        assert_eq!(error.to_string(), "unknown architecture \"arm64\": use x86_64 or aarch64");
    }

    #[test]
    fn the_machine_of_this_program_is_native() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(ElfMachine::read(&program).unwrap().architecture(), Some(Architecture::NATIVE));
    }

    #[test]
    fn other_files_have_no_machine() {
        let mut other = [b"\x7fELF".as_slice(), &[0; 14], &[8, 0]].concat();
        assert_eq!(ElfMachine::read(&other).unwrap().to_string(), "another architecture (ELF machine 8)");
        other.pop();
        for bytes in [&other[..], b"", b"#!/bin/sh\n echo it ends\n"] {
            assert_eq!(ElfMachine::read(bytes), None);
        }
    }
}
