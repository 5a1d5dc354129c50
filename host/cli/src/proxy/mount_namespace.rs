//! A mount namespace in which a command finds a scheduler's socket of its own.
//!
//! The child process enters the namespace, mounts an empty file system over the folder of scx sockets (created if it is not
//! there), binds the socket there and then executes the command. This process serves the socket: the descriptor was created before the fork, so
//! that both have it. The socket has no name outside of the namespace, and is gone with it.
//!
//! An ordinary user enters a user namespace as well, in which the user and group ids stay the same. Root does not, and
//! keeps its capabilities.
#![allow(unsafe_code, reason = "a namespace is entered between fork and exec")]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Error, Result, bail, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Pid, Signal, getegid, geteuid, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use scx_vsock_wire::limits::SCHEDULER_SOCKET;

use crate::signals;

/// The most clients that wait to be accepted.
const BACKLOG: i32 = 64;

/// The fix where the kernel refuses namespaces.
const FIX: &str = "allow user namespaces (sysctl user.max_user_namespaces=10000 and, where they exist, \
                   kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0), run this as \
                   root, or use --socket PATH instead of a command";

/// Starts `command`, and returns it with the listener of its clients, or the error of executing it.
///
/// # Errors
///
/// The namespace cannot be set up.
pub fn spawn(mut command: Command) -> Result<io::Result<(Child, UnixListener)>> {
    let threads = fs::read_dir("/proc/self/task").context("cannot read /proc/self/task; mount /proc")?.count();
    ensure!(
        threads == 1,
        "this process has {threads} threads, and a command can only be started from one with a single thread"
    );
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let (mut report, report_writer) = io::pipe()?;
    let entry = Entry { socket: socket.try_clone()?, report: report_writer, parent: getpid() };
    // SAFETY: this process has one thread, as is checked above, so that no other thread can hold a lock that the child
    // would wait for.
    unsafe { command.pre_exec(move || entry.enter_or_report()) };
    let spawned = command.spawn();
    // It owns this process's writing end of the pipe.
    drop(command);
    let mut text = String::new();
    report.read_to_string(&mut text)?;
    if !text.is_empty() {
        bail!("{text}");
    }
    Ok(spawned.map(|child| (child, UnixListener::from(socket))))
}

/// What the child process does before it executes the command.
struct Entry {
    socket: OwnedFd,
    /// Where an error is written, for the parent to read.
    report: io::PipeWriter,
    parent: Pid,
}

impl Entry {
    fn enter_or_report(&self) -> io::Result<()> {
        self.enter().map_err(|error| {
            // It fails only if the parent has ended.
            let _written = (&self.report).write_all(format!("{error:#}").as_bytes());
            io::Error::other("the error is in the report")
        })
    }

    fn enter(&self) -> Result<()> {
        unshare().and_then(|()| self.create_socket()).map_err(with_fix)?;
        set_parent_process_death_signal(Some(Signal::TERM))?;
        ensure!(getppid() == Some(self.parent), "the proxy has ended");
        signals::unblock_all()
    }

    fn create_socket(&self) -> Result<()> {
        // Mounts must not propagate to other namespaces.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("cannot make mounts private")?;
        hide_scx_sockets()?;
        fs::create_dir_all(socket_ancestor(1))?;
        bind(&self.socket, &SocketAddrUnix::new(SCHEDULER_SOCKET)?)
            .with_context(|| format!("cannot bind {SCHEDULER_SOCKET}"))?;
        Ok(listen(&self.socket, BACKLOG)?)
    }
}

fn with_fix(error: Error) -> Error {
    let refused = error.chain().any(|cause| {
        let errno = cause.downcast_ref::<Errno>().copied();
        let errno = errno.or_else(|| cause.downcast_ref::<io::Error>().and_then(Errno::from_io_error));
        matches!(errno, Some(Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::USERS | Errno::NOSYS))
    });
    let fix = if refused { format!("; {FIX}") } else { String::new() };
    Error::msg(format!("cannot create a scheduler's socket for the command: {error:#}{fix}"))
}

