//! Schedules that found something once. They are run first, for ever.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::check::Violation;
use crate::schedule::Schedule;

/// A schedule in a file.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub schedule: Schedule,
}

/// Kept schedules can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The file system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was to be read or written.
        path: PathBuf,
        /// Why it could not be.
        source: io::Error,
    },
    /// The file is not a schedule.
    #[error("{} is not a schedule: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<toml::de::Error>,
    },
    /// The schedule has no text form.
    #[error("a schedule can't be written down: {0}")]
    Format(#[from] toml::ser::Error),
}

impl Kept {
    /// Reads one file.
    ///
    /// # Errors
    /// When it can't be read, or is not a schedule.
    pub fn read(path: &Path) -> Result<Self, KeptError> {
        let text = fs::read_to_string(path).map_err(|source| KeptError::Io {
            path: path.to_owned(),
            source,
        })?;
        let schedule = toml::from_str(&text).map_err(|source| KeptError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self {
            path: path.to_owned(),
            schedule,
        })
    }
}

/// All schedules in a directory, in the order of their names.
///
/// # Errors
/// When the directory or a file can't be read, or a file is not a schedule.
pub fn kept(directory: &Path) -> Result<Vec<Kept>, KeptError> {
    let failed = |source| KeptError::Io {
        path: directory.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Kept::read(path)).collect()
}

/// Writes a schedule down, with what it broke.
///
/// # Errors
/// When the file can't be written.
pub fn keep(
    directory: &Path,
    schedule: &Schedule,
    violation: &Violation,
) -> Result<PathBuf, KeptError> {
    let invariant = format!("{:?}", violation.invariant).to_lowercase();
    let path = directory.join(format!("{invariant}-{}.toml", schedule.seed));
    let text = format!("# {violation}\n{}", toml::to_string(schedule)?);
    fs::write(&path, text).map_err(|source| KeptError::Io {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}
