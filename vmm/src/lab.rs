//! A lab on one machine: hosts in network namespaces, twins as child processes, and a client that judges
//! every answer it gets. The demo, the end-to-end tests and the benchmarks are all built from these parts.
//!
//! Nothing here has a name outside its own process. The namespaces are held open by file descriptors only, and
//! the children are told to die with the thread that started them, so a lab that is killed leaves no network
//! device, no namespace and no process behind.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub mod client;
pub mod epoch;
pub mod events;
pub(crate) mod interrupt;
pub mod namespace;
pub mod pair;
pub mod preflight;
pub mod process;
pub mod resp;
pub mod round_trips;
pub mod topology;

/// Why a lab could not be set up, or did not do what was waited for.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or device that the lab needs can't be used.
    #[error("{path}: {source}: {fix}")]
    Missing {
        /// What was opened.
        path: PathBuf,
        /// What to do about it.
        fix: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program that the lab needs is not installed.
    #[error("{program} is not installed: run `make deps`, or install Debian's package {package}")]
    NoProgram {
        /// The program's name.
        program: String,
        /// The Debian package that holds it.
        package: &'static str,
    },
    /// The kernel refuses a namespace.
    #[error(
        "can't make a {kind} namespace: {source}: run as root, or allow unprivileged user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
    )]
    Namespace {
        /// "user" or "network".
        kind: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A command of the set-up failed.
    #[error("`{command}` failed: {message}")]
    Command {
        /// The command as a user would type it.
        command: String,
        /// What it said.
        message: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// What was waited for did not come in time.
    #[error("{who}: no \"{what}\" within {} s (log: {log})", .after.as_secs_f32())]
    Timeout {
        /// The process that was watched.
        who: String,
        /// The event or line that was waited for.
        what: String,
        /// How long the lab waited.
        after: Duration,
        /// Where the process's log is.
        log: PathBuf,
    },
    /// A process ended while something was still expected of it.
    #[error("{who} ended ({status}) before \"{what}\": {last} (log: {log})")]
    Ended {
        /// The process that ended.
        who: String,
        /// Its exit status.
        status: String,
        /// What was waited for.
        what: String,
        /// The last line of its log.
        last: String,
        /// Where the process's log is.
        log: PathBuf,
    },
}

impl LabError {
    /// Wraps a system error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The program that runs now, to start it again as a twin.
pub(crate) fn own_binary() -> Result<PathBuf, LabError> {
    std::env::current_exe().map_err(LabError::io("finding evertwin's own binary"))
}
