//! One epoch's disk writes as an entry of the journal.
//!
//! A head of 64 bytes, little-endian, then one descriptor of 32 bytes for each write, then the bytes of all writes:
//!
//! | offset | bytes | head | | offset | bytes | descriptor |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | 0 | 8 | magic `EVTWEPOC` | | 0 | 4 | disk |
//! | 8 | 8 | life | | 4 | 4 | kind: 0 bytes, 1 zeroes, 2 zeroes whose space was given back |
//! | 16 | 8 | sequence | | 8 | 8 | offset on the disk |
//! | 24 | 8 | bytes behind the head | | 16 | 8 | length |
//! | 32 | 8 | number of writes | | 24 | 8 | zero |
//! | 40 | 8 | batch | | | | |
//! | 48 | 8 | xxh3-64 over what is behind the head | | | | |
//! | 56 | 8 | xxh3-64 over bytes 0 to 55 | | | | |
//!
//! The batch is the number of the first of all entries that were made durable together with this one: those before it were durable
//! when this one was written. An entry without writes closes its file: what the other file has is not needed any more.

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::super::{DiskData, DiskWrite};

/// Bytes of a head.
pub(super) const HEAD: usize = 64;
const DESCRIPTOR: usize = 32;
const MAGIC: [u8; 8] = *b"EVTWEPOC";

/// What an entry begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the journal's contents: entries of another are leftovers.
    pub(super) life: u64,
    /// Number of the entry in that life.
    pub(super) sequence: u64,
    /// All entries before this number were durable when this one was written. Older builds say 0.
    pub(super) batch: u64,
    /// Bytes behind the head.
    pub(super) len: u64,
    writes: u64,
    sum: u64,
}

/// Bytes of an entry.
pub(super) fn size(writes: &[DiskWrite]) -> u64 {
    let contents: usize = contents(writes).map(<[u8]>::len).sum();
    (HEAD + writes.len() * DESCRIPTOR + contents) as u64
}

/// Head and descriptors of an entry; the bytes of its writes follow, in order.
pub(super) fn encode(life: u64, sequence: u64, batch: u64, writes: &[DiskWrite]) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    for write in writes {
        let (kind, len) = match &write.data {
            DiskData::Bytes(data) => (0u32, data.len() as u64),
            DiskData::Zeroes { len, unmap } => (1 + u32::from(*unmap), *len),
        };
        bytes.extend(write.disk.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(write.offset.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend([0; 8]);
    }
    let mut hash = Xxh3::new();
    hash.update(&bytes[HEAD..]);
    let mut len = bytes.len() - HEAD;
    for data in contents(writes) {
        hash.update(data);
        len += data.len();
    }
    bytes[..8].copy_from_slice(&MAGIC);
    let words = [
        life,
        sequence,
        len as u64,
        writes.len() as u64,
        batch,
        hash.digest(),
    ];
    for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let sum = xxh3_64(&bytes[..HEAD - 8]);
    bytes[HEAD - 8..HEAD].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The bytes of all writes that have any.
pub(super) fn contents(writes: &[DiskWrite]) -> impl Iterator<Item = &[u8]> {
    writes.iter().filter_map(|write| match &write.data {
        DiskData::Bytes(data) => Some(&data[..]),
        DiskData::Zeroes { .. } => None,
    })
}

impl Head {
    /// None if these bytes are no head.
    pub(super) fn decode(bytes: &[u8; HEAD]) -> Option<Self> {
        let (rest, sum) = bytes.split_at(HEAD - 8);
        if !rest.starts_with(&MAGIC) || xxh3_64(rest).to_le_bytes() != sum {
            return None;
        }
        let mut words = rest[8..].chunks_exact(8).map(u64_of);
        let mut next = || words.next().unwrap_or_default();
        let (life, sequence, len, writes, batch, sum) =
            (next(), next(), next(), next(), next(), next());
        Some(Self {
            life,
            sequence,
            batch,
            len,
            writes,
            sum,
        })
    }

    /// Whether it is the last of its file.
    pub(super) fn closes(&self) -> bool {
        self.writes == 0
    }

    /// The entry's writes. None if these bytes are not those that were written behind this head.
    pub(super) fn writes(&self, bytes: &[u8]) -> Option<Vec<DiskWrite>> {
        if bytes.len() as u64 != self.len || xxh3_64(bytes) != self.sum {
            return None;
        }
        let descriptors = usize::try_from(self.writes).ok()?;
        let descriptors = descriptors.checked_mul(DESCRIPTOR)?;
        let (descriptors, mut rest) = bytes.split_at_checked(descriptors)?;
        let mut writes = Vec::new();
        for descriptor in descriptors.chunks_exact(DESCRIPTOR) {
            let (numbers, places) = descriptor.split_at(8);
            let (disk, kind) = numbers.split_at(4);
            let (offset, len) = (u64_of(&places[..8]), u64_of(&places[8..16]));
            let data = match u32_of(kind) {
                0 => {
                    let (data, behind) = rest.split_at_checked(usize::try_from(len).ok()?)?;
                    rest = behind;
                    DiskData::Bytes(Bytes::copy_from_slice(data))
                }
                kind @ (1 | 2) => DiskData::Zeroes {
                    len,
                    unmap: kind == 2,
                },
                _ => return None,
            };
            writes.push(DiskWrite {
                disk: u32_of(disk),
                offset,
                data,
            });
        }
        rest.is_empty().then_some(writes)
    }
}

/// Bytes that are missing are zeroes: the callers give whole numbers.
fn u64_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.first_chunk().copied().map_or(0, u32::from_le_bytes)
}
