//! Block requests (virtio 1.2, 5.2.6): read once from guest memory into a checked form.

use super::super::chain::Chain;
use super::image::{DiskImage, SECTOR_BYTES};
use super::serial::ID_BYTES;
use crate::GuestMemory;

/// Longest read or write accepted, in bytes.
pub(super) const MAX_REQUEST_BYTES: u32 = 4 << 20;

/// Bytes before the data: type, reserved, sector.
const HEADER_BYTES: u32 = 16;

/// Request types (5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
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
    Write { offset: u64, data: Vec<u8> },
    Flush,
    GetId,
}

impl Request {
    /// Reads the request of `chain`, or gives the status with which it is refused.
    /// The caller made sure that there is room for a status byte.
    pub(super) fn parse(
        mem: &GuestMemory,
        chain: &Chain,
        image: &DiskImage,
    ) -> Result<Self, Status> {
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
            let fits = len <= MAX_REQUEST_BYTES && image.contains(offset, len.into());
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
            kind::OUT if image.read_only() => Err(Status::IoError),
            kind::OUT => {
                let offset = place(readable)?;
                let mut data = vec![0; readable as usize];
                if !chain.readable.read(mem, HEADER_BYTES, &mut data) {
                    return Err(Status::IoError);
                }
                Ok(Self::Write { offset, data })
            }
            kind::FLUSH => Ok(Self::Flush),
            kind::GET_ID if writable as usize >= ID_BYTES => Ok(Self::GetId),
            kind::GET_ID => Err(Status::IoError),
            _ => Err(Status::Unsupported),
        }
    }
}
