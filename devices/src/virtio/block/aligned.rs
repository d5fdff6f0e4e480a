//! Memory that a disk can be written from and read into past the page cache.

use bytes::Bytes;

/// Where such memory begins: at a multiple of this.
pub(super) const ALIGN: usize = 512;

/// Bytes in a place that O_DIRECT accepts.
pub(super) struct AlignedBuffer {
    /// It never moves or grows, so what was aligned stays so.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// So many zeroes.
    pub(super) fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + ALIGN - 1];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start, len }
    }
}

/// So many bytes, which `fill` puts where they stay: they go to the disk and to the twin without being copied.
pub(super) fn filled<E>(
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Bytes, E> {
    let mut buffer = AlignedBuffer::zeroed(len);
    fill(buffer.as_mut())?;
    Ok(Bytes::from_owner(buffer))
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({})", self.len)
    }
}
