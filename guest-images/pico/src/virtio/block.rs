//! The block device driver (virtio 1.2, 5.2). Requests run in the background; buffers
//! are handed over and come back with the completion.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::mmio::{Refusal, Transport};
use super::queue::{Descriptor, Segment, Virtqueue, write_indirect};
use super::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use crate::hardware::interrupts;

/// Bytes of a sector, the device's unit of address.
pub(crate) const SECTOR: usize = 512;

const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// Request types (virtio 1.2, 5.2.6).
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_WRITE_ZEROES: u32 = 13;
/// The range's space may be given back (5.2.6).
const FLAG_UNMAP: u32 = 1;
const STATUS_OK: u8 = 0;
/// What a status byte is before the device writes it: no status of the specification.
const STATUS_PENDING: u8 = 0xff;

/// Requests at once, at most.
pub(crate) const SLOTS: u16 = 16;
/// Enough for so many chains, and as long as the longest chain in an indirect table is (virtio 1.2, 2.7.5.3.1).
const QUEUE_SIZE: u16 = 64;
/// Segments of data in a request, at most, where there are indirect tables.
const DATA_SEGMENTS: usize = 32;
/// Bytes of a segment; only those of requests of more than 1 MiB are longer.
const SEGMENT_BYTES: usize = 32 << 10;
/// Header, data, status: in an indirect table, and in the ring itself, where data is one segment.
const TABLE: usize = DATA_SEGMENTS + 2;
const CHAIN: u16 = 3;
const _: () = assert!(SLOTS * CHAIN <= QUEUE_SIZE && TABLE <= QUEUE_SIZE as usize);

/// A request with the buffer that goes along.
pub(crate) enum Request {
    /// Fills the buffer (whole sectors) from this sector on.
    Read(u64, Vec<u8>),
    /// Writes the buffer (whole sectors) from this sector on.
    Write(u64, Vec<u8>),
    /// Makes so many sectors from this one on read as zeroes, and gives their space back.
    Zero(u64, u32),
    /// Makes completed writes durable.
    Flush,
}

/// The device reported an error for a request, or doesn't have the sectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockError;

/// How a request ended: the buffer (empty for a flush) comes back.
pub(crate) type Completion = (u16, Result<Vec<u8>, BlockError>);

#[repr(C)]
struct Slot {
    kind: u32,
    reserved: u32,
    sector: u64,
    status: u8,
    table: [Descriptor; TABLE],
    buffer: Vec<u8>,
}

/// A running block device.
pub(crate) struct BlockDevice {
    transport: Transport,
    queue: Virtqueue,
    slots: Box<[Slot]>,
    capacity: u64,
    indirect: bool,
    flush: bool,
    zeroes: bool,
}

impl BlockDevice {
    pub(super) fn start(transport: Transport) -> Result<Self, Refusal> {
        let wanted = EVENT_IDX | INDIRECT_DESC | FEATURE_FLUSH | FEATURE_WRITE_ZEROES;
        let features = transport.negotiate(wanted, VERSION_1)?;
        let indirect = features & INDIRECT_DESC != 0;
        let chain = if indirect { 1 } else { CHAIN };
        let queue = transport.add_queue(0, QUEUE_SIZE, chain, features & EVENT_IDX != 0)?;
        let fresh = |_| Slot {
            kind: 0,
            reserved: 0,
            sector: 0,
            status: STATUS_PENDING,
            table: [Descriptor::default(); TABLE],
            buffer: Vec::new(),
        };
        let slots = (0..queue.slots()).map(fresh).collect();
        let capacity = u64::from_le_bytes(transport.config(0));
        transport.driver_ok();
        let flush = features & FEATURE_FLUSH != 0;
        let zeroes = features & FEATURE_WRITE_ZEROES != 0;
        Ok(Self {
            transport,
            queue,
            slots,
            capacity,
            indirect,
            flush,
            zeroes,
        })
    }

