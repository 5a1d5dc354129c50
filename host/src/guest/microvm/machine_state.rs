//! The state of what all vCPUs share: interrupt controllers and timer.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2};
use kvm_ioctls::VmFd;

use super::error::Error;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state of the interrupt controllers and of the timer of a paused guest.
pub(super) struct MachineState {
    chips: [kvm_irqchip; CHIPS.len()],
    timer: kvm_pit_state2,
}

impl MachineState {
    /// Reads the state of a machine.
    pub(super) fn read(vm: &VmFd) -> Result<Self, Error> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..kvm_irqchip::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(Error::kvm("to read an interrupt controller"))?;
        }
        Ok(Self { chips, timer: vm.get_pit2().map_err(Error::kvm("to read the timer"))? })
    }

    /// Writes the state to a machine whose vCPUs have theirs, since a pending interrupt goes on to them.
    pub(super) fn write(&self, vm: &VmFd) -> Result<(), Error> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(Error::kvm("an interrupt controller's state"))?;
        }
        vm.set_pit2(&self.timer).map_err(Error::kvm("the timer's state"))
    }
}
