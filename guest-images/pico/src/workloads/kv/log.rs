//! The append-only log on the disk: batches are written and flushed one after another;
//! what comes in meanwhile is the next batch.

use alloc::vec;
use alloc::vec::Vec;

use pico::kv::log_format::{
    BATCH_MAX, Batch, SECTOR, batch_len, decode_area, decode_batch, encode_area, replay,
};
use pico::kv::store::Store;

use crate::hardware::console::say;
use crate::hardware::heap;
use crate::virtio::block::{BlockDevice, Request};

/// Smallest disk, in bytes.
const DISK_MIN: u64 = 1 << 20;
/// Bytes read at once when the log is replayed, at least.
const READ_AHEAD: usize = 64 * 1024;
/// Bytes of a batch from which on a snapshot starts the next one.
const SNAPSHOT_BATCH: usize = 256 * 1024;
/// What the records of one request may take beyond the request's own bytes.
const RECORDS_OVERHEAD: usize = 16 * 1024;

/// What the disk is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Writing,
    Flushing,
}

/// An open log. Batches are numbered from 1 on since boot, for those who wait for them.
pub(super) struct Log {
    disk: BlockDevice,
    /// Sectors of one of the two areas.
    area_sectors: u64,
    /// First sector of the area in use.
    area: u64,
    generation: u64,
    /// Where the next batch goes: sector, counted from the area's start.
    next_sector: u64,
    /// The next batch's number in this generation.
    sequence: u64,
    pending: Batch,
    /// Number of the batch that is pending.
    pending_number: u64,
    committed: u64,
    state: State,
    batch_limit: usize,
}

impl Log {
    /// Finds the log on the disk, or starts one on a disk of zeros.
    pub(super) fn open(mut disk: BlockDevice) -> Self {
        if disk.capacity() < DISK_MIN / SECTOR as u64 {
            panic!("log=vda: the disk is smaller than 1 MiB");
        }
        let area_sectors = disk.capacity() / 2;
        let first = read(&mut disk, 0, SECTOR);
        let second = read(&mut disk, area_sectors, SECTOR);
        let (area, generation) = match (decode_area(&first), decode_area(&second)) {
            (Some(first), Some(second)) if second > first => (area_sectors, second),
            (None, Some(second)) => (area_sectors, second),
            (Some(first), _) => (0, first),
            (None, None) => {
                if first.iter().any(|&byte| byte != 0) {
                    panic!("log=vda: the disk holds other data, use a disk of zeros");
                }
                write(&mut disk, 0, encode_area(1).to_vec());
                flush(&mut disk);
                (0, 1)
            }
        };
        let area_bytes = usize::try_from(area_sectors)
            .unwrap_or(usize::MAX)
            .saturating_mul(SECTOR);
        Self {
            disk,
            area_sectors,
            area,
            generation,
            next_sector: 1,
            sequence: 1,
            pending: Batch::default(),
            pending_number: 1,
            committed: 0,
            state: State::Idle,
            batch_limit: (BATCH_MAX / 2).min(heap::total() / 32).min(area_bytes / 4),
        }
    }

    /// What a store may hold so that its snapshot takes at most half an area: then a
    /// snapshot always leaves room for more batches.
    pub(super) fn store_limit(&self) -> usize {
        usize::try_from(self.area_sectors / 2)
            .unwrap_or(usize::MAX)
            .saturating_mul(SECTOR)
    }

    /// Applies all whole batches to the store; a torn tail is left out, and overwritten.
    pub(super) fn replay(&mut self, store: &mut Store) {
        let mut bytes = Vec::new();
        let mut at = 0;
        loop {
            if bytes.len() - at < SECTOR {
                (bytes, at) = (self.read_ahead(SECTOR), 0);
            }
            let Some(length) = bytes.get(at..).and_then(batch_len) else {
                break;
            };
            if bytes.len() - at < length {
                (bytes, at) = (self.read_ahead(length), 0);
            }
            let batch = bytes.get(at..at + length);
            let Some(records) = batch.and_then(|b| decode_batch(b, self.generation, self.sequence))
            else {
                break;
            };
            if let Err(error) = replay(records, store) {
                panic!(
                    "log=vda: batch {} can't be replayed: {error:?}",
                    self.sequence
                );
            }
            at += length;
            self.sequence += 1;
            self.next_sector += (length / SECTOR) as u64;
        }
        say!(
            "kv: log generation={} batches={} keys={}",
            self.generation,
            self.sequence - 1,
            store.len()
        );
    }

