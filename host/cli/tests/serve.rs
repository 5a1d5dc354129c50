//! `scx-vsock serve` as a process: its sockets, a simulated QEMU and a real one, and its errors.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use scx_vsock::vsock::packet::Operation;
use scx_vsock::vsock::spec::TX_QUEUE;
use scx_vsock_tests::front_end::{FrontEnd, SET_VRING_CALL, SET_VRING_KICK};
use scx_vsock_tests::guest::{TypedQemu, builder};
use scx_vsock_tests::guest_driver::Connection;
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::program;
use tempfile::TempDir;

fn serve(arguments: &[&str]) -> Command {
    let mut command = program::with_all_signals(env!("CARGO_BIN_EXE_scx-vsock"));
    command.arg("serve").args(arguments).stdin(Stdio::null());
    command
}

/// A serving command. Killed on drop.
struct Serving {
    child: Child,
    messages: Receiver<String>,
}

impl Serving {
    fn start(arguments: &[&str]) -> Self {
        let mut child = serve(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, messages) = channel();
        thread::spawn(move || lines.map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { child, messages }
    }

    /// The next message.
    fn message(&mut self) -> String {
        self.messages.recv_timeout(DEADLINE).expect("it prints a message")
    }

    /// Skips messages until one with this text.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.messages.recv_timeout(DEADLINE) {
                Ok(message) if message.contains(text) => return message,
                Ok(_) => {}
                Err(error) => panic!("it never printed {text:?}: {error}"),
            }
        }
    }

    fn end_by(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

fn folder() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("g1.sock").to_str().unwrap().to_owned();
    (folder, socket)
}

fn path_with(socket: &str, suffix: &str) -> PathBuf {
    format!("{socket}{suffix}").into()
}

