//! The guest's side of tests that need a program of their own in the guest.
//!
//! ```text
//! guest_peer ask SOCKET REQUEST          sends a line to a Unix socket and prints the line that answers it
//! guest_peer traffic BYTES               the guest's side of the fixtures' `traffic`, with so many bytes each way on each
//!                                        connection; prints how many short connections it made meanwhile
//! guest_peer interrupt PID               sends SIGINT to a process and waits for its end
//! guest_peer kill PID                    sends SIGKILL to a process and waits for its end
//! guest_peer hello CID PORT              connects to a port over vsock and prints the first line
//! guest_peer hold CID PORT               connects to a port over vsock, sends a line, and prints how the connection
//!                                        ends: closed or reset
//! guest_peer echo PORT COUNT              connects to the host's PORT once it listens there itself, accepts so many
//!                                        connections, sends each what it brings, and says when all have ended
//! guest_peer activate PORT PROGRAM       prints "listening" and runs a program with the listener, as socket activation
//!                                        does
//! guest_peer latency                     the guest's side of the fixtures' `vsock_latency`: a scheduler that costs little,
//!                                        an echo, socat, a relay of a virtio-serial port, and what measures inside
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's output")]
#![allow(unsafe_code, reason = "a descriptor changes its owner, and an option that no crate has")]

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use scx_vsock::{Connect, Endpoint};
use scx_vsock_agent::sys::listen_vsock;
use scx_vsock_tests::traffic::{self, Side};
use scx_vsock_tests::vsock_latency;
use scx_vsock_wire::limits::SCHEDULER_SOCKET;

/// The host's CID, in any guest (`VMADDR_CID_HOST`).
const HOST_CID: u32 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["ask", socket, request] => ask(socket, request),
        ["traffic", bytes] => traffic(bytes),
        ["interrupt", process] => signal(process, Signal::INT),
        ["kill", process] => signal(process, Signal::KILL),
        ["hello", cid, port] => hello(cid, port),
        ["hold", cid, port] => hold(cid, port),
        ["echo", port, count] => echo(port, count),
        ["latency"] => latency(),
        ["activate", port, program] => activate(port, program),
        _ => Err("wrong arguments: see the top of this program's source".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest_peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(socket: &str, request: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line)?;
    Ok(std::io::stdout().write_all(&line)?)
}

/// The guest's side of [`traffic`].
struct Guest;

impl Side for Guest {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        Endpoint::Vsock { cid: HOST_CID, port }.connect()
    }

    fn shrink(&self, stream: &UnixStream) -> io::Result<()> {
        set_buffer_size(stream, 4096)
    }

    fn number(&self) -> u64 {
        0
    }
}

fn traffic(bytes: &str) -> Result<(), Box<dyn Error>> {
    let bytes = bytes.parse()?;
    let (transfers, passing) = (listen(traffic::TRANSFERS)?, listen(traffic::PASSING)?);
    let control = traffic::connected(&Guest, traffic::TRANSFERS)?;
    println!("{}", traffic::run(&Guest, &control, &transfers, &passing, bytes)?);
    Ok(())
}

/// Returns a blocking listener.
fn listen(port: u32) -> Result<OwnedFd, Box<dyn Error>> {
    let listener = listen_vsock(port, 64);
    if listener < 0 {
        return Err(format!("port {port}: {}", io::Error::from_raw_os_error(-listener)).into());
    }
    // SAFETY: the descriptor is open and nobody else's.
    let owned = unsafe { OwnedFd::from_raw_fd(listener) };
    // The agent's are not.
    rustix::io::ioctl_fionbio(&owned, false)?;
    Ok(owned)
}

