//! The web configuration that is in use, and the files that it was read from.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scx_vsock::export::{Exporter, WebConfig};

use super::file_watch::FileWatch;
use crate::error_report::one_line;
use crate::output::eprintln;

/// A web configuration that is read again when it, a certificate or a key changes.
#[derive(Debug)]
pub struct WebConfigFile {
    path: PathBuf,
    watches: Vec<FileWatch>,
}

impl WebConfigFile {
    /// Reads it, and sets it in the exporter. Returns whether connections are encrypted besides.
    ///
    /// # Errors
    ///
    /// If it cannot be used, or its files cannot be watched.
    pub fn read(path: &Path, exporter: &mut Exporter) -> Result<(Self, bool)> {
        let mut file = Self { path: path.to_owned(), watches: Vec::new() };
        let has_tls = file.apply(exporter)?;
        Ok((file, has_tls))
    }

    /// The descriptors that are readable when a file may have changed.
    pub fn watches(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watches.iter().map(AsFd::as_fd)
    }

    /// Reads again what has changed. What is wrong is reported, and leaves the configuration as it was.
    pub fn refresh(&mut self, exporter: &mut Exporter) {
        // Each of them, so that none has an event that nobody sees.
        let changed: Vec<bool> = self.watches.iter().map(FileWatch::has_changed).collect();
        if !changed.contains(&true) {
            return;
        }
        match self.apply(exporter) {
            Ok(_) => eprintln!("scx-vsock: read {} again", one_line(&self.path.display().to_string())),
            Err(error) => {
                eprintln!("scx-vsock: {}; the configuration stays as it was", one_line(&format!("{error:#}")))
            }
        }
    }

    fn apply(&mut self, exporter: &mut Exporter) -> Result<bool> {
        let context = || format!("cannot use the web configuration {}", self.path.display());
        let files = WebConfig::read(&self.path).with_context(context)?.files().to_vec();
        let watches: Vec<FileWatch> = files.iter().map(|path| FileWatch::new(path)).collect::<Result<_>>()?;
        // Again, so that no change before they were watched is missed.
        let config = WebConfig::read(&self.path).with_context(context)?;
        let has_tls = config.has_tls();
        exporter.set_web_config(config).with_context(context)?;
        self.watches = watches;
        Ok(has_tls)
    }
}
