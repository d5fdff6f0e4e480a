//! A host's disk.

use crate::random::Random;
use crate::story::{BLOCKS, Blocks, Moment};

/// What survives a process, and in part a loss of power.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    now: Blocks,
    /// What a flush has covered.
    stable: Blocks,
    /// Blocks that were repeated here for a standby's guest, one bit each. They are not flushed
    /// then, so a standby's disk promises nothing across a loss of power until the guest that
    /// is promoted there has flushed it.
    repeated: u8,
    /// Blocks that such a loss has taken back.
    torn: u8,
}

impl Disk {
    pub(crate) fn contents(&self) -> Blocks {
        self.now
    }

    pub(crate) fn block(&self, block: u8) -> Moment {
        self.now[usize::from(block)]
    }

    /// The guest writes.
    pub(crate) fn write(&mut self, block: u8, content: Moment) {
        self.now[usize::from(block)] = content;
        self.torn &= !(1 << block);
    }

    /// The guest flushes.
    pub(crate) fn flush(&mut self) {
        self.stable = self.now;
        self.repeated = 0;
    }

    /// A standby repeats writes of its primary.
    pub(crate) fn repeat(&mut self, blocks: u8, contents: &Blocks) {
        for (block, content) in contents.iter().enumerate() {
            if blocks & (1 << block) != 0 {
                self.now[block] = *content;
            }
        }
        self.repeated |= blocks;
        self.torn &= !blocks;
    }

    /// A sync begins.
    pub(crate) fn clear(&mut self) {
        self.repeat(u8::MAX, &[0; BLOCKS]);
    }

    /// The host loses its power: of what was not flushed, some is on the disk and some is not.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        for block in 0..BLOCKS {
            if self.now[block] != self.stable[block] && random.chance(50) {
                self.now[block] = self.stable[block];
                self.torn |= self.repeated & (1 << block);
            }
        }
        self.stable = self.now;
        self.repeated = 0;
    }

    /// Blocks for which nothing can be demanded.
    pub(crate) fn torn(&self) -> u8 {
        self.torn
    }
}