/// Sets how many bytes of a connection the kernel buffers until they are read (`SO_VM_SOCKETS_BUFFER_SIZE`).
fn set_buffer_size(stream: &UnixStream, bytes: u64) -> io::Result<()> {
    const SIZE_OPTION: i32 = 0;
    let length = u32::try_from(size_of_val(&bytes)).map_err(io::Error::other)?;
    // SAFETY: the option's value is a whole u64 that outlives the call, which only reads it.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::AF_VSOCK, SIZE_OPTION, std::ptr::from_ref(&bytes).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn connect(cid: u32, port: u32) -> Result<UnixStream, Box<dyn Error>> {
    let stream = Endpoint::Vsock { cid, port }.connect()?;
    poll(&mut [PollFd::new(&stream, PollFlags::OUT)], None)?;
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn hello(cid: &str, port: &str) -> Result<(), Box<dyn Error>> {
    let mut line = String::new();
    BufReader::new(connect(cid.parse()?, port.parse()?)?).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}

fn hold(cid: &str, port: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = connect(cid.parse()?, port.parse()?)?;
    stream.write_all(b"held\n")?;
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => println!("closed"),
        // A read that begins after the reset fails with ENOTCONN.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::NotConnected) => println!("reset"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn echo(port: &str, count: &str) -> Result<(), Box<dyn Error>> {
    let listener = listen(port.parse()?)?;
    let _listening = connect(HOST_CID, port.parse()?)?;
    let count: usize = count.parse()?;
    thread::scope(|scope| {
        for _ in 0..count {
            let stream = UnixStream::from(rustix::net::accept(&listener)?);
            // However it ends.
            scope.spawn(move || io::copy(&mut &stream, &mut &stream).map_or(0, |copied| copied));
        }
        Ok::<(), io::Error>(())
    })?;
    println!("{count} ended");
    Ok(())
}

fn activate(port: &str, program: &str) -> Result<(), Box<dyn Error>> {
    let parent_fd = listen(port.parse()?)?;
    println!("listening");
    let mut command = Command::new(program);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", std::process::id().to_string());
    command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }])?;
    Err(command.exec().into())
}

fn latency() -> Result<(), Box<dyn Error>> {
    vsock_latency::serve(listen(vsock_latency::ECHO)?, |line| Ok(line.to_owned()));
    vsock_latency::serve(listen(vsock_latency::INSIDE)?, |line| {
        let (times, request) = line.split_once(' ').ok_or(ErrorKind::InvalidData)?;
        let times = times.parse().map_err(io::Error::other)?;
        let inside = vsock_latency::requests(&UnixStream::connect(SCHEDULER_SOCKET)?, request, times)?;
        Ok(format!("{inside}\n"))
    });
    let socket = Path::new(SCHEDULER_SOCKET);
    std::fs::create_dir_all(socket.parent().ok_or("the socket has a folder")?)?;
    let scheduler = UnixListener::bind(socket)?;
    // A listener of its own, as with VSOCK-LISTEN and fork, would be there some time after this program's.
    vsock_latency::accept_all(listen(vsock_latency::SOCAT)?, |stream| {
        let mut relay = Command::new("socat");
        relay.args(["FD:0", &format!("UNIX-CONNECT:{SCHEDULER_SOCKET}")]).stdin(OwnedFd::from(stream));
        if let Err(error) = relay.spawn() {
            eprintln!("guest_peer: cannot start socat: {error}");
        }
    });
    if let Some(port) = vsock_latency::serial_port() {
        let port = File::options().read(true).write(true).open(port)?;
        thread::spawn(move || vsock_latency::relay(&port, &UnixStream::connect(SCHEDULER_SOCKET)?));
    }
    for stream in scheduler.incoming() {
        let stream = stream?;
        thread::spawn(move || vsock_latency::answer_in_sizes(&stream));
    }
    Ok(())
}

fn signal(process: &str, signal: Signal) -> Result<(), Box<dyn Error>> {
    let id = Pid::from_raw(process.parse()?).ok_or("0 is no process")?;
    let process = pidfd_open(id, PidfdFlags::empty())?;
    pidfd_send_signal(&process, signal)?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    Ok(())
}
