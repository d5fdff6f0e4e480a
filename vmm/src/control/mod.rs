//! How operators talk to a running twin: one line of JSON each way over a Unix socket.

mod client;
mod server;

pub use client::{ClientError, ask, sockets};
pub use server::{Desk, serve};

use std::path::PathBuf;

use evertwin_replicator::control::TwinStatus;
use serde::{Deserialize, Serialize};

/// What is asked of a twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// What does it do?
    Status,
    /// Exchange the roles.
    Switchover,
    /// Go on alone: the operator vouches that the peer is dead.
    Promote,
    /// End, without harm to the guest.
    Leave,
    /// Replicate all of the guest from the next sync on, or only its disks.
    Level {
        /// For its disks alone: how long the guest may run on the standby's last word, in milliseconds.
        lease_ms: Option<u64>,
    },
    /// Replicate nothing, and admit no standby.
    Unprotect,
    /// Have a disk grow under the guest.
    Grow {
        /// Its number.
        disk: u32,
        /// Its new size in bytes; without one what its image has by now.
        bytes: Option<u64>,
    },
    /// Compare both twins' disks.
    Scrub {
        /// And their memories.
        memory: bool,
    },
    /// Arm a named point of the product for a test.
    #[cfg(feature = "failpoints")]
    Failpoint {
        /// Its name.
        name: String,
        /// What happens there, as in the environment variable `FAILPOINTS`.
        actions: String,
    },
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<VmStatus>),
    /// To [`Request::Scrub`]: it has begun.
    Scrubbing {
        /// Number of the pass, of which [`Request::Status`] tells.
        number: u64,
    },
    /// To [`Request::Grow`]: it has, on both hosts.
    Grown {
        /// Its new size in bytes.
        bytes: u64,
    },
    /// The others were obeyed.
    Done {
        /// The generation now in force.
        generation: u64,
    },
    /// To [`Request::Failpoint`].
    #[cfg(feature = "failpoints")]
    Armed,
    /// It was not, and why.
    Error(String),
}

/// A VM's twin as shown to an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// The VM's name.
    pub vm: String,
    /// Its twin on this host.
    #[serde(flatten)]
    pub twin: TwinStatus,
}

/// Where twins have their sockets if the configuration does not say.
pub fn default_directory() -> PathBuf {
    let of_user =
        std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::getuid().is_root());
    let runtime = of_user.map_or_else(|| PathBuf::from("/run"), PathBuf::from);
    runtime.join("evertwin")
}

/// The socket of one twin if the configuration does not say.
pub fn default_socket(vm: &str, node: &str) -> PathBuf {
    default_directory().join(format!("{vm}-{node}.sock"))
}
