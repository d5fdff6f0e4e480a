//! What the guest has written to since the last epoch, and its way into the next one.
//!
//! Most of it is copied while the guest still runs (*ahead*): harvested, which re-arms the log, then copied. What is
//! written to meanwhile is in the log again, and is copied once more in the pause, where nothing is written. So the pause
//! is as long as that takes, not as long as the whole epoch's pages take.

use std::ops::Deref as _;
use std::os::fd::RawFd;

use evertwin_devices::GuestMemory;
use evertwin_replicator::machine::Capture;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::{DirtyLog, KvmError};
use crate::machine::Machine;
use crate::memory::{self, PAGE_SIZE};
use crate::page_set::PageSet;

/// Fewer pages are left to the pause: to look for what changed meanwhile costs as much as copying them.
const FEWEST_AHEAD: usize = 48;

/// Most times that pages are copied ahead: a guest that writes faster than that won't let it come to an end.
const ROUNDS: usize = 3;

/// A round that leaves more than this part of what it copied is the last.
const GAIN: usize = 4;

/// After so many epochs each hot page is taken for a cold one once: it may have become one.
const HOT_EPOCHS: u32 = 8;

/// The dirty pages of a primary.
#[derive(Debug)]
pub(super) struct DirtyPages {
    log: DirtyLog,
    /// Harvested from all sources, and those of failed epochs (I5).
    found: PageSet,
    /// Pages are copied ahead.
    ahead: bool,
    /// Pages that were written to again as soon as they had been copied ahead: left to the pause, and writable until then.
    hot: PageSet,
    epochs: u32,
    /// What was harvested last.
    harvest: Vec<u64>,
    /// Where in an epoch's pages each round's begin. Those of a round are in order.
    rounds: Vec<usize>,
}

impl DirtyPages {
    /// None yet; nothing is recorded.
    ///
    /// # Errors
    /// When this process can have no further thread or descriptor.
    pub(super) fn new(machine: &Machine) -> Result<Self, KvmError> {
        let none = PageSet::new(&memory::region_list(machine.memory()));
        Ok(Self {
            log: DirtyLog::new(machine.vm())?,
            hot: none.clone(),
            found: none,
            ahead: true,
            epochs: 0,
            harvest: Vec::new(),
            rounds: Vec::new(),
        })
    }

    /// Whether pages are copied ahead.
    pub(super) fn set_copy_ahead(&mut self, on: bool) {
        self.ahead = on;
    }

    /// Begins to record.
    pub(super) fn start(&mut self) {
        self.log.start();
    }

    /// Waits until writes are recorded.
    pub(super) fn started(&mut self, machine: &Machine) -> Result<(), KvmError> {
        self.log.started(machine.vm())
    }

    /// Begins to stop that.
    pub(super) fn stop(&mut self) {
        self.log.stop();
    }

    /// Readable when what was begun is done.
    pub(super) fn switched(&self) -> RawFd {
        self.log.switched()
    }

    /// Makes the same readable for another reason.
    pub(super) fn signal(&self) -> Result<EventFd, KvmError> {
        self.log.signal()
    }

    /// Forgets all: every page is sent after this, or none is.
    pub(super) fn clear(&mut self, machine: &Machine) {
        for region in machine.memory().iter() {
            region.deref().bitmap().reset();
        }
        self.found.clear();
        self.hot.clear();
    }

    /// These are to be in the next epoch.
    pub(super) fn insert(&mut self, pages: &[u64]) {
        for page in pages {
            self.found.insert(*page);
        }
    }

    /// Takes what there is while the guest runs. Its contents are to be read after this, not before.
    pub(super) fn take(&mut self, machine: &Machine, pages: &mut Vec<u64>) -> Result<(), KvmError> {
        self.harvest(machine)?;
        self.found.drain_into(pages);
        Ok(())
    }

    /// Copies what there is while the guest goes on. What the pause finds belongs behind it, with [`Self::copy_rest`].
    pub(super) fn copy_ahead(
        &mut self,
        machine: &Machine,
        into: &mut Capture,
    ) -> Result<(), KvmError> {
        // Not its bytes: to make them anew is to fill them with zeroes first.
        into.pages.clear();
        self.rounds.clear();
        if !self.ahead {
            return Ok(());
        }
        self.epochs += 1;
        if self.epochs.is_multiple_of(HOT_EPOCHS) {
            self.hot.clear();
        }
        let mut most = usize::MAX;
        for _ in 0..ROUNDS {
            if let Err(error) = self.read_log(machine, true) {
                self.give_back(into);
                return Err(error);
            }
            let count = self.found.len();
            if !(FEWEST_AHEAD..=most).contains(&count) {
                break;
            }
            most = count / GAIN;
            self.found.drain_into(&mut self.harvest);
            self.place(machine.memory(), into);
        }
        Ok(())
    }

