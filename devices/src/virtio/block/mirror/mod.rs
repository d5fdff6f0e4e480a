//! What is known of a disk and its twin's copy: at which instants both held the same, and what was written here since (I10).
//!
//! A *point* is such an instant, durable on both sides. For each point that may still be of use the mirror has the set of blocks
//! that were written here since. Where both twins know a point, their disks differ in the blocks of either set at most: only those
//! are copied. The guest's writes wait until a bit beside the image says, durably, that their region is no longer as it was
//! (a write-intent bitmap, as of Linux' md); so this is known after a crash and a loss of power as well. A standby needs no such bits:
//! what it repeats was written by its primary, which has them.
//!
//! While the guest runs nothing here waits for a disk: the device takes steps from here and says how they went. Only
//! [`open`](Mirror::open), [`begin_copy`](Mirror::begin_copy), [`close`](Mirror::close), [`forget`] and a failure write by themselves.

mod blocks;
mod copying;
mod record;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use roaring::RoaringBitmap;

use super::beside;
use super::image::DiskImage;
use super::image_id::{self, ImageId, changed_at};
pub use blocks::{BLOCK_BYTES, BlockSet};
pub(super) use blocks::{MAX_BYTES, blocks_of};
pub use copying::CopyBase;
use copying::{Arrived, Copying};
pub use record::Point;
use record::{Header, REGION_BYTES, page, page_of, pages, regions_of};

/// Added to the name of an image.
const SUFFIX: &str = ".mirror";
/// An image that is written to leaves word of it this often.
const STAMP: Duration = Duration::from_secs(1);

/// Why nothing that was known of a disk can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// There is nothing.
    #[error("nothing is known of an earlier copy")]
    New,
    /// Bytes that are no record.
    #[error("its record is damaged")]
    Damaged,
    /// Written by another build.
    #[error("its record has form {0}, which this build does not know")]
    Version(u32),
    /// Of another VM, or of another disk of it.
    #[error("its record is of disk {disk} of VM `{vm}`")]
    Other {
        /// The VM's name.
        vm: String,
        /// Number of the disk there.
        disk: u32,
    },
    /// The image is another file, or has another size.
    #[error("it is not the image that its record is of")]
    Replaced,
    /// Somebody else wrote to the image.
    #[error("it was changed since it was put down")]
    Changed,
    /// A full copy has begun here and has not ended.
    #[error("the last full copy to it was not finished")]
    Unfinished,
    /// The record could not be written.
    #[error("its record can't be kept: {0}")]
    Failed(String),
}

/// What a disk is known to hold, for its twin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Points that it knows, oldest first.
    pub points: Vec<Point>,
    /// What may have been written here since the oldest.
    pub changed: BlockSet,
    /// Why there is no point, if there is none.
    pub distrust: Option<Distrust>,
}

/// What is to be done next, and what to call it when it is done.
#[derive(Debug)]
pub(super) enum Step {
    /// Makes all that was written to the image durable.
    Flush,
    /// Writes to the record, durably.
    Write { offset: u64, bytes: Bytes },
}

/// Which step has been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ticket {
    Bits,
    Flush(u64),
    Header(u64),
    /// A header that says no more of points than the one before it.
    Note,
}

/// A point and what was written since.
#[derive(Debug, Clone)]
struct Known {
    point: Point,
    changed: BlockSet,
    /// A durable header names it.
    durable: bool,
}

/// A point is being made durable.
#[derive(Debug)]
struct Settling {
    point: Point,
    /// It is the only one that is kept.
    alone: bool,
    /// Regions whose bits must be durable before a header says so.
    needed: Option<RoaringBitmap>,
    header_sent: bool,
}

/// What is known of one disk.
#[derive(Debug)]
pub(super) struct Mirror {
    path: PathBuf,
    file: Arc<File>,
    header: Header,
    blocks: u32,
    points: Vec<Known>,
    distrust: Option<Distrust>,
    /// Regions whose bits are durable.
    marked: RoaringBitmap,
    /// Bits that are on their way, and how many pages have not arrived.
    marking: Option<(RoaringBitmap, usize)>,
    wanted: RoaringBitmap,
    /// Bits may be taken back when none are on their way.
    clearing: bool,
    settling: Option<Settling>,
    /// What comes into this disk, if it is being made a copy.
    copying: Option<Copying>,
    /// What a copy brought that the next flush makes durable.
    arrived: Option<Arrived>,
    /// The newest point is where a copy of this disk has begun.
    based: bool,
    /// Numbers the points that were settled, so that a late answer is not taken for another's.
    settled: u64,
    reached: Option<Point>,
    steps: Vec<(Ticket, Step)>,
    stamped: Option<Instant>,
    failed: bool,
}

