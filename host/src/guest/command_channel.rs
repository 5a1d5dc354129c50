//! Shell commands in a guest, over its second serial port.
//!
//! A request is one line of shell. The answer is a line with the exit status and the sizes of both outputs in bytes, then
//! the outputs. The guest's first process is the other end (`qemu/init.sh`).

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use shlex::{QuoteError, try_quote};

use super::error::Error;
use super::timed_stream::TimedStream;
use crate::io::Deadline;
use crate::stats::PeerText;

/// The most bytes of one output of a command.
const MAX_OUTPUT: usize = 16 << 20;

/// The most bytes of the line with the status and the sizes.
const MAX_HEADER: usize = 64;

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutput {
    /// The exit status as a shell has it: 128 plus the signal's number for a command that was killed.
    pub status: i32,
    /// The standard output.
    pub stdout: Vec<u8>,
    /// The standard error.
    pub stderr: Vec<u8>,
}

/// Runs commands in a guest, one at a time.
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
/// use scx_vsock::guest::CommandChannel;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // For a guest: -chardev socket,id=commands,path=/run/guest1.commands,server=on -serial chardev:commands
/// let (host, mut guest) = UnixStream::pair()?;
/// guest.write_all(b"0 3 0\nup\n")?; // the exit status and two sizes, then both outputs
/// let output = CommandChannel::new(host).run(&["uptime"], Duration::from_secs(10))?;
/// assert_eq!((output.status, output.stdout), (0, b"up\n".to_vec()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CommandChannel {
    stream: TimedStream,
    /// Why no further command can be run, once an answer did not come or could not be understood.
    broken: Option<String>,
}

impl CommandChannel {
    /// Returns a channel to the guest whose second serial port `stream` is. The guest's initramfs must be that of
    /// [`GuestBuilder::initramfs`](super::qemu::GuestBuilder::initramfs).
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream: TimedStream::new(stream), broken: None }
    }

    /// Runs a command to its end. Each of its outputs may have 16 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::NulInArgument`]; [`Error::CommandTimedOut`] and [`Error::CommandChannel`], after which no other command
    /// can be run.
    pub fn run(&mut self, arguments: &[&str], within: Duration) -> Result<CommandOutput, Error> {
        if let Some(reason) = &self.broken {
            return Err(Error::CommandChannel { reason: reason.clone() });
        }
        let command = command_line(arguments)?;
        let deadline = Deadline::after(Instant::now(), within).at();
        self.exchange(&command, deadline).map_err(|error| {
            let timed_out = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            self.broken = Some(if timed_out { format!("{command} still runs") } else { error.to_string() });
            if timed_out {
                Error::CommandTimedOut { command, within }
            } else {
                Error::CommandChannel { reason: error.to_string() }
            }
        })
    }

    fn exchange(&self, command: &str, deadline: Instant) -> io::Result<CommandOutput> {
        self.stream.write_all(format!("{command}\n").as_bytes(), deadline)?;
        let header = self.read_header(deadline)?;
        let mut numbers = header.split(' ').map(str::parse::<usize>);
        let (Some(Ok(status)), Some(Ok(stdout)), Some(Ok(stderr)), None) =
            (numbers.next(), numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(invalid(format!("{:?} is not an exit status and two sizes", PeerText::line(&header))));
        };
        let status = i32::try_from(status).map_err(io::Error::other)?;
        let stdout = self.read_output(stdout, deadline)?;
        let stderr = self.read_output(stderr, deadline)?;
        Ok(CommandOutput { status, stdout, stderr })
    }

    fn read_header(&self, deadline: Instant) -> io::Result<String> {
        let mut header = Vec::new();
        while header.len() < MAX_HEADER {
            match self.read_output(1, deadline)?.first() {
                Some(b'\n') => return Ok(String::from_utf8_lossy(&header).into_owned()),
                Some(byte) => header.push(*byte),
                None => {}
            }
        }
        Err(invalid("the answer to a command does not begin with a short line".into()))
    }

    fn read_output(&self, size: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        if size > MAX_OUTPUT {
            return Err(invalid(format!("an output has {size} bytes, more than the {MAX_OUTPUT} that are read")));
        }
        let mut bytes = vec![0; size];
        self.stream.read_exact(&mut bytes, deadline).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => io::Error::new(ErrorKind::UnexpectedEof, "the guest ended"),
            _ => error,
        })?;
        Ok(bytes)
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

/// A shell's command of these words, on one line.
fn command_line(arguments: &[&str]) -> Result<String, Error> {
    let quoted = |argument: &&str| {
        quote_on_one_line(argument).map_err(|_| Error::NulInArgument { argument: (*argument).to_owned() })
    };
    Ok(arguments.iter().map(quoted).collect::<Result<Vec<_>, _>>()?.join(" "))
}

/// Quotes a word so that it has no newline in it, which would end a request.
fn quote_on_one_line(argument: &str) -> Result<String, QuoteError> {
    let lines = argument.split('\n').map(try_quote).collect::<Result<Vec<_>, _>>()?;
    Ok(lines.join(r"$'\n'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Command;

    #[test]
    fn a_quoted_argument_is_one_shell_word() {
        for argument in ["", "plain", "two words", "it's", "$HOME `x` \\n", "two\nlines", "'\n'", "-n"] {
            let script = format!("printf %s {}", quote_on_one_line(argument).unwrap());
            assert!(!script.contains('\n'));
            let output = Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), argument);
        }
    }

    fn run_with_answer(answer: &'static [u8]) -> Result<CommandOutput, Error> {
        let (host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(answer).unwrap();
        guest.shutdown(std::net::Shutdown::Write).unwrap();
        CommandChannel::new(host).run(&["true"], Duration::from_secs(10))
    }

    #[test]
    fn an_answer_has_status_and_outputs() {
        let output = run_with_answer(b"3 2 1\nabc").unwrap();
        assert_eq!(output, CommandOutput { status: 3, stdout: b"ab".to_vec(), stderr: b"c".to_vec() });
    }

    #[test]
    fn malformed_answers_are_errors() {
        for answer in [&b"x\n"[..], b"1 2\n", b"1 2 3 4\n", b"0 99999999999 0\n", b"0 5 0\nab", &[b'1'; 100], b""] {
            assert!(matches!(run_with_answer(answer), Err(Error::CommandChannel { .. })), "{answer:?}");
        }
    }

    #[test]
    fn the_longest_time_limit_works() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(b"0 0 0\n").unwrap();
        assert_eq!(CommandChannel::new(host).run(&["true"], Duration::MAX).unwrap().status, 0);
    }

    #[test]
    fn no_command_runs_after_a_time_out() {
        let (host, _guest) = UnixStream::pair().unwrap();
        let mut channel = CommandChannel::new(host);
        let soon = Duration::from_millis(1);
        assert!(matches!(channel.run(&["sleep", "9"], soon), Err(Error::CommandTimedOut { .. })));
        assert!(matches!(channel.run(&["true"], soon), Err(Error::CommandChannel { .. })));
    }

    #[test]
    fn a_nul_in_an_argument_is_refused() {
        let (host, _guest) = UnixStream::pair().unwrap();
        let mut channel = CommandChannel::new(host);
        let error = channel.run(&["echo", "a\0b"], Duration::from_secs(10)).unwrap_err();
        assert!(matches!(&error, Error::NulInArgument { argument } if argument == "a\0b"), "{error}");
    }
}
