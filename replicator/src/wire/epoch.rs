//! An epoch as a row of frames.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3Default;

use super::delta::Delta;
use super::frame::{Body, Frame};
use super::header::{HEADER_LEN, Kind};
use super::pages::{PAGES_PER_FRAME, list_head};
use super::reader::Reader;
use crate::machine::{Capture, DiskData, DiskWrite, PAGE_SIZE};

/// Most bytes of state or of one disk write in a frame.
pub(super) const CHUNK: usize = 256 * 1024;

/// Most bytes of machine state in an epoch.
pub(crate) const MAX_STATE: u64 = 64 << 20;

/// Most bytes of disk writes in an epoch.
pub(crate) const MAX_DISK: u64 = 1 << 30;

/// What a range of zeroes counts for among them: about what it takes in memory.
const RANGE_COST: u64 = 64;

/// Sizes of an epoch, sent ahead of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sizes {
    pub(crate) pages: u64,
    pub(crate) state: u64,
    pub(crate) disk: u64,
}

impl Sizes {
    /// Of an epoch of which that many pages travel.
    pub(crate) fn of(capture: &Capture, pages: u64) -> Self {
        let disk = capture.disk_writes.iter().map(disk_cost);
        Self {
            pages,
            state: capture.state.len() as u64,
            disk: disk.sum(),
        }
    }

    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader(payload);
        let sizes = Self {
            pages: reader.u64()?,
            state: reader.u64()?,
            disk: reader.u64()?,
        };
        reader.end()?;
        Some(sizes)
    }

    fn encode(self) -> [u8; 24] {
        let Self { pages, state, disk } = self;
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&pages.to_le_bytes());
        bytes[8..16].copy_from_slice(&state.to_le_bytes());
        bytes[16..].copy_from_slice(&disk.to_le_bytes());
        bytes
    }

    /// May an epoch of a guest with that many pages be this large?
    pub(crate) fn allowed(&self, memory_pages: u64) -> bool {
        self.pages <= memory_pages && self.state <= MAX_STATE && self.disk <= MAX_DISK
    }
}

/// Cuts an epoch into frames. None when it is larger than an epoch may be.
///
/// The last frame carries a checksum over the checksums of all frames before it, so that
/// an epoch with a frame missing, doubled or out of order is not taken for whole (I3).
pub(crate) fn ship(
    capture: &Arc<Capture>,
    delta: Delta,
    generation: u64,
    epoch: u64,
    memory_pages: u64,
    mut queue: impl FnMut(Frame),
) -> Option<()> {
    let sizes = Sizes::of(capture, delta.pages());
    sizes.allowed(memory_pages).then_some(())?;
    let mut chain = Xxh3Default::new();
    let mut push = |kind, head, body| {
        let (frame, checksum) = Frame::seal(head, kind, generation, epoch, body);
        chain.update(&checksum.to_le_bytes());
        queue(frame);
    };
    push(Kind::EpochBegin, head(&sizes.encode()), Body::None);
    for payload in &delta.changes {
        push(Kind::PageChanges, head(payload), Body::None);
    }
    for indices in delta.whole.chunks(PAGES_PER_FRAME) {
        let (head, body) = whole_pages(capture, indices);
        push(Kind::Pages, head, body);
    }
    match &delta.state {
        Some(payloads) => {
            for payload in payloads {
                push(Kind::StateChanges, head(payload), Body::None);
            }
        }
        None => {
            for range in chunks(capture.state.len()) {
                push(Kind::State, head(&[]), Body::State(capture.clone(), range));
            }
        }
    }
    for write in &capture.disk_writes {
        match &write.data {
            DiskData::Bytes(bytes) => {
                for range in chunks(bytes.len()) {
                    let fields = disk_fields(write, range.start);
                    let body = Body::Disk(bytes.clone(), range);
                    push(Kind::DiskWrites, head(&fields), body);
                }
            }
            DiskData::Zeroes { len, unmap } => {
                let fields = zero_fields(write, *len, *unmap);
                push(Kind::DiskZeroes, head(&fields), Body::None);
            }
        }
    }
    let end = chain.digest().to_le_bytes();
    queue(Frame::new(Kind::EpochEnd, generation, epoch, &end));
    Some(())
}

