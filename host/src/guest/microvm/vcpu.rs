//! A vCPU, and the loop that runs it on a thread of its own.

use std::io;
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::{KvmRunWrapper, VcpuExit, VcpuFd};
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::GuestMemoryMmap;

use super::bus::{Bus, PortWrite};
use super::error::Error;
use super::gate::{Gate, Parked};
use super::kernel::Entry;
use super::outcome::{Outcome, VcpuPosition};
use super::registers;
use super::vcpu_time::StoppedCounter;
use super::vm::{Vm, suberror};
use crate::transport::kvm::Irq;

/// The flag of the processor's registers.
const TAKES_INTERRUPTS: u64 = 1 << 9;

/// A vCPU that does not run.
pub(super) struct Vcpu {
    fd: VcpuFd,
    number: u32,
    stopped: Option<StoppedCounter>,
    /// KVM writes into it as long as the vCPU can run.
    _memory: Arc<GuestMemoryMmap>,
}

/// What the vCPU does after an exit.
enum Step {
    Next,
    /// A write that is to be repeated.
    Again(u16, u8),
    End(Outcome),
}

/// An exit after which a vCPU does not go on.
enum LastExit {
    Shutdown,
    InternalError,
    Other(String),
}

impl Vcpu {
    /// Returns the vCPU with this number, this APIC id and these features. One waits for another to start it, unless it has
    /// an entry.
    pub(super) fn new(
        vm: &Vm,
        (number, apic_id): (u32, u32),
        features: &CpuId,
        entry: Option<Entry>,
    ) -> Result<Self, Error> {
        let fd = vm.fd().create_vcpu(apic_id.into()).map_err(Error::kvm("a vCPU"))?;
        // KVM refuses long mode to a vCPU without that feature.
        fd.set_cpuid2(features).map_err(Error::kvm("the vCPU's features"))?;
        if let Some(entry) = entry {
            let mut special = fd.get_sregs().map_err(Error::kvm("to read the vCPU's registers"))?;
            registers::set_mode(vm.memory(), entry, &mut special).map_err(io::Error::other)?;
            fd.set_sregs(&special).map_err(Error::kvm("the vCPU's mode"))?;
            fd.set_regs(&registers::registers(entry)).map_err(Error::kvm("the vCPU's registers"))?;
        }
        Ok(Self { fd, number, stopped: None, _memory: Arc::clone(vm.memory()) })
    }

    /// Maps the vCPU's page of state, of so many bytes, once more.
    pub(super) fn control(&self, bytes: usize) -> Result<KvmRunWrapper, Error> {
        KvmRunWrapper::mmap_from_fd(&self.fd, bytes).map_err(Error::kvm("the vCPU's state"))
    }

    /// Runs the vCPU until the guest ends.
    pub(super) fn run(mut self, gate: &Gate, bus: &Bus<Irq>) {
        let outcome = self
            .run_to_end(gate, bus)
            .unwrap_or_else(|error| Some(Outcome::HostFailed { reason: format!("vCPU {}: {error}", self.number) }));
        if let Some(outcome) = outcome {
            gate.end(bus.end_of(outcome));
        }
        bus.hang_up();
        gate.leave(self.position());
    }

    fn position(&self) -> Option<VcpuPosition> {
        let registers = self.fd.get_regs().ok()?;
        let takes_interrupts = registers.rflags & TAKES_INTERRUPTS != 0;
        Some(VcpuPosition { vcpu: self.number, address: registers.rip, takes_interrupts })
    }

    /// Returns why the guest ends, unless it ended elsewhere.
    fn run_to_end(&mut self, gate: &Gate, bus: &Bus<Irq>) -> io::Result<Option<Outcome>> {
        let mut again = None;
        while gate.pass(self)? {
            let step = match again.take() {
                None => self.step(bus)?,
                Some((port, byte)) => {
                    wait_for_output(gate, bus)?;
                    step_of_write(bus, port, &[byte])
                }
            };
            match step {
                Step::Next => {}
                Step::Again(port, byte) => again = Some((port, byte)),
                Step::End(outcome) => return Ok(Some(outcome)),
            }
        }
        Ok(None)
    }

    /// Enters the guest, and handles its exit.
    fn step(&mut self, bus: &Bus<Irq>) -> io::Result<Step> {
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => return Ok(step_of_write(bus, port, data)),
            Ok(VcpuExit::IoIn(port, data)) => {
                return Ok(bus.read_port(port, data).map_or_else(Step::End, |()| Step::Next));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.read(address, data);
                return Ok(Step::Next);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                bus.write(address, data);
                return Ok(Step::Next);
            }
            // A kick; or a vCPU that another one starts.
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Step::Next),
            Ok(VcpuExit::Intr) => return Ok(Step::Next),
            Ok(VcpuExit::Shutdown) => LastExit::Shutdown,
            Ok(VcpuExit::InternalError) => LastExit::InternalError,
            Ok(exit) => LastExit::Other(format!("{exit:?}")),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Step::End(self.outcome_of(exit)))
    }

    fn outcome_of(&mut self, exit: LastExit) -> Outcome {
        let vcpu = self.number;
        let address = self.fd.get_regs().map_or(0, |registers| registers.rip);
        match exit {
            LastExit::Shutdown => Outcome::TripleFault { vcpu, address },
            LastExit::InternalError => Outcome::InternalError { vcpu, address, suberror: suberror(&mut self.fd) },
            LastExit::Other(exit) => Outcome::UnknownExit { vcpu, address, exit },
        }
    }
}

fn step_of_write(bus: &Bus<Irq>, port: u16, data: &[u8]) -> Step {
    match bus.write_port(port, data) {
        PortWrite::Done => Step::Next,
        PortWrite::Full => data.first().map_or(Step::Next, |&byte| Step::Again(port, byte)),
        PortWrite::Ended(outcome) => Step::End(outcome),
    }
}

/// Waits until the second serial port's output takes more, or the vCPU is not to run any more.
fn wait_for_output(gate: &Gate, bus: &Bus<Irq>) -> io::Result<()> {
    let (output, halt) = (bus.commands_fd(), gate.halt_fd());
    let mut fds = [PollFd::new(&output, PollFlags::OUT), PollFd::new(&halt, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Parked for Vcpu {
    fn stop_time(&mut self) -> io::Result<()> {
        self.stopped = Some(StoppedCounter::of(&self.fd)?);
        Ok(())
    }

    fn start_time(&mut self, cycles: u64) -> io::Result<()> {
        match self.stopped.take() {
            // A guest that was not paused keeps the time that KVM gave it.
            Some(counter) if cycles > 0 => counter.start(&self.fd, cycles),
            _ => Ok(()),
        }
    }

    fn allow_entry(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }
}
