//! Whether KVM runs Linux here.
//!
//! That `/dev/kvm` opens proves nothing: a nested or paravirtual KVM may emulate one instruction after the other, know few
//! of them, lose interrupts or hang. So a guest of a few instructions tries what Linux begins with.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use super::error::Error;
use super::kernel::Entry;
use super::kick::{self, Kick};
use super::outcome::Outcome;
use super::place::Place;
use super::probe_program::{self, CODE, IDT, IDT_BYTES, PORT, ROUNDS, STACK};
use super::vm::{Vm, open_kvm, suberror};
use super::{cpuid, registers};
use crate::guest::topology::Topology;

/// How long a probe takes at most by [`probe`]'s callers in this library.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a vCPU may take to stop after its time.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

const MEMORY_BYTES: u64 = 2 << 20;

/// A step of the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeStep {
    /// The first instruction, in long mode.
    LongMode,
    /// An SSE instruction, as every program for x86_64 has.
    Sse,
    /// A model-specific register keeps what is written.
    Msr,
    /// The local APIC's timer interrupts a halted vCPU.
    Timer,
    /// Eight million instructions.
    Speed,
}

impl ProbeStep {
    const ALL: [Self; 5] = [Self::LongMode, Self::Sse, Self::Msr, Self::Timer, Self::Speed];
}

impl fmt::Display for ProbeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LongMode => f.write_str("64-bit code"),
            Self::Sse => f.write_str("SSE instructions"),
            Self::Msr => f.write_str("model-specific registers"),
            Self::Timer => f.write_str("the local APIC's timer"),
            Self::Speed => write!(f, "{} million instructions", 2 * ROUNDS / 1_000_000),
        }
    }
}

/// Why KVM does not run Linux here.
///
/// ```
/// use scx_vsock::guest::microvm::{KvmUnusable, Outcome, ProbeStep};
///
/// let outcome = Outcome::InternalError { vcpu: 0, address: 0x10_0004, suberror: 1 };
/// assert_eq!(
///     KvmUnusable::Failed { step: ProbeStep::Sse, outcome }.to_string(),
///     "/dev/kvm opens, but does not run SSE instructions: KVM cannot run the instruction of vCPU 0 at 0x100004 (internal \
///      error 1)"
/// );
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmUnusable {
    /// KVM cannot be opened, or makes no machine.
    #[error(transparent)]
    NoMachine(#[from] Error),
    /// The probe's guest ended in this step.
    #[error("/dev/kvm opens, but does not run {step}: {outcome}")]
    Failed {
        /// The step.
        step: ProbeStep,
        /// How the guest ended.
        outcome: Outcome,
    },
    /// The probe's guest computed a wrong result in this step.
    #[error("/dev/kvm opens, but does not run {step} as a processor does")]
    WrongResult {
        /// The step.
        step: ProbeStep,
    },
    /// The probe's guest was in this step when its time was over.
    #[error("/dev/kvm opens, but is too slow for Linux: {step} took more than the {} s of the probe", within.as_secs_f32())]
    TooSlow {
        /// The step.
        step: ProbeStep,
        /// The time limit of all steps.
        within: Duration,
    },
}

/// What the probe's thread reports.
enum Report {
    /// The program wrote this number.
    Wrote(u8),
    Ended(Outcome),
}

/// Runs a guest of a few instructions on KVM, for at most this long.
///
/// ```no_run
/// use scx_vsock::guest::microvm::{PROBE_TIMEOUT, probe};
///
/// match probe(PROBE_TIMEOUT) {
///     Ok(()) => println!("KVM runs Linux here"),
///     Err(unusable) => println!("{unusable}"),
/// }
/// ```
///
/// # Errors
///
/// Why KVM does not run Linux.
pub fn probe(within: Duration) -> Result<(), KvmUnusable> {
    let deadline = Instant::now() + within;
    let kvm = open_kvm()?;
    let (mut kick, reports) = start(&kvm)?;
    let outcome = follow(&reports, deadline, within);
    kick.kick();
    // A vCPU that does not even stop is left to the process' end.
    let stop_by = Instant::now() + STOP_TIMEOUT;
    while let Ok(_late) = reports.recv_timeout(stop_by.saturating_duration_since(Instant::now())) {}
    if matches!(reports.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected)) {
        kick.join();
    }
    outcome
}

/// Takes the reports until the last step, the guest's end, or the deadline.
fn follow(reports: &Receiver<Report>, deadline: Instant, within: Duration) -> Result<(), KvmUnusable> {
    for (number, step) in (1..).zip(ProbeStep::ALL) {
        match reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Report::Wrote(written)) if written == number => {}
            Ok(Report::Wrote(_)) => return Err(KvmUnusable::WrongResult { step }),
            Ok(Report::Ended(outcome)) => return Err(KvmUnusable::Failed { step, outcome }),
            Err(_) => return Err(KvmUnusable::TooSlow { step, within }),
        }
    }
    Ok(())
}