    /// Size of the disk in sectors.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Starts a request; its number comes back with the completion. Callers keep no more
    /// than [`SLOTS`] in flight.
    ///
    /// # Errors
    /// The request isn't of whole sectors inside the disk.
    pub(crate) fn submit(&mut self, request: Request) -> Result<u16, BlockError> {
        let (kind, sector, buffer) = match request {
            Request::Read(sector, buffer) => (TYPE_IN, sector, buffer),
            Request::Write(sector, buffer) => (TYPE_OUT, sector, buffer),
            // Its one range is data of the request, and says where.
            Request::Zero(sector, sectors) if self.zeroes => {
                return self.start_request(TYPE_WRITE_ZEROES, 0, range(sector, sectors));
            }
            Request::Zero(sector, sectors) => {
                (TYPE_OUT, sector, alloc::vec![0; sectors as usize * SECTOR])
            }
            // Without the feature the device writes through (virtio 1.2, 5.2.5).
            Request::Flush if !self.flush => (TYPE_IN, 0, alloc::vec![0; SECTOR]),
            Request::Flush => (TYPE_FLUSH, 0, Vec::new()),
        };
        let sectors = (buffer.len() / SECTOR) as u64;
        let end = sector.checked_add(sectors).ok_or(BlockError)?;
        if !buffer.len().is_multiple_of(SECTOR) || end > self.capacity {
            return Err(BlockError);
        }
        self.start_request(kind, sector, buffer)
    }

    fn start_request(
        &mut self,
        kind: u32,
        sector: u64,
        buffer: Vec<u8>,
    ) -> Result<u16, BlockError> {
        let index = self
            .queue
            .take()
            .expect("more requests in flight than slots");
        let slot = &mut self.slots[usize::from(index)];
        (slot.kind, slot.reserved, slot.sector) = (kind, 0, sector);
        (slot.status, slot.buffer) = (STATUS_PENDING, buffer);
        let segment = |address, length, device_writes| Segment {
            address,
            length,
            device_writes,
        };
        let header = segment(&raw const slot.kind as u64, 16, false);
        let status = segment(&raw mut slot.status as u64, 1, true);
        let most = if self.indirect { DATA_SEGMENTS } else { 1 };
        let length = slot.buffer.len().div_ceil(most).max(SEGMENT_BYTES);
        let mut segments = [header; TABLE];
        let mut count = 1;
        for piece in slot.buffer.chunks_mut(length) {
            let (address, length) = (piece.as_mut_ptr() as u64, piece.len() as u32);
            segments[count] = segment(address, length, kind == TYPE_IN);
            count += 1;
        }
        segments[count] = status;
        let segments = &segments[..=count];
        if self.indirect {
            write_indirect(&mut slot.table, segments);
            // SAFETY: the slots are never moved or freed while the device runs, and the
            // buffer is in the slot until the request is popped.
            unsafe {
                self.queue
                    .submit_indirect(index, &slot.table[..segments.len()])
            };
        } else {
            // SAFETY: as above.
            unsafe { self.queue.submit(index, segments) };
        }
        self.transport.kick(&mut self.queue);
        Ok(index)
    }

    /// The next request that has ended.
    pub(crate) fn poll(&mut self) -> Option<Completion> {
        let (index, _) = self.queue.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        let buffer = core::mem::take(&mut slot.buffer);
        // SAFETY: the device wrote it behind the compiler's back; it is done with it.
        let status = unsafe { (&raw const slot.status).read_volatile() };
        self.queue.release(index);
        Some((
            index,
            if status == STATUS_OK {
                Ok(buffer)
            } else {
                Err(BlockError)
            },
        ))
    }

    /// Takes the interrupt that `wake` may hold. The disk may be larger after it (virtio 1.2, 5.2.3).
    pub(crate) fn take_interrupt(&mut self, wake: u32) {
        if self.transport.take_interrupt(wake) {
            self.capacity = u64::from_le_bytes(self.transport.config(0));
        }
    }

    /// Before sleeping: asks for an interrupt. False: look again first.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.queue.want_interrupt()
    }

    /// Runs one request to its end, while nothing else is in flight.
    ///
    /// # Errors
    /// As [`Self::submit`], and errors of the device.
    pub(crate) fn run(&mut self, request: Request) -> Result<Vec<u8>, BlockError> {
        let submitted = self.submit(request)?;
        loop {
            let wake = interrupts::take_wake();
            self.take_interrupt(wake);
            if let Some((index, result)) = self.poll() {
                assert_eq!(index, submitted, "another request was in flight");
                return result;
            }
            if self.prepare_sleep() {
                interrupts::sleep();
            }
        }
    }
}

/// A range that may be unmapped, as a request for zeroes has it.
fn range(sector: u64, sectors: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(FLAG_UNMAP.to_le_bytes());
    bytes
}