#[test]
fn it_outlives_front_ends_and_removes_sockets() {
    for signal in [Signal::INT, Signal::TERM] {
        let (folder, socket) = folder();
        let mut serving = Serving::start(&["--socket", &socket]);
        let message = serving.wait_for("waiting for QEMU");
        let hint = format!("waiting for QEMU to connect; read stats with: scx-vsock stats hybrid:{socket}.hybrid");
        assert_eq!(message, format!("scx-vsock: {socket}: {hint}"));
        for _ in 0..3 {
            // Who connects and leaves is no QEMU.
            drop(UnixStream::connect(&socket).unwrap());
            let mut front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
            let (mut program, _connection) = front_end.accept(&path_with(&socket, ".hybrid"));
            assert_eq!(serving.message(), format!("scx-vsock: {socket}: QEMU connected"));
            serving.wait_for("the guest's driver is up");
            drop(front_end);
            program.expect_end();
            serving.wait_for("QEMU disconnected; waiting for the next one to connect");
        }
        assert_eq!(serving.end_by(signal), Some(0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn without_qemu_the_agent_is_unreachable() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let uri = format!("hybrid:{socket}.hybrid");
    for arguments in [
        &["stats", &uri, "--deadline", "300ms"][..],
        &["stats", &uri, "--wait", "300ms"],
        &["doctor", &uri, "--deadline", "300ms"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_scx-vsock")).args(arguments).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(21), "{arguments:?}: {text}");
        let reason = "has not replied to CONNECT 729 within 300 ms: the guest's vsock driver is not up yet";
        assert!(text.contains(reason), "{arguments:?}: {text}");
    }
}

#[test]
fn only_its_user_reaches_its_sockets() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    for suffix in ["", ".hybrid"] {
        let mode = fs::metadata(path_with(&socket, suffix)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

#[test]
fn a_signal_prints_the_counters_of_each_device() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let mut front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
    let (_program, _connection) = front_end.accept(&path_with(&socket, ".hybrid"));
    for _ in 0..2 {
        kill_process(Pid::from_child(&serving.child), Signal::USR1).unwrap();
        let line = serving.wait_for("{\"from_guest\":{\"packets\":");
        assert!(line.contains("\"connections\":") && !line.contains("\"to_guest\":{\"packets\":0,"), "{line}");
    }
    assert_eq!(serving.end_by(Signal::TERM), Some(0));
}

#[test]
fn a_sandbox_is_the_default() {
    for (options, expected) in [(&[][..], "2"), (&["--no-sandbox"], "0")] {
        let (_folder, socket) = folder();
        let mut serving = Serving::start(&[&["--socket", &socket][..], options].concat());
        serving.wait_for("waiting for QEMU");
        let _front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
        serving.wait_for("the guest's driver is up");
        for thread in fs::read_dir(format!("/proc/{}/task", serving.child.id())).unwrap() {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap().trim();
            assert_eq!(mode, expected, "{status}");
        }
    }
}

#[test]
fn a_front_end_that_makes_it_wait_can_be_interrupted() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let mut front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
    let (_program, connection) = front_end.accept(&path_with(&socket, ".hybrid"));
    let full = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    for queue in [0, 1] {
        front_end.send_descriptor(SET_VRING_CALL, queue, full.as_fd());
    }
    // An answer shows that the back end has the descriptors.
    let _config = front_end.config();
    fcntl_setfl(&full, OFlags::empty()).unwrap();
    front_end.driver.ask_for_interrupts();
    front_end.send(&connection.header(Operation::CreditRequest), &[]);
    assert_eq!(serving.end_by(Signal::INT), Some(0));
}

#[test]
fn a_front_end_without_events_is_named_and_disconnected() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let mut front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
    let null = fs::File::open("/dev/null").unwrap();
    front_end.start_with_descriptor(1, SET_VRING_KICK, null.as_fd());
    serving.wait_for(&format!("{socket}: the front end's kick descriptor of queue 1 is no eventfd"));
    serving.wait_for("QEMU disconnected; waiting for the next one to connect");
    FrontEnd::new(UnixStream::connect(&socket).unwrap()).accept(&path_with(&socket, ".hybrid"));
}

#[test]
fn each_guest_has_its_own_sockets_and_cid() {
    let (folder, first) = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (second, one, two) = (path("g2.sock"), path("one"), path("two"));
    let options =
        ["--socket", &first, "--socket", &second, "--hybrid", &one, "--hybrid", &two, "--cid", "3", "--cid", "77"];
    let mut serving = Serving::start(&options);
    serving.wait_for("waiting for QEMU");
    serving.wait_for("waiting for QEMU");
    let mut guests = [&first, &second].map(|socket| FrontEnd::new(UnixStream::connect(socket).unwrap()));
    assert_eq!(guests.each_mut().map(|guest| u64::from_le_bytes(guest.config())), [3, 77]);
    let (_program, _connection) = guests[0].accept(Path::new(&one));
    assert_eq!(serving.end_by(Signal::TERM), Some(0));
}

/// Sets how many descriptors a process may open, and returns how many it could.
fn limit_descriptors(process: &Child, current: Option<u64>) -> Option<u64> {
    let limit = Rlimit { current, maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Some(Pid::from_child(process)), Resource::Nofile, limit).unwrap().current
}

/// Lets a serving process open no further descriptor: lower numbers are those of its sockets and signals. A limit below the
/// number of those that one `poll` waits for would make that fail, too.
fn exhaust_descriptors(process: &Child) -> Option<u64> {
    limit_descriptors(process, Some(8))
}

#[test]
fn its_limit_of_descriptors_is_the_highest() {
    let (_folder, socket) = folder();
    let mut command = Command::new("prlimit");
    command.args(["--nofile=100:200", env!("CARGO_BIN_EXE_scx-vsock"), "serve", "--socket", &socket]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().next(), Some("200"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_shortage_of_descriptors_is_reported_and_ends() {
    let (folder, first) = folder();
    let second = folder.path().join("g2.sock").to_str().unwrap().to_owned();
    // The simulated guest's CID is 3.
    let options = ["--socket", &first, "--socket", &second, "--cid", "4", "--cid", "3"];
    let mut serving = Serving::start(&options);
    serving.wait_for("waiting for QEMU");
    serving.wait_for("waiting for QEMU");
    let failed = |socket: &str| format!("scx-vsock: {socket}: cannot serve the guest: ");
    // A QEMU cannot be accepted, and is later.
    let before = exhaust_descriptors(&serving.child);
    let waiting = UnixStream::connect(&second).unwrap();
    let message = serving.wait_for(&failed(&second));
    assert!(message.contains("Too many open files") && message.ends_with("; trying again until it works"), "{message}");
    limit_descriptors(&serving.child, before);
    let mut front_end = FrontEnd::new(waiting);
    serving.wait_for(&format!("{second}: QEMU connected"));
    // Another device cannot be made for the next QEMU, and is later.
    let (_program, _connection) = front_end.accept(&path_with(&second, ".hybrid"));
    exhaust_descriptors(&serving.child);
    drop(front_end);
    serving.wait_for(&failed(&second));
    limit_descriptors(&serving.child, before);
    FrontEnd::new(UnixStream::connect(&second).unwrap()).accept(&path_with(&second, ".hybrid"));
    assert_eq!(serving.end_by(Signal::TERM), Some(0));
}

#[test]
fn programs_leave_a_front_end_its_descriptors() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let mut front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
    serving.wait_for("the guest's driver is up");
    limit_descriptors(&serving.child, Some(80));
    let hybrid = path_with(&socket, ".hybrid");
    let mut programs: Vec<UnixStream> = (0..60).map(|_| UnixStream::connect(&hybrid).unwrap()).collect();
    // There is no room for the last one, which is closed.
    let last = programs.last_mut().unwrap();
    last.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0);
    // Everything that the back end has is sent anew.
    front_end.reboot_in_other_memory();
    let refused = Connection::new(UnixStream::pair().unwrap().0, 1023, 9);
    front_end.send(&refused.header(Operation::Request), &[]);
    front_end.expect(Operation::Rst);
}

#[test]
fn a_front_end_whose_descriptors_are_lost_is_named_and_disconnected() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
    serving.wait_for("the guest's driver is up");
    let before = exhaust_descriptors(&serving.child);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    for queue in [0, 1] {
        front_end.send_descriptor(SET_VRING_CALL, queue, event.as_fd());
    }
    let message = serving.wait_for("Too many open files");
    assert!(message.starts_with(&format!("scx-vsock: {socket}: the host's kernel refuses")), "{message}");
    serving.wait_for("QEMU disconnected; waiting for the next one to connect");
    limit_descriptors(&serving.child, before);
    FrontEnd::new(UnixStream::connect(&socket).unwrap()).accept(&path_with(&socket, ".hybrid"));
    assert_eq!(serving.end_by(Signal::TERM), Some(0));
}

#[test]
fn a_ready_agent_is_reported() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let mut front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
    // A process of the guest that sends nothing delays nobody.
    connect_to_ready_port(&mut front_end, 1023);
    let ready = connect_to_ready_port(&mut front_end, 1024);
    let hello = format!("{}\n", scx_vsock_tests::agent::HELLO);
    let len = u32::try_from(hello.len()).unwrap();
    let header = scx_vsock::vsock::packet::Header { len, ..ready.header(Operation::ReadWrite) };
    front_end.send(&header, hello.as_bytes());
    serving.wait_for("the guest's agent is ready");
}

fn connect_to_ready_port(front_end: &mut FrontEnd, port: u32) -> Connection {
    let connection = Connection::new(UnixStream::pair().unwrap().0, port, scx_vsock::READY_PORT);
    front_end.send(&connection.header(Operation::Request), &[]);
    front_end.expect(Operation::Response);
    connection
}

#[test]
fn a_broken_device_works_again_after_a_reboot() {
    let (_folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let mut front_end = FrontEnd::new(UnixStream::connect(&socket).unwrap());
    front_end.driver.skip_available(TX_QUEUE, 1_000);
    front_end.kick();
    let message = serving.wait_for("the guest's driver broke a vsock queue");
    assert!(message.ends_with("; the device works again after a reboot"), "{message}");
    front_end.reboot();
    front_end.accept(&path_with(&socket, ".hybrid"));
}

/// The exit code and the one line that a command prints.
fn failure(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    (status.code(), stderr.trim_end().strip_prefix("scx-vsock: ").unwrap().to_owned())
}

#[test]
fn a_wrong_socket_path_is_named_with_its_fix() {
    let (folder, socket) = folder();
    let fails = |path: &str| failure(&mut serve(&["--socket", path]));
    let _serving = UnixListener::bind(&socket).unwrap();
    let expected = format!("{socket} is in use: end the program that listens on it, or choose another path");
    assert_eq!(fails(&socket), (Some(1), expected));
    let other = folder.path().join("other");
    let hybrid = failure(&mut serve(&["--socket", other.to_str().unwrap(), "--hybrid", &socket]));
    assert!(hybrid.1.starts_with(&format!("{socket} is in use")) && !other.exists(), "{hybrid:?}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(
        fails(file.to_str().unwrap()).1.ends_with("exists and is not a socket: move it away, or choose another path")
    );
    assert!(fails("/nowhere/g1.sock").1.ends_with("does not exist: create it, or choose another path"));
    let long = format!("/tmp/{}", "x".repeat(120));
    let (code, line) = fails(&long);
    assert_eq!(
        (code, line),
        (
            Some(1),
            format!(
                "cannot listen on {long}: the path has 125 bytes and a Unix socket's at most 107; choose a shorter one"
            )
        )
    );
}

#[test]
fn a_folder_without_permission_is_named() {
    let (folder, socket) = folder();
    // Root may write everywhere, another user may not here.
    let program = folder.path().join("scx-vsock");
    program::copy(Path::new(env!("CARGO_BIN_EXE_scx-vsock")), &program);
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), everybody).unwrap();
    let mut command = Command::new(program);
    command.args(["serve", "--socket", &socket]);
    if rustix::process::getuid().is_root() {
        command.uid(65_534).gid(65_534);
    } else {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    }
    let expected = format!(
        "permission denied to create the socket {socket}: choose a folder of your own, such as $XDG_RUNTIME_DIR"
    );
    assert_eq!(failure(&mut command), (Some(1), expected));
}

#[test]
fn wrong_arguments_are_named() {
    let message = |options: &[&str]| failure(&mut serve(options)).1;
    assert!(message(&["--socket", "a", "--cid", "2"]).contains("invalid value '2' for '--cid <CID>'"));
    assert!(message(&[]).starts_with("the following required arguments were not provided: --socket <PATH>"));
    assert!(message(&["--socket", "a", "--device-only"]).contains("--print-qemu-args"));
}

/// The words that a shell makes of a line.
fn words(line: &str) -> Vec<String> {
    let script = format!("for word in {line}; do printf '%s\\n' \"$word\"; done");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_socket_path_with_spaces_is_quoted() {
    let command = format!("{} serve --print-qemu-args --device-only --socket", env!("CARGO_BIN_EXE_scx-vsock"));
    for path in ["/tmp/a b", "/tmp/it's", "/tmp/$HOME `x` *"] {
        let output = serve(&["--socket", path, "--print-qemu-args", "--device-only"]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr, format!("scx-vsock: the arguments for {path} have quotes; use them with eval\n"));
        let words = words(&String::from_utf8(output.stdout).unwrap().replace('\n', " "));
        let chardev = format!("socket,id=scx-vsock,path={path}");
        assert_eq!(words, ["-chardev", &chardev, "-device", "vhost-user-vsock-pci,chardev=scx-vsock"]);
    }
    // A plain path needs no eval.
    let unquoted = words(&format!("$({command} '/tmp/g1')"));
    assert_eq!(unquoted.get(1).unwrap(), "socket,id=scx-vsock,path=/tmp/g1");
}

#[test]
fn arguments_are_printed_without_serving() {
    let printed = |options: &[&str]| String::from_utf8(serve(options).output().unwrap().stdout).unwrap();
    let device = "-chardev socket,id=scx-vsock,path=/tmp/g,,1 -device vhost-user-vsock-pci,chardev=scx-vsock\n";
    assert_eq!(printed(&["--socket", "/tmp/g,1", "--print-qemu-args", "--device-only"]), device);
    let memory = "-m 512M -object memory-backend-memfd,id=scx-vsock-memory,size=512M,share=on \
                  -numa node,memdev=scx-vsock-memory ";
    let all = printed(&["--socket", "/tmp/g,1", "--print-qemu-args", "--memory", "512"]);
    assert_eq!(all, format!("{memory}{device}"));
    let here = std::env::current_dir().unwrap();
    assert!(printed(&["--socket", "g", "--print-qemu-args"]).contains(&format!("path={}/g ", here.display())));
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn three_commands_read_a_hand_started_guest() {
    let (folder, socket) = folder();
    let mut serving = Serving::start(&["--socket", &socket]);
    serving.wait_for("waiting for QEMU");
    let command = env!("CARGO_BIN_EXE_scx-vsock");
    let device = format!("$({command} serve --socket {socket} --print-qemu-args)");
    let guest = builder().scheduler(program::built("procsched"), &[]).initramfs().unwrap();
    for _ in 0..2 {
        let qemu = TypedQemu::start(&guest, folder.path(), &device);
        let uri = format!("hybrid:{socket}.hybrid");
        let output = Command::new(command).args(["stats", &uri, "--wait", "120", "--over", "500ms"]).output().unwrap();
        let (numbers, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{errors}\n{}", qemu.console());
        let switches = numbers.lines().find_map(|line| line.trim().strip_prefix("delta.ctxt")).unwrap().trim();
        assert!(switches.parse::<u64>().unwrap() > 0, "{numbers}");
        drop(qemu);
        // The guest of the next QEMU is served like the first.
        serving.wait_for("QEMU disconnected");
    }
}
