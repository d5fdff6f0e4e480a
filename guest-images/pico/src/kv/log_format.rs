//! The append-only log's form on disk.
//!
//! The disk is two areas of equal size. An area starts with one sector of header that
//! names its generation; the valid header of the highest generation decides. Behind it
//! follow batches, each padded to whole sectors, so that a committed batch is never
//! rewritten. A batch counts only with the right generation, the next sequence number
//! and a matching checksum: a torn tail ends the log, and so do batches that an earlier
//! generation left there.

use alloc::vec::Vec;

use crc::{CRC_32_ISCSI, Crc, Table};

use super::store::{Full, Store};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Bytes of a batch's header.
pub const BATCH_HEADER: usize = 32;
/// Longest batch in bytes, header and padding included.
pub const BATCH_MAX: usize = 4 << 20;

const AREA_MAGIC: [u8; 8] = *b"picokv01";
const BATCH_MAGIC: [u8; 4] = *b"BTCH";
/// Offset of what a batch's checksum covers: everything behind the checksum itself.
const CHECKED: usize = 8;

const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

const SET: u8 = 1;
const REMOVE: u8 = 2;
const CLEAR: u8 = 3;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The header sector of an area.
pub fn encode_area(generation: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..8].copy_from_slice(&AREA_MAGIC);
    sector[8..16].copy_from_slice(&generation.to_le_bytes());
    let checksum = CRC32C.checksum(&sector[..16]);
    sector[16..20].copy_from_slice(&checksum.to_le_bytes());
    sector
}

/// The generation in an area's header sector, if it is one.
pub fn decode_area(sector: &[u8]) -> Option<u64> {
    let checksum = u32::from_le_bytes(number(sector, 16)?);
    let valid = sector.starts_with(&AREA_MAGIC) && CRC32C.checksum(&sector[..16]) == checksum;
    valid.then(|| number(sector, 8).map(u64::from_le_bytes))?
}

/// Records being collected for one batch. Room for the header is kept in front.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            bytes: [0; BATCH_HEADER].to_vec(),
        }
    }
}

impl Batch {
    /// Whether it holds no records.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == BATCH_HEADER
    }

    /// Bytes it will take on disk.
    pub fn disk_len(&self) -> usize {
        self.bytes.len().next_multiple_of(SECTOR)
    }

    /// Records that a key was set.
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        self.record(SET, key, value);
    }

    /// Records that a key was removed.
    pub fn remove(&mut self, key: &[u8]) {
        self.record(REMOVE, key, &[]);
    }

    /// Records that all keys were removed.
    pub fn clear(&mut self) {
        self.record(CLEAR, &[], &[]);
    }

    fn record(&mut self, kind: u8, key: &[u8], value: &[u8]) {
        self.bytes.push(kind);
        self.bytes
            .extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.bytes
            .extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    /// The bytes for the disk.
    pub fn seal(mut self, generation: u64, sequence: u64) -> Vec<u8> {
        let length = (self.bytes.len() - BATCH_HEADER) as u32;
        self.bytes[..4].copy_from_slice(&BATCH_MAGIC);
        self.bytes[8..16].copy_from_slice(&generation.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        self.bytes[24..28].copy_from_slice(&length.to_le_bytes());
        let checksum = CRC32C.checksum(&self.bytes[CHECKED..]);
        self.bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.resize(self.disk_len(), 0);
        self.bytes
    }
}

/// Bytes on disk of the batch that may start here; `None`: no batch does.
pub fn batch_len(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(number(bytes, 24)?) as usize;
    let whole = BATCH_HEADER.checked_add(length)?.next_multiple_of(SECTOR);
    (bytes.starts_with(&BATCH_MAGIC) && whole <= BATCH_MAX).then_some(whole)
}

/// The records of a batch, if it is whole and the expected one.
pub fn decode_batch(bytes: &[u8], generation: u64, sequence: u64) -> Option<&[u8]> {
    batch_len(bytes)?;
    let length = u32::from_le_bytes(number(bytes, 24)?) as usize;
    let end = BATCH_HEADER + length;
    let checksum = u32::from_le_bytes(number(bytes, 4)?);
    let expected = number(bytes, 8) == Some(generation.to_le_bytes())
        && number(bytes, 16) == Some(sequence.to_le_bytes());
    let whole = expected && CRC32C.checksum(bytes.get(CHECKED..end)?) == checksum;
    whole.then(|| &bytes[BATCH_HEADER..end])
}

/// Why a batch can't be replayed although its checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// A record that this version doesn't write.
    Malformed,
    /// The store is too small: the machine had more memory when the log was written.
    Full,
}

