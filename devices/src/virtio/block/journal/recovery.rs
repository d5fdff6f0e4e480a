//! Bringing disks to the last epoch that their journal has.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::image_id::{is_newer, stamp};
use super::super::sealed::{BadHeader, PAGE, read_header};
use super::super::{DiskWrite, mirror};
use super::entry::{HEAD, Head};
use super::{JournaledDisk, MAGIC, Master, PACKED, VERSION, flush, ids, paths, write_master};

/// What a journal had for its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing: there is no journal, or it has no entries.
    Nothing,
    /// So many epochs, which the disks hold now as a whole.
    Repeated(u64),
    /// Entries that were forgotten, because a disk is no longer what it was.
    Forgotten(String),
    /// An entry is damaged that was durable: the disks, which may be between two epochs, are marked as unfinished copies, and nothing that was
    /// known of them is trusted.
    Damaged {
        /// The file that it is in.
        path: PathBuf,
        /// Its number.
        entry: u64,
    },
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
        Ok(()) => match read_header(MAGIC, &[VERSION, PACKED], &page) {
            Ok(master) => master,
            // It is made anew before the first entry, and is one page.
            Err(BadHeader::Damaged) => return Ok(Recovery::Nothing),
            Err(BadHeader::Version(version)) => {
                return Err(JournalError::Version { path, version });
            }
        },
    };
    let mut chains = Vec::new();
    for (file, path) in files.iter().zip(&paths) {
        chains.push(Chain::read(file, path, &master).map_err(io)?);
    }
    chains.sort_by_key(|chain| chain.first);
    let damage = damage(&chains, &master).map_err(io)?;
    chains.retain(|chain| !chain.entries.is_empty());
    if damage.is_none() && chains.is_empty() {
        return Ok(Recovery::Nothing);
    }
    let recovery = match (distrust(&master, vm, disks, &files).map_err(io)?, damage) {
        (Some(why), _) => Recovery::Forgotten(why),
        (None, Some((path, entry))) => {
            distrust_disks(disks).map_err(io)?;
            Recovery::Damaged { path, entry }
        }
        (None, None) => Recovery::Repeated(repeat_all(&chains, &files, disks, repeat).map_err(io)?),
    };
    let life = master.life.wrapping_add(1);
    write_master(&files[0], &Master { life, ..master }).map_err(io)?;
    Ok(recovery)
}

/// The entries of one file.
struct Chain<'a> {
    file: &'a File,
    path: &'a Path,
    /// Where they end.
    at: u64,
    /// Number of the first.
    first: u64,
    /// Where they are.
    entries: Vec<(u64, Head)>,
}

impl<'a> Chain<'a> {
    /// All that follow each other from the file's beginning.
    fn read(file: &'a File, path: &'a Path, master: &Master) -> io::Result<Self> {
        let life = master.life;
        let unit = match master.version {
            PACKED => 1,
            _ => PAGE as u64,
        };
        let bytes = file.metadata()?.len();
        let mut chain = Self {
            file,
            path,
            at: PAGE as u64,
            first: 0,
            entries: Vec::new(),
        };
        let mut head = [0; HEAD];
        while chain.at + HEAD as u64 <= bytes {
            file.read_exact_at(&mut head, chain.at)?;
            let begins = chain.entries.is_empty();
            let head = Head::decode(&head)
                .filter(|head| head.life == life)
                .filter(|head| begins || head.sequence == chain.end())
                .filter(|head| head.len <= bytes - chain.at - HEAD as u64);
            let Some(head) = head else {
                break;
            };
            if read_writes(file, chain.at, &head)?.is_none() {
                break;
            }
            if begins {
                chain.first = head.sequence;
            }
            chain.entries.push((chain.at, head));
            chain.at = (chain.at + HEAD as u64 + head.len).next_multiple_of(unit);
        }
        Ok(chain)
    }

    /// Number of the entry behind the last.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Whether nobody needs what the other file has.
    fn is_closed(&self) -> bool {
        self.entries.last().is_some_and(|(_, head)| head.closes())
    }

    /// Whether there is, anywhere behind its end, an entry that was written when that number was durable already.
    fn outlives(&self, number: u64, life: u64) -> io::Result<bool> {
        let bytes = self.file.metadata()?.len();
        let mut head = [0; HEAD];
        let mut at = self.at.next_multiple_of(PAGE as u64);
        while at + HEAD as u64 <= bytes {
            self.file.read_exact_at(&mut head, at)?;
            let found = Head::decode(&head).filter(|head| head.life == life);
            if found.is_some_and(|head| head.batch > number) {
                return Ok(true);
            }
            at += PAGE as u64;
        }
        Ok(false)
    }
}

/// An entry that was durable and is not there any more: its file and number. What was under way at a loss of power may be torn, but
/// then nothing that was written later is there.
fn damage(chains: &[Chain<'_>], master: &Master) -> io::Result<Option<(PathBuf, u64)>> {
    let found: Vec<_> = chains
        .iter()
        .filter(|chain| !chain.entries.is_empty())
        .collect();
    let missing = match found[..] {
        [one, other] if one.end() != other.first => Some((one.path, one.end())),
        // The file before it is overwritten only after this one says so, but for the form before.
        [one] if one.first > 0 && !one.is_closed() && master.version != PACKED => {
            let other = chains.iter().find(|chain| chain.entries.is_empty());
            other.map(|other| (other.path, one.first - 1))
        }
        _ => None,
    };
    if let Some((path, entry)) = missing {
        return Ok(Some((path.into(), entry)));
    }
    let next = found.last().map_or(0, |chain| chain.end());
    for chain in chains {
        if chain.outlives(next, master.life)? {
            return Ok(Some((chain.path.into(), next)));
        }
    }
    Ok(None)
}

/// What these disks hold is no epoch: no guest is booted from them, and a copy to them is a full one.
fn distrust_disks(disks: &[JournaledDisk]) -> io::Result<()> {
    for disk in disks {
        disk.copy_mark.begin()?;
        mirror::forget_at(&disk.path, disk.is_device)?;
    }
    Ok(())
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
            if head.closes() {
                continue;
            }
            repeat(&writes.ok_or(io::ErrorKind::InvalidData)?)?;
            epochs += 1;
        }
    }
    flush(disks)?;
    records.iter().try_for_each(stamp)?;
    Ok(epochs)
}
