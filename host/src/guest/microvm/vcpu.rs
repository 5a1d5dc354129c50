//! A vCPU, and the loop that runs it on a thread of its own.

use std::fmt;
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
use super::vcpu_state::VcpuState;
use super::vcpu_time::StoppedCounter;
use super::vm::{Vm, suberror};
use crate::transport::kvm::Irq;

/// The flag of the processor's registers.
const TAKES_INTERRUPTS: u64 = 1 << 9;

/// A vCPU that does not run.
pub(super) struct Vcpu {
    fd: VcpuFd,
    number: u32,
    apic_id: u32,
    /// The numbers of its model-specific registers.
    msrs: Arc<[u32]>,
    stopped: Option<StoppedCounter>,
    /// A byte that the guest has written to a port, whose output takes no more.
    outstanding: Option<PortByte>,
    /// KVM writes into it as long as the vCPU can run.
    _memory: Arc<GuestMemoryMmap>,
}

/// A port, and a byte for it.
type PortByte = (u16, u8);

/// The state of a vCPU that waits at the gate.
pub(super) struct SavedVcpu {
    number: u32,
    apic_id: u32,
    counter: StoppedCounter,
    outstanding: Option<PortByte>,
    state: VcpuState,
}

impl fmt::Debug for SavedVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedVcpu").field("number", &self.number).finish_non_exhaustive()
    }
}

impl SavedVcpu {
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

/// What the vCPU does after an exit.
enum Step {
    /// Enters the guest, at which KVM completes the access to a device, even if it is to return at once.
    Enter,
    /// Goes to the gate, with no access outstanding.
    Pass,
    /// Goes to the gate, and then repeats a write.
    Repeat(PortByte),
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
        Ok(Self::with(vm, fd, number, apic_id))
    }

    /// Returns a vCPU in this state.
    pub(super) fn restore(vm: &Vm, saved: &SavedVcpu) -> Result<Self, Error> {
        let SavedVcpu { number, apic_id, counter, outstanding, state } = saved;
        let fd = vm.fd().create_vcpu((*apic_id).into()).map_err(Error::kvm("a vCPU"))?;
        state.write(&fd)?;
        let vcpu = Self::with(vm, fd, *number, *apic_id);
        Ok(Self { stopped: Some(*counter), outstanding: *outstanding, ..vcpu })
    }

    fn with(vm: &Vm, fd: VcpuFd, number: u32, apic_id: u32) -> Self {
        let (msrs, memory) = (Arc::clone(vm.msrs()), Arc::clone(vm.memory()));
        Self { fd, number, apic_id, msrs, stopped: None, outstanding: None, _memory: memory }
    }

    /// Maps the vCPU's page of state, of so many bytes, once more.
    pub(super) fn control(&self, bytes: usize) -> Result<KvmRunWrapper, Error> {
        KvmRunWrapper::mmap_from_fd(&self.fd, bytes).map_err(Error::kvm("the vCPU's state"))
    }

    /// Runs the vCPU until the guest ends.
    pub(super) fn run(mut self, gate: &Gate<SavedVcpu>, bus: &Bus<Irq>) {
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
    fn run_to_end(&mut self, gate: &Gate<SavedVcpu>, bus: &Bus<Irq>) -> io::Result<Option<Outcome>> {
        while gate.pass(self)? {
            let mut step = self.begin(gate, bus)?;
            while let Step::Enter = step {
                step = self.enter(bus)?;
            }
            match step {
                Step::Enter | Step::Pass => {}
                Step::Repeat(write) => self.outstanding = Some(write),
                Step::End(outcome) => return Ok(Some(outcome)),
            }
        }
        Ok(None)
    }

    /// Repeats a write that is outstanding.
    fn begin(&mut self, gate: &Gate<SavedVcpu>, bus: &Bus<Irq>) -> io::Result<Step> {
        let Some((port, byte)) = self.outstanding.take() else { return Ok(Step::Enter) };
        wait_for_output(gate, bus)?;
        Ok(step_of_write(bus, port, &[byte]))
    }

    /// Enters the guest, and handles its exit.
    fn enter(&mut self, bus: &Bus<Irq>) -> io::Result<Step> {
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => return Ok(step_of_write(bus, port, data)),
            Ok(VcpuExit::IoIn(port, data)) => {
                return Ok(bus.read_port(port, data).map_or_else(Step::End, |()| Step::Enter));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.read(address, data);
                return Ok(Step::Enter);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                bus.write(address, data);
                return Ok(Step::Enter);
            }
            // A kick; or a vCPU that another one starts.
            Err(errno) if is_no_exit(errno) => return Ok(Step::Pass),
            Ok(VcpuExit::Intr) => return Ok(Step::Pass),
            Ok(VcpuExit::Shutdown) => LastExit::Shutdown,
            Ok(VcpuExit::InternalError) => LastExit::InternalError,
            Ok(exit) => LastExit::Other(format!("{exit:?}")),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Step::End(self.outcome_of(exit)))
    }

    /// Has KVM complete an access to a device, without an instruction after it.
    fn complete_access(&mut self) -> Result<(), Error> {
        const COMPLETES: &str = "to complete the vCPU's access to a device";
        self.fd.set_kvm_immediate_exit(1);
        match self.fd.run() {
            Err(errno) if is_no_exit(errno) => Ok(()),
            Err(errno) => Err(Error::kvm(COMPLETES)(errno)),
            Ok(exit) => Err(Error::Kvm { what: COMPLETES, source: io::Error::other(format!("{exit:?}")) }),
        }
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

/// Whether KVM returned without an exit of the guest.
fn is_no_exit(errno: kvm_ioctls::Error) -> bool {
    matches!(errno.errno(), libc::EINTR | libc::EAGAIN)
}

fn step_of_write(bus: &Bus<Irq>, port: u16, data: &[u8]) -> Step {
    match bus.write_port(port, data) {
        PortWrite::Done => Step::Enter,
        PortWrite::Full => data.first().map_or(Step::Enter, |&byte| Step::Repeat((port, byte))),
        PortWrite::Ended(outcome) => Step::End(outcome),
    }
}

/// Waits until the second serial port's output takes more, or the vCPU is not to run any more.
fn wait_for_output(gate: &Gate<SavedVcpu>, bus: &Bus<Irq>) -> io::Result<()> {
    let (output, halt) = (bus.commands_fd(), gate.halt_fd());
    let mut fds = [PollFd::new(&output, PollFlags::OUT), PollFd::new(&halt, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Parked for Vcpu {
    type Saved = SavedVcpu;

    fn stop_time(&mut self) -> io::Result<()> {
        // That of a restored vCPU has stopped when its state was saved.
        if self.stopped.is_none() {
            self.stopped = Some(StoppedCounter::of(&self.fd)?);
        }
        Ok(())
    }

    fn start_time(&mut self, cycles: u64) -> io::Result<()> {
        match self.stopped.take() {
            // A guest that was not paused keeps the time that KVM gave it.
            Some(counter) if cycles > 0 => counter.start(&self.fd, cycles),
            _ => Ok(()),
        }
    }

    fn save(&mut self) -> Result<SavedVcpu, Error> {
        // The others have none: see `Step::Enter`.
        if self.outstanding.is_some() {
            self.complete_access()?;
        }
        let counter = self.stopped.map_or_else(|| StoppedCounter::of(&self.fd), Ok)?;
        let state = VcpuState::read(&self.fd, &self.msrs)?;
        Ok(SavedVcpu { number: self.number, apic_id: self.apic_id, counter, outstanding: self.outstanding, state })
    }

    fn allow_entry(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }
}
