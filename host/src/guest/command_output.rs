//! The outputs of a command in a guest, as they come in pieces.

use std::io;

use super::guest_message::{CommandMessage, OutputStream};

/// Takes what a command writes.
pub(super) type Sink<'s> = dyn FnMut(OutputStream, &[u8]) -> io::Result<()> + 's;

/// A command that runs in a guest. Its id marks the end of each output, since one that a process in the background has
/// open does not end with the command.
#[derive(Debug)]
pub(super) struct RunningCommand {
    stdout: MarkedOutput,
    stderr: MarkedOutput,
    status: Option<i32>,
}

impl RunningCommand {
    pub(super) fn new(id: &str) -> Self {
        Self { stdout: MarkedOutput::new(id), stderr: MarkedOutput::new(id), status: None }
    }

    /// Takes a message, and passes on what the command wrote.
    ///
    /// # Errors
    ///
    /// That of `sink`.
    pub(super) fn take(&mut self, message: CommandMessage, sink: &mut Sink<'_>) -> io::Result<()> {
        match message {
            CommandMessage::Exited(status) => {
                self.status = Some(status);
                Ok(())
            }
            CommandMessage::Piece(stream @ OutputStream::Stdout, bytes) => self.stdout.take(stream, &bytes, sink),
            CommandMessage::Piece(stream @ OutputStream::Stderr, bytes) => self.stderr.take(stream, &bytes, sink),
        }
    }

    /// Returns the exit status once both outputs are complete.
    pub(super) fn complete_status(&self) -> Option<i32> {
        self.status.filter(|_| self.stdout.has_ended && self.stderr.has_ended)
    }
}

/// An output up to its mark.
#[derive(Debug)]
struct MarkedOutput {
    mark: Vec<u8>,
    /// The last bytes, if they may be the beginning of the mark.
    held: Vec<u8>,
    has_ended: bool,
}

impl MarkedOutput {
    fn new(id: &str) -> Self {
        Self { mark: id.as_bytes().to_vec(), held: Vec::new(), has_ended: false }
    }

    fn take(&mut self, stream: OutputStream, piece: &[u8], sink: &mut Sink<'_>) -> io::Result<()> {
        if self.has_ended {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(piece);
        match bytes.windows(self.mark.len().max(1)).position(|window| window == self.mark) {
            Some(end) => {
                bytes.truncate(end);
                self.has_ended = true;
            }
            None if piece.is_empty() => self.has_ended = true,
            None => self.held = bytes.split_off(bytes.len() - self.begun_mark(&bytes)),
        }
        if bytes.is_empty() { Ok(()) } else { sink(stream, &bytes) }
    }

    /// Returns how many of the last bytes are the beginning of the mark.
    fn begun_mark(&self, bytes: &[u8]) -> usize {
        let begun = |&length: &usize| self.mark.get(..length).is_some_and(|beginning| bytes.ends_with(beginning));
        (1..self.mark.len()).rev().find(begun).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "abac";

    fn stdout(bytes: &[u8]) -> CommandMessage {
        CommandMessage::Piece(OutputStream::Stdout, bytes.to_vec())
    }

    fn stderr(bytes: &[u8]) -> CommandMessage {
        CommandMessage::Piece(OutputStream::Stderr, bytes.to_vec())
    }

    /// The pieces that are passed on, and the status if the command is complete.
    fn passed(messages: impl IntoIterator<Item = CommandMessage>) -> (Vec<String>, Option<i32>) {
        let mut pieces = Vec::new();
        let mut command = RunningCommand::new(ID);
        let mut sink = |_: OutputStream, bytes: &[u8]| -> io::Result<()> {
            pieces.push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(())
        };
        for message in messages {
            command.take(message, &mut sink).unwrap();
        }
        let status = command.complete_status();
        (pieces, status)
    }

    #[test]
    fn a_piece_is_passed_on_at_once() {
        let (pieces, status) = passed([stdout(b"one\n"), stderr(b"two\n"), stdout(b"three\n")]);
        assert_eq!((pieces, status), (vec!["one\n".into(), "two\n".into(), "three\n".into()], None));
    }

    #[test]
    fn a_command_is_complete_with_its_outputs() {
        let exited = CommandMessage::Exited(3);
        let (_, status) = passed([exited.clone(), stdout(b"xabac"), stderr(b"aba")]);
        assert_eq!(status, None);
        let (pieces, status) = passed([exited, stdout(b"xabac"), stderr(b"aba"), stderr(b"")]);
        assert_eq!((pieces, status), (vec!["x".into(), "aba".into()], Some(3)));
    }

    #[test]
    fn what_a_background_process_adds_is_dropped() {
        let (pieces, _) = passed([stdout(b"in timeabac late"), stdout(b"later")]);
        assert_eq!(pieces, ["in time"]);
    }

    proptest! {
        #[test]
        fn the_mark_is_found_however_the_output_is_cut(text in "[abc]{0,12}", cuts in prop::collection::vec(1usize..4, 16)) {
            let whole = format!("{text}{ID}");
            let end = whole.find(ID).unwrap();
            let (mut rest, mut pieces) = (whole.as_bytes(), Vec::new());
            for cut in cuts {
                let (piece, other) = rest.split_at(cut.min(rest.len()));
                if !piece.is_empty() {
                    pieces.push(stdout(piece));
                }
                rest = other;
            }
            let (passed, _) = passed(pieces.into_iter().chain([stdout(rest)]));
            prop_assert_eq!(passed.concat(), &whole[..end]);
        }
    }
}
