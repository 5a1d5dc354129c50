//! Boots a Linux guest on KVM with the vsock device, and checks that the kernel's driver works with it.
//!
//! ```text
//! microvm KERNEL INITRAMFS               every step once
//! microvm KERNEL INITRAMFS restores      many connections over many restores
//! ```
#![allow(clippy::expect_used, clippy::print_stderr, clippy::print_stdout, reason = "a test's program")]

mod scenario;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use scx_vsock::guest::Console;
use scx_vsock::guest::microvm::Microvm;
use scx_vsock_tests::microvm_guest::MicrovmGuest;
use scx_vsock_tests::nested_guest::LIMIT;

use scenario::Scenario;

/// How long the guest may take until its agent is ready.
const BOOT: Duration = Duration::from_secs(180);

/// The guest's memory.
const MEMORY_MIB: u32 = 256;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (kernel, initramfs, steps) = match arguments.as_slice() {
        [kernel, initramfs] => (kernel, initramfs, EVERY_STEP),
        [kernel, initramfs, restores] if restores == "restores" => (kernel, initramfs, RESTORES),
        _ => {
            eprintln!("usage: microvm KERNEL INITRAMFS [restores]");
            return 2.into();
        }
    };
    let console = Console::default();
    let (finished, outcome) = channel();
    let (paths, guest_console) = ([kernel, initramfs].map(PathBuf::from), console.clone());
    thread::spawn(move || {
        let [kernel, initramfs] = &paths;
        // After the limit nobody receives it.
        let _late = finished.send(catch_unwind(AssertUnwindSafe(|| run(kernel, initramfs, &guest_console, steps))));
    });
    let outcome = match outcome.recv_timeout(LIMIT) {
        Ok(outcome) => outcome.unwrap_or_else(|_| Err(anyhow!("it panicked"))),
        Err(_) => Err(anyhow!("it takes more than {} s", LIMIT.as_secs())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("microvm: {error:#}\nconsole:\n{}", console.text());
            ExitCode::FAILURE
        }
    }
}

/// A step of the scenario, which checks its own result.
type Step = fn(Scenario) -> Result<Scenario>;

const EVERY_STEP: &[(&str, Step)] = &[
    ("negotiate", Scenario::negotiate),
    ("answer", Scenario::answer),
    ("stand still", Scenario::stand_still),
    ("pause during transfers", Scenario::pause_during_transfers),
    ("restore", Scenario::restore),
    ("restore during transfers", Scenario::restore_during_transfers),
    ("reload modules", Scenario::reload_modules),
];

const RESTORES: &[(&str, Step)] = &[("restore with many connections", Scenario::restore_with_many_connections)];

/// Runs the steps, and prints how long each took.
fn run(kernel: &Path, initramfs: &Path, console: &Console, steps: &[(&str, Step)]) -> Result<()> {
    let initramfs = fs::read(initramfs).context("the initramfs")?;
    let builder = Microvm::builder(kernel).initramfs(initramfs).memory_mib(MEMORY_MIB);
    let builder = builder.command_line("console=ttyS0 quiet panic=-1 rdinit=/init");
    let guest = timed("boot", || MicrovmGuest::boot(&builder, console, BOOT))?;
    let mut scenario = Scenario::new(guest);
    for (name, step) in steps {
        scenario = timed(name, || step(scenario))?;
    }
    timed("power off", || scenario.power_off())
}

fn timed<T>(name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = step().with_context(|| name.to_owned())?;
    println!("{name}: {:.1} s", started.elapsed().as_secs_f32());
    Ok(done)
}