/// Starts the probe's guest on a thread.
fn start(kvm: &Kvm) -> Result<(Kick, Receiver<Report>), Error> {
    kick::prepare()?;
    let vm = Vm::new(kvm, MEMORY_BYTES)?;
    let mut vcpu = vm.fd().create_vcpu(0).map_err(Error::kvm("a vCPU"))?;
    set_up(kvm, &vm, &vcpu)?;
    let bytes = kvm.get_vcpu_mmap_size().map_err(Error::kvm("to map a vCPU's state"))?;
    let control = kvm_ioctls::KvmRunWrapper::mmap_from_fd(&vcpu, bytes).map_err(Error::kvm("the vCPU's state"))?;
    let (sender, reports) = channel();
    let thread = thread::Builder::new().name("kvm-probe".into()).spawn(move || {
        run(&mut vcpu, &sender);
        // KVM writes into the machine's memory as long as the vCPU can run.
        drop(vm);
    })?;
    Ok((Kick::new(thread, control), reports))
}

fn set_up(kvm: &Kvm, vm: &Vm, vcpu: &VcpuFd) -> Result<(), Error> {
    const USE_SSE: u64 = 1 << 9 | 1 << 10;
    const WITH_FLOATING_POINT: u64 = 1 << 1;
    const EMULATE_OR_SWITCHED: u64 = 1 << 2 | 1 << 3;
    let topology = Topology::plain(1);
    let place = Place::of(&topology, 0);
    vcpu.set_cpuid2(&cpuid::features(kvm, &topology, place)?).map_err(Error::kvm("the vCPU's features"))?;
    let entry = Entry::Long(CODE);
    let mut special = vcpu.get_sregs().map_err(Error::kvm("to read the vCPU's registers"))?;
    registers::set_mode(vm.memory(), entry, &mut special).map_err(io::Error::other)?;
    probe_program::load(vm.memory()).map_err(io::Error::other)?;
    special.cr4 |= USE_SSE;
    special.cr0 = special.cr0 & !EMULATE_OR_SWITCHED | WITH_FLOATING_POINT;
    (special.idt.base, special.idt.limit) = (IDT, IDT_BYTES - 1);
    vcpu.set_sregs(&special).map_err(Error::kvm("the vCPU's mode"))?;
    let mut general = registers::registers(entry);
    general.rsp = STACK;
    vcpu.set_regs(&general).map_err(Error::kvm("the vCPU's registers"))
}

/// Runs the vCPU until its last step, its end or a kick.
fn run(vcpu: &mut VcpuFd, reports: &Sender<Report>) {
    let last = u8::try_from(ProbeStep::ALL.len()).unwrap_or(u8::MAX);
    loop {
        let exit = match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, &[number])) => {
                if reports.send(Report::Wrote(number)).is_err() || number >= last {
                    return;
                }
                continue;
            }
            Ok(VcpuExit::InternalError) => None,
            Ok(exit) => Some(format!("{exit:?}")),
            Err(errno) if errno.errno() == libc::EINTR => {
                if vcpu.get_kvm_run().immediate_exit != 0 {
                    return;
                }
                continue;
            }
            Err(errno) => Some(io::Error::from(errno).to_string()),
        };
        let _nobody_waits = reports.send(Report::Ended(outcome_of(vcpu, exit)));
        return;
    }
}

/// Returns the outcome of an exit; `None` is an internal error.
fn outcome_of(vcpu: &mut VcpuFd, exit: Option<String>) -> Outcome {
    let address = vcpu.get_regs().map_or(0, |registers| registers.rip);
    match exit {
        None => Outcome::InternalError { vcpu: 0, address, suberror: suberror(vcpu) },
        Some(exit) => Outcome::UnknownExit { vcpu: 0, address, exit },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reports: impl IntoIterator<Item = Report>) -> Result<(), String> {
        let (sender, receiver) = channel();
        reports.into_iter().for_each(|report| sender.send(report).unwrap());
        follow(&receiver, Instant::now(), Duration::from_millis(1500)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_step_that_fails_is_named() {
        assert_eq!(of((1..=5).map(Report::Wrote)), Ok(()));
        assert_eq!(
            of((1..=3).map(Report::Wrote)).unwrap_err(),
            "/dev/kvm opens, but is too slow for Linux: the local APIC's timer took more than the 1.5 s of the probe"
        );
        let wrong = of([Report::Wrote(1), Report::Wrote(0xff)]).unwrap_err();
        assert_eq!(wrong, "/dev/kvm opens, but does not run SSE instructions as a processor does");
        let failed = of([Report::Ended(Outcome::TripleFault { vcpu: 0, address: 1 })]).unwrap_err();
        assert_eq!(failed, "/dev/kvm opens, but does not run 64-bit code: a triple fault on vCPU 0 at 0x1");
    }
}
