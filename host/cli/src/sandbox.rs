//! A process that serves for a long time keeps only the system calls that it needs from then on.
//!
//! The list is for all threads, for good, and inherited (`no_new_privs`, seccomp). A call outside of it is not made: the
//! kernel sends SIGSYS instead, whose handler says which call it was and ends the process. Of the calls in the list, some
//! are in it only with certain arguments: sockets of the families of guests and their programs, files for reading, memory
//! that is not executable.
#![allow(unsafe_code, reason = "a signal handler")]

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

/// Calls that are in the list with any arguments.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv2,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Those that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[libc::c_long] = &[];

/// Families of sockets: those of programs of the host, and of guests.
const FAMILIES: [libc::c_int; 2] = [libc::AF_UNIX, libc::AF_VSOCK];

/// Names of memory and threads, which the C library sets.
const PROCESS_OPTIONS: [libc::c_int; 2] = [libc::PR_SET_NAME, libc::PR_SET_VMA];

/// Keeps the calls in the list, for all threads.
///
/// # Errors
///
/// The kernel's, if it has no seccomp.
pub fn enter() -> Result<()> {
    handle_signal().context("cannot handle SIGSYS")?;
    let list = filter(listed()?, SeccompAction::Trap, SeccompAction::Allow)?;
    let reading = filter(written()?, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.unsigned_abs()))?;
    for program in [reading, list] {
        apply_filter_all_threads(&program).context("cannot restrict the system calls; --no-sandbox does without")?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn filter(rules: Rules, other: SeccompAction, matching: SeccompAction) -> Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, other, matching, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

/// The list.
fn listed() -> Result<Rules> {
    let mut rules: Rules = ALLOWED.iter().chain(LEGACY).map(|&call| (call, Vec::new())).collect();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, FAMILIES.iter().map(|&family| first_is(family)).collect::<Result<_>>()?);
    }
    rules.insert(libc::SYS_prctl, PROCESS_OPTIONS.iter().map(|&option| first_is(option)).collect::<Result<_>>()?);
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![masked(2, executable, 0)?]);
    }
    for call in OPEN_CALLS {
        rules.insert(call.0, Vec::new());
    }
    Ok(rules)
}

/// The calls that open a file, and which argument has the flags.
const OPEN_CALLS: &[(libc::c_long, u8)] = &[
    (libc::SYS_openat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
];

/// Calls that open a file to write. They fail: what tries them can do without.
fn written() -> Result<Rules> {
    let mode = u64::from(libc::O_ACCMODE.unsigned_abs());
    let create = u64::from(libc::O_CREAT.unsigned_abs());
    let mut rules = Rules::new();
    for &(call, flags) in OPEN_CALLS {
        let for_writing = [libc::O_WRONLY, libc::O_RDWR].map(|how| masked(flags, mode, u64::from(how.unsigned_abs())));
        let creating = masked(flags, create, create);
        rules.insert(call, for_writing.into_iter().chain([creating]).collect::<Result<_>>()?);
    }
    Ok(rules)
}

fn first_is(value: libc::c_int) -> Result<SeccompRule> {
    let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value.unsigned_abs()))?;
    Ok(SeccompRule::new(vec![is])?)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule> {
    let is = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)?;
    Ok(SeccompRule::new(vec![is])?)
}

fn handle_signal() -> Result<()> {
    let action = SigAction::new(SigHandler::SigAction(on_signal), SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: the handler does only what a handler may.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
    Ok(())
}

/// `siginfo_t` of SIGSYS, which the C library's crate does not have.
#[repr(C)]
struct RefusedCall {
    header: [libc::c_int; 4],
    address: *const libc::c_void,
    number: libc::c_int,
}

/// Writes one line, without allocating, and ends the process.
extern "C" fn on_signal(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole structure, whose union has these fields for this signal.
    let number = unsafe { (*info.cast::<RefusedCall>()).number };
    let mut digits = [0; 10];
    for part in [
        &b"scx-vsock: the sandbox refused system call "[..],
        decimal(number.unsigned_abs(), &mut digits),
        b": ended; --no-sandbox runs without the sandbox\n",
    ] {
        // SAFETY: the slice is readable.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(1) }
}

/// Writes a number to the end of `digits`, and returns it.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut first = digits.len();
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        first = index;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::eprintln;
    use std::fs::{self, File};
    use std::io;
    use std::net::UdpSocket;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Output};
    use std::thread;

    /// Runs a test of this file that ends its process.
    fn run_alone(name: &str) -> Output {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "--nocapture", &format!("sandbox::tests::{name}")]);
        child.output().unwrap()
    }

    fn refused(name: &str, call: libc::c_long) {
        let output = run_alone(name);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let expected =
            format!("scx-vsock: the sandbox refused system call {call}: ended; --no-sandbox runs without the sandbox");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&expected), "{stderr}");
        assert!(!stderr.contains("went on"), "{stderr}");
    }

    #[test]
    #[ignore = "ends its process: the test below runs it in one of its own"]
    fn runs_a_program() {
        enter().unwrap();
        let _status = Command::new("sh").args(["-c", "echo it ran >&2"]).status();
        eprintln!("went on");
    }

    #[test]
    #[ignore = "ends its process: the test below runs it in one of its own"]
    fn reaches_the_network() {
        enter().unwrap();
        let _socket = UdpSocket::bind("127.0.0.1:0");
        eprintln!("went on");
    }

    #[test]
    #[ignore = "ends its process: the test below runs it in one of its own"]
    fn listens_on_another_thread() {
        let folder = tempfile::tempdir().unwrap();
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let path = folder.path().join("socket");
        let thread = thread::spawn(move || {
            receive.recv().unwrap();
            let _listener = UnixListener::bind(path);
            eprintln!("went on");
        });
        enter().unwrap();
        send.send(()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_call_outside_the_list_ends_the_process_with_a_message() {
        refused("reaches_the_network", libc::SYS_socket);
        refused("listens_on_another_thread", libc::SYS_bind);
    }

    #[test]
    fn no_program_can_be_run() {
        let output = run_alone("runs_a_program");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("the sandbox refused system call ") && !stderr.contains("it ran"), "{stderr}");
    }

    #[test]
    #[ignore = "changes its process: the test below runs it in one of its own"]
    fn does_what_a_server_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        enter().unwrap();
        let client = thread::spawn(move || UnixStream::connect(path).unwrap());
        listener.accept().unwrap();
        client.join().unwrap();
        fs::read("/proc/self/status").unwrap();
        let denied = File::create(folder.path().join("file")).unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        fs::remove_file(folder.path().join("socket")).unwrap();
        eprintln!("served");
    }

    #[test]
    fn a_server_works_within_the_list() {
        let output = run_alone("does_what_a_server_does");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("served"), "{stderr}");
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 41, 435, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
