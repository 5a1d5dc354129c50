//! What a program without libc has to bring itself: its entry, its memory, its memory functions, its panic handler.
#![allow(unsafe_code, reason = "the entry point, the memory functions and the initial stack have no safe form")]

#[cfg(target_arch = "x86_64")]
use core::arch::asm;
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int};
use core::iter;

use scx_vsock_agent::program::{self, Sessions};
use scx_vsock_agent::sys;

/// The C strings of a null-terminated list on the initial stack.
fn strings(list: *const *const c_char) -> impl Iterator<Item = &'static [u8]> {
    let mut next = list;
    iter::from_fn(move || {
        // SAFETY: the kernel ends both lists with a null pointer, after which this iterator never reads.
        let string = unsafe { next.read() };
        if string.is_null() {
            return None;
        }
        next = next.wrapping_add(1);
        // SAFETY: the kernel ends each string with a zero byte, and the initial stack lives as long as the process.
        Some(unsafe { CStr::from_ptr(string) }.to_bytes())
    })
}

/// The memory of the program's sessions.
struct Memory(UnsafeCell<Sessions>);

// SAFETY: the program has one thread.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(Sessions::new()));

/// The entry: hands the initial stack to `start` with the alignment of the C calling convention.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {start}", "ud2", start = sym start)
}

/// The entry: hands the initial stack to `start`.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov x29, xzr", "mov x0, sp", "bl {start}", "brk 1", start = sym start)
}

unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel puts the argument count at the stack's top.
    let count = unsafe { stack.read() };
    // The arguments stand after the count, ended by a null pointer, after which the environment stands.
    let name = stack.wrapping_add(1);
    let environment = name.wrapping_add(count + 1).cast();
    // A program can be started without even its name.
    let arguments = name.wrapping_add(count.min(1)).cast();
    // SAFETY: this function runs once, so that this is the only reference.
    let sessions = unsafe { &mut *MEMORY.0.get() };
    sys::exit(program::run(strings(arguments), strings(environment), sessions))
}

/// A panic that can be reached does not link: the symbol exists nowhere.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        fn a_panic_can_be_reached() -> !;
    }
    // SAFETY: never runs, since a program in which it could run does not link.
    unsafe { a_panic_can_be_reached() }
}

// The memory functions that the compiler calls. Their bodies are asm or volatile, so that the compiler does not turn
// them into calls of themselves.

/// Copies forward.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the calling convention.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Fills.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: c_int, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range; the direction flag is clear by the calling convention.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("eax") value,
             options(nostack, preserves_flags));
    }
    to
}

/// Copies forward.
#[cfg(not(target_arch = "x86_64"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    for at in 0..count {
        // SAFETY: the caller vouches for the range.
        let byte = unsafe { from.wrapping_add(at).read_volatile() };
        // SAFETY: the caller vouches for the range.
        unsafe { to.wrapping_add(at).write_volatile(byte) };
    }
    to
}

/// Fills.
#[cfg(not(target_arch = "x86_64"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: c_int, count: usize) -> *mut u8 {
    let [value, ..] = value.to_le_bytes();
    for at in 0..count {
        // SAFETY: the caller vouches for the range.
        unsafe { to.wrapping_add(at).write_volatile(value) };
    }
    to
}

/// Copies between ranges that may overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: the caller vouches for both ranges; a forward copy reads each byte before it overwrites it.
        return unsafe { memcpy(to, from, count) };
    }
    for at in (0..count).rev() {
        // SAFETY: the caller vouches for the range.
        let byte = unsafe { from.wrapping_add(at).read_volatile() };
        // SAFETY: the caller vouches for the range; a backward copy reads each byte before it overwrites it.
        unsafe { to.wrapping_add(at).write_volatile(byte) };
    }
    to
}

/// Compares.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> c_int {
    for at in 0..count {
        // SAFETY: the caller vouches for the range.
        let left = unsafe { left.wrapping_add(at).read_volatile() };
        // SAFETY: the caller vouches for the range.
        let right = unsafe { right.wrapping_add(at).read_volatile() };
        if left != right {
            return c_int::from(left) - c_int::from(right);
        }
    }
    0
}

/// Compares for equality.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> c_int {
    // SAFETY: the caller vouches for both ranges.
    unsafe { memcmp(left, right, count) }
}

/// The length of a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const c_char) -> usize {
    let mut length = 0;
    // SAFETY: the caller vouches for a zero byte at the string's end, after which nothing is read.
    while unsafe { string.wrapping_add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
