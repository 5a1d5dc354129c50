//! Guests for tests, on the kernel that `ci/test` names.

use std::env;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use scx_vsock::Connect;
use scx_vsock::guest::{CommandOutput, Guest, GuestBuilder, Vmm};
use scx_vsock::vsock::Handle;

use crate::agent;
use crate::traffic::{self, PASSING, Side, TRANSFERS};

/// How long a scheduler may take until it serves stats.
const SCHEDULER_STARTS: Duration = Duration::from_secs(60);

/// How long a guest's side of traffic may take.
const TRAFFIC_ENDS: Duration = Duration::from_secs(300);

/// A packaged kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The folder with its modules, named after its release.
    pub modules: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
}

impl Kernel {
    /// Returns the kernel that `KERNEL`, `MODULES` and `CONFIG` name; without them the one that `ci/kernel stable` fetches.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    pub fn of_this_run() -> &'static Self {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        KERNEL.get_or_init(|| {
            let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            match (named("KERNEL"), named("MODULES"), named("CONFIG")) {
                (Some(image), Some(modules), Some(config)) => Self { image, modules, config },
                _ => Self::fetched("stable"),
            }
        })
    }

    /// Returns the kernel that `ci/kernel` fetches by this name.
    ///
    /// # Panics
    ///
    /// When it fetches none.
    #[must_use]
    pub fn fetched(which: &str) -> Self {
        let output = Command::new(agent::repository().join("ci/kernel")).arg(which).output().expect("ci/kernel runs");
        assert!(output.status.success(), "ci/kernel {which}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("paths");
        let mut lines = text.lines().map(PathBuf::from);
        let mut next = || lines.next().expect("three paths");
        Self { image: next(), modules: next(), config: next() }
    }

    /// Returns its release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> String {
        self.modules.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Returns the options of a QEMU guest with this run's kernel. The agent is the one that the library carries.
pub fn builder() -> GuestBuilder {
    builder_of(Kernel::of_this_run())
}

fn builder_of(kernel: &Kernel) -> GuestBuilder {
    Guest::builder().vmm(Vmm::Qemu).kernel(&kernel.image).modules(&kernel.modules).config(&kernel.config)
}

/// Returns the options of a guest with this kernel's own KVM, on an emulated AMD processor.
///
/// QEMU's emulation of SVM (7.2) loses an interrupt now and then that another of its threads raises: the processor was
/// seen halted while its timer's interrupt was pending, until the next interrupt came. A one-shot timer raises no other
/// interrupt; a periodic one does.
pub fn builder_with_kvm(kernel: &Kernel) -> GuestBuilder {
    builder_of(kernel).module("kvm_amd").kernel_argument("nohz=off").kernel_argument("highres=off")
}

/// A QEMU that a shell command starts. It is killed on drop.
#[derive(Debug)]
pub struct TypedQemu {
    child: Child,
    console: PathBuf,
}

impl TypedQemu {
    /// Starts QEMU from a shell, with this run's kernel, this initramfs, and these arguments for a vsock device, which may
    /// contain command substitutions.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(initramfs: &[u8], folder: &Path, device: &str) -> Self {
        let (image, console) = (folder.join("initrd"), folder.join("console"));
        fs::write(&image, initramfs).expect("a file");
        let line = format!(
            "exec qemu-system-x86_64 -nodefaults -display none -no-reboot -accel tcg -cpu max -kernel {} -initrd {} \
             -append 'console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init' -serial file:{} -serial null {device}",
            Kernel::of_this_run().image.display(),
            image.display(),
            console.display(),
        );
        let child = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).spawn().expect("a shell");
        Self { child, console }
    }

    /// Returns what the guest printed.
    #[must_use]
    pub fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }
}

impl Drop for TypedQemu {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Returns what a command printed in the guest, which must succeed.
///
/// # Panics
///
/// When it fails.
pub fn output(guest: &Guest, command: &[&str]) -> Vec<u8> {
    let output = guest.run(command).expect("the guest runs commands");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status, 0, "{command:?}: {errors}\nconsole: {}", guest.console().text());
    output.stdout
}

/// Waits until the guest's scheduler serves stats.
///
/// # Panics
///
/// When it does not, with what the guest printed.
pub fn wait_for_scheduler(guest: &Guest) {
    if let Err(error) = guest.client().wait_for_scheduler(SCHEDULER_STARTS) {
        panic!("{error}\nprocesses:\n{}\nconsole:\n{}", processes(guest), guest.console().text());
    }
}

/// The host's side of the [`traffic`].
struct Host(Handle);

impl Side for Host {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        self.0.port(port).connect()
    }

    fn number(&self) -> u64 {
        1
    }
}

/// Exchanges [`traffic`] between the host and a guest that has the program `/bin/guest_peer`: `bytes` each way on each
/// connection. Returns how many other connections the host and the guest opened meanwhile.
///
/// # Panics
///
/// If it fails, with the errors of both sides.
#[must_use]
pub fn exchange_traffic(guest: &Guest, bytes: u64) -> [usize; 2] {
    exchange_traffic_with(guest.handle(), bytes, |command| guest.run_within(command, TRAFFIC_ENDS))
}

/// As [`exchange_traffic`], for a guest with this device, in which `run` runs commands.
///
/// # Panics
///
/// As [`exchange_traffic`].
pub fn exchange_traffic_with<E: Debug>(
    handle: Handle,
    bytes: u64,
    run: impl FnOnce(&[&str]) -> Result<CommandOutput, E>,
) -> [usize; 2] {
    let outside = begin_traffic(handle, bytes);
    let inside = run(&["guest_peer", "traffic", &bytes.to_string()]);
    let outside = outside.join().expect("no panic");
    let (Ok(inside), Ok(outside)) = (&inside, &outside) else { panic!("guest: {inside:?}, host: {outside:?}") };
    let [stdout, stderr] = [&inside.stdout, &inside.stderr].map(|text| String::from_utf8_lossy(text));
    assert_eq!((inside.status, stderr.as_ref()), (0, ""));
    [*outside, stdout.trim().parse().expect("a number")]
}

/// Starts the host's side of the [`traffic`], which waits for the guest's side.
///
/// # Panics
///
/// If its ports are taken.
#[must_use]
pub fn begin_traffic(handle: Handle, bytes: u64) -> JoinHandle<io::Result<usize>> {
    let [transfers, passing] = [TRANSFERS, PASSING].map(|port| handle.listen(port).expect("a free port"));
    thread::spawn(move || {
        let control = traffic::wait_and_accept(&transfers)?;
        traffic::run(&Host(handle), &control, &transfers, &passing, bytes)
    })
}

fn processes(guest: &Guest) -> String {
    guest.run(&["ps"]).map_or_else(|error| error.to_string(), |ps| String::from_utf8_lossy(&ps.stdout).into_owned())
}
