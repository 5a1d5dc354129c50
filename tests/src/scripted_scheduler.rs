//! A peer on a Unix socket that plays a script: a scheduler with faults, or anything else that speaks in lines.
//!
//! Each connection plays the next script, in a thread of its own. What happens is reported as events that a test waits
//! for, with a deadline; a step that goes wrong, or a connection without a script, fails the test at the latest when
//! the fixture is dropped.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use crate::peer::DEADLINE;

/// What one connection does, step by step. After its last step it waits for the other end to close.
#[derive(Clone, Debug, Default)]
pub struct Script {
    steps: Vec<Step>,
    /// Played again and again after the steps, until the other end closes.
    again: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Line,
    Expect(Vec<u8>),
    ExpectPrefix(Vec<u8>),
    Send(Vec<u8>),
    SendPieces { bytes: Vec<u8>, size: usize },
    Number { before: Vec<u8>, after: Vec<u8> },
    Echo { before: Vec<u8>, after: Vec<u8> },
    Stall,
    CloseWrite,
    Close,
}

impl Step {
    fn name(&self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Expect(_) => "expect",
            Self::ExpectPrefix(_) => "expect_prefix",
            Self::Send(_) => "send",
            Self::SendPieces { .. } => "send_pieces",
            Self::Number { .. } => "send_number",
            Self::Echo { .. } => "send_echo",
            Self::Stall => "stall",
            Self::CloseWrite => "close_write",
            Self::Close => "close",
        }
    }
}

impl Script {
    /// A connection that only waits for its end.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Reads a line, whatever it is.
    #[must_use]
    pub fn line(self) -> Self {
        self.then(Step::Line)
    }

    /// Reads a line, which must be this one.
    #[must_use]
    pub fn expect(self, line: impl AsRef<[u8]>) -> Self {
        self.then(Step::Expect(line.as_ref().to_vec()))
    }

    /// Reads a line, which must begin like this.
    #[must_use]
    pub fn expect_prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        self.then(Step::ExpectPrefix(prefix.as_ref().to_vec()))
    }

    /// Sends bytes at once.
    #[must_use]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Send(bytes.as_ref().to_vec()))
    }

    /// Sends bytes in writes of `size` bytes.
    #[must_use]
    pub fn send_pieces(self, bytes: impl AsRef<[u8]>, size: usize) -> Self {
        self.then(Step::SendPieces { bytes: bytes.as_ref().to_vec(), size })
    }

    /// Sends the number of lines that all connections have read by now, between these bytes.
    #[must_use]
    pub fn send_number(self, before: impl AsRef<[u8]>, after: impl AsRef<[u8]>) -> Self {
        self.then(Step::Number { before: before.as_ref().to_vec(), after: after.as_ref().to_vec() })
    }

    /// Sends the line that was read last, without its LF, between these bytes.
    #[must_use]
    pub fn send_echo(self, before: impl AsRef<[u8]>, after: impl AsRef<[u8]>) -> Self {
        self.then(Step::Echo { before: before.as_ref().to_vec(), after: after.as_ref().to_vec() })
    }

    /// Reports [`Event::Stalled`] and waits for [`ScriptedScheduler::release`].
    #[must_use]
    pub fn stall(self) -> Self {
        self.then(Step::Stall)
    }

    /// Ends its own direction of the stream and goes on reading.
    #[must_use]
    pub fn close_write(self) -> Self {
        self.then(Step::CloseWrite)
    }

    /// Closes the stream, without reading what may still be on its way.
    #[must_use]
    pub fn close(self) -> Self {
        self.then(Step::Close)
    }

    /// Goes on with another script.
    #[must_use]
    pub fn and(mut self, next: Self) -> Self {
        self.steps.extend(next.steps);
        self.again = next.again;
        self
    }

    /// Plays another script after this one, again and again until the other end closes.
    #[must_use]
    pub fn forever(mut self, again: Self) -> Self {
        self.again = again.steps;
        self
    }
}

/// What happened on a connection. Connections are counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was accepted.
    Connected(usize),
    /// It read a line (here without its LF).
    Read(usize, Vec<u8>),
    /// It waits for [`ScriptedScheduler::release`].
    Stalled(usize),
    /// Its script is over and the stream is closed; so many bytes came after the script.
    Ended(usize, usize),
    /// Something was not as the script has it.
    Failed(usize, String),
}

/// A listening peer with its scripts.
#[derive(Debug)]
pub struct ScriptedScheduler {
    folder: TempDir,
    shared: Arc<Shared>,
    events: Receiver<Event>,
    release: Sender<()>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    events: Sender<Event>,
    released: Mutex<Receiver<()>>,
    lines: Mutex<u64>,
    streams: Mutex<Vec<UnixStream>>,
    stopped: AtomicBool,
}

impl ScriptedScheduler {
    /// Listens in a folder of its own and plays one script a connection.
    ///
    /// # Panics
    ///
    /// When it cannot listen.
    #[must_use]
    pub fn start(scripts: impl IntoIterator<Item = Script, IntoIter: Send + 'static>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(socket_in(folder.path())).expect("a socket to listen on");
        let (events_in, events) = channel();
        let (release, released) = channel();
        let shared = Arc::new(Shared {
            events: events_in,
            released: Mutex::new(released),
            lines: Mutex::new(0),
            streams: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let scripts = scripts.into_iter();
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener, scripts)
        });
        Self { folder, shared, events, release, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        socket_in(self.folder.path())
    }

    /// Lets one stalled connection go on, or the next that would stall.
    ///
    /// # Panics
    ///
    /// Never: this fixture holds the other end.
    pub fn release(&self) {
        self.release.send(()).expect("the fixture lives");
    }