    /// Finds what was written to since the last time.
    pub(super) fn harvest(&mut self, machine: &Machine) -> Result<(), KvmError> {
        self.read_log(machine, false)
    }

    /// Copies what is in no epoch yet. The guest stands still, so this is how the epoch leaves each page.
    pub(super) fn copy_rest(&mut self, machine: &Machine, into: &mut Capture) {
        // Breaks I3 on purpose: what the guest wrote to after the copy stays as it was.
        fail::fail_point!("ahead::stale", !into.pages.is_empty(), |_| {
            self.found.drain_into(&mut self.harvest);
            let new = self
                .harvest
                .iter()
                .filter(|page| !into.pages.contains(page));
            self.harvest = new.copied().collect();
            self.finish(machine.memory(), into);
        });
        self.found.drain_into(&mut self.harvest);
        self.finish(machine.memory(), into);
    }

    /// The epoch was not captured: what was copied ahead for it is in no other one (I5).
    pub(super) fn give_back(&mut self, epoch: &Capture) {
        self.insert(&epoch.pages);
    }

    /// Harvests all sources; hot pages can be left in the log.
    fn read_log(&mut self, machine: &Machine, leave_hot: bool) -> Result<(), KvmError> {
        // Breaks I5 on purpose: the log is read and forgotten.
        fail::fail_point!("harvest::drop", |_| self.log.read(machine.vm(), |_, _| {}));
        let (found, hot) = (&mut self.found, &self.hot);
        self.log.read_but(
            machine.vm(),
            |first, bitmap| {
                if leave_hot {
                    hot.remove_from(first, bitmap);
                }
            },
            |first, bitmap| found.merge(first, bitmap),
        )?;
        self.harvest_devices(machine);
        Ok(())
    }

    /// What the devices wrote (I6). They mark a page after they wrote to it: one that is copied between these two is copied
    /// once more.
    fn harvest_devices(&mut self, machine: &Machine) {
        fail::fail_point!("harvest::skip_vmm_writes", |_| ());
        for region in machine.memory().iter() {
            let first = region.start_addr().0 / PAGE_SIZE;
            let marks = region.deref().bitmap();
            marks.take(|page| self.found.insert(first + page as u64));
        }
    }

    /// Copies the last of an epoch, whose buffer may be longer from an earlier one.
    fn finish(&mut self, memory: &GuestMemory, into: &mut Capture) {
        self.place(memory, into);
        into.bytes.truncate(into.pages.len() * PAGE_SIZE as usize);
    }

    /// Copies the harvest into the epoch, over what earlier rounds copied of the same pages.
    fn place(&mut self, memory: &GuestMemory, into: &mut Capture) {
        let old = into.pages.len();
        for page in &self.harvest {
            let earlier = self.rounds.iter().enumerate().find_map(|(round, begin)| {
                let end = self.rounds.get(round + 1).copied().unwrap_or(old);
                let found = into.pages[*begin..end].binary_search(page);
                found.ok().map(|at| begin + at)
            });
            match earlier {
                Some(at) => {
                    self.hot.insert(*page);
                    let bytes = &mut into.bytes[at * PAGE_SIZE as usize..];
                    copy_page(memory, *page, &mut bytes[..PAGE_SIZE as usize]);
                }
                None => into.pages.push(*page),
            }
        }
        let len = into.pages.len() * PAGE_SIZE as usize;
        if into.bytes.len() < len {
            into.bytes.resize(len, 0);
        }
        let new = &mut into.bytes[old * PAGE_SIZE as usize..len];
        copy_pages(memory, &into.pages[old..], new);
        self.rounds.push(old);
    }
}

/// Copies `pages` into `bytes`, which has room for exactly them.
pub(super) fn copy_pages(memory: &GuestMemory, pages: &[u64], bytes: &mut [u8]) {
    for (page, bytes) in pages.iter().zip(bytes.chunks_exact_mut(PAGE_SIZE as usize)) {
        copy_page(memory, *page, bytes);
    }
}

fn copy_page(memory: &GuestMemory, page: u64, bytes: &mut [u8]) {
    if let Err(error) = memory.read_slice(bytes, GuestAddress(page * PAGE_SIZE)) {
        // Page numbers come from this RAM's own bitmaps or layout.
        tracing::error!(page, %error, "a page outside RAM was to be read");
    }
}

#[cfg(test)]
mod tests;
