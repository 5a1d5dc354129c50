//! Guests whose programs count for `ci/coverage`. A guest's files end with it, so the counters are copied out first.

use std::env;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::thread;

use scx_vsock::guest::{Guest, GuestBuilder};

use crate::guest::output;

/// The environment variable by which LLVM's counters find their file.
const VARIABLE: &str = "LLVM_PROFILE_FILE";

/// A file for each process of the guest, which is current at any time: the process has it mapped.
const FILES: &str = "/tmp/%p-%m%c.profraw";

/// A running guest. When it ends, its counters are added to those of this process, if that has any.
#[derive(Debug)]
pub struct CoverageGuest {
    guest: Guest,
    counters: Option<PathBuf>,
}

/// Boots a guest.
///
/// # Panics
///
/// When it cannot be booted.
#[must_use]
pub fn boot(builder: GuestBuilder) -> CoverageGuest {
    let counters = env::var_os(VARIABLE).map(|files| Path::new(&files).with_file_name(""));
    // The kernel passes arguments that it does not know to the first process, in the environment.
    let builder = match counters {
        Some(_) => builder.kernel_argument(format!("{VARIABLE}={FILES}")),
        None => builder,
    };
    CoverageGuest { guest: builder.boot().expect("the guest boots"), counters }
}

impl CoverageGuest {
    /// Copies the guest's counters to one file, which LLVM's tools can read.
    fn copy_counters(&self, folder: &Path) {
        let file = tempfile::Builder::new().prefix("guest-").suffix(".profraw").tempfile_in(folder).expect("a file");
        let counters = output(&self.guest, &["sh", "-c", "cat /tmp/*.profraw"]);
        fs::write(file.path(), counters).expect("room");
        file.keep().expect("the file stays");
    }
}

impl Deref for CoverageGuest {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Drop for CoverageGuest {
    fn drop(&mut self) {
        if let Some(folder) = &self.counters
            && !thread::panicking()
        {
            self.copy_counters(folder);
        }
    }
}
