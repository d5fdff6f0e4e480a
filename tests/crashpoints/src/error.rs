//! Why a kill could not be judged, or what it broke.

use std::time::Duration;

use evertwin::control::ClientError;
use evertwin::lab::LabError;
use evertwin::lab::topology::Node;

/// A kill did not go as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CrashError {
    /// The lab or a twin's process.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A twin could not be asked.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// A file or socket.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A twin does not know points.
    #[error(
        "the twin {node:?} was not armed: it answered {answer}; is it built with the feature failpoints?"
    )]
    NotArmed {
        /// The twin.
        node: Node,
        /// Its answer.
        answer: String,
    },
    /// The twin did not come by.
    #[error("the point was not reached: {0}")]
    NotReached(String),
    /// A twin did not come to be what it should.
    #[error("{node:?} is {role} after {after:?}, not {wanted}")]
    Role {
        /// The twin.
        node: Node,
        /// What it is.
        role: String,
        /// What it should be.
        wanted: &'static str,
        /// How long was waited.
        after: Duration,
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
    /// The client got no more answers.
    #[error("the client's connection does not go on: {0}")]
    Silent(String),
    /// The operator's command was not obeyed.
    #[error("the switchover before the kill: {0}")]
    Switchover(String),
    /// The guest gave no usable answer.
    #[error("the restarted guest: {0}")]
    Guest(String),
}

impl CrashError {
    /// Wraps a system error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
