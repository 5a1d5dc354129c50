//! Boots guests on KVM and kills them, at moments from before their first instruction to after an answer of their agent,
//! and checks that this process holds nothing of them.
//!
//! ```text
//! guest_kills KERNEL MODULES
//! ```
#![allow(clippy::print_stdout, reason = "a test's program")]

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use scx_vsock::SchedStatsError;
use scx_vsock::guest::{Error, Guest, GuestBuilder, Vmm};
use scx_vsock_tests::counting_allocator::CountingAllocator;
use scx_vsock_tests::held_resources::HeldResources;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const KILLS: u32 = 20;
const MEMORY_MIB: u32 = 160;

/// How long a guest may take until its agent is ready, emulated twice on a busy machine.
const BOOT: Duration = Duration::from_secs(180);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, modules] = arguments.as_slice() else { bail!("usage: guest_kills KERNEL MODULES") };
    let builder = Guest::builder().vmm(Vmm::Microvm).kernel(kernel).modules(modules);
    let builder = builder.memory_mib(MEMORY_MIB).cpus(2);
    let boot = begin(&builder)?;
    let before = held();
    for kill in 0..KILLS {
        let answered =
            if kill % 5 == 4 { kill_after_an_answer(&builder) } else { kill_after(&builder, moment(boot, kill)) }?;
        println!("kill {kill} {}: {:?}", if answered { "after an answer" } else { "during the boot" }, held());
    }
    held().check_nothing_left(&before, (MEMORY_MIB as usize) << 20);
    println!("{KILLS} guests were killed, and nothing is left of them");
    Ok(())
}

/// Kills one guest of each kind, so that there is all that a process makes once. Returns how long a boot takes.
fn begin(builder: &GuestBuilder) -> Result<Duration> {
    let started = Instant::now();
    kill_after_an_answer(builder)?;
    let boot = started.elapsed();
    println!("a boot takes {:.1} s", boot.as_secs_f32());
    kill_after(builder, boot / 4)?;
    Ok(boot)
}

/// The moment of a kill during a boot: from its beginning to its end, the earlier ones closer together.
fn moment(boot: Duration, kill: u32) -> Duration {
    boot * kill * kill / (KILLS * KILLS)
}

fn held() -> HeldResources {
    HeldResources::now(ALLOCATOR.bytes())
}

/// Returns whether the agent has answered.
fn kill_after_an_answer(builder: &GuestBuilder) -> Result<bool> {
    let guest = builder.clone().deadline(BOOT).boot()?;
    let outcome = guest.client().with_deadline(BOOT).stats(&[]);
    ensure!(matches!(outcome, Err(SchedStatsError::NoScheduler { .. })), "{outcome:?}");
    Ok(true)
}

fn kill_after(builder: &GuestBuilder, moment: Duration) -> Result<bool> {
    match builder.clone().deadline(moment).boot() {
        Ok(_) | Err(Error::NotReady { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
