//! A disk that is being made a copy of its twin's, and what of it has not come yet.
//!
//! The instant at which a copy begins is a point like any other, which the standby's disk reaches bit by bit: it differs from it in all
//! that is to come, and that is written down as if it had been written here. So a copy that was interrupted goes on as a delta copy
//! from its own beginning: it has what did not come, and what the primary wrote meanwhile.

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::FileExt as _;

use super::record::{page, page_of};
use super::{BLOCK_BYTES, BlockSet, Distrust, Known, Mirror, Point, named, regions};

/// Where a copy begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyBase {
    /// The name of that instant.
    pub point: Point,
    /// Blocks that the copy brings.
    pub lacks: BlockSet,
}

/// A copy that comes into this disk.
#[derive(Debug)]
pub(super) struct Copying {
    point: Point,
    /// All that it brings of the blocks below this number has been written.
    received: u32,
    /// The same, and is durable or on its way to be so.
    settled: u32,
    /// All that it brings has been written.
    whole: bool,
}

impl Copying {
    /// Where it began.
    pub(super) fn point(&self) -> Point {
        self.point
    }

    /// Whether all that it brings has been written.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }
}

/// What a copy brought, until it is durable.
#[derive(Debug)]
pub(super) struct Arrived {
    /// Where the copy began.
    point: Point,
    /// All that it brings of the blocks below this number.
    below: u32,
    /// What was written since, if the guest goes on here meanwhile: that is nowhere else.
    since: BlockSet,
}

impl Arrived {
    pub(super) fn new(point: Point, below: u32) -> Self {
        let since = BlockSet::default();
        Self {
            point,
            below,
            since,
        }
    }

    /// Something was written.
    pub(super) fn note(&mut self, offset: u64, len: u64) {
        self.since.insert_bytes(offset, len);
    }

    /// The disk lacks none of it any more.
    pub(super) fn became_durable(self, points: &mut [Known]) {
        for known in points.iter_mut().filter(|one| one.point == self.point) {
            known.changed.remove_below(self.below);
            known.changed.unite(&self.since);
        }
    }
}

impl Mirror {
    /// This disk, on which nothing is under way, is about to become a copy: of all, or from this point on. `base` names where this copy
    /// begins, so that it can go on after it was interrupted.
    ///
    /// # Errors
    /// There is no such point, or the record can't be written.
    pub(in super::super) fn begin_copy(
        &mut self,
        from: Option<Point>,
        base: Option<CopyBase>,
    ) -> io::Result<()> {
        self.settling = None;
        self.copying = None;
        self.arrived = None;
        self.points.retain(|known| Some(known.point) == from);
        let base = base.filter(|_| !self.failed);
        let unusable = match (from, &base) {
            (Some(_), _) if self.points.is_empty() => {
                Some("the twin wants to copy from a point that this disk does not know")
            }
            (Some(from), Some(base)) if base.point == from => {
                Some("the twin has one name for two points of this disk")
            }
            _ => None,
        };
        if let Some(unusable) = unusable {
            return Err(io::Error::new(io::ErrorKind::InvalidData, unusable));
        }
        let begun = match (from, base) {
            (from, Some(base)) => {
                if from.is_none() {
                    self.distrust = None;
                }
                self.begin_from(base)
            }
            (None, None) => {
                self.distrust = Some(Distrust::Unfinished);
                self.write_header()
            }
            (Some(_), None) => Ok(()),
        };
        begun.map_err(|error| named(&self.path, error))
    }

    fn begin_from(&mut self, base: CopyBase) -> io::Result<()> {
        let CopyBase { point, mut lacks } = base;
        lacks.cut(self.blocks);
        let known = Known {
            point,
            changed: lacks,
            durable: true,
        };
        // No header may name the point before the bits of all that is missing are there.
        let lacking = regions(std::iter::once(&known));
        if let Some((marking, _)) = &self.marking {
            // These pages have been written, though nobody was told yet.
            self.marked |= marking;
        }
        self.marked |= &lacking;
        let mut numbers: Vec<_> = lacking.iter().map(page_of).collect();
        numbers.dedup();
        for number in numbers {
            let (offset, bytes) = page(number, &self.marked);
            self.file.write_all_at(&bytes, offset)?;
        }
        self.file.sync_data()?;
        self.points.push(known);
        self.copying = Some(Copying {
            point,
            received: 0,
            settled: 0,
            whole: false,
        });
        self.write_header()
    }

    /// All that the copy brings of the disk's first `end` bytes has been written here, and the twin knows durably where the copy began.
    /// It is noted when it is durable.
    pub(in super::super) fn received(&mut self, end: u64) {
        let Some(copying) = &mut self.copying else {
            return;
        };
        let below = match end < u64::from(self.blocks) * BLOCK_BYTES {
            true => u32::try_from(end / BLOCK_BYTES).unwrap_or(self.blocks),
            false => self.blocks,
        };
        copying.received = copying.received.max(below);
        copying.whole |= below == self.blocks;
        // Breaks I10 on purpose: what is still in the host's memory only counts as received.
        fail::fail_point!("mirror::received_early", |_| {
            for known in &mut self.points {
                known.changed.remove_below(below);
            }
            self.clearing = true;
            self.mark();
        });
        self.settle_received();
    }

    /// The copy has ended: an epoch came behind all of it. The twin may not have told how far it was, nor know where it began; the next
    /// point covers it.
    pub(in super::super) fn has_all(&mut self) {
        if let Some(copying) = &mut self.copying {
            copying.whole = true;
        }
    }

    /// Makes what has been received durable, unless that is under way.
    pub(super) fn settle_received(&mut self) {
        let Some(copying) = &mut self.copying else {
            return;
        };
        if self.settling.is_none() && copying.settled < copying.received {
            copying.settled = copying.received;
            // The twin has it: older points are of no use any more.
            let (point, received) = (copying.point, copying.received);
            self.arrived = Some(Arrived::new(point, received));
            self.settle(point, true);
        }
    }
}
