//! The guest's processor, and the thread that runs it.
#![allow(clippy::print_stderr, reason = "a drop has no other way to report")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use kvm_ioctls::{Kvm, KvmRunWrapper, VcpuExit, VcpuFd, VmFd};
use libc::{c_int, c_void, siginfo_t};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::Bus;
use super::exit_reason::ExitReason;
use super::{cpuid, kernel};

/// The message about a guest that is dropped while its processor has interrupts disabled. That hardly ever lasts, except
/// after QEMU's emulation of SVM (7.2) delivered an interrupt twice, so that the guest waits for a lock of its own.
pub const STUCK: &str = "microvm: the guest's processor takes no interrupts";

/// The flag in a processor's registers.
const INTERRUPTS_ON: u64 = 1 << 9;

/// A stopped processor.
#[derive(Debug)]
pub struct Processor {
    vcpu: VcpuFd,
    /// The processor's page of state, by which another thread stops it.
    control: KvmRunWrapper,
    /// KVM writes into it as long as the processor can run.
    _memory: Arc<GuestMemoryMmap>,
}

impl Processor {
    /// Returns the guest's first processor, at its kernel's entry point.
    pub fn new(kvm: &Kvm, vm: &VmFd, memory: &Arc<GuestMemoryMmap>, entry: GuestAddress) -> Result<Self> {
        let vcpu = vm.create_vcpu(0)?;
        // KVM refuses long mode to a processor without that feature.
        vcpu.set_cpuid2(&cpuid::plain(kvm)?)?;
        let mut special = vcpu.get_sregs()?;
        kernel::enter_long_mode(memory, &mut special)?;
        vcpu.set_sregs(&special)?;
        vcpu.set_regs(&kernel::registers(entry))?;
        let control = KvmRunWrapper::mmap_from_fd(&vcpu, kvm.get_vcpu_mmap_size()?)?;
        Ok(Self { vcpu, control, _memory: Arc::clone(memory) })
    }

    /// Runs the guest on a thread of its own.
    pub fn start(mut self, mut bus: Bus) -> Result<Running> {
        register_signal_handler(SIGRTMIN(), on_signal)?;
        self.control.as_mut_ref().immediate_exit = 0;
        let Self { mut vcpu, control, _memory } = self;
        let (ended, ends) = UnixStream::pair()?;
        let thread = thread::Builder::new().name("processor".into()).spawn(move || {
            let end = run(&mut vcpu, &mut bus);
            if !matches!(end, Ok(ExitReason::Stopped)) {
                bus.commands.hang_up();
            }
            drop(ends);
            Halted { vcpu, bus, end }
        })?;
        Ok(Running { thread: Some(thread), control: Some(control), ended, _memory })
    }
}

/// A signal only interrupts the system call in which a thread waits.
extern "C" fn on_signal(_number: c_int, _about: *mut siginfo_t, _context: *mut c_void) {}

/// The result of the processor's thread.
struct Halted {
    vcpu: VcpuFd,
    bus: Bus,
    end: Result<ExitReason>,
}

fn run(vcpu: &mut VcpuFd, bus: &mut Bus) -> Result<ExitReason> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(end) = bus.write_port(port, data)? {
                    return Ok(end);
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => bus.read_port(port, data)?,
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
            Ok(VcpuExit::Shutdown) => bail!("the guest's processor shut down, as after a triple fault"),
            Ok(exit) => {
                let exit = format!("{exit:?}");
                bail!("the guest's processor stopped at {:#x}: {exit}", vcpu.get_regs()?.rip);
            }
            // The exit before it is complete then.
            Err(errno) if errno.errno() == libc::EINTR => {
                if vcpu.get_kvm_run().immediate_exit != 0 {
                    return Ok(ExitReason::Stopped);
                }
            }
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
}

/// A running processor. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Running {
    thread: Option<JoinHandle<Halted>>,
    control: Option<KvmRunWrapper>,
    ended: UnixStream,
    _memory: Arc<GuestMemoryMmap>,
}

impl Running {
    /// Stops the processor, unless the guest has ended it.
    ///
    /// # Errors
    ///
    /// That the guest has ended, or why its processor cannot run any further.
    pub fn stop(mut self) -> Result<(Processor, Bus)> {
        let (halted, control) = self.halt().context("the processor's thread panicked")?;
        match halted.end? {
            ExitReason::Stopped => {
                Ok((Processor { vcpu: halted.vcpu, control, _memory: Arc::clone(&self._memory) }, halted.bus))
            }
            end => bail!("the guest ended by itself: {end:?}"),
        }
    }

    /// Stops the processor if it still runs, and returns why it ended.
    ///
    /// # Errors
    ///
    /// Why it cannot run any further.
    pub fn end(mut self) -> Result<ExitReason> {
        self.halt().context("the processor's thread panicked")?.0.end
    }

    /// Asks the thread to end, and waits for that.
    fn halt(&mut self) -> Option<(Halted, KvmRunWrapper)> {
        let (thread, mut control) = (self.thread.take()?, self.control.take()?);
        // KVM returns, whether the thread is in it by now or is about to enter it.
        control.as_mut_ref().immediate_exit = 1;
        let _has_ended = thread.kill(SIGRTMIN());
        Some((thread.join().ok()?, control))
    }
}

/// Readable once the guest has ended.
impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((halted, _control)) = self.halt()
            && let Ok(registers) = halted.vcpu.get_regs()
            && registers.rflags & INTERRUPTS_ON == 0
        {
            eprintln!("{STUCK}: it is at {:#x}", registers.rip);
        }
    }
}
