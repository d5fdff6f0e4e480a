//! Block requests (virtio 1.2, 5.2.6): read once from guest memory into a checked form.

use bytes::Bytes;

use super::super::chain::Chain;
use super::aligned::filled;
use super::growth::Extent;
use super::image::SECTOR_BYTES;
use super::operation::Zeroing;
use super::serial::ID_BYTES;
use crate::GuestMemory;

/// Longest read or write accepted, in bytes.
pub(super) const MAX_REQUEST_BYTES: u32 = 4 << 20;

/// Longest range accepted in a discard or write zeroes request, in sectors: 1 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Ranges accepted in such a request.
pub(super) const MAX_RANGES: u32 = 1;
/// Bytes of a range: sector, number of sectors, flags (5.2.6).
const RANGE_BYTES: u32 = 16;
/// The range's space may be given back (5.2.6).
const FLAG_UNMAP: u32 = 1;

/// Bytes before the data: type, reserved, sector.
const HEADER_BYTES: u32 = 16;

/// Request types (5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// How a request ended (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a valid request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: Bytes },
    Zero { offset: u64, len: u64, how: Zeroing },
    Flush,
    GetId,
}

impl Request {
    /// Reads the request of `chain`, or gives the status with which it is refused.
    /// The caller made sure that there is room for a status byte.
    pub(super) fn parse(mem: &GuestMemory, chain: &Chain, disk: &Extent) -> Result<Self, Status> {
        let mut header = [0u8; HEADER_BYTES as usize];
        if !chain.readable.read(mem, 0, &mut header) {
            return Err(Status::IoError);
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let readable = chain.readable.len() - HEADER_BYTES;
        let writable = chain.writable.len() - 1;
        let place = |len: u32| {
            let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
            let whole = len > 0 && u64::from(len) % SECTOR_BYTES == 0;
            let fits = len <= MAX_REQUEST_BYTES && disk.contains(offset, len.into());
            if whole && fits {
                Ok(offset)
            } else {
                Err(Status::IoError)
            }
        };
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            kind::IN => Ok(Self::Read {
                offset: place(writable)?,
                len: writable,
            }),
            kind::OUT if disk.read_only => Err(Status::IoError),
            kind::OUT => {
                let offset = place(readable)?;
                let data = filled(readable as usize, |data| {
                    let read = chain.readable.read(mem, HEADER_BYTES, data);
                    read.then_some(()).ok_or(Status::IoError)
                })?;
                Ok(Self::Write { offset, data })
            }
            kind::DISCARD | kind::WRITE_ZEROES if disk.read_only => Err(Status::IoError),
            kind @ (kind::DISCARD | kind::WRITE_ZEROES) => {
                let mut range = [0u8; RANGE_BYTES as usize];
                let whole = readable == MAX_RANGES * RANGE_BYTES
                    && chain.readable.read(mem, HEADER_BYTES, &mut range);
                if whole {
                    parse_range(kind, range, disk)
                } else {
                    Err(Status::IoError)
                }
            }
            kind::FLUSH => Ok(Self::Flush),
            kind::GET_ID if writable as usize >= ID_BYTES => Ok(Self::GetId),
            kind::GET_ID => Err(Status::IoError),
            _ => Err(Status::Unsupported),
        }
    }
}

/// Reads `struct virtio_blk_discard_write_zeroes` (5.2.6).
fn parse_range(
    kind: u32,
    range: [u8; RANGE_BYTES as usize],
    disk: &Extent,
) -> Result<Request, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    // Flags come first: unknown ones, and unmap in a discard, are "unsupported" (5.2.6.2).
    let how = match (kind, u32::from_le_bytes(flags)) {
        (kind::DISCARD, 0) => Zeroing::Discard,
        (kind::WRITE_ZEROES, 0) => Zeroing::Keep,
        (kind::WRITE_ZEROES, FLAG_UNMAP) => Zeroing::Unmap,
        _ => return Err(Status::Unsupported),
    };
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
    let len = u64::from(sectors) * SECTOR_BYTES;
    if (1..=MAX_RANGE_SECTORS).contains(&sectors) && disk.contains(offset, len) {
        Ok(Request::Zero { offset, len, how })
    } else {
        Err(Status::IoError)
    }
}
