//! What comparing both twins' disks needs of a virtual machine (PROTOCOL.md §4.6).

use std::time::SystemTime;

/// Bytes of a block, the unit in which disks are compared. The last one of a disk may be shorter.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// Most blocks that are compared at a time: 1 MiB.
pub const CHECK_BLOCKS: usize = 16;

/// A disk that the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSize {
    /// Index of the disk in the configuration.
    pub disk: u32,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A block, and the sum (xxh3-128) of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSum {
    /// Number of the block: its offset on the disk in units of [`BLOCK_BYTES`].
    pub block: u32,
    /// The sum.
    pub sum: u128,
}

/// What blocks of a disk hold at the end of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCheck {
    /// The epoch.
    pub epoch: u64,
    /// Index of the disk in the configuration.
    pub disk: u32,
    /// 1 to [`CHECK_BLOCKS`] blocks.
    pub sums: Vec<BlockSum>,
}

/// How a standby's disk compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskChecked {
    /// The epoch of the [`DiskCheck`].
    pub epoch: u64,
    /// Index of the disk in the configuration.
    pub disk: u32,
    /// Blocks of the check that hold something else, or can't be read.
    pub differing: Vec<u32>,
}

/// What became of the blocks that a primary was to sum up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summed {
    /// They hold the same since before they were read.
    pub stable: Vec<BlockSum>,
    /// The guest has touched them meanwhile, or is about to.
    pub touched: Vec<u32>,
    /// They can't be read, and why.
    pub unreadable: Vec<(u32, String)>,
}

/// A virtual machine whose disks can be compared with its twin's. Nothing here waits for a disk. What was begun last replaces what
/// was begun before, and whatever has ended is told by [`Machine::disks_changed`](super::Machine::disks_changed).
pub trait Scrubbed {
    /// The disks that can be compared: those that the guest may write.
    fn disk_sizes(&self) -> Vec<DiskSize>;

    /// When all of them were last compared, as far as was noted here, also by an earlier run.
    fn last_scrub(&self) -> Option<SystemTime>;

    /// Notes that they were compared at that time, for later runs.
    fn note_scrub(&mut self, at: SystemTime);

    /// Primary: begins to watch these blocks and to sum up what they hold.
    fn begin_sums(&mut self, disk: u32, blocks: &[u32]);

    /// Primary: whether there is something for [`Scrubbed::take_sums`].
    fn has_sums(&mut self) -> bool;

    /// Primary: called right after an epoch was captured. What is stable now is what the disk held at the epoch's end. None while the
    /// blocks are still being read. Told once.
    fn take_sums(&mut self) -> Option<Summed>;

    /// Primary: begins to record these blocks once more, in order with the guest's writes, so that an epoch brings them to the standby.
    fn begin_repair(&mut self, disk: u32, blocks: &[u32]);

    /// Primary: blocks that are recorded and will be in the next epoch. Those that could not be read are left out. Told once.
    fn take_repaired(&mut self) -> Option<Vec<u32>>;

    /// Standby: begins to compare its disk, to which this epoch and no later one was applied.
    fn begin_compare(&mut self, check: DiskCheck);

    /// Standby: how it compares. Told once.
    fn take_compared(&mut self) -> Option<DiskChecked>;
}
