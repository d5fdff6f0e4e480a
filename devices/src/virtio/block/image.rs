//! A raw disk image: opened, checked and locked.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom as Place, fallocate, flock, seek};

use super::aligned::filled;
use super::cache::{CacheMode, open_direct};
use super::copy_mark::CopyMark;
use super::operation::is_impossible;

/// Size of a sector in bytes (virtio 1.2, 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Bytes written at once where an image has to be filled with zeroes.
const CLEAR_BYTES: usize = 1 << 20;

/// How long a lock held by another process is waited for.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Time between two attempts.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Why a disk image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such file.
    #[error("disk image {0} does not exist: create it, for instance with `truncate -s 1G {0}`")]
    Missing(PathBuf),
    /// The file may not be opened for reading and writing.
    #[error(
        "disk image {0} can't be written by this user: fix its permissions or make the disk \
         read-only"
    )]
    NoRights(PathBuf),
    /// It is a directory, a pipe or the like.
    #[error("disk image {0} is neither a file nor a block device: give a raw image")]
    NotAFile(PathBuf),
    /// Its size is no whole number of sectors, or zero.
    #[error(
        "disk image {path} is {bytes} bytes long, not a positive multiple of 512: resize it with \
         `truncate -s %512 {path}`"
    )]
    BadSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another process has it open.
    #[error("disk image {0} is used by another process: stop that one or use another image")]
    Locked(PathBuf),
    /// The page cache can't be passed.
    #[error(
        "disk image {path} can't be used past the page cache: {error}; put it on another file system or device, or give the disk \
         cache = \"host\""
    )]
    NotDirect {
        /// The image.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Anything else.
    #[error("disk image {path} can't be opened: {error}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// An open image. The lock is given up when it is dropped.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    /// The same past the page cache, if the guest's requests take that way.
    direct: Option<File>,
    path: PathBuf,
    sectors: u64,
    read_only: bool,
    is_device: bool,
    copy_mark: Arc<CopyMark>,
}