impl From<Full> for ReplayError {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

/// Applies a batch's records to the store.
///
/// # Errors
/// As [`ReplayError`] says; records before the bad one were applied.
pub fn replay(mut records: &[u8], store: &mut Store) -> Result<(), ReplayError> {
    while let Some(&kind) = records.first() {
        let length = |at| number(records, at).map(|length| u32::from_le_bytes(length) as usize);
        let (key, value) = length(1).zip(length(5)).ok_or(ReplayError::Malformed)?;
        let body = &records[9..];
        let end = key.checked_add(value).filter(|&end| end <= body.len());
        let end = end.ok_or(ReplayError::Malformed)?;
        match kind {
            SET => store.set(&body[..key], &body[key..end])?,
            REMOVE => {
                store.remove(&body[..key]);
            }
            CLEAR => store.clear(),
            _ => return Err(ReplayError::Malformed),
        }
        records = &body[end..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Vec<u8> {
        let mut batch = Batch::default();
        batch.set(b"key", &[7; 600]);
        batch.remove(b"gone");
        batch.seal(3, 9)
    }

    #[test]
    fn a_batch_comes_back() {
        let mut store = Store::new(10_000);
        store.set(b"gone", b"x").unwrap();
        let bytes = sealed();
        assert_eq!(bytes.len(), 2 * SECTOR);
        assert_eq!(batch_len(&bytes), Some(bytes.len()));
        replay(decode_batch(&bytes, 3, 9).unwrap(), &mut store).unwrap();
        assert_eq!(store.get(b"key"), Some(&[7; 600][..]));
        assert_eq!(store.get(b"gone"), None);
    }

    #[test]
    fn another_generation_or_sequence_is_no_batch() {
        let bytes = sealed();
        assert!(decode_batch(&bytes, 4, 9).is_none());
        assert!(decode_batch(&bytes, 3, 8).is_none());
    }

    #[test]
    fn a_torn_batch_is_discarded_wherever_it_tears() {
        let whole = sealed();
        for sector in 0..2 {
            let mut torn = whole.clone();
            torn[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
            assert!(decode_batch(&torn, 3, 9).is_none(), "sector {sector}");
        }
        for byte in 0..BATCH_HEADER + 600 {
            let mut torn = whole.clone();
            torn[byte] ^= 0x10;
            let found = batch_len(&torn).and_then(|_| decode_batch(&torn, 3, 9));
            assert!(found.is_none(), "byte {byte}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        let mut store = Store::new(10_000);
        let records = [SET, 255, 255, 255, 255, 255, 255, 255, 255, 0];
        assert_eq!(replay(&records, &mut store), Err(ReplayError::Malformed));
        assert_eq!(replay(&[9; 9], &mut store), Err(ReplayError::Malformed));
        assert_eq!(replay(&[SET, 1], &mut store), Err(ReplayError::Malformed));
    }

    #[test]
    fn area_headers_are_checked() {
        let mut sector = encode_area(77);
        assert_eq!(decode_area(&sector), Some(77));
        sector[9] ^= 1;
        assert_eq!(decode_area(&sector), None);
        assert_eq!(decode_area(&[0; SECTOR]), None);
        assert_eq!(decode_area(&[]), None);
    }
}
