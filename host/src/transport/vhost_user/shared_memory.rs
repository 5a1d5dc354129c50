//! Guest memory whose file a front end in another process shares, and may truncate at any time.
//!
//! The kernel copes with that where it copies payload. But rings, headers and buffered bytes are read and written by plain
//! loads and stores, and one to a page that its file no longer has raises SIGBUS, which ends the process and every other
//! guest's device in it. So the mapped regions are on a list, and a handler of that signal replaces a region on it by empty
//! memory: the device then finds its rings empty, and [`Watch::is_gone`] returns why. A signal for any other address goes
//! to the handler before.
#![allow(unsafe_code, reason = "a signal handler, and the mapping that it replaces")]

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::io::lock::lock;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Regions of all front ends of the process.
const MAX_REGIONS: usize = 4096;

/// The list. A handler may not take a lock, so each entry is read by itself.
static REGIONS: [Region; MAX_REGIONS] = [const { Region::unused() }; MAX_REGIONS];

/// Who changes the list.
static CHANGES: Mutex<()> = Mutex::new(());

/// What handled the signal before, or why it cannot be handled.
static BEFORE: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

/// A mapped region: addresses from `start` to `end`; unused while `end` is 0.
#[derive(Debug)]
struct Region {
    start: AtomicUsize,
    end: AtomicUsize,
    gone: AtomicBool,
}

impl Region {
    const fn unused() -> Self {
        Self { start: AtomicUsize::new(0), end: AtomicUsize::new(0), gone: AtomicBool::new(false) }
    }

    fn set(&self, start: usize, end: usize) {
        self.gone.store(false, Ordering::Relaxed);
        self.start.store(start, Ordering::Release);
        self.end.store(end, Ordering::Release);
    }

    fn bounds(&self) -> Option<(usize, usize)> {
        let end = self.end.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        // Another end by now is another region.
        (end != 0 && end == self.end.load(Ordering::Acquire)).then_some((start, end))
    }
}

/// Keeps the regions of one guest's memory on the list. To be dropped before that memory is unmapped.
#[derive(Debug)]
pub(super) struct Watch(Vec<&'static Region>);

impl Watch {
    /// Watches this memory.
    ///
    /// # Errors
    ///
    /// The kernel's, if the signal cannot be handled; `OutOfMemory` if the list is full.
    pub(super) fn new(memory: &GuestMemoryMmap) -> io::Result<Self> {
        handle_signal()?;
        let _changing = lock(&CHANGES);
        let mut unused = REGIONS.iter().filter(|region| region.bounds().is_none());
        let mut watch = Self(Vec::with_capacity(memory.num_regions()));
        for mapped in memory.iter() {
            let region = unused.next().ok_or_else(|| {
                io::Error::new(
                    ErrorKind::OutOfMemory,
                    format!("{MAX_REGIONS} regions of guest memory are mapped already"),
                )
            })?;
            let start = mapped.as_ptr().expose_provenance();
            region.set(start, start.saturating_add(usize::try_from(mapped.len()).unwrap_or(0)));
            watch.0.push(region);
        }
        Ok(watch)
    }

    /// Whether a region was found truncated; it is empty from then on.
    pub(super) fn is_gone(&self) -> bool {
        self.0.iter().any(|region| region.gone.load(Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for region in &self.0 {
            region.end.store(0, Ordering::Release);
        }
    }
}

/// Handles the signal from now on.
fn handle_signal() -> io::Result<()> {
    let before = BEFORE.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
        let mut action = plain_action(handler as *const () as usize);
        // On the thread's own stack for signals, since Rust's threads have one.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        replace_action(&action)
    });
    before.as_ref().map(|_| ()).map_err(|&errno| io::Error::from_raw_os_error(errno))
}

fn plain_action(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all zeros are a value of this plain structure: no flags, no signal blocked.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action
}

/// Installs an action. Returns the one before it.
fn replace_action(action: &libc::sigaction) -> Result<libc::sigaction, i32> {
    let mut before = plain_action(libc::SIG_DFL);
    // SAFETY: both point to whole structures, and the handlers that are installed here are sound for any signal.
    let failed = unsafe { libc::sigaction(libc::SIGBUS, action, &raw mut before) };
    if failed == 0 { Ok(before) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) }
}

/// Does only what a handler may: loads and stores of atomics, and system calls.
extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole structure.
    let about = unsafe { *info };
    // SAFETY: the field is there for a signal of a fault, and plain bytes for any other.
    let address = unsafe { about.si_addr() }.addr();
    if about.si_code != libc::BUS_ADRERR || !replace_region(address) {
        pass_on(signal, info, context);
    }
}

/// Replaces the region on the list that has this address by empty memory. Returns false if there is none.
fn replace_region(address: usize) -> bool {
    let found = REGIONS.iter().find_map(|region| {
        let (start, end) = region.bounds()?;
        (start..end).contains(&address).then_some((region, start, end))
    });
    let Some((region, start, end)) = found else { return false };
    let size = end - start;
    let start: *mut libc::c_void = ptr::with_exposed_provenance_mut(start);
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: errno belongs to this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: the range is one whole mapping of guest memory, which its user keeps mapped while it is on the list; guest
    // memory has no invariants that new contents could break.
    let mapped = unsafe { libc::mmap(start, size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    // SAFETY: errno belongs to this thread.
    unsafe { *errno = before };
    let replaced = mapped == start;
    if replaced {
        region.gone.store(true, Ordering::Relaxed);
    }
    replaced
}

/// Passes the signal on to the handler before. Where there was none, it ends the process.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(Ok(before)) = BEFORE.get() else { return end(signal) };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => end(signal),
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the kernel was given this address as that of a handler with three arguments.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the kernel was given this address as that of a handler with one argument.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

fn end(signal: libc::c_int) {
    let _default = replace_action(&plain_action(libc::SIG_DFL));
    // SAFETY: a plain system call. The signal is blocked here and so comes when the handler returns.
    unsafe { libc::raise(signal) };
}
