//! The journal of a standby's disks: what an epoch writes is here, durably, before any of it is on a disk (I3, I10).
//!
//! A standby that dies half way through an epoch's writes, or whose host loses power with half of them on the disk, [repeats](recover)
//! what the journal has when it starts again: all disks then hold exactly one committed epoch. One journal serves all disks
//! of a VM, because an epoch is one for all of them.
//!
//! Two files beside the first disk's image take turns. Each entry is one epoch; entries are numbered, and carry the number of the
//! journal's *life*, which stands in a page at the first file's beginning: to change that page is to [forget](Journal::forget) all entries at
//! once. While one file is filled the disks are flushed by a thread, and a file is used again only when all that it has is
//! durable on the disks.

mod entry;
mod file;
mod recovery;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::image_id::{ImageId, stamp};
use super::sealed::{self, PAGE};
use super::{Block, CopyMark, DiskWrite, beside};
use file::JournalFile;
pub use recovery::{JournalError, Recovery, recover};

/// Added to the name of the first disk's image.
const SUFFIXES: [&str; 2] = [".journal", ".journal2"];
/// A file that has so many bytes of entries is full. What is appended at once may go beyond that.
const FULL: u64 = 32 << 20;
const MAGIC: [u8; 8] = *b"EVTWJRNL";
/// Of the files' form: each entry begins on a page of its own.
const VERSION: u32 = 2;
/// The form before: one entry right behind the other.
const PACKED: u32 = 1;

/// A disk whose writes go through the journal.
#[derive(Debug)]
pub struct JournaledDisk {
    number: u32,
    id: ImageId,
    image: File,
    path: PathBuf,
    is_device: bool,
    copy_mark: Arc<CopyMark>,
}

impl Block {
    /// This disk, for its VM's journal.
    ///
    /// # Errors
    /// The process can have no further descriptor, or the image is gone.
    pub fn journaled(&self) -> io::Result<JournaledDisk> {
        let image = self.ring.image();
        Ok(JournaledDisk {
            number: self.disk,
            id: ImageId::of(image.file(), image.bytes())?,
            image: image.file().try_clone()?,
            path: image.path().into(),
            is_device: image.is_device(),
            copy_mark: Arc::clone(image.copy_mark()),
        })
    }
}

/// What the first file's first page says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Master {
    version: u32,
    vm: String,
    life: u64,
    disks: Vec<(u32, ImageId)>,
}

/// The journal of one VM's disks, open for writing.
#[derive(Debug)]
pub struct Journal {
    master: Master,
    path: PathBuf,
    files: [JournalFile; 2],
    disks: Arc<Vec<JournaledDisk>>,
    /// The file that is being filled, and how far.
    current: usize,
    at: u64,
    /// Number of the next entry.
    sequence: u64,
    /// Whether all that a file has is durable on the disks.
    flushed: [bool; 2],
    flushing: Option<Flushing>,
}

/// The disks are being made durable.
#[derive(Debug)]
struct Flushing {
    /// The file whose entries are all on the disks that are flushed, if it is one's.
    file: Option<usize>,
    thread: JoinHandle<io::Result<()>>,
}

/// The two files, given the disks of a VM. None if there are no disks.
fn paths(disks: &[JournaledDisk]) -> Option<[PathBuf; 2]> {
    let first = disks.iter().min_by_key(|disk| disk.number)?;
    Some(SUFFIXES.map(|suffix| beside::place(&first.path, first.is_device, suffix)))
}

impl Journal {
    /// Makes a journal without entries for these disks, which must not be empty. Whatever it had is forgotten.
    ///
    /// # Errors
    /// The files can't be made, or there is no room for them: both may need 32 MiB, and as much more as is appended at once.
    pub fn new(vm: &str, disks: Vec<JournaledDisk>) -> io::Result<Self> {
        let paths = paths(&disks).ok_or(io::ErrorKind::InvalidInput)?;
        let [first, second] = &paths;
        beside::make_directory(first)?;
        let files = [JournalFile::make(first)?, JournalFile::make(second)?];
        beside::sync_directory(first)?;
        let mut journal = Self {
            master: Master {
                version: VERSION,
                vm: vm.to_owned(),
                life: 0,
                disks: ids(&disks),
            },
            path: first.clone(),
            files,
            disks: Arc::new(disks),
            current: 0,
            at: PAGE as u64,
            sequence: 0,
            flushed: [true; 2],
            flushing: None,
        };
        journal.begin_life().map_err(|error| named(first, error))?;
        // What the disks hold already is part of what the first entry is added to.
        journal.begin_flush(None)?;
        Ok(journal)
    }

    /// Whether the next entries go to the other file. Then all that was appended has to be on the disks before they come.
    pub fn is_full(&self) -> bool {
        self.at >= FULL
    }

    /// Makes epochs durable: each is repeated as a whole from now on, or not at all. The caller writes them to the disks after that, at
    /// the latest before it appends to a [full](Self::is_full) journal.
    ///
    /// # Errors
    /// The files can't be written, or the disks not be flushed.
    pub fn append(&mut self, epochs: &[Vec<DiskWrite>]) -> io::Result<()> {
        self.append_unnamed(epochs)
            .map_err(|error| named(&self.path, error))
    }

