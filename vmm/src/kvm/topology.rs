//! CPUID's account of how a VM's vCPUs hang together: one package, one core for each vCPU, one
//! thread for each core. KVM's own account is of the host, and of no use to the guest.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::KvmError;

/// Leaf 0 (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E): highest leaf and vendor.
const LEAF_VENDOR: u32 = 0x0;
const VENDOR_AMD_EBX: u32 = u32::from_le_bytes(*b"Auth");
/// Leaf 1: initial APIC id in EBX 31..24, logical processors in EBX 23..16, HTT in EDX.
const LEAF_FEATURES: u32 = 0x1;
const HTT: u32 = 1 << 28;
/// Leaves 4 (Intel) and 8000_001Dh (AMD): caches; who shares one in EAX 25..14, cores in EAX 31..26.
const LEAF_CACHE: u32 = 0x4;
const LEAF_AMD_CACHE: u32 = 0x8000_001D;
const CACHE_TYPE_MASK: u32 = 0x1F;
const LAST_LEVEL: u32 = 3;
/// Leaves 0xB and 0x1F: one subleaf for each level; EDX is the x2APIC id.
const LEAF_TOPOLOGY: u32 = 0xB;
const LEAF_TOPOLOGY_V2: u32 = 0x1F;
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
/// AMD: CmpLegacy says that HTT means cores.
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const CMP_LEGACY: u32 = 1 << 1;
/// AMD: core count in ECX 7..0, bits of an APIC id in ECX 15..12.
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
/// AMD: extended APIC id in EAX, core in EBX, node in ECX.
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001E;

/// Replaces the host's topology by that of `vcpus` vCPUs.
pub(super) fn describe(cpuid: &mut CpuId, vcpus: u8) -> Result<(), KvmError> {
    let count = u32::from(vcpus);
    // Room for APIC ids is a power of two.
    let id_bits = count.next_power_of_two().trailing_zeros();
    let ids = (1 << id_bits) - 1;
    let vendor = cpuid.as_slice().iter().find(|e| e.function == LEAF_VENDOR);
    let (highest, amd) = vendor.map_or((0, false), |e| (e.eax, e.ebx == VENDOR_AMD_EBX));
    cpuid.retain(|e| ![LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2].contains(&e.function));
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ebx = (entry.ebx & 0xFF00_FFFF) | ((ids + 1) << 16);
                entry.edx = with(entry.edx, HTT, count > 1);
            }
            LEAF_CACHE | LEAF_AMD_CACHE if entry.eax & CACHE_TYPE_MASK != 0 => {
                let shared = (entry.eax >> 5) & 0b111 >= LAST_LEVEL;
                let sharers = if shared { ids } else { 0 };
                let cores = if entry.function == LEAF_CACHE { ids } else { 0 };
                entry.eax = (entry.eax & 0x3FFF) | (sharers << 14) | (cores << 26);
            }
            LEAF_AMD_FEATURES if amd => {
                entry.ecx = with(entry.ecx, CMP_LEGACY, count > 1);
            }
            LEAF_AMD_SIZES if amd => {
                entry.ecx = (entry.ecx & 0xFFFF_0F00) | (id_bits << 12) | (count - 1);
            }
            LEAF_AMD_TOPOLOGY => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
            _ => {}
        }
    }
    if highest < LEAF_TOPOLOGY {
        return Ok(());
    }
    let levels = [
        (0, 1, LEVEL_THREAD),
        (id_bits, count, LEVEL_CORE),
        (0, 0, 0),
    ];
    for (index, (shift, below, kind)) in (0..).zip(levels) {
        let level = kvm_cpuid_entry2 {
            function: LEAF_TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: below,
            ecx: kind | index,
            ..Default::default()
        };
        cpuid
            .push(level)
            .map_err(|_| KvmError::Mismatch("this host's CPUID has too many leaves".into()))?;
    }
    Ok(())
}

fn with(register: u32, bit: u32, on: bool) -> u32 {
    if on { register | bit } else { register & !bit }
}

/// Fills in what differs between the vCPUs of one VM.
pub(super) fn personalise(cpuid: &mut CpuId, id: u32) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => entry.ebx = (entry.ebx & 0x00FF_FFFF) | (id << 24),
            LEAF_TOPOLOGY => entry.edx = id,
            LEAF_AMD_TOPOLOGY => (entry.eax, entry.ebx) = (id, id),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = |e: &&kvm_cpuid_entry2| e.function == function && e.index == index;
        *cpuid.as_slice().iter().find(found).unwrap()
    }

    fn amd_host() -> CpuId {
        let entry = |function, eax, ebx, ecx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            entry(LEAF_VENDOR, 0xD, VENDOR_AMD_EBX, 0),
            entry(LEAF_FEATURES, 0, 0x7F40_0000, 0),
            entry(LEAF_TOPOLOGY, 5, 64, 0x100),
            entry(LEAF_AMD_FEATURES, 0, 0, 0),
            entry(LEAF_AMD_SIZES, 0, 0, 0x703F),
            entry(LEAF_AMD_TOPOLOGY, 9, 0x109, 0x300),
        ])
        .unwrap()
    }

    #[test]
    fn one_package_with_a_core_for_each_vcpu() {
        let mut cpuid = amd_host();
        describe(&mut cpuid, 6).unwrap();
        personalise(&mut cpuid, 5);
        let features = leaf(&cpuid, LEAF_FEATURES, 0);
        assert_eq!((features.ebx, features.edx & HTT), (0x0508_0000, HTT));
        let core = leaf(&cpuid, LEAF_TOPOLOGY, 1);
        assert_eq!((core.eax, core.ebx, core.ecx), (3, 6, 0x201));
        assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 0).edx, 5);
        assert_eq!(leaf(&cpuid, LEAF_AMD_SIZES, 0).ecx, 0x3005);
        let amd = leaf(&cpuid, LEAF_AMD_TOPOLOGY, 0);
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (5, 5, 0));
    }

    #[test]
    fn a_single_vcpu_is_not_multithreaded() {
        let mut cpuid = amd_host();
        describe(&mut cpuid, 1).unwrap();
        assert_eq!(leaf(&cpuid, LEAF_FEATURES, 0).edx & HTT, 0);
        assert_eq!(leaf(&cpuid, LEAF_AMD_FEATURES, 0).ecx & CMP_LEGACY, 0);
        assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 1).eax, 0);
    }
}
