//! The real agent program as a process of this machine, on inherited Unix sockets instead of vsock.

use std::env;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use crate::peer::Peer;

/// The hello of an agent in some guest.
pub const HELLO: &str = r#"{"hello":{"protocol":1,"min_protocol":1,"agent":"0.1.0","boot_id":"00000000-0000-4000-8000-000000000000","max_request_bytes":262144,"max_response_bytes":262144}}"#;

/// The relay error about a `request` or `response` line over the cap.
#[must_use]
pub fn too_large(what: &str, size: usize, max: usize) -> String {
    format!("{{\"relay_error\":{{\"{what}_too_large\":{{\"size\":{size},\"max\":{max}}}}}}}")
}

/// The hello of an agent on this machine.
///
/// # Panics
///
/// Where the kernel has no boot id.
#[must_use]
pub fn hello() -> String {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the kernel has a boot id");
    HELLO.replace("00000000-0000-4000-8000-000000000000", boot_id.trim_end())
}

/// Whether a line without its LF is the agent's hello, from whatever guest.
#[must_use]
pub fn is_hello(line: &[u8]) -> bool {
    const BOOT_ID: usize = r#"{"hello":{"protocol":1,"min_protocol":1,"agent":"0.1.0","boot_id":""#.len();
    let mask = |(at, byte): (usize, u8)| if (BOOT_ID..BOOT_ID + 36).contains(&at) { b'x' } else { byte };
    line.iter().copied().enumerate().map(mask).eq(HELLO.bytes().enumerate().map(mask))
}

/// The repository's top folder.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The agent's file: `SCX_VSOCK_AGENT` where it is set, else built once.
///
/// # Panics
///
/// When it cannot be built.
#[must_use]
pub fn file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        env::var_os("SCX_VSOCK_AGENT").map_or_else(|| build(repository()).expect("the agent builds"), Into::into)
    })
}

/// Builds the agent of the sources at `top`; a copy's in a target folder of its own.
///
/// # Errors
///
/// What the build printed.
pub fn build(top: &Path) -> Result<PathBuf, String> {
    let mut command = Command::new(top.join("ci/build-agent"));
    if top != repository() {
        command.env("CARGO_TARGET_DIR", top.join("target"));
    }
    let output = command.output().map_err(|error| format!("ci/build-agent: {error}"))?;
    if output.status.success() {
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A running agent. Killed on drop.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    directory: TempDir,
    maps: usize,
}

impl Agent {
    /// An agent for one scheduler's socket, at [`scheduler_path`](Self::scheduler_path) of map 0.
    #[must_use]
    pub fn start() -> Self {
        Self::with_maps(1)
    }

    /// An agent with so many maps.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn with_maps(maps: usize) -> Self {
        Self::with(maps, |_| {})
    }

    /// An agent with so many maps, whose command `change` adapts before it is started.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn with(maps: usize, change: impl FnOnce(&mut Command)) -> Self {
        Self::run_as(Command::new(file()), maps, change)
    }

    /// An agent with one map, started by a program that takes the command to run as its last arguments.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn started_by(mut wrapper: Command) -> Self {
        wrapper.arg(file());
        Self::run_as(wrapper, 1, |_| {})
    }

    fn run_as(mut command: Command, maps: usize, change: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        command.stdin(Stdio::null());
        let mut mappings = Vec::new();
        for (map, child_fd) in (0..maps).zip(10..) {
            let listener = UnixListener::bind(host_path(directory.path(), map)).expect("a socket to listen on");
            let socket = scheduler_path(directory.path(), map);
            command.arg("--map").arg(format!("{map}={}", socket.display()));
            command.arg("--listen-fd").arg(child_fd.to_string());
            mappings.push(FdMapping { parent_fd: OwnedFd::from(listener), child_fd });
        }
        change(&mut command);
        command.fd_mappings(mappings).expect("distinct descriptors");
        let child = command.spawn().expect("the agent starts");
        Self { child, directory, maps }
    }

    /// A folder that goes with the agent.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where map `map`'s scheduler is expected.
    #[must_use]
    pub fn scheduler_path(&self, map: usize) -> PathBuf {
        assert!(map < self.maps, "there is no map {map}");
        scheduler_path(self.directory.path(), map)
    }

    /// Where hosts connect for map `map`.
    #[must_use]
    pub fn host_path(&self, map: usize) -> PathBuf {
        host_path(self.directory.path(), map)
    }

    /// A scheduler's listener for map 0.
    ///
    /// # Panics
    ///
    /// When the path is taken.
    #[must_use]
    pub fn scheduler(&self) -> UnixListener {
        UnixListener::bind(self.scheduler_path(0)).expect("the scheduler's path is free")
    }

    /// A host that has read its hello.
    #[must_use]
    pub fn host(&self) -> Peer {
        let mut host = self.silent_host();
        host.expect(hello());
        host
    }

    /// A host that has read nothing.
    #[must_use]
    pub fn silent_host(&self) -> Peer {
        Peer::connect(&self.host_path(0))
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How often the agent has been awake: the times that it went to sleep or lost its processor. Unlike the time that
    /// it took, this does not depend on the machine.
    ///
    /// # Panics
    ///
    /// When the agent has ended.
    #[must_use]
    pub fn wake_ups(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the agent runs");
        let switches = status.lines().filter(|line| line.contains("ctxt_switches"));
        switches.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    }

    /// How long the agent has run.
    ///
    /// # Panics
    ///
    /// When the agent has ended.
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        time_of(&format!("/proc/{}/schedstat", self.id()))
    }

    /// Watches the agent for so long.
    ///
    /// # Panics
    ///
    /// When the agent ends meanwhile.
    pub fn lives_on(&self, within: Duration) {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).expect("the agent runs");
        let within = Timespec::try_from(within).expect("a time within bounds");
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&within)).expect("a descriptor to wait on");
        assert_eq!(ended, 0, "the agent ended");
    }
}

/// Returns how long a thread has run, by its `schedstat` file.
///
/// # Panics
///
/// When the thread is gone.
#[must_use]
pub fn time_of(schedstat: &str) -> Duration {
    let stat = fs::read_to_string(schedstat).expect("the thread runs");
    let nanoseconds = stat.split_whitespace().next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the time comes first"))
}

fn host_path(directory: &Path, map: usize) -> PathBuf {
    directory.join(format!("host{map}"))
}

fn scheduler_path(directory: &Path, map: usize) -> PathBuf {
    directory.join(format!("stats{map}"))
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Runs the agent's program to its end; returns its status, standard output and standard error.
///
/// # Panics
///
/// When it cannot be started.
#[must_use]
pub fn run(change: impl FnOnce(&mut Command)) -> (ExitStatus, String, String) {
    let mut command = Command::new(file());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    change(&mut command);
    let mut child = command.spawn().expect("the agent starts");
    let mut output = String::new();
    let mut errors = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut output).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut errors).expect("text");
    (child.wait().expect("the agent ends"), output, errors)
}
