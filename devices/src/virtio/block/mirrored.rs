//! A block device whose disk has a copy at the twin.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::image::DiskImage;
use super::mirror::{self, Mirror, Step, Ticket, blocks_of};
use super::{
    BLOCK_BYTES, Block, BlockSet, CopyBase, CopyMark, DiskData, DiskWrite, Distrust, Held,
    Operation, Point,
};

/// What a block device needs for its mirror.
#[derive(Default)]
pub(super) struct Mirrored {
    mirror: Option<Mirror>,
    /// The guest's writes that wait until it is durable that they were made.
    waiting: VecDeque<(u64, Operation)>,
    /// Steps that are under way, by their tokens.
    steps: BTreeMap<u64, Ticket>,
    /// What a delta copy of this disk has to read.
    delta: Option<BlockSet>,
    /// Written when a point has become durable, or a failure is withheld.
    signal: Option<EventFd>,
}

/// How the twin's disk is made a copy of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlan {
    /// Only what has changed since then is copied. None: everything.
    pub from: Option<Point>,
    /// Bytes to be looked at; what of it is zero is not sent.
    pub bytes: u64,
    /// Blocks that are copied.
    pub lacks: BlockSet,
    /// Why this side knows no point, if it knows none.
    pub distrust: Option<Distrust>,
}

impl Mirrored {
    /// The image is about to become larger: that is this process's doing.
    pub(super) fn expect_growth(&mut self) {
        if let Some(mirror) = &mut self.mirror {
            mirror.stamp_now();
        }
    }

    /// The image is larger. Nothing is under way.
    pub(super) fn grow(&mut self, image: &DiskImage) {
        if let Some(mirror) = &mut self.mirror {
            mirror.grow(image);
        }
    }

    /// Requests that wait for the record.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Gives up requests that have not begun.
    pub(super) fn forget_waiting(&mut self) -> Vec<u64> {
        self.waiting.drain(..).map(|(token, _)| token).collect()
    }

    /// Has the twin's driver look.
    pub(super) fn signal(&self) {
        if let Some(signal) = &self.signal {
            let _ = signal.write(1);
        }
    }

    /// The image was written to.
    pub(super) fn stamp(&mut self) {
        if let Some(mirror) = &mut self.mirror {
            mirror.stamp();
        }
    }
}

impl Block {
    /// Takes up what is known of the twin's copy, in a record beside the image. `signal` is written when there is something for
    /// [`Self::take_reached_point`].
    ///
    /// # Errors
    /// The record can't be read or written.
    pub fn open_mirror(&mut self, vm: &str, signal: EventFd) -> io::Result<()> {
        let mirror = Mirror::open(self.ring.image(), vm, self.disk)?;
        self.mirrored.mirror = Some(mirror);
        self.mirrored.signal = Some(signal);
        Ok(())
    }

    /// Makes sure that nobody trusts the record: the guest runs without a twin.
    ///
    /// # Errors
    /// There is a record, and it can't be removed.
    pub fn forget_mirror(&self) -> io::Result<()> {
        mirror::forget(self.ring.image())
    }

    /// Number of the disk in the configuration.
    pub fn number(&self) -> u32 {
        self.disk
    }

    /// Where the disk says that it is an unfinished copy.
    pub fn copy_mark(&self) -> &Arc<CopyMark> {
        self.ring.image().copy_mark()
    }

    /// What is known of this disk, for the twin that will fill it.
    pub fn held(&self) -> Held {
        let mirror = self.mirrored.mirror.as_ref();
        mirror.map(Mirror::held).unwrap_or_default()
    }

    /// Decides how the twin's disk is made a copy of this one, from what is known there. What has to be copied is given by
    /// [`next_disk_contents`](super::Backend::next_disk_contents) then. `base` is the name of this instant, for a twin that can
    /// go on with a copy.
    pub fn plan_copy(&mut self, theirs: Option<&Held>, base: Option<Point>) -> CopyPlan {
        let common = theirs.zip(self.mirrored.mirror.as_ref());
        let common = common.and_then(|(theirs, ours)| ours.common(theirs));
        let plan = match common {
            Some((point, changed)) => CopyPlan {
                from: Some(point),
                bytes: changed.bytes(),
                lacks: changed,
                distrust: None,
            },
            None => {
                let image = self.ring.image();
                let mut all = BlockSet::default();
                all.insert(blocks_of(0, image.bytes()));
                CopyPlan {
                    from: None,
                    bytes: image.allocated(),
                    lacks: all,
                    distrust: self.held().distrust,
                }
            }
        };
        self.mirrored.delta = plan.from.map(|_| plan.lacks.clone());
        let changing = self.changing();
        if let (Some(mirror), Some(base)) = (&mut self.mirrored.mirror, base) {
            mirror.begin_base(base, plan.from.as_slice(), changing.into_iter());
        }
        plan
    }

