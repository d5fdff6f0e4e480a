//! Why a cycle went wrong.

use std::process::ExitStatus;
use std::time::Duration;

use evertwin::control::ClientError;
use evertwin::lab::LabError;
use evertwin::lab::topology::Node;

/// A cycle did not go as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TortureError {
    /// The lab or a twin's process.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A twin could not be asked.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// A file.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The operator's command was not obeyed.
    #[error("the switchover: {0}")]
    Switchover(String),
    /// Disks that were to be compared and repaired.
    #[error("a scrub: {0}")]
    Scrub(String),
    /// Nobody harmed it.
    #[error("the twin {node:?} ended by itself ({status}): {last}")]
    Ended {
        /// The twin.
        node: Node,
        /// How it ended.
        status: ExitStatus,
        /// The last line of its log.
        last: String,
    },
    /// The pair is not protected.
    #[error("not protected within {after:?}: a is {a}, b is {b}")]
    NotProtected {
        /// What a does.
        a: String,
        /// What b does.
        b: String,
        /// How long was waited.
        after: Duration,
    },
    /// The guest says nothing, or never pauses.
    #[error("the guest has not {what} within {after:?}")]
    Silent {
        /// What was missed.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The disks could not be compared.
    #[error(
        "the twins exchange their roles unasked, or the guest's pauses are not seen in time: is this machine too busy?"
    )]
    Unsteady,
    /// The guest found its disk, or its clock, wrong.
    #[error("the guest has found {errors} errors: {example}")]
    Guest {
        /// Blocks that were wrong, as it counts them.
        errors: u64,
        /// A line.
        example: String,
    },
    /// A copy of the wrong kind.
    #[error("{0}")]
    Copy(String),
    /// What was acknowledged is not on the disk.
    #[error("{count} blocks of {node:?}'s disk don't hold what they must, such as {example}")]
    Lost {
        /// Whose disk.
        node: Node,
        /// How many.
        count: u64,
        /// One of them.
        example: String,
    },
    /// The disks are not copies of each other.
    #[error("{count} blocks of the two disks differ in the guest's pause, such as {example}")]
    Mismatch {
        /// How many.
        count: u64,
        /// One of them.
        example: String,
    },
}

impl TortureError {
    /// Wraps a system error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
