//! A set of guest pages as bitmaps, one per RAM region.

use crate::memory::PAGE_SIZE;

/// Which pages of guest RAM; page numbers are guest physical addresses shifted by 12.
#[derive(Debug, Clone)]
pub struct PageSet {
    regions: Vec<Region>,
}

#[derive(Debug, Clone)]
struct Region {
    first: u64,
    pages: u64,
    words: Vec<u64>,
}

impl PageSet {
    /// An empty set over RAM `regions` (guest address, bytes).
    pub fn new(regions: &[(u64, u64)]) -> Self {
        let regions = regions.iter().map(|&(start, len)| {
            let pages = len / PAGE_SIZE;
            Region {
                first: start / PAGE_SIZE,
                pages,
                words: vec![0; pages.div_ceil(64) as usize],
            }
        });
        Self {
            regions: regions.collect(),
        }
    }

    /// Adds one page; numbers outside RAM are ignored.
    pub fn insert(&mut self, page: u64) {
        for region in &mut self.regions {
            if let Some(at) = page.checked_sub(region.first)
                && at < region.pages
            {
                region.words[(at / 64) as usize] |= 1 << (at % 64);
            }
        }
    }

    /// Adds the bits of `bitmap`, whose first bit is page `first` (a region's first page).
    pub fn merge(&mut self, first: u64, bitmap: &[u64]) {
        for region in self.regions.iter_mut().filter(|r| r.first == first) {
            for (word, more) in region.words.iter_mut().zip(bitmap) {
                *word |= more;
            }
        }
    }

    /// Moves all pages, in ascending order, into `pages` (replacing what it held) and
    /// leaves the set empty.
    pub fn drain_into(&mut self, pages: &mut Vec<u64>) {
        pages.clear();
        for region in &mut self.regions {
            for (index, slot) in region.words.iter_mut().enumerate() {
                let mut word = std::mem::take(slot);
                while word != 0 {
                    let at = index as u64 * 64 + u64::from(word.trailing_zeros());
                    // The last word may reach beyond the region.
                    if at < region.pages {
                        pages.push(region.first + at);
                    }
                    word &= word - 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_out_once_in_order_and_within_ram() {
        let mut set = PageSet::new(&[(0, 100 * PAGE_SIZE), (0x1_0000_0000, 8 * PAGE_SIZE)]);
        for page in [99, 0, 64, 0x10_0007, 0x10_0008, 100, 64] {
            set.insert(page);
        }
        set.merge(0x10_0000, &[0b101]);
        let mut pages = vec![7];
        set.drain_into(&mut pages);
        assert_eq!(pages, [0, 64, 99, 0x10_0000, 0x10_0002, 0x10_0007]);
        set.drain_into(&mut pages);
        assert!(pages.is_empty());
    }
}
