//! `scx-vsock boot`: a throw-away guest, sampled while a command runs in it.

mod added_file;
mod combination;
mod command_text;
mod forwarded;
mod hybrid_socket;
mod limited_run;
mod sampling;
mod suite;
mod suite_file;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Command, ValueEnum};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use scx_vsock::guest::{Guest, Topology, Vmm};
use scx_vsock::sample::Schedule;
use scx_vsock::{Sampler, SchedStatsClient};

use crate::error_report::wrong_arguments;
use crate::expectations::{Evaluations, Expectations};
use crate::output::eprintln;
use crate::{display, duration};
use added_file::AddedFile;
use hybrid_socket::HybridSocket;
pub use sampling::CommandFailed;
use sampling::Sampling;
use suite::SuiteOptions;
use suite_file::{Kernel, Scheduler, SuiteFile};
use toml::Spanned;

/// Boot a throw-away guest and sample its scheduler
///
/// The guest is a microVM in this process where /dev/kvm runs Linux, else it runs on QEMU. It has the kernel, the agent, the
/// scheduler with its libraries, and busybox; no disk and no network. Neither root nor /dev/kvm is needed.
///
/// With CMD, boot runs it in the guest, samples the scheduler's stats until it exits, and exits with its exit code. The
/// outputs of CMD go to stderr as they come: unchanged into a file or a pipe, without escape sequences and control
/// characters on a terminal. Without CMD, boot takes --samples samples and exits.
///
/// A scheduler that exits before it serves stats ends boot with exit code 3. One that exits later is a warning, or with
/// --require-stats an error with that code.
///
/// With several kernels, topologies or schedulers, --repetitions or --suite, boot runs each combination, one after another or
/// --jobs at once, each within a --limit, and prints a table at the end. Samples, which name their run, and messages go to
/// files. The exit code is that of the first run that failed.
///
/// With --expect, the samples are judged at the end, a line each on stderr. If CMD succeeds and an expectation is not met,
/// the exit code is 4.
#[derive(Args)]
#[command(override_usage = "\
scx-vsock boot [OPTIONS] --kernel <FILE>... [-- <CMD>...]
       scx-vsock boot [OPTIONS] --suite <FILE> [-- <CMD>...]")]
#[command(after_long_help = "\
Examples:
  scx-vsock boot --kernel /boot/vmlinuz-$(uname -r) --modules /lib/modules/$(uname -r)
  scx-vsock boot --kernel vmlinuz --modules /lib/modules/7.2.0 --scheduler ./scx_bpfland
  scx-vsock boot --kernel vmlinuz --modules /lib/modules/7.2.0 --scheduler ./scx_bpfland --jsonl \\
    --require-stats -- sh -c 'ls -R /sys >/dev/null'
  scx-vsock boot --kernel vmlinuz --modules /lib/modules/7.2.0 --scheduler ./scx_bpfland --junit verdicts.xml \\
    --expect 'nr_running <= 64' --expect 'kernel:state = enabled' -- sh -c 'ls -R /sys >/dev/null'")]
pub struct Boot {
    /// The kernel's bzImage, such as /boot/vmlinuz-$(uname -r), or an arm64 Image, whose guest is emulated
    ///
    /// Each of several kernels, topologies or schedulers has runs of its own.
    #[arg(long = "kernel", value_name = "FILE", required_unless_present = "suite", id = "kernel")]
    kernels: Vec<PathBuf>,

    /// The folder of the kernel's modules, such as /lib/modules/$(uname -r); not needed if vsock is built in; for several
    /// kernels as often as --kernel
    #[arg(long, value_name = "FOLDER")]
    modules: Vec<PathBuf>,

    /// The kernel's configuration, which scx_* schedulers read; by default config-RELEASE or config beside the kernel, else
    /// /boot/config-RELEASE; for several kernels as often as --kernel
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,

