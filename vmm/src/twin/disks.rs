//! Disks that have a copy at the twin: what is copied, and points at which both hold the same (I10).

use std::io;

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use evertwin_devices::virtio::block::{Block, BlockSet, CopyBase, Distrust, Held, Point};
use evertwin_devices::virtio::{Device, DiskWrite as DeviceWrite};
use evertwin_replicator::machine::{
    CopyBase as NamedBase, DiskCheck, DiskChecked, DiskCopy, DiskPlan, DiskPosition, DiskRoom,
    HeldDisk, LackingDisk, MachineError, NewBase, RoomMade,
};

use super::applier::{Applier, Copy, Task};
use super::{Machine, lock};

/// What is under way with the disks of one twin.
#[derive(Debug)]
pub(super) struct Disks {
    /// Standby: the disks are being made copies, of which some are not whole yet.
    copying: bool,
    /// Primary: the point that begins with the next capture, and older ones that are of use.
    due: Option<(Point, Vec<Point>)>,
    /// Standby: the disks are being prepared.
    begun: Option<Receiver<io::Result<()>>>,
    /// The point that is being made durable.
    followed: Option<Point>,
    /// Standby: does what is to be done with them.
    applier: Applier,
}

/// What both twins' words for it are.
fn ids(points: &[Point]) -> Vec<u128> {
    points.iter().map(|point| point.0).collect()
}

/// Calls for each writable disk.
pub(super) fn each(machine: &Machine, mut with: impl FnMut(&mut Block)) {
    for device in machine.devices() {
        if let Some(disk) = lock(device).disk() {
            with(disk);
        }
    }
}

/// What the disks hold, in so many runs of blocks at most.
pub(super) fn held(machine: &Machine, runs: usize) -> Vec<HeldDisk> {
    let mut disks = 0;
    each(machine, |_| disks += 1);
    let mut all = Vec::new();
    each(machine, |disk| {
        let Held {
            points,
            changed,
            distrust,
        } = disk.held();
        // One that can't tell is none.
        let unfinished = disk.copy_mark().is_unfinished().unwrap_or(true);
        let unfinished = unfinished.then_some(Distrust::Unfinished);
        all.push(HeldDisk {
            disk: disk.number(),
            points: ids(&points),
            changed: changed.runs(runs / disks),
            distrust: distrust.or(unfinished).map(|why| why.to_string()),
        });
    });
    all
}

/// Decides how each disk is copied, and says so.
pub(super) fn plan(
    machine: &Machine,
    held: Option<&[HeldDisk]>,
    base: Option<NewBase>,
) -> DiskPlan {
    let mut disks = 0;
    each(machine, |_| disks += 1);
    let mut all = DiskPlan::default();
    each(machine, |disk| {
        let number = disk.number();
        let theirs = held.and_then(|held| held.iter().find(|held| held.disk == number));
        let distrust = theirs.and_then(|held| held.distrust.as_deref());
        let theirs = theirs.map(|held| {
            let mut changed = BlockSet::default();
            let runs = held.changed.iter().cloned();
            runs.for_each(|run| changed.insert(run));
            Held {
                points: held.points.iter().copied().map(Point).collect(),
                changed,
                distrust: None,
            }
        });
        let plan = disk.plan_copy(theirs.as_ref(), base.map(|base| Point(base.point)));
        let bytes = plan.bytes;
        match plan.from {
            Some(_) => {
                // What is known of a disk that is no whole copy is what it lacks of one.
                let copy = distrust.map_or("delta", |_| "resumed");
                tracing::info!(disk = number, copy, bytes, "disk copy");
            }
            None => {
                let why = reason(distrust, plan.distrust.as_ref());
                tracing::info!(disk = number, copy = "full", bytes, why, "disk copy");
            }
        }
        all.bytes += bytes;
        all.copies.push(DiskCopy {
            disk: number,
            from: plan.from.map(|point| point.0),
        });
        if let Some(base) = base {
            all.lacks.push(LackingDisk {
                disk: number,
                blocks: plan.lacks.runs(base.runs / disks),
            });
        }
    });
    all
}

