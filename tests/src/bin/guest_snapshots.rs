//! Boots a guest on KVM, takes a snapshot of it, and checks that the guests restored from it go on from that moment.
//!
//! ```text
//! guest_snapshots KERNEL MODULES MEMORY_MIB RESTORES SCHEDULER [CONFIG]
//! ```
#![allow(clippy::indexing_slicing, clippy::print_stdout, reason = "a test's program")]

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scx_vsock::guest::{Error, Guest, GuestSnapshot, Vmm};
use scx_vsock::{RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::held_resources::descriptors_and_threads;
use scx_vsock_tests::notifying_port::NotifyingPort;
use scx_vsock_tests::peer::Peer;

/// How long anything may take, in a guest that is emulated twice on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// How long the guest may take until its agent is ready.
const BOOT: Duration = Duration::from_secs(180);

/// How long a guest is frozen, and how long there is none between the snapshot and the first restore: longer than a
/// scheduler may leave a task waiting, which are 5 s for scx_bpfland.
const PAUSE: Duration = Duration::from_secs(6);

/// How long a call may take to end once its run is frozen: a fraction of its deadline.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How many threads of one restored guest may be left, which has more.
const LATE_THREADS: usize = 3;

/// The scheduler's name, for the guest's shell.
const SCHEDULER: &str = "$(sed 's,^exec /usr/bin/,,; s, .*,,' /etc/scx-vsock/scheduler)";

/// The host port of a connection that the guest holds.
const HELD: u32 = 5000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (kernel, modules, memory, restores, scheduler, config) = match arguments.as_slice() {
        [kernel, modules, memory, restores, scheduler] => (kernel, modules, memory, restores, scheduler, None),
        [kernel, modules, memory, restores, scheduler, config] => {
            (kernel, modules, memory, restores, scheduler, Some(config))
        }
        _ => bail!("usage: guest_snapshots KERNEL MODULES MEMORY_MIB RESTORES SCHEDULER [CONFIG]"),
    };
    let builder = Guest::builder().vmm(Vmm::Microvm).kernel(kernel).modules(modules).scheduler(scheduler, &[]);
    let builder = config.into_iter().fold(builder, |builder, config| builder.config(config));
    let builder =
        builder.program("/bin/guest_peer", "/bin/guest_peer").memory_mib(memory.parse()?).cpus(2).deadline(BOOT);
    let source = timed("boot", || Ok(builder.boot()?))?;
    timed("load", || Ok(source.wait_for_scheduler(DEADLINE)?))?;
    timed("freeze", || freeze_during_a_request(&source))?;
    refuse_during_a_command(&source)?;
    let moment = timed("snapshot", || Moment::of(&source))?;
    end(source)?;
    thread::sleep(PAUSE);
    let mut left = Vec::new();
    for restore in 0..restores.parse()? {
        timed("restore", || moment.check(&moment.snapshot.restore()?)).with_context(|| format!("restore {restore}"))?;
        left.push(descriptors_and_threads());
    }
    let (first, last) = (left.iter().min().context("no restore")?, left.iter().max().context("no restore")?);
    // A thread that was joined may still be on its way out of the kernel.
    let nothing_left = first.0 == last.0 && left.iter().all(|(_, threads)| *threads < first.1 + LATE_THREADS);
    ensure!(nothing_left, "descriptors and threads after each restore: {left:?}");
    timed("two restores at once", || moment.restore_two())
}

fn timed<T>(name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = step().with_context(|| name.to_owned())?;
    println!("{name}: {:.1} s", started.elapsed().as_secs_f32());
    Ok(done)
}

/// Returns what a shell command prints in the guest.
fn output(guest: &Guest, command: &str) -> Result<String> {
    let output = guest.run_within(&["sh", "-c", command], DEADLINE)?;
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(output.status == 0, "{command:?} in the guest: {stdout}{stderr}");
    Ok(stdout)
}

fn uptime(guest: &Guest) -> Result<Duration> {
    Ok(Duration::from_secs_f64(output(guest, "cut -d ' ' -f 1 /proc/uptime")?.trim().parse()?))
}

/// What does not change in a guest: its agent, its scheduler, and whether the kernel uses that.
fn running(guest: &Guest) -> Result<String> {
    output(guest, &format!("pidof scx-vsock-agent && pidof {SCHEDULER} && cat /sys/kernel/sched_ext/state"))
}

fn client(guest: &Guest) -> SchedStatsClient {
    SchedStatsClient::builder(guest.handle().agent()).deadline(DEADLINE).build()
}

