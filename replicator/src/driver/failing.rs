//! A primary whose disk fails hands its guest over: the standby's disk may be good.

use evertwin_protocol::{Command, Input, Report, Role};
use tracing::{error, warn};

use super::Driver;
use crate::wire::{HAND_OVER, VERSION};

impl Driver<'_> {
    /// A disk may have failed, of which the guest was not told.
    pub(super) fn look_for_failure(&mut self) {
        let Some(failure) = self.machine.take_disk_failure() else {
            return;
        };
        error!(failure, peer = %self.config.peer, "a disk fails here: the guest goes on at the peer");
        self.disk_fails = true;
        self.evacuate();
    }

    /// Hands the guest over, if it can be now. A link that has just broken may be back.
    fn evacuate(&mut self) {
        // Whatever the operator asked for ends in the same, or is told here that it did not.
        if self.disk_fails && self.twin.role() == Role::Protected && self.pending.is_none() {
            self.inputs.push_back(Input::Operator(Command::Switchover));
        }
    }

    /// Failures are kept from the guest as long as there is a standby that could do better.
    pub(super) fn withhold_failures(&mut self, report: Report) {
        match report {
            Report::Protected(_) | Report::Resumed(_) => {
                let moves = self.config.lease.is_none();
                let hands_over = moves && self.peer_version.min(VERSION) >= HAND_OVER;
                self.machine.withhold_failures(hands_over);
                self.evacuate();
            }
            Report::HandedOver(_) => self.disk_fails = false,
            Report::Solo(_)
            | Report::Syncing(_)
            | Report::TakenBack(_)
            | Report::Refused(Command::Switchover | Command::Leave, _) => {
                if std::mem::take(&mut self.disk_fails) {
                    warn!("the guest is told that its disk fails: there is no standby to go on");
                }
                self.machine.withhold_failures(false);
            }
            _ => {}
        }
    }
}
