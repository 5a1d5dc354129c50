//! A guest's agent on a Unix socket of this host, for programs that do not own the guest's device.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use scx_vsock::AGENT_PORT;
use scx_vsock::guest::Guest;
use scx_vsock::vsock::Handle;
use tempfile::TempDir;

/// A Unix socket that is connected to a guest's agent. A connection lasts until either end closes.
#[derive(Debug)]
pub struct Bridge {
    folder: TempDir,
    guest: Arc<Mutex<Handle>>,
}

impl Bridge {
    /// Returns a bridge to this guest.
    ///
    /// # Panics
    ///
    /// If it cannot listen.
    #[must_use]
    pub fn to(guest: &Guest) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(folder.path().join("agent")).expect("a socket to listen on");
        let guest = Arc::new(Mutex::new(guest.handle()));
        let target = Arc::clone(&guest);
        // It ends with the test's process.
        thread::spawn(move || {
            for host in listener.incoming() {
                let handle = target.lock().expect("nobody panics").clone();
                // The connection ends with the guest.
                let _ended = forward(&handle, host.expect("accept works"));
            }
        });
        Self { folder, guest }
    }

    /// Returns the path of the socket.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// Connects new connections to another guest.
    ///
    /// # Panics
    ///
    /// Never: nobody panics with the lock.
    pub fn set_guest(&self, guest: &Guest) {
        *self.guest.lock().expect("nobody panics") = guest.handle();
    }
}

fn forward(handle: &Handle, host: UnixStream) -> io::Result<()> {
    let guest = handle.connect(AGENT_PORT)?;
    guest.set_nonblocking(false)?;
    let (guest_reader, host_writer) = (guest.try_clone()?, host.try_clone()?);
    thread::spawn(move || copy_all(host, guest));
    thread::spawn(move || copy_all(guest_reader, host_writer));
    Ok(())
}

/// Copies bytes to their end, and shuts down the other side's writing.
fn copy_all(mut from: UnixStream, mut to: UnixStream) {
    // An error ends it, too.
    let _bytes = io::copy(&mut from, &mut to);
    let _ended = to.shutdown(Shutdown::Write);
}
