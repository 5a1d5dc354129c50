//! QEMU's monitor, over which a guest is paused and reset: one command at a time, in the QEMU Machine Protocol.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::guest::deadline::wait_until;
use crate::guest::error::Error;

/// How long QEMU may take to do what it is told. None of it waits for the guest.
const DEADLINE: Duration = Duration::from_secs(30);

/// Bytes of a line of QEMU's. What is asked here is answered in far less.
const MAX_LINE: usize = 64 * 1024;

/// What QEMU is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// InFlight the guest's processors.
    Stop,
    /// Lets them go on.
    Cont,
    /// Presses the reset button.
    Reset,
    /// From now on a reset starts the guest again.
    ResetStartsAgain,
    /// From now on a reset, which is also how a kernel's panic ends, ends QEMU.
    ResetEnds,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Cont => "cont",
            Self::Reset => "system_reset",
            Self::ResetStartsAgain | Self::ResetEnds => "set-action",
        }
    }

    /// The command's line without its LF.
    fn line(self) -> &'static str {
        match self {
            Self::Stop => r#"{"execute":"stop"}"#,
            Self::Cont => r#"{"execute":"cont"}"#,
            Self::Reset => r#"{"execute":"system_reset"}"#,
            Self::ResetStartsAgain => r#"{"execute":"set-action","arguments":{"reboot":"reset"}}"#,
            Self::ResetEnds => r#"{"execute":"set-action","arguments":{"reboot":"shutdown"}}"#,
        }
    }
}

/// What QEMU says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Message {
    /// Its first line.
    #[serde(rename = "QMP")]
    Greeting(IgnoredAny),
    /// A command was done.
    Return(IgnoredAny),
    /// A command was not.
    Error(Refusal),
}

/// Why QEMU does not do what it is told.
#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// A line of QEMU's that tells of something that nobody asked for.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "event")]
    _name: IgnoredAny,
}

/// The line to one QEMU's monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    /// Bytes that came behind the line that was taken last.
    ahead: Vec<u8>,
    is_greeted: bool,
}

