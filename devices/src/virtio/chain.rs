//! Descriptor chains: read once from guest memory into a checked form.

use virtio_bindings::bindings::virtio_ring::VRING_DESC_ALIGN_SIZE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::GuestMemory;

/// Size of a descriptor in bytes (virtio 1.2, 2.7.5).
const DESCRIPTOR_BYTES: u64 = VRING_DESC_ALIGN_SIZE as u64;

/// How a chain breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor index is outside its table.
    #[error("a descriptor index is outside the table")]
    Index,
    /// The chain is longer than the queue, or a loop (2.7.5.3.1).
    #[error("the chain is longer than the queue")]
    TooLong,
    /// An indirect table where none may be, or of a bad size (2.7.5.3).
    #[error("a bad indirect table")]
    Indirect,
    /// A readable descriptor after a writable one (2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// A table or buffer is not in guest memory.
    #[error("a buffer is not in guest memory")]
    Memory,
    /// All buffers together are 2^32 bytes or more (2.7.5.2).
    #[error("the buffers add up to more than 4 GiB")]
    TooLarge,
}

/// A piece of guest memory, checked to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    addr: GuestAddress,
    len: u32,
}

/// A list of pieces of guest memory, used as one buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buffer {
    segments: Vec<Segment>,
    len: u32,
}

impl Buffer {
    /// Length in bytes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True when there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, mem: &GuestMemory, segment: Segment) -> Result<(), ChainError> {
        if !mem.check_range(segment.addr, segment.len as usize, Permissions::ReadWrite) {
            return Err(ChainError::Memory);
        }
        self.len = self
            .len
            .checked_add(segment.len)
            .ok_or(ChainError::TooLarge)?;
        self.segments.push(segment);
        Ok(())
    }

    /// Visits the pieces that hold bytes `offset..offset + len`; false if there are fewer.
    fn visit(
        &self,
        offset: u32,
        len: usize,
        mut each: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> bool {
        let mut skip = offset;
        let mut done = 0;
        for segment in &self.segments {
            if done == len {
                break;
            }
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            let part = ((segment.len - skip) as usize).min(len - done);
            let addr = segment.addr.unchecked_add(u64::from(skip));
            if !each(addr, done..done + part) {
                return false;
            }
            done += part;
            skip = 0;
        }
        done == len
    }

    /// Copies bytes from `offset` on into `data`. False if the buffer is too short.
    #[must_use]
    pub fn read(&self, mem: &GuestMemory, offset: u32, data: &mut [u8]) -> bool {
        self.visit(offset, data.len(), |addr, range| {
            mem.read_slice(&mut data[range], addr).is_ok()
        })
    }

    /// Copies `data` to the buffer from `offset` on. False if the buffer is too short.
    #[must_use]
    pub fn write(&self, mem: &GuestMemory, offset: u32, data: &[u8]) -> bool {
        self.visit(offset, data.len(), |addr, range| {
            write_guest(mem, &data[range], addr)
        })
    }
}

/// Writes to guest memory. All writes of the devices' own code pass here, so that one
/// failpoint can make them miss the dirty bitmap.
fn write_guest(mem: &GuestMemory, data: &[u8], addr: GuestAddress) -> bool {
    let written = mem.write_slice(data, addr).is_ok();
    fail::fail_point!("device::mark", |_| {
        forget_dirty(mem, addr, data.len());
        written
    });
    written
}

/// Takes the marks of a range off the dirty bitmap: breaks I6 for a test.
#[cfg(feature = "failpoints")]
pub(super) fn forget_dirty(mem: &GuestMemory, addr: GuestAddress, len: usize) {
    use vm_memory::{GuestMemoryBackend, MmapRegion};
    if let Some((region, offset)) = mem.to_region_addr(addr) {
        let mapping: &MmapRegion<crate::DirtyMarks> = region;
        let start = offset.raw_value() as usize;
        mapping.bitmap().reset_range(start, len);
    }
}

/// A descriptor chain: what the guest gives the device to read, then to write
/// (virtio 1.2, 2.7.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor: the name under which it is returned.
    pub head: u16,
    /// Bytes the device reads.
    pub readable: Buffer,
    /// Bytes the device writes.
    pub writable: Buffer,
}

/// Where a chain's descriptors are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// Address of the queue's descriptor table.
    pub(crate) addr: GuestAddress,
    /// Number of its entries: also the longest chain allowed.
    pub(crate) size: u16,
    /// Whether `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub(crate) indirect: bool,
}

impl Chain {
    /// Reads the chain that starts at `head`. Work is bounded by the queue's size.
    pub(crate) fn parse(mem: &GuestMemory, table: Table, head: u16) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            readable: Buffer::default(),
            writable: Buffer::default(),
        };
        let mut addr = table.addr;
        let mut entries = table.size;
        let mut may_switch = table.indirect;
        let mut next = head;
        let mut left = table.size;
        loop {
            if next >= entries {
                return Err(ChainError::Index);
            }
            let at = addr
                .checked_add(u64::from(next) * DESCRIPTOR_BYTES)
                .ok_or(ChainError::Memory)?;
            let descriptor: Descriptor = mem.read_obj(at).map_err(|_| ChainError::Memory)?;
            if descriptor.refers_to_indirect_table() {
                // One indirect table at most, as the chain's last word (2.7.5.3.1).
                let bytes = u64::from(descriptor.len());
                let count = bytes / DESCRIPTOR_BYTES;
                if !may_switch
                    || descriptor.has_next()
                    || bytes % DESCRIPTOR_BYTES != 0
                    || count == 0
                    || count > u64::from(table.size)
                {
                    return Err(ChainError::Indirect);
                }
                may_switch = false;
                addr = descriptor.addr();
                entries = count as u16;
                next = 0;
                continue;
            }
            left = left.checked_sub(1).ok_or(ChainError::TooLong)?;
            let segment = Segment {
                addr: descriptor.addr(),
                len: descriptor.len(),
            };
            if descriptor.is_write_only() {
                chain.writable.push(mem, segment)?;
            } else if chain.writable.segments.is_empty() {
                chain.readable.push(mem, segment)?;
            } else {
                return Err(ChainError::Order);
            }
            if !descriptor.has_next() {
                return Ok(chain);
            }
            next = descriptor.next();
        }
    }
}

#[cfg(test)]
mod tests;
