//! A guest's hybrid socket: programs of the host on one side, a simulated guest on the other, both ways.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::task::Poll;
use std::time::{Duration, Instant};

use scx_vsock::client::{PollClient, decode};
use scx_vsock::endpoint::hybrid::MAX_CONNECT_BYTES;
use scx_vsock::io::{Deadline, OwnedUnixListener};
use scx_vsock::transport::vhost_user::Server;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::unix_bridge::{MAX_CONNECTING, UnixBridge};
use scx_vsock::{Connect, Endpoint, SchedStatsClient, StatsRequest};
use scx_vsock_tests::agent::HELLO;
use scx_vsock_tests::front_end::FrontEnd;
use scx_vsock_tests::guest_driver::{CID, Connection};
use scx_vsock_tests::peer::{DEADLINE, Peer};
use serde_json::{Value, json};
use tempfile::TempDir;

const PORT: u32 = 729;

/// A served guest with its hybrid socket. The guest's driver runs once its front end is there.
struct Served {
    folder: TempDir,
    server: Server,
    hybrid: UnixBridge,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vhost")).unwrap();
        let server = Server::start(listener, CID).unwrap();
        let path = folder.path().join("hybrid");
        let hybrid = UnixBridge::start(OwnedUnixListener::bind(&path).unwrap()).unwrap();
        server.handle().set_uds_path(&path);
        hybrid.set_guest(server.handle());
        Self { folder, server, hybrid }
    }

    fn boot(&self) -> FrontEnd {
        FrontEnd::new(UnixStream::connect(self.folder.path().join("vhost")).unwrap())
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("hybrid")
    }

    fn program(&self) -> Peer {
        Peer::connect(&self.path())
    }
}

/// The guest's side of what a program asked for.
fn requested(front_end: &mut FrontEnd, program: &Peer) -> Connection {
    let request = front_end.expect(Operation::Request);
    assert_eq!(request.header.dst_port, PORT);
    Connection::new(program.stream().try_clone().unwrap(), PORT, request.header.src_port)
}

/// The guest accepts, and the program receives its OK line.
fn accepted(front_end: &mut FrontEnd, program: &mut Peer) -> Connection {
    let connection = requested(front_end, program);
    front_end.send(&connection.header(Operation::Response), &[]);
    program.expect(format!("OK {}", connection.host_port));
    connection
}

fn say(front_end: &mut FrontEnd, connection: &Connection, payload: &[u8]) {
    let len = u32::try_from(payload.len()).unwrap();
    front_end.send(&Header { len, ..connection.header(Operation::ReadWrite) }, payload);
}

#[test]
fn a_program_is_connected_once_the_guest_accepts() {
    let served = Served::new();
    let mut front_end = served.boot();
    let mut program = served.program();
    program.send("CONNECT 729\n");
    let connection = accepted(&mut front_end, &mut program);
    program.send("to the guest");
    assert_eq!(front_end.expect(Operation::ReadWrite).payload, b"to the guest");
    say(&mut front_end, &connection, b"to the host\n");
    program.expect("to the host");
}

#[test]
fn a_program_that_waits_before_the_bridge_starts_has_its_guest() {
    let served = Served::new();
    let mut front_end = served.boot();
    for turn in 0..50 {
        let path = served.folder.path().join(format!("early-{turn}"));
        let socket = OwnedUnixListener::bind(&path).unwrap();
        let mut program = Peer::connect(&path);
        program.send("CONNECT 729\n");
        let _bridge = UnixBridge::start_for(socket, served.server.handle()).unwrap();
        let connection = accepted(&mut front_end, &mut program);
        front_end.send(&connection.header(Operation::Rst), &[]);
        program.expect_end();
    }
}

#[test]
fn bytes_after_the_line_reach_the_guest() {
    let served = Served::new();
    let mut front_end = served.boot();
    for pieces in [&["CONNECT 729\nearly"][..], &["CONN", "ECT 7", "29", "\nearly"]] {
        let mut program = served.program();
        pieces.iter().for_each(|piece| program.send(piece));
        let connection = accepted(&mut front_end, &mut program);
        assert_eq!(front_end.expect(Operation::ReadWrite).payload, b"early");
        front_end.send(&connection.header(Operation::Rst), &[]);
        program.expect_end();
    }
}

#[test]
fn guest_bytes_come_after_ok() {
    let served = Served::new();
    let mut front_end = served.boot();
    let mut program = served.program();
    program.send("CONNECT 729\n");
    let connection = requested(&mut front_end, &program);
    assert!(front_end.queue(&connection.header(Operation::Response), &[]));
    say(&mut front_end, &connection, b"hello\n");
    program.expect(format!("OK {}", connection.host_port));
    program.expect("hello");
}

