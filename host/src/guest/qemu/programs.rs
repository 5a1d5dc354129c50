//! Programs and files of the host that a guest is made of.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::platform::Platform;
use crate::guest::architecture::Architecture;
use crate::guest::error::Error;

/// Returns the QEMU program for guests of this architecture: `named`, else the environment's `QEMU`, else
/// `qemu-system-ARCHITECTURE`.
#[must_use]
pub fn qemu_program(named: Option<&OsStr>, architecture: Architecture) -> OsString {
    let named = named.map(OsStr::to_owned).or_else(|| env::var_os("QEMU").filter(|name| !name.is_empty()));
    named.unwrap_or_else(|| Platform::of(architecture).qemu.into())
}

/// Finds QEMU by its path, or by its name in `PATH`.
pub(in crate::guest) fn check_qemu(program: &OsStr) -> Result<(), Error> {
    let missing = |source| Error::NoQemu { program: program.to_string_lossy().into_owned(), source };
    if has_slash(program) {
        File::open(program).map_err(missing)?;
    } else if find_in_path(program).is_none() {
        return Err(missing(io::Error::new(io::ErrorKind::NotFound, "it is not in PATH")));
    }
    Ok(())
}

/// Returns the busybox of this host, whose programs a guest has, by its name in `PATH`.
///
/// # Errors
///
/// [`Error::NotInPath`].
pub fn find_busybox() -> Result<PathBuf, Error> {
    let fix = "install it (Debian's package busybox-static), or add its folder to PATH";
    find_program("busybox", Path::new("busybox"), fix)
}

/// Finds a program by its path, or by its name in `PATH`. `what` names it in the error, `fix` says what to do.
pub(in crate::guest) fn find_program(what: &'static str, program: &Path, fix: &'static str) -> Result<PathBuf, Error> {
    if has_slash(program.as_os_str()) {
        File::open(program).map_err(|source| Error::File { what, path: program.into(), fix, source })?;
        return Ok(program.into());
    }
    find_in_path(program.as_os_str())
        .ok_or_else(|| Error::NotInPath { program: program.to_string_lossy().into_owned(), fix })
}

fn has_slash(program: &OsStr) -> bool {
    program.as_bytes().contains(&b'/')
}

fn find_in_path(name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIX: &str = "install it";

    #[test]
    fn programs_are_found_by_path_and_in_path() {
        assert_eq!(find_program("the shell", "/bin/sh".as_ref(), FIX).unwrap(), Path::new("/bin/sh"));
        assert!(find_program("the shell", "sh".as_ref(), FIX).unwrap().ends_with("sh"));
        check_qemu("sh".as_ref()).unwrap();
    }

    #[test]
    fn a_missing_program_is_named_with_its_fix() {
        let error = find_program("the tool", "no-such-tool".as_ref(), FIX).unwrap_err();
        assert_eq!(error.to_string(), "cannot find no-such-tool in PATH: install it");
        let error = find_program("the tool", "/no/such/tool".as_ref(), FIX).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the tool /no/such/tool (install it)");
        for program in ["no-such-qemu", "/no/such/qemu"] {
            assert!(matches!(check_qemu(program.as_ref()).unwrap_err(), Error::NoQemu { .. }));
        }
    }

    #[test]
    fn a_named_qemu_is_preferred() {
        assert_eq!(qemu_program(Some(OsStr::new("/opt/qemu")), Architecture::Aarch64), "/opt/qemu");
    }
}
