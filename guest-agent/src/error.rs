//! Why an agent cannot serve.

use core::fmt;

use scx_vsock_wire::{Text, Writer};

use crate::sys::Errno;

/// Why an agent cannot serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// What failed.
    pub problem: Problem,
    /// What it failed with.
    pub errno: Errno,
}

/// What an agent cannot serve without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It cannot wait for events: the kernel has no epoll instance or timer for it.
    Events,
    /// A vsock port cannot be listened on.
    Listen {
        /// The port.
        port: u32,
    },
    /// An inherited descriptor is not a listening socket.
    Descriptor {
        /// Its number.
        number: i32,
    },
}

impl Error {
    /// Writes what is impossible, why and what to do.
    #[inline(never)]
    pub(crate) fn write(self, line: &mut Writer<'_>) {
        let errno = self.errno.into_raw();
        let (template, number): (&[u8], u32) = match self.problem {
            Problem::Events => (b"cannot wait for events", 0),
            Problem::Listen { port } => (b"cannot listen on vsock port #", port),
            Problem::Descriptor { number } => (b"descriptor # is not a listening socket", number.unsigned_abs()),
        };
        line.add_number(template, number.into());
        let fix: &[u8] = match self.problem {
            Problem::Listen { .. } if self.errno == Errno::EADDRINUSE => b": errno #; is another agent running?",
            Problem::Listen { .. } => b": errno #; ports below 1024 need root",
            Problem::Events | Problem::Descriptor { .. } => b": errno #",
        };
        line.add_number(fix, errno.unsigned_abs().into());
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 128];
        let mut line = Writer::new(&mut text);
        self.write(&mut line);
        Text::first_line(line.written()).fmt(formatter)
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_failed_and_what_to_do() {
        let text = |problem, errno| format!("{}", Error { problem, errno });
        assert_eq!(text(Problem::Events, Errno::EMFILE), "cannot wait for events: errno 24");
        assert_eq!(
            text(Problem::Listen { port: 729 }, Errno::EADDRINUSE),
            "cannot listen on vsock port 729: errno 98; is another agent running?"
        );
        assert_eq!(
            text(Problem::Listen { port: 729 }, Errno::EACCES),
            "cannot listen on vsock port 729: errno 13; ports below 1024 need root"
        );
        assert_eq!(
            text(Problem::Descriptor { number: 3 }, Errno::EBADF),
            "descriptor 3 is not a listening socket: errno 9"
        );
    }
}
