//! Comparing both twins' disks, and memories, while the guest runs (PROTOCOL.md §4.6).

mod memory;
mod pass;

use std::time::{Duration, Instant, SystemTime};

use evertwin_protocol::{Input, Role};
use tracing::{error, info, warn};

use super::Driver;
use crate::control::{NoScrub, ScrubReport, ScrubStatus};
use crate::machine::{BLOCK_BYTES, BlockSum, DiskCheck, DiskChecked};
use crate::wire::{Header, Kind, SCRUB, VERSION, WireError, scrub};
use pass::{Pass, Step, Verdict};

/// How long a disk of either twin may take for what it is asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pass that ended early is begun again after this time at most.
const BEGIN_AGAIN: Duration = Duration::from_secs(3600);

/// Most differences of a pass that are told one by one.
const TOLD: u64 = 16;

/// Comparisons of both twins' disks, of this twin as the primary.
#[derive(Default)]
pub(super) struct Scrub {
    pass: Option<Pass>,
    passes: u64,
    /// How the last one ended, and when.
    last: Option<(Instant, ScrubReport)>,
    /// When the next one begins by itself.
    next: Option<Instant>,
    /// What blocks of memory held when they were read.
    memory: Vec<BlockSum>,
    /// The guest did nothing in the epoch captured last: it makes none by itself.
    idle: bool,
}

impl Scrub {
    /// When there is something to do.
    pub(super) fn due(&self, role: Role) -> Option<Instant> {
        let pass = self.pass.as_ref().filter(|_| role == Role::Protected)?;
        (pass.step == Step::Next).then_some(pass.due)
    }

    /// What was under way is lost with the link.
    pub(super) fn link_lost(&mut self) {
        if let Some(pass) = &mut self.pass {
            pass.begin_again();
        }
    }

    pub(super) fn status(&self) -> Option<ScrubStatus> {
        let last = self.last.as_ref().map(|(ended, report)| ScrubReport {
            age_s: ended.elapsed().as_secs(),
            ..report.clone()
        });
        let pass = self.pass.as_ref().map(Pass::progress);
        (pass.is_some() || last.is_some()).then_some(ScrubStatus { pass, last })
    }
}

