//! Putting an epoch together from its frames.

use xxhash_rust::xxh3::Xxh3Default;

use super::WireError;
use super::delta::{PageChanges, change_state};
use super::epoch::{Sizes, disk_cost, disk_write};
use super::header::{Header, Kind};
use super::pages::PageList;
use crate::machine::{Capture, MemoryRegion, PAGE_SIZE};

/// The epoch that is being received. It is whole, or it is nothing (I3).
#[derive(Default)]
pub(crate) struct Assembly {
    running: Option<Running>,
    capture: Capture,
    changes: PageChanges,
    list: PageList,
    /// Generation and number of the epoch that was given last.
    given: Option<(u64, u64)>,
    /// Those of the epoch that this twin has, if it came over this link.
    has: Option<(u64, u64)>,
    /// The state of that epoch.
    state: Vec<u8>,
}

struct Running {
    generation: u64,
    epoch: u64,
    sizes: Sizes,
    disk: u64,
    /// The epoch follows the one that this twin has: it may say what changed only.
    follows: bool,
    /// The state is that of the epoch before, with changes.
    changes_state: bool,
    chain: Xxh3Default,
}

impl Assembly {
    /// Takes one frame of an epoch. Gives the epoch when this was its last.
    pub(crate) fn take(
        &mut self,
        header: &Header,
        payload: &[u8],
        memory: &[MemoryRegion],
    ) -> Result<Option<&Capture>, WireError> {
        let out_of_place = WireError::OutOfPlace(header.kind);
        let malformed = WireError::Malformed(header.kind);
        if header.kind == Kind::EpochBegin {
            if self.running.is_some() {
                return Err(out_of_place);
            }
            self.begin(header, payload, memory)?;
            return Ok(None);
        }
        let Some(running) = &mut self.running else {
            return Err(out_of_place);
        };
        if (running.generation, running.epoch) != (header.generation, header.epoch) {
            return Err(out_of_place);
        }
        if header.kind == Kind::EpochEnd {
            let sum = payload.try_into().map_err(|_| malformed)?;
            return self.end(u64::from_le_bytes(sum)).map(Some);
        }
        running.chain.update(&header.checksum.to_le_bytes());
        match header.kind {
            Kind::Pages => {
                let bytes = self.list.decode(header.kind, payload, memory)?;
                self.capture.pages.extend_from_slice(&self.list.full);
                self.capture.bytes.extend_from_slice(bytes);
            }
            Kind::PageChanges => self.changes.add(payload, memory, running.follows)?,
            Kind::State if !running.changes_state => {
                self.capture.state.extend_from_slice(payload);
            }
            Kind::StateChanges if running.follows => {
                let state = &mut self.capture.state;
                if !std::mem::replace(&mut running.changes_state, true) {
                    state.is_empty().then_some(()).ok_or(out_of_place)?;
                    state.extend_from_slice(&self.state);
                }
                change_state(state, payload)?;
            }
            Kind::DiskWrites | Kind::DiskZeroes => {
                let write = disk_write(header.kind, payload).ok_or(malformed)?;
                running.disk += disk_cost(&write);
                self.capture.disk_writes.push(write);
            }
            _ => return Err(out_of_place),
        }
        let Capture { state, pages, .. } = &self.capture;
        let sizes = &running.sizes;
        if pages.len() as u64 + self.changes.pages() > sizes.pages
            || state.len() as u64 > sizes.state
            || running.disk > sizes.disk
        {
            return Err(WireError::EpochTooLarge(header.epoch));
        }
        Ok(None)
    }

    /// The epoch that was given last: its whole pages and all else, and its pages that only changed.
    pub(crate) fn epoch(&self) -> (&Capture, &PageChanges) {
        (&self.capture, &self.changes)
    }

    /// The epoch that was given last is what this twin has now.
    pub(crate) fn applied(&mut self) {
        self.has = self.given;
        std::mem::swap(&mut self.state, &mut self.capture.state);
    }

    /// Forgets what was received of an unfinished epoch; its number, if there was one. What comes next comes over another
    /// link.
    pub(crate) fn discard(&mut self) -> Option<u64> {
        self.clear();
        (self.given, self.has) = (None, None);
        self.running.take().map(|running| running.epoch)
    }

    /// Gives back the memory of what was applied.
    pub(crate) fn give_back_memory(&mut self) {
        if self.running.is_none() {
            self.capture = Capture::default();
            self.changes = PageChanges::default();
            self.list = PageList::default();
        }
    }

    fn clear(&mut self) {
        self.capture.clear();
        self.changes.clear();
    }

    fn begin(
        &mut self,
        header: &Header,
        payload: &[u8],
        memory: &[MemoryRegion],
    ) -> Result<(), WireError> {
        let sizes = Sizes::decode(payload).ok_or(WireError::Malformed(header.kind))?;
        let memory_pages = memory.iter().map(|region| region.len).sum::<u64>() / PAGE_SIZE as u64;
        if !sizes.allowed(memory_pages) {
            return Err(WireError::EpochTooLarge(header.epoch));
        }
        self.clear();
        let before = (header.generation, header.epoch.wrapping_sub(1));
        let mut chain = Xxh3Default::new();
        chain.update(&header.checksum.to_le_bytes());
        self.running = Some(Running {
            generation: header.generation,
            epoch: header.epoch,
            sizes,
            disk: 0,
            follows: self.has == Some(before),
            changes_state: false,
            chain,
        });
        Ok(())
    }

    fn end(&mut self, sum: u64) -> Result<&Capture, WireError> {
        let Some(running) = self.running.take() else {
            return Err(WireError::OutOfPlace(Kind::EpochEnd));
        };
        let skip_verify = || {
            fail::fail_point!("apply::skip_verify", |_| true);
            false
        };
        let pages = self.capture.pages.len() as u64 + self.changes.pages();
        let complete = Sizes::of(&self.capture, pages) == running.sizes;
        let whole = complete && running.chain.digest() == sum;
        if whole || skip_verify() {
            self.given = Some((running.generation, running.epoch));
            Ok(&self.capture)
        } else {
            Err(WireError::EpochNotWhole(running.epoch))
        }
    }
}
