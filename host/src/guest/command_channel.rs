//! Shell commands in a guest, over its second serial port.
//!
//! A request is a line: an id of the host's choice, a space, a shell command. What comes back is in
//! [`guest_message`](super::guest_message). The guest's first process is the other end (`init.sh`).
//!
//! A thread of the channel reads the messages. It passes on those of the command that runs, a few at a time, and drops
//! those of others.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shlex::{QuoteError, try_quote};

use super::command_output::{RunningCommand, Sink};
use super::error::Error;
use super::guest_events::GuestEvents;
use super::guest_message::{CommandMessage, GuestMessage, OutputStream};
use super::guest_stream::{FollowedStream, Progress};
use super::timed_stream::TimedStream;
use crate::io::Deadline;
use crate::io::lock::lock;

/// The most bytes of one output of a command that are kept.
const MAX_OUTPUT: usize = 16 << 20;

/// The most messages that wait for the thread that runs a command.
const MAX_MESSAGES: usize = 4;

/// How long it may take to read what a guest has sent.
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
const READ_TIMEOUT: Duration = Duration::from_secs(10);

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
/// use std::io::{BufRead, BufReader, Write};
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
/// use scx_vsock::guest::CommandChannel;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // For a guest: -chardev socket,id=commands,path=/run/guest1.commands,server=on -serial chardev:commands
/// let (host, mut guest) = UnixStream::pair()?;
/// # let guest = std::thread::spawn(move || {
/// #     let mut request = String::new();
/// #     BufReader::new(guest.try_clone()?).read_line(&mut request)?;
/// #     let id = request.split(' ').next().unwrap_or_default();
/// #     write!(guest, "stdout {id} 3\nup\nstdout {id} 0\nstderr {id} 0\nexited {id} 0\n")
/// # });
/// let output = CommandChannel::new(host)?.run(&["uptime"], Duration::from_secs(10))?;
/// assert_eq!((output.status, output.stdout), (0, b"up\n".to_vec()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CommandChannel {
    stream: TimedStream,
    current: Arc<Current>,
    #[cfg_attr(
        not(all(feature = "microvm", target_arch = "x86_64")),
        allow(dead_code, reason = "for snapshots alone")
    )]
    progress: Arc<Progress>,
    reader: Option<JoinHandle<()>>,
    /// Why no further command can be run, once an answer did not come or could not be understood.
    broken: Option<String>,
}

