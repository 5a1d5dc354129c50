//! A microVM whose initramfs runs the host's commands.
#![allow(clippy::print_stderr, reason = "a drop has no other way to report")]

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scx_vsock::guest::microvm::{Microvm, MicrovmBuilder, Outcome};
use scx_vsock::guest::{CommandChannel, CommandOutput, Console};
use scx_vsock::vsock::{Handle, ReadyListener, ReadyWait};

/// The message about a guest that is dropped while a vCPU has interrupts disabled. That hardly ever lasts, except after
/// QEMU's emulation of SVM (7.2) delivered an interrupt twice, so that the guest waits for a lock of its own.
pub const STUCK: &str = "microvm: the guest's processor takes no interrupts";

/// Runs commands in a guest from any thread, one at a time. They wait while the guest is paused.
#[derive(Clone, Debug)]
pub struct Shell(Arc<Mutex<CommandChannel>>);

impl Shell {
    /// Runs a command to its end or at most this long.
    ///
    /// # Errors
    ///
    /// As [`CommandChannel::run`].
    pub fn run(&self, arguments: &[&str], within: Duration) -> Result<CommandOutput> {
        let mut commands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        commands.run(arguments, within).with_context(|| format!("{arguments:?} in the guest"))
    }

    /// Returns what a command prints, which must succeed.
    ///
    /// # Errors
    ///
    /// As [`CommandChannel::run`], and if it fails, with what it printed.
    pub fn output(&self, arguments: &[&str], within: Duration) -> Result<String> {
        let output = self.run(arguments, within)?;
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(output.status == 0, "{arguments:?} in the guest: {stdout}{stderr}");
        Ok(stdout)
    }
}

/// A microVM with a shell. It ends when this is dropped.
#[derive(Debug)]
pub struct MicrovmGuest {
    microvm: Option<Microvm>,
    shell: Shell,
}

impl MicrovmGuest {
    /// Boots an image whose first process reads commands from the second serial port, and waits until its agent is ready.
    /// The guest's output goes to `console`.
    ///
    /// # Errors
    ///
    /// Why there is no guest, or why the agent is not ready `within` this time.
    pub fn boot(builder: &MicrovmBuilder, console: &Console, within: Duration) -> Result<Self> {
        let (host, commands) = UnixStream::pair()?;
        let shell = Shell(Arc::new(Mutex::new(CommandChannel::new(host)?)));
        let guest = Self { microvm: Some(builder.build(Box::new(console.clone()), commands)?), shell };
        let mut ready = ReadyListener::listen(&guest.handle())?;
        guest.microvm().resume()?;
        match ready.wait(Instant::now() + within, guest.microvm())? {
            ReadyWait::Ready => Ok(guest),
            ReadyWait::TimedOut => bail!("the guest's agent is not ready after {} s", within.as_secs()),
            ReadyWait::Interrupted => {
                bail!("the guest ended before its agent was ready: {:?}", guest.microvm().outcome())
            }
        }
    }

    /// Returns the microVM.
    #[must_use]
    pub fn microvm(&self) -> &Microvm {
        self.microvm.as_ref().expect("it is there until the drop")
    }

    /// Returns a handle of the guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.microvm().handle()
    }

    /// Returns a shell in the guest.
    #[must_use]
    pub fn shell(&self) -> Shell {
        self.shell.clone()
    }

    /// Waits for the guest to end by itself, within this time, and returns why it did.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn wait_for_end(&self, within: Duration) -> Result<Outcome> {
        self.microvm().wait(within)?.context("the guest does not end")
    }

    /// Replaces the device of a paused guest by one that is restored from its snapshot.
    ///
    /// # Errors
    ///
    /// What the restore failed with.
    pub fn restore_device(&self) -> Result<()> {
        let snapshot = serde_json::to_string(&self.microvm().device_snapshot()?)?;
        Ok(self.microvm().restore_device(&serde_json::from_str(&snapshot)?, 3)?)
    }
}

impl Drop for MicrovmGuest {
    fn drop(&mut self) {
        // The vCPUs of a guest that turned itself off take no interrupts.
        let Some((Outcome::Stopped, positions)) = self.microvm.take().map(Microvm::end) else { return };
        for position in positions.iter().filter(|position| !position.takes_interrupts) {
            eprintln!("{STUCK}: it is at {:#x}", position.address);
        }
    }
}