/// A request in flight ends when the guest is frozen, which stands still for longer than its scheduler may leave a task
/// waiting. Then the next request is answered, and the kernel still uses the scheduler.
fn freeze_during_a_request(guest: &Guest) -> Result<()> {
    let (before, uptime_before, read) = (running(guest)?, uptime(guest)?, Instant::now());
    output(guest, &format!("kill -STOP $(pidof {SCHEDULER})"))?;
    let (run, (port, connected)) = (RunControl::new(), NotifyingPort::new(guest.handle().agent()));
    let client = SchedStatsClient::builder(port).control(&run).deadline(DEADLINE).build();
    let (call, (ended, outcome)) = (client.clone(), channel());
    thread::spawn(move || ended.send(call.stats(&[])));
    connected.recv_timeout(DEADLINE)?;
    let begun = Instant::now();
    let frozen = guest.freeze(&run)?;
    let outcome = outcome.recv_timeout(AT_ONCE).context("the call goes on")?;
    println!("frozen, and the call has ended, after {:.3} s", begun.elapsed().as_secs_f32());
    ensure!(matches!(outcome, Err(SchedStatsError::DuringFreeze)), "{outcome:?}");
    thread::sleep(PAUSE);
    frozen.thaw()?;
    output(guest, &format!("kill -CONT $(pidof {SCHEDULER})"))?;
    client.stats(&[])?;
    stood_still(uptime_before, uptime(guest)?, read)?;
    let now = running(guest)?;
    ensure!(now == before, "{now:?} runs, not {before:?}");
    Ok(())
}

/// Checks that the guest's time went on, but not by the pause that there was since it was read first.
fn stood_still(before: Duration, now: Duration, read: Instant) -> Result<()> {
    let (in_guest, passed) = (now.checked_sub(before).context("its time went back")?, read.elapsed());
    ensure!(in_guest + PAUSE / 2 < passed, "{in_guest:?} in the guest while {passed:?} passed with a pause");
    Ok(())
}

fn refuse_during_a_command(guest: &Guest) -> Result<()> {
    let mut refused = false;
    guest.run_streaming(&["echo", "runs"], DEADLINE, |_, _| {
        refused |= matches!(guest.snapshot(), Err(Error::CommandRuns));
        Ok(())
    })?;
    ensure!(refused, "a snapshot has a command that nobody waits for");
    Ok(())
}

/// The source of all restores goes on, and ends with its clients.
fn end(source: Guest) -> Result<()> {
    let client = client(&source);
    client.stats(&[])?;
    drop(source);
    let outcome = client.stats(&[]);
    ensure!(matches!(outcome, Err(SchedStatsError::AgentUnreachable { .. })), "{outcome:?}");
    Ok(())
}

/// A guest at a moment.
struct Moment {
    running: String,
    uptime: Duration,
    read: Instant,
    snapshot: GuestSnapshot,
}

impl Moment {
    /// Takes a snapshot of a guest with a session and a connection of its own.
    fn of(guest: &Guest) -> Result<Self> {
        let client = client(guest);
        client.stats(&[])?;
        let listener = guest.handle().listen(HELD)?;
        output(guest, &format!("guest_peer hold 2 {HELD} >/tmp/held 2>&1 &"))?;
        let stream = listener.accept_within(DEADLINE)?;
        stream.set_nonblocking(false)?;
        let mut held = Peer::within(stream, DEADLINE);
        ensure!(held.line() == b"held\n");
        let (running, read) = (running(guest)?, Instant::now());
        println!("it runs: {}", running.split_whitespace().collect::<Vec<_>>().join(" "));
        let uptime = uptime(guest)?;
        let snapshot = guest.snapshot()?;
        client.stats(&[])?;
        ensure!(output(guest, "cat /tmp/held")?.is_empty(), "the source lost a connection");
        Ok(Self { running, uptime, read, snapshot })
    }

    /// A restored guest has the same processes, no connection of the source, and answers; and its time has stood still.
    fn check(&self, guest: &Guest) -> Result<()> {
        client(guest).stats(&[])?;
        stood_still(self.uptime, uptime(guest)?, self.read)?;
        let now = running(guest)?;
        ensure!(now == self.running, "{now:?} runs, not {:?}", self.running);
        let ended = output(guest, "until [ -s /tmp/held ]; do usleep 20000; done; cat /tmp/held")?;
        ensure!(ended == "reset\n", "the source's connection: {ended:?}");
        ensure!(guest.fault().is_none() && guest.console().text().contains("init: the scheduler starts"));
        Ok(())
    }

    /// Two guests of one moment do not see each other's changes.
    fn restore_two(&self) -> Result<()> {
        let guests = [self.snapshot.restore()?, self.snapshot.restore()?];
        for (number, guest) in guests.iter().enumerate() {
            ensure!(output(guest, "cat /tmp/number 2>/dev/null || true")?.is_empty(), "another guest's file");
            output(guest, &format!("echo {number} >/tmp/number"))?;
        }
        for (number, guest) in guests.iter().enumerate() {
            ensure!(output(guest, "cat /tmp/number")?.trim() == number.to_string());
            client(guest).stats(&[])?;
        }
        Ok(())
    }
}
