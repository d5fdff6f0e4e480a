//! One pass over all disks, and regions of memory, which are disks here as well: which blocks are compared next, and what has come of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::control::{ScrubCounts, ScrubProgress};
use crate::machine::{BLOCK_BYTES, CHECK_BLOCKS, DiskCheck, DiskSize};

/// How often a block is looked at that the guest is writing to.
const TRIES: u8 = 24;
/// How often a block is repaired before it is given up.
const REPAIRS: u8 = 3;
/// Time that the guest is given to be done with blocks before they are looked at again.
const AGAIN: Duration = Duration::from_millis(100);
/// Most blocks that wait for that before new ones are looked at.
const MAX_LATER: usize = 256;

/// A pass, and where it is.
pub(super) struct Pass {
    number: u64,
    disks: Vec<DiskSize>,
    /// The first block that was not looked at: index of its disk, and its number.
    fresh: (usize, u32),
    /// Blocks of which nothing is known yet.
    later: VecDeque<Item>,
    /// Those that are being compared; all of one disk.
    batch: Vec<Item>,
    /// When the next ones may be.
    pub(super) due: Instant,
    pub(super) step: Step,
    /// Since when it is at this step.
    pub(super) since: Instant,
    settled: u64,
    counts: ScrubCounts,
}

/// What is being done with the blocks that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: the next ones wait until they are due.
    Next,
    /// They are being read here.
    Summing,
    /// The standby is told of them behind this epoch.
    Summed(DiskCheck),
    /// It was told, behind this epoch.
    Told { epoch: u64, disk: u32 },
    /// Those that differ are being recorded again.
    Repairing,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    disk: u32,
    block: u32,
    tries: u8,
    repairs: u8,
}

