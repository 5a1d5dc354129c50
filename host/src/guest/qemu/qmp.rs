//! The QEMU Machine Protocol, over which a guest is paused and reset: one command at a time.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::guest::error::Error;
use crate::guest::timed_stream::TimedStream;

/// How long QEMU may take to execute a command. None of them waits for the guest.
const DEADLINE: Duration = Duration::from_secs(30);

/// The most bytes of a line from QEMU. The answers to these commands are far shorter.
const MAX_LINE: usize = 64 * 1024;

/// A QMP command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QmpCommand {
    /// Stops the guest's processors.
    Stop,
    /// Resumes them.
    Cont,
    /// Presses the reset button.
    SystemReset,
    /// From now on a reset starts the guest again.
    RebootResets,
    /// From now on a reset ends QEMU, as after a kernel's panic.
    RebootShutsDown,
}

impl QmpCommand {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Cont => "cont",
            Self::SystemReset => "system_reset",
            Self::RebootResets | Self::RebootShutsDown => "set-action",
        }
    }

    /// Returns the command's line without its LF.
    fn line(self) -> &'static str {
        match self {
            Self::Stop => r#"{"execute":"stop"}"#,
            Self::Cont => r#"{"execute":"cont"}"#,
            Self::SystemReset => r#"{"execute":"system_reset"}"#,
            Self::RebootResets => r#"{"execute":"set-action","arguments":{"reboot":"reset"}}"#,
            Self::RebootShutsDown => r#"{"execute":"set-action","arguments":{"reboot":"shutdown"}}"#,
        }
    }
}

/// A message from QEMU, apart from events.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Message {
    /// The first line.
    #[serde(rename = "QMP")]
    Greeting(IgnoredAny),
    /// The command was executed.
    Return(IgnoredAny),
    /// The command failed.
    Error(QmpError),
}

/// Why QEMU did not execute a command.
#[derive(Debug, Deserialize)]
struct QmpError {
    desc: String,
}

/// An event, which is ignored.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "event")]
    _name: IgnoredAny,
}

/// A QMP connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: TimedStream,
    /// Bytes after the last line that was read.
    unread: Vec<u8>,
    state: QmpState,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QmpState {
    /// QEMU has not been asked for its capabilities.
    New,
    Negotiated,
    /// An answer did not come in time, or was malformed.
    Failed,
}

