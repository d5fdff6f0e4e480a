//! Which file or device an image is, and whether somebody has written to it behind the back of what stands beside it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};

/// An image may be this much newer than the last word of who wrote to it.
const SLACK_NANOS: i128 = 5_000_000_000;

/// Which file or device an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageId {
    pub(super) bytes: u64,
    inode: u64,
    /// When the file was made, in seconds and nanoseconds, if its file system knows.
    made: Option<(u64, u32)>,
}

impl ImageId {
    /// Whether it is the image that another was, perhaps grown since.
    pub(super) fn may_come_from(&self, other: &Self) -> bool {
        let Self { bytes, inode, made } = self;
        (inode, made) == (&other.inode, &other.made) && *bytes >= other.bytes
    }

    pub(super) fn of(image: &File, bytes: u64) -> io::Result<Self> {
        let metadata = image.metadata()?;
        if metadata.file_type().is_block_device() {
            // A device's node is made anew at each start of the host.
            return Ok(Self {
                bytes,
                inode: 0,
                made: None,
            });
        }
        let made = metadata.created().ok();
        let made = made.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        Ok(Self {
            bytes,
            inode: metadata.ino(),
            made: made.map(|at| (at.as_secs(), at.subsec_nanos())),
        })
    }
}

/// When a file was changed last by its file system's clock, in nanoseconds. Always the same for a device, which does not tell.
pub(super) fn changed_at(file: &File) -> io::Result<i128> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return Ok(0);
    }
    Ok(i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()))
}

/// Whether an image was changed after this word of who wrote to it, as far as can be told.
pub(super) fn is_newer(image: &File, word: &File) -> io::Result<bool> {
    let metadata = word.metadata()?;
    let written = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Ok(changed_at(image)? > written + SLACK_NANOS)
}

/// Leaves word, in this file, that who keeps it writes to the image.
pub(super) fn stamp(word: &File) -> io::Result<()> {
    let now = std::time::SystemTime::now();
    word.set_times(std::fs::FileTimes::new().set_modified(now))
}
