//! A guest in this process, on KVM: a VMM for one Linux guest, without firmware, PCI, disks and network.
//!
//! A [`Microvm`] has memory, 1 to 64 vCPUs, two serial ports and the vsock device of this library behind virtio-mmio
//! registers. It boots a packaged kernel: a bzImage, or a vmlinux with a PVH entry point.
//!
//! ```no_run
//! use std::os::unix::net::UnixStream;
//! use std::time::{Duration, Instant};
//! use scx_vsock::SchedStatsClient;
//! use scx_vsock::guest::microvm::Microvm;
//! use scx_vsock::vsock::{ReadyListener, ReadyWait};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (_host, commands) = UnixStream::pair()?;
//! let builder = Microvm::builder("/boot/vmlinuz").initramfs(std::fs::read("initramfs-with-agent")?);
//! let microvm = builder.command_line("console=ttyS0 panic=-1").build(Box::new(std::io::stdout()), commands)?;
//! let mut ready = ReadyListener::listen(&microvm.handle())?;
//! microvm.resume()?;
//! assert_eq!(ready.wait(Instant::now() + Duration::from_secs(20), &microvm)?, ReadyWait::Ready);
//! println!("{:#}", SchedStatsClient::builder(microvm.handle().agent()).build().stats(&[])?);
//! # Ok(())
//! # }
//! ```
//!
//! # A tour for authors of VMMs
//!
//! Each file of this folder is one part of a VMM. In the order in which a guest meets them:
//!
//! 1. `vm` opens KVM, and makes a machine of memory and of KVM's own interrupt controllers. Memory is one range, with a
//!    hole for devices below 4 GiB; `layout` has all addresses.
//! 2. `kernel` loads the kernel, the initramfs and the command line; `registers` has the first vCPU's mode at the kernel's
//!    entry point. The others wait for the kernel to start them, which KVM's interrupt controllers do by themselves.
//! 3. `acpi` writes the tables by which the kernel finds vCPUs, serial ports, registers to turn the machine off, and the
//!    vsock device. Packaged kernels do not take a virtio-mmio device on their command line. `cpuid` has the vCPUs'
//!    features, `cpuid_topology` and `srat` their arrangement.
//! 4. `vcpu` runs each vCPU on a thread of its own. An exit is an access to a device, which the [`Bus`] finds: `serial`
//!    ports, `power` registers, and [`Mmio`](crate::transport::mmio::Mmio). Queue notifications and interrupts do not pass
//!    there: they are ioeventfds and irqfds ([`transport::kvm`](crate::transport::kvm)).
//! 5. `device_thread` serves the vsock device when it has been notified. `gate` is where the vCPUs wait while the guest is
//!    paused, and `kick` gets them out of KVM; `vcpu_time` stops their time meanwhile.
//! 6. `snapshot` is the state of a paused guest: `vcpu_state` and `msr_state` of each vCPU, which its own thread reads while
//!    it waits at the gate; `machine_state` of KVM's interrupt controllers and timer; `memory_image` of memory, which
//!    restored guests share until they write it.
//! 7. The first thing that ends the guest is its [`Outcome`]: it turned itself off, reset itself, panicked, or did what KVM
//!    cannot run. Nothing that a guest does ends this process.
//!
//! Whether KVM can run any of this, [`probe`] finds out within two seconds.
//!
//! # Threads and bounds
//!
//! One thread for each vCPU, one for the device, one for the second serial port's input. A guest that prints faster than
//! its console's `Write` takes it waits; a guest whose second serial port nobody reads waits, and can still be paused and
//! ended. Input for a guest that does not read is at most 4 KiB.
//!
//! The vCPUs are interrupted by the signal `SIGRTMIN`, for which the first guest of a process installs a handler that does
//! nothing.

mod acpi;
mod bus;
mod cpuid;
mod cpuid_topology;
mod device_thread;
mod error;
mod gate;
mod kernel;
mod kick;
mod layout;
mod machine_state;
mod memory_image;
#[allow(clippy::module_inception, reason = "the noun of the folder")]
mod microvm;
mod msr_state;
mod outcome;
mod panic_watch;
mod place;
mod power;
mod probe;
mod probe_program;
mod registers;
mod serial;
mod serial_address;
mod snapshot;
mod srat;
#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
mod vcpu;
mod vcpu_state;
mod vcpu_time;
mod vm;

pub use bus::{Bus, PortWrite, VsockMmio};
pub use error::Error;
pub use microvm::{Microvm, MicrovmBuilder};
pub use outcome::{Outcome, VcpuPosition};
pub use probe::{KvmUnusable, PROBE_TIMEOUT, ProbeStep, probe};
pub use snapshot::MicrovmSnapshot;
