//! A disk that becomes larger under its guest (virtio 1.2, 5.2.3).
//!
//! A guest's disk is as much of its image as the guest was told. At first that is all of it. To grow, a disk needs [room](Room): the
//! image must be larger than the disk, and what lies behind the disk's end must read as zeroes, so that both twins hold the same there.
//! Then the image is taken in ([`Block::use_room`]), with all that stands beside it, and only then is the guest told.
//! A twin's disk follows the state of the epochs that it holds.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::image::{SECTOR_BYTES, next_contents};
use super::mirror::MAX_BYTES;
use super::{Block, DiskImage};

/// Bytes that are looked at in one go.
const LOOK_BYTES: usize = 1 << 20;

/// What of an image is the guest's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    /// It has grown since the twin's disk was made a copy: states say how large it is.
    pub(super) grown: bool,
}

impl Extent {
    /// All of it.
    pub(super) fn of(image: &DiskImage) -> Self {
        Self {
            sectors: image.sectors(),
            read_only: image.read_only(),
            grown: false,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES
    }

    /// True when `len` bytes at `offset` are inside the disk.
    pub(super) fn contains(&self, offset: u64, len: u64) -> bool {
        let end = offset.checked_add(len);
        end.is_some_and(|end| end <= self.bytes())
    }

    /// It is as large as a state says.
    pub(super) fn follow(&mut self, sectors: u64) {
        // Breaks I3 on purpose: the guest was told another size.
        fail::fail_point!("grow::unfollowed", |_| ());
        self.sectors = sectors;
        self.grown = true;
    }
}

/// Why a disk can't grow.
#[derive(Debug, thiserror::Error)]
pub enum GrowthError {
    /// Disks don't shrink: what a guest has there would be lost.
    #[error("{path} is {now} bytes large as the guest's disk: it can't shrink to {wanted}")]
    Shrinks {
        /// The image.
        path: PathBuf,
        /// The disk's size in bytes.
        now: u64,
        /// What was wanted, in bytes.
        wanted: u64,
    },
    /// There is nothing to do.
    #[error(
        "{path} is {now} bytes large, and so is the guest's disk: make the image larger on both hosts first, or name a size with --size"
    )]
    AsLarge {
        /// The image.
        path: PathBuf,
        /// The disk's size in bytes.
        now: u64,
    },
    /// Disks have whole sectors, and a bound.
    #[error(
        "a disk can't be {0} bytes large: give a multiple of {SECTOR_BYTES}, at most {MAX_BYTES}"
    )]
    BadSize(u64),
    /// The image is smaller, and can't be made larger here.
    #[error("{path} is {now} bytes large, the disk is to have {wanted}: {fix}")]
    NoRoom {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        now: u64,
        /// What was wanted, in bytes.
        wanted: u64,
        /// What to do.
        fix: &'static str,
    },
    /// Somebody has put something behind the disk's end, which would become part of it on one side only.
    #[error(
        "{path} is not empty behind the disk's end at byte {end}: its twin has other bytes there; cut it off (`truncate -s {end} {path}`, then as large as it is to be)"
    )]
    NotEmpty {
        /// The image.
        path: PathBuf,
        /// The disk's size in bytes.
        end: u64,
    },
    /// The image can't be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The image.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Block {
    /// The size in bytes to which this disk would grow: what is wanted, or what its image has by now.
    ///
    /// # Errors
    /// [`GrowthError`]: it would not grow.
    pub fn growth(&self, wanted: Option<u64>) -> Result<u64, GrowthError> {
        let image = self.ring.image();
        let path = || image.path().to_path_buf();
        let now = self.extent.bytes();
        let wanted = match wanted {
            Some(wanted) => wanted,
            None => {
                let bytes = image.bytes_now();
                bytes.map_err(|error| io_error(image.path(), error))?
            }
        };
        if !wanted.is_multiple_of(SECTOR_BYTES) || wanted > MAX_BYTES {
            return Err(GrowthError::BadSize(wanted));
        }
        match wanted.cmp(&now) {
            std::cmp::Ordering::Less => Err(GrowthError::Shrinks {
                path: path(),
                now,
                wanted,
            }),
            std::cmp::Ordering::Equal => Err(GrowthError::AsLarge { path: path(), now }),
            std::cmp::Ordering::Greater => Ok(wanted),
        }
    }

    /// What is needed to make room for a disk of so many bytes, which takes its time, without the lock of this device.
    ///
    /// # Errors
    /// This process can have no further descriptor.
    pub fn room(&self, bytes: u64) -> io::Result<Room> {
        let image = self.ring.image();
        Ok(Room {
            file: image.file().try_clone()?,
            path: image.path().into(),
            is_device: image.is_device(),
            end: self.extent.bytes(),
            bytes,
        })
    }

    /// Bytes that the disk could have, with the image as it is.
    pub fn room_bytes(&self) -> u64 {
        let image = self.ring.image();
        image.bytes_now().unwrap_or(image.bytes())
    }

    /// What is written beside the image says from now on that its change is this process's own.
    pub fn expect_growth(&mut self) {
        self.mirrored.expect_growth();
    }

    /// Uses the image up to this size, for which there is room. The guest is told by [`Backend::grow`](super::Backend::grow).
    ///
    /// # Errors
    /// The system does not finish what is under way.
    pub fn use_room(&mut self, bytes: u64) -> io::Result<()> {
        self.ring.wait_until_idle()?;
        self.ring.image_mut().grow(bytes / SECTOR_BYTES);
        self.mirrored.grow(self.ring.image());
        Ok(())
    }

    /// Standby: the disk is as large as the twin's from now on, for which its image has room.
    ///
    /// # Errors
    /// As [`Self::use_room`].
    pub fn fit(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.ring.image().bytes() {
            self.use_room(bytes)?;
        }
        self.extent.sectors = bytes / SECTOR_BYTES;
        self.extent.grown = false;
        Ok(())
    }

    /// Standby: the disk is as large as a committed epoch says. What its image has no room for is refused when it is to be restored.
    pub fn follow_growth(&mut self, sectors: u64) {
        if self.has_room_for(sectors) {
            self.extent.follow(sectors);
        }
    }

    /// The sectors of a disk that has grown since its twin was filled.
    pub fn grown_to(&self) -> Option<u64> {
        self.extent.grown.then_some(self.extent.sectors)
    }

    /// Whether the image has so many sectors, and at least one of them.
    pub(super) fn has_room_for(&self, sectors: u64) -> bool {
        (1..=self.ring.image().sectors()).contains(&sectors)
    }

    pub(super) fn grow_extent(&mut self, sectors: u64) -> bool {
        let grows = sectors > self.extent.sectors && self.has_room_for(sectors);
        if grows {
            self.extent.sectors = sectors;
            self.extent.grown = true;
        }
        grows
    }
}