/// A list of pages, whose bytes are sent from where they are if that is one place.
fn whole_pages(capture: &Arc<Capture>, indices: &[usize]) -> (Vec<u8>, Body) {
    let pages: Vec<u64> = indices.iter().map(|index| capture.pages[*index]).collect();
    let mut head = list_head(&pages);
    let range = |first: usize, len: usize| first * PAGE_SIZE..(first + len) * PAGE_SIZE;
    if let [first, .., last] = *indices
        && last - first != indices.len() - 1
    {
        for index in indices {
            head.extend_from_slice(&capture.bytes[range(*index, 1)]);
        }
        return (head, Body::None);
    }
    let first = indices.first().copied().unwrap_or_default();
    let body = Body::Pages(capture.clone(), range(first, indices.len()));
    (head, body)
}

/// Frames of a sync with one disk write.
pub(crate) fn sync_disk_frames(generation: u64, write: &DiskWrite) -> Vec<Frame> {
    let frame = |kind, fields: &[u8], body| Frame::seal(head(fields), kind, generation, 0, body).0;
    match &write.data {
        DiskData::Bytes(bytes) => chunks(bytes.len())
            .map(|range| {
                let fields = disk_fields(write, range.start);
                frame(Kind::SyncDisk, &fields, Body::Disk(bytes.clone(), range))
            })
            .collect(),
        DiskData::Zeroes { len, unmap } => {
            let fields = zero_fields(write, *len, *unmap);
            vec![frame(Kind::SyncZeroes, &fields, Body::None)]
        }
    }
}

/// What a disk write counts for in an epoch's sizes: its bytes, or what a range takes.
pub(crate) fn disk_cost(write: &DiskWrite) -> u64 {
    match &write.data {
        DiskData::Bytes(bytes) => bytes.len() as u64,
        DiskData::Zeroes { .. } => RANGE_COST,
    }
}

/// Which disk, where, how many zeroes, and whether the space was given back.
fn zero_fields(write: &DiskWrite, len: u64, unmap: bool) -> [u8; 21] {
    let mut fields = [0; 21];
    fields[..12].copy_from_slice(&disk_fields(write, 0));
    fields[12..20].copy_from_slice(&len.to_le_bytes());
    fields[20] = unmap.into();
    fields
}

/// Which disk, and where the bytes from `start` of the write belong on it.
fn disk_fields(write: &DiskWrite, start: usize) -> [u8; 12] {
    let mut fields = [0; 12];
    fields[..4].copy_from_slice(&write.disk.to_le_bytes());
    fields[4..].copy_from_slice(&(write.offset + start as u64).to_le_bytes());
    fields
}

/// Reads back one frame's disk write.
pub(crate) fn disk_write(kind: Kind, payload: &[u8]) -> Option<DiskWrite> {
    let mut reader = Reader(payload);
    let disk = reader.u32()?;
    let offset = reader.u64()?;
    let data = match kind {
        Kind::DiskWrites | Kind::SyncDisk => DiskData::Bytes(Bytes::copy_from_slice(reader.0)),
        Kind::DiskZeroes | Kind::SyncZeroes => {
            let len = reader.u64()?;
            let unmap = match reader.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            reader.end()?;
            DiskData::Zeroes { len, unmap }
        }
        _ => return None,
    };
    let span = data.span();
    offset.checked_add(span)?;
    (span > 0).then_some(DiskWrite { disk, offset, data })
}

fn head(fields: &[u8]) -> Vec<u8> {
    let mut head = vec![0; HEADER_LEN];
    head.extend_from_slice(fields);
    head
}

fn chunks(len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..len)
        .step_by(CHUNK)
        .map(move |start| start..(start + CHUNK).min(len))
}
