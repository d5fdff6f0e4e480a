//! What the growth of a disk under the running guest needs of a virtual machine (PROTOCOL.md §4.7).

use super::{DiskSize, MachineError};

/// Room that is to be made for a disk that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRoom {
    /// The disk, and the size that it will have.
    pub size: DiskSize,
    /// An image that is a file may be made larger for it. Else somebody has done so before.
    pub extend: bool,
}

/// How it went to make room.
pub type RoomMade = (DiskSize, Result<(), MachineError>);

/// A virtual machine whose disks can grow. Nothing here waits for a disk: what was begun last replaces what was begun before, and its
/// end is told by [`Machine::disks_changed`](super::Machine::disks_changed).
pub trait Growing {
    /// Primary: the size in bytes to which a disk would grow: what is wanted, or what its image has by now.
    ///
    /// # Errors
    /// There is no such disk, or it would not grow.
    fn growth(&mut self, disk: u32, wanted: Option<u64>) -> Result<u64, MachineError>;

    /// Begins to make room: whatever is behind the disk's end reads as zeroes then, the image is large enough, durably, and so is what
    /// is noted about it. The guest's disk stays as it is.
    fn begin_room(&mut self, room: DiskRoom);

    /// How it went. Told once.
    fn take_room(&mut self) -> Option<RoomMade>;

    /// Primary: the guest's disk is so large from now on, and the guest is told; the next epoch's state says so, too. There is room for
    /// it.
    ///
    /// # Errors
    /// There is none.
    fn grow_disk(&mut self, size: DiskSize) -> Result<(), MachineError>;

    /// How large each disk that the guest may write could be with its image as it is.
    fn disk_rooms(&self) -> Vec<DiskSize>;

    /// Standby: its disks are about to become copies of disks of these sizes, for which there is room.
    ///
    /// # Errors
    /// What is noted about an image can't be changed.
    fn fit_disks(&mut self, sizes: &[DiskSize]) -> Result<(), MachineError>;
}
