//! Disks that become larger while the guest runs (PROTOCOL.md §4.7).

use std::sync::mpsc::{Receiver, TryRecvError};

use evertwin_devices::virtio::block::{Block, Room, SECTOR_BYTES};
use evertwin_replicator::machine::{DiskRoom, DiskSize, Growing, MachineError, RoomMade};

use super::scrub::{device_of, spawn};
use super::{Machine, Twin, disks, lock};
use crate::machine::SharedDevice;

/// What is under way with a disk that is to grow.
#[derive(Debug, Default)]
pub(super) enum Growth {
    #[default]
    Nothing,
    /// What is behind its end becomes zeroes, which takes a device its time.
    Clearing(DiskRoom, Receiver<Result<(), MachineError>>),
    /// Its image becomes larger, in order with what a primary asks of its standby's disks.
    Making(crossbeam_channel::Receiver<RoomMade>),
}

fn no_disk(number: u32) -> MachineError {
    MachineError::new(format!(
        "the VM has no disk {number} that its guest may write: disks are numbered from 0, as in the configuration"
    ))
}

/// Does something with a disk that the guest may write.
fn with_disk<T>(
    devices: &[SharedDevice],
    number: u32,
    what: impl FnOnce(&mut Block) -> Result<T, MachineError>,
) -> Result<T, MachineError> {
    let device = device_of(devices, number).ok_or_else(|| no_disk(number))?;
    let mut device = lock(device);
    device.disk().map_or_else(|| Err(no_disk(number)), what)
}

/// What is needed to make room, which takes its time.
fn room(devices: &[SharedDevice], size: DiskSize) -> Result<Room, MachineError> {
    let room = |disk: &mut Block| disk.room(size.bytes).map_err(MachineError::new);
    with_disk(devices, size.disk, room)
}

/// Makes sure that a disk's image is large enough, and uses it. The disk itself stays as large as it is.
pub(super) fn use_room(devices: &[SharedDevice], wanted: DiskRoom) -> Result<(), MachineError> {
    let DiskRoom { size, extend } = wanted;
    with_disk(devices, size.disk, |disk| {
        disk.expect_growth();
        Ok(())
    })?;
    room(devices, size)?
        .extend(extend)
        .map_err(MachineError::new)?;
    with_disk(devices, size.disk, |disk| {
        disk.use_room(size.bytes).map_err(MachineError::new)
    })
}

/// Standby: its disks are as large as a committed epoch says.
pub(super) fn follow(machine: &Machine, grown: impl Iterator<Item = Option<u64>>) {
    for (device, sectors) in machine.devices().iter().zip(grown) {
        if let Some(sectors) = sectors
            && let Some(disk) = lock(device).disk()
        {
            disk.follow_growth(sectors);
        }
    }
}

impl Growing for Twin {
    fn growth(&mut self, disk: u32, wanted: Option<u64>) -> Result<u64, MachineError> {
        with_disk(self.machine.devices(), disk, |disk| {
            disk.growth(wanted).map_err(MachineError::new)
        })
    }

    fn begin_room(&mut self, wanted: DiskRoom) {
        let devices = self.machine.devices().to_vec();
        let cleared = spawn(&self.machine, move || {
            room(&devices, wanted.size)?
                .clear()
                .map_err(MachineError::new)
        });
        self.growth = Growth::Clearing(wanted, cleared);
    }

    fn take_room(&mut self) -> Option<RoomMade> {
        if let Growth::Clearing(wanted, cleared) = &self.growth {
            let wanted = *wanted;
            let cleared = match cleared.try_recv() {
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => Err(MachineError::new(
                    "this process can have no further thread for it",
                )),
                Ok(cleared) => cleared,
            };
            self.growth = Growth::Nothing;
            match cleared {
                Ok(()) => self.growth = Growth::Making(self.disks.make_room(wanted)),
                Err(error) => return Some((wanted.size, Err(error))),
            }
        }
        let Growth::Making(made) = &self.growth else {
            return None;
        };
        let made = made.try_recv().ok()?;
        self.growth = Growth::Nothing;
        Some(made)
    }

    fn grow_disk(&mut self, size: DiskSize) -> Result<(), MachineError> {
        let device = device_of(self.machine.devices(), size.disk);
        let device = device.ok_or_else(|| no_disk(size.disk))?;
        match lock(device).grow(size.bytes / SECTOR_BYTES) {
            true => Ok(()),
            false => Err(MachineError::new("the disk's image has no room for it")),
        }
    }

    fn disk_rooms(&self) -> Vec<DiskSize> {
        let mut rooms = Vec::new();
        disks::each(&self.machine, |disk| {
            rooms.push(DiskSize {
                disk: disk.number(),
                bytes: disk.room_bytes(),
            });
        });
        rooms
    }

    fn fit_disks(&mut self, sizes: &[DiskSize]) -> Result<(), MachineError> {
        // What came over an earlier link is part of the disks. Where that failed the run is about to end.
        let _ = self.disks.settle();
        let mut fitted = Ok(());
        disks::each(&self.machine, |disk| {
            if let Some(size) = sizes.iter().find(|size| size.disk == disk.number())
                && let Err(error) = disk.fit(size.bytes)
            {
                fitted = Err(MachineError::new(error));
            }
        });
        fitted
    }
}
