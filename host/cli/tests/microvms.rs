//! `scx-vsock boot` with a microVM: on nested KVM, in a QEMU guest that emulates an AMD processor; and why there is none.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use scx_vsock::guest::Guest;
use scx_vsock_tests::guest::{Kernel, output};
use scx_vsock_tests::nested_guest::{OUTER_MODULES, outer_guest, run_printing, with_nested_kernel};
use scx_vsock_tests::numa_nodes;
use scx_vsock_tests::program;
use scx_vsock_tests::real_schedulers::{LAVD_SHOWS_DOMAINS, fetched_scheduler, lavd_domains, rusty_domains};
use scx_vsock_tests::uncompressed_kernel::uncompressed;

const COMMAND: &str = env!("CARGO_BIN_EXE_scx-vsock");

/// How long the command may take: several times what it needs on an idle machine, since others may be at work.
const ENDS: Duration = Duration::from_secs(400);

/// What a kernel that is none has of a bzImage: its magic at its offset.
fn bzimage() -> Vec<u8> {
    [&[0; 0x202][..], b"HdrS"].concat()
}

#[test]
fn what_keeps_a_guest_from_being_a_microvm_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, config) = (folder.path().join("vmlinuz"), folder.path().join("config"));
    fs::write(&kernel, bzimage()).unwrap();
    let boot = |arguments: &[&str]| {
        let mut command = Command::new(COMMAND);
        command.args(["boot", "--vmm", "microvm", "--kernel"]).arg(&kernel).args(arguments);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("scx-vsock: booting")).collect();
        assert_eq!((lines.len(), output.status.code()), (1, Some(1)), "{stderr}");
        lines[0].to_owned()
    };
    // Whatever KVM is like here, this is no kernel.
    boot(&[]);
    fs::write(&config, "CONFIG_ACPI=y\nCONFIG_SERIAL_8250_CONSOLE=y\n").unwrap();
    let modules = folder.path().join("6.1.0");
    let line = boot(&["--config", config.to_str().unwrap(), "--modules", modules.to_str().unwrap()]);
    let expected = "scx-vsock: the guest cannot be a microVM (--vmm qemu or GuestBuilder::vmm(Vmm::Qemu) takes QEMU): the \
                    kernel's configuration does not set CONFIG_VIRTIO_MMIO";
    assert_eq!(line, expected);
}

#[test]
fn a_topology_that_cannot_be_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("vmlinuz");
    fs::write(&kernel, bzimage()).unwrap();
    let refused = |arguments: &[&str]| {
        let mut command = Command::new(COMMAND);
        command.args(["boot", "--kernel"]).arg(&kernel).args(arguments);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let stderr = String::from_utf8(output.stderr).unwrap();
        stderr.lines().rfind(|line| !line.is_empty()).unwrap().to_owned()
    };
    let line = refused(&["--topology", "sockets=2,cores=2", "--cpus", "6"]);
    let expected = "scx-vsock: the topology sockets=2,llcs=1,cores=2,threads=1,nodes=1 does not multiply up: it has 4 \
                    processors, and 6 were asked for; change it, or ask for 4";
    assert_eq!(line, expected);
    let line = refused(&["--topology", "dies=2"]);
    assert!(line.contains("\"dies=2\" is no part of a topology"), "{line}");
}