    /// The scheduler to start in the guest, a program of this host; each of several has runs of its own
    #[arg(long = "scheduler", value_name = "PROGRAM", id = "scheduler")]
    schedulers: Vec<PathBuf>,

    /// An argument for the scheduler; may be repeated
    #[arg(long = "scheduler-arg", value_name = "ARG", allow_hyphen_values = true, requires = "scheduler")]
    scheduler_args: Vec<String>,

    /// The agent's file; by default $SCX_VSOCK_AGENT, else the agent that this command carries for the kernel's architecture
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,

    /// The busybox in the guest; by default the one in PATH. For another architecture a static one is needed
    #[arg(long, value_name = "PROGRAM")]
    busybox: Option<PathBuf>,

    /// Add a program of this host to the guest, with its libraries, for CMD: as /usr/bin/NAME, or with FILE=PATH as PATH; may
    /// be repeated
    #[arg(long = "program", value_name = "FILE[=PATH]", id = "program", value_parser = AddedFile::program)]
    programs: Vec<AddedFile>,

    /// Add a file of this host to the guest: as /NAME, or with FILE=PATH as PATH; may be repeated
    #[arg(long = "file", value_name = "FILE[=PATH]", id = "file", value_parser = AddedFile::file)]
    files: Vec<AddedFile>,

    /// How many samples to take without CMD
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "command")]
    samples: u32,

    /// The time between two samples, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = duration::parse)]
    interval: Duration,

    /// Print samples as JSON Lines; those of several runs when each has ended
    #[arg(long)]
    jsonl: bool,

    /// Fail when the scheduler exits during the run, and when the last sample has no stats
    #[arg(long, requires = "scheduler")]
    require_stats: bool,

    /// The scheduler serves no stats: do not wait for them, and sample what the kernel says from the beginning
    #[arg(long, requires = "scheduler", conflicts_with = "require_stats")]
    no_stats: bool,

    /// Write the guest's console to this file as it comes
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,

    /// The guest's memory in MiB [default: that of the topology's nodes, or 1024]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    memory: Option<u32>,

    /// The number of the guest's processors [default: that of the topology, or 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: Option<u32>,

    /// How processors and memory are arranged, such as sockets=2,llcs=1,cores=2,threads=2,nodes=2: each number is that of a
    /// part of the one before it, except that of NUMA nodes, which have equal parts of the memory or, with
    /// memory=256+768, so many MiB. QEMU shows one LLC domain for each socket
    #[arg(long = "topology", value_name = "LIST", id = "topology")]
    topologies: Vec<Topology>,

    /// How long one sample may take, in seconds or with a unit; a sample that takes longer has no stats
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,

    /// How long to wait for the agent, and again for the scheduler, in seconds or with a unit (2m)
    #[arg(long, value_name = "TIME", default_value = "120", value_parser = duration::parse)]
    timeout: Duration,

    /// What runs the guest: a microVM in this process (x86_64, needs KVM), QEMU, or a microVM where KVM runs Linux
    #[arg(long, value_name = "VMM", default_value = "auto")]
    vmm: VmmArgument,

    /// The QEMU program, which runs the guest then; by default $QEMU, else qemu-system-x86_64 or qemu-system-aarch64, as the
    /// kernel needs
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<OsString>,

    /// Create a hybrid socket at this path, through which other programs can reach the guest
    #[arg(long, value_name = "PATH")]
    hybrid: Option<PathBuf>,

    #[command(flatten)]
    expectations: Expectations,

    #[command(flatten)]
    suite: SuiteOptions,

    /// End with the process of this number, which has started this one
    #[arg(long, value_name = "PID", hide = true)]
    ends_with: Option<i32>,

    /// The name of this run of several, which its samples have as well
    #[arg(long, value_name = "NAME", hide = true)]
    run_name: Option<String>,

    /// A command to run in the guest
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// What runs the guest.
#[derive(Clone, Copy, ValueEnum)]
enum VmmArgument {
    Auto,
    Microvm,
    Qemu,
}

