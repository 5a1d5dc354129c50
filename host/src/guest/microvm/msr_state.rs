//! A vCPU's model-specific registers.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::error::Error;

/// The time stamp counter, which goes on by its offset.
const IA32_TSC: u32 = 0x10;

/// The kinds of memory (MTRR), of which KVM's list has none.
const MEMORY_TYPES: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// The values of those model-specific registers that KVM reads.
pub(super) struct MsrState(Vec<kvm_msr_entry>);

impl MsrState {
    /// Reads the registers on KVM's list.
    pub(super) fn read(vcpu: &VcpuFd, list: &[u32]) -> io::Result<Self> {
        let memory_types = MEMORY_TYPES.into_iter().flatten().filter(|index| !list.contains(index));
        let indices = list.iter().copied().filter(|&index| index != IA32_TSC).chain(memory_types);
        let registers = indices.filter_map(|index| read(vcpu, index).transpose());
        Ok(Self(registers.collect::<io::Result<_>>()?))
    }

    /// Writes the registers of a vCPU that have other values.
    ///
    /// # Errors
    ///
    /// [`Error::Msr`]; KVM's.
    pub(super) fn write(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        for register in &self.0 {
            let current = read(vcpu, register.index)?;
            if current.is_none_or(|current| current.data != register.data) && !write(vcpu, *register)? {
                return Err(Error::Msr { index: register.index, value: register.data });
            }
        }
        Ok(())
    }
}

/// Reads a register, if KVM has it.
fn read(vcpu: &VcpuFd, index: u32) -> io::Result<Option<kvm_msr_entry>> {
    let mut registers = one(kvm_msr_entry { index, ..kvm_msr_entry::default() })?;
    let count = vcpu.get_msrs(&mut registers)?;
    Ok(registers.as_slice().first().copied().filter(|_| count == 1))
}

/// Writes a register. Returns whether KVM takes the value.
fn write(vcpu: &VcpuFd, register: kvm_msr_entry) -> io::Result<bool> {
    Ok(vcpu.set_msrs(&one(register)?)? == 1)
}

fn one(register: kvm_msr_entry) -> io::Result<Msrs> {
    Msrs::from_entries(&[register]).map_err(|error| io::Error::other(format!("{error:?}")))
}
