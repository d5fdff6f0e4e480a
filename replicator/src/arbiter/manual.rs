//! No arbiter but the operator: each host notes for itself who has the right.

use std::path::PathBuf;

use super::{Arbiter, ArbiterError, FileArbiter, Record};

/// What this host knew last of who may run the guest. With it a host that was restarted does
/// not run a guest whose newest state is in the other.
#[derive(Debug)]
pub struct Notes(FileArbiter);

impl Notes {
    /// Notes in the file `path`, on a disk of this host, which is made when it is needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(FileArbiter::new(path))
    }

    /// What was noted last, or none on a host that never had or followed the guest.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        self.0.read()
    }

    /// Makes the record durable.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(crate) fn write(&mut self, record: &Record) -> Result<(), ArbiterError> {
        self.0.replace(record)
    }
}
