//! The state KVM keeps for the whole VM: interrupt controllers, PIT and clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm};

/// Saved interrupt controllers, timer and clock of a VM.
#[derive(Serialize, Deserialize)]
pub struct VmChipState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    /// kvmclock, in nanoseconds of guest time.
    clock_ns: u64,
}

impl std::fmt::Debug for VmChipState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmChipState")
            .field("clock_ns", &self.clock_ns)
            .finish_non_exhaustive()
    }
}

impl Vm {
    /// Reads the state that belongs to no single vCPU. All vCPUs must be paused.
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn save_chips(&self) -> Result<VmChipState, KvmError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.fd
                .get_irqchip(&mut chip)
                .map_err(KvmError::call("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        Ok(VmChipState {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: self.fd.get_pit2().map_err(KvmError::call("KVM_GET_PIT2"))?,
            clock_ns: self
                .fd
                .get_clock()
                .map_err(KvmError::call("KVM_GET_CLOCK"))?
                .clock,
        })
    }

    /// Puts saved controllers and timer back; the clock goes on as it is. No vCPU may be
    /// running (I7).
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn restore_chips(&self, state: &VmChipState) -> Result<(), KvmError> {
        let VmChipState {
            pic_master,
            pic_slave,
            ioapic,
            pit,
            clock_ns: _,
        } = state;
        for (chip, id) in [
            (pic_master, KVM_IRQCHIP_PIC_MASTER),
            (pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (ioapic, KVM_IRQCHIP_IOAPIC),
        ] {
            if chip.chip_id != id {
                return Err(KvmError::Mismatch(format!(
                    "interrupt controller {} where {id} belongs",
                    chip.chip_id
                )));
            }
            self.fd
                .set_irqchip(chip)
                .map_err(KvmError::call("KVM_SET_IRQCHIP"))?;
        }
        self.fd
            .set_pit2(pit)
            .map_err(KvmError::call("KVM_SET_PIT2"))
    }

    /// Sets the clock: guest time goes on from where it was saved (I8). No vCPU may have run yet.
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn restore_clock(&self, state: &VmChipState) -> Result<(), KvmError> {
        fail::fail_point!("clock::skip", |_| Ok(()));
        self.fd
            .set_clock(&kvm_clock_data {
                clock: state.clock_ns,
                ..Default::default()
            })
            .map_err(KvmError::call("KVM_SET_CLOCK"))
    }
}
