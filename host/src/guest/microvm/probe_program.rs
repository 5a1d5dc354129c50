//! The probe's guest: 64-bit code that writes the number of each step to a port once the step is done.
#![allow(unsafe_code, reason = "the program's bytes lie between two labels")]

use std::arch::global_asm;
use std::slice;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{HIGH, LOCAL_APIC, PAGE_TABLES};

/// The port that the program writes to.
pub(super) const PORT: u16 = 0x10;

/// How often the last step's loop, of two instructions, is repeated.
pub(super) const ROUNDS: u32 = 4_000_000;

/// The program's address.
pub(super) const CODE: u64 = HIGH.0;
/// The end of its stack.
pub(super) const STACK: u64 = 0x1_0000;
/// The interrupt descriptor table, and its size.
pub(super) const IDT: u64 = 0xd000;
pub(super) const IDT_BYTES: u16 = 4096;

/// Maps the interrupt controller, in the fourth GiB.
const LAST_TABLE: u64 = 0xc000;

/// The timer's interrupt.
const VECTOR: u8 = 0x40;
/// What the model-specific register is to keep: it holds an address, which nothing uses here.
const PATTERN: u32 = 0x1234_5678;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// The timer's time, in nanoseconds of KVM's timer.
const TIMER: u32 = 1_000_000;

global_asm!(
    ".pushsection .rodata",
    "scx_probe_begin:",
    "mov al, 1",
    "out {port}, al",
    // SSE: all ones equal themselves.
    "pxor xmm0, xmm0",
    "pcmpeqd xmm0, xmm0",
    "movq rax, xmm0",
    "cmp rax, -1",
    "jne 9f",
    "mov al, 2",
    "out {port}, al",
    "mov ecx, {register}",
    "mov eax, {pattern}",
    "xor edx, edx",
    "wrmsr",
    "xor eax, eax",
    "rdmsr",
    "cmp eax, {pattern}",
    "jne 9f",
    "mov al, 3",
    "out {port}, al",
    // The interrupt controller: enabled, and its timer once, undivided.
    "mov ebx, {local_apic}",
    "xor edi, edi",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x3e0], 0xb",
    "mov dword ptr [rbx + 0x320], {vector}",
    "mov dword ptr [rbx + 0x380], {timer}",
    "2:",
    "cli",
    "test edi, edi",
    "jnz 3f",
    // No interrupt comes between these two.
    "sti",
    "hlt",
    "jmp 2b",
    "3:",
    "mov al, 4",
    "out {port}, al",
    "mov ecx, {rounds}",
    "4:",
    "dec ecx",
    "jnz 4b",
    "mov al, 5",
    "out {port}, al",
    "9:",
    "mov al, 0xff",
    "out {port}, al",
    "jmp 9b",
    "scx_probe_interrupt:",
    "inc edi",
    "mov dword ptr [rbx + 0xb0], 0",
    "iretq",
    "scx_probe_end:",
    ".popsection",
    port = const PORT,
    register = const KERNEL_GS_BASE,
    pattern = const PATTERN,
    local_apic = const LOCAL_APIC,
    vector = const VECTOR,
    timer = const TIMER,
    rounds = const ROUNDS,
);

unsafe extern "C" {
    static scx_probe_begin: u8;
    static scx_probe_interrupt: u8;
    static scx_probe_end: u8;
}

/// Writes the program and its tables to memory, in which long mode is set up already.
pub(super) fn load(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let begin = &raw const scx_probe_begin;
    let length = (&raw const scx_probe_end).addr() - begin.addr();
    // SAFETY: the labels delimit initialised read-only bytes of this program's file.
    let code = unsafe { slice::from_raw_parts(begin, length) };
    memory.write_slice(code, GuestAddress(CODE))?;
    let handler = CODE + ((&raw const scx_probe_interrupt).addr() - begin.addr()) as u64;
    memory.write_obj(interrupt_gate(handler), GuestAddress(IDT + 16 * u64::from(VECTOR)))?;
    map_interrupt_controller(memory)
}

/// Returns a 64-bit interrupt gate of the code segment, for an address below 4 GiB.
fn interrupt_gate(handler: u64) -> [u64; 2] {
    const PRESENT: u64 = 0x8e00 << 32;
    const CODE_SEGMENT: u64 = 0x10 << 16;
    [handler & 0xffff | CODE_SEGMENT | PRESENT | (handler & 0xffff_0000) << 32, 0]
}

fn map_interrupt_controller(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE_UNCACHED: u64 = 0x98;
    let middle = PAGE_TABLES.0 + 0x1000;
    memory.write_obj(LAST_TABLE | PRESENT_WRITABLE, GuestAddress(middle + 8 * 3))?;
    let address = u64::from(LOCAL_APIC);
    let entry = (address >> 21) % 512;
    let page = address & !0x1f_ffff;
    memory.write_obj(page | LARGE_UNCACHED | PRESENT_WRITABLE, GuestAddress(LAST_TABLE + 8 * entry))
}
