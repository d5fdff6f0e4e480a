//! A primary whose disk fails hands its guest over: the standby's disk may be good. A standby whose disk fails leaves, and says why.

use evertwin_protocol::{Command, Input, Report, Role};
use tracing::{error, warn};

use super::Driver;
use crate::config::Error;
use crate::wire::{DISK_FAILED, Frame, HAND_OVER, Kind, VERSION, WireError};

/// In what a disk has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fails {
    /// A request, which stays in flight.
    Request,
    /// A block that the guest has not asked for, found by a scrub.
    Block,
}

/// Longest reason in bytes.
const MAX_REASON: usize = 1000;

impl Driver<'_> {
    /// This run has failed. If that is so because its disks could not follow the peer's, the peer is told, and whoever has begun
    /// the run can begin another.
    pub(super) fn name_disk_failure(&mut self, error: Error) -> Error {
        let follows = matches!(
            self.twin.role(),
            Role::Filling | Role::Synced | Role::Starting
        );
        let (true, Error::Machine(_), Err(failure)) =
            (follows, &error, self.machine.check_repeated())
        else {
            return error;
        };
        self.leave_for_disk(failure.to_string())
    }

    /// A disk here can't follow the peer's: the peer is told why. The run ends with this error.
    pub(super) fn leave_for_disk(&mut self, failure: String) -> Error {
        if self.peer_version.min(VERSION) >= DISK_FAILED {
            let reason = &failure.as_bytes()[..failure.floor_char_boundary(MAX_REASON)];
            self.queue(Frame::new(
                Kind::DiskFailed,
                self.twin.generation(),
                0,
                reason,
            ));
            // The link ends anyway.
            let _ = self.say_goodbye(&mut Vec::new());
        }
        Error::StandbyDisk(failure)
    }

    /// The peer can't be a standby for now.
    pub(super) fn peers_disk_fails(&mut self, reason: &[u8]) -> Result<(), WireError> {
        let reason = std::str::from_utf8(reason).ok();
        let reason = reason.filter(|reason| reason.len() <= MAX_REASON);
        let reason = reason.ok_or(WireError::Malformed(Kind::DiskFailed))?;
        let reason = reason.replace(char::is_control, " ");
        error!(
            reason,
            "a disk of the peer's fails: it is no standby until that is repaired"
        );
        self.peer_disk_failure = Some(reason);
        Ok(())
    }

    /// A scrub has found blocks that can't be read here. The guest has not asked for them: it goes where they can be, before it does.
    pub(super) fn blocks_fail(&mut self) {
        if !self.hands_over() {
            return error!("the guest stays on this disk: its roles can't be exchanged");
        }
        error!(peer = %self.config.peer, "a disk fails here: the guest goes on at the peer");
        self.disk_fails.get_or_insert(Fails::Block);
        self.evacuate();
    }

    /// Whether a guest can go on at the peer without a restart.
    fn hands_over(&self) -> bool {
        self.config.lease.is_none() && self.peer_version.min(VERSION) >= HAND_OVER
    }

    /// A disk may have failed, of which the guest was not told.
    pub(super) fn look_for_failure(&mut self) {
        let Some(failure) = self.machine.take_disk_failure() else {
            return;
        };
        error!(failure, peer = %self.config.peer, "a disk fails here: the guest goes on at the peer");
        self.disk_fails = Some(Fails::Request);
        self.evacuate();
    }

    /// Hands the guest over, if it can be now. A link that has just broken may be back.
    fn evacuate(&mut self) {
        if self.disk_fails.is_some() {
            self.exchange_roles();
        }
    }

    /// Whether there is somebody to exchange roles with, and nobody has asked for something else.
    pub(super) fn can_exchange_roles(&self) -> bool {
        // Whatever the operator asked for ends in the same, or is told here that it did not.
        self.twin.role() == Role::Protected && self.pending.is_none()
    }

    /// Asks for it as an operator would.
    pub(super) fn exchange_roles(&mut self) {
        if self.can_exchange_roles() {
            self.inputs.push_back(Input::Operator(Command::Switchover));
        }
    }

    /// Failures are kept from the guest as long as there is a standby that could do better.
    pub(super) fn withhold_failures(&mut self, report: Report) {
        match report {
            Report::StandbyReady(_) => self.config.disk_failure = None,
            Report::Protected(_) | Report::Resumed(_) => {
                self.peer_disk_failure = None;
                let hands_over = self.hands_over();
                self.machine.withhold_failures(hands_over);
                self.evacuate();
            }
            Report::HandedOver(_) => self.disk_fails = None,
            // Of something else than a failure, which can still come.
            Report::Refused(..) if self.disk_fails.is_none() => {}
            Report::Solo(_)
            | Report::Syncing(_)
            | Report::TakenBack(_)
            | Report::Refused(Command::Switchover | Command::Leave, _) => {
                match self.disk_fails.take() {
                    Some(Fails::Request) => {
                        warn!("the guest is told that its disk fails: there is no standby to go on")
                    }
                    Some(Fails::Block) => warn!(
                        "the guest stays on a disk with blocks that can't be read: there is no standby to go on"
                    ),
                    None => {}
                }
                self.machine.withhold_failures(false);
            }
            _ => {}
        }
    }
}
