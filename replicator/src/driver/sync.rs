//! Sending memory to a standby while the guest runs.

use std::time::{Duration, Instant};

use evertwin_protocol::{Input, Report};
use tracing::{error, info};

use super::Driver;
use crate::connection::Connection;
use crate::control::SyncStatus;
use crate::crash::crash_point;
use crate::give_back;
use crate::machine::{DiskPosition, MemoryRegion, PAGE_SIZE};
use crate::wire::{PAGES_PER_FRAME, copying, sync_disk_frames, sync_frame};

/// Bulk bytes that may wait for a send before more pages are read.
const AHEAD: usize = 1 << 20;

/// Bytes of disk contents read at once, at least: as many as the guest has written meanwhile, so that the copy comes to its end
/// however much that is.
const DISK_CHUNK: usize = 256 << 10;

/// Bytes looked at in one go. Zeroes are not sent, so what there is to send does not bound
/// the work, and heartbeats must not wait for it.
const AT_ONCE: u64 = 4 << 20;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);

/// One round of a sync: all of memory, or what was dirtied meanwhile.
pub(super) struct SyncRound {
    generation: u64,
    /// How far the copy of the disks has come; memory follows it.
    disks: Option<DiskPosition>,
    disk_bytes: u64,
    disk_of: u64,
    /// What the guest wrote between the last two pieces of contents, in bytes.
    written: u64,
    /// All was read; some of it may still be on its way to the link.
    all_read: bool,
    /// Bytes per second that it may send, if not all that it can.
    rate: Option<u64>,
    source: Source,
    total: u64,
    sent: u64,
    bytes: u64,
    began: Instant,
    told: Instant,
    slowed_percent: u8,
    chunk: Vec<u64>,
    contents: Vec<u8>,
}

enum Source {
    /// Regions not begun, last first, and the pages left of the current one.
    Memory(Vec<MemoryRegion>, std::ops::Range<u64>),
    Harvest(std::vec::IntoIter<u64>),
}

impl SyncRound {
    /// The disks, then all memory.
    pub(super) fn everything(generation: u64, memory: &[MemoryRegion], rate: Option<u64>) -> Self {
        let bytes = memory.iter().map(|region| region.len).sum::<u64>();
        let regions = memory.iter().rev().copied().collect();
        let source = Source::Memory(regions, 0..0);
        let mut round = Self::new(generation, source, bytes / PAGE_SIZE as u64);
        round.disks = Some(DiskPosition::default());
        round.rate = rate;
        round
    }

    pub(super) fn harvest(generation: u64, pages: Vec<u64>, slowed_percent: u8) -> Self {
        let total = pages.len() as u64;
        let mut round = Self::new(generation, Source::Harvest(pages.into_iter()), total);
        round.slowed_percent = slowed_percent;
        round
    }

    fn new(generation: u64, source: Source, total: u64) -> Self {
        Self {
            generation,
            disks: None,
            disk_bytes: 0,
            disk_of: 0,
            written: 0,
            all_read: false,
            rate: None,
            source,
            total,
            sent: 0,
            bytes: 0,
            began: Instant::now(),
            told: Instant::now(),
            slowed_percent: 0,
            chunk: Vec::with_capacity(PAGES_PER_FRAME),
            contents: Vec::with_capacity(PAGES_PER_FRAME * PAGE_SIZE),
        }
    }

    /// Fills the chunk with the next pages; false when there are none left.
    fn advance(&mut self) -> bool {
        self.chunk.clear();
        self.contents.clear();
        match &mut self.source {
            Source::Harvest(pages) => self.chunk.extend(pages.take(PAGES_PER_FRAME)),
            Source::Memory(regions, left) => {
                while self.chunk.len() < PAGES_PER_FRAME {
                    match left.next() {
                        Some(page) => self.chunk.push(page),
                        None => {
                            let Some(region) = regions.pop() else {
                                break;
                            };
                            let first = region.start / PAGE_SIZE as u64;
                            *left = first..first + region.len / PAGE_SIZE as u64;
                        }
                    }
                }
            }
        }
        self.sent += self.chunk.len() as u64;
        !self.chunk.is_empty()
    }

    /// Bytes of memory and disks that it has read.
    fn looked_at(&self) -> u64 {
        self.sent * PAGE_SIZE as u64 + self.disk_bytes
    }

    /// When it may send more.
    pub(super) fn due(&self) -> Option<Instant> {
        let seconds = self.bytes as f64 / self.rate? as f64;
        let time = Duration::try_from_secs_f64(seconds).ok()?;
        self.began.checked_add(time)
    }

    /// The disks that it begins with have so many bytes.
    pub(super) fn set_disks(&mut self, bytes: u64) {
        self.disk_of = bytes;
    }