/// Where the copy of this disk begins, if it is said.
fn base_of(base: &NamedBase, disk: u32) -> Option<CopyBase> {
    let lacking = base.lacks.iter().find(|lacking| lacking.disk == disk)?;
    let mut lacks = BlockSet::default();
    let runs = lacking.blocks.iter().cloned();
    runs.for_each(|run| lacks.insert(run));
    Some(CopyBase {
        point: Point(base.point),
        lacks,
    })
}

/// Primary: the twin knows durably where its copies begin.
pub(super) fn base_is_known(machine: &Machine, point: u128) {
    each(machine, |disk| disk.settle_point(Point(point), true));
}

/// Whether all disks know a point durably. One without a record is always copied in full.
pub(super) fn knows_point(machine: &Machine, point: u128) -> bool {
    let mut knows = true;
    each(machine, |disk| {
        let durable = disk.durable_points();
        knows &= durable.is_none_or(|points| points.contains(&Point(point)));
    });
    knows
}

/// Why a disk is copied in full.
fn reason(theirs: Option<&str>, ours: Option<&Distrust>) -> String {
    let theirs = theirs.map(|why| format!("at the peer: {why}"));
    let ours = ours.map(|why| format!("here: {why}"));
    let known: Vec<_> = [theirs, ours].into_iter().flatten().collect();
    match known.is_empty() {
        true => "the two disks have no common past".to_owned(),
        false => known.join("; "),
    }
}

/// Whether a new point would save a later copy anything.
pub(super) fn wants_point(machine: &Machine) -> bool {
    let mut wants = false;
    each(machine, |disk| wants |= disk.wants_point());
    wants
}

/// Keeps failures from the guest, or tells it of them.
pub(super) fn withhold_failures(machine: &Machine, on: bool) {
    each(machine, |disk| disk.withhold_failures(on));
}

/// A failure that was kept from the guest.
pub(super) fn take_failure(machine: &Machine) -> Option<String> {
    let mut failure = None;
    each(machine, |disk| {
        failure = failure.take().or_else(|| disk.take_failure())
    });
    failure
}

impl Disks {
    /// What is to be done with the disks of this machine.
    pub(super) fn new(machine: &Machine) -> io::Result<Self> {
        let changed = machine.disks_changed().try_clone()?;
        let devices = machine.devices().to_vec();
        Ok(Self {
            copying: false,
            due: None,
            begun: None,
            followed: None,
            applier: Applier::start(&machine.config().name, devices, changed)?,
        })
    }

    /// Standby: its disks become copies.
    pub(super) fn begin_copies(
        &mut self,
        machine: &Machine,
        copies: &[DiskCopy],
        base: Option<&NamedBase>,
    ) {
        self.copying = true;
        self.followed = None;
        let mut all = Vec::new();
        each(machine, |disk| {
            let number = disk.number();
            let copy = copies.iter().find(|copy| copy.disk == number);
            all.push(Copy {
                from: copy.and_then(|copy| copy.from).map(Point),
                base: base.and_then(|base| base_of(base, number)),
            });
        });
        let (tell, begun) = bounded(1);
        self.begun = Some(begun);
        if self.applier.ask(Task::Begin(all, tell)).is_err() {
            // Whoever asks how far it has come is told why.
            let _ = machine.disks_changed().write(1);
        }
    }

    /// Standby: whether the disks are ready to be filled.
    pub(super) fn copies_begun(&mut self, wait: bool) -> Option<Result<(), MachineError>> {
        let begun = self.begun.as_ref()?;
        let result = match wait {
            true => begun.recv().ok(),
            false => match begun.try_recv() {
                Err(TryRecvError::Empty) => return None,
                result => result.ok(),
            },
        };
        self.begun = None;
        let ended = || self.applier.failure().unwrap_or_default();
        let result = result.unwrap_or_else(|| Err(io::Error::other(ended())));
        Some(result.map_err(|error| {
            MachineError::new(format!(
                "a disk can't be made a copy of the peer's: {error}"
            ))
        }))
    }

    /// Standby: part of the peer's disks has come.
    pub(super) fn fill(&self, writes: Vec<DeviceWrite>) -> Result<(), MachineError> {
        self.applier
            .ask(Task::Fill(writes))
            .map_err(MachineError::new)
    }

    /// Standby: the copies have come so far.
    pub(super) fn copied(&self, to: DiskPosition) {
        // One that can't be asked has failed, which is told elsewhere.
        let _ = self.applier.ask(Task::Copied(to));
    }

