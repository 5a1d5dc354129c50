//! What it costs to cross from the host into a QEMU guest, against vhost-device-vsock with socat, and an echo.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scx_vsock::Connect;
use scx_vsock::guest::qemu::{Guest, GuestBuilder};
use scx_vsock_tests::back_end::BackEnd;
use scx_vsock_tests::guest::{TypedQemu, builder};
use scx_vsock_tests::peer::Peer;
use scx_vsock_tests::vsock_latency::{ECHO, INSIDE, REQUEST, SOCAT, median, requests};

use crate::row::{Goal, Row};
use crate::{Measure, Programs};

/// Measurements.
pub const ALL: &[Measure] = &[("crossing", crossing), ("crossing-floor", crossing_floor)];

/// Round trips of one measurement.
const TIMES: usize = 300;

/// Measurements whose middle counts: a guest that is emulated does not run evenly.
const ROUNDS: usize = 7;

const BOOTS: Duration = Duration::from_secs(120);

/// One of the programs that were built together with this one.
fn beside_this(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(name)
}

fn socat() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("socat")).find(|path| path.exists());
    found.expect("socat is installed by ci/bench")
}

/// A guest with a scheduler that costs little, and all that is compared.
fn image() -> GuestBuilder {
    let scheduler = beside_this("layersched");
    builder()
        .scheduler(beside_this("guest_peer"), &["crossing", "/bin/layersched"])
        .program(scheduler, "/bin/layersched")
        .program(socat(), "/bin/socat")
}

/// Microseconds of a request inside the guest, which is asked over a stream to its port for that.
fn inside(stream: &UnixStream) -> f64 {
    let mut writer = stream;
    writer.write_all(format!("{TIMES}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

/// Connects to a port of the guest.
fn dial(endpoint: &impl Connect) -> UnixStream {
    let stream = UnixStream::from(endpoint.connect().unwrap());
    stream.set_nonblocking(false).unwrap();
    stream
}

/// What our device and agent add to a request inside the guest, and an echo over vsock.
fn ours() -> (Vec<f64>, Vec<f64>) {
    let guest: Guest = image().boot().unwrap();
    guest.client().wait_for_scheduler(BOOTS).unwrap();
    let client = guest.client();
    let inside_port = dial(&guest.handle().port(INSIDE));
    let echo_port = dial(&guest.handle().port(ECHO));
    let (mut added, mut echo) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let outside = median(TIMES, || client.request_raw(REQUEST.trim_end().as_bytes()).map(drop)).unwrap();
        added.push(outside - inside(&inside_port));
        echo.push(requests(&echo_port, &format!("{}\n", "x".repeat(99)), TIMES).unwrap());
    }
    (added, echo)
}

/// What vhost-device-vsock and socat add.
fn theirs(programs: &Programs) -> Vec<f64> {
    let back_end = BackEnd::vhost_device_vsock();
    let socket = back_end.socket();
    let device = format!("$({} serve --socket {} --print-qemu-args)", programs.command.display(), socket.display());
    let _qemu = TypedQemu::start(&image().initramfs().unwrap(), back_end.folder(), &device);
    wait_for(&programs.command, &back_end.hybrid());
    let inside_port = hybrid(&back_end, INSIDE);
    let mut added = Vec::new();
    // The first of them gives socat the time to start.
    inside(&inside_port);
    let relay = hybrid(&back_end, SOCAT);
    for _ in 0..ROUNDS {
        let outside = requests(&relay, REQUEST, TIMES).unwrap();
        added.push(outside - inside(&inside_port));
    }
    added
}

/// Waits until the guest's scheduler answers.
fn wait_for(command: &Path, hybrid: &Path) {
    let uri = format!("hybrid:{}", hybrid.display());
    let output = Command::new(command).args(["stats", &uri, "--wait", "120", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn hybrid(back_end: &BackEnd, port: u32) -> UnixStream {
    let mut program = Peer::connect(&back_end.hybrid());
    program.send(format!("CONNECT {port}\n"));
    let answer = program.line();
    assert!(answer.starts_with(b"OK "), "port {port}: {}", String::from_utf8_lossy(&answer));
    program.stream().try_clone().unwrap()
}

fn crossing(programs: &Programs) -> Row {
    let (mut ours, _) = ours();
    let name = "added by crossing into a guest / vhost-device-vsock + socat, us";
    Row::of(name, &mut ours, &mut theirs(programs), Goal::Ratio(0.5))
}

fn crossing_floor(_: &Programs) -> Row {
    let (mut ours, mut echo) = ours();
    Row::of("added by crossing into a guest / an echo over vsock, us", &mut ours, &mut echo, Goal::Ratio(1.3))
}