impl From<VmmArgument> for Vmm {
    fn from(argument: VmmArgument) -> Self {
        match argument {
            VmmArgument::Auto => Self::Auto,
            VmmArgument::Microvm => Self::Microvm,
            VmmArgument::Qemu => Self::Qemu,
        }
    }
}

impl Boot {
    /// Boots the guest, samples it and ends it.
    pub fn run(&self) -> Result<ExitCode> {
        if let Some(parent) = self.ends_with {
            end_with(parent)?;
        }
        let of_one_kind = [self.kernels.len(), self.topologies.len(), self.schedulers.len()];
        if self.suite.is_asked_for() || of_one_kind.iter().any(|&count| count > 1) {
            return self.run_all();
        }
        self.suite.check_for_one_run()?;
        let schedule = Schedule::Every(self.interval).validate()?;
        let mut evaluations = self.expectations.prepare("boot", &[self.kernel().display().to_string()])?;
        let outcome = self.run_guest(schedule, &mut evaluations);
        evaluations.conclude(outcome).map(|()| ExitCode::SUCCESS)
    }

    /// Runs each combination.
    fn run_all(&self) -> Result<ExitCode> {
        if self.console.is_some() || self.hybrid.is_some() {
            return Err(wrong_arguments("--console and --hybrid are of one run, and there are several"));
        }
        let matrix = SuiteFile {
            kernel: self.matrix_of_kernels()?,
            topology: self.topologies.iter().map(|topology| Spanned::new(0..0, topology.to_string())).collect(),
            scheduler: self.matrix_of_schedulers(),
            ..SuiteFile::default()
        };
        let command = Self::augment_args(Command::new("boot"));
        let matches = command.clone().try_get_matches_from(env::args_os().skip(1))?;
        let suite = self.suite.suite(&command, &matches, matrix)?;
        suite.run(self.jsonl, self.expectations.junit("boot")?.as_ref())
    }

    fn matrix_of_kernels(&self) -> Result<Vec<Kernel>> {
        let count = self.kernels.len();
        for (name, paths) in [("modules", &self.modules), ("config", &self.config)] {
            if !paths.is_empty() && paths.len() != count {
                let given = paths.len();
                let problem = format!(
                    "--kernel is given {count} times and --{name} {given} times; give --{name} for every kernel or for none"
                );
                return Err(wrong_arguments(problem));
            }
        }
        let of = |paths: &[PathBuf], at: usize| paths.get(at).cloned();
        let kernel = |(at, file): (usize, &PathBuf)| Kernel {
            name: None,
            file: file.clone(),
            modules: of(&self.modules, at),
            config: of(&self.config, at),
        };
        Ok(self.kernels.iter().enumerate().map(kernel).collect())
    }

    /// The schedulers; what they have in common is forwarded.
    fn matrix_of_schedulers(&self) -> Vec<Scheduler> {
        self.schedulers.iter().map(|program| Scheduler { program: program.clone(), ..Scheduler::default() }).collect()
    }

    /// The kernel of a single run.
    fn kernel(&self) -> &Path {
        self.kernels.first().map_or(Path::new(""), PathBuf::as_path)
    }

    fn run_guest(&self, schedule: Schedule, evaluations: &mut Evaluations) -> Result<()> {
        let started = Instant::now();
        let hybrid = self.hybrid.as_deref().map(HybridSocket::bind).transpose()?;
        eprintln!("scx-vsock: booting {}", self.kernel().display());
        let guest = self.boot(started)?;
        if let Some(socket) = &hybrid {
            socket.connect_to(&guest)?;
        }
        eprintln!("scx-vsock: on {}", display::clean(&guest.vmm().to_string()));
        eprintln!("scx-vsock: the agent is ready after {:.1} s", started.elapsed().as_secs_f32());
        let client = self.client(&guest, started)?.map(|client| client.with_deadline(self.deadline));
        let mut sampler = Sampler::new(client);
        if self.no_stats || evaluations.ask_the_kernel() {
            sampler = sampler.kernel(guest.client().with_deadline(self.deadline));
        }
        // Without a scheduler, each sample says why.
        let _reason = sampler.prime();
        let (jsonl, requires_stats, run) = (self.jsonl, self.require_stats, self.run_name.as_deref());
        let end = self.suite.limit().and_then(|limit| Some((started.checked_add(limit)?, limit)));
        let mut sampling = Sampling { schedule, jsonl, run, end, requires_stats, evaluations };
        if self.command.is_empty() {
            sampling.take(guest, self.samples, &mut sampler, !self.schedulers.is_empty() && !self.no_stats)
        } else {
            sampling.take_while_running(guest, &self.command, &mut sampler)
        }
    }

