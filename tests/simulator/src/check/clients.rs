//! The clients: they must never see two histories, nor lose what they were told is done
//! (I1, I2), nor see time step back (I8), nor find a disk without what was flushed to it (I10).

use super::{Invariant, Verdict, demand};
use crate::disk::Disk;
use crate::story::{BLOCKS, Blocks, Moment, Story};
use crate::world::TIMEOUT;

/// The twins' timeout, and what a clock that is slow makes of it.
const LATE: u64 = TIMEOUT + TIMEOUT / 50;

/// What all clients together have seen of the VM.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// The newest moment that any output told of.
    seen: Moment,
    /// What the clients were told is on the disk.
    durable: Blocks,
    /// When the last guest was started from its kernel.
    booted: u64,
    /// What its disk held then, and the blocks of it for which nothing can be demanded.
    booted_from: Blocks,
    torn: u8,
    answers: u64,
}

impl Clients {
    /// Outputs seen so far.
    pub(crate) fn answers(&self) -> u64 {
        self.answers
    }

    /// Output has left, under an acknowledgement or under the solo right.
    pub(crate) fn see(&mut self, story: &Story, moment: Moment, alone: bool, now: u64) -> Verdict {
        self.answers += 1;
        // An acknowledgement may be as old as the timeout when it is acted on. If both twins'
        // guests have died since, what it allows arrives late, as packets do.
        let late = !alone && now <= self.booted + LATE;
        if story.continues(self.seen, moment) {
            let (before, now) = (story.clock(self.seen), story.clock(moment));
            demand(before <= now, Invariant::GuestTime, || {
                format!("the guest said {before} us, then {now} us")
            })?;
            self.seen = moment;
        } else {
            // What an old primary says late is no news, but must be part of the same history.
            demand(
                late || story.continues(moment, self.seen),
                Invariant::OneReleaser,
                || {
                    let seen = self.seen;
                    format!("output of moment {moment} is of another history than {seen}")
                },
            )?;
        }
        match story.write(moment) {
            Some(write) if write.durable => self.told(story, moment, write.block),
            _ => Ok(()),
        }
    }

    /// Output says that a block is durable as of this moment.
    fn told(&mut self, story: &Story, moment: Moment, block: u8) -> Verdict {
        let at = usize::from(block);
        if story.continues(self.seen, moment) || story.continues(moment, self.seen) {
            self.durable[at] = self.durable[at].max(moment);
            return Ok(());
        }
        // A late word about the history that ended when a guest was started from this disk.
        let has = self.booted_from[at];
        let excused = self.torn & (1 << block) != 0;
        demand(
            excused || story.covers(has, moment),
            Invariant::Disks,
            || {
                format!(
                    "a guest was booted with {has} in block {block}, and late output tells of {moment} there"
                )
            },
        )
    }

    /// A guest is about to go on from `moment`.
    pub(crate) fn promoted(&self, story: &Story, moment: Moment) -> Verdict {
        demand(
            story.continues(self.seen, moment),
            Invariant::OutputCommit,
            || {
                let seen = self.seen;
                format!("output of moment {seen} was seen, but the guest goes on from {moment}")
            },
        )
    }

    /// A guest was started from its kernel: all but the disk starts afresh.
    pub(crate) fn booted(
        &mut self,
        story: &Story,
        moment: Moment,
        disk: &Disk,
        now: u64,
    ) -> Verdict {
        self.seen = moment;
        self.booted = now;
        (self.booted_from, self.torn) = (disk.contents(), disk.torn());
        for block in 0..BLOCKS {
            let (has, told) = (disk.contents()[block], self.durable[block]);
            if disk.torn() & (1 << block) != 0 {
                // Lost with the power of a twin that had been a standby: nothing protects
                // from that before the standby's writes are flushed or journaled.
                self.durable[block] = has;
                continue;
            }
            demand(story.covers(has, told), Invariant::Disks, || {
                format!("booted with {has} in block {block}, but clients know of {told} there")
            })?;
        }
        Ok(())
    }
}
