//! The agent's file: what an image builder relies on without running it.

use std::fs;

use object::elf::{PF_W, PF_X, PT_DYNAMIC, PT_GNU_STACK, PT_INTERP};
use object::read::elf::{ElfFile64, ProgramHeader};
use scx_vsock_tests::{agent, patched};

/// Bytes that the file may take.
const MAX_FILE_BYTES: usize = 18 * 1024 + 512;

#[test]
fn the_file_is_small() {
    let length = fs::read(agent::file()).unwrap().len();
    assert!(length <= MAX_FILE_BYTES, "{length} bytes are more than {MAX_FILE_BYTES}");
}

#[test]
fn nothing_is_linked_at_run_time_and_nothing_is_both_writable_and_executable() {
    let data = fs::read(agent::file()).unwrap();
    let file = ElfFile64::<object::Endianness>::parse(&*data).unwrap();
    let endian = file.endian();
    let headers = file.elf_program_headers();
    assert!(headers.iter().any(|header| header.p_type(endian) == PT_GNU_STACK), "the stack would be executable");
    for header in headers {
        assert!(![PT_DYNAMIC, PT_INTERP].contains(&header.p_type(endian)), "{header:?}");
        let flags = header.p_flags(endian);
        assert!(flags & (PF_W | PF_X) != PF_W | PF_X, "{header:?}");
    }
}

#[test]
fn a_reachable_panic_does_not_link() {
    let copy = patched::copy("tests/patches/reachable_panic.patch");
    let errors = agent::build(copy.path()).expect_err("a program that can panic was built");
    assert!(errors.contains("undefined symbol: a_panic_can_be_reached"), "{errors}");
}
