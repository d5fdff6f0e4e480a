//! A vCPU's whole state, saved and restored in KVM's order (I7).

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::KvmError;
use super::msrs::{IA32_TSC, IA32_TSC_DEADLINE};
use super::tsc::{self, TscChange};

/// Saved registers, interrupt state and clock of one vCPU.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    tsc_offset: Option<u64>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

impl std::fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuState")
            .field("rip", &format_args!("{:#x}", self.regs.rip))
            .finish_non_exhaustive()
    }
}

impl VcpuState {
    /// Which of `wanted` this host's KVM can really read; its own list names some that it can't.
    pub(super) fn readable_msrs(fd: &VcpuFd, wanted: &[u32]) -> Result<Vec<u32>, KvmError> {
        let mut indices = wanted.to_vec();
        loop {
            let mut msrs = msr_list(indices.iter().map(|index| (*index, 0)))?;
            let read = fd
                .get_msrs(&mut msrs)
                .map_err(KvmError::call("KVM_GET_MSRS"))?;
            if read >= indices.len() {
                return Ok(indices);
            }
            indices.remove(read);
        }
    }

    /// Reads everything. The vCPU must have no I/O pending.
    pub fn save(fd: &VcpuFd, indices: &[u32]) -> Result<Self, KvmError> {
        // Reading the MP state delivers pending INIT and SIPI, so it comes first.
        let mp_state = fd
            .get_mp_state()
            .map_err(KvmError::call("KVM_GET_MP_STATE"))?;
        let mut msrs = msr_list(indices.iter().map(|index| (*index, 0)))?;
        let read = fd
            .get_msrs(&mut msrs)
            .map_err(KvmError::call("KVM_GET_MSRS"))?;
        if let Some(index) = indices.get(read) {
            return Err(KvmError::Mismatch(format!("MSR {index:#x} can't be read")));
        }
        Ok(Self {
            mp_state,
            msrs: msrs.as_slice().to_vec(),
            tsc_offset: tsc::offset(fd)?,
            regs: fd.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?,
            xcrs: fd.get_xcrs().map_err(KvmError::call("KVM_GET_XCRS"))?,
            xsave: fd.get_xsave().map_err(KvmError::call("KVM_GET_XSAVE"))?,
            debug_regs: fd
                .get_debug_regs()
                .map_err(KvmError::call("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?,
            events: fd
                .get_vcpu_events()
                .map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Puts everything back, in the order KVM needs: CPUID (set when the vCPU was made),
    /// sregs, LAPIC, MSRs, then events and MP state. `indices` are the MSRs this host knows.
    pub(super) fn restore(
        &self,
        fd: &VcpuFd,
        indices: &[u32],
        change: TscChange,
    ) -> Result<(), KvmError> {
        let Self {
            regs,
            sregs,
            xcrs,
            xsave,
            debug_regs,
            lapic,
            msrs,
            tsc_offset,
            events,
            mp_state,
        } = self;
        if let Some(unknown) = msrs.iter().find(|m| !indices.contains(&m.index)) {
            return Err(KvmError::Mismatch(format!(
                "MSR {:#x} is unknown to this host's KVM",
                unknown.index
            )));
        }
        fd.set_sregs(sregs)
            .map_err(KvmError::call("KVM_SET_SREGS"))?;
        fd.set_regs(regs).map_err(KvmError::call("KVM_SET_REGS"))?;
        fd.set_xcrs(xcrs).map_err(KvmError::call("KVM_SET_XCRS"))?;
        // SAFETY: the guest has no features with state beyond the 4 KiB of kvm_xsave
        // (AMX is hidden, see `cpuid`).
        #[allow(unsafe_code)]
        unsafe { fd.set_xsave(xsave) }.map_err(KvmError::call("KVM_SET_XSAVE"))?;
        fd.set_debug_regs(debug_regs)
            .map_err(KvmError::call("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(lapic)
            .map_err(KvmError::call("KVM_SET_LAPIC"))?;
        let tsc_is_set = restore_tsc(fd, msrs, *tsc_offset, change)?;
        restore_msrs(fd, msrs, tsc_is_set)?;
        fd.set_vcpu_events(events)
            .map_err(KvmError::call("KVM_SET_VCPU_EVENTS"))?;
        fd.set_mp_state(*mp_state)
            .map_err(KvmError::call("KVM_SET_MP_STATE"))
    }
}

/// Sets the counter, which comes before everything that counts in it. False if it has to be
/// written like any other MSR.
fn restore_tsc(
    fd: &VcpuFd,
    saved: &[kvm_msr_entry],
    offset: Option<u64>,
    change: TscChange,
) -> Result<bool, KvmError> {
    let TscChange::Shift(shift) = change else {
        return Ok(true);
    };
    let tsc = saved.iter().find(|m| m.index == IA32_TSC);
    match (offset, tsc) {
        (Some(offset), _) => tsc::set_offset(fd, offset.wrapping_add(shift)),
        // Saved by a host that knows no offsets.
        (None, Some(tsc)) => tsc::set_offset(fd, tsc.data.wrapping_sub(tsc::host())),
        (None, None) => Ok(false),
    }
}

/// The deadline timer comes last.
fn restore_msrs(fd: &VcpuFd, saved: &[kvm_msr_entry], tsc_is_set: bool) -> Result<(), KvmError> {
    let (mut ordered, deadline): (Vec<_>, Vec<_>) = saved
        .iter()
        .map(|m| (m.index, m.data))
        .filter(|(index, _)| !(tsc_is_set && *index == IA32_TSC))
        .partition(|(index, _)| *index != IA32_TSC_DEADLINE);
    ordered.sort_by_key(|(index, _)| *index != IA32_TSC);
    ordered.extend(deadline);
    let msrs = msr_list(ordered.iter().copied())?;
    let written = fd.set_msrs(&msrs).map_err(KvmError::call("KVM_SET_MSRS"))?;
    match ordered.get(written) {
        Some((index, value)) => Err(KvmError::Mismatch(format!(
            "MSR {index:#x} does not take {value:#x} on this host"
        ))),
        None => Ok(()),
    }
}

fn msr_list(entries: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, KvmError> {
    let entries: Vec<_> = entries
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries)
        .map_err(|_| KvmError::Mismatch(format!("{} MSRs are too many", entries.len())))
}
