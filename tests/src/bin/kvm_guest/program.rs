//! The guest's program: 32-bit code without paging.
#![allow(unsafe_code, reason = "the program's bytes lie between two labels")]

use std::arch::global_asm;
use std::slice;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the device's registers are.
pub const REGISTERS: u64 = 0xd000_0000;
/// The device's interrupt, of the first interrupt controller.
pub const IRQ: u32 = 5;
/// The port that the program writes to after an interrupt, to be given the queues to notify.
pub const DONE_PORT: u16 = 0x10;

/// The program's address and entry point.
pub const CODE: u64 = 0x1000;
/// The interrupt descriptor table.
pub const IDT: u64 = 0x2000;
/// The global descriptor table: none, code, data.
pub const GDT: u64 = 0x3000;
/// Pairs of offset and value for the registers, up to an offset of all ones.
const SCRIPT: u64 = 0x4000;
/// The number of interrupts that the program has handled.
const TAKEN: u64 = 0x5000;
/// A bit for each queue that the program is to notify.
const NOTIFICATIONS: u64 = 0x5004;
/// The end of the stack.
pub const STACK: u64 = 0x8000;

/// The vector of the first interrupt of the controller.
const VECTORS: u8 = 0x20;

global_asm!(
    ".pushsection .rodata",
    ".code32",
    "scx_guest_begin:",
    // The interrupt controller: its vectors, and only the device's interrupt unmasked.
    "mov al, 0x11",
    "out 0x20, al",
    "mov al, {vectors}",
    "out 0x21, al",
    "mov al, 4",
    "out 0x21, al",
    "mov al, 1",
    "out 0x21, al",
    "mov al, {mask}",
    "out 0x21, al",
    // The device's initialisation.
    "mov ebx, {registers}",
    "mov esi, {script}",
    "2:",
    "mov edx, [esi]",
    "cmp edx, -1",
    "je 3f",
    "mov eax, [esi + 4]",
    "mov [ebx + edx], eax",
    "add esi, 8",
    "jmp 2b",
    // Interrupts are enabled here and nowhere else.
    "3:",
    "sti",
    "hlt",
    "jmp 3b",
    // The interrupt: reads its status, acknowledges it at the device and at the controller. It returns without IRET,
    // which a KVM that emulates cannot execute.
    "scx_guest_interrupt:",
    "add esp, 12",
    "mov eax, [ebx + 0x60]",
    "mov [ebx + 0x64], eax",
    "inc dword ptr [{taken}]",
    "mov al, 0x20",
    "out 0x20, al",
    // Lets the driver process the rings, and notifies queues.
    "out {done}, al",
    "mov ecx, [{notifications}]",
    "xor eax, eax",
    "4:",
    "test ecx, 1",
    "jz 5f",
    "mov [ebx + 0x50], eax",
    "5:",
    "inc eax",
    "shr ecx, 1",
    "jnz 4b",
    "jmp 3b",
    "scx_guest_end:",
    ".code64",
    ".popsection",
    vectors = const VECTORS,
    mask = const !(1u8 << IRQ),
    registers = const REGISTERS,
    script = const SCRIPT,
    taken = const TAKEN,
    done = const DONE_PORT,
    notifications = const NOTIFICATIONS,
);

unsafe extern "C" {
    static scx_guest_begin: u8;
    static scx_guest_interrupt: u8;
    static scx_guest_end: u8;
}

/// Writes the program to memory, with these register writes as the device's initialisation.
pub fn load(memory: &GuestMemoryMmap, script: &[(u64, u32)]) -> Result<(), vm_memory::GuestMemoryError> {
    let begin = &raw const scx_guest_begin;
    let length = (&raw const scx_guest_end).addr() - begin.addr();
    // SAFETY: the labels delimit initialised read-only bytes of this program's file.
    let code = unsafe { slice::from_raw_parts(begin, length) };
    memory.write_slice(code, GuestAddress(CODE))?;
    let handler = CODE + ((&raw const scx_guest_interrupt).addr() - begin.addr()) as u64;
    memory.write_obj(interrupt_gate(handler), GuestAddress(IDT + 8 * (u64::from(VECTORS) + u64::from(IRQ))))?;
    let flat = |access: u64| 0x00cf_0000_0000_ffff | access << 40;
    memory.write_obj([0, flat(0x9b), flat(0x93)], GuestAddress(GDT))?;
    let script = script.iter().map(|&(offset, value)| [u32::try_from(offset).unwrap_or(0), value]);
    let words: Vec<u8> = script.chain([[u32::MAX; 2]]).flatten().flat_map(u32::to_le_bytes).collect();
    memory.write_slice(&words, GuestAddress(SCRIPT))
}

/// Returns a 32-bit interrupt gate of the code segment.
fn interrupt_gate(handler: u64) -> u64 {
    const PRESENT: u64 = 0x8e00 << 32;
    const CODE_SEGMENT: u64 = 8 << 16;
    handler & 0xffff | CODE_SEGMENT | PRESENT | (handler >> 16) << 48
}

/// Returns the number of interrupts that the program has handled.
pub fn interrupts(memory: &GuestMemoryMmap) -> Result<u32, vm_memory::GuestMemoryError> {
    memory.read_obj(GuestAddress(TAKEN))
}

/// Makes the program notify these queues when it resumes.
pub fn notify(memory: &GuestMemoryMmap, queues: [bool; 3]) -> Result<(), vm_memory::GuestMemoryError> {
    let bits: u32 = (0..).zip(queues).map(|(queue, notify)| u32::from(notify) << queue).sum();
    memory.write_obj(bits, GuestAddress(NOTIFICATIONS))
}