impl Driver<'_> {
    /// The operator, or the time, wants a pass over all disks, perhaps over all memory as well. Returns its number.
    pub(super) fn begin_scrub(&mut self, memory: bool) -> Result<u64, NoScrub> {
        match self.twin.role() {
            Role::Protected => {}
            Role::Syncing | Role::Naming => return Err(NoScrub::Syncing),
            Role::Filling | Role::Synced | Role::Promoting => return Err(NoScrub::NotPrimary),
            _ => return Err(NoScrub::NotProtected),
        }
        if self.peer_version.min(VERSION) < SCRUB {
            return Err(NoScrub::PeerTooOld);
        }
        if self.scrub.pass.is_some() {
            return Err(NoScrub::Running);
        }
        if memory && self.identity.memory.is_empty() {
            return Err(NoScrub::NoMemory);
        }
        let mut disks = self.machine.disk_sizes();
        if memory {
            disks.extend(memory::sizes(&self.identity.memory));
        }
        if disks.is_empty() {
            return Err(NoScrub::NoDisks);
        }
        self.scrub.passes += 1;
        let pass = Pass::new(self.scrub.passes, disks, Instant::now());
        let number = pass.number();
        info!(number, bytes = pass.progress().of, "scrub begins");
        self.scrub.pass = Some(pass);
        Ok(number)
    }

    /// Primary: goes on with a pass as far as nothing has to be waited for, and begins one when it is time.
    pub(super) fn pump_scrub(&mut self) {
        match self.twin.role() {
            Role::Protected => {}
            // The link may be back, and the pass goes on then.
            Role::Interrupted => return,
            _ => return self.end_scrub(Some("the guest is not protected any more")),
        }
        let now = Instant::now();
        self.begin_scrub_in_time(now);
        let Some(pass) = &mut self.scrub.pass else {
            return;
        };
        if pass.step != Step::Next {
            if pass.since.elapsed() > PATIENCE {
                self.end_scrub(Some("a disk took too long to answer, here or at the peer"));
            }
        } else if pass.due <= now {
            match pass.next_batch(now, self.config.scrub_rate) {
                Some((disk, blocks)) => {
                    pass.go_to(Step::Summing);
                    match memory::region(&self.identity.memory, disk) {
                        Some(region) => self.begin_memory_sums(region, &blocks),
                        None => self.machine.begin_sums(disk, &blocks),
                    }
                }
                None => self.end_scrub(None),
            }
        }
    }

    fn begin_scrub_in_time(&mut self, now: Instant) {
        let Some(every) = self.config.scrub_every else {
            return;
        };
        let next = match self.scrub.next {
            Some(next) => next,
            None => {
                let wait = self.first_wait(every);
                *self.scrub.next.insert(now + wait)
            }
        };
        if next <= now && self.scrub.pass.is_none() {
            self.scrub.next = Some(now + every);
            // Nothing to be compared, or nobody to compare with: perhaps the next time.
            let _ = self.begin_scrub(false);
        }
    }

    /// Time to the first pass of this run: the waiting began with the last pass of an earlier one, or when that was first waited for.
    fn first_wait(&mut self, every: Duration) -> Duration {
        let now = SystemTime::now();
        let waited = self.machine.last_scrub();
        match waited.map(|since| now.duration_since(since)) {
            Some(Ok(waited)) => every.saturating_sub(waited),
            // Nothing was noted, or a clock was set back.
            _ => {
                self.machine.note_scrub(now);
                every
            }
        }
    }

    /// A pass is over, or can't go on for this reason.
    fn end_scrub(&mut self, failure: Option<&str>) {
        let Some(pass) = self.scrub.pass.take() else {
            return;
        };
        let now = Instant::now();
        let report = ScrubReport {
            number: pass.number(),
            age_s: 0,
            counts: pass.counts(),
            failure: failure.map(str::to_owned),
        };
        let counts = report.counts;
        let (bytes, busy, unreadable) = (counts.bytes, counts.busy, counts.unreadable);
        let (differences, repaired) = (counts.differences, counts.repaired);
        match failure {
            None => info!(bytes, differences, repaired, busy, unreadable, "scrub done"),
            Some(reason) => warn!(
                reason,
                bytes, differences, repaired, busy, unreadable, "scrub ended early"
            ),
        }
        self.scrub.next = self.config.scrub_every.map(|every| match failure {
            None => now + every,
            Some(_) => now + every.min(BEGIN_AGAIN),
        });
        if failure.is_none() {
            self.machine.note_scrub(SystemTime::now());
        }
        self.scrub.last = Some((now, report));
    }

    /// Primary: an epoch was captured. Blocks that are the same since before they were read held that at its end.
    pub(super) fn settle_sums(&mut self, epoch: u64, idle: bool) {
        self.scrub.idle = idle;
        let pass = self.scrub.pass.as_ref();
        let Some(disk) = pass.and_then(Pass::summing) else {
            return;
        };
        let summed = match memory::region(&self.identity.memory, disk) {
            Some(region) => Some(self.take_memory_sums(region)),
            None => self.machine.take_sums(),
        };
        let (Some(summed), Some(pass)) = (summed, &mut self.scrub.pass) else {
            return;
        };
        for (block, why) in &summed.unreadable {
            let offset = u64::from(*block) * BLOCK_BYTES;
            error!(
                disk,
                offset, why, "a block of this host's disk can't be read"
            );
        }
        let unreadable: Vec<_> = summed.unreadable.iter().map(|(block, _)| *block).collect();
        pass.unreadable(&unreadable);
        pass.touched(&summed.touched);
        let sums = summed.stable;
        pass.go_to(match sums.is_empty() {
            true => Step::Next,
            false => Step::Summed(DiskCheck { epoch, disk, sums }),
        });
        // Breaks I10 on purpose: it is known that the disk fails, and the guest stays.
        fail::fail_point!("scrub::stays", |_| ());
        if !unreadable.is_empty() {
            self.blocks_fail();
        }
    }

    /// Primary: an epoch is on its way. If blocks were summed up as of its end, the standby is told behind it.
    pub(super) fn tell_check(&mut self, generation: u64, epoch: u64) {
        let (Some(pass), Some(link)) = (&mut self.scrub.pass, &mut self.network.link) else {
            return;
        };
        if let Step::Summed(check) = &pass.step
            && check.epoch == epoch
        {
            link.queue_bulk(scrub::check_frame(generation, check));
            let disk = check.disk;
            pass.go_to(Step::Told { epoch, disk });
        }
    }

    /// A frame about a comparison.
    pub(super) fn take_check(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        let Header {
            kind,
            generation,
            epoch,
            ..
        } = header;
        let malformed = WireError::Malformed(kind);
        match (kind, self.twin.role()) {
            (Kind::DiskCheck, Role::Filling | Role::Synced)
                if generation == self.twin.generation() =>
            {
                let check = scrub::check(epoch, payload).ok_or(malformed)?;
                // It is about the epoch that this twin has applied just now.
                if epoch == self.last_epoch {
                    match memory::region(&self.identity.memory, check.disk) {
                        Some(region) => self.compare_memory(region, &check),
                        None => self.machine.begin_compare(check),
                    }
                }
            }
            // It may come late, to a pass that has ended, or behind an exchange of roles.
            (Kind::DiskChecked, _) => {
                let checked = scrub::checked(epoch, payload).ok_or(malformed.clone())?;
                self.compared(&checked).ok_or(malformed)?;
            }
            (kind, _) => return Err(WireError::OutOfPlace(kind)),
        }
        Ok(())
    }

    /// Primary: the standby has compared. None if it answers what it was not asked.
    fn compared(&mut self, checked: &DiskChecked) -> Option<()> {
        let DiskChecked {
            epoch,
            disk,
            differing,
        } = checked;
        let (epoch, disk) = (*epoch, *disk);
        let pass = self.scrub.pass.as_mut();
        let Some(pass) = pass.filter(|pass| pass.step == Step::Told { epoch, disk }) else {
            return Some(());
        };
        let before = pass.counts().differences;
        let Verdict {
            found,
            repair,
            given_up,
        } = pass.compared(differing)?;
        for (block, number) in found.iter().zip(before..TOLD) {
            let offset = u64::from(*block) * BLOCK_BYTES;
            match memory::region(&self.identity.memory, disk) {
                Some(region) => error!(
                    address = region.start + offset,
                    "64 KiB of the standby's memory differ from this one's: they are sent again"
                ),
                None => warn!(
                    disk,
                    offset,
                    "64 KiB of the standby's disk differ from this one's: they are sent again"
                ),
            }
            if number + 1 == TOLD {
                warn!("more of them are only counted");
            }
        }
        for block in given_up {
            let offset = u64::from(block) * BLOCK_BYTES;
            error!(
                disk,
                offset, "64 KiB differ at the standby however often they are sent"
            );
        }
        if repair.is_empty() {
            pass.go_to(Step::Next);
        } else {
            pass.go_to(Step::Repairing);
            match memory::region(&self.identity.memory, disk) {
                Some(region) => {
                    pass.repaired(&repair);
                    self.repair_memory(region, &repair);
                }
                None => self.machine.begin_repair(disk, &repair),
            }
        }
        Some(())
    }

    /// Something that was begun with a disk may have ended.
    pub(super) fn go_on_scrubbing(&mut self) {
        if !self.runs_guest() {
            if let Some(checked) = self.machine.take_compared()
                && self.twin.role() == Role::Synced
            {
                self.queue(scrub::checked_frame(self.twin.generation(), &checked));
            }
            return;
        }
        let Some(pass) = &mut self.scrub.pass else {
            return;
        };
        match pass.step {
            // An idle guest makes no epochs: it is asked for one.
            Step::Summing if self.scrub.idle && self.machine.has_sums() => {
                self.inputs.push_back(Input::OutputWaiting);
            }
            Step::Repairing => {
                if let Some(blocks) = self.machine.take_repaired() {
                    pass.repaired(&blocks);
                }
            }
            _ => {}
        }
    }
}
