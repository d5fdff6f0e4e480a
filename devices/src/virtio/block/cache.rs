//! Past the host's page cache, or through it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::aligned::ALIGN;
use super::image::SECTOR_BYTES;

/// How a guest's requests reach its disk. A guest's flush makes its writes durable in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Past the host's page cache if the disk is a block device that can do so, through it otherwise.
    #[default]
    Auto,
    /// Through it: writes are answered when it has them.
    Host,
    /// Past it (O_DIRECT): writes are answered when the disk has them, and no memory of the host is used for a second cache.
    None,
}

/// Opens an open image once more, for reads and writes of whole sectors past the page cache.
///
/// # Errors
/// The file system or device can't do so at all, or not with sectors of 512 bytes.
pub(super) fn open_direct(image: &File, read_only: bool) -> io::Result<File> {
    let found = statx(image, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN);
    let (memory, offset) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
    if !known || memory == 0 || offset == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    if memory as usize > ALIGN || u64::from(offset) > SECTOR_BYTES {
        let message = format!("it has sectors of {offset} bytes, and guests use {SECTOR_BYTES}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    options.custom_flags(libc::O_DIRECT);
    // The path may name another file by now.
    options.open(format!("/proc/self/fd/{}", image.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_sectors_is_not_opened() {
        let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::empty()).unwrap();
        let error = open_direct(&File::from(memory), false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
