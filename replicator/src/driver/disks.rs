//! Copies of disks, and points at which both twins' disks hold the same (PROTOCOL.md §4.4).

use std::time::{Duration, Instant};

use evertwin_protocol::Role;
use rustix::rand::{GetRandomFlags, getrandom};
use tracing::{info, warn};

use super::Driver;
use super::copying::CopyTold;
use super::frames::Trouble;
use crate::config::Error;
use crate::crash::crash_point;
use crate::machine::{CopyBase, DiskPlan, HeldDisk, NewBase};
use crate::wire::{Frame, Header, Kind, MIRROR, VERSION, WireError, copying, mirror};

/// Time from one point to the next. Each makes both hosts flush their disks once.
const INTERVAL: Duration = Duration::from_secs(10);

/// What is under way between the twins' disks.
pub(super) struct Disks {
    /// Primary: what the standby is to say before anything is copied, if it has not yet.
    awaits: Option<Awaits>,
    /// Primary: what the standby has said, until it is acted on.
    held: Option<Vec<HeldDisk>>,
    /// Standby: its disks can be filled.
    ready: bool,
    /// Primary: where the copies begin, and what the standby was told of them since.
    pub(super) told: Option<CopyTold>,
    /// Standby: where the copies begin that the primary is about to tell it.
    pub(super) base: Option<CopyBase>,
    /// Primary: the point that the standby was told, and the epoch that it begins with.
    point: Option<NewPoint>,
    next: Instant,
    /// The operator knows that a later copy need not be a full one.
    said: bool,
}

/// How far twins are in agreeing on a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// What the standby's disks hold.
    Held,
    /// How the primary copies its disks.
    Copies,
    /// That the standby's disks can be filled.
    Begun,
}

struct NewPoint {
    point: u128,
    epoch: u64,
    keep: Vec<u128>,
    told: bool,
}

impl Disks {
    pub(super) fn new() -> Self {
        Self {
            awaits: None,
            held: None,
            ready: false,
            told: None,
            base: None,
            point: None,
            next: Instant::now(),
            said: false,
        }
    }

    /// Primary: nothing may be copied yet.
    pub(super) fn awaits_standby(&self) -> bool {
        self.awaits.is_some()
    }

    /// Standby: its disks can be filled.
    pub(super) fn are_ready(&self) -> bool {
        self.ready
    }

    /// The link is gone, and with it what was asked and told.
    pub(super) fn forget(&mut self) {
        *self = Self::new();
    }
}