/// The record of the image at this path.
pub(super) fn path_of(image: &DiskImage) -> PathBuf {
    beside::place(image.path(), image.is_device(), SUFFIX)
}

/// The record of the image at this path, for [`image_id::stamp`], if nobody has written to the image behind its back.
pub(super) fn trusting(image: &File, path: &Path, is_device: bool) -> io::Result<Option<File>> {
    let path = beside::place(path, is_device, SUFFIX);
    let record = match OpenOptions::new().write(true).open(&path) {
        Ok(record) => record,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(&path, error)),
    };
    let newer = image_id::is_newer(image, &record)?;
    Ok((!newer).then_some(record))
}

/// Makes sure that nobody trusts what was known of an image: it is about to be written to without a mirror.
pub(super) fn forget(image: &DiskImage) -> io::Result<()> {
    forget_at(image.path(), image.is_device())
}

/// The same for the image at this path.
pub(super) fn forget_at(image: &Path, is_device: bool) -> io::Result<()> {
    let path = beside::place(image, is_device, SUFFIX);
    match fs::remove_file(&path) {
        Ok(()) => beside::sync_directory(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(named(&path, error)),
    }
}

impl Mirror {
    /// Takes up what is known of this image as that disk of the VM; nothing, if it can't be trusted.
    ///
    /// # Errors
    /// The record can't be written.
    pub(super) fn open(image: &DiskImage, vm: &str, disk: u32) -> io::Result<Self> {
        let path = path_of(image);
        Self::open_at(&path, image, vm, disk).map_err(|error| named(&path, error))
    }

    fn open_at(path: &Path, image: &DiskImage, vm: &str, disk: u32) -> io::Result<Self> {
        let bytes = image.bytes();
        if bytes > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        beside::make_directory(path)?;
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = Arc::new(options.open(path)?);
        let id = ImageId::of(image.file(), bytes)?;
        let found = match is_new {
            true => Err(Distrust::New),
            false => trusted(&file, image, &id, vm, disk)?,
        };
        let regions = regions_of(0, bytes).end;
        let mut mirror = Self {
            path: path.into(),
            header: Header::new(vm, disk, id),
            blocks: blocks_of(0, bytes).end,
            points: Vec::new(),
            distrust: None,
            marked: RoaringBitmap::new(),
            marking: None,
            wanted: RoaringBitmap::new(),
            clearing: false,
            settling: None,
            copying: None,
            arrived: None,
            based: false,
            settled: 0,
            reached: None,
            steps: Vec::new(),
            stamped: None,
            failed: false,
            file,
        };
        match found {
            Ok((header, marked)) => mirror.take_up(header, marked),
            Err(distrust) => {
                mirror.distrust = Some(distrust);
                // No header may be whole before the pages are.
                mirror.file.set_len(0)?;
                for number in 0..pages(regions) {
                    let (offset, bytes) = page(number, &mirror.marked);
                    std::os::unix::fs::FileExt::write_all_at(&*mirror.file, &bytes, offset)?;
                }
                mirror.file.sync_all()?;
            }
        }
        mirror.header.closed = None;
        mirror.write_header()?;
        if is_new {
            beside::sync_directory(path)?;
        }
        Ok(mirror)
    }

    fn take_up(&mut self, header: Header, marked: RoaringBitmap) {
        let mut changed = BlockSet::default();
        let per_region = (REGION_BYTES / BLOCK_BYTES) as u32;
        for region in &marked {
            let first = region * per_region;
            changed.insert(first..self.blocks.min(first + per_region));
        }
        let points = header.points.iter();
        self.points = points
            .map(|point| Known {
                point: *point,
                changed: changed.clone(),
                durable: true,
            })
            .collect();
        if self.points.is_empty() {
            self.distrust = Some(Distrust::Unfinished);
        }
        self.header = header;
        self.marked = marked;
    }

    /// What it knows, for the twin.
    pub(super) fn held(&self) -> Held {
        let durable = self.points.iter().filter(|known| known.durable);
        let distrust = self.distrust.clone();
        let mut changed = BlockSet::default();
        for known in &self.points {
            changed.unite(&known.changed);
        }
        Held {
            points: durable.map(|known| known.point).collect(),
            changed,
            distrust: distrust.filter(|_| self.points.iter().all(|known| !known.durable)),
        }
    }

    /// The newest point that both know, and what the disks may differ in since.
    pub(super) fn common(&self, theirs: &Held) -> Option<(Point, BlockSet)> {
        let mut ours = self.points.iter().rev();
        let known = ours.find(|known| theirs.points.contains(&known.point))?;
        let mut changed = known.changed.clone();
        changed.unite(&theirs.changed);
        // A twin may say what it likes; there are no such blocks here.
        changed.cut(self.blocks);
        Some((known.point, changed))
    }

    /// The newest point is where a copy of this disk begins.
    pub(super) fn begin_base(
        &mut self,
        point: Point,
        keep: &[Point],
        under_way: impl Iterator<Item = (u64, u64)>,
    ) {
        self.begin_point(point, keep, under_way);
        self.based = true;
    }

    /// Both disks hold the same from now on, but for what is under way here. Of older points only these are kept.
    pub(super) fn begin_point(
        &mut self,
        point: Point,
        keep: &[Point],
        under_way: impl Iterator<Item = (u64, u64)>,
    ) {
        if self.failed {
            return;
        }
        self.settling = None;
        let whole = self.copying.take().filter(Copying::is_whole);
        if let Some(copying) = whole {
            self.arrived = Some(Arrived::new(copying.point(), self.blocks));
        }
        self.based = false;
        self.points
            .retain(|known| known.durable && known.point != point && keep.contains(&known.point));
        let mut changed = BlockSet::default();
        for (offset, len) in under_way {
            changed.insert_bytes(offset, len);
        }
        self.points.push(Known {
            point,
            changed,
            durable: false,
        });
    }

    /// Makes a point durable that has begun, so that a later run knows it; `alone`: the twin does already, and older
    /// ones are of no use any more.
    pub(super) fn settle(&mut self, point: Point, alone: bool) {
        if self.points.iter().any(|known| known.point == point) {
            self.settled += 1;
            self.settling = Some(Settling {
                point,
                alone,
                needed: None,
                header_sent: false,
            });
            self.steps.push((Ticket::Flush(self.settled), Step::Flush));
        }
    }

    /// The point that was made durable since the last call.
    pub(super) fn take_reached(&mut self) -> Option<Point> {
        self.reached.take()
    }

    /// Whether there is one for that.
    pub(super) fn has_reached(&self) -> bool {
        self.reached.is_some()
    }

    /// Points that are durable here.
    pub(super) fn durable_points(&self) -> Vec<Point> {
        let durable = self.points.iter().filter(|known| known.durable);
        durable.map(|known| known.point).collect()
    }

    /// Whether anything was written since the newest point, or there is none.
    pub(super) fn wants_point(&self) -> bool {
        !self.failed
            && match self.points.last() {
                Some(known) => !known.durable || !known.changed.is_empty() || self.based,
                None => true,
            }
    }

    /// The guest is about to write. True if it may at once; else [`Self::is_marked`] says when.
    pub(super) fn touch(&mut self, offset: u64, len: u64) -> bool {
        if self.points.is_empty() {
            return true;
        }
        self.note(offset, len);
        // Breaks I10 on purpose: what is written is forgotten in a crash.
        fail::fail_point!("mirror::unmarked", |_| true);
        if self.is_marked(offset, len) {
            return true;
        }
        self.wanted.insert_range(regions_of(offset, len));
        self.mark();
        false
    }

    /// Whether what is about to be written here is known to be so, durably.
    pub(super) fn is_marked(&self, offset: u64, len: u64) -> bool {
        self.failed || self.points.is_empty() || self.marked.contains_range(regions_of(offset, len))
    }

    /// Something was written, or is about to be.
    pub(super) fn note(&mut self, offset: u64, len: u64) {
        fail::fail_point!("mirror::unnoted", |_| ());
        for known in &mut self.points {
            known.changed.insert_bytes(offset, len);
        }
        if let Some(arrived) = &mut self.arrived {
            arrived.note(offset, len);
        }
    }

    /// When the disk was last compared with its twin's, as noted: seconds since 1970.
    pub(super) fn scrubbed(&self) -> Option<u64> {
        self.header.scrubbed
    }

    /// Notes that.
    pub(super) fn note_scrub(&mut self, at: u64) {
        self.header.scrubbed = Some(at);
        // A point's own header takes it along.
        if self.failed || self.settling.is_some() {
            return;
        }
        self.header.points = self.durable_points();
        match self.header.advance() {
            Ok((offset, bytes)) => {
                let bytes = bytes.into();
                self.steps
                    .push((Ticket::Note, Step::Write { offset, bytes }));
            }
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Leaves word now and then that it is this process that writes.
    pub(super) fn stamp(&mut self) {
        if !self.failed && self.stamped.is_none_or(|at| at.elapsed() >= STAMP) {
            self.stamped = Some(Instant::now());
            if let Err(error) = image_id::stamp(&self.file) {
                tracing::debug!(%error, "a disk's record can't be stamped");
            }
        }
    }

    /// Leaves word at once.
    pub(super) fn stamp_now(&mut self) {
        self.stamped = None;
        self.stamp();
    }

    /// The image is larger now, by bytes that both twins have as zeroes. Nothing is under way, neither on it nor on the record.
    pub(super) fn grow(&mut self, image: &DiskImage) {
        if self.failed {
            return;
        }
        if let Err(error) = self.grow_record(image.bytes()) {
            return self.fail(&error.to_string());
        }
        // A header that was written meanwhile may not name the point.
        if let Some(Settling { point, alone, .. }) = self.settling.take() {
            self.settle(point, alone);
        }
    }

    fn grow_record(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let old = pages(regions_of(0, self.header.image.bytes).end);
        for number in old..pages(regions_of(0, bytes).end) {
            let (offset, bytes) = page(number, &self.marked);
            std::os::unix::fs::FileExt::write_all_at(&*self.file, &bytes, offset)?;
        }
        self.file.sync_data()?;
        self.header.image.bytes = bytes;
        self.blocks = blocks_of(0, bytes).end;
        self.write_header()
    }

    /// Steps to be taken, in any order.
    pub(super) fn take_steps(&mut self) -> Vec<(Ticket, Step)> {
        std::mem::take(&mut self.steps)
    }

    /// The record, for [`Step::Write`].
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// A step is done.
    pub(super) fn done(&mut self, ticket: Ticket, result: &io::Result<()>) {
        if let Err(error) = result {
            return self.fail(&error.to_string());
        }
        match ticket {
            Ticket::Bits => {
                if let Some((_, left)) = &mut self.marking {
                    *left -= 1;
                    if *left == 0 {
                        self.marked |= self.marking.take().unwrap_or_default().0;
                    }
                }
                self.mark();
                self.go_on();
            }
            Ticket::Flush(number) if number == self.settled => {
                let Some(settling) = &mut self.settling else {
                    return;
                };
                let alone = settling.alone.then_some(settling.point);
                if let Some(arrived) = self.arrived.take() {
                    arrived.became_durable(&mut self.points);
                }
                let stay = self.points.iter();
                let stay = stay.filter(|known| alone.is_none_or(|point| known.point == point));
                let needed = regions(stay);
                self.wanted |= &needed - &self.marked;
                settling.needed = Some(needed);
                self.mark();
                self.go_on();
            }
            Ticket::Header(number) if number == self.settled => self.header_is_durable(),
            Ticket::Flush(_) | Ticket::Header(_) | Ticket::Note => {}
        }
    }

    /// Sends the header once all bits that it needs are durable.
    fn go_on(&mut self) {
        let Some(settling) = &mut self.settling else {
            return;
        };
        let ready = settling
            .needed
            .as_ref()
            .is_some_and(|needed| needed.is_subset(&self.marked));
        if !ready || settling.header_sent {
            return;
        }
        settling.header_sent = true;
        let (alone, point) = (settling.alone, settling.point);
        let points = self.points.iter().map(|known| known.point);
        self.header.points = points.filter(|one| !alone || *one == point).collect();
        match self.header.advance() {
            Ok((offset, bytes)) => {
                let bytes = bytes.into();
                let write = Step::Write { offset, bytes };
                self.steps.push((Ticket::Header(self.settled), write));
            }
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn header_is_durable(&mut self) {
        let Some(Settling { point, alone, .. }) = self.settling.take() else {
            return;
        };
        if alone {
            self.points.retain(|known| known.point == point);
        }
        for known in &mut self.points {
            known.durable = true;
        }
        self.reached = Some(point);
        self.clearing = true;
        self.mark();
        self.settle_received();
    }

    /// Sends the bits that are wanted, or else takes back those that nobody needs any more: one or the other at a time, so that
    /// no two writes of a page are under way.
    fn mark(&mut self) {
        if self.marking.is_some() {
            return;
        }
        let before = &self.marked;
        let (next, changed) = if !self.wanted.is_empty() {
            let wanted = std::mem::take(&mut self.wanted);
            let changed = &wanted - before;
            (before | &wanted, changed)
        } else if std::mem::take(&mut self.clearing) {
            let needed = regions(self.points.iter());
            let kept = before & &needed;
            let changed = before - &kept;
            // From here on such a region needs its bit anew.
            self.marked = kept.clone();
            (kept, changed)
        } else {
            return;
        };
        let mut numbers: Vec<_> = changed.iter().map(page_of).collect();
        numbers.dedup();
        for number in &numbers {
            let (offset, bytes) = page(*number, &next);
            let bytes = bytes.into();
            self.steps
                .push((Ticket::Bits, Step::Write { offset, bytes }));
        }
        if !numbers.is_empty() {
            self.marking = Some((next, numbers.len()));
        }
    }

    /// Nothing can be written down any more. Nobody may trust what was.
    fn fail(&mut self, why: &str) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.points.clear();
        self.settling = None;
        self.distrust = Some(Distrust::Failed(why.to_owned()));
        let path = self.path.display();
        tracing::error!(%path, why, "what is written to this disk can't be recorded: the next copy will be a full one");
        let removed = fs::remove_file(&self.path);
        if let Err(error) = removed.and_then(|()| beside::sync_directory(&self.path)) {
            tracing::error!(%path, %error, "remove this file by hand before the next start");
        }
    }

    /// Puts the disk down in an orderly way, with nothing under way on it.
    pub(super) fn close(&mut self, image: &DiskImage) {
        if self.failed || self.marking.is_some() {
            return;
        }
        let closed = changed_at(image.file()).and_then(|at| {
            self.header.closed = Some(at);
            self.write_header()
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "a disk's record could not be closed: its next copy may be a full one");
        }
    }

    /// Writes the header of what is durable, and waits for it.
    fn write_header(&mut self) -> io::Result<()> {
        self.header.points = self.durable_points();
        let (offset, bytes) = self.header.advance()?;
        std::os::unix::fs::FileExt::write_all_at(&*self.file, &bytes, offset)?;
        self.file.sync_data()
    }
}

/// What a record says that may be believed.
fn trusted(
    file: &File,
    image: &DiskImage,
    id: &ImageId,
    vm: &str,
    disk: u32,
) -> io::Result<Result<(Header, RoaringBitmap), Distrust>> {
    let (header, marked) = match record::read(file, id.bytes) {
        Ok(found) => found,
        Err(distrust) => return Ok(Err(distrust)),
    };
    if header.vm != vm || header.disk != disk {
        let Header { vm, disk, .. } = header;
        return Ok(Err(Distrust::Other { vm, disk }));
    }
    if header.image != *id {
        return Ok(Err(Distrust::Replaced));
    }
    let same = match header.closed {
        Some(closed) => changed_at(image.file())? == closed,
        None => !image_id::is_newer(image.file(), file)?,
    };
    Ok(match same {
        true => Ok((header, marked)),
        false => Err(Distrust::Changed),
    })
}

/// The regions of all that was written since these points.
fn regions<'a>(points: impl Iterator<Item = &'a Known>) -> RoaringBitmap {
    let per_region = (REGION_BYTES / BLOCK_BYTES) as u32;
    let mut regions = RoaringBitmap::new();
    for Range { start, end } in points.flat_map(|known| known.changed.runs(usize::MAX)) {
        regions.insert_range(start / per_region..end.div_ceil(per_region));
    }
    regions
}

fn named(path: &Path, error: io::Error) -> io::Error {
    let path = path.display();
    let message = format!("{path} can't be used to record what a disk holds: {error}");
    io::Error::new(error.kind(), message)
}