    /// Standby: an epoch was committed. The first one makes copies whole.
    pub(super) fn apply(&mut self, writes: Vec<DeviceWrite>) -> Result<(), MachineError> {
        let asked = self.applier.ask(Task::Epoch(writes));
        let asked = asked.and_then(|()| match std::mem::take(&mut self.copying) {
            true => self.applier.ask(Task::Finish),
            false => Ok(()),
        });
        asked.map_err(MachineError::new)
    }

    /// Standby: begins to compare a disk, once it holds all that has come so far.
    pub(super) fn compare(&self, check: DiskCheck) -> Receiver<DiskChecked> {
        let (tell, compared) = bounded(1);
        // One that can't be asked has failed, which is told elsewhere.
        let _ = self.applier.ask(Task::Compare(check, tell));
        compared
    }

    /// Begins to make room for a disk that grows, behind all that was asked before.
    pub(super) fn make_room(&self, room: DiskRoom) -> Receiver<RoomMade> {
        let (tell, made) = bounded(1);
        if let Err(failure) = self.applier.ask(Task::Room(room, tell.clone())) {
            let _ = tell.send((room.size, Err(MachineError::new(failure))));
        }
        made
    }

    /// Standby: what is on the disks is all that has come.
    pub(super) fn settle(&self) -> Result<(), MachineError> {
        self.applier
            .ask_and_wait(Task::Wait)
            .map_err(MachineError::new)
    }

    /// The guest goes on here, from disks that hold all that has come.
    pub(super) fn take(&self) -> Result<(), MachineError> {
        self.applier
            .ask_and_wait(Task::Take)
            .map_err(MachineError::new)
    }

    /// Standby: no more is to come for now.
    pub(super) fn is_behind(&self) -> bool {
        self.applier.is_behind()
    }

    /// Standby: fails if the disks could not take what has come.
    pub(super) fn check(&self) -> Result<(), MachineError> {
        let failure = self.applier.failure();
        failure.map_or(Ok(()), |failure| Err(MachineError::new(failure)))
    }

    /// Primary: the next capture begins this point. Returns what is durable on all disks.
    pub(super) fn point_is_due(&mut self, machine: &Machine, point: u128) -> Vec<u128> {
        let mut keep: Vec<Point> = Vec::new();
        each(machine, |disk| {
            let points = disk.durable_points().unwrap_or_default();
            keep.extend(
                points
                    .into_iter()
                    .filter(|point| !keep.contains(point))
                    .collect::<Vec<_>>(),
            );
        });
        let ids = ids(&keep);
        self.due = Some((Point(point), keep));
        ids
    }

    /// Primary: this device is at the end of its epoch.
    pub(super) fn begin_point(&self, device: &mut dyn Device) {
        if let (Some((point, keep)), Some(disk)) = (&self.due, device.disk()) {
            disk.begin_point(*point, keep);
        }
    }

    /// Primary: all of them were.
    pub(super) fn point_begun(&mut self) {
        self.due = None;
    }

    /// Standby: the epoch applied last is this point.
    pub(super) fn follow_point(&mut self, point: u128, keep: &[u128]) {
        let keep: Vec<_> = keep.iter().copied().map(Point).collect();
        let point = Point(point);
        self.followed = Some(point);
        // One that can't be asked has failed, which is told elsewhere.
        let _ = self.applier.ask(Task::Follow(point, keep));
    }

    /// Primary: the twin has made a point durable.
    pub(super) fn confirm_point(&mut self, machine: &Machine, point: u128) {
        let point = Point(point);
        self.followed = Some(point);
        each(machine, |disk| disk.settle_point(point, true));
    }

    /// The point that was followed or confirmed, if it is durable on all disks.
    pub(super) fn take_reached(&mut self, machine: &Machine) -> Option<u128> {
        let mut reached = true;
        each(machine, |disk| {
            disk.take_reached_point();
            let durable = disk.durable_points();
            // One without a record is always copied in full.
            reached &=
                durable.is_none_or(|points| self.followed.is_some_and(|one| points.contains(&one)));
        });
        self.followed.take_if(|_| reached).map(|point| point.0)
    }
}
