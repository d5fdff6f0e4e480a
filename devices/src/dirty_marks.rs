//! Which pages the devices have written to.

use std::num::NonZeroUsize;

use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes of a page.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Pages of a group.
const GROUP: usize = 64;

/// Bytes of a group.
const GROUP_BYTES: NonZeroUsize = NonZeroUsize::new(PAGE.get() * GROUP).unwrap();

/// The marks of a region of guest memory. Who collects them looks at groups with a mark only, so that what little devices
/// write is found at once in memory of any size.
#[derive(Debug, Clone, Default)]
pub struct DirtyMarks {
    pages: AtomicBitmap,
    groups: AtomicBitmap,
}

impl DirtyMarks {
    /// Takes all marks, giving the number of each page, counted from the region's start. A mark that is set
    /// meanwhile is taken now or the next time.
    pub fn take(&self, mut page: impl FnMut(usize)) {
        for (index, word) in self.groups.get_and_reset().into_iter().enumerate() {
            for bit in (0..u64::BITS as usize).filter(|bit| word & (1 << bit) != 0) {
                let first = (index * u64::BITS as usize + bit) * GROUP;
                let pages = first..first + GROUP;
                for number in pages.filter(|number| self.pages.is_bit_set(*number)) {
                    self.pages.reset_bit(number);
                    page(number);
                }
            }
        }
    }

    /// Removes the marks of these pages.
    #[cfg(feature = "failpoints")]
    pub(crate) fn reset_range(&self, offset: usize, len: usize) {
        self.pages.reset_addr_range(offset, len);
    }

    /// Removes all marks.
    pub fn reset(&self) {
        self.take(|_| {});
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyMarks {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyMarks {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // The page first: who takes the group finds it.
        self.pages.mark_dirty(offset, len);
        self.groups.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyMarks {
    fn with_len(len: usize) -> Self {
        Self {
            pages: AtomicBitmap::new(len, PAGE),
            groups: AtomicBitmap::new(len, GROUP_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(marks: &DirtyMarks) -> Vec<usize> {
        let mut pages = Vec::new();
        marks.take(|page| pages.push(page));
        pages
    }

    #[test]
    fn each_marked_page_is_taken_once() {
        let marks = DirtyMarks::with_len(1000 * PAGE.get());
        marks.mark_dirty(0, 1);
        marks.mark_dirty(63 * PAGE.get() + 4095, 2);
        marks.mark_dirty(999 * PAGE.get(), 100 * PAGE.get());
        assert!(marks.dirty_at(64 * PAGE.get()));
        assert_eq!(taken(&marks), [0, 63, 64, 999]);
        assert!(taken(&marks).is_empty());
        assert!(!marks.dirty_at(0));
        marks.slice_at(5 * PAGE.get()).mark_dirty(PAGE.get(), 1);
        assert_eq!(taken(&marks), [6]);
    }

    #[test]
    fn no_mark_is_lost_while_others_are_taken() {
        let marks = DirtyMarks::with_len(256 * PAGE.get());
        let rounds = 20_000;
        let mut found = 0;
        std::thread::scope(|scope| {
            let marking = scope.spawn(|| {
                for round in 0..rounds {
                    let at = (round % 256) * PAGE.get();
                    marks.mark_dirty(at, 1);
                    // Until it was taken a mark is the same as another one.
                    while marks.dirty_at(at) {
                        std::thread::yield_now();
                    }
                }
            });
            while !marking.is_finished() {
                marks.take(|_| found += 1);
                std::thread::yield_now();
            }
        });
        marks.take(|_| found += 1);
        assert_eq!(found, rounds);
    }
}
