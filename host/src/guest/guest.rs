//! A running guest.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::command_channel::{CommandChannel, CommandOutput};
use super::console::{AGENT_EXITED, Console, NO_VSOCK};
use super::error::Error;
use super::guest_events::{Fault, FaultWatch, GuestEvents};
use super::guest_message::OutputStream;
use super::machine::Machine;
use super::vmm::ChosenVmm;
use crate::SchedStatsClient;
use crate::control::{FreezeGuard, RunControl};
use crate::io::Deadline;
use crate::io::lock::lock;
use crate::vsock::{Handle, ReadyListener, ReadyWait};

/// How long a command may take by default.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// How long the console may take to have what a program printed that has exited.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(1);

/// A running guest. It ends when this is dropped, and with this process, however that ends.
///
/// ```no_run
/// use std::time::Duration;
/// use scx_vsock::guest::Guest;
/// use scx_vsock::{RunControl, SchedStatsClient, SchedStatsError};
///
/// # fn main() -> anyhow::Result<()> {
/// let mut guest = Guest::builder().kernel("/boot/vmlinuz").scheduler("scx_bpfland", &[]).boot()?;
/// guest.wait_for_scheduler(Duration::from_secs(60))?;
/// guest.run(&["sh", "-c", "ls -R /sys >/dev/null"])?;
/// println!("{:#}", guest.client().stats(&[])?);
///
/// let run = RunControl::new();
/// let client = SchedStatsClient::builder(guest.handle().agent()).control(&run).build();
/// let frozen = guest.freeze(&run)?; // calls in flight end at once, and the processors stop
/// assert_eq!(client.stats(&[]), Err(SchedStatsError::DuringFreeze));
/// frozen.thaw()?;
///
/// guest.reboot(Duration::from_secs(120))?; // under QEMU
/// let logs = guest.handle().listen(5000)?; // for a program in the guest that connects to CID 2
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Guest {
    pub(super) machine: Machine,
    pub(super) vmm: ChosenVmm,
    pub(super) console: Console,
    pub(super) commands: Mutex<CommandChannel>,
    pub(super) events: GuestEvents,
    pub(super) scheduler: Option<StartedScheduler>,
}

/// The scheduler that the guest's first process starts.
#[derive(Clone, Debug)]
pub(super) struct StartedScheduler {
    pub(super) name: String,
    /// Whether it is one that reads the kernel's configuration, and the guest has none.
    pub(super) lacks_config: bool,
}