#[test]
fn a_guest_that_refuses_is_the_end_without_ok() {
    let served = Served::new();
    let mut front_end = served.boot();
    let mut program = served.program();
    program.send("CONNECT 729\n");
    let connection = requested(&mut front_end, &program);
    front_end.send(&connection.header(Operation::Rst), &[]);
    program.expect_end();
}

#[test]
fn a_program_waits_for_the_guest_to_boot() {
    let served = Served::new();
    let mut program = served.program();
    program.send("CONNECT 729\nearly");
    let mut front_end = served.boot();
    accepted(&mut front_end, &mut program);
    assert_eq!(front_end.expect(Operation::ReadWrite).payload, b"early");
}

#[test]
fn connect_lines_are_read_as_other_vmms_read_them() {
    let served = Served::new();
    let mut front_end = served.boot();
    let mut connected = Vec::new();
    for line in ["connect 729\n", "CONNECT 729\r\n", "CONNECT  729\n", "CONNECT 729 \n"] {
        let mut program = served.program();
        program.send(line);
        let connection = accepted(&mut front_end, &mut program);
        program.send("to the guest");
        assert_eq!(front_end.expect(Operation::ReadWrite).payload, b"to the guest", "{line:?}");
        connected.push((program, connection));
    }
}

#[test]
fn a_program_that_closes_at_once_has_sent_its_bytes() {
    let served = Served::new();
    let mut front_end = served.boot();
    for _ in 0..20 {
        let mut program = served.program();
        program.send("CONNECT 729\nhasty");
        drop(program);
        let request = front_end.expect(Operation::Request);
        let connection = Connection::new(UnixStream::pair().unwrap().0, PORT, request.header.src_port);
        front_end.send(&connection.header(Operation::Response), &[]);
        front_end.expect(Operation::Shutdown);
        assert_eq!(front_end.expect(Operation::ReadWrite).payload, b"hasty");
        front_end.expect(Operation::Shutdown);
        front_end.send(&connection.header(Operation::Rst), &[]);
    }
}

#[test]
fn other_lines_end_the_stream() {
    let served = Served::new();
    for line in ["\n", "GET / HTTP/1.1\r\n\r\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT -729\n"] {
        let mut program = served.program();
        program.send(line);
        program.expect_end();
    }
    let mut endless = served.program();
    let _may_be_closed = endless.try_send("C".repeat(MAX_CONNECT_BYTES));
    endless.expect_end();
    let mut silent = served.program();
    silent.finish();
    silent.expect_end();
}

#[test]
fn programs_that_close_early_harm_nobody() {
    let served = Served::new();
    let mut front_end = served.boot();
    drop(served.program());
    let mut half = served.program();
    half.send("CONN");
    drop(half);
    let mut gone = served.program();
    gone.send("CONNECT 729\n");
    let connection = requested(&mut front_end, &gone);
    let Connection { guest_port, host_port, .. } = connection;
    // The last end of the program's stream.
    drop((gone, connection));
    let reset = front_end.expect(Operation::Rst);
    assert_eq!((reset.header.src_port, reset.header.dst_port), (host_port, guest_port));
    let mut next = served.program();
    next.send("CONNECT 729\n");
    accepted(&mut front_end, &mut next);
}

#[test]
fn connecting_programs_are_bounded() {
    let served = Served::new();
    let mut front_end = served.boot();
    let idle: Vec<Peer> = (0..MAX_CONNECTING).map(|_| served.program()).collect();
    let mut last = served.program();
    last.send("CONNECT 729\n");
    drop(idle);
    accepted(&mut front_end, &mut last);
}

#[test]
fn a_half_close_leaves_the_other_direction() {
    let served = Served::new();
    let mut front_end = served.boot();
    let mut program = served.program();
    program.send("CONNECT 729\n");
    let connection = accepted(&mut front_end, &mut program);
    program.stream().shutdown(Shutdown::Write).unwrap();
    front_end.expect(Operation::Shutdown);
    say(&mut front_end, &connection, b"still\n");
    program.expect("still");
}

#[test]
fn a_guest_reaches_the_socket_of_its_port() {
    let served = Served::new();
    let mut front_end = served.boot();
    let listener = UnixListener::bind(served.folder.path().join("hybrid_5000")).unwrap();
    let connection = Connection::new(UnixStream::pair().unwrap().0, 1024, 5000);
    front_end.send(&connection.header(Operation::Request), &[]);
    front_end.expect(Operation::Response);
    let mut program = Peer::accept(&listener);
    say(&mut front_end, &connection, b"from the guest\n");
    program.expect("from the guest");
    program.send("to the guest");
    assert_eq!(front_end.expect(Operation::ReadWrite).payload, b"to the guest");
}

