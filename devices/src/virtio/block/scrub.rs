//! Blocks that are compared with the twin's (I10): watched while they are read, and recorded once more where the twin's differ.
//!
//! Who compares reads blocks without the device's lock, since a disk may take its time. What was read counts only for blocks that
//! no request of the guest has touched from before the reading until the moment at which the comparison holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};
use xxhash_rust::xxh3::xxh3_128;

use super::aligned::filled;
use super::mirror::blocks_of;
use super::mirrored::contents;
use super::{BLOCK_BYTES, Block, DiskData, DiskImage, DiskWrite};

/// Blocks of which somebody wants to know whether the guest touches them.
#[derive(Debug, Default)]
pub(super) struct Watch {
    clean: Vec<u32>,
    touched: Vec<u32>,
}

impl Watch {
    /// The guest changes this range, or is about to.
    pub(super) fn touch(&mut self, offset: u64, len: u64) {
        // Makes comparisons false on purpose: blocks count as untouched that the guest is writing.
        fail::fail_point!("scrub::unwatched", |_| ());
        if self.clean.is_empty() {
            return;
        }
        let changed = blocks_of(offset, len);
        let touched = self.clean.extract_if(.., |block| changed.contains(block));
        self.touched.extend(touched);
    }

    /// The device's requests are others now.
    pub(super) fn touch_all(&mut self) {
        self.touched.append(&mut self.clean);
    }
}

/// Reads blocks of a disk without the lock of its device.
#[derive(Debug)]
pub struct BlockReader {
    file: File,
    bytes: u64,
}

impl BlockReader {
    /// Sum (xxh3-128) of what a block of [`BLOCK_BYTES`] holds; the disk's last one may be shorter. It is read from the disk
    /// itself, as far as the system allows: what its cache holds says nothing about a medium that forgets.
    ///
    /// # Errors
    /// It can't be read, or there is no such block.
    pub fn sum(&self, block: u32) -> io::Result<u128> {
        let place = place(block, self.bytes)?;
        // Only advice: without it the sum is right as well.
        let len = std::num::NonZeroU64::new(place.len as u64);
        let _ = fadvise(&self.file, place.offset, len, Advice::DontNeed);
        Ok(xxh3_128(&read(&self.file, &place)?))
    }
}

/// Where a block is.
struct Place {
    offset: u64,
    len: usize,
}

fn place(block: u32, bytes: u64) -> io::Result<Place> {
    let offset = u64::from(block) * BLOCK_BYTES;
    let len = bytes.saturating_sub(offset).min(BLOCK_BYTES) as usize;
    match len {
        0 => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("there is no block {block} on this disk"),
        )),
        _ => Ok(Place { offset, len }),
    }
}

fn read(file: &File, place: &Place) -> io::Result<Bytes> {
    filled(place.len, |bytes| file.read_exact_at(bytes, place.offset))
}

impl Block {
    /// Size of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.extent.bytes()
    }

    /// Reads the disk on behalf of others.
    ///
    /// # Errors
    /// This process can have no further descriptor.
    pub fn reader(&self) -> io::Result<BlockReader> {
        Ok(BlockReader {
            file: self.image().file().try_clone()?,
            bytes: self.bytes(),
        })
    }

    /// Watches these blocks, and no others, from now on.
    pub fn watch(&mut self, blocks: &[u32]) {
        self.watch = Watch {
            clean: blocks.to_vec(),
            touched: Vec::new(),
        };
        // What requests in flight have written, nobody knows. Those of before a takeover have not even begun.
        let under_way = self.in_flight.values();
        let under_way = under_way.filter_map(|request| request.changes);
        for (offset, len) in under_way.collect::<Vec<_>>() {
            self.watch.touch(offset, len);
        }
        if !self.reissue.is_empty() {
            self.watch.touch_all();
        }
    }

    /// The watched blocks that the guest has touched. The watch ends.
    pub fn end_watch(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.watch).touched
    }

    /// Records what a block holds as if the guest had written it just now, so that the twin's becomes the same. Read under the
    /// device's lock, it is in order with the guest's writes: a request in flight is recorded behind it when it has ended.
    ///
    /// # Errors
    /// It can't be read, or there is no such block.
    pub fn record_again(&mut self, block: u32) -> io::Result<()> {
        let place = place(block, self.bytes())?;
        let bytes = read(self.image().file(), &place);
        let bytes = bytes.map_err(|error| self.image().name_in(error))?;
        if !self.recording {
            return Ok(());
        }
        // The twin is about to change it: if it dies over that, its next copy has the block.
        self.note_change(place.offset, place.len as u64);
        let data = contents(bytes);
        self.recorded_bytes += match &data {
            DiskData::Bytes(bytes) => bytes.len(),
            DiskData::Zeroes { .. } => super::RECORDED_RANGE_BYTES,
        };
        self.recorded.push(DiskWrite {
            disk: self.disk,
            offset: place.offset,
            data,
        });
        Ok(())
    }

    fn image(&self) -> &DiskImage {
        self.ring.image()
    }
}

#[cfg(test)]
mod tests;
