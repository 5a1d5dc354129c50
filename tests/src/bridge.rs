//! A guest's agent on a Unix socket of this host, for programs that have no part in the guest's device.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use scx_vsock::AGENT_PORT;
use scx_vsock::guest::qemu::Guest;
use scx_vsock::vsock::Handle;
use tempfile::TempDir;

/// A place that leads to a guest's agent. What is connected stays so until either end closes.
#[derive(Debug)]
pub struct Bridge {
    folder: TempDir,
    guest: Arc<Mutex<Handle>>,
}

impl Bridge {
    /// A place of its own for this guest.
    ///
    /// # Panics
    ///
    /// When it cannot listen.
    #[must_use]
    pub fn to(guest: &Guest) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(folder.path().join("agent")).expect("a socket to listen on");
        let guest = Arc::new(Mutex::new(guest.handle()));
        let leads_to = Arc::clone(&guest);
        // It ends with the test's process.
        thread::spawn(move || {
            for host in listener.incoming() {
                let handle = leads_to.lock().expect("nobody panics").clone();
                // A guest that is gone is a connection that ends.
                let _ended = connect(&handle, host.expect("accept works"));
            }
        });
        Self { folder, guest }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// Leads new connections to another guest.
    ///
    /// # Panics
    ///
    /// Never: nobody panics with the lock.
    pub fn set_guest(&self, guest: &Guest) {
        *self.guest.lock().expect("nobody panics") = guest.handle();
    }
}

fn connect(handle: &Handle, host: UnixStream) -> io::Result<()> {
    let guest = handle.connect(AGENT_PORT)?;
    guest.set_nonblocking(false)?;
    let (back_from, back_to) = (guest.try_clone()?, host.try_clone()?);
    thread::spawn(move || pass_on(host, guest));
    thread::spawn(move || pass_on(back_from, back_to));
    Ok(())
}

/// Passes bytes on, and their end.
fn pass_on(mut from: UnixStream, mut to: UnixStream) {
    // However it ends, the other side learns that it did.
    let _bytes = io::copy(&mut from, &mut to);
    let _ended = to.shutdown(Shutdown::Write);
}
