//! MicroVMs of a few instructions, on this machine's KVM.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use scx_vsock::guest::microvm::test_util::pvh_kernel;
use scx_vsock::guest::microvm::{Error, Microvm};

/// How long anything may take.
pub const LONG: Duration = Duration::from_secs(60);

/// What a guest prints.
#[derive(Clone, Debug, Default)]
pub struct Output(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.lock().expect("no panic").extend(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Returns how many bytes there are.
    ///
    /// # Panics
    ///
    /// If a writer panicked.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "no test asks")]
    pub fn len(&self) -> usize {
        self.0.0.lock().expect("no panic").len()
    }

    /// Waits until there are this many bytes, and returns all.
    ///
    /// # Panics
    ///
    /// If they do not come.
    pub fn wait_for(&self, bytes: usize) -> Vec<u8> {
        let output = self.0.0.lock().expect("no panic");
        let (output, _) = self.0.1.wait_timeout_while(output, LONG, |output| output.len() < bytes).expect("no panic");
        assert!(output.len() >= bytes, "it printed {} bytes", output.len());
        output.clone()
    }
}

/// Returns a guest with these instructions, paused, and the other end of its second serial port.
///
/// # Errors
///
/// Those of the microVM.
///
/// # Panics
///
/// If this host has no file or descriptor.
pub fn guest(code: &[u8], vcpus: u32, output: &Output) -> Result<(Microvm, UnixStream), Error> {
    let kernel = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(kernel.path(), pvh_kernel(code)).expect("a file");
    let (host, commands) = UnixStream::pair().expect("a pair");
    let builder = Microvm::builder(kernel.path()).memory_mib(16).vcpus(vcpus);
    Ok((builder.build(Box::new(output.clone()), commands)?, host))
}
