//! Boots a Linux guest on KVM with the vsock device, and sees to it that the kernel's own driver gets through with it.
//!
//! ```text
//! microvm KERNEL INITRAMFS
//! ```
#![allow(clippy::expect_used, clippy::print_stderr, clippy::print_stdout, reason = "a test's program")]

mod scenario;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use kvm_ioctls::Kvm;
use scx_vsock::guest::Console;
use scx_vsock_tests::microvm::{Guest, Image};

use scenario::Scenario;

/// How long the guest may take until its agent is ready, where it is emulated twice.
const BOOT: Duration = Duration::from_secs(60);

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(240);

/// The guest's memory.
const MEMORY: usize = 256 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs] = arguments.as_slice() else {
        eprintln!("usage: microvm KERNEL INITRAMFS");
        return 2.into();
    };
    let console = Console::default();
    let (ran, ends) = channel();
    let (paths, prints) = ([kernel, initramfs].map(PathBuf::from), console.clone());
    thread::spawn(move || {
        let [kernel, initramfs] = &paths;
        // Nobody waits for what comes too late.
        let _late = ran.send(catch_unwind(AssertUnwindSafe(|| run(kernel, initramfs, &prints))));
    });
    let ran = match ends.recv_timeout(LIMIT) {
        Ok(ran) => ran.unwrap_or_else(|_| Err(anyhow!("it panicked"))),
        Err(_) => Err(anyhow!("it takes more than {} s", LIMIT.as_secs())),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("microvm: {error:#}\nconsole:\n{}", console.text());
            ExitCode::FAILURE
        }
    }
}

/// Something that the guest goes through, and is found as it must be.
type Step = fn(Scenario) -> Result<Scenario>;

/// Everything that the guest goes through, each with the seconds that it took.
fn run(kernel: &Path, initramfs: &Path, console: &Console) -> Result<()> {
    let kvm = Kvm::new().context("there is no KVM here")?;
    let image = Image { kernel, initramfs, command_line: "console=ttyS0 quiet panic=-1 rdinit=/init" };
    let guest = timed("boots", || Guest::boot(&kvm, MEMORY, &image, console, BOOT))?;
    let steps: [(&str, Step); 6] = [
        ("negotiates", Scenario::negotiates),
        ("answers", Scenario::answers),
        ("stops during transfers", Scenario::stops_during_transfers),
        ("restores", Scenario::restores),
        ("restores during transfers", Scenario::restores_during_transfers),
        ("modules come and go", Scenario::modules_come_and_go),
    ];
    let mut scenario = Scenario::new(guest);
    for (name, step) in steps {
        scenario = timed(name, || step(scenario))?;
    }
    timed("ends", || scenario.ends())
}

fn timed<T>(name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = step().with_context(|| name.to_owned())?;
    println!("{name}: {:.1} s", started.elapsed().as_secs_f32());
    Ok(done)
}
