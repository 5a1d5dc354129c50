//! Socket pairs that one thread copies between, by one epoll: what serving many guests costs without a device.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::gettid;
use scx_vsock_tests::agent::time_of;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The host's and the guest's end of a connection, with the thread in between.
pub struct BarePair {
    /// The host's end.
    pub host: UnixStream,
    /// The guest's end.
    pub guest: UnixStream,
}

/// A thread that copies what comes at one end of each connection to its other end. It ends once a connection is closed.
pub struct CopyingThread {
    thread: Option<JoinHandle<()>>,
    id: String,
}

impl CopyingThread {
    /// Returns so many connections, and the thread.
    pub fn serving(count: usize) -> (Vec<BarePair>, Self) {
        let epoll = Epoll::new().unwrap();
        let mut streams = Vec::new();
        let pairs = (0..count)
            .map(|_| {
                let [(host, outer), (guest, inner)] = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
                for stream in [outer, inner] {
                    let readable = EpollEvent::new(EventSet::IN, streams.len() as u64);
                    epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), readable).unwrap();
                    streams.push(stream);
                }
                BarePair { host, guest }
            })
            .collect();
        let (say, said) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            say.send(gettid().to_string()).unwrap();
            copy(&epoll, &streams);
        });
        (pairs, Self { thread: Some(thread), id: said.recv().unwrap() })
    }

    /// How long the thread has run.
    pub fn processor_time(&self) -> Duration {
        time_of(&format!("/proc/self/task/{}/schedstat", self.id))
    }

    /// Waits for its end, after a connection was closed.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn copy(epoll: &Epoll, streams: &[UnixStream]) {
    let mut events = [EpollEvent::default(); 64];
    let mut bytes = [0; 4096];
    loop {
        let count = epoll.wait(-1, &mut events).unwrap();
        for event in &events[..count] {
            let from = event.data() as usize;
            let length = (&streams[from]).read(&mut bytes).unwrap();
            if length == 0 {
                return;
            }
            // Both ends of a connection are next to each other.
            (&streams[from ^ 1]).write_all(&bytes[..length]).unwrap();
        }
    }
}
