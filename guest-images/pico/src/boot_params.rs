//! What pico needs of the Linux boot protocol's zero page.

/// Offsets in the zero page (Linux, Documentation/arch/x86/zero-page.rst).
const E820_ENTRIES: usize = 0x1e8;
const COMMAND_LINE_POINTER: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;
const E820_MAX_ENTRIES: usize = 128;
const E820_RAM: u32 = 1;

/// A range of RAM; `start` is below `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
}

/// The zero page's memory map.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap<'a> {
    zero_page: &'a [u8; 4096],
}

impl<'a> MemoryMap<'a> {
    /// The map in this zero page.
    pub fn new(zero_page: &'a [u8; 4096]) -> Self {
        Self { zero_page }
    }

    /// All ranges of RAM; what is no RAM or is empty is left out.
    pub fn ram(&self) -> impl Iterator<Item = Region> + 'a {
        let count = usize::from(self.zero_page[E820_ENTRIES]).min(E820_MAX_ENTRIES);
        let table = &self.zero_page[E820_TABLE..E820_TABLE + count * E820_ENTRY_SIZE];
        table.chunks_exact(E820_ENTRY_SIZE).filter_map(|entry| {
            let quad = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| entry[at + i]));
            let kind = u32::from_le_bytes(core::array::from_fn(|i| entry[16 + i]));
            let (start, size) = (quad(0), quad(8));
            let end = start.checked_add(size)?;
            (kind == E820_RAM && size > 0).then_some(Region { start, end })
        })
    }
}

/// Physical address of the command line; 0 when there is none.
pub fn command_line_address(zero_page: &[u8; 4096]) -> u32 {
    u32::from_le_bytes(core::array::from_fn(|i| {
        zero_page[COMMAND_LINE_POINTER + i]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ram_is_listed() {
        let mut page = [0; 4096];
        page[E820_ENTRIES] = 3;
        let entries = [
            (0u64, 0x9fc00u64, 1u32),
            (0x9fc00, 0x400, 2),
            (0x10_0000, 0x700_0000, 1),
        ];
        for (i, (start, size, kind)) in entries.into_iter().enumerate() {
            let at = E820_TABLE + i * E820_ENTRY_SIZE;
            page[at..at + 8].copy_from_slice(&start.to_le_bytes());
            page[at + 8..at + 16].copy_from_slice(&size.to_le_bytes());
            page[at + 16..at + 20].copy_from_slice(&kind.to_le_bytes());
        }
        let ram: Vec<_> = MemoryMap::new(&page).ram().collect();
        assert_eq!(
            ram,
            [
                Region {
                    start: 0,
                    end: 0x9fc00
                },
                Region {
                    start: 0x10_0000,
                    end: 0x710_0000
                }
            ]
        );
    }

    #[test]
    fn a_count_beyond_the_table_is_bounded() {
        let mut page = [0; 4096];
        page[E820_ENTRIES] = 255;
        assert_eq!(MemoryMap::new(&page).ram().count(), 0);
    }
}
