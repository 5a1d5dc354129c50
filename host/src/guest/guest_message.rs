//! What a guest's first process writes to its second serial port: a line for each message, and after that of a piece of
//! output its bytes.
//!
//! | line | what it says |
//! | --- | --- |
//! | `stdout ID SIZE`, `stderr ID SIZE` | a piece of what the command with this id wrote follows; an empty one is the end |
//! | `exited ID STATUS` | the command exited |
//! | `no-vsock` | the kernel has no virtio-vsock device |
//! | `agent-ended STATUS`, `scheduler-ended STATUS` | the agent or the scheduler exited |
//!
//! Any process of the guest can write there. What it writes is bounded, and no text of it is kept.

use std::io::{self, BufRead, ErrorKind, Read};

use crate::stats::PeerText;

/// The most bytes of a line.
const MAX_LINE: u64 = 64;

/// The most bytes of a piece of output.
const MAX_PIECE: u64 = 64 * 1024;

/// One of the outputs of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GuestMessage {
    /// A message about the command with this id.
    Command { id: String, message: CommandMessage },
    /// Something happened in the guest.
    Event(GuestEvent),
}

/// A message about one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommandMessage {
    /// A piece of an output; no bytes are its end.
    Piece(OutputStream, Vec<u8>),
    /// The exit status, as a shell has it.
    Exited(i32),
}

/// What a guest reports by itself. The numbers are exit statuses, as a shell has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuestEvent {
    NoVsock,
    AgentEnded(i32),
    SchedulerEnded(i32),
}

impl GuestMessage {
    /// Reads the next message; `None` at the guest's end.
    ///
    /// # Errors
    ///
    /// What reading failed with; `InvalidData` and `UnexpectedEof` for what is no message.
    pub(super) fn read(source: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = Vec::new();
        source.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> = line.strip_suffix('\n').unwrap_or_default().split(' ').collect();
        let message = match words[..] {
            ["no-vsock"] => Some(Self::Event(GuestEvent::NoVsock)),
            ["agent-ended", status] => exit_status(status).map(GuestEvent::AgentEnded).map(Self::Event),
            ["scheduler-ended", status] => exit_status(status).map(GuestEvent::SchedulerEnded).map(Self::Event),
            ["exited", id, status] => exit_status(status).map(CommandMessage::Exited).map(Self::of_command(id)),
            ["stdout", id, size] => piece(source, OutputStream::Stdout, size)?.map(Self::of_command(id)),
            ["stderr", id, size] => piece(source, OutputStream::Stderr, size)?.map(Self::of_command(id)),
            _ => None,
        };
        let reason = || format!("the guest sent {:?}, which is no message", PeerText::line(&line));
        message.map(Some).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, reason()))
    }

    fn of_command(id: &str) -> impl FnOnce(CommandMessage) -> Self {
        move |message| Self::Command { id: id.to_owned(), message }
    }
}

/// Reads the bytes of a piece; `None` if it has no valid size.
fn piece(source: &mut impl Read, stream: OutputStream, size: &str) -> io::Result<Option<CommandMessage>> {
    let Some(size) = size.parse().ok().filter(|&size| size <= MAX_PIECE) else { return Ok(None) };
    let mut bytes = Vec::new();
    if source.take(size).read_to_end(&mut bytes)? < usize::try_from(size).unwrap_or(usize::MAX) {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the guest ended"));
    }
    Ok(Some(CommandMessage::Piece(stream, bytes)))
}

fn exit_status(text: &str) -> Option<i32> {
    text.parse::<u8>().ok().map(i32::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(mut bytes: &[u8]) -> io::Result<Vec<GuestMessage>> {
        std::iter::from_fn(|| GuestMessage::read(&mut bytes).transpose()).collect()
    }

    fn of_command(message: CommandMessage) -> GuestMessage {
        GuestMessage::Command { id: "c1".into(), message }
    }

    #[test]
    fn messages_follow_each_other() {
        let bytes = b"no-vsock\nstdout c1 4\na\n\0bexited c1 7\nstderr c1 0\nagent-ended 139\nscheduler-ended 1\n";
        let expected = vec![
            GuestMessage::Event(GuestEvent::NoVsock),
            of_command(CommandMessage::Piece(OutputStream::Stdout, b"a\n\0b".to_vec())),
            of_command(CommandMessage::Exited(7)),
            of_command(CommandMessage::Piece(OutputStream::Stderr, Vec::new())),
            GuestMessage::Event(GuestEvent::AgentEnded(139)),
            GuestMessage::Event(GuestEvent::SchedulerEnded(1)),
        ];
        assert_eq!(read_all(bytes).unwrap(), expected);
    }

    #[test]
    fn other_bytes_are_no_message() {
        for bytes in [
            &b"\n"[..],
            b"x\n",
            b"no-vsock",
            b"exited c1\n",
            b"exited c1 256\n",
            b"exited c1 -1\n",
            b"agent-ended \x1b[2J\n",
            b"stdout c1 65537\n",
            b"stdout c1 99999999999999999999\n",
            &[b'1'; 100],
            b"\xff\xfe\n",
        ] {
            let error = read_all(bytes).unwrap_err();
            assert!(error.kind() == ErrorKind::InvalidData && !error.to_string().contains('\x1b'), "{error}");
        }
        assert_eq!(read_all(b"stdout c1 5\nab").unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
