//! The agent's file: what an image builder relies on without running it.

use std::fs;

use object::elf::{PF_W, PF_X, PT_DYNAMIC, PT_GNU_STACK, PT_INTERP, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader};
use scx_vsock::guest::{AgentFile, Architecture};
use scx_vsock_tests::{agent, patched};

/// Bytes that the file may take.
fn max_file_bytes(architecture: Architecture) -> usize {
    match architecture {
        Architecture::Aarch64 => 13_824,
        _ => 12_288,
    }
}

#[test]
fn the_file_is_small() {
    let length = fs::read(agent::file()).unwrap().len();
    let most = max_file_bytes(Architecture::NATIVE);
    assert!(length <= most, "{length} bytes are more than {most}");
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
fn the_file_ends_with_its_segments() {
    let data = fs::read(agent::file()).unwrap();
    let file = ElfFile64::<object::Endianness>::parse(&*data).unwrap();
    let endian = file.endian();
    let ends = file.elf_program_headers().iter().map(|header| header.p_offset(endian) + header.p_filesz(endian));
    assert_eq!(ends.max(), u64::try_from(data.len()).ok(), "a table of sections, or something else, follows");
}

/// Bytes of the largest page of a kernel for aarch64.
const MAX_PAGE_BYTES: u64 = 64 * 1024;

#[test]
fn every_carried_file_is_small_and_fits_every_size_of_pages() {
    for architecture in Architecture::ALL {
        // Only the native one is always there.
        let Ok(agent) = AgentFile::carried(architecture) else { continue };
        let data = agent.read().unwrap();
        assert!(data.len() <= max_file_bytes(architecture), "{architecture}: {} bytes", data.len());
        let file = ElfFile64::<object::Endianness>::parse(&*data).unwrap();
        let endian = file.endian();
        let loaded = file.elf_program_headers().iter().filter(|header| header.p_type(endian) == PT_LOAD);
        let segments: Vec<_> = loaded.map(|header| (header.p_vaddr(endian), header.p_memsz(endian))).collect();
        for pair in segments.windows(2) {
            let [(before, bytes), (after, _)] = pair.try_into().unwrap();
            assert!(
                (before + bytes - 1) / MAX_PAGE_BYTES < after / MAX_PAGE_BYTES,
                "{architecture}: one page of two kinds"
            );
        }
    }
}

#[test]
fn a_reachable_panic_does_not_link() {
    let copy = patched::copy("tests/patches/reachable_panic.patch");
    let errors = agent::build(copy.path()).expect_err("a program that can panic was built");
    assert!(errors.contains("undefined symbol: a_panic_can_be_reached"), "{errors}");
}
