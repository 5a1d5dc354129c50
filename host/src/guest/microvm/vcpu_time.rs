//! A vCPU's time stamp counter, which stands still while the guest is paused.
//!
//! KVM guesses the purpose of a write to the counter that is about a second from what it expects, and may ignore it. So the
//! counter's offset is written, where KVM has it (Linux 5.16 and newer); the same for all vCPUs, so that their counters
//! agree as before.
#![allow(unsafe_code, reason = "KVM writes the offset to an address; the processor's counter is an instruction")]

use std::io;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use libc::c_ulong;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

/// The counter's register.
const IA32_TSC: u32 = 0x10;

/// KVM's ioctls.
const KVMIO: u32 = 0xae;
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// A counter that stands still.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoppedCounter {
    /// What KVM adds to the host's counter.
    Offset(u64),
    /// Its value, where KVM does not reveal the offset. A pause below a second may count then.
    Value(u64),
}

impl StoppedCounter {
    /// Reads the counter of a vCPU that does not run.
    ///
    /// # Errors
    ///
    /// KVM's.
    pub(super) fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        let mut offset = 0;
        if with_offset(vcpu, KVM_GET_DEVICE_ATTR(), &mut offset).is_ok() {
            return Ok(Self::Offset(offset));
        }
        let mut registers = counter_register(0)?;
        let count = vcpu.get_msrs(&mut registers)?;
        let value = registers.as_slice().first().filter(|_| count == 1).map(|register| register.data);
        value.map(Self::Value).ok_or_else(|| io::Error::other("KVM does not read the time stamp counter"))
    }

    /// Lets the counter go on, after so many cycles of the host's processor.
    ///
    /// # Errors
    ///
    /// KVM's.
    pub(super) fn start(self, vcpu: &VcpuFd, cycles: u64) -> io::Result<()> {
        match self {
            Self::Offset(offset) => with_offset(vcpu, KVM_SET_DEVICE_ATTR(), &mut offset.wrapping_sub(cycles)),
            Self::Value(value) => match vcpu.set_msrs(&counter_register(value)?)? {
                1 => Ok(()),
                _ => Err(io::Error::other("KVM does not write the time stamp counter")),
            },
        }
    }
}

/// Has KVM read or write the counter's offset.
fn with_offset(vcpu: &VcpuFd, request: c_ulong, offset: &mut u64) -> io::Result<()> {
    let addr = std::ptr::from_mut(offset).expose_provenance() as u64;
    let attribute = kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr };
    // SAFETY: both requests take the attribute, and read or write the eight bytes at its address, which are `offset`'s.
    match unsafe { ioctl_with_ref(vcpu, request, &attribute) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn counter_register(data: u64) -> io::Result<Msrs> {
    Msrs::from_entries(&[kvm_msr_entry { index: IA32_TSC, data, ..kvm_msr_entry::default() }])
        .map_err(|error| io::Error::other(format!("{error:?}")))
}

/// Returns the host's own counter.
pub(super) fn host_cycles() -> u64 {
    // SAFETY: every processor with KVM has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
