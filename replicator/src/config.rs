//! Configuration of a twin, and how its run ends.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;

use evertwin_protocol::NodeId;

use crate::arbiter::{ArbiterError, Notes};
use crate::control::Control;
use crate::machine::MachineError;
use crate::tls::{Security, TlsError};
use crate::uplink::Uplink;
use crate::wire::{Difference, WireError};

/// How one twin is set up.
pub struct Config {
    /// This twin's name.
    pub node: NodeId,
    /// The other twin's name. The twin with the lower name listens, the other dials.
    pub peer: NodeId,
    /// Addresses of the twin that listens (the one with the lower name), one for each path between
    /// the hosts: 1 to 4. If a path breaks or is silent for half of `timeout`, the next one is taken.
    pub addresses: Vec<SocketAddr>,
    /// How the link is protected.
    pub security: Security,
    /// Only the guest's disks are replicated, and a standby boots it: how long a primary's guest may
    /// run on the standby's last word. None: all of the guest is replicated. 200 ms to 60 s.
    pub lease: Option<Duration>,
    /// Longest epoch; waiting output ends it early. 1 ms to 10 s.
    pub epoch: Duration,
    /// Longest silence on a healthy link. At least 1 ms.
    pub heartbeat: Duration,
    /// Silence after which the peer counts as dead. At least twice `heartbeat`.
    pub timeout: Duration,
    /// After so long a silence it is looked whether the peer's host is there: one that does not answer is gone, and `timeout` is not
    /// waited for. Longer than `heartbeat`. None: nobody looks.
    pub suspect: Option<Duration>,
    /// How long twins wait for each other after their link broke, before they ask the arbiter who
    /// goes on: output is held meanwhile. At most 10 s; none is half of `timeout`. Who is seen to be dead
    /// is not waited for.
    pub reconnect: Option<Duration>,
    /// Bytes per second that the copy of disks and memory may send; what changes meanwhile comes on top. None: as many as the
    /// link takes.
    pub resync_rate: Option<u64>,
    /// A standby looks for the next epoch for half a millisecond before it sleeps.
    pub poll: bool,
    /// Pages and state that have changed travel as what changed in them. To know that, this many bytes of pages that were sent
    /// last are kept. None: all travel whole.
    pub delta_cache: Option<usize>,
    /// Over a link that is slow, all that is large travels packed.
    pub pack: bool,
    /// Time from the end of one comparison of both twins' disks to the next one. None: only the operator asks for them.
    pub scrub_every: Option<Duration>,
    /// Bytes per second of a disk that are compared at most. At least 1 MiB.
    pub scrub_rate: u64,
    /// Why the last run of this twin has ended with [`Error::StandbyDisk`], if it has: its status says so until its disk holds
    /// a whole copy.
    pub disk_failure: Option<String>,
    /// Interfaces of this host without which the guest reaches nobody.
    pub uplinks: Vec<Uplink>,
    /// An eventfd: when it becomes readable the run ends. A primary that is stopped fences
    /// its guest, and its standby takes over.
    pub stop: OwnedFd,
    /// Where an operator's questions and commands come from.
    pub control: Option<Control>,
    /// Without an arbiter: what this host remembers of who has the right.
    pub notes: Option<Notes>,
}

/// Why a run ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest ended by itself (reset, shutdown or panic) in this process.
    GuestExited,
    /// The guest ended by itself in the other twin.
    PeerGuestExited,
    /// The other twin has the right to run the guest: it was stopped here for good.
    Fenced,
    /// The run was asked to stop.
    Stopped,
    /// The run was asked to end without harm to the guest, which goes on in the other twin.
    Left,
}

/// A run failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that can't work.
    #[error("{0}")]
    Setting(&'static str),
    /// The listening address can't be used.
    #[error(
        "can't listen on {address}: {source}: check that the address is this host's and that no other twin uses it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// io_uring can't be used.
    #[error("io_uring failed: {0}: the kernel must allow it (sysctl kernel.io_uring_disabled=0)")]
    Ring(io::Error),
    /// A descriptor or thread could not be had.
    #[error("the system refused a resource: {0}")]
    System(#[from] io::Error),
    /// The peer can't be the other half of this pair.
    #[error("twin at {address}: {difference}")]
    Peer {
        /// The peer's address.
        address: SocketAddr,
        /// What differs.
        difference: Difference,
    },
    /// The peer refused this twin.
    #[error("twin at {address} refused this one: {reason}")]
    Refused {
        /// The peer's address.
        address: SocketAddr,
        /// The peer's words.
        reason: String,
    },
    /// The peer does not speak our protocol.
    #[error("{address}: {source}")]
    Wire {
        /// The peer's address.
        address: SocketAddr,
        /// What was received.
        source: WireError,
    },
    /// Without an arbiter: what this host must remember can't be read or written.
    #[error("what this host must remember of its right can't be read or written: {0}")]
    Note(ArbiterError),
    /// The peer can't be trusted, or does not trust this twin.
    #[error("twin at {address}: {source}")]
    Tls {
        /// The peer's address.
        address: SocketAddr,
        /// What is wrong.
        source: TlsError,
    },
    /// A standby's disk failed: its guest is elsewhere, and a run that begins anew may be its standby again.
    #[error("a disk fails here: {0}")]
    StandbyDisk(String),
    /// The machine failed.
    #[error("the machine failed: {0}")]
    Machine(#[from] MachineError),
}

/// How long a lease may be.
pub(crate) const LEASES: RangeInclusive<Duration> =
    Duration::from_millis(200)..=Duration::from_secs(60);

/// Most paths between two twins.
pub const MAX_PATHS: usize = 4;

impl Config {
    fn on_loopback(&self) -> bool {
        self.addresses
            .iter()
            .all(|address| address.ip().is_loopback())
    }

    /// Is there more than one path?
    pub(crate) fn has_paths(&self) -> bool {
        self.addresses.len() > 1
    }

    /// How long twins wait for each other after their link broke.
    pub(crate) fn patience(&self) -> Duration {
        let most = Duration::from_secs(10);
        self.reconnect.unwrap_or((self.timeout / 2).min(most))
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let millis = Duration::from_millis;
        let wrong = if self.node == self.peer {
            "both twins have the same name: name the nodes differently"
        } else if !(millis(1)..=millis(10_000)).contains(&self.epoch) {
            "replication.epoch must be between 1ms and 10s"
        } else if self.lease.is_some_and(|lease| !LEASES.contains(&lease)) {
            "replication.lease must be between 200ms and 60s"
        } else if self.heartbeat < millis(1) {
            "replication.heartbeat must be at least 1ms"
        } else if self.patience() > millis(10_000) {
            "replication.reconnect must be 10s at most"
        } else if self.timeout < self.heartbeat * 2 {
            "replication.timeout must be at least twice the heartbeat"
        } else if self.suspect.is_some_and(|after| after <= self.heartbeat) {
            "replication.suspect must be longer than the heartbeat"
        } else if self.scrub_rate < 1 << 20 {
            "replication.scrub_rate must be at least 1 MiB a second"
        } else if !(1..=MAX_PATHS).contains(&self.addresses.len()) {
            "a link needs one address, and has four at most"
        } else if matches!(self.security, Security::Plaintext) && !self.on_loopback() {
            "a link that leaves this host must be secured: plaintext is for addresses of the loopback only"
        } else {
            return Ok(());
        };
        Err(Error::Setting(wrong))
    }
}
