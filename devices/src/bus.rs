//! Routes a guest's port and memory-mapped accesses to devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::lock;

/// A device that answers accesses within a range of addresses.
///
/// Offsets are relative to the range's base. Any offset and length inside the range may
/// come in: they are the guest's choice.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device can't be put on the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or passes the end of the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or wraps: give a length of at least 1")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device has part of the range.
    #[error("bus range {base:#x}+{len:#x} overlaps the device at {other:#x}: move one of them")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// Base of the device already there.
        other: u64,
    },
}

struct Entry {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// A map from address ranges to devices; one for ports, one for memory-mapped I/O.
#[derive(Default)]
pub struct Bus {
    entries: BTreeMap<u64, Entry>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `base..base + len`.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let last = match len.checked_sub(1).and_then(|span| base.checked_add(span)) {
            Some(last) => last,
            None => return Err(BusError::BadRange { base, len }),
        };
        if let Some((&other, entry)) = self.entries.range(..=last).next_back()
            && other + (entry.len - 1) >= base
        {
            return Err(BusError::Overlap { base, len, other });
        }
        self.entries.insert(base, Entry { len, device });
        Ok(())
    }

    /// Reads at `addr`. False, with `data` untouched, when no device has the whole range.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                lock(device).read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Writes at `addr`. False when no device has the whole range.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                lock(device).write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (&base, entry) = self.entries.range(..=addr).next_back()?;
        let offset = addr - base;
        let end = offset.checked_add(len as u64)?;
        (end <= entry.len).then_some((offset, &*entry.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Scratch(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Scratch {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn routes_by_range_and_passes_offsets() {
        let device = Arc::new(Mutex::new(Scratch::default()));
        let mut bus = Bus::new();
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        let mut data = [0xff; 2];
        assert!(bus.read(0x3fb, &mut data));
        assert_eq!(data, [3, 3]);
        assert!(bus.write(0x3ff, &[7]));
        assert_eq!(lock(&device).0, [(7, vec![7])]);
        // Before, after and across the end belong to nobody.
        assert!(!bus.read(0x3f7, &mut data));
        assert!(!bus.read(0x3ff, &mut data));
        assert!(!bus.write(0x400, &[1]));
        assert!(!bus.write(u64::MAX, &[1, 2]));
    }

    #[test]
    fn refuses_overlaps_and_bad_ranges() {
        let device = Arc::new(Mutex::new(Scratch::default()));
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x1000, device.clone()).unwrap();
        bus.insert(0x2000, 0x1000, device.clone()).unwrap();
        for (base, len) in [(0xfff, 2), (0x1000, 1), (0x1fff, 1), (0, 0x10000)] {
            let error = bus.insert(base, len, device.clone()).unwrap_err();
            assert!(
                matches!(error, BusError::Overlap { .. }),
                "{base:#x}+{len:#x}"
            );
        }
        for (base, len) in [(5, 0), (u64::MAX, 2)] {
            let error = bus.insert(base, len, device.clone()).unwrap_err();
            assert_eq!(error, BusError::BadRange { base, len });
        }
        bus.insert(u64::MAX, 1, device).unwrap();
    }
}
