//! A running guest.

use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::builder::GuestBuilder;
use super::process::Process;
use super::qmp::{Command, Qmp};
use crate::SchedStatsClient;
use crate::guest::commands::{Commands, Output};
use crate::guest::console::Console;
use crate::guest::error::Error;
use crate::io::Deadline;
use crate::transport::vhost_user::Server;
use crate::vsock::says_hello;
use crate::vsock::{Handle, Listener};

/// How long a command may take where nothing else is said.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// How long QEMU may take to end once its device is gone.
const GRACE: Duration = Duration::from_secs(2);

/// A running guest. It ends when this is dropped.
///
/// ```no_run
/// use scx_vsock::guest::qemu::Guest;
///
/// let guest = Guest::builder().kernel("/boot/vmlinuz").scheduler("scx_bpfland", &[]).boot()?;
/// guest.client().wait_for_scheduler(std::time::Duration::from_secs(60))?;
/// guest.run(&["sh", "-c", "ls -R /sys >/dev/null"])?;
/// println!("{:#}", guest.client().stats(&[])?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Guest {
    // QEMU ends before the back end that it is connected to.
    process: Process,
    console: Console,
    server: Server,
    commands: Mutex<Commands>,
    monitor: Mutex<Qmp>,
}

impl Guest {
    /// Begins to describe a guest.
    ///
    /// ```
    /// use scx_vsock::guest::qemu::Guest;
    ///
    /// let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").cpus(4); // nothing is done until `boot`
    /// ```
    pub fn builder() -> GuestBuilder {
        GuestBuilder::default()
    }

    pub(super) fn new(process: Process, console: Console, server: Server, commands: Commands, monitor: Qmp) -> Self {
        Self { process, console, server, commands: Mutex::new(commands), monitor: Mutex::new(monitor) }
    }

    /// The guest's vsock device: any port, both ways.
    ///
    /// ```no_run
    /// # let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
    /// let logs = guest.handle().listen(5000)?; // for a program of the guest that connects to CID 2
    /// let shell = guest.handle().connect(22)?; // to one that listens there
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.server.handle()
    }

    /// A client of the guest's scheduler, on a session of its own.
    ///
    /// ```no_run
    /// # let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").scheduler("scx_bpfland", &[]).boot()?;
    /// let client = guest.client();
    /// client.wait_for_scheduler(std::time::Duration::from_secs(60))?;
    /// let stats = client.stats(&[])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn client(&self) -> SchedStatsClient {
        SchedStatsClient::builder(self.handle().agent()).build()
    }

    /// What the guest printed.
    ///
    /// ```no_run
    /// # let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
    /// println!("{}", guest.console().text());
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Runs a command in the guest, one at a time, to its end or at most a minute.
    ///
    /// ```no_run
    /// # let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
    /// let output = guest.run(&["uname", "-r"])?;
    /// assert_eq!(output.status, 0);
    /// println!("{}", String::from_utf8_lossy(&output.stdout));
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::CommandTimedOut`], [`Error::Commands`].
    pub fn run(&self, arguments: &[&str]) -> Result<Output, Error> {
        self.run_within(arguments, COMMAND_DEADLINE)
    }

    /// Runs a command in the guest, one at a time, to its end or at most this long.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
    /// guest.run_within(&["stress-ng", "--cpu", "2", "--timeout", "120"], Duration::from_secs(180))?;
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::CommandTimedOut`], [`Error::Commands`].
    pub fn run_within(&self, arguments: &[&str], within: Duration) -> Result<Output, Error> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).run(arguments, within)
    }

    /// InFlight the guest's processors; nothing where they are stopped. What waits for the guest goes on waiting, until its
    /// deadline: a client whose calls are to end at once has a [`RunControl`](crate::RunControl), to be frozen first.
    ///
    /// ```no_run
    /// use scx_vsock::{RunControl, SchedStatsClient, SchedStatsError, guest::qemu};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let guest = qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
    /// let run = RunControl::new();
    /// let client = SchedStatsClient::builder(guest.handle().agent()).control(&run).build();
    /// let frozen = run.freeze();
    /// guest.pause()?;
    /// assert_eq!(client.stats(&[]), Err(SchedStatsError::DuringFreeze));
    /// guest.resume()?;
    /// drop(frozen);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`], after half a minute at the latest.
    pub fn pause(&self) -> Result<(), Error> {
        self.tell(Command::Stop)
    }

    /// Lets the guest's processors go on; nothing where they run.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
    /// guest.pause()?;
    /// guest.resume()?;
    /// guest.run(&["uptime"])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`], after half a minute at the latest.
    pub fn resume(&self) -> Result<(), Error> {
        self.tell(Command::Cont)
    }

    /// Resets the guest as its reset button would, and waits at most `within` until its agent is ready again. Its
    /// connections end; clients, handles and listeners serve the guest that comes. A guest that was paused stays so,
    /// and is not ready in time.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").scheduler("scx_bpfland", &[]).boot()?;
    /// let client = guest.client();
    /// guest.reboot(std::time::Duration::from_secs(120))?;
    /// client.wait_for_scheduler(std::time::Duration::from_secs(60))?;
    /// client.stats(&[])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`]; [`Error::Host`] if somebody else listens for the agent's Ready, or the guest has ended;
    /// [`Error::NotReady`]; [`Error::Ended`].
    pub fn reboot(&mut self, within: Duration) -> Result<(), Error> {
        let ready = self.handle().listen(crate::READY_PORT)?;
        self.tell(Command::ResetStartsAgain)?;
        self.tell(Command::Reset)?;
        // The firmware finds that it ran before, and resets the guest once more.
        let is_ready = self.wait_until_ready(&ready, within);
        is_ready.and(self.tell(Command::ResetEnds))
    }

    fn tell(&self, command: Command) -> Result<(), Error> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner).execute(command)
    }

    /// Waits for the agent's Ready, the guest's end or the deadline, whatever comes first.
    pub(super) fn wait_until_ready(&mut self, ready: &Listener, within: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(Instant::now(), within).at();
        loop {
            match ready.accept() {
                Ok(stream) if says_hello(&stream, deadline.saturating_duration_since(Instant::now())) => return Ok(()),
                // Another one may wait already.
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(self.ended()),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::NotReady { within, console: self.console.last_words() });
            }
            let mut fds = [PollFd::new(ready, PollFlags::IN), PollFd::new(&self.process, PollFlags::IN)];
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::Host(errno.into())),
            }
            if fds.get(1).is_some_and(|process| !process.revents().is_empty()) {
                return Err(self.ended());
            }
        }
    }

    /// The guest has ended, or its device is gone, which QEMU does not survive for long.
    fn ended(&mut self) -> Error {
        let _it_ended = self.process.ends_within(GRACE);
        // Then all that it printed is in the console.
        self.process.end();
        Error::Ended { console: self.console.last_words() }
    }
}