    /// The next event.
    ///
    /// # Panics
    ///
    /// When none comes within [`DEADLINE`], or the script failed.
    #[must_use]
    pub fn event(&self) -> Event {
        let event = self.events.recv_timeout(DEADLINE).expect("an event in time");
        assert!(!matches!(event, Event::Failed(..)), "{event:?}");
        event
    }

    /// Skips events until this one.
    ///
    /// # Panics
    ///
    /// When it does not come within [`DEADLINE`] of the one before, or the script failed.
    pub fn wait_for(&self, expected: &Event) {
        while self.event() != *expected {}
    }
}

impl Drop for ScriptedScheduler {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _wakes_the_acceptor = UnixStream::connect(self.path());
        for stream in self.shared.streams.lock().expect("no connection panics").iter() {
            let _may_be_closed = stream.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
        if thread::panicking() {
            return;
        }
        for event in self.events.try_iter() {
            assert!(!matches!(event, Event::Failed(..)), "{event:?}");
        }
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("stats")
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &UnixListener, mut scripts: impl Iterator<Item = Script>) {
        for number in 0.. {
            let (stream, _) = listener.accept().expect("accept works");
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            self.report(Event::Connected(number));
            let Some(script) = scripts.next() else {
                self.report(Event::Failed(number, "a connection that no script is for".to_owned()));
                continue;
            };
            stream.set_read_timeout(Some(DEADLINE)).expect("a stream takes a time-out");
            stream.set_write_timeout(Some(DEADLINE)).expect("a stream takes a time-out");
            self.streams.lock().expect("no connection panics").push(stream.try_clone().expect("a descriptor"));
            let shared = Arc::clone(self);
            thread::spawn(move || {
                let end = match shared.play(number, &stream, script) {
                    Ok(count) => Event::Ended(number, count),
                    // A fixture that is being dropped cuts its scripts short.
                    Err(_) if shared.stopped.load(Ordering::SeqCst) => Event::Ended(number, 0),
                    Err(problem) => Event::Failed(number, problem),
                };
                let _may_be_closed = stream.shutdown(Shutdown::Both);
                shared.report(end);
            });
        }
    }

    fn report(&self, event: Event) {
        let _test_is_over = self.events.send(event);
    }

    /// Plays a script; returns how many bytes came after it.
    fn play(&self, number: usize, stream: &UnixStream, script: Script) -> Result<usize, String> {
        let mut connection =
            Connection { shared: self, number, stream, lines: BufReader::new(stream), last: Vec::new() };
        for step in &script.steps {
            if !connection.perform(step)? {
                return Ok(0);
            }
        }
        while !script.again.is_empty() && !connection.is_at_its_end() {
            for step in &script.again {
                if !connection.perform(step)? {
                    return Ok(0);
                }
            }
        }
        let mut rest = Vec::new();
        // A peer that closes with bytes of ours unread resets the stream, which is an end like any other.
        let _end = connection.lines.read_to_end(&mut rest);
        Ok(rest.len())
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    number: usize,
    stream: &'a UnixStream,
    lines: BufReader<&'a UnixStream>,
    /// The line that was read last, without its LF.
    last: Vec<u8>,
}

impl Connection<'_> {
    fn is_at_its_end(&mut self) -> bool {
        self.lines.fill_buf().map_or(true, <[u8]>::is_empty)
    }

    /// Performs a step; false when it was the last.
    fn perform(&mut self, step: &Step) -> Result<bool, String> {
        match self.step(step) {
            Ok(goes_on) => Ok(goes_on),
            // The other end may close whenever it likes.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(false),
            Err(error) => Err(format!("{}: {error}", step.name())),
        }
    }

    fn step(&mut self, step: &Step) -> io::Result<bool> {
        let mut out = self.stream;
        match step {
            Step::Line => self.read()?,
            Step::Expect(expected) => {
                self.read()?;
                self.compare(expected, self.last == *expected)?;
            }
            Step::ExpectPrefix(expected) => {
                self.read()?;
                self.compare(expected, self.last.starts_with(expected))?;
            }
            Step::Send(bytes) => out.write_all(bytes)?,
            Step::SendPieces { bytes, size } => {
                bytes.chunks(*size).try_for_each(|piece| out.write_all(piece))?;
            }
            Step::Number { before, after } => {
                let count = self.shared.lines.lock().expect("no connection panics").to_string();
                out.write_all(&[before, count.as_bytes(), after].concat())?;
            }
            Step::Echo { before, after } => {
                out.write_all(&[&before[..], &self.last, after].concat())?;
            }
            Step::Stall => {
                self.shared.report(Event::Stalled(self.number));
                let released = self.shared.released.lock().expect("no connection panics");
                released.recv_timeout(DEADLINE).map_err(io::Error::other)?;
            }
            Step::CloseWrite => self.stream.shutdown(Shutdown::Write)?,
            Step::Close => return Ok(false),
        }
        Ok(true)
    }

    fn compare(&self, expected: &[u8], is_same: bool) -> io::Result<()> {
        if is_same {
            return Ok(());
        }
        let (expected, read) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(&self.last));
        Err(io::Error::other(format!("expected {expected:.200?}, read {read:.200?}")))
    }

    fn read(&mut self) -> io::Result<()> {
        self.last.clear();
        self.lines.read_until(b'\n', &mut self.last)?;
        if self.last.pop() != Some(b'\n') {
            return Err(io::Error::other(format!("the stream ended after {} bytes", self.last.len())));
        }
        *self.shared.lines.lock().expect("no connection panics") += 1;
        self.shared.report(Event::Read(self.number, self.last.clone()));
        Ok(())
    }
}