impl Guest {
    /// Returns a handle of the guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.machine.handle()
    }

    /// Returns what runs the guest, and why that.
    #[must_use]
    pub fn vmm(&self) -> &ChosenVmm {
        &self.vmm
    }

    /// Returns a client of the guest's scheduler, with a session of its own.
    #[must_use]
    pub fn client(&self) -> SchedStatsClient {
        SchedStatsClient::builder(self.handle().agent()).build()
    }

    /// Waits until the guest's scheduler serves stats. A scheduler or an agent that has exited ends the wait.
    ///
    /// # Errors
    ///
    /// [`Error::SchedulerEnded`], [`Error::AgentEnded`]; [`Error::NoStats`] if it does not serve stats within this time.
    pub fn wait_for_scheduler(&self, within: Duration) -> Result<(), Error> {
        let run = RunControl::new();
        let cancelled = run.clone();
        let _watch = self.watch_faults(move || cancelled.cancel());
        let client = SchedStatsClient::builder(self.handle().agent()).control(&run).build();
        client.wait_for_scheduler(within).map_err(|source| {
            self.fault().unwrap_or_else(|| Error::NoStats {
                scheduler: self.scheduler_name(),
                lacks_config: self.scheduler_lacks_config(),
                console: self.console.last_lines_of_scheduler(Duration::ZERO),
                source,
            })
        })
    }

    /// Returns why there can be no stats any more: the scheduler that the guest was booted with has exited, or the agent.
    /// `None` while both run.
    #[must_use]
    pub fn fault(&self) -> Option<Error> {
        self.events.fault().map(|fault| self.explain(fault))
    }

    /// Calls `call` once when there is a [`fault`](Self::fault), at once if there is one already, until the watch is dropped.
    /// It is called on a thread of the guest and must not block.
    pub fn watch_faults(&self, call: impl FnOnce() + Send + 'static) -> FaultWatch {
        self.events.watch(call)
    }

    fn explain(&self, fault: Fault) -> Error {
        match fault {
            Fault::NoVsock => Error::NoVsock { console: self.console.last_lines_with(NO_VSOCK, CONSOLE_TIMEOUT) },
            Fault::AgentEnded(status) => {
                Error::AgentEnded { status, console: self.console.last_lines_with(AGENT_EXITED, CONSOLE_TIMEOUT) }
            }
            Fault::SchedulerEnded(status) => Error::SchedulerEnded {
                scheduler: self.scheduler_name(),
                status,
                lacks_config: self.scheduler_lacks_config(),
                console: self.console.last_lines_of_scheduler(CONSOLE_TIMEOUT),
            },
        }
    }

    fn scheduler_lacks_config(&self) -> bool {
        self.scheduler.as_ref().is_some_and(|scheduler| scheduler.lacks_config)
    }

    fn scheduler_name(&self) -> String {
        self.scheduler.as_ref().map_or_else(|| "that was to be started".into(), |scheduler| scheduler.name.clone())
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
        lock(&self.commands).run(arguments, within)
    }

    /// Runs a command in the guest to its end, and calls `sink` with each piece of its outputs as it comes. Returns the exit
    /// status as a shell has it.
    ///
    /// # Errors
    ///
    /// As [`run_within`](Self::run_within). An error of `sink` becomes [`Error::CommandChannel`].
    pub fn run_streaming(
        &self,
        arguments: &[&str],
        within: Duration,
        sink: impl FnMut(OutputStream, &[u8]) -> io::Result<()>,
    ) -> Result<i32, Error> {
        lock(&self.commands).run_streaming(arguments, within, sink)
    }

    /// Stops the guest's processors, if they run. A call in flight still waits until its deadline; [`freeze`](Self::freeze)
    /// ends calls at once. The time of a guest on a microVM stands still.
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`], after 30 s at the latest; [`Error::Microvm`], after 10 s at the latest.
    pub fn pause(&self) -> Result<(), Error> {
        self.machine.pause()
    }

    /// Resumes the guest's processors, if they are stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Qmp`], after 30 s at the latest; [`Error::Microvm`].
    pub fn resume(&self) -> Result<(), Error> {
        self.machine.resume()
    }

    /// Freezes the run, so that its calls in flight end at once, and then stops the guest's processors, until the result is
    /// thawed or dropped.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause), after which the run is not frozen.
    pub fn freeze(&self, run: &RunControl) -> Result<FrozenGuest<'_>, Error> {
        let frozen = run.freeze();
        self.pause()?;
        Ok(FrozenGuest { guest: Some(self), _frozen: frozen })
    }

    /// Resets the guest as its reset button would, and waits until its agent is ready again. Its connections end;
    /// clients, handles and listeners serve the guest that boots. A paused guest stays paused, and is not ready in time.
    ///
    /// # Errors
    ///
    /// [`Error::NoResetButton`] on a microVM; [`Error::Qmp`]; [`Error::Host`] if another listener has the agent's Ready
    /// port, or the guest has ended; [`Error::NotReady`]; [`Error::Ended`]; [`Error::AgentEnded`].
    pub fn reboot(&mut self, within: Duration) -> Result<(), Error> {
        self.machine.with_reset_button()?;
        let mut ready = ReadyListener::listen(&self.handle())?;
        self.events.clear();
        self.machine.with_reset_button()?.reset()?;
        // The firmware sees that it has run before, and resets the guest once more.
        let outcome = self.wait_until_ready(&mut ready, within);
        outcome.and(self.machine.with_reset_button()?.end_at_reset())
    }

    /// Waits for the agent's Ready, a fault that precludes it, the guest's end or the deadline, whatever comes first.
    pub(super) fn wait_until_ready(&mut self, ready: &mut ReadyListener, within: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(Instant::now(), within);
        let interrupt = readable_with(&[self.machine.as_fd(), self.events.as_fd()])?;
        match ready.wait(deadline.at(), &interrupt) {
            Ok(ReadyWait::Ready) => Ok(()),
            Ok(ReadyWait::TimedOut) => Err(Error::NotReady { within, console: self.console.last_lines() }),
            Ok(ReadyWait::Interrupted) => match self.events.fault_of_boot() {
                Some(fault) => Err(self.explain(fault)),
                None => Err(self.exited()),
            },
            Err(error) if error.kind() == ErrorKind::NotConnected => Err(self.exited()),
            Err(error) => Err(Error::Host(error)),
        }
    }

    /// Returns the error of a guest that has ended, or whose device is gone, after which it ends soon.
    fn exited(&mut self) -> Error {
        let how = self.machine.end();
        Error::Ended { how, console: self.console.last_lines() }
    }
}

/// A guest whose processors are stopped, and whose run is frozen. It goes on when this is dropped.
#[derive(Debug)]
#[must_use = "the guest goes on when this is dropped"]
pub struct FrozenGuest<'a> {
    guest: Option<&'a Guest>,
    // Dropped last: calls begin once the guest runs.
    _frozen: FreezeGuard,
}

impl FrozenGuest<'_> {
    /// Resumes the guest's processors, then thaws the run.
    ///
    /// # Errors
    ///
    /// As [`Guest::resume`]. The run is thawed all the same.
    pub fn thaw(mut self) -> Result<(), Error> {
        self.guest.take().map_or(Ok(()), Guest::resume)
    }
}

impl Drop for FrozenGuest<'_> {
    fn drop(&mut self) {
        if let Some(guest) = self.guest.take() {
            let _has_ended = guest.resume();
        }
    }
}

/// Returns a descriptor that is readable while one of these is.
fn readable_with(descriptors: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let set = epoll::create(CreateFlags::CLOEXEC)?;
    for descriptor in descriptors {
        epoll::add(&set, descriptor, EventData::new_u64(0), EventFlags::IN)?;
    }
    Ok(set)
}