impl DiskImage {
    /// Opens and locks an image: for this process alone, or shared with other readers if
    /// `read_only`.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::Missing(path.into()),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ImageError::NoRights(path.into())
            }
            io::ErrorKind::IsADirectory => ImageError::NotAFile(path.into()),
            _ => ImageError::Io {
                path: path.into(),
                error,
            },
        };
        // Asked before opening: opening a pipe would wait for its other end.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::NotAFile(path.into()));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(failed)?;
        let operation = match read_only {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match lock(&file, operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ImageError::Locked(path.into())),
            Err(error) => return Err(failed(error.into())),
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if bytes == 0 || bytes % SECTOR_BYTES != 0 {
            return Err(ImageError::BadSize {
                path: path.into(),
                bytes,
            });
        }
        let copy_mark = CopyMark::of(path, &file, kind.is_block_device()).map_err(failed)?;
        Ok(Self {
            file,
            direct: None,
            path: path.into(),
            sectors: bytes / SECTOR_BYTES,
            read_only,
            is_device: kind.is_block_device(),
            copy_mark: Arc::new(copy_mark),
        })
    }

    /// Decides which way the guest's requests take. It is the page cache before.
    ///
    /// # Errors
    /// [`ImageError::NotDirect`], if another way is asked for expressly.
    pub fn set_cache(&mut self, mode: CacheMode) -> Result<(), ImageError> {
        self.direct = match mode {
            CacheMode::Host => None,
            CacheMode::Auto if !self.is_device => None,
            CacheMode::Auto => open_direct(&self.file, self.read_only).ok(),
            CacheMode::None => {
                let opened = open_direct(&self.file, self.read_only);
                Some(opened.map_err(|error| ImageError::NotDirect {
                    path: self.path.clone(),
                    error,
                })?)
            }
        };
        Ok(())
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Size in bytes that it has on its host by now. What is behind [`Self::bytes`] is not used yet.
    pub(super) fn bytes_now(&self) -> io::Result<u64> {
        Ok(seek(&self.file, Place::End(0))?)
    }

    /// More of it is used from now on: so many sectors.
    pub(super) fn grow(&mut self, sectors: u64) {
        self.sectors = self.sectors.max(sectors);
    }

    /// Size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES
    }

    /// Bytes that it takes on its disk, as far as that is known.
    pub(super) fn allocated(&self) -> u64 {
        let blocks = self.file.metadata().map(|metadata| metadata.blocks());
        match self.is_device {
            true => self.bytes(),
            false => blocks.map_or(self.bytes(), |blocks| blocks * SECTOR_BYTES),
        }
    }

    /// Its path, as it was given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.is_device
    }

    /// The mark of a copy that is being made here.
    pub(super) fn copy_mark(&self) -> &Arc<CopyMark> {
        &self.copy_mark
    }

    /// Whether it may only be read.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Adds the image's path to what the system said.
    pub(super) fn name_in(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The image for what the guest asks for: whole sectors, from and into [aligned](super::aligned) memory. Nothing else may write through
    /// [`Self::file`] meanwhile, for the page cache knows nothing smaller than pages.
    pub(super) fn guests_file(&self) -> &File {
        self.direct.as_ref().unwrap_or(&self.file)
    }

    /// True when `len` bytes at `offset` are inside the image.
    pub(super) fn contains(&self, offset: u64, len: u64) -> bool {
        let bytes = self.sectors * SECTOR_BYTES;
        offset.checked_add(len).is_some_and(|end| end <= bytes)
    }

    /// The next piece of contents at or after `from`, at most `limit` bytes: where it starts,
    /// and its bytes. Holes are passed over. None at `end`.
    pub(super) fn next_contents(
        &self,
        from: u64,
        end: u64,
        limit: usize,
    ) -> io::Result<Option<(u64, Bytes)>> {
        next_contents(&self.file, from, end, limit)
    }

    /// Makes the whole image read as zeroes, and marks it: a copy begins.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.copy_mark.begin()?;
        self.zero_at(0, self.sectors * SECTOR_BYTES, true)
    }

    /// Makes a range read as zeroes, now. Its space is given back if `unmap` and possible.
    pub(super) fn zero_at(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check(offset, len)?;
        zero(&self.file, offset, len, unmap)
    }

    /// Writes to the image, now.
    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.contains(offset, len) {
            return Ok(());
        }
        let message = format!(
            "a write of {len} bytes at {offset} is outside this disk image: give both twins images \
             of one size"
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

/// The next contents of an open file or device in `from..end`, at most `limit` bytes of it, with holes passed over.
pub(super) fn next_contents(
    file: &File,
    from: u64,
    end: u64,
    limit: usize,
) -> io::Result<Option<(u64, Bytes)>> {
    // Not every file system or device knows its holes: then all of it is contents.
    let start = match seek(file, Place::Data(from)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(_) => from,
    };
    if start >= end {
        return Ok(None);
    }
    let stop = seek(file, Place::Hole(start)).unwrap_or(end);
    let len = (stop.min(end).max(start + 1) - start).min(limit as u64);
    let bytes = filled(len as usize, |bytes| file.read_exact_at(bytes, start))?;
    Ok(Some((start, bytes)))
}

/// Makes a range of an open file or device read as zeroes, which must be inside. Its space is given back if `unmap` and possible.
pub(super) fn zero(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
    for way in &ways[usize::from(!unmap)..] {
        match fallocate(file, *way | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => return Ok(()),
            Err(error) if is_impossible(&error.into()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let zeroes = vec![0; CLEAR_BYTES.min(usize::try_from(len).unwrap_or(CLEAR_BYTES))];
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let len = (end - at).min(CLEAR_BYTES as u64);
        file.write_all_at(&zeroes[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// Locks an image, waiting a little: after a process is killed, the kernel finishes its disk
/// operations, and only then its locks go.
fn lock(file: &File, operation: FlockOperation) -> rustix::io::Result<()> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(file, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_image_and_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let error = DiskImage::open(&path, false).unwrap_err().to_string();
        assert!(
            error.contains("disk.img does not exist: create it"),
            "{error}"
        );

        let error = DiskImage::open(dir.path(), false).unwrap_err();
        assert!(matches!(error, ImageError::NotAFile(_)), "{error}");

        for bytes in [0, 513] {
            File::create(&path).unwrap().set_len(bytes).unwrap();
            let error = DiskImage::open(&path, false).unwrap_err().to_string();
            assert!(error.contains("multiple of 512: resize"), "{error}");
        }
    }

    #[test]
    fn contents_are_found_between_holes_and_cleared() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(4 * MIB).unwrap();
        let image = DiskImage::open(&path, false).unwrap();
        assert!(image.next_contents(0, 4 * MIB, 4096).unwrap().is_none());
        image.write_at(2 * MIB + 512, &[7; 512]).unwrap();
        let mut found = vec![0; 4 * MIB as usize];
        let mut at = 0;
        let mut copied = 0;
        while let Some((start, bytes)) = image.next_contents(at, 4 * MIB, 4096).unwrap() {
            assert!(start >= at && (1..=4096).contains(&bytes.len()));
            found[start as usize..][..bytes.len()].copy_from_slice(&bytes);
            copied += bytes.len();
            at = start + bytes.len() as u64;
        }
        assert_eq!(found, std::fs::read(&path).unwrap());
        assert!(
            copied < MIB as usize,
            "{copied} bytes copied of a sparse image"
        );
        image.clear().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 4 * MIB as usize]);
    }

    #[test]
    fn an_image_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(1024).unwrap();
        let image = DiskImage::open(&path, false).unwrap();
        assert_eq!(image.sectors(), 2);
        for read_only in [false, true] {
            let error = DiskImage::open(&path, read_only).unwrap_err().to_string();
            assert!(error.contains("used by another process"), "{error}");
        }
        // A lock that goes meanwhile is waited for.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| DiskImage::open(&path, true));
            drop(image);
            waiting.join().unwrap().unwrap();
        });
        let _first = DiskImage::open(&path, true).unwrap();
        let _second = DiskImage::open(&path, true).unwrap();
    }

    #[test]
    fn writes_outside_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(1024).unwrap();
        let image = DiskImage::open(&path, false).unwrap();
        image.write_at(512, &[1; 512]).unwrap();
        assert!(image.write_at(513, &[1; 512]).is_err());
        assert!(image.write_at(u64::MAX, &[1]).is_err());
        for (offset, len) in [(512, 513), (1024, 1), (1, u64::MAX), (0, 1025)] {
            assert!(image.zero_at(offset, len, true).is_err(), "{offset} {len}");
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024);
    }
}
