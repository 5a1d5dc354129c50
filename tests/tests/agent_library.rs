//! The agent's library in an event loop of somebody else's.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "the agent's descriptor is only a number")]

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use scx_vsock_agent::{Agent, Config, Map, Storage, Turn};
use scx_vsock_tests::agent::hello;
use scx_vsock_tests::peer::Peer;

#[test]
fn an_init_with_an_event_loop_of_its_own_runs_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (host_path, stats_path) = (folder.path().join("host"), folder.path().join("stats"));
    let listener = UnixListener::bind(&host_path).unwrap();
    let scheduler = UnixListener::bind(&stats_path).unwrap();
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut storage = Box::new(Storage::<2, 4096>::new());
            let mut config = Config::default();
            config.maps.clear();
            config.maps.push(Map { port: 0, socket: stats_path.as_os_str().as_bytes() }).unwrap();
            config.listeners.push(listener.into_raw_fd()).unwrap();
            let mut agent = Agent::new(&mut storage, &config).unwrap();
            loop {
                while agent.turn().unwrap() == Turn::More {}
                // SAFETY: the agent outlives this borrow of its descriptor.
                let events = unsafe { BorrowedFd::borrow_raw(agent.fd()) };
                let mut fds = [PollFd::from_borrowed_fd(events, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
                poll(&mut fds, None).unwrap();
                let [_, stopped] = fds;
                if !stopped.revents().is_empty() {
                    return;
                }
            }
        });
        let _stop = StopOnDrop(&stop);
        let mut schedulers = Vec::new();
        let mut hosts: Vec<Peer> = (0..2).map(|_| Peer::connect(&host_path)).collect();
        for host in &mut hosts {
            host.expect(hello().replace("262144", "4096"));
            host.send("short\n");
            let mut stats = Peer::accept(&scheduler);
            stats.expect("short");
            stats.send("1\n");
            host.expect(r#"{"stats":1}"#);
            // The caps of this agent are those of its type.
            host.send([&[b'x'; 4096][..], b"\n"].concat());
            host.expect(r#"{"relay_error":{"request_too_large":{"size":4097,"max":4096}}}"#);
            schedulers.push(stats);
        }
        let mut third = Peer::connect(&host_path);
        third.expect(r#"{"relay_error":{"busy":{"sessions":2}}}"#);
    });
}

/// Stops the agent's thread on drop, also when the test has failed.
struct StopOnDrop<'a>(&'a OwnedFd);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        rustix::io::write(self.0, &1u64.to_ne_bytes()).unwrap();
    }
}