impl Pass {
    pub(super) fn new(number: u64, disks: Vec<DiskSize>, now: Instant) -> Self {
        Self {
            number,
            disks,
            fresh: (0, 0),
            later: VecDeque::new(),
            batch: Vec::new(),
            due: now,
            step: Step::Next,
            since: now,
            settled: 0,
            counts: ScrubCounts::default(),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn counts(&self) -> ScrubCounts {
        self.counts
    }

    pub(super) fn progress(&self) -> ScrubProgress {
        let last = self.disks.len().saturating_sub(1);
        let disk = self.disks.get(self.fresh.0.min(last));
        ScrubProgress {
            number: self.number,
            disk: disk.map_or(0, |size| size.disk),
            bytes: self.settled,
            of: self.disks.iter().map(|size| size.bytes).sum(),
        }
    }

    /// The disk whose blocks are being summed up.
    pub(super) fn summing(&self) -> Option<u32> {
        let disk = self.batch.first().map(|item| item.disk);
        disk.filter(|_| self.step == Step::Summing)
    }

    /// Goes to another step.
    pub(super) fn go_to(&mut self, step: Step) {
        self.step = step;
        self.since = Instant::now();
    }

    /// Blocks to be compared next, of one disk, at this rate in bytes per second. None when all is done.
    pub(super) fn next_batch(&mut self, now: Instant, rate: u64) -> Option<(u32, Vec<u32>)> {
        self.batch = self.fresh_batch();
        let again = self.batch.is_empty();
        if again {
            self.batch = self.later_batch();
        }
        let first = *self.batch.first()?;
        let bytes = self.batch.iter().map(|item| self.len(item)).sum::<u64>();
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.due = now + if again { takes.max(AGAIN) } else { takes };
        let blocks = self.batch.iter().map(|item| item.block);
        Some((first.disk, blocks.collect()))
    }

    fn fresh_batch(&mut self) -> Vec<Item> {
        let mut batch = Vec::new();
        while batch.is_empty() && self.later.len() < MAX_LATER {
            let Some(size) = self.disks.get(self.fresh.0) else {
                break;
            };
            let end = size.bytes.div_ceil(BLOCK_BYTES).min(u64::from(u32::MAX)) as u32;
            let blocks = self.fresh.1..end.min(self.fresh.1.saturating_add(CHECK_BLOCKS as u32));
            self.fresh = match blocks.end == end {
                true => (self.fresh.0 + 1, 0),
                false => (self.fresh.0, blocks.end),
            };
            batch.extend(blocks.map(|block| Item {
                disk: size.disk,
                block,
                tries: 0,
                repairs: 0,
            }));
        }
        batch
    }

    fn later_batch(&mut self) -> Vec<Item> {
        let Some(disk) = self.later.front().map(|item| item.disk) else {
            return Vec::new();
        };
        let mut batch = Vec::new();
        while batch.len() < CHECK_BLOCKS {
            match self.later.pop_front_if(|item| item.disk == disk) {
                Some(item) => batch.push(item),
                None => break,
            }
        }
        batch
    }

    /// Bytes of a block.
    fn len(&self, item: &Item) -> u64 {
        let size = self.disks.iter().find(|size| size.disk == item.disk);
        let offset = u64::from(item.block) * BLOCK_BYTES;
        size.map_or(0, |size| size.bytes.saturating_sub(offset).min(BLOCK_BYTES))
    }

    /// Takes those blocks from the batch.
    fn take(&mut self, blocks: &[u32]) -> Vec<Item> {
        let taken = self
            .batch
            .extract_if(.., |item| blocks.contains(&item.block));
        taken.collect()
    }

    /// The guest has touched these blocks: they are looked at again later, if not too often.
    pub(super) fn touched(&mut self, blocks: &[u32]) {
        for mut item in self.take(blocks) {
            item.tries += 1;
            if item.tries < TRIES {
                self.later.push_back(item);
            } else {
                self.counts.busy += 1;
                self.settled += self.len(&item);
            }
        }
    }

    /// These blocks can't be read here.
    pub(super) fn unreadable(&mut self, blocks: &[u32]) {
        for item in self.take(blocks) {
            self.counts.unreadable += 1;
            self.settled += self.len(&item);
        }
    }

    /// The standby has compared the batch, and these blocks differ. None if it was not asked for one of them.
    pub(super) fn compared(&mut self, differing: &[u32]) -> Option<Verdict> {
        let known = |block: &u32| self.batch.iter().any(|item| item.block == *block);
        if !differing.iter().all(known) {
            return None;
        }
        let different = self.take(differing);
        for item in std::mem::take(&mut self.batch) {
            let len = self.len(&item);
            self.settled += len;
            self.counts.bytes += len;
            self.counts.repaired += u64::from(item.repairs > 0);
        }
        let mut verdict = Verdict::default();
        for mut item in different {
            if item.repairs == 0 {
                self.counts.differences += 1;
                verdict.found.push(item.block);
            }
            item.repairs += 1;
            if item.repairs > REPAIRS {
                let len = self.len(&item);
                self.settled += len;
                self.counts.bytes += len;
                verdict.given_up.push(item.block);
            } else {
                verdict.repair.push(item.block);
                self.batch.push(item);
            }
        }
        Some(verdict)
    }

    /// These blocks of the batch are on their way to the standby, and are compared once more; the others can't be read.
    pub(super) fn repaired(&mut self, blocks: &[u32]) {
        for mut item in self.take(blocks) {
            item.tries = 0;
            self.later.push_back(item);
        }
        let rest: Vec<_> = self.batch.iter().map(|item| item.block).collect();
        self.unreadable(&rest);
        self.go_to(Step::Next);
    }

    /// Whatever was under way counts for nothing.
    pub(super) fn begin_again(&mut self) {
        for item in self.batch.drain(..).rev() {
            self.later.push_front(item);
        }
        self.go_to(Step::Next);
    }
}

/// What a comparison has found of the blocks that differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// They differ, which was not known.
    pub(super) found: Vec<u32>,
    /// They differ, and are to be repaired.
    pub(super) repair: Vec<u32>,
    /// They differ however often they are repaired.
    pub(super) given_up: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 32 << 20;

    fn pass(sizes: &[u64]) -> Pass {
        let sizes = sizes.iter().zip(0..);
        let disks = sizes.map(|(bytes, disk)| DiskSize {
            disk,
            bytes: *bytes,
        });
        Pass::new(1, disks.collect(), Instant::now())
    }

    fn next(pass: &mut Pass) -> Option<(u32, Vec<u32>)> {
        pass.next_batch(Instant::now(), RATE)
    }

    #[test]
    fn each_block_of_each_disk_is_compared_once() {
        let mut pass = pass(&[20 * BLOCK_BYTES, 16 * BLOCK_BYTES, 512]);
        let mut seen = Vec::new();
        while let Some((disk, blocks)) = next(&mut pass) {
            seen.push((disk, blocks[0], blocks.len()));
            pass.compared(&[]).unwrap();
        }
        assert_eq!(seen, [(0, 0, 16), (0, 16, 4), (1, 0, 16), (2, 0, 1)]);
        let progress = pass.progress();
        assert_eq!(progress.bytes, 36 * BLOCK_BYTES + 512);
        assert_eq!(progress.of, progress.bytes);
        let counts = ScrubCounts {
            bytes: progress.bytes,
            ..ScrubCounts::default()
        };
        assert_eq!(pass.counts(), counts);
    }

    #[test]
    fn a_pass_keeps_its_rate() {
        let mut pass = pass(&[64 * BLOCK_BYTES]);
        let now = Instant::now();
        pass.next_batch(now, RATE);
        assert_eq!(pass.due, now + Duration::from_secs(1) / 32);
    }

    #[test]
    fn a_block_that_the_guest_never_leaves_alone_ends_as_busy() {
        let mut pass = pass(&[2 * BLOCK_BYTES]);
        let mut tries = 0;
        while let Some((_, blocks)) = next(&mut pass) {
            tries += 1;
            pass.touched(&blocks[..1]);
            pass.compared(&[]);
            assert!(pass.later.len() <= 1);
            if tries == 1 {
                assert_eq!(blocks, [0, 1]);
            } else {
                assert_eq!(blocks, [0]);
                assert!(pass.due >= Instant::now() + AGAIN / 2, "it is given time");
            }
        }
        assert_eq!(tries, TRIES);
        assert_eq!((pass.counts().busy, pass.counts().bytes), (1, BLOCK_BYTES));
        assert_eq!(pass.progress().percent(), 100);
    }

    #[test]
    fn a_guest_that_writes_everywhere_makes_no_list_without_end() {
        let mut pass = pass(&[1 << 40]);
        for _ in 0..10_000 {
            let Some((_, blocks)) = next(&mut pass) else {
                panic!("a disk of 1 TiB has more blocks");
            };
            pass.touched(&blocks);
            assert!(pass.later.len() < MAX_LATER + CHECK_BLOCKS);
        }
    }

    #[test]
    fn what_differs_is_repaired_and_compared_again() {
        let mut pass = pass(&[4 * BLOCK_BYTES]);
        next(&mut pass);
        let verdict = pass.compared(&[1, 3]).unwrap();
        assert_eq!(
            (&verdict.found, &verdict.repair),
            (&vec![1, 3], &vec![1, 3])
        );
        pass.repaired(&[1]);
        assert_eq!(pass.counts().unreadable, 1, "block 3 can't be repaired");
        assert_eq!(next(&mut pass), Some((0, vec![1])));
        // The link breaks: all that was under way begins again.
        pass.begin_again();
        assert_eq!(next(&mut pass), Some((0, vec![1])));
        assert!(pass.compared(&[]).unwrap().repair.is_empty());
        assert_eq!(next(&mut pass), None);
        let ScrubCounts {
            bytes,
            differences,
            repaired,
            ..
        } = pass.counts();
        assert_eq!((bytes, differences, repaired), (3 * BLOCK_BYTES, 2, 1));
    }

    #[test]
    fn a_block_that_stays_different_is_given_up() {
        let mut pass = pass(&[BLOCK_BYTES]);
        let mut repairs = 0;
        while next(&mut pass).is_some() {
            let verdict = pass.compared(&[0]).unwrap();
            if verdict.repair.is_empty() {
                assert_eq!(verdict.given_up, [0]);
            } else {
                repairs += 1;
                pass.repaired(&verdict.repair);
            }
        }
        assert_eq!(repairs, REPAIRS);
        assert_eq!((pass.counts().differences, pass.counts().repaired), (1, 0));
    }

    #[test]
    fn a_standby_answers_only_what_was_asked() {
        let mut pass = pass(&[32 * BLOCK_BYTES]);
        assert_eq!(pass.compared(&[0]), None);
        next(&mut pass);
        assert_eq!(pass.compared(&[3, 16]), None);
        assert!(pass.compared(&[3]).is_some());
    }
}