impl Qmp {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: TimedStream::new(stream), unread: Vec::new(), state: QmpState::New }
    }

    /// Executes a command to its end.
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`]. After a time-out or a malformed answer every further command fails: a late answer could be taken
    /// for that of the next command.
    pub(super) fn execute(&mut self, command: QmpCommand) -> Result<(), Error> {
        self.execute_until(command, Instant::now() + DEADLINE)
    }

    fn execute_until(&mut self, command: QmpCommand, deadline: Instant) -> Result<(), Error> {
        let failed = |source| Error::Qmp { command: command.name(), source };
        // The stream stays open for what asks QEMU to end.
        let outcome = self.negotiate_and_send(command, deadline).inspect_err(|_| self.state = QmpState::Failed);
        outcome.map_err(failed)?.map_err(|error| failed(io::Error::other(error.desc)))
    }

    fn negotiate_and_send(&mut self, command: QmpCommand, deadline: Instant) -> io::Result<Result<(), QmpError>> {
        match self.state {
            QmpState::New => self.negotiate(deadline)?,
            QmpState::Negotiated => {}
            QmpState::Failed => return Err(io::Error::other("QEMU did not answer an earlier command")),
        }
        self.send(command.line(), deadline)
    }

    /// Reads the greeting and leaves the mode of capability negotiation, in which QEMU takes no other command.
    fn negotiate(&mut self, deadline: Instant) -> io::Result<()> {
        let Message::Greeting(_) = self.read_message(deadline)? else {
            return Err(io::Error::new(ErrorKind::InvalidData, "QEMU does not begin with a greeting"));
        };
        self.send(r#"{"execute":"qmp_capabilities"}"#, deadline)?.map_err(|error| io::Error::other(error.desc))?;
        self.state = QmpState::Negotiated;
        Ok(())
    }

    fn send(&mut self, line: &str, deadline: Instant) -> io::Result<Result<(), QmpError>> {
        self.stream.write_all(format!("{line}\n").as_bytes(), deadline)?;
        match self.read_message(deadline)? {
            Message::Return(_) => Ok(Ok(())),
            Message::Error(error) => Ok(Err(error)),
            Message::Greeting(_) => Err(io::Error::new(ErrorKind::InvalidData, "QEMU sent a second greeting")),
        }
    }

    /// Reads up to the next message that is not an event.
    fn read_message(&mut self, deadline: Instant) -> io::Result<Message> {
        loop {
            let line = self.read_line(deadline)?;
            if serde_json::from_slice::<Event>(&line).is_err() {
                return Ok(serde_json::from_slice(&line)?);
            }
        }
    }

    fn read_line(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                return Ok(self.unread.drain(..=end).collect());
            }
            if self.unread.len() > MAX_LINE {
                let reason = format!("QEMU sent a line of more than {MAX_LINE} bytes");
                return Err(io::Error::new(ErrorKind::InvalidData, reason));
            }
            match self.stream.read(&mut chunk, deadline)? {
                0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "QEMU exited")),
                count => self.unread.extend(chunk.iter().take(count)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;

    const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"major":7}},"capabilities":["oob"]}}"#;
    const DONE: &str = r#"{"return":{}}"#;
    const EVENT: &str = r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"STOP"}"#;

    /// A connection to a QEMU that sends these lines and no more.
    fn qmp(lines: &[&str]) -> (Qmp, UnixStream) {
        let (host, mut qemu) = UnixStream::pair().unwrap();
        for line in lines {
            qemu.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        }
        (Qmp::new(host), qemu)
    }

    fn failed(lines: &[&str], command: QmpCommand) -> ErrorKind {
        let (mut qmp, qemu) = qmp(lines);
        qemu.shutdown(Shutdown::Write).unwrap();
        match qmp.execute(command) {
            Err(Error::Qmp { command: name, source }) => {
                assert_eq!(name, command.name());
                source.kind()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn events_between_answers_are_ignored() {
        let (mut qmp, mut qemu) = qmp(&[GREETING, DONE, EVENT, DONE, EVENT, EVENT, DONE]);
        qmp.execute(QmpCommand::Stop).unwrap();
        qmp.execute(QmpCommand::Cont).unwrap();
        drop(qmp);
        let mut asked = String::new();
        qemu.read_to_string(&mut asked).unwrap();
        let expected = [r#"{"execute":"qmp_capabilities"}"#, QmpCommand::Stop.line(), QmpCommand::Cont.line(), ""];
        assert_eq!(asked, expected.join("\n"));
    }

    #[test]
    fn a_refused_command_fails_alone() {
        let error = r#"{"error":{"class":"GenericError","desc":"not now"}}"#;
        let (mut qmp, _qemu) = qmp(&[GREETING, DONE, error, DONE]);
        let Err(Error::Qmp { source, .. }) = qmp.execute(QmpCommand::Cont) else { panic!() };
        assert_eq!(source.to_string(), "not now");
        qmp.execute(QmpCommand::Cont).unwrap();
    }

    #[test]
    fn malformed_answers_end_the_connection() {
        assert_eq!(failed(&[], QmpCommand::Stop), ErrorKind::UnexpectedEof);
        assert_eq!(failed(&[DONE, DONE, DONE], QmpCommand::Stop), ErrorKind::InvalidData);
        assert_eq!(failed(&[GREETING, GREETING], QmpCommand::Stop), ErrorKind::InvalidData);
        assert_eq!(failed(&[GREETING, DONE, "[]"], QmpCommand::SystemReset), ErrorKind::InvalidData);
        assert_eq!(failed(&[GREETING, DONE, r#"{"return":{}}{"#], QmpCommand::SystemReset), ErrorKind::InvalidData);
        assert_eq!(failed(&[&"x".repeat(MAX_LINE + 1)], QmpCommand::Cont), ErrorKind::InvalidData);
    }

    #[test]
    fn no_command_runs_after_a_time_out() {
        let (mut qmp, mut qemu) = qmp(&[GREETING, DONE]);
        let soon = Instant::now() + Duration::from_millis(10);
        assert!(matches!(qmp.execute_until(QmpCommand::Stop, soon), Err(Error::Qmp { .. })));
        qemu.write_all(format!("{DONE}\n").as_bytes()).unwrap();
        assert!(matches!(qmp.execute(QmpCommand::Cont), Err(Error::Qmp { .. })));
        let mut asked = [0; 1024];
        let count = qemu.read(&mut asked).unwrap();
        let asked = String::from_utf8_lossy(&asked[..count]);
        assert!(asked.contains(QmpCommand::Stop.line()) && !asked.contains(QmpCommand::Cont.line()), "{asked}");
    }
}