/// Enters a mount namespace, and a user namespace where that is needed.
fn unshare() -> Result<()> {
    // SAFETY: no descriptor table is unshared.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
        Err(Errno::PERM) => {}
        other => return other.context("cannot create a mount namespace"),
    }
    let (user, group) = (geteuid(), getegid());
    // SAFETY: no descriptor table is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }.context("cannot create a user namespace")?;
    write("/proc/self/uid_map", &format!("{user} {user} 1"))?;
    // The kernel requires this before an ordinary user maps its group.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/gid_map", &format!("{group} {group} 1"))
}

fn write(path: &str, text: &str) -> Result<()> {
    File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {path}"))
}

/// An ancestor of the socket: 1 is the folder of the socket, 2 that of scx, 3 that of all programs, 4 the one above.
fn socket_ancestor(levels: usize) -> &'static Path {
    Path::new(SCHEDULER_SOCKET).ancestors().nth(levels).unwrap_or(Path::new("/"))
}

/// Mounts an empty file system over the folder of scx sockets, which is created if it is not there. Where this user may not
/// create it, mounts one of its own into a copy of the folders above.
fn hide_scx_sockets() -> Result<()> {
    let folder = socket_ancestor(2);
    match fs::create_dir(folder).or_else(|error| if folder.is_dir() { Ok(()) } else { Err(error) }) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            copy_folders_above(folder)?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot create {}", folder.display())),
    }
    mount_empty(folder)
}

/// Creates the folder in a copy of its parent: a read-only file system whose entries are those of the original, as mounts.
///
/// The parent is most often a link to `/run`. Then the link's own folder is copied instead, with a folder of links to the
/// entries of `/run` in place of the link. `/run` itself stays as it is, so that CMD can write there, and sees what others
/// write.
fn copy_folders_above(folder: &Path) -> Result<()> {
    let parent = socket_ancestor(3);
    let target = fs::canonicalize(parent).with_context(|| format!("cannot open {}", parent.display()))?;
    let copied = if target == parent { parent } else { socket_ancestor(4) };
    mount_with_same_entries(copied, |entry| entry != parent)?;
    if copied != parent {
        fs::create_dir(parent)?;
        for entry in fs::read_dir(&target).with_context(|| format!("cannot read {}", target.display()))? {
            let name = entry?.file_name();
            symlink(target.join(&name), parent.join(&name))?;
        }
    }
    fs::create_dir(folder)?;
    mount_remount(copied, MountFlags::BIND | MountFlags::RDONLY | FLAGS, c"")
        .with_context(|| format!("cannot make {} read-only", copied.display()))
}

/// The flags of file systems that have sockets and mount points only.
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

fn mount_empty(folder: &Path) -> Result<()> {
    mount("scx-vsock", folder, "tmpfs", FLAGS, c"mode=755,size=1m")
        .with_context(|| format!("cannot mount over {}", folder.display()))
}

/// Mounts a file system over a folder that has the same entries, if they are `wanted`.
fn mount_with_same_entries(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<()> {
    let original = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let original_path = format!("/proc/self/fd/{}", original.as_raw_fd());
    mount_empty(folder)?;
    for entry in fs::read_dir(&original_path).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if !wanted(&path) {
            continue;
        }
        match bind_entry(&entry, &path) {
            // It was removed in the meantime.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other.with_context(|| format!("cannot mount {}", path.display()))?,
        }
    }
    Ok(())
}

/// Mounts an entry of the original folder at `path`.
fn bind_entry(entry: &fs::DirEntry, path: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        return symlink(fs::read_link(entry.path())?, path);
    }
    if kind.is_dir() {
        fs::create_dir(path)?;
    } else {
        File::create_new(path)?;
    }
    Ok(mount_bind_recursive(entry.path(), path)?)
}
