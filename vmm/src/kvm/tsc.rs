//! A vCPU's time stamp counter, set through its offset from the host's.
//!
//! A plain write of the MSR would not do: KVM takes a value close to the age of the VM for an attempt
//! to synchronise vCPUs and ignores it, which can put guest time back by up to a second (I8). Nor
//! would it keep the counters of several vCPUs equal, for they are written one after the other.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::KvmError;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xE1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xE2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xE3, kvm_device_attr);

/// What becomes of a vCPU's counter when a state is put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TscChange {
    /// It goes on as it is: the same VM on the same host.
    Keep,
    /// It goes on from where it was saved; the host's counter has to be thought back by this.
    Shift(u64),
}

impl TscChange {
    /// For a state that was saved when the host's counter stood at `then`. One value serves all
    /// vCPUs of a VM, so that their counters stay as far apart as they were: not at all.
    pub fn since(then: u64) -> Self {
        Self::Shift(then.wrapping_sub(host()))
    }
}

/// The host's counter.
pub fn host() -> u64 {
    // SAFETY: RDTSC has no preconditions.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

/// Guest counter less host counter; none where KVM has no such attribute (before Linux 5.16).
pub(super) fn offset(fd: &VcpuFd) -> Result<Option<u64>, KvmError> {
    let mut offset = 0u64;
    let attribute = attribute(&raw mut offset as u64);
    // SAFETY: KVM writes one u64 at `addr`, and `offset` outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) };
    // A KVM that knows the call has not this attribute, or it does not know the call either.
    let errno = std::io::Error::last_os_error().raw_os_error();
    if result != 0 && matches!(errno, Some(libc::ENXIO | libc::EINVAL)) {
        return Ok(None);
    }
    done(result, "KVM_GET_DEVICE_ATTR(TSC offset)")?;
    Ok(Some(offset))
}

/// Sets the offset. False where KVM has no such attribute.
pub(super) fn set_offset(fd: &VcpuFd, offset: u64) -> Result<bool, KvmError> {
    let attribute = attribute(&raw const offset as u64);
    // SAFETY: KVM reads one u64 at `addr`, and `offset` outlives the calls.
    #[allow(unsafe_code)]
    let result = unsafe {
        if ioctl_with_ref(fd, KVM_HAS_DEVICE_ATTR(), &attribute) != 0 {
            return Ok(false);
        }
        ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute)
    };
    done(result, "KVM_SET_DEVICE_ATTR(TSC offset)")?;
    Ok(true)
}

fn attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr,
        flags: 0,
    }
}

fn done(result: i32, call: &'static str) -> Result<(), KvmError> {
    if result == 0 {
        Ok(())
    } else {
        Err(KvmError::call(call)(std::io::Error::last_os_error()))
    }
}