    /// How far it has come.
    pub(super) fn status(&self) -> SyncStatus {
        let mut status = SyncStatus {
            pages: self.sent,
            of: self.total,
            disk_bytes: self.disk_bytes.min(self.disk_of),
            disk_of: self.disk_of,
            bytes: self.bytes,
            eta_ms: None,
            slowed_percent: self.slowed_percent,
        };
        let done = status.done_bytes();
        let left = status.all_bytes().saturating_sub(done);
        let elapsed = self.began.elapsed().as_millis();
        let eta = elapsed * u128::from(left) / u128::from(done.max(1));
        status.eta_ms = (done > 0).then(|| u64::try_from(eta).unwrap_or(u64::MAX));
        status
    }

    /// Before this position all disks have been read and queued.
    pub(super) fn copied(&self) -> DiskPosition {
        // Breaks I10 on purpose: what was not sent counts as received.
        fail::fail_point!("copy::told_early", |_| DiskPosition::END);
        self.disks.unwrap_or(DiskPosition::END)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Says now and then how far it has come, also to the standby if that can take it.
    fn tell(&mut self, done: bool, standby: Option<&mut Connection>) {
        if done || self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            let status = self.status();
            log(&status);
            if let Some(link) = standby {
                link.queue_control(copying::progress_frame(self.generation, &status));
            }
        }
    }
}

/// Says how far a sync has come.
pub(super) fn log(status: &SyncStatus) {
    let percent = status.percent();
    let SyncStatus {
        pages,
        of,
        disk_bytes,
        disk_of,
        bytes,
        eta_ms,
        slowed_percent,
    } = *status;
    info!(
        pages,
        of, disk_bytes, disk_of, bytes, percent, eta_ms, slowed_percent, "sync progress"
    );
}

impl Driver<'_> {
    /// Reads and queues as much of the round as the link takes just now.
    pub(super) fn pump_sync(&mut self) {
        self.eager = false;
        if self.starts_tracking || self.disks.awaits_standby() {
            return;
        }
        self.tell_copied();
        let goes_on = self.peer_goes_on();
        let (Some(round), Some(link)) = (&mut self.sync, &mut self.network.link) else {
            return;
        };
        let begun = round.looked_at();
        // What the guest writes from here on is taken by the next round: else this one would not end before the guest pauses.
        let mut live = (!round.all_read).then_some(DiskPosition::END);
        // Memory has as much of the link as the guest's writes, however fast it writes.
        let mut owed = 0;
        while link.bulk_bytes() < AHEAD || owed > 0 {
            if round.looked_at() - begun >= AT_ONCE {
                self.eager = true;
                return;
            }
            // Behind the disks' contents, only what the guest has written since is left. It
            // is taken in each turn: a guest whose writes nobody takes has to wait.
            let paused = round.due().is_some_and(|at| at > Instant::now());
            if paused && live.is_none() {
                return;
            }
            let contents = round.disks.filter(|_| !paused);
            if let Some(from) = contents.or(live.take()) {
                let mut writes = Vec::new();
                let chunk = (round.written.min(AT_ONCE) as usize).max(DISK_CHUNK);
                let next = match self.machine.read_disks(from, chunk, &mut writes) {
                    Ok(next) => next,
                    Err(error) => {
                        error!(%error, "the disks can't be copied to the standby");
                        self.sync = None;
                        return self.lose_link("the disks can't be copied");
                    }
                };
                // What the guest has written meanwhile comes behind the contents.
                let all = writes.iter().map(|write| write.data.span()).sum::<u64>();
                let piece = writes.first().filter(|_| next.is_some());
                let piece = piece.map_or(0, |piece| piece.data.span());
                round.disk_bytes += piece;
                round.written = all - piece;
                if contents.is_some() {
                    round.disks = next;
                } else {
                    owed = all.min(AT_ONCE);
                }
                for frame in writes
                    .iter()
                    .flat_map(|write| sync_disk_frames(round.generation, write))
                {
                    round.bytes += link.queue_bulk(frame) as u64;
                }
                round.tell(false, goes_on.then_some(link));
                crash_point("sync::disks");
                continue;
            }
            if !round.advance() {
                round.all_read = true;
                if link.all_sent() {
                    round.tell(true, goes_on.then_some(link));
                    crash_point("sync::round");
                    self.sync = None;
                    self.inputs.push_back(Input::RoundSent);
                }
                return;
            }
            self.machine.read_pages(&round.chunk, &mut round.contents);
            owed = owed.saturating_sub(round.contents.len() as u64);
            let frame = sync_frame(round.generation, &round.chunk, &round.contents);
            round.bytes += link.queue_bulk(frame) as u64;
            round.tell(false, goes_on.then_some(link));
            crash_point("sync::memory");
        }
    }
}

impl Driver<'_> {
    /// A copy needs more memory than what comes after it.
    pub(super) fn give_back_memory(&mut self, report: Report) {
        if matches!(report, Report::Protected(_) | Report::StandbyReady(_)) {
            give_back::freed_memory();
            // That of the link is in use at the moment.
            self.link_gives_back = true;
        }
    }
}
