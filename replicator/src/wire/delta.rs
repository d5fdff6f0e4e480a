//! An epoch by what its twin lacks of it: pages and state by what changed since the epoch before.

#[cfg(test)]
mod tests;

use super::WireError;
use super::changes::{Changed, Runs, list_changes};
use super::epoch::CHUNK;
use super::header::Kind;
use super::pages::{ZERO_PAGE, ZEROES, contains};
use super::reader::Reader;
use crate::machine::{Capture, MemoryRegion, PAGE_SIZE};
use crate::sent::{Sent, SentPages, Slot};

/// Changes that take more of a page than this travel as the whole page.
const MOST_CHANGES: usize = PAGE_SIZE * 3 / 4;

/// After so many pages in a row of which nothing was known, or everything had changed, comparing does not pay: a stream goes through
/// the guest's memory.
const IN_VAIN: usize = 64;

/// One page of so many is compared even then.
const PROBE: usize = 16;

/// State is compared in blocks of so many bytes.
const BLOCK: usize = 4096;

/// How an epoch travels.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Payloads of frames with changed pages.
    pub(crate) changes: Vec<Vec<u8>>,
    /// How many pages these are.
    pub(crate) changed: usize,
    /// Which of the epoch's pages travel whole.
    pub(crate) whole: Vec<usize>,
    /// Payloads of frames with the state's changes. None: the state travels whole.
    pub(crate) state: Option<Vec<Vec<u8>>>,
}

impl Delta {
    /// The whole of an epoch.
    pub(crate) fn whole(epoch: &Capture) -> Self {
        Self {
            whole: (0..epoch.pages.len()).collect(),
            ..Self::default()
        }
    }

    /// What a twin lacks of an epoch that has what was sent; it will have this as well.
    pub(crate) fn since(sent: &mut Sent, epoch: &Capture) -> Self {
        let mut delta = Self::default();
        let mut payloads = Payloads::default();
        let contents = epoch.bytes.chunks_exact(PAGE_SIZE);
        // Pages in a row that had to go whole.
        let mut in_vain = 0;
        for (index, (page, bytes)) in epoch.pages.iter().zip(contents).enumerate() {
            if in_vain >= IN_VAIN && !index.is_multiple_of(PROBE) {
                sent.pages.forget_page(*page);
                delta.whole.push(index);
                continue;
            }
            in_vain += 1;
            match tell(&mut sent.pages, *page, bytes, payloads.current()) {
                Changed::No => in_vain = 0,
                Changed::Listed => {
                    in_vain = 0;
                    delta.changed += 1;
                }
                Changed::TooMuch => delta.whole.push(index),
            }
        }
        delta.changes = payloads.finish();
        delta.state = state_changes(&sent.state, &epoch.state);
        sent.state.clone_from(&epoch.state);
        delta
    }

    /// How many pages travel.
    pub(crate) fn pages(&self) -> u64 {
        (self.changed + self.whole.len()) as u64
    }
}

/// Lists a page's changes. What must travel whole is not listed.
fn tell(sent: &mut SentPages, page: u64, bytes: &[u8], into: &mut Vec<u8>) -> Changed {
    let zero = bytes == ZEROES;
    let begin = into.len();
    let number = if zero { page | ZERO_PAGE } else { page };
    into.extend_from_slice(&number.to_le_bytes());
    let (changed, slot) = match sent.slot(page) {
        Slot::Sent(old) if zero => match old == bytes {
            true => (Changed::No, old),
            false => (Changed::Listed, old),
        },
        Slot::Sent(old) => (list_changes(old, bytes, MOST_CHANGES, into), old),
        Slot::Unknown(slot) if zero => (Changed::Listed, slot),
        Slot::Unknown(slot) => (Changed::TooMuch, slot),
    };
    match changed {
        Changed::No => into.truncate(begin),
        Changed::Listed => remember(slot, bytes),
        Changed::TooMuch => {
            into.truncate(begin);
            remember(slot, bytes);
        }
    }
    changed
}

fn remember(slot: &mut [u8], bytes: &[u8]) {
    // Breaks I3 on purpose: what is known of the standby's page falls behind what it has.
    fail::fail_point!("delta::stale", |_| ());
    slot.copy_from_slice(bytes);
}