impl Driver<'_> {
    fn peer_mirrors(&self) -> bool {
        self.peer_version.min(VERSION) >= MIRROR
    }

    /// Primary: a sync begins. Its disks come first, and of them only what the standby lacks.
    pub(super) fn ask_for_held(&mut self) {
        self.disks.forget();
        if self.peer_mirrors() {
            self.disks.awaits = Some(Awaits::Held);
        } else {
            let plan = self.machine.plan_copies(None, None);
            self.copy_disks(&plan);
        }
    }

    /// Primary: says how the disks are copied, once the standby has said what they hold and writes are recorded: what the guest
    /// writes after the plan is made must be sent besides.
    pub(super) fn plan_copies(&mut self) {
        if self.starts_tracking || self.disks.awaits != Some(Awaits::Held) {
            return;
        }
        if let Some(held) = self.disks.held.take() {
            self.disks.awaits = Some(Awaits::Begun);
            let base = self.new_base();
            let plan = self.machine.plan_copies(Some(&held), base);
            self.copy_disks(&plan);
            if let Some(NewBase { point, .. }) = base {
                self.tell_base(point, &plan);
            }
            self.queue(mirror::copies_frame(self.twin.generation(), &plan.copies));
        }
    }

    fn copy_disks(&mut self, plan: &DiskPlan) {
        if let Some(round) = &mut self.sync {
            round.set_disks(plan.bytes);
        }
    }

    /// Standby: a sync begins.
    pub(super) fn tell_held(&mut self) -> Result<(), Error> {
        self.disks.forget();
        if !self.peer_mirrors() {
            self.machine.begin_copies(&[], None);
            return self.copies_begun(true).map(drop);
        }
        let held = self.machine.held_disks(mirror::MAX_RUNS);
        self.queue(mirror::held_frame(self.twin.generation(), &held));
        self.disks.awaits = Some(Awaits::Copies);
        Ok(())
    }

    /// Standby: its disks may be ready to be filled.
    pub(super) fn tell_begun(&mut self) -> Result<(), Error> {
        if self.copies_begun(false)? && self.disks.awaits == Some(Awaits::Begun) {
            self.disks.awaits = None;
            let frame = Frame::new(Kind::CopiesBegun, self.twin.generation(), 0, &[]);
            self.queue(frame);
        }
        Ok(())
    }

    fn copies_begun(&mut self, wait: bool) -> Result<bool, Error> {
        let begun = self.machine.copies_begun(wait).transpose()?.is_some();
        if begun {
            self.disks.ready = true;
            crash_point("fill::cleared");
        }
        Ok(begun)
    }

    /// A frame about disks.
    pub(super) fn take_disk_frame(
        &mut self,
        header: Header,
        payload: &[u8],
    ) -> Result<(), Trouble> {
        let kind = header.kind;
        let role = self.twin.role();
        // What a standby says of a point may be behind an exchange of roles.
        if kind != Kind::PointReached && header.generation != self.twin.generation() {
            return Err(WireError::OutOfPlace(kind).into());
        }
        let malformed = WireError::Malformed(kind);
        match (kind, role) {
            (Kind::DiskHeld, Role::Syncing) if self.disks.awaits == Some(Awaits::Held) => {
                self.disks.held = Some(mirror::held(payload).ok_or(malformed)?);
                self.plan_copies();
            }
            (Kind::DiskCopies, Role::Filling) if self.disks.awaits == Some(Awaits::Copies) => {
                let copies = mirror::copies(payload).ok_or(malformed)?;
                self.disks.awaits = Some(Awaits::Begun);
                let base = self.disks.base.take();
                self.machine.begin_copies(&copies, base.as_ref());
            }
            (Kind::CopiesBegun, Role::Syncing) if self.disks.awaits == Some(Awaits::Begun) => {
                payload.is_empty().then_some(()).ok_or(malformed)?;
                self.disks.awaits = None;
                if let Some(told) = &self.disks.told {
                    self.machine.base_is_known(told.point());
                }
            }
            (Kind::CopyBase, Role::Filling) if self.disks.awaits == Some(Awaits::Copies) => {
                self.disks.base = Some(copying::base(payload).ok_or(malformed)?);
            }
            (Kind::DisksCopied, Role::Filling) if self.disks.ready => {
                let to = copying::copied(payload).ok_or(malformed)?;
                self.machine.copied(to);
            }
            (Kind::SyncProgress, Role::Filling | Role::Synced) => {
                let status = copying::progress(payload).ok_or(malformed)?;
                self.sync_progress(status);
            }
            (Kind::DiskPoint, Role::Filling | Role::Synced) => {
                let (point, keep) = mirror::point(payload).ok_or(malformed)?;
                // It names an epoch that this twin has applied just now.
                if header.epoch == self.last_epoch {
                    self.machine.follow_point(point, &keep);
                }
            }
            // Late, or of a link that broke meanwhile: then another point follows.
            (Kind::PointReached, _) => {
                let point = mirror::reached(payload).ok_or(malformed)?;
                if self
                    .disks
                    .point
                    .take_if(|new| new.point == point && new.told)
                    .is_some()
                {
                    self.disks.next = Instant::now() + INTERVAL;
                    self.machine.confirm_point(point);
                }
            }
            (kind, _) => return Err(WireError::OutOfPlace(kind).into()),
        }
        Ok(())
    }

    /// Primary: an epoch is about to be captured, and may begin a point.
    pub(super) fn begin_point(&mut self, epoch: u64) {
        let due = self.peer_mirrors()
            && self.disks.point.is_none()
            && self.disks.next <= Instant::now()
            && self.machine.wants_point();
        if !due {
            return;
        }
        let Some(point) = new_point() else {
            self.disks.next = Instant::now() + INTERVAL;
            return;
        };
        self.disks.point = Some(NewPoint {
            point,
            epoch,
            keep: self.machine.begin_point(point),
            told: false,
        });
    }

    /// Primary: an epoch is on its way. If it begins a point, the standby is told behind it.
    pub(super) fn tell_point(&mut self, generation: u64, epoch: u64) {
        let new = self.disks.point.as_mut();
        let (Some(new), Some(link)) = (new, &mut self.network.link) else {
            return;
        };
        if new.epoch == epoch && !new.told {
            new.told = true;
            link.queue_bulk(mirror::point_frame(generation, epoch, new.point, &new.keep));
            self.crash_point_sent("point::told");
        }
    }

    /// The guest is here now: its disks have other things to do first.
    pub(super) fn delay_points(&mut self) {
        self.disks.forget();
        self.disks.next += INTERVAL;
    }

    /// Primary: the capture failed. A point begins with another epoch.
    pub(super) fn forget_point(&mut self) {
        self.disks.point = None;
    }

    /// A point may be durable here.
    pub(super) fn tell_reached(&mut self) {
        let Some(point) = self.machine.take_reached_point() else {
            return;
        };
        if self.runs_guest() {
            if !std::mem::replace(&mut self.disks.said, true) {
                info!("both disks know a point: a later copy needs only what changes from here on");
            }
        } else if self.twin.role() == Role::Synced && self.peer_mirrors() {
            crash_point("point::reached");
            self.queue(mirror::reached_frame(self.twin.generation(), point));
        }
    }
}

/// A name for a point.
pub(super) fn new_point() -> Option<u128> {
    let mut bytes = [0; 16];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => Some(u128::from_le_bytes(bytes)),
        Err(error) => {
            warn!(%error, "no name for a point of the disks");
            None
        }
    }
}
