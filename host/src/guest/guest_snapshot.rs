//! The state of a guest, from which others begin.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, TryLockError};

use super::command_channel::CommandChannel;
use super::console::Console;
use super::error::Error;
use super::guest::{Guest, StartedScheduler};
use super::guest_events::GuestEvents;
use super::machine::Machine;
use super::microvm::MicrovmSnapshot;
use super::vmm::ChosenVmm;

/// The state of a guest on a microVM, from which others begin: booted, its scheduler loaded. Clones share it.
///
/// ```no_run
/// use std::time::Duration;
/// use scx_vsock::guest::{Guest, GuestSnapshot, Vmm};
///
/// # fn main() -> anyhow::Result<()> {
/// let booted = Guest::builder().kernel("/boot/vmlinuz").scheduler("scx_bpfland", &[]).vmm(Vmm::Microvm).boot()?;
/// booted.wait_for_scheduler(Duration::from_secs(60))?;
/// let loaded: GuestSnapshot = booted.snapshot()?;
/// for load in ["dd if=/dev/zero of=/dev/null count=100000", "ls -R /sys >/dev/null"] {
///     let guest = loaded.restore()?; // each from the same state
///     guest.run(&["sh", "-c", load])?;
///     println!("{:#}", guest.client().stats(&[])?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct GuestSnapshot(Arc<Saved>);

#[derive(Debug)]
struct Saved {
    microvm: MicrovmSnapshot,
    vmm: ChosenVmm,
    console: Console,
    events: GuestEvents,
    scheduler: Option<StartedScheduler>,
    /// The beginning of a message that the guest was sending.
    message: Vec<u8>,
}

impl Guest {
    /// Returns the state of the guest, from which others begin. It is paused meanwhile, and goes on unless it was paused
    /// before.
    ///
    /// # Errors
    ///
    /// [`Error::NoSnapshot`] under QEMU; [`Error::CommandRuns`]; [`Error::CommandChannel`] if a command timed out before;
    /// [`Error::Microvm`].
    pub fn snapshot(&self) -> Result<GuestSnapshot, Error> {
        let microvm = self.machine.microvm()?;
        let commands = match self.commands.try_lock() {
            Ok(commands) => commands,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Error::CommandRuns),
        };
        let was_paused = microvm.is_paused();
        microvm.pause()?;
        let saved = microvm.snapshot().map_err(Error::from).and_then(|snapshot| self.save(snapshot, &commands));
        if !was_paused {
            microvm.resume()?;
        }
        Ok(GuestSnapshot(Arc::new(saved?)))
    }

    /// Adds to a microVM's state what the host knows of the paused guest.
    fn save(&self, microvm: MicrovmSnapshot, commands: &CommandChannel) -> Result<Saved, Error> {
        // First, since the messages before it may be events.
        let message = commands.beginning_of_message(microvm.commands_sent())?;
        Ok(Saved {
            microvm,
            vmm: self.vmm.clone(),
            console: self.console.duplicate(),
            events: self.events.duplicate()?,
            scheduler: self.scheduler.clone(),
            message,
        })
    }
}

impl GuestSnapshot {
    /// Returns a guest in this state, which runs: its time goes on from the snapshot's. Its console begins with what the
    /// other's had printed, and goes to no file. Sessions and connections of the other are none of its.
    ///
    /// # Errors
    ///
    /// [`Error::Microvm`], [`Error::Host`].
    pub fn restore(&self) -> Result<Guest, Error> {
        let Saved { microvm, vmm, console, events, scheduler, message } = &*self.0;
        let (commands, guest_commands) = UnixStream::pair()?;
        let (console, events) = (console.duplicate(), events.duplicate()?);
        let commands = CommandChannel::after(message.clone(), commands, events.clone())?;
        let microvm = microvm.restore(Box::new(console.clone()), guest_commands)?;
        microvm.resume()?;
        Ok(Guest {
            machine: Machine::Microvm(Box::new(microvm)),
            vmm: vmm.clone(),
            console,
            commands: Mutex::new(commands),
            events,
            scheduler: scheduler.clone(),
        })
    }
}
