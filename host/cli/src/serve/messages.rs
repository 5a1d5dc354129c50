//! The messages about one guest, on stderr.

use std::path::Path;
use std::time::Instant;

use super::message_limit::{MessageLimit, Verdict};
use crate::output::eprintln;

/// Prints messages that begin with the path of the guest's socket.
pub struct Messages<'a> {
    socket: &'a Path,
    limit: MessageLimit,
}

impl<'a> Messages<'a> {
    /// Returns the messages of the guest with this socket.
    pub fn new(socket: &'a Path) -> Self {
        Self { socket, limit: MessageLimit::default() }
    }

    /// Prints a message, unless there were too many of late.
    pub fn print(&mut self, message: &str) {
        let socket = self.socket.display();
        match self.limit.count(Instant::now()) {
            Verdict::Print { skipped } => {
                if skipped > 0 {
                    eprintln!("scx-vsock: {socket}: {skipped} messages were skipped");
                }
                eprintln!("scx-vsock: {socket}: {message}");
            }
            Verdict::PrintLast => {
                eprintln!("scx-vsock: {socket}: {message}");
                eprintln!("scx-vsock: {socket}: too many messages; skipping further ones for up to a minute");
            }
            Verdict::Skip => {}
        }
    }
}
