//! Which model-specific registers belong to a vCPU's state.

use kvm_ioctls::Kvm;

use super::KvmError;

/// Time stamp counter (Intel SDM vol. 4).
pub(super) const IA32_TSC: u32 = 0x10;
/// The LAPIC timer's deadline; written last, since it starts a timer.
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6E0;

/// Performance counter ranges: hidden from guests (see `cpuid`), so never saved.
const PMU: [std::ops::RangeInclusive<u32>; 4] =
    [0xC1..=0xC8, 0x186..=0x18D, 0x309..=0x30C, 0x38D..=0x391];

/// The indices to save and restore, as KVM lists them.
pub(super) fn saved(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indices: Vec<u32> = list.as_slice().to_vec();
    indices.retain(|index| !PMU.iter().any(|range| range.contains(index)));
    Ok(indices)
}