    /// Bytes from the next batch's place on, not beyond the area.
    fn read_ahead(&mut self, least: usize) -> Vec<u8> {
        let left = (self.area_sectors - self.next_sector).saturating_mul(SECTOR as u64);
        let length = (least.max(READ_AHEAD) as u64).min(left) as usize;
        if length == 0 {
            return Vec::new();
        }
        read(&mut self.disk, self.area + self.next_sector, length)
    }

    /// Where changes are recorded.
    pub(super) fn batch(&mut self) -> &mut Batch {
        &mut self.pending
    }

    /// Whether a request of this many bytes fits into the pending batch.
    pub(super) fn has_room(&self, request: usize) -> bool {
        self.pending.is_empty()
            || self.pending.disk_len() + request + RECORDS_OVERHEAD <= self.batch_limit
    }

    /// The batch that must be committed before anything read now may be told; `None`:
    /// all is on the disk.
    pub(super) fn awaited(&self) -> Option<u64> {
        if !self.pending.is_empty() {
            Some(self.pending_number)
        } else if self.state != State::Idle {
            Some(self.pending_number - 1)
        } else {
            None
        }
    }

    /// The last batch that is on the disk.
    pub(super) fn committed(&self) -> u64 {
        self.committed
    }

    /// Starts writing what is pending, unless the disk is busy.
    pub(super) fn start_batch(&mut self, store: &Store) {
        if self.state != State::Idle || self.pending.is_empty() {
            return;
        }
        let batch = core::mem::take(&mut self.pending);
        self.pending_number += 1;
        let sectors = (batch.disk_len() / SECTOR) as u64;
        if self.next_sector + sectors > self.area_sectors {
            // The store holds what the batch records.
            self.write_snapshot(store);
            self.committed = self.pending_number - 1;
            return;
        }
        let bytes = batch.seal(self.generation, self.sequence);
        self.submit(Request::Write(self.area + self.next_sector, bytes));
        self.state = State::Writing;
        self.next_sector += sectors;
        self.sequence += 1;
    }

    fn submit(&mut self, request: Request) {
        if self.disk.submit(request).is_err() {
            panic!("log=vda: a request lies outside the disk");
        }
    }

    /// Takes what the disk has done. True: a batch was committed.
    pub(super) fn poll(&mut self, wake: u32) -> bool {
        self.disk.take_interrupt(wake);
        let mut progress = false;
        while let Some((_, result)) = self.disk.poll() {
            // An acknowledged write must not depend on a disk that failed.
            if result.is_err() {
                panic!("log=vda: the disk failed a write or a flush");
            }
            match self.state {
                State::Writing => {
                    self.submit(Request::Flush);
                    self.state = State::Flushing;
                }
                State::Flushing | State::Idle => {
                    self.committed = self.pending_number - 1;
                    self.state = State::Idle;
                    progress = true;
                }
            }
        }
        progress
    }

    /// Before sleeping: asks for an interrupt. False: look again first.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        self.disk.prepare_sleep()
    }

    /// Starts the next generation in the other area with all the store holds. The area
    /// counts only when its header is written, which is last.
    fn write_snapshot(&mut self, store: &Store) {
        self.area = self.area_sectors - self.area;
        self.generation += 1;
        self.next_sector = 1;
        self.sequence = 1;
        let mut batch = Batch::default();
        for (key, value) in store.iter() {
            batch.set(key, value);
            if batch.disk_len() >= SNAPSHOT_BATCH {
                self.write_batch(core::mem::take(&mut batch));
            }
        }
        if !batch.is_empty() {
            self.write_batch(batch);
        }
        flush(&mut self.disk);
        write(
            &mut self.disk,
            self.area,
            encode_area(self.generation).to_vec(),
        );
        flush(&mut self.disk);
    }

    fn write_batch(&mut self, batch: Batch) {
        let bytes = batch.seal(self.generation, self.sequence);
        let sectors = (bytes.len() / SECTOR) as u64;
        write(&mut self.disk, self.area + self.next_sector, bytes);
        self.next_sector += sectors;
        self.sequence += 1;
    }
}

fn read(disk: &mut BlockDevice, sector: u64, length: usize) -> Vec<u8> {
    disk.run(Request::Read(sector, vec![0; length]))
        .unwrap_or_else(|_| panic!("log=vda: reading sector {sector} failed"))
}

fn write(disk: &mut BlockDevice, sector: u64, bytes: Vec<u8>) {
    if disk.run(Request::Write(sector, bytes)).is_err() {
        panic!("log=vda: writing sector {sector} failed");
    }
}

fn flush(disk: &mut BlockDevice) {
    if disk.run(Request::Flush).is_err() {
        panic!("log=vda: a flush failed");
    }
}