impl Qmp {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, ahead: Vec::new(), is_greeted: false }
    }

    /// Has QEMU do a command, to its end.
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`]. Where the answer was not understood or did not come there is no further command: an answer
    /// to this one could be taken for that of the next.
    pub(super) fn execute(&mut self, command: Command) -> Result<(), Error> {
        self.execute_until(command, Instant::now() + DEADLINE)
    }

    fn execute_until(&mut self, command: Command, deadline: Instant) -> Result<(), Error> {
        let failed = |source| Error::Qmp { command: command.name(), source };
        let answer = self.exchange(command, deadline).inspect_err(|_| {
            let _gone_already = self.stream.shutdown(Shutdown::Both);
        });
        answer.map_err(failed)?.map_err(|refusal| failed(io::Error::other(refusal.desc)))
    }

    fn exchange(&mut self, command: Command, deadline: Instant) -> io::Result<Result<(), Refusal>> {
        if !self.is_greeted {
            self.greet(deadline)?;
        }
        self.ask(command.line(), deadline)
    }

    fn greet(&mut self, deadline: Instant) -> io::Result<()> {
        let Message::Greeting(_) = self.message(deadline)? else {
            return Err(io::Error::new(ErrorKind::InvalidData, "it does not begin with a greeting"));
        };
        self.ask(r#"{"execute":"qmp_capabilities"}"#, deadline)?.map_err(|refusal| io::Error::other(refusal.desc))?;
        self.is_greeted = true;
        Ok(())
    }

    fn ask(&mut self, line: &str, deadline: Instant) -> io::Result<Result<(), Refusal>> {
        wait_until(&self.stream, deadline)?;
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        match self.message(deadline)? {
            Message::Return(_) => Ok(Ok(())),
            Message::Error(refusal) => Ok(Err(refusal)),
            Message::Greeting(_) => Err(io::Error::new(ErrorKind::InvalidData, "it greets twice")),
        }
    }

    /// The next message that is no event.
    fn message(&mut self, deadline: Instant) -> io::Result<Message> {
        loop {
            let line = self.line(deadline)?;
            if serde_json::from_slice::<Event>(&line).is_err() {
                return Ok(serde_json::from_slice(&line)?);
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.ahead.iter().position(|&byte| byte == b'\n') {
                return Ok(self.ahead.drain(..=end).collect());
            }
            if self.ahead.len() > MAX_LINE {
                return Err(io::Error::new(ErrorKind::InvalidData, format!("a line has more than {MAX_LINE} bytes")));
            }
            wait_until(&self.stream, deadline)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "QEMU ended")),
                Ok(count) => self.ahead.extend(chunk.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"major":7}},"capabilities":["oob"]}}"#;
    const DONE: &str = r#"{"return":{}}"#;
    const EVENT: &str = r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"STOP"}"#;

    /// A monitor whose QEMU says these lines and no more.
    fn monitor(lines: &[&str]) -> (Qmp, UnixStream) {
        let (host, mut qemu) = UnixStream::pair().unwrap();
        for line in lines {
            qemu.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        }
        (Qmp::new(host), qemu)
    }

    fn failed(lines: &[&str], command: Command) -> ErrorKind {
        let (mut monitor, qemu) = monitor(lines);
        qemu.shutdown(Shutdown::Write).unwrap();
        match monitor.execute(command) {
            Err(Error::Qmp { command: name, source }) => {
                assert_eq!(name, command.name());
                source.kind()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_are_done_one_after_another_and_events_passed_over() {
        let (mut monitor, mut qemu) = monitor(&[GREETING, DONE, EVENT, DONE, EVENT, EVENT, DONE]);
        monitor.execute(Command::Stop).unwrap();
        monitor.execute(Command::Cont).unwrap();
        drop(monitor);
        let mut asked = String::new();
        qemu.read_to_string(&mut asked).unwrap();
        let expected = [r#"{"execute":"qmp_capabilities"}"#, Command::Stop.line(), Command::Cont.line(), ""];
        assert_eq!(asked, expected.join("\n"));
    }

    #[test]
    fn a_command_that_qemu_refuses_fails_alone() {
        let refused = r#"{"error":{"class":"GenericError","desc":"not now"}}"#;
        let (mut monitor, _qemu) = monitor(&[GREETING, DONE, refused, DONE]);
        let Err(Error::Qmp { source, .. }) = monitor.execute(Command::Cont) else { panic!() };
        assert_eq!(source.to_string(), "not now");
        monitor.execute(Command::Cont).unwrap();
    }

    #[test]
    fn what_is_no_answer_ends_the_monitor() {
        assert_eq!(failed(&[], Command::Stop), ErrorKind::UnexpectedEof);
        assert_eq!(failed(&[DONE, DONE, DONE], Command::Stop), ErrorKind::InvalidData);
        assert_eq!(failed(&[GREETING, GREETING], Command::Stop), ErrorKind::InvalidData);
        assert_eq!(failed(&[GREETING, DONE, "[]"], Command::Reset), ErrorKind::InvalidData);
        assert_eq!(failed(&[GREETING, DONE, r#"{"return":{}}{"#], Command::Reset), ErrorKind::InvalidData);
        assert_eq!(failed(&[&"x".repeat(MAX_LINE + 1)], Command::Cont), ErrorKind::InvalidData);
    }

    #[test]
    fn a_command_that_is_not_answered_in_time_is_the_last() {
        let (mut monitor, mut qemu) = monitor(&[GREETING, DONE]);
        let soon = Instant::now() + Duration::from_millis(10);
        assert!(matches!(monitor.execute_until(Command::Stop, soon), Err(Error::Qmp { .. })));
        qemu.write_all(DONE.as_bytes()).unwrap_err();
        assert!(matches!(monitor.execute(Command::Stop), Err(Error::Qmp { .. })));
    }
}