    fn boot(&self, started: Instant) -> Result<Guest> {
        let arguments: Vec<&str> = self.scheduler_args.iter().map(String::as_str).collect();
        let mut builder = Guest::builder().kernel(self.kernel()).deadline(self.timeout(started));
        if let Some(mib) = self.memory {
            builder = builder.memory_mib(mib);
        }
        if let Some(cpus) = self.cpus {
            builder = builder.cpus(cpus);
        }
        if let Some(topology) = self.topologies.first() {
            builder = builder.topology(topology.clone());
        }
        if let Some(folder) = self.modules.first() {
            builder = builder.modules(folder);
        }
        if let Some(file) = self.config.first() {
            builder = builder.config(file);
        }
        if let Some(file) = &self.agent {
            builder = builder.agent(file);
        }
        if let Some(file) = &self.busybox {
            builder = builder.busybox(file);
        }
        for AddedFile { from, to } in &self.programs {
            builder = builder.program(from, to);
        }
        for AddedFile { from, to } in &self.files {
            builder = builder.file(from, to);
        }
        if let Some(file) = &self.console {
            builder = builder.console_file(file);
        }
        builder = builder.vmm(self.vmm.into());
        if let Some(program) = &self.qemu {
            builder = builder.qemu(program);
        }
        if let Some(program) = self.schedulers.first() {
            builder = builder.scheduler(program, &arguments);
        }
        Ok(builder.boot()?)
    }

    /// How long to wait for the agent or the scheduler: not longer than what is left of the time that the run may take.
    fn timeout(&self, started: Instant) -> Duration {
        let left = self.suite.limit().map(|limit| limit.saturating_sub(started.elapsed()));
        left.map_or(self.timeout, |left| left.min(self.timeout))
    }

    /// A client once the scheduler serves stats, or at once if it will serve none; `None` without a scheduler.
    fn client(&self, guest: &Guest, run_started: Instant) -> Result<Option<SchedStatsClient>> {
        let Some(scheduler) = self.schedulers.first() else { return Ok(None) };
        if self.no_stats {
            return Ok(Some(guest.client()));
        }
        let scheduler = scheduler.file_name().unwrap_or(scheduler.as_os_str()).display();
        let started = Instant::now();
        guest.wait_for_scheduler(self.timeout(run_started))?;
        let name = ops(guest).map_or_else(|| "no sched_ext scheduler".into(), |ops| format!("sched_ext ops {ops}"));
        let seconds = started.elapsed().as_secs_f32();
        eprintln!("scx-vsock: {scheduler} serves stats after {seconds:.1} s ({name})");
        Ok(Some(guest.client()))
    }
}

/// Lets this process end with its parent, whose number is known in case it has ended already.
fn end_with(parent: i32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot end with the process that started this one")?;
    ensure!(getppid() == Pid::from_raw(parent), "the process that started this one has ended");
    Ok(())
}

/// The name of the sched_ext scheduler that the guest's kernel runs.
fn ops(guest: &Guest) -> Option<String> {
    let output = guest.run(&["cat", "/sys/kernel/sched_ext/root/ops"]).ok().filter(|output| output.status == 0)?;
    Some(display::clean(String::from_utf8_lossy(&output.stdout).trim()))
}
