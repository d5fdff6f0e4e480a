//! Disks that grow under the running guest (PROTOCOL.md §4.7): first there is room on the standby's host, then here, then the guest is told.

use std::sync::mpsc::Sender;

use evertwin_protocol::{Input, Role};
use tracing::{info, warn};

use super::Driver;
use crate::config::Error;
use crate::control::NoGrowth;
use crate::machine::{DiskRoom, DiskSize, Identity, MachineError};
use crate::wire::{Difference, GROW, Header, Kind, VERSION, WireError, growth};

/// A disk that is about to grow, asked for by the operator.
pub(super) struct Growth {
    room: DiskRoom,
    stage: Stage,
    reply: Sender<Result<u64, NoGrowth>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The standby makes room.
    There,
    /// Room is made here. Whether there is a standby that has made it.
    Here { protected: bool },
    /// The guest knows; the standby will, with the first epoch after this one.
    Told { after: u64 },
}

impl Driver<'_> {
    /// The operator wants a disk to grow, to so many bytes or to what its image has.
    pub(super) fn begin_growth(
        &mut self,
        disk: u32,
        wanted: Option<u64>,
        reply: Sender<Result<u64, NoGrowth>>,
    ) {
        if let Err(why) = self.try_growth(disk, wanted, &reply) {
            // Who asked may have given up, here and below.
            let _ = reply.send(Err(why));
        }
    }

    fn try_growth(
        &mut self,
        disk: u32,
        wanted: Option<u64>,
        reply: &Sender<Result<u64, NoGrowth>>,
    ) -> Result<(), NoGrowth> {
        if self.growth.is_some() {
            return Err(NoGrowth::Running);
        }
        let protected = self.twin.role() == Role::Protected;
        if !self.runs_guest() {
            return Err(NoGrowth::NotPrimary);
        }
        if !protected && !self.twin.runs_alone() {
            return Err(NoGrowth::NotNow);
        }
        if protected && self.peer_version.min(VERSION) < GROW {
            return Err(NoGrowth::PeerTooOld);
        }
        let here = |error: MachineError| NoGrowth::Here(error.to_string());
        let bytes = self.machine.growth(disk, wanted).map_err(here)?;
        let room = DiskRoom {
            size: DiskSize { disk, bytes },
            extend: wanted.is_some(),
        };
        info!(disk, bytes, "a disk is to grow");
        let mut growth = Growth {
            room,
            stage: Stage::Here { protected: false },
            reply: reply.clone(),
        };
        if protected && !skips_standby() {
            growth.stage = Stage::There;
            self.queue(growth::room_frame(self.twin.generation(), room));
        } else {
            self.machine.begin_room(room);
        }
        self.growth = Some(growth);
        Ok(())
    }

    /// A frame about a disk that grows.
    pub(super) fn take_growth_frame(
        &mut self,
        header: Header,
        payload: &[u8],
    ) -> Result<(), WireError> {
        let kind = header.kind;
        let malformed = WireError::Malformed(kind);
        match (kind, self.twin.role()) {
            (Kind::DiskRoom, Role::Synced) if header.generation == self.twin.generation() => {
                let room = growth::room(payload).ok_or(malformed)?;
                self.machine.begin_room(room);
            }
            // It may come late, behind the end of what it was asked for.
            (Kind::DiskRoomMade, _) => {
                let (size, failure) = growth::made(payload).ok_or(malformed)?;
                self.standby_has_room(size, failure);
            }
            (kind, _) => return Err(WireError::OutOfPlace(kind)),
        }
        Ok(())
    }

    fn standby_has_room(&mut self, size: DiskSize, failure: Option<String>) {
        let asked = |growth: &&mut Growth| growth.room.size == size && growth.stage == Stage::There;
        let Some(growth) = self.growth.as_mut().filter(asked) else {
            return;
        };
        if let Some(failure) = failure {
            return self.end_growth(Err(NoGrowth::There(failure)));
        }
        growth.stage = Stage::Here { protected: true };
        let room = growth.room;
        self.machine.begin_room(room);
    }

    /// Room may have been made.
    pub(super) fn look_for_room(&mut self) {
        let Some((size, result)) = self.machine.take_room() else {
            return;
        };
        if self.twin.role() == Role::Synced {
            let failure = result.err().map(|error| error.to_string());
            let frame = growth::made_frame(self.twin.generation(), size, failure.as_deref());
            return self.queue(frame);
        }
        let Some(growth) = self.growth.as_ref() else {
            return;
        };
        let Stage::Here { protected } = growth.stage else {
            return;
        };
        if growth.room.size != size {
            return;
        }
        if let Err(error) = result {
            return self.end_growth(Err(NoGrowth::Here(error.to_string())));
        }
        // A standby that came or went meanwhile has another size in mind.
        let as_it_was = match protected {
            true => self.twin.role() == Role::Protected,
            false => {
                self.twin.runs_alone() || self.twin.role() == Role::Protected && skips_standby()
            }
        };
        if !as_it_was {
            return self.end_growth(Err(NoGrowth::StandbyLost));
        }
        self.grow(size, protected);
    }

    /// Tells the guest.
    fn grow(&mut self, size: DiskSize, protected: bool) {
        if !protected && !skips_standby() {
            // A peer that has just come was told the old size.
            self.lose_link("a disk grows");
        }
        if let Err(error) = self.machine.grow_disk(size) {
            return self.end_growth(Err(NoGrowth::Here(error.to_string())));
        }
        self.refresh_identity();
        let DiskSize { disk, bytes } = size;
        info!(disk, bytes, "a disk has grown, and the guest is told");
        if !protected {
            return self.end_growth(Ok(bytes));
        }
        let shipped = self.shipments.back().map(|shipment| shipment.epoch);
        let after = shipped.unwrap_or(self.last_epoch);
        if let Some(growth) = &mut self.growth {
            growth.stage = Stage::Told { after };
        }
        // A guest that does nothing makes no epochs.
        self.inputs.push_back(Input::OutputWaiting);
    }

    /// An epoch has committed: the standby may know the new size.
    pub(super) fn growth_committed(&mut self, through: u64) {
        if let Some(Growth {
            stage: Stage::Told { after },
            room,
            ..
        }) = &self.growth
            && through > *after
        {
            let bytes = room.size.bytes;
            self.end_growth(Ok(bytes));
        }
    }

    /// The twin's role may be another one.
    pub(super) fn settle_growth(&mut self) {
        let role = self.twin.role();
        match self.growth.as_ref().map(|growth| growth.stage) {
            Some(Stage::There) if role != Role::Protected => {
                self.end_growth(Err(NoGrowth::StandbyLost));
            }
            // The guest was told, and goes on here.
            Some(Stage::Told { .. }) if role == Role::Solo => {
                let bytes = self
                    .growth
                    .as_ref()
                    .map_or(0, |growth| growth.room.size.bytes);
                self.end_growth(Ok(bytes));
            }
            Some(Stage::Told { .. }) if !self.runs_guest() => {
                self.end_growth(Err(NoGrowth::StandbyLost));
            }
            _ => {}
        }
    }

    fn end_growth(&mut self, outcome: Result<u64, NoGrowth>) {
        let Some(growth) = self.growth.take() else {
            return;
        };
        if let Err(why) = &outcome {
            warn!(disk = growth.room.size.disk, %why, "a disk has not grown");
        }
        let _ = growth.reply.send(outcome);
    }

    pub(super) fn refresh_identity(&mut self) {
        self.identity = Identity {
            lease: self.config.lease,
            ..self.machine.identity()
        };
    }

    /// Standby: whether its images have room for disks as large as the primary's.
    pub(super) fn check_rooms(&self) -> Result<(), Difference> {
        let rooms = self.machine.disk_rooms();
        for DiskSize { disk, bytes } in &self.peer_sizes {
            let room = rooms.iter().find(|room| room.disk == *disk);
            if let Some(room) = room.filter(|room| room.bytes < *bytes) {
                return Err(Difference::Room {
                    disk: *disk,
                    theirs: *bytes,
                    ours: room.bytes,
                });
            }
        }
        Ok(())
    }

    /// Standby: its disks are about to become copies. They are as large as the primary's then.
    pub(super) fn fit_disks(&mut self) -> Result<(), Error> {
        if !self.peer_sizes.is_empty() {
            self.machine.fit_disks(&self.peer_sizes)?;
            self.refresh_identity();
        }
        Ok(())
    }
}

/// Never, but for a test that breaks I10 on purpose.
fn skips_standby() -> bool {
    fail::fail_point!("grow::alone", |_| true);
    false
}