impl CommandChannel {
    /// Returns a channel to the guest whose second serial port `stream` is. The guest's initramfs must be that of
    /// [`GuestBuilder::initramfs`](super::GuestBuilder::initramfs).
    ///
    /// # Errors
    ///
    /// The host has no descriptor or thread for it.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Self::with_events(stream, GuestEvents::new()?)
    }

    /// As [`new`](Self::new), with a place for what the guest reports by itself.
    pub(super) fn with_events(stream: UnixStream, events: GuestEvents) -> io::Result<Self> {
        Self::after(Vec::new(), stream, events)
    }

    /// As [`with_events`](Self::with_events), to a guest that sends the rest of a message first.
    pub(super) fn after(beginning: Vec<u8>, stream: UnixStream, events: GuestEvents) -> io::Result<Self> {
        let messages = stream.try_clone()?;
        let (current, progress) = (Arc::<Current>::default(), Arc::new(Progress::after(beginning.clone())));
        let (of_reader, read_so_far) = (Arc::clone(&current), Arc::clone(&progress));
        let reader = thread::Builder::new().name("guest-messages".into()).spawn(move || {
            let followed = FollowedStream { stream: messages, progress: &read_so_far };
            of_reader.end(read_messages(Cursor::new(beginning).chain(followed), &read_so_far, &of_reader, &events));
        })?;
        Ok(Self { stream: TimedStream::new(stream), current, progress, reader: Some(reader), broken: None })
    }

    /// Waits until this many bytes of the guest, which is paused, were read and its messages handled. Returns the beginning
    /// of the message that it was sending.
    ///
    /// # Errors
    ///
    /// [`Error::CommandChannel`].
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    pub(super) fn beginning_of_message(&self, bytes_sent: u64) -> Result<Vec<u8>, Error> {
        if let Some(reason) = self.broken.clone().or_else(|| self.current.ended()) {
            return Err(Error::CommandChannel { reason });
        }
        let beginning = self.progress.beginning_at(bytes_sent, READ_TIMEOUT);
        let late = || format!("its messages were not handled within {} s", READ_TIMEOUT.as_secs());
        beginning.ok_or_else(|| Error::CommandChannel { reason: self.current.ended().unwrap_or_else(late) })
    }

    /// Runs a command to its end. Each of its outputs may have 16 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::NulInArgument`]; [`Error::CommandTimedOut`] and [`Error::CommandChannel`], after which no other command
    /// can be run.
    pub fn run(&mut self, arguments: &[&str], within: Duration) -> Result<CommandOutput, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.run_streaming(arguments, within, |stream, bytes| {
            let kept = if stream == OutputStream::Stdout { &mut stdout } else { &mut stderr };
            if kept.len() + bytes.len() > MAX_OUTPUT {
                return Err(invalid(format!("an output has more than {MAX_OUTPUT} bytes, of which no more are read")));
            }
            kept.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(CommandOutput { status, stdout, stderr })
    }

    /// Runs a command to its end, and calls `sink` with each piece of its outputs as it comes. Returns the exit status as
    /// a shell has it. What a process writes that the command left behind in the background is dropped.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run). An error of `sink` becomes [`Error::CommandChannel`].
    pub fn run_streaming(
        &mut self,
        arguments: &[&str],
        within: Duration,
        mut sink: impl FnMut(OutputStream, &[u8]) -> io::Result<()>,
    ) -> Result<i32, Error> {
        if let Some(reason) = &self.broken {
            return Err(Error::CommandChannel { reason: reason.clone() });
        }
        let command = command_line(arguments)?;
        let deadline = Deadline::after(Instant::now(), within).at();
        let outcome = self.exchange(&command, deadline, &mut sink);
        self.current.set(None);
        outcome.map_err(|error| {
            let timed_out = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            self.broken = Some(if timed_out { format!("{command} still runs") } else { error.to_string() });
            if timed_out {
                Error::CommandTimedOut { command, within }
            } else {
                Error::CommandChannel { reason: error.to_string() }
            }
        })
    }

    fn exchange(&self, command: &str, deadline: Instant, sink: &mut Sink<'_>) -> io::Result<i32> {
        let id = new_id();
        let (sender, messages) = mpsc::sync_channel(MAX_MESSAGES);
        self.current.set(Some((id.clone(), sender)));
        self.stream.write_all(format!("{id} {command}\n").as_bytes(), deadline).map_err(|error| {
            match error.kind() {
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.current.end_reason(),
                _ => error,
            }
        })?;
        let mut running = RunningCommand::new(&id);
        loop {
            running.take(self.next(&messages, deadline)?, sink)?;
            if let Some(status) = running.complete_status() {
                return Ok(status);
            }
        }
    }

    fn next(&self, messages: &Receiver<CommandMessage>, deadline: Instant) -> io::Result<CommandMessage> {
        let left = deadline.saturating_duration_since(Instant::now());
        messages.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => ErrorKind::TimedOut.into(),
            RecvTimeoutError::Disconnected => self.current.end_reason(),
        })
    }
}

impl Drop for CommandChannel {
    fn drop(&mut self) {
        self.stream.shut_down();
        if let Some(reader) = self.reader.take() {
            let _ended = reader.join();
        }
    }
}

/// The command that runs, for the thread that reads the messages.
#[derive(Debug, Default)]
struct Current(Mutex<State>);

/// A command's id, and where its messages go.
type Recipient = (String, SyncSender<CommandMessage>);

#[derive(Debug)]
enum State {
    Open(Option<Recipient>),
    /// The guest ended, or what it sent is no message.
    Ended(String),
}

impl Default for State {
    fn default() -> Self {
        Self::Open(None)
    }
}

impl Current {
    fn set(&self, recipient: Option<Recipient>) {
        let mut state = self.state();
        if let State::Open(current) = &mut *state {
            *current = recipient;
        }
    }

    /// Passes on a message of the command that runs; waits for room.
    fn deliver(&self, id: &str, message: CommandMessage) {
        let sender = match &*self.state() {
            State::Open(Some((current, sender))) if current == id => sender.clone(),
            _ => return,
        };
        let _waits_no_longer = sender.send(message);
    }

    fn end(&self, reason: String) {
        *self.state() = State::Ended(reason);
    }

    /// Returns why there are no more messages.
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    fn ended(&self) -> Option<String> {
        match &*self.state() {
            State::Ended(reason) => Some(reason.clone()),
            State::Open(_) => None,
        }
    }

