//! The state of a vCPU that does not run: its registers and its interrupt controller.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::error::Error;
use super::msr_state::MsrState;
use super::vm::write_extended_state;

/// The state of a vCPU, without its time stamp counter.
pub(super) struct VcpuState {
    features: CpuId,
    activity: kvm_mp_state,
    registers: kvm_regs,
    special: kvm_sregs,
    extended: Box<kvm_xsave>,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    interrupts: kvm_lapic_state,
    msrs: MsrState,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of a vCPU with these model-specific registers. It may have no access to a device outstanding, which
    /// KVM completes at the next entry.
    ///
    /// What is pending is read first and last: KVM handles some of it when it is asked for the first.
    pub(super) fn read(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, Error> {
        const READS: &str = "to read the vCPU's state";
        Ok(Self {
            activity: vcpu.get_mp_state().map_err(Error::kvm(READS))?,
            registers: vcpu.get_regs().map_err(Error::kvm(READS))?,
            special: vcpu.get_sregs().map_err(Error::kvm(READS))?,
            extended: Box::new(vcpu.get_xsave().map_err(Error::kvm(READS))?),
            extended_control: vcpu.get_xcrs().map_err(Error::kvm(READS))?,
            debug: vcpu.get_debug_regs().map_err(Error::kvm(READS))?,
            interrupts: vcpu.get_lapic().map_err(Error::kvm(READS))?,
            msrs: MsrState::read(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(Error::kvm(READS))?,
            features: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm(READS))?,
        })
    }

    /// Writes the state to a vCPU that has not run.
    ///
    /// The features come first, since they decide what registers there are. The mode of the interrupt controller is one of
    /// the special registers, and the deadline of its timer is a model-specific one.
    pub(super) fn write(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        vcpu.set_cpuid2(&self.features).map_err(Error::kvm("the vCPU's features"))?;
        vcpu.set_mp_state(self.activity).map_err(Error::kvm("the vCPU's activity"))?;
        vcpu.set_regs(&self.registers).map_err(Error::kvm("the vCPU's registers"))?;
        vcpu.set_sregs(&self.special).map_err(Error::kvm("the vCPU's mode"))?;
        write_extended_state(vcpu, &self.extended)?;
        // A processor without XSAVE has none.
        if self.extended_control.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.extended_control).map_err(Error::kvm("the vCPU's extended control registers"))?;
        }
        vcpu.set_debug_regs(&self.debug).map_err(Error::kvm("the vCPU's debug registers"))?;
        vcpu.set_lapic(&self.interrupts).map_err(Error::kvm("the vCPU's interrupt controller"))?;
        self.msrs.write(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(Error::kvm("the vCPU's pending events"))
    }
}
