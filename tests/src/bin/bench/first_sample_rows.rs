//! The start of a guest to its first sample, on a microVM against QEMU's fastest machine, and what the VMM's process holds.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scx_vsock::guest::microvm::{PROBE_TIMEOUT, probe};
use scx_vsock::guest::{Guest, GuestBuilder};
use scx_vsock_tests::guest::{Kernel, builder_with_kvm};
use scx_vsock_tests::nested_guest::with_nested_kernel;

use crate::measure::{Bench, Measure};
use crate::measured_guests::{program, sibling};
use crate::row::{Goal, Row};

/// The rows of this module.
pub const ALL: &[Measure] = &[Measure {
    name: "first-sample",
    is_quick: false,
    bound: "The kernel's own boot, which both run in the same way. QEMU's firmware copies kernel and initramfs through a port \
            of its own, and its process has to be started and linked. Where KVM does not run Linux, both run on the KVM of a \
            guest that QEMU emulates.",
    rows: start,
}];

/// Runs of each VMM, in turn.
const RUNS: usize = 5;

/// How long a run may take, in a guest that is emulated twice.
const RUN_ENDS: Duration = Duration::from_secs(300);

/// What QEMU reads of its own: firmware, and what loads the kernel.
const FIRMWARE: [&str; 3] = ["qboot.rom", "linuxboot_dma.bin", "kvmvapic.bin"];

/// Where QEMU looks for that, and where packages have it.
const FIRMWARE_FOLDER: &str = "/usr/share/qemu";
const FIRMWARE_FOLDERS: [&str; 2] = [FIRMWARE_FOLDER, "/usr/share/qemu-system-x86"];

/// The most KiB that a microVM's process may hold beside the guest's memory.
const MOST_KIB: f64 = 16.0 * 1024.0;

fn start(bench: &Bench) -> Vec<Row> {
    let machine = Machine::find();
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) =
        (0..bench.runs(RUNS)).map(|_| (machine.run("microvm"), machine.run("qemu"))).unzip();
    let [time, memory] = [
        "start to first sample, microVM / QEMU -M microvm, ms",
        "resident less guest memory, microVM / QEMU -M microvm, KiB",
    ];
    let column = |runs: &mut Vec<[f64; 2]>, at: usize| runs.iter().map(|run| run[at]).collect::<Vec<_>>();
    vec![
        Row::median(time, &mut column(&mut ours, 0), &mut column(&mut theirs, 0), Goal::Ratio(0.9)),
        Row::median(memory, &mut column(&mut ours, 1), &mut column(&mut theirs, 1), Goal::Ours(MOST_KIB)),
    ]
}

/// Where the guests run.
struct Machine {
    /// A guest that has KVM, unless they run on that of this machine.
    around: Option<Guest>,
}

impl Machine {
    fn find() -> Self {
        let nests = probe(PROBE_TIMEOUT).is_err();
        Self { around: nests.then(|| nested().boot().unwrap()) }
    }

    /// Returns milliseconds and KiB.
    fn run(&self, vmm: &str) -> [f64; 2] {
        let output = self.around.as_ref().map_or_else(|| run_here(vmm), |guest| run_nested(guest, vmm));
        let text = String::from_utf8(output).unwrap();
        eprintln!("bench: {vmm}: {}", text.trim());
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        [numbers.next().unwrap(), numbers.next().unwrap()]
    }
}

fn run_here(vmm: &str) -> Vec<u8> {
    let kernel = Kernel::fetched("sched-ext");
    let mut command = Command::new(sibling("first_sample"));
    command.arg(vmm).args([&kernel.image, &kernel.modules, &sibling("procsched")]).arg(FIRMWARE_FOLDER);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn run_nested(guest: &Guest, vmm: &str) -> Vec<u8> {
    let command = ["first_sample", vmm, "/nested/vmlinuz", "/nested/modules", "/bin/procsched", FIRMWARE_FOLDER];
    let output = guest.run_within(&command, RUN_ENDS).unwrap();
    assert_eq!(output.status, 0, "{}\n{}", String::from_utf8_lossy(&output.stderr), guest.console().text());
    output.stdout
}

/// The guest with KVM, all that runs there, and what that reads.
fn nested() -> GuestBuilder {
    let kernel = Kernel::fetched("sched-ext");
    let guest = with_nested_kernel(builder_with_kvm(&kernel).cpus(1).memory_mib(2048), &kernel, "/nested");
    let guest = guest.program(sibling("first_sample"), "/bin/first_sample");
    let guest = guest.program(sibling("procsched"), "/bin/procsched");
    let guest = guest.program(program("qemu-system-x86_64"), "/bin/qemu-system-x86_64");
    FIRMWARE.iter().fold(guest, |guest, file| {
        let found = FIRMWARE_FOLDERS.iter().map(|folder| Path::new(folder).join(file)).find(|path| path.exists());
        let found = found.ok_or_else(|| format!("QEMU's {file} is in none of {FIRMWARE_FOLDERS:?}")).unwrap();
        guest.file(found, format!("{FIRMWARE_FOLDER}/{file}"))
    })
}
