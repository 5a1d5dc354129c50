//! `scx-vsock proxy` as a process: at a path, and for a command in a mount namespace of its own.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::peer::Peer;
use scx_vsock_tests::program;
use tempfile::TempDir;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");
const SOCKET: &str = "/var/run/scx/root/stats";
const REQUEST: &str = r#"{"req":"stats"}"#;

/// A user without any powers.
const NOBODY: u32 = 65_534;

/// A client that asks one request.
fn ask() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| program::built("guest_peer"))
}

/// Copies of these programs, in a folder that every user can see.
fn seen_by_all(programs: [&Path; 2]) -> (TempDir, [PathBuf; 2]) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copies = programs.map(|program| {
        let copy = folder.path().join(program.file_name().unwrap());
        program::copy(program, &copy);
        copy
    });
    (folder, copies)
}

fn proxy(uri: &str) -> Command {
    proxy_by(COMMAND.as_ref(), uri)
}

fn proxy_by(command: &Path, uri: &str) -> Command {
    let mut command = program::with_all_signals(command);
    command.arg("proxy").arg(uri).current_dir("/");
    command
}

fn uri(agent: &Agent) -> String {
    format!("unix:{}", agent.host_path(0).display())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The exit code and the last line that is printed.
fn failure(output: &Output) -> (i32, &str) {
    (output.status.code().unwrap(), text(&output.stderr).lines().last().unwrap_or_default())
}

/// Answers one request of one connection.
fn answer_once(listener: &UnixListener, answer: &str) {
    let mut scheduler = Peer::accept(listener);
    scheduler.expect(REQUEST);
    scheduler.send(format!("{answer}\n"));
}

/// Two commands at a time, each with a guest of its own, and what each of them printed.
fn two_at_a_time([program, ask]: [&Path; 2], change: impl Fn(&mut Command)) -> [String; 2] {
    let agents = [Agent::start(), Agent::start()];
    let listeners = [0, 1].map(|n| agents.get::<usize>(n).unwrap().scheduler());
    let running = [0, 1].map(|n| {
        let agent = agents.get::<usize>(n).unwrap();
        for path in [agent.directory().to_owned(), agent.host_path(0)] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let mut command = proxy_by(program, &uri(agent));
        command.arg("--").arg(ask).args(["ask", SOCKET, REQUEST]);
        change(&mut command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    for (number, listener) in (1..).zip(&listeners) {
        answer_once(listener, &format!("{{\"args\":{{\"resp\":{number}}}}}"));
    }
    running.map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    })
}

const EACH: [&str; 2] = ["{\"args\":{\"resp\":1}}\n", "{\"args\":{\"resp\":2}}\n"];

#[test]
fn two_commands_see_two_guests_at_one_path() {
    assert_eq!(two_at_a_time([COMMAND.as_ref(), ask()], |_| ()), EACH);
}

#[test]
fn an_ordinary_user_can_run_a_command() {
    if !rustix::process::geteuid().is_root() {
        // Then the test above has shown it.
        return;
    }
    let as_nobody = |command: &mut Command| {
        command.uid(NOBODY).gid(NOBODY);
    };
    let (_folder, [program, ask]) = seen_by_all([COMMAND.as_ref(), ask()]);
    assert_eq!(two_at_a_time([&program, &ask], as_nobody), EACH);
}

#[test]
fn an_existing_folder_of_sockets_is_hidden() {
    // The outer command creates the folder for the inner one, which has another guest.
    let (_folder, [program, ask]) = seen_by_all([COMMAND.as_ref(), ask()]);
    let again = format!("{} proxy unix:/inner -- {} ask {SOCKET} '{REQUEST}'", program.display(), ask.display());
    let script = format!("{again}; {} ask {SOCKET} '{REQUEST}'", ask.display());
    for user in [None, Some(NOBODY)].iter().filter(|user| user.is_none() || rustix::process::geteuid().is_root()) {
        let mut command = proxy_by(&program, "unix:/outer");
        command.args(["--", "sh", "-c", &script]);
        user.iter().for_each(|&user| {
            command.uid(user).gid(user);
        });
        let output = command.output().unwrap();
        let lines: Vec<&str> = text(&output.stdout).lines().collect();
        let error = |path: &str| format!("no agent to talk to: unix:{path}");
        assert!(
            matches!(lines[..], [inner, outer] if inner.contains(&error("/inner")) && outer.contains(&error("/outer"))),
            "{output:?}"
        );
    }
}

#[test]
fn the_command_sees_all_other_files() {
    let listing = |folder: &str| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = listing("/var/run");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let script = format!("ls -A /var/run; test -S {SOCKET}; echo $?; ls -A /var/run/scx/root; id -u");
    let output = proxy("unix:/nowhere").args(["--", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut inside: Vec<&str> = text(&output.stdout).lines().collect();
    let uid = rustix::process::geteuid().to_string();
    assert_eq!(inside.split_off(inside.len() - 3), ["0", "stats", &uid]);
    for name in before.iter().filter(|name| *name != "scx") {
        assert!(inside.contains(&name.to_str().unwrap()), "{name:?} is missing in {inside:?}");
    }
    let mut after = listing("/var/run");
    // Root creates it.
    after.retain(|name| before.contains(name) || name != "scx");
    assert_eq!(after, before);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
}

/// Runs a script in a mount namespace whose `/run` is a new file system, also seen at `$other`; as root in it.
fn with_a_run_folder_of_its_own(script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    // mount may create /run/mount.
    let prologue = "set -e; mount -t tmpfs t /run; mkdir /run/before; mount --bind /run $other";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &format!("{prologue}; {script}")]);
    command.env("other", folder.path()).env("command", COMMAND).output().unwrap()
}

#[test]
fn the_run_folder_is_the_hosts() {
    let inside = format!("touch /run/made $other/later; ls -I mount /run /var/run; test -S {SOCKET}");
    let script = format!("$command proxy unix:/nowhere -- sh -c '{inside}'; ls -I mount /run");
    let output = with_a_run_folder_of_its_own(&script);
    let seen = "/run:\nbefore\nlater\nmade\nscx\n\n/var/run:\nbefore\nlater\nmade\nscx\n";
    assert_eq!(text(&output.stdout), format!("{seen}before\nlater\nmade\nscx\n"), "{}", text(&output.stderr));
}

#[test]
fn a_run_folder_that_cannot_be_written_is_the_hosts() {
    let inside =
        format!("touch $other/later; ls -I mount /run /var/run; test -S {SOCKET}; touch /var/made.$$ || echo refused");
    let script =
        format!("mount -o remount,ro,bind /run; $command proxy unix:/nowhere -- sh -c '{inside}'; ls -I mount /run");
    let output = with_a_run_folder_of_its_own(&script);
    let seen = "/run:\nbefore\nlater\n\n/var/run:\nbefore\nscx\nrefused\n";
    assert_eq!(text(&output.stdout), format!("{seen}before\nlater\n"), "{}", text(&output.stderr));
}

#[test]
fn exit_code_and_streams_are_the_commands() {
    let run = |command: &[&str]| proxy("unix:/nowhere").arg("--").args(command).output().unwrap();
    let output = run(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.status.code(), text(&output.stdout), text(&output.stderr)), (Some(7), "out\n", "err\n"));
    assert_eq!(run(&["sh", "-c", "kill -KILL $$"]).status.code(), Some(128 + 9));
    let missing = run(&["no-such-program"]);
    let expected = "scx-vsock: cannot run no-such-program: No such file or directory (os error 2)";
    assert_eq!(failure(&missing), (127, expected));
    assert_eq!(run(&["/etc/passwd"]).status.code(), Some(126));
}

#[test]
fn an_unreachable_guest_is_an_errno() {
    let output = proxy("unix:/nowhere").arg("--").arg(ask()).args(["ask", SOCKET, REQUEST]).output().unwrap();
    assert!(text(&output.stdout).starts_with("{\"errno\":113,\"args\":{\"resp\":\"scx-vsock: no agent to talk to:"));
}

#[test]
fn only_the_first_failure_is_printed() {
    let script = format!("{0} ask {SOCKET} '{REQUEST}'; {0} ask {SOCKET} '{REQUEST}'", ask().display());
    let output = proxy("unix:/nowhere").args(["--", "sh", "-c", &script]).output().unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 2);
    let errors = text(&output.stderr);
    assert!(errors.starts_with("scx-vsock: no agent to talk to: unix:/nowhere: there is no such socket"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn a_schedulers_error_is_no_failure_of_the_guest() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let mut command = proxy(&uri(&agent));
    command.arg("--").arg(ask()).args(["ask", SOCKET, REQUEST]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    answer_once(&listener, "{\"errno\":22,\"args\":{\"resp\":\"no\"}}");
    let output = child.wait_with_output().unwrap();
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("{\"errno\":22,\"args\":{\"resp\":\"no\"}}\n", ""));
}

/// A command that prints "ready" and then the signal that it received.
fn trapping(signals: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let traps: String = signals.iter().map(|name| format!("trap 'kill $!; echo {name}; exit 3' {name}; ")).collect();
    let script = format!("sleep 1000 >/dev/null & {traps} echo ready; wait");
    let mut child = proxy("unix:/nowhere").args(["--", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(line(&mut output), "ready\n");
    (child, output)
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap()).unwrap()
}

#[test]
fn signals_are_forwarded_to_the_command() {
    let signals = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("TERM", Signal::TERM),
        ("USR1", Signal::USR1),
    ];
    for (name, signal) in signals {
        let (mut child, mut output) = trapping(&[name]);
        kill_process(pid(&child), signal).unwrap();
        assert_eq!(line(&mut output), format!("{name}\n"));
        assert_eq!(child.wait().unwrap().code(), Some(3), "{name}");
    }
}

#[test]
fn the_command_dies_with_a_killed_proxy() {
    let mut command = proxy("unix:/nowhere");
    command.args(["--", "sh", "-c", "echo $$; exec sleep 1000"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let inner = line(&mut BufReader::new(child.stdout.take().unwrap()));
    let inner = pidfd_open(Pid::from_raw(inner.trim().parse().unwrap()).unwrap(), PidfdFlags::empty()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let within = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&inner, PollFlags::IN)], Some(&within)).unwrap(), 1, "the command still runs");
}

#[test]
fn missing_namespaces_are_named_with_the_fix() {
    // Neither kind of namespace can be created.
    let mut command = Command::new(program::built("limited"));
    command.arg("unshare=1").arg(COMMAND).args(["proxy", "unix:/nowhere", "--", "true"]);
    let output = command.output().unwrap();
    let (code, line) = failure(&output);
    assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
    assert!(code == 1 && line.contains("cannot create a user namespace: Operation not permitted"), "{line}");
    assert!(
        line.contains("allow user namespaces (sysctl user.max_user_namespaces") && line.contains("use --socket PATH"),
        "{line}"
    );
}

/// A proxy at a path, which listens.
fn at(path: &Path, uri: &str) -> Child {
    let mut child = proxy(uri).arg("--socket").arg(path).stderr(Stdio::piped()).spawn().unwrap();
    let message = line(&mut BufReader::new(child.stderr.take().unwrap()));
    assert_eq!(message, format!("scx-vsock: serving {uri} at {}\n", path.display()));
    child
}

#[test]
fn a_signal_ends_it_and_removes_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats");
    let agent = Agent::start();
    let listener = agent.scheduler();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut child = at(&path, &uri(&agent));
        let mut client = Peer::connect(&path);
        client.send(format!("{REQUEST}\n"));
        answer_once(&listener, EACH[0].trim_end());
        client.expect(EACH[0].trim_end());
        kill_process(pid(&child), signal).unwrap();
        assert!(child.wait().unwrap().success(), "{signal:?}");
        assert!(!path.exists(), "{signal:?}");
    }
}

