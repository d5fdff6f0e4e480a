//! An epoch as a row of frames.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

use super::frame::{Body, Frame};
use super::header::{HEADER_LEN, Kind};
use super::pages::{PAGES_PER_FRAME, list_head};
use super::reader::Reader;
use crate::machine::{Capture, DiskWrite, PAGE_SIZE};

/// Most bytes of state or of one disk write in a frame.
const CHUNK: usize = 256 * 1024;

/// Most bytes of machine state in an epoch.
pub(crate) const MAX_STATE: u64 = 64 << 20;

/// Most bytes of disk writes in an epoch.
pub(crate) const MAX_DISK: u64 = 1 << 30;

/// Sizes of an epoch, sent ahead of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sizes {
    pub(crate) pages: u64,
    pub(crate) state: u64,
    pub(crate) disk: u64,
}

impl Sizes {
    pub(crate) fn of(capture: &Capture) -> Self {
        let disk = capture.disk_writes.iter().map(|write| write.data.len());
        Self {
            pages: capture.pages.len() as u64,
            state: capture.state.len() as u64,
            disk: disk.sum::<usize>() as u64,
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
    generation: u64,
    epoch: u64,
    memory_pages: u64,
    mut queue: impl FnMut(Frame),
) -> Option<()> {
    let sizes = Sizes::of(capture);
    sizes.allowed(memory_pages).then_some(())?;
    let mut chain = Xxh3Default::new();
    let mut push = |kind, head, body| {
        let (frame, checksum) = Frame::seal(head, kind, generation, epoch, body);
        chain.update(&checksum.to_le_bytes());
        queue(frame);
    };
    push(Kind::EpochBegin, head(&sizes.encode()), Body::None);
    let mut at = 0;
    for pages in capture.pages.chunks(PAGES_PER_FRAME) {
        let range = at..at + pages.len() * PAGE_SIZE;
        at = range.end;
        let body = Body::Pages(capture.clone(), range);
        push(Kind::Pages, list_head(pages), body);
    }
    for range in chunks(capture.state.len()) {
        push(Kind::State, head(&[]), Body::State(capture.clone(), range));
    }
    for (index, write) in capture.disk_writes.iter().enumerate() {
        for range in chunks(write.data.len()) {
            let fields = disk_fields(write, range.start);
            let body = Body::Disk(capture.clone(), index, range);
            push(Kind::DiskWrites, head(&fields), body);
        }
    }
    let end = chain.digest().to_le_bytes();
    queue(Frame::new(Kind::EpochEnd, generation, epoch, &end));
    Some(())
}

/// Frames of a sync with the bytes of one disk write.
pub(crate) fn sync_disk_frames(
    generation: u64,
    write: &DiskWrite,
) -> impl Iterator<Item = Frame> + '_ {
    chunks(write.data.len()).map(move |range| {
        let mut payload = disk_fields(write, range.start).to_vec();
        payload.extend_from_slice(&write.data[range]);
        Frame::new(Kind::SyncDisk, generation, 0, &payload)
    })
}

/// Which disk, and where the bytes from `start` of the write belong on it.
fn disk_fields(write: &DiskWrite, start: usize) -> [u8; 12] {
    let mut fields = [0; 12];
    fields[..4].copy_from_slice(&write.disk.to_le_bytes());
    fields[4..].copy_from_slice(&(write.offset + start as u64).to_le_bytes());
    fields
}

/// Reads back one frame's disk write.
pub(crate) fn disk_write(payload: &[u8]) -> Option<DiskWrite> {
    let mut reader = Reader(payload);
    let disk = reader.u32()?;
    let offset = reader.u64()?;
    let data = reader.0;
    offset.checked_add(data.len() as u64)?;
    (!data.is_empty()).then(|| DiskWrite {
        disk,
        offset,
        data: data.into(),
    })
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
