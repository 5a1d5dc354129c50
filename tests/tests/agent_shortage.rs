//! The agent where the kernel or the guest refuses: the right envelope, service as soon as it is possible again, and no
//! processor time while it is not.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use scx_vsock_tests::agent::{self, Agent, hello};
use scx_vsock_tests::peer::Peer;
use scx_vsock_tests::program;

const EACCES: i32 = 13;
const EAGAIN: i32 = 11;
const ECONNREFUSED: i32 = 111;
const EMFILE: i32 = 24;
const ENOMEM: i32 = 12;
const ENOSPC: i32 = 28;
const EPERM: i32 = 1;

/// An agent for which these calls fail.
fn limited(calls: &str) -> Agent {
    let mut wrapper = Command::new(env!("CARGO_BIN_EXE_limited"));
    wrapper.arg(calls);
    Agent::started_by(wrapper)
}

/// Asks, and expects that the scheduler cannot be connected for this reason.
fn is_refused(host: &mut Peer, errno: i32) {
    host.send("{}\n");
    let line = String::from_utf8(host.line()).unwrap();
    assert!(line.starts_with(&format!(r#"{{"relay_error":{{"no_scheduler":{{"errno":{errno},"#)), "{line}");
}

fn is_served(host: &mut Peer, listener: &UnixListener) {
    host.send("{}\n");
    let mut scheduler = Peer::accept(listener);
    scheduler.expect("{}");
    scheduler.send("1\n");
    host.expect(r#"{"stats":1}"#);
}

/// Whether the agent may open descriptors from now on.
fn allow_descriptors(agent: &Agent, allowed: bool) {
    let process = Pid::from_raw(i32::try_from(agent.id()).unwrap());
    let inherited = getrlimit(Resource::Nofile);
    let current = if allowed { inherited.current } else { Some(0) };
    prlimit(process, Resource::Nofile, Rlimit { current, ..inherited }).unwrap();
}

#[test]
fn a_connection_without_a_descriptor_waits_until_there_is_one() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    is_served(&mut agent.host(), &listener);
    allow_descriptors(&agent, false);
    let mut host = agent.silent_host();
    allow_descriptors(&agent, true);
    host.expect(hello());
    is_served(&mut host, &listener);
}

#[test]
fn a_scheduler_that_cannot_be_connected_for_lack_of_descriptors_is_no_scheduler() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let mut host = agent.host();
    allow_descriptors(&agent, false);
    is_refused(&mut host, EMFILE);
    allow_descriptors(&agent, true);
    is_served(&mut host, &listener);
}

#[test]
fn a_kernel_without_memory_is_named() {
    for (call, errno) in [("socket", ENOMEM), ("connect", ENOMEM), ("connect", EAGAIN)] {
        let agent = limited(&format!("{call}={errno}"));
        let _listener = agent.scheduler();
        is_refused(&mut agent.host(), errno);
    }
}

#[test]
fn a_full_backlog_of_the_scheduler_is_named() {
    let agent = Agent::start();
    let scheduler = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&scheduler, &SocketAddrUnix::new(agent.scheduler_path(0)).unwrap()).unwrap();
    listen(&scheduler, 0).unwrap();
    let _takes_the_place = UnixStream::connect(agent.scheduler_path(0)).unwrap();
    is_refused(&mut agent.host(), EAGAIN);
}

#[test]
fn paths_that_are_no_socket_are_named() {
    let agent = Agent::start();
    let path = agent.scheduler_path(0);
    fs::create_dir(&path).unwrap();
    is_refused(&mut agent.host(), ECONNREFUSED);
    fs::remove_dir(&path).unwrap();
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    is_refused(&mut agent.host(), ECONNREFUSED);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "text").unwrap();
    is_refused(&mut agent.host(), ECONNREFUSED);
    fs::remove_file(&path).unwrap();
    is_served(&mut agent.host(), &UnixListener::bind(&path).unwrap());
}

#[test]
fn a_socket_that_is_not_permitted_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("agent");
    program::copy(agent::file(), &copy);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let agent = Agent::with(1, |command| {
        if is_root {
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            *command = Command::new(&copy);
            command.args(arguments).uid(65_534).gid(65_534);
        }
    });
    fs::set_permissions(agent.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let _listener = agent.scheduler();
    let nobody = fs::Permissions::from_mode(if is_root { 0o700 } else { 0o000 });
    fs::set_permissions(agent.scheduler_path(0), nobody).unwrap();
    is_refused(&mut agent.host(), EACCES);
}

#[test]
fn in_none_of_these_states_does_the_agent_spin() {
    let idle = Agent::start();
    let _idle_host = idle.host();

    let waits = Agent::start();
    let mut waiting_host = waits.host();
    waiting_host.send("{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":60000}}}\n");

    let without_descriptors = Agent::start();
    let _served = without_descriptors.host();
    allow_descriptors(&without_descriptors, false);
    let _unserved = without_descriptors.silent_host();

    let refuses_accept = limited(&format!("accept4={ENOMEM}"));
    let _never_taken = refuses_accept.silent_host();

    let refuses_connect = limited(&format!("connect={EAGAIN}"));
    let _never_connected = refuses_connect.scheduler();
    let mut refused = refuses_connect.host();
    is_refused(&mut refused, EAGAIN);

    let awaits_refused = limited(&format!("socket={ENOMEM}"));
    let mut awaiting = awaits_refused.host();
    awaiting.send("{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":60000}}}\n");

    let in_a_folder = Agent::start();
    fs::create_dir(in_a_folder.scheduler_path(0)).unwrap();
    let mut folder_host = in_a_folder.host();
    is_refused(&mut folder_host, ECONNREFUSED);

    do_not_spin([
        &idle,
        &waits,
        &without_descriptors,
        &refuses_accept,
        &refuses_connect,
        &awaits_refused,
        &in_a_folder,
    ]);
}

/// Checks that agents without anything to do sleep for 5 s.
fn do_not_spin(agents: [&Agent; 7]) {
    let before = agents.map(|agent| (agent.wake_ups(), agent.processor_time()));
    agents[0].lives_on(Duration::from_secs(5));
    let after = agents.map(|agent| (agent.wake_ups(), agent.processor_time()));
    for (number, (before, after)) in before.into_iter().zip(after).enumerate() {
        // Nothing wakes these three; they may still be on their way to sleep after their last answer. The others try
        // again every 20 ms, and may lose their processor each time that they do.
        let most = if [0, 4, 6].contains(&number) { 10 } else { 2 * 5_000 / 20 };
        let wake_ups = after.0 - before.0;
        assert!(wake_ups <= most, "agent {number} woke up {wake_ups} times in 5 s");
        // One that spins without sleep would take all the time that it can get.
        let ran = after.1 - before.1;
        assert!(ran < Duration::from_millis(500), "agent {number} ran for {ran:?} in 5 s");
    }
}

/// What the agent says before it ends by itself, where these calls fail.
fn last_words(calls: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_limited")).arg(calls).arg(agent::file()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_agent_without_epoll_says_so_and_ends() {
    let expected = format!("scx-vsock-agent: cannot wait for events: errno {ENOSPC}\n");
    assert_eq!(last_words(&format!("epoll_ctl={ENOSPC}")), expected);
}

#[test]
fn an_agent_that_may_not_use_vsock_says_so_and_ends() {
    let expected =
        format!("scx-vsock-agent: cannot listen on vsock port 729: errno {EPERM}; ports below 1024 need root\n");
    assert_eq!(last_words(&format!("socket:40={EPERM}")), expected);
}