    fn append_unnamed(&mut self, epochs: &[Vec<DiskWrite>]) -> io::Result<()> {
        if epochs.iter().all(Vec::is_empty) {
            return Ok(());
        }
        // Not between two of these: the flush that begins with it is of what is on the disks by now.
        if self.is_full() {
            self.turn_over()?;
        }
        self.flushed[self.current] = false;
        let batch = self.sequence;
        let file = &mut self.files[self.current];
        let epochs = epochs.iter().filter(|writes| !writes.is_empty());
        let sizes = epochs.clone().map(|writes| entry::size(writes));
        let mut pages = file.pages(self.at, sizes.sum());
        for writes in epochs {
            pages.push(&entry::encode(
                self.master.life,
                self.sequence,
                batch,
                writes,
            ))?;
            entry::contents(writes).try_for_each(|data| pages.push(data))?;
            pages.fill_up()?;
            self.sequence += 1;
        }
        self.at = pages.finish()?;
        Ok(())
    }

    /// Forgets all entries, durably: the disks are about to be written to by somebody else than the journal's owner.
    ///
    /// # Errors
    /// The first file can't be written.
    pub fn forget(&mut self) -> io::Result<()> {
        if self.sequence == 0 {
            return Ok(());
        }
        self.begin_life().map_err(|error| named(&self.path, error))
    }

    /// The images are about to become larger: that is this process's doing.
    ///
    /// # Errors
    /// A file's times can't be set.
    pub fn expect_growth(&self) -> io::Result<()> {
        self.files.iter().map(JournalFile::file).try_for_each(stamp)
    }

    /// The images are larger now. The entries there are stay good: what they say of the images is written anew with the next life.
    pub fn images_have_grown(&mut self, disks: Vec<JournaledDisk>) {
        self.master.disks = ids(&disks);
        self.disks = Arc::new(disks);
    }

    /// Makes all that was written to the disks durable, and forgets all entries.
    ///
    /// # Errors
    /// A disk can't be flushed, or the first file not be written.
    pub fn close(&mut self) -> io::Result<()> {
        if self.sequence > 0 {
            flush(&self.disks)?;
        }
        self.forget()
    }

    fn begin_life(&mut self) -> io::Result<()> {
        let mut life = [0; 8];
        getrandom(&mut life, GetRandomFlags::empty())?;
        self.master.life = u64::from_le_bytes(life);
        write_master(self.files[0].file(), &self.master)?;
        (self.current, self.at, self.sequence) = (0, PAGE as u64, 0);
        self.flushed = [true; 2];
        // It says nothing of entries to come.
        self.flushing = None;
        Ok(())
    }

    /// Goes on in the other file.
    fn turn_over(&mut self) -> io::Result<()> {
        let full = self.current;
        let next = 1 - full;
        // Nobody relies on the order of what is on the disk as long as an unfinished copy is not durable there, and to flush all of
        // that may take minutes.
        let copied = self.is_copied();
        if copied {
            self.await_flush(next)?;
        }
        // Else nobody could tell an entry that is damaged from one that is being overwritten.
        let number = self.sequence;
        let closing = entry::encode(self.master.life, number, number, &[]);
        let mut pages = self.files[full].pages(self.at, closing.len() as u64);
        pages.push(&closing)?;
        pages.finish()?;
        self.sequence += 1;
        self.current = next;
        self.at = PAGE as u64;
        match copied {
            true => self.begin_flush(Some(full)),
            false => Ok(()),
        }
    }

    /// Waits until all that a file has is durable on the disks.
    fn await_flush(&mut self, file: usize) -> io::Result<()> {
        if let Some(flushing) = self.flushing.take() {
            let ended = flushing.thread.join();
            ended.unwrap_or_else(|_| Err(io::Error::other("the flush has ended early")))?;
            if let Some(file) = flushing.file {
                self.flushed[file] = true;
            }
        }
        if !self.flushed[file] {
            flush(&self.disks)?;
            self.flushed = [true; 2];
        }
        Ok(())
    }

    fn begin_flush(&mut self, file: Option<usize>) -> io::Result<()> {
        let disks = Arc::clone(&self.disks);
        let thread = std::thread::Builder::new().name("disk-flush".to_owned());
        let thread = thread.spawn(move || flush(&disks))?;
        self.flushing = Some(Flushing { file, thread });
        Ok(())
    }

    /// Whether no disk is a copy that is not durable yet.
    fn is_copied(&self) -> bool {
        self.disks
            .iter()
            .all(|disk| !disk.copy_mark.path().exists())
    }
}

fn write_master(file: &File, master: &Master) -> io::Result<()> {
    file.write_all_at(&sealed::header(MAGIC, master)?, 0)?;
    file.sync_data()
}

fn ids(disks: &[JournaledDisk]) -> Vec<(u32, ImageId)> {
    let ids = disks.iter().map(|disk| (disk.number, disk.id.clone()));
    ids.collect()
}

/// Makes all that was written to the disks durable.
fn flush(disks: &[JournaledDisk]) -> io::Result<()> {
    disks.iter().try_for_each(|disk| {
        let flushed = disk.image.sync_data();
        flushed.map_err(|error| named(&disk.path, error))
    })
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
