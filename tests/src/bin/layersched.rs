//! A stand-in scheduler with layers and constant stats, for guests whose stats must differ from those of others.
//!
//! ```text
//! layersched
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use scx_vsock_tests::meta_scheduler::{answer, meta, stats};
use scx_vsock_wire::limits::SCHEDULER_SOCKET;

fn main() -> Result<(), Box<dyn Error>> {
    let socket = Path::new(SCHEDULER_SOCKET);
    std::fs::create_dir_all(socket.parent().ok_or("the socket has a folder")?)?;
    for stream in UnixListener::bind(socket)?.incoming() {
        let stream = stream?;
        thread::spawn(move || serve(stream));
    }
    Ok(())
}

fn serve(mut stream: UnixStream) -> std::io::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        let resp = if line?.contains("stats_meta") { meta() } else { stats() };
        stream.write_all(answer(&resp).as_bytes())?;
    }
    Ok(())
}
