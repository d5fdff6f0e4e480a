//! A file of the journal, which is written in whole pages.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::super::aligned::AlignedBuffer;
use super::super::operation::is_impossible;
use super::super::sealed::PAGE;
use super::{FULL, named};

/// Bytes that go to the file at once.
const STAGED: usize = 1 << 20;
/// From so many bytes on the page cache costs more than it saves.
const DIRECT: u64 = 1 << 20;

/// One of the two files.
#[derive(Debug)]
pub(super) struct JournalFile {
    file: File,
    /// The same past the page cache, where that can be.
    direct: Option<File>,
    staged: AlignedBuffer,
}

impl JournalFile {
    /// Opens a file, with room for entries. It is made if it does not exist.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        let made = || {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            let file = options.open(path)?;
            // Entries then are written without waiting for the file system's own journal. Where that can't be, they do.
            match fallocate(&file, FallocateFlags::empty(), 0, FULL) {
                Err(error) if !is_impossible(&error.into()) => {
                    return Err(error.into());
                }
                _ => {}
            }
            file.sync_all()?;
            Ok(file)
        };
        let file = made().map_err(|error| named(path, error))?;
        let mut options = OpenOptions::new();
        let options = options.write(true).custom_flags(libc::O_DIRECT);
        Ok(Self {
            file,
            direct: options.open(path).ok(),
            staged: AlignedBuffer::zeroed(STAGED),
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Begins to write so many bytes, more or less, at a page's beginning.
    pub(super) fn pages(&mut self, at: u64, bytes: u64) -> Pages<'_> {
        Pages {
            direct: self.direct.as_ref().filter(|_| bytes >= DIRECT),
            file: &self.file,
            staged: &mut self.staged,
            used: 0,
            at,
        }
    }
}

/// Pages that are being written, one behind the other.
pub(super) struct Pages<'a> {
    file: &'a File,
    direct: Option<&'a File>,
    staged: &'a mut AlignedBuffer,
    used: usize,
    at: u64,
}

impl Pages<'_> {
    /// Adds bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = &mut self.staged.as_mut()[self.used..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.used += now.len();
            bytes = later;
            if self.used == STAGED {
                self.write()?;
            }
        }
        Ok(())
    }

    /// Adds zeroes up to a page's end.
    pub(super) fn fill_up(&mut self) -> io::Result<()> {
        let end = self.used.next_multiple_of(PAGE);
        self.staged.as_mut()[self.used..end].fill(0);
        self.used = end;
        match end == STAGED {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Makes all of it durable. Returns where it ends.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.fill_up()?;
        self.write()?;
        self.file.sync_data()?;
        Ok(self.at)
    }

    fn write(&mut self) -> io::Result<()> {
        let bytes = &self.staged.as_ref()[..self.used];
        let written = match self.direct {
            Some(direct) => direct.write_all_at(bytes, self.at),
            None => self.file.write_all_at(bytes, self.at),
        };
        match written {
            // Said only now by some file systems, and by devices that have larger sectors than their file system tells.
            Err(error) if self.direct.is_some() && is_impossible(&error) => {
                self.direct = None;
                return self.write();
            }
            written => written?,
        }
        self.at += self.used as u64;
        self.used = 0;
        Ok(())
    }
}
