//! Copies of disks that go on where they stopped, and what a standby is told of its sync (PROTOCOL.md §4.4).

use std::time::{Duration, Instant};

use super::Driver;
use super::disks::new_point;
use crate::control::SyncStatus;
use crate::machine::{CopyBase, DiskPlan, DiskPosition, NewBase};
use crate::wire::{GO_ON, VERSION, copying, mirror};

/// How often the standby is told how far copies have come. What comes after that is sent again if they are interrupted.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same when all is sent, and only the primary's own disks have to be flushed.
const AT_THE_END: Duration = Duration::from_millis(100);

/// What the standby was told of its copies.
pub(super) struct CopyTold {
    point: u128,
    /// How far they have come.
    to: DiskPosition,
    /// When it was last to be told, and how far they had come by then.
    tried: Instant,
    tried_at: DiskPosition,
}

impl CopyTold {
    /// The name of where they began.
    pub(super) fn point(&self) -> u128 {
        self.point
    }
}

impl Driver<'_> {
    pub(super) fn peer_goes_on(&self) -> bool {
        self.peer_version.min(VERSION) >= GO_ON
    }

    /// Primary: a name for where the copies begin that are about to be planned, for a standby that can use it.
    pub(super) fn new_base(&self) -> Option<NewBase> {
        if !self.peer_goes_on() {
            return None;
        }
        Some(NewBase {
            point: new_point()?,
            runs: mirror::MAX_RUNS,
        })
    }

    /// Primary: tells the standby that name, and what its disks lack then.
    pub(super) fn tell_base(&mut self, point: u128, plan: &DiskPlan) {
        let base = CopyBase {
            point,
            lacks: plan.lacks.clone(),
        };
        if let Some(frame) = copying::base_frame(self.twin.generation(), &base) {
            self.queue(frame);
            self.disks.told = Some(CopyTold {
                point,
                to: DiskPosition::default(),
                tried: Instant::now(),
                tried_at: DiskPosition::default(),
            });
        }
    }

    /// Primary: tells the standby now and then how far its disks' copies have come, behind all that was read of them. What it notes then
    /// is only right as long as this twin remembers what its guest has written since they began.
    pub(super) fn tell_copied(&mut self) {
        if self.disks.awaits_standby() {
            return;
        }
        let (Some(told), Some(round)) = (&mut self.disks.told, &self.sync) else {
            return;
        };
        let to = round.copied();
        let pace = match to {
            DiskPosition::END => AT_THE_END,
            _ => INTERVAL,
        };
        // A short sync is over soon after its disks.
        let at_the_end = to == DiskPosition::END && told.tried_at != to;
        if to == told.to || (told.tried.elapsed() < pace && !at_the_end) {
            return;
        }
        (told.tried, told.tried_at) = (Instant::now(), to);
        if self.machine.knows_point(told.point)
            && let Some(link) = &mut self.network.link
        {
            told.to = to;
            link.queue_bulk(copying::copied_frame(round.generation(), to));
        }
    }

    /// Standby: how far its sync has come at the primary.
    pub(super) fn sync_progress(&mut self, status: SyncStatus) {
        super::sync::log(&status);
        self.followed_sync = Some(status);
    }
}
