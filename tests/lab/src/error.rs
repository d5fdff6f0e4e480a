//! What can go wrong in the lab.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::one_speaker::Violation;

/// Why a scenario failed, or could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file that the lab is made from is not there.
    #[error("{path}: {source}: build it with `{fix}`")]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// The command that builds it.
        fix: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A driver that the hosts need is not among the kernel's.
    #[error("the kernel in target/guest-debian has no module {0}")]
    NoModule(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A process of the lab's own machine.
    #[error(transparent)]
    Process(#[from] evertwin::lab::LabError),
    /// A host's machine ended by itself, or its agent fell silent.
    #[error("host {host}: {reason}; its console is in host-{host}.console")]
    Host {
        /// The host.
        host: &'static str,
        /// What happened.
        reason: String,
    },
    /// A command on a host failed.
    #[error("host {host}: `{command}` {outcome}: {message}")]
    Command {
        /// The host.
        host: &'static str,
        /// The command.
        command: String,
        /// How it ended.
        outcome: String,
        /// What it wrote to standard error.
        message: String,
    },
    /// What was waited for did not come in time.
    #[error("{who}: no \"{what}\" within {} s; the last line was: {last}", .after.as_secs_f32())]
    Timeout {
        /// The process that was watched.
        who: String,
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The last line it wrote.
        last: String,
    },
    /// A process ended while something was still expected of it.
    #[error("{who} ended before \"{what}\"; the last line was: {last}")]
    Gone {
        /// The process.
        who: String,
        /// What was waited for.
        what: String,
        /// The last line it wrote.
        last: String,
    },
    /// Two machines spoke for the guest (I2).
    #[error(transparent)]
    TwoSpeakers(#[from] Violation),
    /// The scenario's own judgement.
    #[error("{0}")]
    Wrong(String),
    /// The scenario panicked.
    #[error("panicked: {0}")]
    Panicked(String),
}

impl LabError {
    /// Wraps a system error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Ends a scenario with its own words unless the condition holds.
macro_rules! demand {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err($crate::error::LabError::Wrong(format!($($words)+)));
        }
    };
}
pub(crate) use demand;
