//! The state of a whole guest, from which others begin.

use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::bus::{Bus, PortStates};
use super::error::Error;
use super::kick;
use super::machine_state::MachineState;
use super::memory_image::MemoryImage;
use super::microvm::{Microvm, Moment, Phase, connect, connect_serial_ports, kvm_state_bytes};
use super::vcpu::{SavedVcpu, Vcpu};
use super::vm::{Vm, open_kvm};
use crate::transport::kvm::Irq;
use crate::transport::mmio::{Mmio, MmioSnapshot};
use crate::vsock::Device;

/// The state of a paused guest, from which others begin: "booted and loaded", as often as wanted.
///
/// It is a value of this process: its memory is a file without a name, and its time that of this host's processor. Clones
/// share it.
///
/// ```no_run
/// use std::os::unix::net::UnixStream;
/// use scx_vsock::SchedStatsClient;
/// use scx_vsock::guest::microvm::{Microvm, MicrovmSnapshot};
///
/// # fn boot() -> Result<Microvm, Box<dyn std::error::Error>> { unimplemented!() }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let source: Microvm = boot()?; // until its agent is ready
/// source.pause()?;
/// let snapshot: MicrovmSnapshot = source.snapshot()?;
/// for _ in 0..10 {
///     let (_host, commands) = UnixStream::pair()?;
///     let restored = snapshot.restore(Box::new(std::io::stdout()), commands)?;
///     restored.resume()?; // its time goes on where that of the source stood
///     println!("{:#}", SchedStatsClient::builder(restored.handle().agent()).build().stats(&[])?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MicrovmSnapshot(Arc<Saved>);

struct Saved {
    memory: MemoryImage,
    /// In the order of their numbers.
    vcpus: Vec<SavedVcpu>,
    machine: MachineState,
    ports: PortStates,
    vsock: MmioSnapshot,
    cid: u64,
    moment: Moment,
    commands_sent: u64,
}

impl Microvm {
    /// Returns the state of the paused guest: processors, interrupt controllers, timers, devices and memory. Other guests
    /// begin with it, as often as wanted; this one goes on when it is resumed.
    ///
    /// Its connections are no part of it, nor are bytes that have not reached its serial ports yet. It takes memory for each
    /// of the guest's pages that is not zero.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`], also before the guest's first instruction; [`Error::Ended`]; [`Error::Kvm`]; [`Error::Host`].
    pub fn snapshot(&self) -> Result<MicrovmSnapshot, Error> {
        self.save(MicrovmSnapshot::of)
    }
}

impl MicrovmSnapshot {
    /// Returns the state of a guest whose vCPUs and device stand still.
    fn of(vm: &Vm, bus: &Bus<Irq>, mut vcpus: Vec<SavedVcpu>, moment: Moment) -> Result<Self, Error> {
        vcpus.sort_by_key(SavedVcpu::number);
        // Input may still come. Its interrupt is then in the state of the port, and is raised anew at the restore, or it is
        // one too many.
        let (machine, ports) = (MachineState::read(vm.fd())?, bus.ports());
        let (device, memory) = (bus.vsock(), MemoryImage::of(vm.memory())?);
        let (vsock, cid) = (device.snapshot()?, device.handle().guest_cid());
        Ok(Self(Arc::new(Saved {
            memory,
            vcpus,
            machine,
            ports,
            vsock,
            cid,
            moment,
            commands_sent: bus.commands_sent(),
        })))
    }

    /// Returns how many bytes the guest had written to its second serial port. Those that a restored guest writes follow
    /// them: where they are messages, it goes on in the middle of one.
    #[must_use]
    pub fn commands_sent(&self) -> u64 {
        self.0.commands_sent
    }

    /// Returns a guest in this state, paused, with console and second serial port as of
    /// [`MicrovmBuilder::build`](super::MicrovmBuilder::build). Its time goes on from the snapshot's when it is resumed.
    ///
    /// Its memory is the snapshot's until it writes it. Its vsock device has no connection, and tells the driver so
    /// (TRANSPORT_RESET): sessions of the other guest end here and go on there.
    ///
    /// # Errors
    ///
    /// See [`Error`]; [`Error::Msr`] where KVM does not take back what it read.
    pub fn restore(&self, console: Box<dyn Write + Send>, commands: UnixStream) -> Result<Microvm, Error> {
        let Saved { memory, vcpus, machine, ports, vsock, cid, moment, .. } = &*self.0;
        let kvm = open_kvm()?;
        kick::prepare()?;
        let vm = Vm::with_memory(&kvm, memory.map()?)?;
        let vcpus = vcpus.iter().map(|vcpu| Vcpu::restore(&vm, vcpu)).collect::<Result<Vec<_>, _>>()?;
        machine.write(vm.fd())?;
        let vsock = connect(&vm, |interrupt| {
            Ok(Mmio::restore(Device::new(*cid)?, Arc::clone(vm.memory()), interrupt, vsock)?)
        })?;
        let input = commands.try_clone()?;
        let interrupts = connect_serial_ports(&vm)?;
        let bus = Arc::new(Bus::with_ports(ports.clone(), console, commands, interrupts, vsock)?);
        let microvm = Microvm::with(vm, bus, input, Phase::Paused(*moment))?;
        microvm.add_vcpus(vcpus, kvm_state_bytes(&kvm)?)?;
        Ok(microvm)
    }
}

const _: () = {
    const fn shared_between_threads<T: Send + Sync + 'static>() {}
    shared_between_threads::<MicrovmSnapshot>();
};

impl fmt::Debug for MicrovmSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Saved { memory, vcpus, cid, moment, .. } = &*self.0;
        let mut fields = f.debug_struct("MicrovmSnapshot");
        fields.field("memory", memory).field("vcpus", &vcpus.len()).field("cid", cid).field("moment", moment);
        fields.finish_non_exhaustive()
    }
}
