//! Boots a guest on KVM until its scheduler has answered once, and prints how long that took and what its VMM holds.
//!
//! ```text
//! first_sample microvm|qemu KERNEL MODULES SCHEDULER FIRMWARE
//! ```
//!
//! The VMM is a microVM in this process, or QEMU with its machine `microvm`, whose firmware is in the last folder. It prints
//! two numbers: milliseconds, and KiB that are resident in the VMM's process, without the guest's memory.
#![allow(clippy::print_stdout, reason = "a measurement's program")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use scx_vsock::SchedStatsClient;
use scx_vsock::guest::{Guest, GuestBuilder, Vmm};
use scx_vsock::transport::vhost_user::Server;
use scx_vsock::vsock::{Handle, ReadyListener, ReadyWait};
use scx_vsock_tests::held_resources::{kib, status_kib};

/// How long a step may take, in a guest that is emulated twice on a busy machine.
const STEP: Duration = Duration::from_secs(240);

const MEMORY_MIB: u32 = 256;

/// The processor of the microVM's guests, as QEMU calls it: KVM's clock, and what every processor of the last decade has.
/// Under nested KVM a guest must not end interrupts without an exit (`kvm-pv-eoi`).
const PROCESSOR: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+x2apic,-svm,-kvm-pv-eoi,-kvm-asyncpf,-kvm-steal-time,\
                         -kvm-pv-unhalt,-kvm-nopiodelay,-tsc-deadline";

/// QEMU's machine without the devices that Linux does without.
const MACHINE: &str =
    "microvm,acpi=on,pit=on,pic=on,rtc=off,isa-serial=on,auto-kernel-cmdline=off,memory-backend=memory";

/// The command line of both kernels.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 rdinit=/init";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (millis, kib) = match words.as_slice() {
        ["microvm", kernel, modules, scheduler, _] => microvm(&image(kernel, modules, scheduler))?,
        ["qemu", kernel, modules, scheduler, firmware] => qemu(&image(kernel, modules, scheduler), kernel, firmware)?,
        _ => bail!("usage: first_sample microvm|qemu KERNEL MODULES SCHEDULER FIRMWARE"),
    };
    println!("{millis} {kib}");
    Ok(())
}

/// The same guest for both.
fn image(kernel: &str, modules: &str, scheduler: &str) -> GuestBuilder {
    let builder = Guest::builder().kernel(kernel).modules(modules).module("virtio_mmio").scheduler(scheduler, &[]);
    builder.memory_mib(MEMORY_MIB).cpus(1).deadline(STEP)
}

fn microvm(image: &GuestBuilder) -> Result<(u128, u64)> {
    let started = Instant::now();
    let guest = image.clone().vmm(Vmm::Microvm).boot()?;
    take_sample(&guest.handle())?;
    let millis = started.elapsed().as_millis();
    Ok((millis, status_kib("self", "VmRSS:") - guest_memory_kib()?))
}

fn qemu(image: &GuestBuilder, kernel: &str, firmware: &str) -> Result<(u128, u64)> {
    let (started, folder) = (Instant::now(), tempfile::tempdir()?);
    fs::write(folder.path().join(INITRAMFS), image.initramfs()?)?;
    let server = Server::start(UnixListener::bind(folder.path().join(VSOCK))?, 3)?;
    let mut ready = ReadyListener::listen(&server.handle())?;
    let mut qemu = Killed(qemu_command(kernel, firmware, folder.path()).spawn().context("QEMU")?);
    let exited = pidfd_open(Pid::from_child(&qemu.0), PidfdFlags::empty())?;
    match ready.wait(Instant::now() + STEP, &exited)? {
        ReadyWait::Ready => take_sample(&server.handle())?,
        ReadyWait::TimedOut => bail!("the agent is not ready under QEMU"),
        ReadyWait::Interrupted => bail!("QEMU has exited: {:?}", qemu.0.wait()?),
    }
    let (millis, process) = (started.elapsed().as_millis(), qemu.0.id().to_string());
    // The guest's memory is shared, and nothing else is.
    Ok((millis, status_kib(&process, "RssAnon:") + status_kib(&process, "RssFile:")))
}

/// What a folder has for QEMU: the initramfs, the back end's socket, and that of the guest's second serial port, from which
/// its first process reads commands.
const INITRAMFS: &str = "initramfs";
const VSOCK: &str = "vsock";
const COMMANDS: &str = "commands";

fn qemu_command(kernel: &str, firmware: &str, folder: &Path) -> Command {
    let path = |name| folder.join(name).display().to_string();
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-L",
            firmware,
            "-bios",
            "qboot.rom",
        ])
        .args(["-machine", MACHINE, "-accel", "kvm", "-cpu", PROCESSOR, "-m", &format!("{MEMORY_MIB}M")])
        .args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on")])
        .args(["-chardev", &format!("socket,id=vsock,path={}", path(VSOCK))])
        .args(["-device", "vhost-user-vsock-device,chardev=vsock", "-serial", "stdio"])
        .args(["-chardev", &format!("socket,id=commands,server=on,wait=off,path={}", path(COMMANDS))])
        .args(["-device", "isa-serial,chardev=commands,iobase=0x2f8,irq=3"])
        .args(["-append", COMMAND_LINE, "-kernel", kernel, "-initrd", &path(INITRAMFS)])
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    command
}

/// A process that is killed on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Takes one sample, as soon as the scheduler serves stats.
fn take_sample(handle: &Handle) -> Result<()> {
    let client = SchedStatsClient::builder(handle.agent()).deadline(STEP).build();
    client.wait_for_scheduler(STEP)?;
    let stats = client.stats(&[])?;
    ensure!(stats.is_object(), "{stats}");
    Ok(())
}

/// The resident part of the mapping that is as large as the guest's memory.
fn guest_memory_kib() -> Result<u64> {
    let maps = fs::read_to_string("/proc/self/smaps")?;
    let of_guest = |text: &&str| kib(text, "Size:").is_some_and(|size| size >= u64::from(MEMORY_MIB) << 10);
    // Each mapping's lines end with this one.
    let mapping = maps.split("VmFlags:").find(of_guest).context("no mapping of the guest's memory")?;
    Ok(kib(mapping, "Rss:").context("no size")?.min(u64::from(MEMORY_MIB) << 10))
}
