//! QEMU guests with all that is compared: this project's agent, socat, an echo, and what measures inside.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scx_vsock::guest::{Guest, GuestBuilder};
use scx_vsock::{Connect, SchedStatsClient};
use scx_vsock_tests::back_end::BackEnd;
use scx_vsock_tests::guest::{TypedQemu, builder};
use scx_vsock_tests::peer::Peer;
use scx_vsock_tests::traffic::wait_and_accept;
use scx_vsock_tests::vsock_latency::{ECHO, INSIDE, SERIAL, SOCAT, median, requests};

use crate::measure::Bench;

/// How long a guest may take until its scheduler answers.
pub const BOOTS: Duration = Duration::from_secs(120);

/// Returns the path of a program that was built together with this one.
pub fn sibling(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(name)
}

/// Returns the path of a program that `ci/bench` installs.
pub fn program(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| format!("ci/bench installs {name}")).unwrap()
}

/// Returns a guest with a scheduler that uses little CPU time, and with all that is compared.
pub fn image() -> GuestBuilder {
    builder()
        .module("virtio_console")
        .scheduler(sibling("guest_peer"), &["latency"])
        .program(program("socat"), "/bin/socat")
}

/// Returns the line of a request whose answer has so many bytes, its LF counted.
pub fn request(answer: usize) -> String {
    format!("{{\"req\":\"stats\",\"args\":{{\"target\":\"{answer}\"}}}}\n")
}

/// Returns the median microseconds of requests inside the guest, measured by the program at the other end of `port`.
fn time_inside(port: &UnixStream, answer: usize, times: usize) -> f64 {
    let mut writer = port;
    writer.write_all(format!("{times} {}", request(answer)).as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(port).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

/// A guest behind this project's device, with its agent.
pub struct OurGuest {
    client: SchedStatsClient,
    inside: UnixStream,
    _guest: Guest,
}

impl OurGuest {
    /// Boots it.
    pub fn boot() -> Self {
        let guest = image().boot().unwrap();
        let client = guest.client();
        client.wait_for_scheduler(BOOTS).unwrap();
        let inside = UnixStream::from(guest.handle().port(INSIDE).connect().unwrap());
        inside.set_nonblocking(false).unwrap();
        Self { client, inside, _guest: guest }
    }

    /// Returns the median microseconds of requests from the host.
    pub fn round_trip(&self, answer: usize, times: usize) -> f64 {
        let line = request(answer);
        median(times, || self.client.request_raw(line.trim_end().as_bytes()).map(drop)).unwrap()
    }

    /// Returns the median microseconds of requests inside the guest.
    pub fn inside(&self, answer: usize, times: usize) -> f64 {
        time_inside(&self.inside, answer, times)
    }
}

/// The same guest behind vhost-device-vsock, with socat, and with a virtio-serial port, which a relay with std serves.
pub struct PeerGuest {
    relay: UnixStream,
    serial: UnixStream,
    inside: UnixStream,
    echo: UnixStream,
    _qemu: TypedQemu,
    _back_end: BackEnd,
}

impl PeerGuest {
    /// Boots it.
    pub fn boot(bench: &Bench) -> Self {
        let back_end = BackEnd::vhost_device_vsock();
        let socket = back_end.socket();
        // The port's host end is connected from the start: without one the guest reads the end.
        let port = back_end.folder().join("serial");
        let listener = UnixListener::bind(&port).unwrap();
        let device = format!(
            "$({} serve --socket {} --print-qemu-args) -device virtio-serial-pci -chardev socket,id=serial,path={} \
             -device virtserialport,chardev=serial,name={SERIAL}",
            bench.command.display(),
            socket.display(),
            port.display()
        );
        let qemu = TypedQemu::start(&image().initramfs().unwrap(), back_end.folder(), &device);
        let serial = wait_and_accept(&OwnedFd::from(listener)).unwrap();
        wait_for_scheduler(&bench.command, &back_end.hybrid());
        let inside = connect_hybrid(&back_end, INSIDE);
        let [relay, echo] = [SOCAT, ECHO].map(|port| connect_hybrid(&back_end, port));
        Self { relay, serial, inside, echo, _qemu: qemu, _back_end: back_end }
    }

    /// Returns the median microseconds of requests from the host, by vsock.
    pub fn round_trip(&self, answer: usize, times: usize) -> f64 {
        requests(&self.relay, &request(answer), times).unwrap()
    }

    /// Returns the median microseconds of requests from the host, by the virtio-serial port.
    pub fn serial_round_trip(&self, answer: usize, times: usize) -> f64 {
        requests(&self.serial, &request(answer), times).unwrap()
    }

    /// Returns the median microseconds of requests inside the guest.
    pub fn inside(&self, answer: usize, times: usize) -> f64 {
        time_inside(&self.inside, answer, times)
    }

    /// Returns the median microseconds of echoes of 100 bytes.
    pub fn echo(&self, times: usize) -> f64 {
        requests(&self.echo, &format!("{}\n", "x".repeat(99)), times).unwrap()
    }
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
