//! A program that is a guest's vsock device, as a process.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::yield_now;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tempfile::TempDir;

use crate::agent::repository;
use crate::peer::DEADLINE;

/// A vhost-user device and its hybrid socket. Killed on drop.
#[derive(Debug)]
pub struct BackEnd {
    folder: TempDir,
    child: Child,
}

impl BackEnd {
    /// The rust-vmm project's own.
    #[must_use]
    pub fn vhost_device_vsock() -> Self {
        let built = Command::new(repository().join("ci/tool")).arg("vhost-device-vsock").output().expect("it runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self::start(String::from_utf8_lossy(&built.stdout).trim().as_ref(), |command, socket, hybrid| {
            command.arg("--socket").arg(socket).arg("--uds-path").arg(hybrid).env("RUST_LOG", "error");
        })
    }

    /// `scx-vsock serve`.
    #[must_use]
    pub fn serve(program: &Path) -> Self {
        Self::start(program, |command, socket, hybrid| {
            command.arg("serve").arg("--socket").arg(socket).arg("--hybrid").arg(hybrid).stderr(Stdio::null());
        })
    }

    /// Starts the program and waits until its sockets are there: a new file in their folder is an event.
    fn start(program: &Path, arguments: impl FnOnce(&mut Command, &Path, &Path)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let inotify = inotify::init(CreateFlags::CLOEXEC).expect("files can be watched");
        inotify::add_watch(&inotify, folder.path(), WatchFlags::CREATE).expect("the folder can be watched");
        let mut command = Command::new(program);
        arguments(&mut command, &socket(&folder), &hybrid(&folder));
        let child = command.stdin(Stdio::null()).spawn().expect("the device starts");
        let back_end = Self { folder, child };
        let mut events = [MaybeUninit::uninit(); 4096];
        while !(back_end.socket().exists() && back_end.hybrid().exists()) {
            let within = Timespec::try_from(DEADLINE).expect("a short deadline");
            let ready = poll(&mut [PollFd::new(&inotify, PollFlags::IN)], Some(&within)).expect("poll works");
            assert_eq!(ready, 1, "no sockets within {DEADLINE:?}");
            let _read = Reader::new(&inotify, &mut events).next().expect("an event");
        }
        back_end
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where a front end connects.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(&self.folder)
    }

    /// Where programs of the host connect.
    #[must_use]
    pub fn hybrid(&self) -> PathBuf {
        hybrid(&self.folder)
    }

    /// The folder of both, which goes with the device.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A connection for a front end.
    ///
    /// # Panics
    ///
    /// When the device is gone.
    #[must_use]
    pub fn connect(&self) -> UnixStream {
        let until = Instant::now() + DEADLINE;
        loop {
            match UnixStream::connect(self.socket()) {
                // Between its `bind` and its `listen` the device is a few instructions away, which is no event.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < until => yield_now(),
                connected => return connected.expect("the device listens"),
            }
        }
    }
}

fn socket(folder: &TempDir) -> PathBuf {
    folder.path().join("device")
}

fn hybrid(folder: &TempDir) -> PathBuf {
    folder.path().join("hybrid")
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}
