//! The latency that vsock adds to a request to a QEMU guest, against vhost-device-vsock with socat, and an echo.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scx_vsock::Connect;
use scx_vsock::guest::{Guest, GuestBuilder};
use scx_vsock_tests::back_end::BackEnd;
use scx_vsock_tests::guest::{TypedQemu, builder};
use scx_vsock_tests::peer::Peer;
use scx_vsock_tests::vsock_latency::{ECHO, INSIDE, REQUEST, SOCAT, median, requests};

use crate::measure::{Measure, Programs};
use crate::row::{Goal, Row};

/// The rows of this module.
pub const ALL: &[Measure] = &[("added-latency", added_latency), ("added-latency-floor", added_latency_floor)];

/// The number of round trips of one measurement.
const TIMES: usize = 300;

/// The number of measurements, whose median counts: an emulated guest does not run evenly.
const ROUNDS: usize = 7;

const BOOTS: Duration = Duration::from_secs(120);

/// Returns the path of a program that was built together with this one.
fn sibling(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(name)
}

fn socat() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("socat")).find(|path| path.exists());
    found.expect("socat is installed by ci/bench")
}

/// Returns a guest with a scheduler that uses little CPU time, and with all that is compared.
fn image() -> GuestBuilder {
    let scheduler = sibling("layersched");
    builder()
        .scheduler(sibling("guest_peer"), &["latency", "/bin/layersched"])
        .program(scheduler, "/bin/layersched")
        .program(socat(), "/bin/socat")
}

/// Returns the median microseconds of a request inside the guest, measured by the program at the other end of `stream`.
fn latency_inside(stream: &UnixStream) -> f64 {
    let mut writer = stream;
    writer.write_all(format!("{TIMES}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

/// Connects to a port of the guest, with blocking reads.
fn connect(endpoint: &impl Connect) -> UnixStream {
    let stream = UnixStream::from(endpoint.connect().unwrap());
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Returns the latencies that this project's device and agent add, and those of an echo over vsock.
fn added_by_ours() -> (Vec<f64>, Vec<f64>) {
    let guest: Guest = image().boot().unwrap();
    guest.client().wait_for_scheduler(BOOTS).unwrap();
    let client = guest.client();
    let inside_port = connect(&guest.handle().port(INSIDE));
    let echo_port = connect(&guest.handle().port(ECHO));
    let (mut added, mut echo) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let outside = median(TIMES, || client.request_raw(REQUEST.trim_end().as_bytes()).map(drop)).unwrap();
        added.push(outside - latency_inside(&inside_port));
        echo.push(requests(&echo_port, &format!("{}\n", "x".repeat(99)), TIMES).unwrap());
    }
    (added, echo)
}

/// Returns the latencies that vhost-device-vsock and socat add.
fn added_by_theirs(programs: &Programs) -> Vec<f64> {
    let back_end = BackEnd::vhost_device_vsock();
    let socket = back_end.socket();
    let device = format!("$({} serve --socket {} --print-qemu-args)", programs.command.display(), socket.display());
    let _qemu = TypedQemu::start(&image().initramfs().unwrap(), back_end.folder(), &device);
    wait_for_scheduler(&programs.command, &back_end.hybrid());
    let inside_port = connect_hybrid(&back_end, INSIDE);
    let mut added = Vec::new();
    // By the end of this, socat has started.
    latency_inside(&inside_port);
    let relay = connect_hybrid(&back_end, SOCAT);
    for _ in 0..ROUNDS {
        let outside = requests(&relay, REQUEST, TIMES).unwrap();
        added.push(outside - latency_inside(&inside_port));
    }
    added
}

/// Waits until the guest's scheduler answers.
fn wait_for_scheduler(command: &Path, hybrid: &Path) {
    let uri = format!("hybrid:{}", hybrid.display());
    let output = Command::new(command).args(["stats", &uri, "--wait", "120", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Connects to a port of the guest through the back end's hybrid socket.
fn connect_hybrid(back_end: &BackEnd, port: u32) -> UnixStream {
    let mut host = Peer::connect(&back_end.hybrid());
    host.send(format!("CONNECT {port}\n"));
    let answer = host.line();
    assert!(answer.starts_with(b"OK "), "port {port}: {}", String::from_utf8_lossy(&answer));
    host.stream().try_clone().unwrap()
}

fn added_latency(programs: &Programs) -> Row {
    let (mut ours, _) = added_by_ours();
    let name = "latency added by vsock / by vhost-device-vsock + socat, us";
    Row::median(name, &mut ours, &mut added_by_theirs(programs), Goal::Ratio(0.5))
}

fn added_latency_floor(_: &Programs) -> Row {
    let (mut ours, mut echo) = added_by_ours();
    Row::median("latency added by vsock / an echo over vsock, us", &mut ours, &mut echo, Goal::Ratio(1.3))
}
