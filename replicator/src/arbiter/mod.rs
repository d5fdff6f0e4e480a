//! The arbiter: one durable register with compare-and-swap that both twins can reach.

mod etcd;
mod file;
mod manual;
mod text;
mod thread;

use std::error::Error as StdError;

pub use etcd::{EtcdArbiter, EtcdError};
pub use evertwin_protocol::Record;
pub use file::{FileArbiter, FileArbiterError};
pub use manual::Notes;
pub(crate) use thread::ArbiterThread;

/// How a compare-and-swap ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CasOutcome {
    /// The register held what was expected; the new record is durable.
    Won,
    /// The register holds this instead; nothing was changed.
    Lost(Option<Record>),
}

/// The arbiter could not be asked, or its answer can't be trusted.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ArbiterError(#[source] Box<dyn StdError + Send + Sync>);

impl ArbiterError {
    /// Wraps the arbiter's own error (or a message).
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// One durable register. Calls may block: they are made on a thread of their own.
pub trait Arbiter: Send {
    /// The record, or none when nobody has claimed the VM yet.
    ///
    /// # Errors
    /// When the arbiter can't be reached or holds something unreadable.
    fn read(&mut self) -> Result<Option<Record>, ArbiterError>;

    /// Replaces the record with `new` if it is exactly `expected`. The change is durable
    /// when this returns [`CasOutcome::Won`].
    ///
    /// # Errors
    /// When the arbiter can't be reached. The change may or may not have happened, or may
    /// happen yet.
    fn compare_and_swap(
        &mut self,
        expected: Option<&Record>,
        new: &Record,
    ) -> Result<CasOutcome, ArbiterError>;
}