    /// What the guest's requests in flight change.
    fn changing(&self) -> Vec<(u64, u64)> {
        let in_flight = self.in_flight.values();
        in_flight.filter_map(|request| request.changes).collect()
    }

    /// This disk, whose [mark](Self::copy_mark) is set, becomes a copy of the twin's from now on: it is cleared, unless only what
    /// has changed since a point will come. `base` names where this copy begins, if the twin can go on with it.
    ///
    /// # Errors
    /// The record or the image can't be written, or the point is not known here.
    pub fn begin_copy(&mut self, from: Option<Point>, base: Option<CopyBase>) -> io::Result<()> {
        self.ring.wait_until_idle()?;
        let image = self.ring.image();
        match (&mut self.mirrored.mirror, from) {
            (Some(mirror), from) => mirror.begin_copy(from, base)?,
            (None, None) => {}
            (None, Some(_)) => {
                let message = "nothing is known of this disk: it can't be copied in part";
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        let behind = image.bytes() - self.extent.bytes();
        let cleared = match from {
            None => image.clear(),
            Some(_) if behind == 0 => Ok(()),
            // No guest knows of that part. Should the disk grow once more, both sides have zeroes there.
            Some(_) => image.zero_at(self.extent.bytes(), behind, true),
        };
        cleared.map_err(|error| image.name_in(error))
    }

    /// Both disks hold the same at this instant, but for what the guest's requests in flight change. Of older points only `keep`
    /// are of use.
    pub fn begin_point(&mut self, point: Point, keep: &[Point]) {
        let changing = self.changing();
        if let Some(mirror) = &mut self.mirrored.mirror {
            mirror.begin_point(point, keep, changing.into_iter());
        }
    }

    /// All that a copy brings of the disk's first `end` bytes has been written here. A later copy needs it no more once it is durable.
    pub fn received(&mut self, end: u64) {
        if let Some(mirror) = &mut self.mirrored.mirror {
            mirror.received(end);
            self.take_mirror_steps();
        }
    }

    /// All that a copy brings has been written here.
    pub fn has_all(&mut self) {
        if let Some(mirror) = &mut self.mirrored.mirror {
            mirror.has_all();
        }
    }

    /// Makes the point durable that has begun; `alone`: the twin has it, and all others can go.
    pub fn settle_point(&mut self, point: Point, alone: bool) {
        if let Some(mirror) = &mut self.mirrored.mirror {
            mirror.settle(point, alone);
            self.take_mirror_steps();
        }
    }

    /// When this disk was last compared with its twin's, in seconds since 1970, as far as its record knows.
    pub fn scrubbed(&self) -> Option<u64> {
        self.mirrored.mirror.as_ref().and_then(Mirror::scrubbed)
    }

    /// Notes when it was.
    pub fn note_scrub(&mut self, at: u64) {
        if let Some(mirror) = &mut self.mirrored.mirror {
            mirror.note_scrub(at);
            self.take_mirror_steps();
        }
    }

    /// The point that has become durable since the last call.
    pub fn take_reached_point(&mut self) -> Option<Point> {
        self.mirrored.mirror.as_mut()?.take_reached()
    }

    /// Points that are durable here. None if there is no mirror.
    pub fn durable_points(&self) -> Option<Vec<Point>> {
        let mirror = self.mirrored.mirror.as_ref();
        mirror.map(Mirror::durable_points)
    }

    /// Whether a new point would save a later copy anything.
    pub fn wants_point(&self) -> bool {
        let mirror = self.mirrored.mirror.as_ref();
        mirror.is_some_and(Mirror::wants_point)
    }

    /// The twin's disk changes here although this one does not: a later copy has to have it.
    pub(super) fn note_change(&mut self, offset: u64, len: u64) {
        if let Some(mirror) = &mut self.mirrored.mirror
            && !mirror.touch(offset, len)
        {
            self.take_mirror_steps();
        }
    }

    /// Starts an operation, at once or when it is known that it was made.
    pub(super) fn push_marked(&mut self, token: u64, operation: Operation) {
        if let (Some(mirror), Some((offset, len))) =
            (&mut self.mirrored.mirror, operation.changes())
            && !mirror.touch(offset, len)
        {
            self.mirrored.waiting.push_back((token, operation));
            return self.take_mirror_steps();
        }
        self.ring.push(token, operation);
    }

    /// An operation is over that no guest asked for.
    pub(super) fn mirror_step_done(&mut self, token: u64, result: io::Result<()>) {
        let (Some(ticket), Some(mirror)) = (
            self.mirrored.steps.remove(&token),
            &mut self.mirrored.mirror,
        ) else {
            return;
        };
        mirror.done(ticket, &result);
        let waiting = std::mem::take(&mut self.mirrored.waiting);
        for (token, operation) in waiting {
            let marked = operation
                .changes()
                .is_none_or(|(offset, len)| mirror.is_marked(offset, len));
            match marked {
                true => self.ring.push(token, operation),
                false => self.mirrored.waiting.push_back((token, operation)),
            }
        }
        if mirror.has_reached() {
            self.mirrored.signal();
        }
        self.take_mirror_steps();
    }

    fn take_mirror_steps(&mut self) {
        let Some(mirror) = &mut self.mirrored.mirror else {
            return;
        };
        for (ticket, step) in mirror.take_steps() {
            let operation = match step {
                Step::Flush => Operation::Flush,
                Step::Write { offset, bytes } => Operation::Record {
                    file: Arc::clone(mirror.file()),
                    offset,
                    bytes,
                },
            };
            self.next_token += 1;
            self.mirrored.steps.insert(self.next_token, ticket);
            self.ring.push(self.next_token, operation);
        }
        self.ring.submit();
    }

    /// Repeats the twin's writes.
    pub(super) fn repeat<'a>(
        &mut self,
        writes: impl Iterator<Item = &'a DiskWrite>,
    ) -> io::Result<()> {
        if !self.in_flight.is_empty() {
            // Of a guest that was handed over: those are older writes.
            self.ring.wait_until_idle()?;
        }
        let image = self.ring.image();
        for write in writes {
            if let Some(mirror) = &mut self.mirrored.mirror {
                mirror.note(write.offset, write.data.span());
                mirror.stamp();
            }
            let written = match &write.data {
                DiskData::Bytes(bytes) => image.write_at(write.offset, bytes),
                DiskData::Zeroes { len, unmap } => image.zero_at(write.offset, *len, *unmap),
            };
            written.map_err(|error| image.name_in(error))?;
        }
        Ok(())
    }

    /// The next piece to be copied at or after `from`: where it is, and what it holds.
    pub(super) fn next_to_copy(
        &self,
        from: u64,
        limit: usize,
    ) -> io::Result<Option<(u64, DiskData)>> {
        let image = self.ring.image();
        if image.read_only() {
            return Ok(None);
        }
        let Some(delta) = &self.mirrored.delta else {
            let found = image.next_contents(from, self.extent.bytes(), limit)?;
            return Ok(found.map(|(offset, bytes)| (offset, contents(bytes))));
        };
        let block = u32::try_from(from / BLOCK_BYTES).unwrap_or(u32::MAX);
        let Some(run) = delta.run_from(block) else {
            return Ok(None);
        };
        let start = from.max(u64::from(run.start) * BLOCK_BYTES);
        let end = self.extent.bytes().min(u64::from(run.end) * BLOCK_BYTES);
        if start >= end {
            return Ok(None);
        }
        // The twin's disk may hold anything there: holes are told as well.
        let limit = (end - start).min(limit as u64) as usize;
        Ok(Some(match image.next_contents(start, end, limit)? {
            Some((at, bytes)) if at == start => (at, contents(bytes)),
            Some((at, _)) => (start, zeroes(at - start)),
            None => (start, zeroes(end - start)),
        }))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let idle = self.ring.wait_until_idle();
        if let (Ok(()), Some(mirror)) = (idle, &mut self.mirrored.mirror) {
            mirror.close(self.ring.image());
        }
    }
}

fn zeroes(len: u64) -> DiskData {
    DiskData::Zeroes { len, unmap: true }
}

/// Zeroes travel as a range.
pub(super) fn contents(bytes: Bytes) -> DiskData {
    let is_zero = |chunk: &[u8]| chunk.iter().fold(0, |all, byte| all | byte) == 0;
    match bytes.chunks(4096).all(is_zero) {
        true => zeroes(bytes.len() as u64),
        false => DiskData::Bytes(bytes),
    }
}