/// What `boot` prints of the outer guest's own guest, with this kernel and these modules.
fn boot_nested(outer: &Guest, kernel: &str, modules: &str, further: &str, command: &[&str]) -> [String; 2] {
    let boot = format!("scx-vsock boot --kernel {kernel} --modules {modules} --timeout 240s {further}");
    let command: Vec<&str> = boot.split_whitespace().chain(command.iter().copied()).collect();
    let [stdout, stderr] = run_printing(outer, &command, ENDS);
    assert!(stderr.contains("scx-vsock: on a microVM: KVM runs Linux here\n"), "{stderr}");
    [stdout, stderr]
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn boot_takes_a_microvm_where_kvm_runs_linux() {
    let guest = outer_guest().program(COMMAND, "/bin/scx-vsock").program(program::built("procsched"), "/bin/procsched");
    let guest = guest.boot().unwrap();
    let boot =
        |further: &str, command: &[&str]| boot_nested(&guest, "/microvm/vmlinuz", OUTER_MODULES, further, command);
    let [stdout, _] = boot("--memory 256 --cpus 2 --scheduler procsched --samples 2 --jsonl", &[]);
    assert_eq!(stdout.lines().filter(|line| line.contains("\"ctxt\"")).count(), 2, "{stdout}");
    // The guest sees the topology that was asked for.
    let show = "cd /sys/devices/system/cpu; for cpu in cpu[0-9]*; do echo $cpu $(cat $cpu/topology/physical_package_id \
                $cpu/topology/thread_siblings_list $cpu/cache/index3/shared_cpu_list); done";
    let show = format!("{show}; {}", numa_nodes::SHOW);
    let seen = |topology: &str, expected: &[&str]| {
        let [_, stderr] = boot(&format!("--memory 320 --topology {topology}"), &["--", "sh", "-c", &show]);
        for line in expected {
            assert!(stderr.lines().any(|printed| printed.trim() == *line), "{line}: {stderr}");
        }
        stderr
    };
    let two_sockets = ["cpu0 0 0-1 0-1", "cpu1 0 0-1 0-1", "cpu2 1 2-3 2-3", "cpu3 1 2-3 2-3", "0-1", "2-3"];
    let stderr = seen("sockets=2,llcs=1,cores=1,threads=2,nodes=2,memory=96+224", &two_sockets);
    numa_nodes::assert_nodes_have_mib(&stderr, [(48, 96), (160, 224)]);
    let two_domains = ["cpu0 0 0 0-1", "cpu1 0 1 0-1", "cpu2 0 2 2-3", "cpu3 0 3 2-3", "0-3"];
    seen("sockets=1,llcs=2,cores=2,threads=1", &two_domains);
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn schedulers_have_a_domain_for_each_llc() {
    let [rusty, lavd] = ["scx_rusty", "scx_lavd"].map(fetched_scheduler);
    let outer = outer_guest().program(COMMAND, "/bin/scx-vsock").memory_mib(3072);
    let outer = outer.program(rusty, "/bin/scx_rusty").program(lavd, "/bin/scx_lavd");
    let outer = outer.file(&Kernel::of_this_run().config, "/microvm/config").boot().unwrap();
    let boot = |topology: &str, further: &str, command: &[&str]| {
        let further = format!("--memory 512 --topology {topology} {further}");
        boot_nested(&outer, "/microvm/vmlinuz", OUTER_MODULES, &further, command)
    };
    let topologies = ["llcs=1,cores=2", "llcs=2,cores=1"];
    let of_rusty = topologies.map(|topology| {
        let further = "--config /microvm/config --console /tmp/console --samples 1 --deadline 60s \
                       --require-stats --scheduler scx_rusty";
        boot(topology, further, &[]);
        rusty_domains(&String::from_utf8(output(&outer, &["cat", "/tmp/console"])).unwrap())
    });
    assert_eq!(of_rusty, [vec![0b11], vec![0b01, 0b10]]);
    // It prints them before the kernel verifies it, which takes minutes here.
    let arguments = LAVD_SHOWS_DOMAINS.join(" ");
    let lavd = format!("scx_lavd {arguments} 2>&1 | {{ grep -m 1 nr_cpdoms; killall -9 scx_lavd; }}");
    let of_lavd = topologies.map(|topology| {
        let [_, stderr] = boot(topology, "--program /bin/scx_lavd", &["--", "sh", "-c", &lavd]);
        lavd_domains(&stderr)
    });
    assert_eq!(of_lavd, [1, 2]);
}

/// Debian's kernels 6.1, 6.12 and 7.x. Each needs other modules for a microVM.
const PACKAGED: [(&str, &str); 3] = [("stable", "/stable"), ("trixie", "/trixie"), ("sched-ext", "/sched-ext")];

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn packaged_kernels_serve_stats_on_microvms() {
    let guest = outer_guest().program(COMMAND, "/bin/scx-vsock").program(program::built("procsched"), "/bin/procsched");
    let kernels = PACKAGED.map(|(which, folder)| (Kernel::fetched(which), folder));
    let guest = kernels.iter().fold(guest, |guest, (kernel, folder)| with_nested_kernel(guest, kernel, folder));
    // The same as the packages' bzImage unpacks, which begins by PVH.
    let [_, _, (newest, folder_of_newest)] = &kernels;
    let vmlinux = tempfile::NamedTempFile::new().unwrap();
    fs::write(vmlinux.path(), uncompressed(&fs::read(&newest.image).unwrap())).unwrap();
    let guest = guest.file(vmlinux.path(), format!("{folder_of_newest}/vmlinux")).memory_mib(2048).boot().unwrap();
    let images = kernels.iter().map(|(kernel, folder)| (kernel, *folder, "vmlinuz"));
    for (kernel, folder, image) in images.chain([(newest, *folder_of_newest, "vmlinux")]) {
        let (image, modules) = (format!("{folder}/{image}"), format!("{folder}/modules"));
        let further = "--memory 256 --scheduler procsched --require-stats --jsonl";
        let [stdout, stderr] = boot_nested(&guest, &image, &modules, further, &["--", "uname", "-r"]);
        assert!(stdout.contains("\"ctxt\""), "{image}: {stdout}");
        assert!(stderr.lines().any(|line| line.trim() == kernel.release()), "{image}: {stderr}");
    }
}
