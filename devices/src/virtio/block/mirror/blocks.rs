//! Sets of blocks of a disk.

use std::ops::Range;

use roaring::RoaringBitmap;

use super::super::image::SECTOR_BYTES;

/// Bytes of a block, the unit in which twins tell each other what has changed.
pub const BLOCK_BYTES: u64 = 64 << 10;
/// Largest disk whose blocks can be counted, in bytes: 256 TiB.
pub(in super::super) const MAX_BYTES: u64 = BLOCK_BYTES << 32;

const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));

/// Blocks of one disk, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockSet(RoaringBitmap);

impl BlockSet {
    /// Adds all blocks that a range of bytes touches. What is behind [`MAX_BYTES`] is no block.
    pub(super) fn insert_bytes(&mut self, offset: u64, len: u64) {
        self.insert(blocks_of(offset, len));
    }

    /// Adds blocks by number.
    pub fn insert(&mut self, blocks: Range<u32>) {
        self.0.insert_range(blocks);
    }

    /// Takes away all blocks below this number.
    pub(super) fn remove_below(&mut self, end: u32) {
        self.0.remove_range(..end);
    }

    /// Leaves only blocks below this number.
    pub(super) fn cut(&mut self, end: u32) {
        self.0.remove_range(end..);
    }

    /// Adds another set's blocks.
    pub fn unite(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// True when no block is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all blocks in it.
    pub fn bytes(&self) -> u64 {
        self.0.len() * BLOCK_BYTES
    }

    /// The first run of blocks at or after `from`.
    pub fn run_from(&self, from: u32) -> Option<Range<u32>> {
        let mut blocks = self.0.iter();
        blocks.advance_to(from);
        let run = blocks.next_range()?;
        // The very last block has no number behind it; no image is so large.
        Some(*run.start()..run.end().saturating_add(1))
    }

    /// Runs of blocks that hold at least all of these, `most` at most: where there would be more, those next to each other
    /// become one.
    pub fn runs(&self, most: usize) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut blocks = self.0.iter();
        while let Some(run) = blocks.next_range() {
            runs.push(*run.start()..run.end().saturating_add(1));
        }
        while runs.len() > most.max(1) {
            let pairs = runs.chunks(2);
            runs = pairs
                .map(|pair| pair[0].start..pair[pair.len() - 1].end)
                .collect();
        }
        runs
    }
}

/// The blocks that a range of bytes touches.
pub(in super::super) fn blocks_of(offset: u64, len: u64) -> Range<u32> {
    units_of(offset, len, BLOCK_BYTES)
}

/// The units of `unit` bytes that a range of bytes touches, as far as they have a number.
pub(super) fn units_of(offset: u64, len: u64, unit: u64) -> Range<u32> {
    let number = |unit| u32::try_from(unit).unwrap_or(u32::MAX);
    if len == 0 {
        return 0..0;
    }
    let end = offset.saturating_add(len);
    number(offset / unit)..number(end.div_ceil(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_bytes_is_all_blocks_that_it_touches() {
        for (offset, len, blocks) in [
            (0, 1, 0..1),
            (0, BLOCK_BYTES, 0..1),
            (BLOCK_BYTES - 1, 2, 0..2),
            (5 * BLOCK_BYTES, BLOCK_BYTES + 1, 5..7),
            (u64::MAX - 3, 3, u32::MAX..u32::MAX),
        ] {
            assert_eq!(blocks_of(offset, len), blocks, "{offset} {len}");
        }
        let mut set = BlockSet::default();
        set.insert_bytes(7, 0);
        assert!(set.is_empty());
        set.insert_bytes(BLOCK_BYTES - 1, 2);
        assert_eq!((set.bytes(), set.is_empty()), (2 * BLOCK_BYTES, false));
    }

    #[test]
    fn runs_are_found_in_order() {
        let mut set = BlockSet::default();
        for run in [3..5, 9..10, 20..40] {
            set.insert(run);
        }
        assert_eq!(set.run_from(0), Some(3..5));
        assert_eq!(set.run_from(4), Some(4..5));
        assert_eq!(set.run_from(10), Some(20..40));
        assert_eq!(set.run_from(40), None);
    }

    #[test]
    fn few_runs_hold_at_least_what_many_did() {
        let mut set = BlockSet::default();
        for block in (0..1000).map(|n| n * 3) {
            set.insert(block..block + 1);
        }
        assert_eq!(set.runs(1000).len(), 1000);
        for most in [0, 1, 7, 100, 999] {
            let runs = set.runs(most);
            assert!((1..=most.max(1)).contains(&runs.len()), "{most}");
            let mut wide = BlockSet::default();
            runs.into_iter().for_each(|run| wide.insert(run));
            let mut both = wide.clone();
            both.unite(&set);
            assert_eq!(both, wide, "{most}");
        }
    }
}
