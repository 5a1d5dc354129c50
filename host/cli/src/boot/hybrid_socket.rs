//! The socket of `--hybrid`, which is removed however boot ends, but for SIGKILL: the next run replaces it then.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use nix::sys::signal::{Signal, raise};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use scx_vsock::guest::Guest;
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::vsock::unix_bridge::UnixBridge;

use crate::output::eprintln;
use crate::signals::{self, Signals};

/// The signals that end boot.
const ENDING: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// A hybrid socket, removed on drop and by a signal that ends this process.
pub struct HybridSocket(Arc<Mutex<State>>);

enum State {
    /// Connections wait in the socket's backlog until the guest is there.
    Waiting(OwnedUnixListener),
    Connected {
        _bridge: UnixBridge,
    },
    Removed,
}

impl HybridSocket {
    /// Creates the socket. Must be called while there is one thread.
    ///
    /// # Errors
    ///
    /// The socket or the thread that waits for signals cannot be created.
    pub fn bind(path: &Path) -> Result<Self> {
        let signals = Signals::block(&ENDING)?;
        let state = Arc::new(Mutex::new(State::Waiting(OwnedUnixListener::bind(path)?)));
        let of_thread = Arc::clone(&state);
        thread::Builder::new().name("signals".into()).spawn(move || end_by_signal(&signals, &of_thread))?;
        Ok(Self(state))
    }

    /// Connects clients of the socket with the guest.
    ///
    /// # Errors
    ///
    /// The host has no descriptor or thread for it.
    pub fn connect_to(&self, guest: &Guest) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(socket) = std::mem::replace(&mut *state, State::Removed) {
            guest.handle().set_uds_path(socket.path());
            eprintln!(
                "scx-vsock: other programs can reach the guest: scx-vsock stats hybrid:{}",
                socket.path().display()
            );
            // Programs may have connected during the boot: they are this guest's from the beginning.
            let bridge = UnixBridge::start_for(socket, guest.handle())?;
            *state = State::Connected { _bridge: bridge };
        }
        Ok(())
    }
}

impl Drop for HybridSocket {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(state: &Mutex<State>) {
    *state.lock().unwrap_or_else(PoisonError::into_inner) = State::Removed;
}

/// Waits for a signal, removes the socket, and ends this process as the signal would have.
fn end_by_signal(signals: &Signals, state: &Mutex<State>) {
    let signal = loop {
        let _readable = retry_on_intr(|| poll(&mut [PollFd::new(signals, PollFlags::IN)], None));
        match signals.next() {
            Ok(Some(received)) => break Signal::try_from(received.number).unwrap_or(Signal::SIGTERM),
            Ok(None) => {}
            Err(_) => return,
        }
    };
    remove(state);
    let _unblocked = signals::unblock_all();
    let _ends = raise(signal);
}
