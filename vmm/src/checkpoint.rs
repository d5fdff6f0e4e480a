//! The whole VM's state at an epoch's end, apart from RAM and disks (I3).

mod codec;

pub use codec::{decode, encode};

use std::sync::Arc;

use evertwin_devices::legacy::GuestExit;
use evertwin_devices::serial::SerialState;
use evertwin_devices::virtio::DeviceState;
use serde::{Deserialize, Serialize};

use crate::kvm::{KvmError, TscChange, VcpuState, VmChipState, host_tsc};
use crate::machine::{Machine, Paused, lock};

/// Why a state can't be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A KVM call.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Bytes that are no state.
    #[error("saved state is damaged or of another version of evertwin: {0}")]
    Decode(String),
    /// The state could not be written down.
    #[error("state can't be encoded: {0}")]
    Encode(String),
    /// The state is of a VM with other devices or vCPUs.
    #[error("saved state is of another VM: {0}")]
    OtherVm(String),
    /// A device refused its part.
    #[error("{device} refuses its saved state: {reason}")]
    Device {
        /// Its name.
        device: String,
        /// What does not fit.
        reason: String,
    },
}

/// Everything but RAM and disks. Bytes of unknown origin may decode to it: every part is
/// validated by its owner when it is restored.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    vcpus: Vec<VcpuState>,
    chips: VmChipState,
    /// The host's time stamp counter when all this was saved.
    host_tsc: u64,
    /// The guest has ended itself, and nobody has acted on it yet.
    exit: Option<GuestExit>,
    serial: SerialState,
    devices: Vec<DeviceState>,
}

impl VmState {
    /// The sectors of each device's disk that has grown since the twin was filled; none for all others.
    pub(crate) fn grown_disks(&self) -> impl Iterator<Item = Option<u64>> {
        self.devices.iter().map(DeviceState::grown_to)
    }
}

impl Machine {
    /// Reads the state of a machine that stands still.
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn save(&self, paused: &mut Paused<'_>) -> Result<VmState, CheckpointError> {
        Ok(VmState {
            vcpus: paused.take_vcpus(),
            chips: self.vm().save_chips()?,
            host_tsc: host_tsc(),
            // A host that can't go on raises it as well; the guest has not ended by that.
            exit: self.exit().get().filter(|_| self.failure().is_none()),
            serial: paused.serial.save(),
            devices: paused.devices.iter().map(|device| device.save()).collect(),
        })
    }

    /// Puts `state` into this machine, whose RAM already holds that state's pages, and
    /// lets the guest run on (I7).
    ///
    /// # Errors
    /// A state that does not fit; no vCPU has run then.
    pub fn restore(&mut self, state: VmState) -> Result<(), CheckpointError> {
        let VmState {
            vcpus,
            chips,
            host_tsc,
            exit,
            serial,
            devices,
        } = state;
        if vcpus.len() != self.vcpus().len() || devices.len() != self.devices().len() {
            return Err(CheckpointError::OtherVm(format!(
                "it has {} vCPUs and {} devices, this one has {} and {}",
                vcpus.len(),
                devices.len(),
                self.vcpus().len(),
                self.devices().len()
            )));
        }
        // The clock goes first: no vCPU may see time step back (I8).
        self.vm().restore_clock(&chips)?;
        self.vm().restore_chips(&chips)?;
        let refused = |device: &str, reason: &dyn std::fmt::Display| CheckpointError::Device {
            device: device.into(),
            reason: reason.to_string(),
        };
        {
            let mut port = lock(self.serial());
            port.restore(&serial).map_err(|e| refused("serial", &e))?;
        }
        for (device, state) in self.devices().iter().zip(devices) {
            let mut device = lock(device);
            device
                .restore(state)
                .map_err(|e| refused(device.name(), &e))?;
        }
        let tsc = TscChange::since(host_tsc);
        for (vcpu, state) in self.vcpus().iter().zip(vcpus) {
            vcpu.restore(Arc::new(state), tsc)?;
        }
        // Whatever was rung or raised around the capture may have been lost: ring and raise
        // everything again.
        lock(self.serial()).resume();
        for device in self.devices() {
            lock(device).resume();
        }
        if let Some(exit) = exit {
            self.exit().raise(exit);
        }
        Ok(self.run()?)
    }
}
