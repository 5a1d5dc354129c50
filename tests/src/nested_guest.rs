//! The program `microvm` and its guest, in a QEMU guest that emulates an AMD processor with KVM.

use std::fs;
use std::path::Path;
use std::time::Duration;

use scx_vsock::guest::initramfs::modules::{Modules, VSOCK};
use scx_vsock::guest::{Guest, GuestBuilder, OutputStream};

use crate::guest::{Kernel, builder, builder_with_kvm};
use crate::microvm_guest::STUCK;
use crate::program;

/// How long the program `microvm` takes at most: it ends itself then, and says which step it was in.
///
/// Its guest is emulated twice, on a machine that may have other work, so that this and the limits of each step are several
/// times what an idle machine of two processors needs. A step that hangs fails all the same.
pub const LIMIT: Duration = Duration::from_secs(600);

/// How long the guest around it waits for its end.
const ENDS: Duration = LIMIT.saturating_add(Duration::from_secs(60));

/// How often the program runs when the emulated processor fails.
const ATTEMPTS: usize = 3;

/// The programs of the nested guest and of the guest around it.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    /// The VMM.
    pub microvm: &'a str,
    /// The nested guest's side of the tests.
    pub guest_peer: &'a str,
}

/// Returns the guest around a nested one: with this run's kernel, KVM, and the nested guest's kernel and modules in
/// `/microvm`. One thread of QEMU less interrupts its processor.
///
/// # Panics
///
/// If there are no modules.
pub fn outer_guest() -> GuestBuilder {
    let kernel = Kernel::of_this_run();
    with_nested_kernel(builder_with_kvm(kernel).cpus(1), kernel, "/microvm")
}

/// Adds a kernel of nested guests to the guest around them: the image as `vmlinuz`, and what its modules' folder has of
/// virtio-mmio and vsock as `modules`.
///
/// # Panics
///
/// If there are no modules.
pub fn with_nested_kernel(guest: GuestBuilder, kernel: &Kernel, folder: &str) -> GuestBuilder {
    let modules = Modules::read(&kernel.modules).expect("modules");
    let needed = [&["virtio_mmio"], VSOCK].concat();
    let paths = modules.in_load_order(&needed).expect("modules");
    let files = ["modules.dep", "modules.builtin"].into_iter().chain(paths);
    let guest = guest.file(&kernel.image, format!("{folder}/vmlinuz"));
    files.fold(guest, |guest, file| guest.file(kernel.modules.join(file), format!("{folder}/modules/{file}")))
}

/// Runs a command in the guest around a nested one, which must succeed, and prints its outputs as they come. Returns them.
///
/// # Panics
///
/// If it fails or does not end within this time.
pub fn run_printing(outer: &Guest, command: &[&str], within: Duration) -> [String; 2] {
    let mut outputs = [Vec::new(), Vec::new()];
    let status = outer.run_streaming(command, within, |stream, piece| {
        print!("{}", String::from_utf8_lossy(piece));
        outputs[usize::from(stream == OutputStream::Stderr)].extend_from_slice(piece);
        Ok(())
    });
    assert!(matches!(status, Ok(0)), "{command:?}: {status:?}\n{}", outer.console().text());
    outputs.map(|output| String::from_utf8_lossy(&output).into_owned())
}

/// Where the guest of [`outer_guest`] has the nested guest's modules.
pub const OUTER_MODULES: &str = "/microvm/modules";

/// Runs the program `microvm` with these further arguments, and this run's kernel in the nested guest, on the KVM of
/// `outer`.
///
/// # Panics
///
/// If it fails, with what it printed.
pub fn run_microvm(programs: Programs<'_>, outer: &Kernel, arguments: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let initramfs = folder.path().join("initramfs");
    let inner = builder().module("virtio_mmio").scheduler(program::built("procsched"), &[]);
    let inner = inner.program(programs.guest_peer, "/bin/guest_peer").initramfs().expect("an image");
    fs::write(&initramfs, inner).expect("a file");
    let guest = builder_with_kvm(outer)
        // One thread of QEMU less that interrupts the processor.
        .cpus(1)
        .program(Path::new(programs.microvm), "/bin/microvm")
        .file(&Kernel::of_this_run().image, "/microvm/vmlinuz")
        .file(&initramfs, "/microvm/initramfs")
        .boot()
        .expect("a guest");
    let command = [&["microvm", "/microvm/vmlinuz", "/microvm/initramfs"], arguments].concat();
    for attempt in 1.. {
        let output = guest.run_within(&command, ENDS).expect("the guest runs commands");
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        println!("{stdout}{stderr}");
        // This failure is the emulator's, which no device can cause.
        if output.status == 0 || attempt == ATTEMPTS || !stderr.contains(STUCK) {
            assert_eq!(output.status, 0, "{}", guest.console().text());
            break;
        }
    }
}
