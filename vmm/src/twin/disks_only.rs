//! A guest of which only the disks are replicated: its twin boots it anew (`protection = "ha"`).
//!
//! Its epochs carry what was written to the disks. What waits for an epoch to commit is not what leaves
//! the VM but what the guest is told: that a write is done. So a write that the guest knows of is
//! on both hosts, and it stands still for no epoch.

use evertwin_replicator::machine::{Capture, Identity, MachineError};
use vmm_sys_util::eventfd::EventFd;

use super::{Disks, Machine, disks, from_device, lock};
use crate::machine::Error;

/// The state of each epoch: there is none, but for disks that have grown since the twin was filled. Number and sectors of each follow.
const NO_STATE: &[u8] = b"disks only";

/// Replicates the disks of a machine.
#[derive(Debug)]
pub(super) struct DisksOnly {
    /// Written when writes are recorded.
    recording: EventFd,
}

impl DisksOnly {
    /// `recording` is written when writes are recorded. An answer that waits is told like output that does.
    pub(super) fn new(machine: &Machine, recording: EventFd) -> Result<Self, Error> {
        let none_left = |error| Error::Device(format!("no descriptor is left: {error}"));
        for device in machine.devices() {
            if let Some(disk) = lock(device).disk() {
                let waiting = machine.gate().waiting().try_clone();
                disk.set_answer_event(waiting.map_err(none_left)?);
            }
        }
        Ok(Self { recording })
    }

    /// Both hosts need the same disks, and nothing else of each other.
    pub(super) fn identity(machine: &Machine) -> Identity {
        Identity {
            vm: machine.config().name.clone(),
            lease: None,
            memory: Vec::new(),
            vcpus: machine.config().vcpus,
            devices: machine.device_list(),
            cpu: Vec::new(),
            msrs: Vec::new(),
        }
    }

    /// Begins to record what is written.
    pub(super) fn record(&self, machine: &Machine, on: bool) {
        for device in machine.devices() {
            lock(device).record_disk_writes(on);
        }
        // The counter of an event fd can't overflow here.
        let _ = self.recording.write(1);
    }

    /// Holds what the guest is to be told of its writes.
    pub(super) fn hold(machine: &Machine) {
        disks::each(machine, |disk| disk.hold_answers());
    }

    pub(super) fn open(machine: &Machine) {
        disks::each(machine, |disk| disk.give_answers());
    }

    pub(super) fn release(machine: &Machine, epoch: u64) {
        disks::each(machine, |disk| disk.release_answers(epoch));
    }

    /// Ends an epoch: each disk at an instant of its own. A write that depends on another comes
    /// after that one's answer, and so in a later epoch.
    pub(super) fn capture(machine: &Machine, disks: &mut Disks, epoch: u64, into: &mut Capture) {
        into.clear();
        into.state.extend_from_slice(NO_STATE);
        for device in machine.devices() {
            let mut device = lock(device);
            let writes = device.take_disk_writes();
            into.disk_writes.extend(writes.into_iter().map(from_device));
            disks.begin_point(&mut *device);
            if let Some(disk) = device.disk() {
                disk.seal_answers(epoch);
                if let Some(sectors) = disk.grown_to() {
                    into.state.extend(disk.number().to_le_bytes());
                    into.state.extend(sectors.to_le_bytes());
                }
            }
        }
        disks.point_begun();
    }

    /// Checks the state of an epoch that has come, and gives numbers and sectors of the disks that have grown.
    pub(super) fn check(state: &[u8]) -> Result<Vec<(u32, u64)>, MachineError> {
        let grown = state.strip_prefix(NO_STATE).and_then(|grown| {
            let (grown, rest) = grown.as_chunks::<12>();
            let read = |[d0, d1, d2, d3, sectors @ ..]: [u8; 12]| {
                let disk = u32::from_le_bytes([d0, d1, d2, d3]);
                (disk, u64::from_le_bytes(sectors))
            };
            rest.is_empty()
                .then(|| grown.iter().copied().map(read).collect())
        });
        grown.ok_or_else(|| MachineError::new("the epoch holds more than disk writes"))
    }

    /// Runs the guest from its kernel, on disks that hold all that it was told is written.
    pub(super) fn boot(machine: &mut Machine) -> Result<(), Error> {
        // What the guest's flushes made durable on the other host was only written here.
        disks::each(machine, |disk| disk.flush());
        machine.boot()
    }
}
