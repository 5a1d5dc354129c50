//! A straightforward relay with std and one thread per connection, the reference for the agent's benchmark rows.
//!
//! ```text
//! relay_std --map 0=PATH --listen-fd 10      (the listener is inherited as descriptor 10)
//! ```
#![allow(unsafe_code, reason = "an inherited descriptor has no safe form")]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use scx_vsock_wire::{Envelope, MAX_RESPONSE_BYTES, Text};

/// Where the listener is inherited.
const LISTENER: i32 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let map = std::env::args().nth(2).ok_or("usage: relay_std --map 0=PATH --listen-fd 10")?;
    let (_, path) = map.split_once('=').ok_or("a map is PORT=PATH")?;
    // SAFETY: whoever starts this program passes a listener as this descriptor, and nothing else here owns it.
    let listener = unsafe { UnixListener::from_raw_fd(LISTENER) };
    for host in listener.incoming() {
        let (host, path) = (host?, path.to_owned());
        thread::spawn(move || {
            // The failure of one session does not end the others.
            let _ended = relay(&host, &path);
        });
    }
    Ok(())
}

fn relay(mut host: &UnixStream, path: &str) -> Result<(), Box<dyn Error>> {
    host.write_all(&Envelope::hello(Text::first_line(b"0.0.0"), Text::EMPTY, MAX_RESPONSE_BYTES).emit())?;
    let mut requests = BufReader::new(host);
    let mut line = Vec::new();
    let mut scheduler: Option<BufReader<UnixStream>> = None;
    while requests.read_until(b'\n', &mut line)? > 0 {
        let scheduler = match &mut scheduler {
            Some(scheduler) => scheduler,
            None => scheduler.insert(BufReader::new(UnixStream::connect(path)?)),
        };
        scheduler.get_mut().write_all(&line)?;
        line.clear();
        scheduler.read_until(b'\n', &mut line)?;
        let answer = [b"{\"stats\":", line.trim_ascii_end(), b"}\n"].concat();
        host.write_all(&answer)?;
        line.clear();
    }
    Ok(())
}
