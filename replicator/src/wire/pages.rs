//! Lists of pages with their contents.

use super::WireError;
use super::frame::{Body, Frame};
use super::header::{HEADER_LEN, Kind};
use super::reader::Reader;
use crate::machine::{MemoryRegion, PAGE_SIZE};

/// Most pages in one frame.
pub(crate) const PAGES_PER_FRAME: usize = 64;

/// Set in a page's number: the page is all zeroes and its bytes do not travel.
pub(super) const ZERO_PAGE: u64 = 1 << 63;

pub(super) static ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Pages as received: numbers that were checked, and the bytes of those that have any.
#[derive(Debug, Default)]
pub(crate) struct PageList {
    /// Pages with contents.
    pub(crate) full: Vec<u64>,
    /// Pages of zeroes.
    pub(crate) zero: Vec<u64>,
}

impl PageList {
    /// Reads a list, whose pages must lie in `memory`, and returns the bytes of the full
    /// ones. An epoch's pages are all full.
    pub(crate) fn decode<'a>(
        &mut self,
        kind: Kind,
        payload: &'a [u8],
        memory: &[MemoryRegion],
    ) -> Result<&'a [u8], WireError> {
        self.full.clear();
        self.zero.clear();
        let malformed = WireError::Malformed(kind);
        let mut reader = Reader(payload);
        let count = reader.u32().ok_or(malformed.clone())? as usize;
        if count == 0 || count > PAGES_PER_FRAME {
            return Err(malformed);
        }
        for _ in 0..count {
            let number = reader.u64().ok_or(malformed.clone())?;
            let page = number & !ZERO_PAGE;
            if !contains(memory, page) {
                return Err(WireError::Page(page));
            }
            if number == page {
                self.full.push(page);
            } else if kind == Kind::SyncPages {
                self.zero.push(page);
            } else {
                return Err(malformed);
            }
        }
        let bytes = reader.0;
        if bytes.len() == self.full.len() * PAGE_SIZE {
            Ok(bytes)
        } else {
            Err(malformed)
        }
    }
}

/// Does the page lie in one of the regions?
pub(super) fn contains(memory: &[MemoryRegion], page: u64) -> bool {
    let first_byte = page.checked_mul(PAGE_SIZE as u64);
    first_byte.is_some_and(|at| {
        memory
            .iter()
            .any(|region| at >= region.start && at - region.start < region.len)
    })
}

/// The start of a page list: numbers only, in a buffer with room for the header.
pub(crate) fn list_head(pages: &[u64]) -> Vec<u8> {
    debug_assert!(!pages.is_empty() && pages.len() <= PAGES_PER_FRAME);
    let mut head = Vec::with_capacity(HEADER_LEN + 4 + pages.len() * 8);
    head.resize(HEADER_LEN, 0);
    head.extend_from_slice(&(pages.len() as u32).to_le_bytes());
    for page in pages {
        head.extend_from_slice(&page.to_le_bytes());
    }
    head
}

/// A frame of the sync from pages and their contents, without the bytes of zero pages.
pub(crate) fn sync_frame(generation: u64, pages: &[u64], bytes: &[u8]) -> Frame {
    let mut head = list_head(pages);
    let numbers = HEADER_LEN + 4;
    head.reserve(bytes.len());
    for (index, page) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
        if page == ZEROES {
            let at = numbers + index * 8;
            head[at..at + 8].copy_from_slice(&(pages[index] | ZERO_PAGE).to_le_bytes());
        } else {
            head.extend_from_slice(page);
        }
    }
    Frame::seal(head, Kind::SyncPages, generation, 0, Body::None).0
}
