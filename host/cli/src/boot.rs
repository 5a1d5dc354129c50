//! `scx-vsock boot`: a throw-away guest, sampled from the outside while a command runs in it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use scx_vsock::guest::qemu::Guest;
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::vsock::unix_bridge::UnixBridge;
use scx_vsock::{Sample, Sampler, SchedStatsClient};

use crate::{display, duration};

/// How long a command in the guest may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Boot a throw-away QEMU guest with the agent, and sample its scheduler
///
/// The guest has this kernel, the agent, the scheduler and its libraries, busybox, and nothing else: no disk and no
/// network. Samples are taken from the host until CMD ends in the guest, or until there are as many as --samples says.
/// It needs no root and no /dev/kvm. What CMD prints comes to stderr when it ends, and its exit code becomes this
/// command's.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock boot --kernel vmlinuz --modules /lib/modules/7.2.0 --scheduler ./scx_bpfland
  scx-vsock boot --kernel vmlinuz --scheduler ./scx_bpfland --jsonl -- sh -c 'for i in 1 2 3; do sleep 1; done'
  ci/kernel sched-ext fetches a kernel, ci/scheduler scx_bpfland builds a scheduler, ci/build-agent the agent.")]
pub struct Boot {
    /// The kernel's bzImage, such as /boot/vmlinuz-$(uname -r)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,

    /// The folder with this kernel's modules, such as /lib/modules/$(uname -r), unless vsock is built in
    #[arg(long, value_name = "FOLDER")]
    modules: Option<PathBuf>,

    /// The kernel's configuration, which scx_* schedulers look for
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The scheduler to start in the guest, a program of this host
    #[arg(long, value_name = "PROGRAM")]
    scheduler: Option<PathBuf>,

    /// An argument for the scheduler; may be repeated
    #[arg(long = "scheduler-arg", value_name = "ARG", allow_hyphen_values = true, requires = "scheduler")]
    scheduler_args: Vec<String>,

    /// The agent's file; without it SCX_VSOCK_AGENT, then scx-vsock-agent beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,

