//! Another level of protection under a guest that runs alone (PROTOCOL.md §12.5).

use std::net::SocketAddr;
use std::time::Instant;

use evertwin_protocol::Status;
use tracing::{info, warn};

use super::Driver;
use crate::config::{Error, LEASES};
use crate::control::{Level, NotDone, Outcome};
use crate::wire::put_off;

/// What a standby reads that comes to a guest whose level is none.
const UNPROTECTED: &str = "its guest is to run unprotected (`protection = \"none\"`): set another level there and say `evertwin level`, and this twin becomes its standby";

/// Whether a standby may come, and whether this twin may be one.
#[derive(Default)]
pub(super) struct Admission {
    /// The operator wants no standby for the guest that runs here.
    closed: bool,
    /// That a standby was kept out has been said.
    told: bool,
    /// Why the peer wants no standby at present, in its words.
    reason: Option<String>,
}

impl Admission {
    /// The guest that runs here is to be protected by nothing.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Why this twin can't be a standby at present.
    pub(super) fn reason(&self) -> Option<String> {
        self.reason.clone()
    }

    /// The peer fills this twin.
    pub(super) fn admitted(&mut self) {
        self.reason = None;
    }

    /// Whether a peer that greets like this has to stay away. Another primary never has: whose the guest is must be settled (T7).
    pub(super) fn keeps_out(&self, status: Status) -> bool {
        // For a test that has a standby come, and take over in the end, that nobody wants (I2).
        fail::fail_point!("level::admits", |_| false);
        self.closed && status != Status::Primary
    }
}

impl Driver<'_> {
    /// Another level from the next sync on, or none, and no sync.
    ///
    /// # Errors
    /// Those of the machine, which end the run. A level that can't be is told to who asked.
    pub(super) fn change_level(&mut self, level: Level) -> Result<Outcome, Error> {
        let lease = match level {
            Level::Disks { lease } if !LEASES.contains(&lease) => {
                return Ok(Err(NotDone::BadLease));
            }
            Level::Disks { lease } => Some(lease),
            Level::Guest => None,
            // Nothing is replicated in either way.
            Level::Nothing => self.config.lease,
        };
        if !self.twin.runs_alone() {
            return Ok(Err(NotDone::NotAlone));
        }
        // A peer of the other level that has just come was refused, or comes to be.
        self.lose_link("the level of protection changes");
        self.admission.closed = level == Level::Nothing;
        self.admission.told = false;
        if lease != self.config.lease {
            self.machine.replicate_all(lease.is_none())?;
            self.config.lease = lease;
            self.twin.set_lease(lease);
            self.refresh_identity();
        }
        self.drain()?;
        info!(
            protection = self.protection(),
            "the level of protection is another one from now on"
        );
        Ok(Ok(self.twin.generation()))
    }

    /// What is replicated, in the configuration's words.
    pub(super) fn protection(&self) -> &'static str {
        match self.config.lease {
            _ if self.admission.closed => "none",
            None => "ft",
            Some(_) => "ha",
        }
    }

    /// A peer would be the standby of a guest that is to have none: it is told, and comes back later.
    pub(super) fn keep_out(&mut self, id: u64, peer: SocketAddr) {
        self.network
            .refuse(id, put_off(UNPROTECTED), Instant::now());
        if !std::mem::replace(&mut self.admission.told, true) {
            info!(%peer, "a standby is kept out: the level of protection is none");
        }
    }

    /// The peer's guest is to have no standby at present.
    pub(super) fn kept_out(&mut self, peer: SocketAddr, reason: String) {
        // Said once, and not each time that this twin comes back.
        if self.admission.reason.as_ref() != Some(&reason) {
            warn!(%peer, reason, "the peer wants no standby now: waiting");
            self.admission.reason = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_standbys_are_kept_out() {
        let mut admission = Admission::default();
        assert!(!admission.keeps_out(Status::Cold));
        admission.closed = true;
        assert!(admission.keeps_out(Status::Cold));
        assert!(admission.keeps_out(Status::Synced { epoch: 3 }));
        assert!(!admission.keeps_out(Status::Primary));
    }
}