    fn end_reason(&self) -> io::Error {
        match &*self.state() {
            State::Ended(reason) => io::Error::new(ErrorKind::UnexpectedEof, reason.clone()),
            State::Open(_) => io::Error::new(ErrorKind::UnexpectedEof, "the guest ended"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// Reads messages to their end; returns why there are no more.
fn read_messages(stream: impl Read, progress: &Progress, current: &Current, events: &GuestEvents) -> String {
    let mut source = BufReader::new(stream);
    loop {
        match GuestMessage::read(&mut source) {
            Ok(Some(GuestMessage::Event(event))) => events.report(event),
            Ok(Some(GuestMessage::Command { id, message })) => current.deliver(&id, message),
            Ok(None) => return "the guest ended".into(),
            Err(error) => return error.to_string(),
        }
        progress.handled(source.buffer().len());
    }
}

/// Returns an id that the command, which does not see it, cannot write by chance.
fn new_id() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
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
    use super::super::guest_events::Fault;
    use super::*;
    use std::io::{BufRead, Write};
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

    /// A channel to a guest that answers its one request with these lines, in which `ID` is the request's id.
    fn channel_with_answer(answer: &'static str) -> (CommandChannel, JoinHandle<UnixStream>) {
        let (host, guest) = UnixStream::pair().unwrap();
        let guest = thread::spawn(move || {
            let mut request = String::new();
            BufReader::new(&guest).read_line(&mut request).unwrap();
            let id = request.split(' ').next().unwrap();
            (&guest).write_all(answer.replace("ID", id).as_bytes()).unwrap();
            guest
        });
        (CommandChannel::new(host).unwrap(), guest)
    }

    fn run_with_answer(answer: &'static str) -> Result<CommandOutput, Error> {
        let (mut channel, guest) = channel_with_answer(answer);
        // The guest ends with its answer.
        let ends = thread::spawn(move || drop(guest.join().unwrap()));
        let output = channel.run(&["true"], Duration::from_secs(60));
        ends.join().unwrap();
        output
    }

    #[test]
    fn an_answer_has_status_and_outputs() {
        let output = run_with_answer("exited ID 3\nstdout ID 2\nabstdout ID 0\nstderr ID 1\ncstderr ID 0\n").unwrap();
        assert_eq!(output, CommandOutput { status: 3, stdout: b"ab".to_vec(), stderr: b"c".to_vec() });
    }

    #[test]
    fn an_answer_to_another_command_is_dropped() {
        let answer = "exited other 9\nstdout other 1\nxstdout ID 0\nstderr ID 0\nexited ID 0\n";
        assert_eq!(run_with_answer(answer).unwrap(), CommandOutput { status: 0, stdout: vec![], stderr: vec![] });
    }

    #[test]
    fn malformed_answers_are_errors() {
        for answer in ["x\n", "exited ID\n", "exited ID 256\n", "stdout ID 999999999\n", "stdout ID 5\nab", ""] {
            assert!(matches!(run_with_answer(answer), Err(Error::CommandChannel { .. })), "{answer:?}");
        }
    }

    #[test]
    fn output_is_passed_on_while_the_command_runs() {
        let (mut channel, guest) = channel_with_answer("stdout ID 5\nearly");
        let mut guest = Some(guest);
        let mut pieces = Vec::new();
        let outcome = channel.run_streaming(&["yes"], Duration::from_secs(60), |stream, bytes| {
            pieces.push((stream, bytes.to_vec()));
            // The guest ends only now.
            drop(guest.take().unwrap().join().unwrap());
            Ok(())
        });
        assert!(matches!(outcome, Err(Error::CommandChannel { .. })));
        assert_eq!(pieces, [(OutputStream::Stdout, b"early".to_vec())]);
    }

    #[test]
    fn events_are_reported_without_a_command() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let events = GuestEvents::new().unwrap();
        let (sender, called) = mpsc::channel();
        let _watch = events.watch(move || sender.send(()).unwrap());
        let _channel = CommandChannel::with_events(host, events.clone()).unwrap();
        guest.write_all(b"stdout none 3\nabcscheduler-ended 1\n").unwrap();
        called.recv().unwrap();
        assert_eq!(events.fault(), Some(Fault::SchedulerEnded(1)));
    }

    #[test]
    fn the_longest_time_limit_works() {
        let (mut channel, guest) = channel_with_answer("stdout ID 0\nstderr ID 0\nexited ID 0\n");
        assert_eq!(channel.run(&["true"], Duration::MAX).unwrap().status, 0);
        drop(guest.join().unwrap());
    }

    #[test]
    fn no_command_runs_after_a_time_out() {
        let (host, _guest) = UnixStream::pair().unwrap();
        let mut channel = CommandChannel::new(host).unwrap();
        let soon = Duration::from_millis(1);
        assert!(matches!(channel.run(&["sleep", "9"], soon), Err(Error::CommandTimedOut { .. })));
        assert!(matches!(channel.run(&["true"], soon), Err(Error::CommandChannel { .. })));
    }

    #[test]
    fn a_nul_in_an_argument_is_refused() {
        let (host, _guest) = UnixStream::pair().unwrap();
        let mut channel = CommandChannel::new(host).unwrap();
        let error = channel.run(&["echo", "a\0b"], Duration::from_secs(10)).unwrap_err();
        assert!(matches!(&error, Error::NulInArgument { argument } if argument == "a\0b"), "{error}");
    }
}
