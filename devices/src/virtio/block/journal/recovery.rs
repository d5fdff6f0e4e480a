//! Bringing disks to the last epoch that their journal has.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::super::image_id::{is_newer, stamp};
use super::super::sealed::{BadHeader, PAGE, read_header};
use super::super::{DiskWrite, mirror};
use super::entry::{HEAD, Head};
use super::{JournaledDisk, MAGIC, Master, VERSION, flush, ids, paths, write_master};

/// What a journal had for its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing: there is no journal, or it has no entries.
    Nothing,
    /// So many epochs, which the disks hold now as a whole.
    Repeated(u64),
    /// Entries that were forgotten, because a disk is no longer what it was.
    Forgotten(String),
    /// Entries are missing in the middle: the disks, which may be between two epochs, are marked as unfinished copies.
    Damaged,
}

/// Why disks can't be brought to an epoch.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal was written by another build.
    #[error(
        "{path} has form {version}, which this build does not know: start the build that wrote it once, or remove the file \
         if the VM's other host has the disks"
    )]
    Version {
        /// The journal's first file.
        path: PathBuf,
        /// What it has.
        version: u32,
    },
    /// A file or disk fails.
    #[error("{path}: {error}")]
    Io {
        /// The journal's first file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Repeats what the journal of these disks has, with `repeat`, which writes to the disks. Done before anybody
/// relies on what they hold. What somebody else has written to a disk meanwhile is not overwritten.
///
/// # Errors
/// [`JournalError`]. What was to be repeated still is.
pub fn recover(
    vm: &str,
    disks: &[JournaledDisk],
    repeat: impl FnMut(&[DiskWrite]) -> io::Result<()>,
) -> Result<Recovery, JournalError> {
    let Some(paths) = paths(disks) else {
        return Ok(Recovery::Nothing);
    };
    let path = paths[0].clone();
    let mut files = Vec::new();
    for path in &paths {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Recovery::Nothing),
            Err(error) => {
                let path = path.clone();
                return Err(JournalError::Io { path, error });
            }
        }
    }
    let mut page = [0; PAGE];
    let io = |error| JournalError::Io {
        path: path.clone(),
        error,
    };
    let master: Master = match files[0].read_exact_at(&mut page, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Recovery::Nothing),
        Err(error) => return Err(io(error)),
        Ok(()) => match read_header(MAGIC, VERSION, &page) {
            Ok(master) => master,
            // It is made anew before the first entry, and is one page.
            Err(BadHeader::Damaged) => return Ok(Recovery::Nothing),
            Err(BadHeader::Version(version)) => {
                return Err(JournalError::Version { path, version });
            }
        },
    };
    let mut chains = Vec::new();
    for file in files.iter() {
        let chain = Chain::read(file, master.life).map_err(io)?;
        chains.extend(chain.filter(|chain| !chain.entries.is_empty()));
    }
    chains.sort_by_key(|chain| chain.first);
    let recovery = match &chains[..] {
        [] => return Ok(Recovery::Nothing),
        [one, other] if one.end() != other.first => {
            let mut marks = disks.iter().map(|disk| &disk.copy_mark);
            marks.try_for_each(|mark| mark.begin()).map_err(io)?;
            Recovery::Damaged
        }
        chains => match distrust(&master, vm, disks, &files).map_err(io)? {
            Some(why) => Recovery::Forgotten(why),
            None => Recovery::Repeated(repeat_all(chains, &files, disks, repeat).map_err(io)?),
        },
    };
    let life = master.life.wrapping_add(1);
    write_master(&files[0], &Master { life, ..master }).map_err(io)?;
    Ok(recovery)
}

/// The entries of one file.
struct Chain<'a> {
    file: &'a File,
    /// Number of the first.
    first: u64,
    /// Where they are.
    entries: Vec<(u64, Head)>,
}

impl<'a> Chain<'a> {
    /// All that follow each other from the file's beginning. None if there is nothing.
    fn read(file: &'a File, life: u64) -> io::Result<Option<Self>> {
        let bytes = file.metadata()?.len();
        let mut chain: Option<Self> = None;
        let mut at = PAGE as u64;
        let mut head = [0; HEAD];
        while at + HEAD as u64 <= bytes {
            file.read_exact_at(&mut head, at)?;
            let expected = chain.as_ref().map(Self::end);
            let head = Head::decode(&head)
                .filter(|head| head.life == life)
                .filter(|head| expected.is_none_or(|number| head.sequence == number))
                .filter(|head| head.len <= bytes - at - HEAD as u64);
            let Some(head) = head else {
                break;
            };
            if read_writes(file, at, &head)?.is_none() {
                break;
            }
            let chain = chain.get_or_insert(Self {
                file,
                first: head.sequence,
                entries: Vec::new(),
            });
            chain.entries.push((at, head));
            at += HEAD as u64 + head.len;
        }
        Ok(chain)
    }

    /// Number of the entry behind the last.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

fn read_writes(file: &File, at: u64, head: &Head) -> io::Result<Option<Vec<DiskWrite>>> {
    let mut bytes = vec![0; usize::try_from(head.len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, at + HEAD as u64)?;
    Ok(head.writes(&bytes))
}

/// Why the entries must not be repeated, if so.
fn distrust(
    master: &Master,
    vm: &str,
    disks: &[JournaledDisk],
    files: &[File],
) -> io::Result<Option<String>> {
    if master.vm != vm {
        return Ok(Some(format!("they are of VM `{}`", master.vm)));
    }
    let now = ids(disks);
    let mut pairs = master.disks.iter().zip(&now);
    // One that grew while there were entries holds all that they are about.
    let same = master.disks.len() == now.len()
        && pairs.all(|((a, was), (b, is))| a == b && is.may_come_from(was));
    if !same {
        return Ok(Some("they are of other images".to_owned()));
    }
    for disk in disks {
        let mut newer = true;
        for file in files {
            newer &= is_newer(&disk.image, file)?;
        }
        if newer {
            let path = disk.path.display();
            return Ok(Some(format!("{path} was changed since")));
        }
    }
    Ok(None)
}

fn repeat_all(
    chains: &[Chain<'_>],
    files: &[File],
    disks: &[JournaledDisk],
    mut repeat: impl FnMut(&[DiskWrite]) -> io::Result<()>,
) -> io::Result<u64> {
    // What is repeated changes the images, which those who trusted them may know.
    let mut records = Vec::new();
    for disk in disks {
        records.extend(mirror::trusting(&disk.image, &disk.path, disk.is_device)?);
    }
    let mut epochs = 0;
    for chain in chains {
        for (at, head) in &chain.entries {
            // Who dies here has not changed the disks behind the journal's back.
            files.iter().try_for_each(stamp)?;
            let writes = read_writes(chain.file, *at, head)?;
            repeat(&writes.ok_or(io::ErrorKind::InvalidData)?)?;
            epochs += 1;
        }
    }
    flush(disks)?;
    records.iter().try_for_each(stamp)?;
    Ok(epochs)
}
