//! The arbiter as a file: for twins on one host, or on storage that both lock and share.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::text::{MAX_LEN, format, parse};
use super::{Arbiter, ArbiterError, CasOutcome, Record};

/// A register in a file, guarded by a lock on a file beside it.
///
/// The record is replaced by writing a new file and renaming it over the old one, each made
/// durable, so that a reader sees the old record or the new one whole.
#[derive(Debug)]
pub struct FileArbiter {
    path: PathBuf,
    lock: PathBuf,
    temporary: PathBuf,
}

/// The file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileArbiterError {
    /// An operation on a file failed.
    #[error("arbiter file {}: {source}: check that its directory exists and is writable", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file does not hold a record.
    #[error(
        "arbiter file {} is damaged: make sure that no twin runs, then remove it and start the twin with the newer state first",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl FileArbiter {
    /// An arbiter in the file `path`, which is made by the first claim.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let beside = |suffix| {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            lock: beside(".lock"),
            temporary: beside(".new"),
            path,
        }
    }

    /// Holds the lock until the file given back is closed.
    fn lock(&self) -> Result<File, FileArbiterError> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.lock)
            .map_err(failed(&self.lock))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| failed(&self.lock)(error.into()))?;
        Ok(lock)
    }

    /// Writes the record, whatever is there.
    pub(super) fn replace(&self, record: &Record) -> Result<(), ArbiterError> {
        let _lock = self.lock().map_err(ArbiterError::new)?;
        self.store(record).map_err(ArbiterError::new)
    }

    fn load(&self) -> Result<Option<Record>, FileArbiterError> {
        let len = match fs::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&self.path)(error)),
        };
        let damaged = || FileArbiterError::Damaged {
            path: self.path.clone(),
        };
        if len > MAX_LEN as u64 {
            return Err(damaged());
        }
        let text = fs::read(&self.path).map_err(failed(&self.path))?;
        let text = String::from_utf8(text).map_err(|_| damaged())?;
        parse(&text).map(Some).ok_or_else(damaged)
    }

    fn store(&self, record: &Record) -> Result<(), FileArbiterError> {
        let mut file = File::create(&self.temporary).map_err(failed(&self.temporary))?;
        file.write_all(format(record).as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed(&self.temporary))?;
        fs::rename(&self.temporary, &self.path).map_err(failed(&self.path))?;
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed(directory))
    }
}

impl Arbiter for FileArbiter {
    fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        let _lock = self.lock().map_err(ArbiterError::new)?;
        self.load().map_err(ArbiterError::new)
    }

    fn compare_and_swap(
        &mut self,
        expected: Option<&Record>,
        new: &Record,
    ) -> Result<CasOutcome, ArbiterError> {
        let _lock = self.lock().map_err(ArbiterError::new)?;
        let current = self.load().map_err(ArbiterError::new)?;
        if current.as_ref() != expected {
            return Ok(CasOutcome::Lost(current));
        }
        self.store(new).map_err(ArbiterError::new)?;
        Ok(CasOutcome::Won)
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> FileArbiterError {
    move |source| FileArbiterError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> evertwin_protocol::NodeId {
        name.parse().expect("a valid name")
    }

    fn arbiter() -> (tempfile::TempDir, FileArbiter) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let arbiter = FileArbiter::new(directory.path().join("arbiter"));
        (directory, arbiter)
    }

    #[test]
    fn a_swap_needs_the_whole_expected_record() {
        let (_directory, mut arbiter) = arbiter();
        let (a, b) = (node("a"), node("b"));
        assert_eq!(arbiter.read().expect("no file yet"), None);
        let solo = Record::solo(1, a);
        let named = Record::protected(1, a, b);
        let mut swap = |expected: Option<Record>, new| {
            arbiter
                .compare_and_swap(expected.as_ref(), &new)
                .expect("a sound file")
        };
        assert_eq!(swap(Some(solo), named), CasOutcome::Lost(None));
        assert_eq!(swap(None, solo), CasOutcome::Won);
        assert_eq!(swap(None, solo), CasOutcome::Lost(Some(solo)));
        assert_eq!(swap(Some(solo), named), CasOutcome::Won);
        let promoted = Record::solo(2, b);
        assert_eq!(swap(Some(solo), promoted), CasOutcome::Lost(Some(named)));
        assert_eq!(swap(Some(named), promoted), CasOutcome::Won);
        assert_eq!(arbiter.read().expect("a sound file"), Some(promoted));
    }

    #[test]
    fn one_of_many_racers_wins() {
        let (directory, mut arbiter) = arbiter();
        let expected = Record::solo(1, node("a"));
        arbiter
            .compare_and_swap(None, &expected)
            .expect("a sound file");
        let path = directory.path().join("arbiter");
        let wins: usize = std::thread::scope(|scope| {
            let race = |racer: u64| {
                let mut arbiter = FileArbiter::new(&path);
                let new = Record::solo(2 + racer, node("b"));
                let outcome = arbiter.compare_and_swap(Some(&expected), &new);
                usize::from(outcome.expect("a sound file") == CasOutcome::Won)
            };
            let racers: Vec<_> = (0..8).map(|n| scope.spawn(move || race(n))).collect();
            let won = racers.into_iter().map(|racer| racer.join());
            won.map(|won| won.expect("no panic")).sum()
        });
        assert_eq!(wins, 1);
    }

    #[test]
    fn a_damaged_file_is_named_and_never_guessed() {
        let (directory, mut arbiter) = arbiter();
        let record = Record::protected(7, node("a"), node("b"));
        arbiter
            .compare_and_swap(None, &record)
            .expect("a sound file");
        let path = directory.path().join("arbiter");
        let whole = fs::read(&path).expect("it was written");
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).expect("a writable file");
            let error = arbiter.read().expect_err("a torn file").to_string();
            assert!(
                error.contains("damaged") && error.contains("arbiter"),
                "{error}"
            );
        }
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 1;
            fs::write(&path, &changed).expect("a writable file");
            arbiter.read().expect_err("a changed file");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let mut arbiter = FileArbiter::new("/nonexistent/arbiter");
        let error = arbiter.read().expect_err("no directory").to_string();
        assert!(error.contains("/nonexistent/arbiter"), "{error}");
    }
}
