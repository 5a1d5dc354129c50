//! A running guest.

use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::child_process::ChildProcess;
use super::qmp::{Qmp, QmpCommand};
use crate::SchedStatsClient;
use crate::guest::command_channel::{CommandChannel, CommandOutput};
use crate::guest::console::Console;
use crate::guest::error::Error;
use crate::io::Deadline;
use crate::transport::vhost_user::Server;
use crate::vsock::{Handle, ReadyListener, ReadyWait};

/// How long a command may take by default.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// How long QEMU may take to exit once its device is gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// A running guest. It ends when this is dropped, and with this process, however that ends.
///
/// ```no_run
/// use std::time::Duration;
/// use scx_vsock::guest::qemu::Guest;
/// use scx_vsock::{RunControl, SchedStatsClient, SchedStatsError};
///
/// # fn main() -> anyhow::Result<()> {
/// let mut guest = Guest::builder().kernel("/boot/vmlinuz").scheduler("scx_bpfland", &[]).boot()?;
/// guest.client().wait_for_scheduler(Duration::from_secs(60))?;
/// guest.run(&["sh", "-c", "ls -R /sys >/dev/null"])?;
/// println!("{:#}", guest.client().stats(&[])?);
///
/// let run = RunControl::new();
/// let client = SchedStatsClient::builder(guest.handle().agent()).control(&run).build();
/// let frozen = run.freeze(); // calls in flight end at once
/// guest.pause()?;
/// assert_eq!(client.stats(&[]), Err(SchedStatsError::DuringFreeze));
/// guest.resume()?;
/// drop(frozen);
///
/// guest.reboot(Duration::from_secs(120))?;
/// let logs = guest.handle().listen(5000)?; // for a program in the guest that connects to CID 2
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Guest {
    // QEMU is killed before the back end that it is connected to goes.
    process: ChildProcess,
    console: Console,
    server: Server,
    commands: Mutex<CommandChannel>,
    qmp: Mutex<Qmp>,
}

impl Guest {
    pub(super) fn new(
        process: ChildProcess,
        console: Console,
        server: Server,
        commands: CommandChannel,
        qmp: Qmp,
    ) -> Self {
        Self { process, console, server, commands: Mutex::new(commands), qmp: Mutex::new(qmp) }
    }

    /// Returns a handle of the guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.server.handle()
    }

    /// Returns a client of the guest's scheduler, with a session of its own.
    #[must_use]
    pub fn client(&self) -> SchedStatsClient {
        SchedStatsClient::builder(self.handle().agent()).build()
    }

    /// Returns what the guest prints. A clone of it outlives the guest.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Runs a command in the guest to its end, for at most 60 s. Commands run one at a time.
    ///
    /// # Errors
    ///
    /// As [`run_within`](Self::run_within).
    pub fn run(&self, arguments: &[&str]) -> Result<CommandOutput, Error> {
        self.run_within(arguments, COMMAND_DEADLINE)
    }

    /// Runs a command in the guest to its end, for at most this long.
    ///
    /// # Errors
    ///
    /// [`Error::NulInArgument`], [`Error::CommandTimedOut`], [`Error::CommandChannel`].
    pub fn run_within(&self, arguments: &[&str], within: Duration) -> Result<CommandOutput, Error> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).run(arguments, within)
    }

    /// Stops the guest's processors, if they run. A call in flight still waits until its deadline;
    /// freeze the client's [`RunControl`](crate::RunControl) first to end calls at once.
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`], after 30 s at the latest.
    pub fn pause(&self) -> Result<(), Error> {
        self.execute(QmpCommand::Stop)
    }

    /// Resumes the guest's processors, if they are stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`], after 30 s at the latest.
    pub fn resume(&self) -> Result<(), Error> {
        self.execute(QmpCommand::Cont)
    }

    /// Resets the guest as its reset button would, and waits until its agent is ready again. Its connections end;
    /// clients, handles and listeners serve the guest that boots. A paused guest stays paused, and is not ready in time.
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`]; [`Error::Host`] if another listener has the agent's Ready port, or the guest has ended;
    /// [`Error::NotReady`]; [`Error::Ended`].
    pub fn reboot(&mut self, within: Duration) -> Result<(), Error> {
        let mut ready = ReadyListener::listen(&self.handle())?;
        self.execute(QmpCommand::RebootResets)?;
        self.execute(QmpCommand::SystemReset)?;
        // The firmware sees that it has run before, and resets the guest once more.
        let outcome = self.wait_until_ready(&mut ready, within);
        outcome.and(self.execute(QmpCommand::RebootShutsDown))
    }

    fn execute(&self, command: QmpCommand) -> Result<(), Error> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner).execute(command)
    }

    /// Waits for the agent's Ready, the guest's end or the deadline, whatever comes first.
    pub(super) fn wait_until_ready(&mut self, ready: &mut ReadyListener, within: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(Instant::now(), within);
        match ready.wait(deadline.at(), &self.process) {
            Ok(ReadyWait::Ready) => Ok(()),
            Ok(ReadyWait::TimedOut) => Err(Error::NotReady { within, console: self.console.last_lines() }),
            Ok(ReadyWait::Interrupted) => Err(self.exited()),
            Err(error) if error.kind() == ErrorKind::NotConnected => Err(self.exited()),
            Err(error) => Err(Error::Host(error)),
        }
    }

    /// Returns the error of a guest that has ended, or whose device is gone, after which QEMU exits soon.
    fn exited(&mut self) -> Error {
        let _exited = self.process.exits_within(EXIT_TIMEOUT);
        // From here on the console has all output.
        self.process.kill();
        Error::Ended { console: self.console.last_lines() }
    }
}