#[test]
fn a_port_without_a_program_refuses() {
    let served = Served::new();
    let mut front_end = served.boot();
    drop(UnixListener::bind(served.folder.path().join("hybrid_6")).unwrap());
    for port in [5, 6] {
        let connection = Connection::new(UnixStream::pair().unwrap().0, 1024, port);
        front_end.send(&connection.header(Operation::Request), &[]);
        front_end.expect(Operation::Rst);
    }
    // A listener of this process is connected where no program listens at the path.
    let listener = served.server.handle().listen(5).unwrap();
    let connection = Connection::new(UnixStream::pair().unwrap().0, 1025, 5);
    front_end.send(&connection.header(Operation::Request), &[]);
    front_end.expect(Operation::Response);
    listener.accept_within(DEADLINE).unwrap();
}

#[test]
fn our_client_reaches_an_agent_through_it() {
    let served = Served::new();
    let mut front_end = served.boot();
    let endpoint = Endpoint::Hybrid { path: served.path(), port: PORT };
    let asks =
        std::thread::spawn(move || SchedStatsClient::builder(endpoint).deadline(DEADLINE).build().stats(&[]).unwrap());
    let request = front_end.expect(Operation::Request);
    let connection = Connection::new(UnixStream::pair().unwrap().0, PORT, request.header.src_port);
    front_end.send(&connection.header(Operation::Response), &[]);
    say(&mut front_end, &connection, format!("{HELLO}\n").as_bytes());
    assert!(front_end.expect(Operation::ReadWrite).payload.starts_with(br#"{"req":"stats""#));
    say(&mut front_end, &connection, b"{\"stats\":{\"args\":{\"resp\":1}}}\n");
    assert_eq!(asks.join().unwrap(), json!(1));
}

/// Why a request that is asked of `agent` now has no answer a second later, after `meanwhile`.
fn unanswered(agent: impl Connect + 'static, meanwhile: impl FnOnce()) -> String {
    let now = Instant::now();
    let mut client = PollClient::new(agent);
    let deadline = Deadline::after(now, Duration::from_secs(1));
    client.start(StatsRequest::stats(&[]).line().unwrap(), deadline).unwrap();
    assert!(client.on_ready(now, decode::resp::<Value>).is_pending());
    meanwhile();
    let Poll::Ready(outcome) = client.on_ready(now + Duration::from_secs(1), decode::resp::<Value>) else {
        panic!("the deadline has passed")
    };
    outcome.unwrap_err().to_string()
}

#[test]
fn a_client_hears_that_no_driver_is_up_yet() {
    let served = Served::new();
    let in_process = unanswered(served.server.handle().agent(), || {});
    assert!(in_process.contains("no driver yet: no vsock driver of the guest has taken the request"), "{in_process}");
    let through_socket = unanswered(Endpoint::Hybrid { path: served.path(), port: PORT }, || {});
    assert!(through_socket.contains("the VMM has not replied to CONNECT 729 within 1000 ms"), "{through_socket}");
}

#[test]
fn a_client_hears_that_the_guest_does_not_answer() {
    let served = Served::new();
    let mut front_end = served.boot();
    let silent = unanswered(served.server.handle().agent(), || drop(front_end.expect(Operation::Request)));
    assert!(silent.contains("no connection within 1000 ms"), "{silent}");
    front_end.expect(Operation::Rst);
    let mute = unanswered(served.server.handle().agent(), || {
        let request = front_end.expect(Operation::Request);
        front_end.send(&request.reply(Operation::Response), &[]);
        // It has taken the response once it sends what waited for that.
        front_end.expect(Operation::ReadWrite);
    });
    assert!(mute.contains("connected, but no hello within 1000 ms"), "{mute}");
}

#[test]
fn the_next_guest_takes_over_the_socket() {
    let mut served = Served::new();
    let mut front_end = served.boot();
    let mut program = served.program();
    program.send("CONNECT 729\n");
    accepted(&mut front_end, &mut program);
    drop(front_end);
    program.expect_end();
    let path = served.folder.path().join("vhost");
    std::fs::remove_file(&path).unwrap();
    served.server = Server::start(UnixListener::bind(&path).unwrap(), CID).unwrap();
    served.hybrid.set_guest(served.server.handle());
    let mut front_end = served.boot();
    let mut next = served.program();
    next.send("CONNECT 729\n");
    accepted(&mut front_end, &mut next);
}

#[test]
fn a_server_without_a_front_end_ends_at_once() {
    let served = Served::new();
    let mut program = served.program();
    program.send("CONNECT 729\n");
    drop(served.server);
    program.expect_end();
    drop(served.hybrid);
    assert!(!served.folder.path().join("hybrid").exists());
}
