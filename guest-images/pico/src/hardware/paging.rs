//! Maps RAM and device windows one to one, beyond what the boot page tables map.
//!
//! Entries only ever go from absent to present, so that no TLB flush is needed.

use alloc::boxed::Box;

use pico::boot_params::MemoryMap;

use super::{boot, heap};

const PRESENT_WRITABLE_USER: u64 = 0x7;
const UNCACHED: u64 = 0x18;
const LARGE: u64 = 0x80;
/// What one entry of a page directory maps, in bytes.
const LARGE_PAGE: u64 = 1 << 21;
/// What the one page-directory-pointer table can map, in bytes.
const LIMIT: u64 = 512 << 30;

/// Everything below is mapped through the tables of the image.
const FOUR_GIB: u64 = 4 << 30;

/// Maps the RAM below 4 GiB.
pub(crate) fn map_low_ram(map: &MemoryMap<'_>) {
    for region in map.ram() {
        let mut page = region.start & !(LARGE_PAGE - 1);
        while page + LARGE_PAGE <= region.end.min(FOUR_GIB) {
            // SAFETY: the page is aligned, below 4 GiB, and RAM.
            unsafe { map_page(page, 0, 0) };
            page += LARGE_PAGE;
        }
    }
}

/// Gives the RAM behind the image to the heap, and maps the RAM above 4 GiB, which costs
/// one page for each GiB.
///
/// # Safety
/// Nothing in that RAM may be in use; `map_low_ram` has run with the same map.
pub(crate) unsafe fn give_to_heap(map: &MemoryMap<'_>) {
    let image_end = (&raw const boot::image_end) as u64;
    for region in map.ram() {
        let start = region.start.max(image_end);
        let end = region.end.min(FOUR_GIB) & !(LARGE_PAGE - 1);
        if start < end {
            // SAFETY: mapped, behind the image, and free by the caller's promise.
            unsafe { heap::add(start as usize, end as usize) };
        }
    }
    for region in map.ram() {
        let start = region.start.max(FOUR_GIB).next_multiple_of(LARGE_PAGE);
        let mut page = start;
        let mut directory = 0;
        while page + LARGE_PAGE <= region.end.min(LIMIT) {
            if directory == 0 || page.is_multiple_of(1 << 30) {
                directory = Box::into_raw(Box::new(Directory([0; 512]))) as u64;
            }
            // SAFETY: aligned RAM, and a fresh directory for each GiB.
            unsafe { map_page(page, directory, 0) };
            page += LARGE_PAGE;
        }
        if start < page {
            // SAFETY: mapped just now, and free by the caller's promise.
            unsafe { heap::add(start as usize, page as usize) };
        }
    }
}

/// One page directory: 1 GiB.
#[repr(C, align(4096))]
struct Directory([u64; 512]);

/// Maps a device's registers, uncached. False: they are out of reach (above 4 GiB).
pub(crate) fn map_device(base: u64, size: u64) -> bool {
    let Some(end) = base.checked_add(size).filter(|&end| end <= FOUR_GIB) else {
        return false;
    };
    let mut page = base & !(LARGE_PAGE - 1);
    while page < end {
        // SAFETY: the index is below 4 GiB; a device window holds no RAM.
        unsafe { map_page(page, 0, UNCACHED) };
        page += LARGE_PAGE;
    }
    true
}

/// Maps one large page, unless it is mapped already.
///
/// # Safety
/// `page` is aligned, below `LIMIT`, and safe to map; `directory` is the address of the
/// table for its GiB, or 0 below 4 GiB, where the boot tables are used.
unsafe fn map_page(page: u64, directory: u64, flags: u64) {
    let gib = (page >> 30) as usize;
    let index = (page >> 21) as usize & 511;
    // SAFETY: static tables of the image, only changed here; one vCPU.
    unsafe {
        let table = if directory == 0 {
            (&raw mut boot::boot_pd[gib]).cast::<u64>()
        } else {
            (&raw mut boot::boot_pdpt[gib]).write_volatile(directory | PRESENT_WRITABLE_USER);
            directory as *mut u64
        };
        let entry = table.add(index);
        if entry.read_volatile() == 0 {
            entry.write_volatile(page | PRESENT_WRITABLE_USER | LARGE | flags);
        }
    }
}