    /// How many samples to take when there is no CMD
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "command")]
    samples: u32,

    /// The time between two samples, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = duration::parse)]
    interval: Duration,

    /// Print samples as JSON Lines
    #[arg(long)]
    jsonl: bool,

    /// The guest's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..))]
    memory: u32,

    /// The guest's processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,

    /// The time within which the agent, and then the scheduler, must be ready
    #[arg(long, value_name = "TIME", default_value = "120", value_parser = duration::parse)]
    timeout: Duration,

    /// The QEMU program; without it QEMU, then qemu-system-x86_64
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<String>,

    /// A hybrid socket to make, through which other programs reach the guest meanwhile
    #[arg(long, value_name = "PATH")]
    hybrid: Option<PathBuf>,

    /// A command to run in the guest
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Boot {
    /// Boots, samples and ends.
    pub fn run(&self) -> Result<ExitCode> {
        let started = Instant::now();
        let socket = self.hybrid.as_ref().map(OwnedUnixListener::bind).transpose()?;
        eprintln!("scx-vsock: booting {}", self.kernel.display());
        let guest = self.boot()?;
        // Who has connected to the socket meanwhile waits in its backlog.
        let hybrid = socket.map(UnixBridge::start).transpose()?;
        if let (Some(hybrid), Some(path)) = (&hybrid, &self.hybrid) {
            guest.handle().set_uds_path(path);
            hybrid.set_guest(guest.handle());
            eprintln!("scx-vsock: others reach it too: scx-vsock stats hybrid:{}", path.display());
        }
        eprintln!("scx-vsock: the agent is ready after {:.1} s", started.elapsed().as_secs_f32());
        let client = self.client(&guest)?;
        let mut sampler = Sampler::new(client);
        // Without a scheduler every sample says so.
        let _reason = sampler.prime();
        if self.command.is_empty() {
            self.sample_often(&mut sampler)
        } else {
            self.sample_during_command(guest, &mut sampler)
        }
    }

    fn boot(&self) -> Result<Guest> {
        let arguments: Vec<&str> = self.scheduler_args.iter().map(String::as_str).collect();
        let mut builder =
            Guest::builder().kernel(&self.kernel).memory_mib(self.memory).cpus(self.cpus).deadline(self.timeout);
        if let Some(folder) = &self.modules {
            builder = builder.modules(folder);
        }
        if let Some(file) = &self.config {
            builder = builder.config(file);
        }
        if let Some(file) = &self.agent {
            builder = builder.agent(file);
        }
        if let Some(program) = &self.qemu {
            builder = builder.qemu(program);
        }
        if let Some(program) = &self.scheduler {
            builder = builder.scheduler(program, &arguments);
        }
        Ok(builder.boot()?)
    }

    /// A client once the scheduler serves stats; none for a guest without one.
    fn client(&self, guest: &Guest) -> Result<Option<SchedStatsClient>> {
        let Some(scheduler) = &self.scheduler else { return Ok(None) };
        let scheduler = scheduler.file_name().unwrap_or(scheduler.as_os_str()).display();
        let started = Instant::now();
        let client = guest.client();
        client.wait_for_scheduler(self.timeout).with_context(|| {
            format!("{scheduler} serves no stats; the guest's last words: {}", guest.console().last_words())
        })?;
        let name = ops(guest).map_or_else(|| "no sched_ext scheduler".into(), |ops| format!("sched_ext ops {ops}"));
        let seconds = started.elapsed().as_secs_f32();
        eprintln!("scx-vsock: {scheduler} serves stats after {seconds:.1} s more ({name})");
        Ok(Some(client))
    }

    fn sample_often(&self, sampler: &mut Sampler) -> Result<ExitCode> {
        let started = Instant::now();
        let mut last = Ok(());
        for n in 1..=self.samples {
            thread::sleep(self.due(started, n).saturating_duration_since(Instant::now()));
            let sample = sampler.sample(format!("sample {n}"));
            self.print(&sample)?;
            last = sample.stats.map(drop);
        }
        match last {
            Err(reason) if self.scheduler.is_some() => Err(reason).context("the last sample has no stats"),
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    fn sample_during_command(&self, guest: Guest, sampler: &mut Sampler) -> Result<ExitCode> {
        let (ended, end) = mpsc::sync_channel(1);
        let command = self.command.clone();
        // Not waited for: when nobody reads the samples any more, the guest ends with this process.
        thread::spawn(move || {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let output = guest.run_within(&command, COMMAND_DEADLINE);
            let _listens = ended.send((output, guest));
        });
        let started = Instant::now();
        let mut n = 1;
        let (output, _guest) = loop {
            match end.recv_timeout(self.due(started, n).saturating_duration_since(Instant::now())) {
                Ok(ended) => break ended,
                Err(RecvTimeoutError::Timeout) => self.print(&sampler.sample(format!("sample {n}")))?,
                Err(RecvTimeoutError::Disconnected) => bail!("the thread that runs the command ended"),
            }
            n += 1;
        };
        self.print(&sampler.sample("end"))?;
        let output = output?;
        io::stderr().write_all(&output.stdout)?;
        io::stderr().write_all(&output.stderr)?;
        Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)))
    }

    /// When sample `n` is due. Counted from the start, so that it never drifts.
    fn due(&self, started: Instant, n: u32) -> Instant {
        started + self.interval.saturating_mul(n)
    }

    fn print(&self, sample: &Sample) -> Result<()> {
        let mut stdout = anstream::stdout().lock();
        if self.jsonl {
            serde_json::to_writer(&mut stdout, sample).map_err(io::Error::from)?;
            stdout.write_all(b"\n")?;
        } else {
            stdout.write_all(display::sample(sample).as_bytes())?;
        }
        Ok(stdout.flush()?)
    }
}

/// The name of the sched_ext scheduler that the guest's kernel runs.
fn ops(guest: &Guest) -> Option<String> {
    let output = guest.run(&["cat", "/sys/kernel/sched_ext/root/ops"]).ok().filter(|output| output.status == 0)?;
    let name = String::from_utf8_lossy(&output.stdout);
    Some(name.trim().chars().filter(|character| !character.is_control()).collect())
}
