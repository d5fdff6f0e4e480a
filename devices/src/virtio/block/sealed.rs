//! Pages of 4 KiB with their own checksums, which is what a device writes at once, if any.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Bytes of its contents; the checksum follows.
pub(super) const CONTENTS: usize = PAGE - 8;

/// Why a page is no header that this build can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Torn, changed, or something else altogether.
    Damaged,
    /// Of this form, which another build has written.
    Version(u32),
}

/// A page of these bytes and zeroes behind them, with its checksum at the end. A page in the place of another is found out by its
/// seed.
pub(super) fn seal(mut bytes: Vec<u8>, seed: u64) -> Vec<u8> {
    bytes.resize(CONTENTS, 0);
    let sum = xxh3_64_with_seed(&bytes, seed);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The contents of a page, if they are as they were sealed.
pub(super) fn unseal(page: &[u8; PAGE], seed: u64) -> Option<&[u8]> {
    let (bytes, sum) = page.split_at(CONTENTS);
    (xxh3_64_with_seed(bytes, seed).to_le_bytes() == sum).then_some(bytes)
}

/// A sealed page that says this, in JSON. It should have a member `version`.
pub(super) fn header(magic: [u8; 8], value: &impl Serialize) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(value)?;
    let mut bytes = magic.to_vec();
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text);
    if bytes.len() > CONTENTS {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(seal(bytes, 0))
}

/// What such a page says, if it has one of these versions.
pub(super) fn read_header<T: DeserializeOwned>(
    magic: [u8; 8],
    versions: &[u32],
    page: &[u8; PAGE],
) -> Result<T, BadHeader> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let bytes = unseal(page, 0).ok_or(BadHeader::Damaged)?;
    let rest = bytes.strip_prefix(&magic).ok_or(BadHeader::Damaged)?;
    let (len, rest) = rest.split_first_chunk().ok_or(BadHeader::Damaged)?;
    let text = rest.get(..u32::from_le_bytes(*len) as usize);
    let text = text.ok_or(BadHeader::Damaged)?;
    let found: Version = serde_json::from_slice(text).map_err(|_| BadHeader::Damaged)?;
    if !versions.contains(&found.version) {
        return Err(BadHeader::Version(found.version));
    }
    serde_json::from_slice(text).map_err(|_| BadHeader::Damaged)
}
