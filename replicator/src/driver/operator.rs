//! Answers to the operator.

use std::sync::mpsc::Sender;
use std::time::Duration;

use evertwin_protocol::{Command, End, Input, Record, Report, Role};

use super::Driver;
use crate::config::Error;
use crate::control::{Asked, LeaseStatus, NotDone, Outcome, SyncStatus, TwinStatus};
use crate::ring::Op;
use crate::wire::{HAND_OVER, VERSION};

/// A command that is being obeyed.
pub(super) struct Pending {
    command: Command,
    reply: Sender<Outcome>,
}

impl Driver<'_> {
    /// The operator asks.
    pub(super) fn asked(&mut self) -> Result<(), Error> {
        while let Some(asked) = self.config.control.as_ref().and_then(|end| end.next()) {
            match asked {
                // Who asked may have given up, here and below: nobody is told then.
                Asked::Status(reply) => drop(reply.send(self.status())),
                Asked::Command(command, reply) => self.obey(command, reply)?,
                Asked::Scrub(memory, reply) => drop(reply.send(self.begin_scrub(memory))),
                Asked::Grow(disk, bytes, reply) => self.begin_growth(disk, bytes, reply),
                Asked::Level(level, reply) => drop(reply.send(self.change_level(level)?)),
            }
        }
        self.arm_control().map_err(Error::Ring)
    }

    pub(super) fn arm_control(&mut self) -> std::io::Result<()> {
        match &self.config.control {
            Some(control) => self.ring.poll_readable(control.waiting(), Op::Control),
            None => Ok(()),
        }
    }

    fn obey(&mut self, command: Command, reply: Sender<Outcome>) -> Result<(), Error> {
        let hands_over = matches!(command, Command::Switchover | Command::Leave)
            && self.twin.role() == Role::Protected;
        let moves = self.config.lease.is_none();
        let refused = if self.pending.is_some() {
            Some(NotDone::Busy)
        } else if moves && hands_over && self.peer_version.min(VERSION) < HAND_OVER {
            Some(NotDone::PeerTooOld)
        } else {
            None
        };
        if let Some(why) = refused {
            let _ = reply.send(Err(why));
            return Ok(());
        }
        tracing::info!(?command, "the operator asks");
        self.pending = Some(Pending { command, reply });
        self.inputs.push_back(Input::Operator(command));
        self.drain()
    }

    /// Tells who waits for a command how it ended, if this is its end.
    pub(super) fn settle(&mut self, report: Report) {
        let Some(Pending { command, .. }) = &self.pending else {
            return;
        };
        let outcome = match (report, command) {
            (Report::Refused(refused, why), command) if refused == *command => {
                Err(NotDone::Refused(why))
            }
            (Report::HandedOver(generation), Command::Switchover) => Ok(generation),
            (Report::TakenBack(_), Command::Switchover | Command::Leave) => Err(NotDone::TakenBack),
            (Report::Fenced | Report::NotNamed, _) => Err(NotDone::Lost),
            (Report::Solo(generation), Command::Promote) => Ok(generation),
            _ => return,
        };
        self.answer(outcome);
    }

    /// The same, for the end of the twin.
    pub(super) fn settle_end(&mut self, end: End) {
        self.answer(if end == End::Left {
            Ok(self.twin.generation())
        } else {
            Err(NotDone::Ended)
        });
    }

    fn answer(&mut self, outcome: Outcome) {
        if let Some(pending) = self.pending.take() {
            let _ = pending.reply.send(outcome);
        }
    }

    /// A primary's sync of its standby, or a standby's by its primary.
    fn sync_status(&self) -> Option<SyncStatus> {
        match self.twin.role() {
            Role::Filling => self.followed_sync,
            _ => self.sync.as_ref().map(super::sync::SyncRound::status),
        }
    }

    /// Who may run a guest whose disks only are replicated.
    fn lease_status(&self) -> Option<LeaseStatus> {
        if self.admission.is_closed() {
            return None;
        }
        let length = self.config.lease?;
        let (node, peer) = (self.config.node, self.config.peer);
        let (holder, end) = match self.twin.role() {
            Role::Starting | Role::Ended => return None,
            Role::Filling | Role::Synced | Role::Promoting => (peer, None),
            Role::Lapsing => (peer, self.lease_end),
            _ => (node, self.lease_end),
        };
        let left = end.map(|end| end - self.now());
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(LeaseStatus {
            holder: holder.to_string(),
            length_ms: ms(length),
            left_ms: left.map(ms),
        })
    }

    fn status(&self) -> TwinStatus {
        let link = self.network.link.as_ref();
        TwinStatus {
            node: self.config.node.to_string(),
            peer: self.config.peer.to_string(),
            role: match self.twin.role() {
                Role::Starting => "starting",
                Role::Solo if self.admission.is_closed() => "unprotected",
                Role::Solo => "solo",
                // It is not protected before the standby is named.
                Role::Syncing | Role::Naming => "syncing",
                Role::Protected => "protected",
                Role::Interrupted => "reconnecting",
                Role::Holding => "holding",
                Role::HandingOver => "handing-over",
                Role::Filling => "filling",
                Role::Synced => "standby",
                Role::Promoting => "promoting",
                Role::Lapsing => "waiting-to-boot",
                Role::Ended => "ended",
            }
            .to_owned(),
            protection: self.protection().to_owned(),
            generation: self.twin.generation(),
            link: link
                .filter(|link| link.verified)
                .map(|link| link.address.to_string()),
            epoch: self.last_epoch,
            sync: self.sync_status(),
            lease: self.lease_status(),
            disk_failure: self.config.disk_failure.clone(),
            peer_disk_failure: self.peer_disk_failure.clone(),
            uplinks: self.uplink_status(),
            peer_uplinks: self.peer_uplinks(),
            kept_out: self.admission.reason(),
            scrub: self.scrub.status(),
        }
    }

    /// Without an arbiter: what is noted is known again after a restart of this host.
    pub(super) fn note(&mut self, record: Record) -> Result<(), Error> {
        match &mut self.config.notes {
            Some(notes) => notes.write(&record).map_err(Error::Note),
            None => Ok(()),
        }
    }
}
