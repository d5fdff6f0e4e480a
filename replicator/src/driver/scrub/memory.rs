//! Both twins' memories, compared as disks are. What the guest has touched is known without a watch: it is in the harvest.

use std::ops::Range;

use evertwin_protocol::Input;
use xxhash_rust::xxh3::xxh3_128;

use super::super::Driver;
use crate::machine::{
    BLOCK_BYTES, BlockSum, DiskCheck, DiskChecked, DiskSize, MemoryRegion, PAGE_SIZE, Summed,
};
use crate::wire::scrub;

/// Pages of a block.
const BLOCK_PAGES: u64 = BLOCK_BYTES / PAGE_SIZE as u64;

/// Regions of memory are numbered like disks, but from above: the first is the last number there is.
pub(super) fn sizes(memory: &[MemoryRegion]) -> Vec<DiskSize> {
    let regions = memory.iter().zip(0..);
    let sizes = regions.map(|(region, number)| DiskSize {
        disk: u32::MAX - number,
        bytes: region.len,
    });
    sizes.collect()
}

/// The region that such a number stands for, if it is one.
pub(super) fn region(memory: &[MemoryRegion], disk: u32) -> Option<MemoryRegion> {
    memory.get((u32::MAX - disk) as usize).copied()
}

/// Pages of a block of a region; none behind its end.
fn pages(region: MemoryRegion, block: u32) -> Range<u64> {
    let start = region.start / PAGE_SIZE as u64;
    let end = start + region.len / PAGE_SIZE as u64;
    let first = start + u64::from(block) * BLOCK_PAGES;
    first.min(end)..(first + BLOCK_PAGES).min(end)
}

impl Driver<'_> {
    /// What a block holds just now. None behind the region's end.
    fn memory_sum(&self, region: MemoryRegion, block: u32) -> Option<u128> {
        let pages: Vec<u64> = pages(region, block).collect();
        let mut bytes = Vec::with_capacity(pages.len() * PAGE_SIZE);
        self.machine.read_pages(&pages, &mut bytes);
        (!pages.is_empty()).then(|| xxh3_128(&bytes))
    }

    /// Primary: sums up blocks of memory while the guest runs. The next epoch's harvest says which of them count.
    pub(super) fn begin_memory_sums(&mut self, region: MemoryRegion, blocks: &[u32]) {
        let sums = blocks.iter().filter_map(|block| {
            let sum = self.memory_sum(region, *block)?;
            Some(BlockSum { block: *block, sum })
        });
        self.scrub.memory = sums.collect();
        if self.scrub.idle {
            // It makes no epochs by itself.
            self.inputs.push_back(Input::OutputWaiting);
        }
    }

    /// Primary: the epoch that was captured last is the one after those sums were made.
    pub(super) fn take_memory_sums(&mut self, region: MemoryRegion) -> Summed {
        let sums = std::mem::take(&mut self.scrub.memory);
        let harvest = self.shipments.back().map(|last| &last.capture.pages[..]);
        let mut summed = Summed::default();
        for sum in sums {
            let pages = pages(region, sum.block);
            match harvest.is_none_or(|harvest| harvest.iter().any(|page| pages.contains(page))) {
                true => summed.touched.push(sum.block),
                false => summed.stable.push(sum),
            }
        }
        summed
    }

    /// Primary: the next epoch carries these blocks.
    pub(super) fn repair_memory(&mut self, region: MemoryRegion, blocks: &[u32]) {
        let pages = blocks.iter().flat_map(|block| pages(region, *block));
        let pages: Vec<_> = pages.collect();
        self.machine.redirty(&pages);
    }

    /// Standby: its memory is that of the epoch that it has applied.
    pub(super) fn compare_memory(&mut self, region: MemoryRegion, check: &DiskCheck) {
        let differs = |sum: &&BlockSum| self.memory_sum(region, sum.block) != Some(sum.sum);
        let differing = check.sums.iter().filter(differs).map(|sum| sum.block);
        let checked = DiskChecked {
            epoch: check.epoch,
            disk: check.disk,
            differing: differing.collect(),
        };
        self.queue(scrub::checked_frame(self.twin.generation(), &checked));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_ends_with_its_region() {
        let memory = [(0, 20), (0x1000, 16)].map(|(first, pages)| MemoryRegion {
            start: first * PAGE_SIZE as u64,
            len: pages * PAGE_SIZE as u64,
        });
        let numbers = sizes(&memory).into_iter().map(|size| size.disk);
        let regions: Vec<_> = numbers.map(|disk| region(&memory, disk)).collect();
        assert_eq!(regions, memory.map(Some));
        for disk in [0, 63, u32::MAX - 2] {
            assert_eq!(region(&memory, disk), None);
        }
        assert_eq!(pages(memory[0], 0), 0..16);
        assert_eq!(pages(memory[0], 1), 16..20);
        assert!(pages(memory[0], 2).is_empty() && pages(memory[1], u32::MAX).is_empty());
        assert_eq!(pages(memory[1], 0), 0x1000..0x1010);
    }
}