/// Makes room behind a disk's end. Other parts of the image are left alone.
#[derive(Debug)]
pub struct Room {
    file: File,
    path: PathBuf,
    is_device: bool,
    /// Where the disk ends now.
    end: u64,
    /// Where it will.
    bytes: u64,
}

impl Room {
    /// Makes sure that what is behind the disk's end reads as zeroes. A device is overwritten there, a file is not.
    ///
    /// # Errors
    /// [`GrowthError`].
    pub fn clear(&self) -> Result<(), GrowthError> {
        let failed = |error| io_error(&self.path, error);
        let there = self.bytes_now()?.min(self.bytes);
        if there <= self.end {
            return Ok(());
        }
        if self.is_device {
            let cleared = super::image::zero(&self.file, self.end, there - self.end, true);
            return cleared.and_then(|()| self.file.sync_data()).map_err(failed);
        }
        let mut at = self.end;
        let next = |at| next_contents(&self.file, at, there, LOOK_BYTES).map_err(failed);
        while let Some((start, bytes)) = next(at)? {
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(GrowthError::NotEmpty {
                    path: self.path.clone(),
                    end: self.end,
                });
            }
            at = start + bytes.len() as u64;
        }
        Ok(())
    }

    /// Makes sure that the image is large enough, durably: a file is made larger, if that is wanted.
    ///
    /// # Errors
    /// [`GrowthError`].
    pub fn extend(&self, files: bool) -> Result<(), GrowthError> {
        let now = self.bytes_now()?;
        if now >= self.bytes {
            return Ok(());
        }
        if self.is_device || !files {
            return Err(GrowthError::NoRoom {
                path: self.path.clone(),
                now,
                wanted: self.bytes,
                fix: match self.is_device {
                    true => "enlarge this block device first",
                    false => "enlarge it first, or name the size with --size",
                },
            });
        }
        let extended = self.file.set_len(self.bytes);
        extended
            .and_then(|()| self.file.sync_all())
            .map_err(|error| io_error(&self.path, error))
    }

    fn bytes_now(&self) -> Result<u64, GrowthError> {
        let end = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0));
        end.map_err(|error| io_error(&self.path, error.into()))
    }
}

fn io_error(path: &Path, error: io::Error) -> GrowthError {
    let path = path.into();
    GrowthError::Io { path, error }
}

#[cfg(test)]
mod tests;
