//! Guest RAM.

use evertwin_devices::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::layout;

/// Bytes per guest page; also the unit of dirty tracking.
pub const PAGE_SIZE: u64 = 4096;

/// Smallest RAM that a guest can boot in.
pub const MIN_RAM: u64 = 16 << 20;

/// Largest RAM: KVM's limit of 2^31 - 1 pages in a slot, rounded down (`KVM_MEM_MAX_NR_PAGES`).
pub const MAX_RAM: u64 = 4 << 40;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not in whole mebibytes, too small or too large.
    #[error(
        "memory size {0} bytes can't be used: give 16M to 4096G, in whole mebibytes (for example 512M)"
    )]
    Size(u64),
    /// The host refused the mapping.
    #[error("can't map {size} bytes of guest memory: {reason}; give the guest less memory")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// The host's answer.
        reason: String,
    },
}

/// Splits `size` bytes of RAM around the device hole: (guest address, bytes) each.
pub fn regions(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(layout::HOLE_START);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((layout::HOLE_END, size - low));
    }
    regions
}

/// Maps `size` bytes of zeroed guest RAM, anonymous and without reserve.
///
/// # Errors
/// Sizes outside of [`MIN_RAM`] to [`MAX_RAM`], not in whole mebibytes, or more than the host
/// can map.
pub fn allocate(size: u64) -> Result<GuestMemory, MemoryError> {
    if !(MIN_RAM..=MAX_RAM).contains(&size) || !size.is_multiple_of(1 << 20) {
        return Err(MemoryError::Size(size));
    }
    let refused = |reason: String| MemoryError::Map { size, reason };
    let mut parts = Vec::new();
    for (start, len) in regions(size) {
        let len = usize::try_from(len).map_err(|_| MemoryError::Size(size))?;
        let map = MmapRegion::new(len).map_err(|e| refused(e.to_string()))?;
        let region = GuestRegionMmap::new(map, GuestAddress(start))
            .ok_or_else(|| refused("address overflow".into()))?;
        parts.push(region);
    }
    GuestMemory::from_regions(parts).map_err(|e| refused(e.to_string()))
}

/// The regions of existing guest RAM: (guest address, bytes) each.
pub fn region_list(memory: &GuestMemory) -> Vec<(u64, u64)> {
    memory.iter().map(|r| (r.start_addr().0, r.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(regions(1 << 30), vec![(0, 1 << 30)]);
        assert_eq!(
            regions(4 << 30),
            vec![(0, layout::HOLE_START), (layout::HOLE_END, 1 << 30)]
        );
    }

    #[test]
    fn odd_sizes_are_refused_by_name() {
        for size in [0, 1, 4 << 20, (16 << 20) + 4096] {
            assert!(matches!(allocate(size), Err(MemoryError::Size(s)) if s == size));
        }
    }
}
