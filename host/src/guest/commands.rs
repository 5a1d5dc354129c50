//! Commands in the guest, over its second serial port.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::deadline::wait_until;
use super::error::Error;
use crate::io::Deadline;

/// Bytes of one output of a command that are taken.
const MAX_OUTPUT: usize = 16 << 20;

/// Bytes of the line that tells the status and the sizes.
const MAX_HEADER: usize = 64;

/// What a command did.
///
/// ```no_run
/// # let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
/// let output = guest.run(&["cat", "/no/such/file"])?;
/// assert_ne!(output.status, 0);
/// println!("{}", String::from_utf8_lossy(&output.stderr));
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status, as a shell has it (128 and the signal's number for a command that was killed).
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// The line of commands into a guest.
///
/// ```no_run
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // -chardev socket,id=commands,path=/run/guest1.commands,server=on -serial chardev:commands
/// let mut commands = scx_vsock::guest::Commands::new(UnixStream::connect("/run/guest1.commands")?);
/// println!("{:?}", commands.run(&["uptime"], Duration::from_secs(10))?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Commands {
    stream: UnixStream,
    /// Why there can be no further command, once an answer did not come or could not be understood.
    broken: Option<String>,
}

impl Commands {
    /// Commands for the guest whose second serial port this is, and whose initramfs is that of
    /// [`GuestBuilder::initramfs`](super::GuestBuilder::initramfs).
    ///
    /// ```
    /// let (host, guest) = std::os::unix::net::UnixStream::pair()?;
    /// let commands = scx_vsock::guest::Commands::new(host);
    /// # drop((commands, guest));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, broken: None }
    }

    /// Runs a command to its end.
    ///
    /// ```
    /// use std::io::Write;
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (host, mut guest) = std::os::unix::net::UnixStream::pair()?;
    /// guest.write_all(b"0 3 0\nup\n")?; // a status and two sizes, then both outputs
    /// let output = scx_vsock::guest::Commands::new(host).run(&["uptime"], Duration::from_secs(10))?;
    /// assert_eq!((output.status, output.stdout), (0, b"up\n".to_vec()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::CommandTimedOut`], after which no other command can be run; [`Error::Commands`].
    pub fn run(&mut self, arguments: &[&str], within: Duration) -> Result<Output, Error> {
        if let Some(reason) = &self.broken {
            return Err(Error::Commands { reason: reason.clone() });
        }
        let command = arguments.iter().map(|argument| quote(argument)).collect::<Vec<_>>().join(" ");
        let deadline = Deadline::after(Instant::now(), within).at();
        self.exchange(&command, deadline).map_err(|error| {
            let timed_out = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            self.broken = Some(if timed_out { format!("{command} still runs") } else { error.to_string() });
            if timed_out {
                Error::CommandTimedOut { command, within }
            } else {
                Error::Commands { reason: error.to_string() }
            }
        })
    }

    fn exchange(&mut self, command: &str, deadline: Instant) -> io::Result<Output> {
        wait_until(&self.stream, deadline)?;
        self.stream.write_all(format!("{command}\n").as_bytes())?;
        let header = self.read_header(deadline)?;
        let mut numbers = header.split(' ').map(str::parse::<usize>);
        let (Some(Ok(status)), Some(Ok(output)), Some(Ok(errors)), None) =
            (numbers.next(), numbers.next(), numbers.next(), numbers.next())
        else {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("{header:?} is not a status and two sizes")));
        };
        let status = i32::try_from(status).map_err(io::Error::other)?;
        Ok(Output {
            status,
            stdout: self.read_exactly(output, deadline)?,
            stderr: self.read_exactly(errors, deadline)?,
        })
    }

    fn read_header(&mut self, deadline: Instant) -> io::Result<String> {
        let mut header = Vec::new();
        while header.len() < MAX_HEADER {
            match self.read_exactly(1, deadline)?.first() {
                Some(b'\n') => return Ok(String::from_utf8_lossy(&header).into_owned()),
                Some(byte) => header.push(*byte),
                None => {}
            }
        }
        Err(io::Error::new(ErrorKind::InvalidData, "the answer to a command does not begin with a short line"))
    }

    fn read_exactly(&mut self, size: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        if size > MAX_OUTPUT {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("{size} bytes of output are more than {MAX_OUTPUT}"),
            ));
        }
        let mut bytes = vec![0; size];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            wait_until(&self.stream, deadline)?;
            match self.stream.read(rest)? {
                0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the guest ended")),
                count => rest = rest.get_mut(count..).unwrap_or(&mut []),
            }
        }
        Ok(bytes)
    }
}

/// An argument as one word of a shell, on one line.
pub(crate) fn quote(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', r"'\''").replace('\n', r"'$'\n''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_quoted_argument_is_one_word_of_a_shell() {
        for argument in ["", "plain", "two words", "it's", "$HOME `x` \\n", "two\nlines", "'\n'", "-n"] {
            let script = format!("printf %s {}", quote(argument));
            assert!(!script.contains('\n'));
            let output = Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), argument);
        }
    }

    fn answered(answer: &'static [u8]) -> Result<Output, Error> {
        let (host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(answer).unwrap();
        guest.shutdown(std::net::Shutdown::Write).unwrap();
        Commands::new(host).run(&["true"], Duration::from_secs(10))
    }

    #[test]
    fn an_answer_is_a_status_and_both_outputs() {
        let output = answered(b"3 2 1\nabc").unwrap();
        assert_eq!(output, Output { status: 3, stdout: b"ab".to_vec(), stderr: b"c".to_vec() });
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for answer in [&b"x\n"[..], b"1 2\n", b"1 2 3 4\n", b"0 99999999999 0\n", b"0 5 0\nab", &[b'1'; 100], b""] {
            assert!(matches!(answered(answer), Err(Error::Commands { .. })), "{answer:?}");
        }
    }

    #[test]
    fn a_command_may_take_as_long_as_can_be_said() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(b"0 0 0\n").unwrap();
        assert_eq!(Commands::new(host).run(&["true"], Duration::MAX).unwrap().status, 0);
    }

    #[test]
    fn after_a_time_out_there_is_no_further_command() {
        let (host, _guest) = UnixStream::pair().unwrap();
        let mut commands = Commands::new(host);
        let soon = Duration::from_millis(1);
        assert!(matches!(commands.run(&["sleep", "9"], soon), Err(Error::CommandTimedOut { .. })));
        assert!(matches!(commands.run(&["true"], soon), Err(Error::Commands { .. })));
    }
}
