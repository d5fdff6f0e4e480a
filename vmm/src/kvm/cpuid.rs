//! The CPUID a guest sees: what KVM supports, less what can't move to a twin.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

use super::KvmError;

/// Leaf 1 (Intel SDM, CPUID): feature flags and the initial APIC id.
const LEAF_FEATURES: u32 = 0x1;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// VMX and SVM (AMD APM, CPUID 8000_0001h and 8000_000Ah): a nested guest's state is not captured.
const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const AMD_ECX_SVM: u32 = 1 << 2;
const LEAF_SVM: u32 = 0x8000_000A;
/// Leaf 4: deterministic cache parameters (core counts in EAX).
const LEAF_CACHE: u32 = 0x4;
/// Leaf 7: extended features.
const LEAF_EXTENDED: u32 = 0x7;
/// AMX (tiles, BF16, INT8): its state does not fit `KVM_GET_XSAVE`.
const LEAF7_EDX_AMX: u32 = (1 << 22) | (1 << 24) | (1 << 25);
/// Leaf 0xA: performance counters, whose state belongs to one host.
const LEAF_PMU: u32 = 0xA;
/// Topology leaves: EDX is the x2APIC id.
const LEAF_TOPOLOGY: [u32; 2] = [0xB, 0x1F];
/// Leaf 0xD: XSAVE. Components 17 and 18 are AMX.
const LEAF_XSAVE: u32 = 0xD;
const XCR0_AMX: u32 = (1 << 17) | (1 << 18);

/// The CPUID for a guest's vCPUs, before [`personalise`].
pub(super) fn for_guest(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx = (entry.ecx | LEAF1_ECX_HYPERVISOR) & !LEAF1_ECX_VMX;
            }
            LEAF_AMD_FEATURES => entry.ecx &= !AMD_ECX_SVM,
            LEAF_CACHE => entry.eax &= !0xFFFF_C000,
            LEAF_EXTENDED if entry.index == 0 => entry.edx &= !LEAF7_EDX_AMX,
            LEAF_XSAVE if entry.index == 0 => entry.eax &= !XCR0_AMX,
            LEAF_PMU | LEAF_SVM => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
    Ok(cpuid)
}

/// Fills in what differs between the vCPUs of one VM.
pub(super) fn personalise(cpuid: &mut CpuId, id: u32) {
    for entry in cpuid.as_mut_slice() {
        if entry.function == LEAF_FEATURES {
            entry.ebx = (entry.ebx & 0x00FF_FFFF) | (id << 24);
        } else if LEAF_TOPOLOGY.contains(&entry.function) {
            entry.edx = id;
        }
    }
}

/// A number that is the same on two hosts whose guests see the same CPU.
pub fn digest(cpuid: &CpuId) -> u64 {
    let mut cpuid = cpuid.clone();
    // Undo what differs by whichever host CPU answered.
    personalise(&mut cpuid, 0);
    let words = cpuid
        .as_slice()
        .iter()
        .flat_map(|e| [e.function, e.index, e.eax, e.ebx, e.ecx, e.edx]);
    xxhash_rust::xxh3::xxh3_64(&words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
}