#[test]
fn a_wrong_path_is_named_with_its_fix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats");
    let refused = |path: &Path| proxy("unix:/nowhere").arg("--socket").arg(path).output().unwrap();
    let first = at(&path, "unix:/nowhere");
    let output = refused(&path);
    assert_eq!(
        failure(&output),
        (
            1,
            &*format!(
                "scx-vsock: {} is in use: end the program that listens on it, or choose another path",
                path.display()
            )
        )
    );
    // The socket of a killed proxy is replaced.
    let mut first = first;
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(path.exists() && UnixStream::connect(&path).is_err());
    let mut second = at(&path, "unix:/nowhere");
    kill_process(pid(&second), Signal::TERM).unwrap();
    second.wait().unwrap();
    let output = refused(&folder.path().join("no/such/folder"));
    let (code, line) = failure(&output);
    assert!(code == 1 && line.contains("does not exist: create it, or choose another path"), "{line}");
}

#[test]
fn clients_without_a_descriptor_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats");
    let mut command = Command::new("prlimit");
    command.arg("--nofile=16").arg(COMMAND).args(["proxy", "unix:/nowhere", "--socket"]).arg(&path);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    line(&mut BufReader::new(child.stderr.take().unwrap()));
    let mut clients: Vec<Peer> = (0..16).map(|_| Peer::connect(&path)).collect();
    let mut refused = clients.pop().unwrap();
    let answer = refused.line();
    assert!(text(&answer).contains("no descriptor left"), "{}", text(&answer));
    refused.expect_end();
    let mut first = clients.swap_remove(0);
    first.send(format!("{REQUEST}\n"));
    assert!(text(&first.line()).starts_with("{\"errno\":113,"));
    kill_process(pid(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_path_and_a_command_are_served_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats");
    let script = format!("{0} ask {SOCKET} '{REQUEST}'; {0} ask {1} '{REQUEST}'", ask().display(), path.display());
    let mut command = proxy("unix:/nowhere");
    command.arg("--socket").arg(&path).args(["--", "sh", "-c", &script]);
    let output = command.output().unwrap();
    assert_eq!(text(&output.stdout).lines().filter(|line| line.starts_with("{\"errno\":113,")).count(), 2);
    assert!(!path.exists());
}

#[test]
fn wrong_arguments_are_named() {
    for (arguments, named) in [
        (&["unix:/x"][..], "--socket"),
        (&["guest", "--", "true"], "it has no scheme"),
        (&["unix:/x", "--deadline", "0", "--", "true"], "--deadline"),
    ] {
        let output = Command::new(COMMAND).arg("proxy").args(arguments).output().unwrap();
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(named), "{arguments:?}: {stderr}");
    }
}