/// What makes the old state the new one; none if they are not of the same length. No payload at all says nothing: there is
/// always one.
fn state_changes(old: &[u8], new: &[u8]) -> Option<Vec<Vec<u8>>> {
    if old.is_empty() || old.len() != new.len() {
        return None;
    }
    let mut payloads = Payloads::default();
    for (index, (old, new)) in old.chunks(BLOCK).zip(new.chunks(BLOCK)).enumerate() {
        let into = payloads.current();
        let begin = into.len();
        into.extend_from_slice(&(index as u32).to_le_bytes());
        match list_changes(old, new, 2 * BLOCK, into) {
            Changed::No => into.truncate(begin),
            Changed::Listed => {}
            Changed::TooMuch => return None,
        }
    }
    let mut payloads = payloads.finish();
    if payloads.is_empty() {
        payloads.push(Vec::new());
    }
    Some(payloads)
}

/// Payloads that are as long as a frame's should be.
#[derive(Default)]
struct Payloads(Vec<Vec<u8>>);

impl Payloads {
    /// The one that has room.
    fn current(&mut self) -> &mut Vec<u8> {
        if self.0.last().is_none_or(|last| last.len() >= CHUNK / 2) {
            self.0.push(Vec::new());
        }
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        self.0.retain(|payload| !payload.is_empty());
        self.0
    }
}

/// Changes of pages as received, all of them checked.
#[derive(Debug, Default)]
pub(crate) struct PageChanges {
    entries: Vec<u8>,
    pages: u64,
}

impl PageChanges {
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.pages = 0;
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes a frame's payload, whose pages must lie in `memory`. Only an epoch that follows the one that this twin has can say what
    /// changed.
    pub(crate) fn add(
        &mut self,
        payload: &[u8],
        memory: &[MemoryRegion],
        follows: bool,
    ) -> Result<(), WireError> {
        let mut reader = Reader(payload);
        let mut pages = 0;
        while reader.end().is_none() {
            let entry = Entry::read(&mut reader);
            let page = match entry.ok_or(WireError::Malformed(Kind::PageChanges))? {
                Entry::Runs(..) if !follows => {
                    return Err(WireError::OutOfPlace(Kind::PageChanges));
                }
                Entry::Zero(page) | Entry::Runs(page, _) => page,
            };
            if !contains(memory, page) {
                return Err(WireError::Page(page));
            }
            pages += 1;
        }
        if pages == 0 {
            return Err(WireError::Malformed(Kind::PageChanges));
        }
        self.pages += pages;
        self.entries.extend_from_slice(payload);
        Ok(())
    }

    /// Gives each change, until one fails.
    pub(crate) fn try_for_each<E>(
        &self,
        mut make: impl FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = Reader(&self.entries);
        while let Some(entry) = Entry::read(&mut reader) {
            match entry {
                Entry::Zero(page) => make(Change::Zero(page))?,
                Entry::Runs(page, mut runs) => {
                    runs.try_for_each(|(at, bytes)| make(Change::Part { page, at, bytes }))?;
                }
            }
        }
        Ok(())
    }
}

/// One thing that is to be done to the standby's memory.
#[derive(Debug)]
pub(crate) enum Change<'a> {
    /// This page is all zeroes now.
    Zero(u64),
    /// These bytes belong into the page, from its byte `at` on.
    Part {
        page: u64,
        at: usize,
        bytes: &'a [u8],
    },
}

/// What became of a page.
enum Entry<'a> {
    Zero(u64),
    Runs(u64, Runs<'a>),
}

impl<'a> Entry<'a> {
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let number = reader.u64()?;
        let page = number & !ZERO_PAGE;
        if page != number {
            return Some(Self::Zero(page));
        }
        Some(Self::Runs(page, Runs::read(reader, PAGE_SIZE)?))
    }
}

/// Changes `state`, which is that of the epoch before, by a frame's payload.
pub(crate) fn change_state(state: &mut [u8], payload: &[u8]) -> Result<(), WireError> {
    let mut reader = Reader(payload);
    while reader.end().is_none() {
        let mut change = || {
            let index = reader.u32()? as usize;
            let block = state.chunks_mut(BLOCK).nth(index)?;
            for (at, bytes) in Runs::read(&mut reader, block.len())? {
                block[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Some(())
        };
        change().ok_or(WireError::Malformed(Kind::StateChanges))?;
    }
    Ok(())
}
