//! A set of guest pages as bitmaps, one per RAM region.

use crate::memory::PAGE_SIZE;

/// Which pages of guest RAM; page numbers are guest physical addresses shifted by 12.
///
/// What is done with few pages of a large RAM does not look at all of it: a summary tells where pages are.
#[derive(Debug, Clone)]
pub struct PageSet {
    regions: Vec<Region>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Region {
    first: u64,
    pages: u64,
    words: Vec<u64>,
    /// Which words have a page.
    summary: Vec<u64>,
}

impl PageSet {
    /// An empty set over RAM `regions` (guest address, bytes).
    pub fn new(regions: &[(u64, u64)]) -> Self {
        let regions = regions.iter().map(|&(start, len)| {
            let pages = len / PAGE_SIZE;
            let words = pages.div_ceil(64) as usize;
            Region {
                first: start / PAGE_SIZE,
                pages,
                words: vec![0; words],
                summary: vec![0; words.div_ceil(64)],
            }
        });
        Self {
            regions: regions.collect(),
            len: 0,
        }
    }

    /// How many pages it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one page; numbers outside RAM are ignored.
    pub fn insert(&mut self, page: u64) {
        for region in &mut self.regions {
            if let Some(at) = page.checked_sub(region.first)
                && at < region.pages
            {
                self.len += region.add((at / 64) as usize, 1 << (at % 64));
            }
        }
    }

    /// Adds the bits of `bitmap`, whose first bit is page `first`: a multiple of 64 pages from the start of a region, which
    /// it does not leave.
    pub fn merge(&mut self, first: u64, bitmap: &[u64]) {
        for region in &mut self.regions {
            let Some(at) = first
                .checked_sub(region.first)
                .filter(|at| *at < region.pages)
            else {
                continue;
            };
            let at = (at / 64) as usize;
            for (index, word) in bitmap.iter().enumerate().filter(|(_, word)| **word != 0) {
                self.len += region.add(at + index, *word);
            }
        }
    }

    /// Clears the bits of its pages in `bitmap`, whose first bit is page `first` (a region's first page).
    pub fn remove_from(&self, first: u64, bitmap: &mut [u64]) {
        for region in self.regions.iter().filter(|r| r.first == first) {
            for index in bits(&region.summary) {
                if let (Some(bits), Some(word)) = (bitmap.get_mut(index), region.words.get(index)) {
                    *bits &= !word;
                }
            }
        }
    }

    /// Leaves the set empty.
    pub fn clear(&mut self) {
        self.take(|_| {});
    }

    /// Moves all pages, in ascending order, into `pages` (replacing what it held) and
    /// leaves the set empty.
    pub fn drain_into(&mut self, pages: &mut Vec<u64>) {
        pages.clear();
        self.take(|page| pages.push(page));
    }

    fn take(&mut self, mut taken: impl FnMut(u64)) {
        for region in &mut self.regions {
            for index in bits(&region.summary) {
                let mut word = region.words.get_mut(index).map_or(0, std::mem::take);
                while word != 0 {
                    taken(region.first + index as u64 * 64 + u64::from(word.trailing_zeros()));
                    word &= word - 1;
                }
            }
            region.summary.fill(0);
        }
        self.len = 0;
    }
}

impl Region {
    /// Adds pages to a word. Gives how many were not there yet.
    fn add(&mut self, index: usize, mut bits: u64) -> usize {
        // The last word may reach beyond the region.
        let left = self.pages.saturating_sub(index as u64 * 64);
        if left < 64 {
            bits &= (1 << left) - 1;
        }
        let (Some(word), true) = (self.words.get_mut(index), bits != 0) else {
            return 0;
        };
        let new = bits & !*word;
        *word |= bits;
        self.summary[index / 64] |= 1 << (index % 64);
        new.count_ones() as usize
    }
}

/// Numbers of the bits that are set, in ascending order.
fn bits(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(index, word)| {
        let mut word = *word;
        std::iter::from_fn(move || {
            let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
            word &= word - 1;
            Some(index * 64 + bit)
        })
    })
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
        set.merge(64, &[1 << 35]);
        let mut pages = vec![7];
        set.drain_into(&mut pages);
        assert_eq!(pages, [0, 64, 99, 0x10_0000, 0x10_0002, 0x10_0007]);
        set.drain_into(&mut pages);
        assert!(pages.is_empty());
    }

    #[test]
    fn pages_are_counted_once_and_can_be_kept_out_of_a_bitmap() {
        let mut set = PageSet::new(&[(0, 10_000 * PAGE_SIZE)]);
        set.merge(0, &[0b11, 0, 1 << 63]);
        set.insert(1);
        set.insert(9999);
        assert_eq!(set.len(), 4);
        let mut bitmap = [u64::MAX; 4];
        set.remove_from(0, &mut bitmap);
        assert_eq!(bitmap, [!0b11, u64::MAX, u64::MAX >> 1, u64::MAX]);
        set.clear();
        assert!(set.is_empty());
        set.remove_from(0, &mut bitmap);
        assert_eq!(bitmap[1], u64::MAX);
    }
}
