//! A command that has a scheduler's socket of its own.
//!
//! The command is started in a mount namespace in which a small file system covers the folder of scx sockets. The
//! socket is made there, by the command's process before it becomes the command, and served by this process: the two
//! share it from before there was a command. So it has no name outside the namespace, and goes with it.
//!
//! An ordinary user may do that in a user namespace, in which the user stays who it is. Root needs none, and keeps its
//! powers.
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
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Pid, Signal, getegid, geteuid, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use scx_vsock_wire::limits::SCHEDULER_SOCKET;

use crate::signals;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// What mends a kernel that refuses namespaces.
const MEND: &str = "this host keeps ordinary users from namespaces; allow them (sysctl user.max_user_namespaces=10000, \
                    kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0, where the \
                    host has these), run this as root, or use --socket PATH without a command";

/// Starts `command`; gives it and the listener of its clients, or why it could not be run.
///
/// # Errors
///
/// What keeps it from having a namespace.
pub fn spawn(mut command: Command) -> Result<io::Result<(Child, UnixListener)>> {
    let threads = fs::read_dir("/proc/self/task").context("/proc is not mounted: mount it")?.count();
    ensure!(threads == 1, "a command can only be started while this process has one thread, and it has {threads}");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let (mut error_report, complains) = io::pipe()?;
    let entry = Entry { socket: socket.try_clone()?, complains, parent: getpid() };
    // SAFETY: this process has one thread, as was found above, so that the child is a whole copy of it, in which no
    // lock is held by a thread that is not there.
    unsafe { command.pre_exec(move || entry.enter_or_complain()) };
    let spawned = command.spawn();
    // With it goes this process's end of the pipe.
    drop(command);
    let mut text = String::new();
    error_report.read_to_string(&mut text)?;
    if !text.is_empty() {
        bail!("{text}");
    }
    Ok(spawned.map(|child| (child, UnixListener::from(socket))))
}

/// What the command's process does before it becomes the command.
struct Entry {
    socket: OwnedFd,
    complains: io::PipeWriter,
    parent: Pid,
}

impl Entry {
    fn enter_or_complain(&self) -> io::Result<()> {
        self.enter().map_err(|error| {
            // Nobody but the parent could be told, which ended then.
            let _heard = (&self.complains).write_all(format!("{error:#}").as_bytes());
            io::Error::other("the parent was told")
        })
    }

    fn enter(&self) -> Result<()> {
        unshare().and_then(|()| self.make_socket()).map_err(with_mend)?;
        set_parent_process_death_signal(Some(Signal::TERM))?;
        ensure!(getppid() == Some(self.parent), "the proxy ended");
        signals::give_back()
    }

    fn make_socket(&self) -> Result<()> {
        // What is mounted here is nobody else's to see.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("cannot make mounts private")?;
        cover()?;
        fs::create_dir_all(above(1))?;
        bind(&self.socket, &SocketAddrUnix::new(SCHEDULER_SOCKET)?).context(SCHEDULER_SOCKET)?;
        Ok(listen(&self.socket, BACKLOG)?)
    }
}

fn with_mend(error: Error) -> Error {
    let refused = error.chain().any(|cause| {
        let errno = cause.downcast_ref::<Errno>().copied();
        let errno = errno.or_else(|| cause.downcast_ref::<io::Error>().and_then(Errno::from_io_error));
        matches!(errno, Some(Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::USERS | Errno::NOSYS))
    });
    let mend = if refused { format!("; {MEND}") } else { String::new() };
    Error::msg(format!("cannot give the command a socket of its own: {error:#}{mend}"))
}

/// Enters a mount namespace, and a user namespace where that is needed.
fn unshare() -> Result<()> {
    // SAFETY: no descriptor table is unshared.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
        Err(Errno::PERM) => {}
        other => return other.context("mount namespace"),
    }
    let (user, group) = (geteuid(), getegid());
    // SAFETY: no descriptor table is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }.context("user namespace")?;
    write("/proc/self/uid_map", &format!("{user} {user} 1"))?;
    // Without this the kernel lets no ordinary user map its group.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/gid_map", &format!("{group} {group} 1"))
}

fn write(path: &str, text: &str) -> Result<()> {
    File::options().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes())).context(path.to_owned())
}

/// The folder so far above where schedulers serve their stats: of a scheduler's socket, of all such folders, of those of
/// other programs.
fn above(levels: usize) -> &'static Path {
    Path::new(SCHEDULER_SOCKET).ancestors().nth(levels).unwrap_or(Path::new("/"))
}

/// Covers the folder of scx sockets with an empty one; where it is not there, the folder above it with one that has
/// everything that is in it.
fn cover() -> Result<()> {
    let (folder, parent) = (above(2), above(3));
    match fs::canonicalize(folder) {
        Ok(folder) => cover_with_nothing(&folder),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let found = fs::canonicalize(parent).with_context(|| format!("{} (make that folder)", parent.display()));
            cover_with_the_same(&found?)
        }
        Err(error) => Err(error).with_context(|| folder.display().to_string()),
    }
}

fn cover_with_nothing(folder: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("scx-vsock", folder, "tmpfs", flags, c"mode=755,size=1m")
        .with_context(|| format!("mounting {}", folder.display()))
}

fn cover_with_the_same(folder: &Path) -> Result<()> {
    let covered = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let below = format!("/proc/self/fd/{}", covered.as_raw_fd());
    cover_with_nothing(folder)?;
    for entry in fs::read_dir(&below).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let place = folder.join(entry.file_name());
        match show(&entry, &place) {
            // It went in the meantime.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other.with_context(|| place.display().to_string())?,
        }
    }
    Ok(())
}

/// Lets an entry of the covered folder be seen at `place`.
fn show(entry: &fs::DirEntry, place: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        return symlink(fs::read_link(entry.path())?, place);
    }
    if kind.is_dir() {
        fs::create_dir(place)?;
    } else {
        File::create_new(place)?;
    }
    Ok(mount_bind_recursive(entry.path(), place)?)
}
