//! The CPUID a guest sees: what KVM supports, less what can't move to a twin.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, topology};

/// Leaf 1 (Intel SDM vol. 2, CPUID): feature flags.
const LEAF_FEATURES: u32 = 0x1;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// The LAPIC timer's deadline mode, which KVM has but does not always list.
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
/// VMX and SVM (AMD APM, CPUID 8000_0001h and 8000_000Ah): a nested guest's state is not captured.
const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const AMD_ECX_SVM: u32 = 1 << 2;
const LEAF_SVM: u32 = 0x8000_000A;
/// Leaf 7: extended features.
const LEAF_EXTENDED: u32 = 0x7;
/// AMX (tiles, BF16, INT8): its state does not fit `KVM_GET_XSAVE`.
const LEAF7_EDX_AMX: u32 = (1 << 22) | (1 << 24) | (1 << 25);
/// Leaf 0xA: performance counters, whose state belongs to one host.
const LEAF_PMU: u32 = 0xA;
/// Leaf 8000_0007h: the TSC's rate never changes. It may, when the guest moves.
const LEAF_POWER: u32 = 0x8000_0007;
const POWER_EDX_INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0xD: XSAVE. Components 17 and 18 are AMX.
const LEAF_XSAVE: u32 = 0xD;
const XCR0_AMX: u32 = (1 << 17) | (1 << 18);

/// The CPUID for a guest's `vcpus` vCPUs, before [`topology::personalise`].
pub(super) fn for_guest(kvm: &Kvm, vcpus: u8) -> Result<CpuId, KvmError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx = (entry.ecx | LEAF1_ECX_HYPERVISOR) & !LEAF1_ECX_VMX;
                if deadline {
                    entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
            }
            LEAF_AMD_FEATURES => entry.ecx &= !AMD_ECX_SVM,
            LEAF_EXTENDED if entry.index == 0 => entry.edx &= !LEAF7_EDX_AMX,
            LEAF_XSAVE if entry.index == 0 => entry.eax &= !XCR0_AMX,
            LEAF_POWER => entry.edx &= !POWER_EDX_INVARIANT_TSC,
            LEAF_PMU | LEAF_SVM => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
    topology::describe(&mut cpuid, vcpus)?;
    Ok(cpuid)
}

/// What two hosts' guests must see alike: the CPUID of vCPU 0.
pub fn of_first_vcpu(cpuid: &CpuId) -> CpuId {
    let mut cpuid = cpuid.clone();
    // KVM's answer names the host CPU that gave it.
    topology::personalise(&mut cpuid, 0);
    cpuid
}
