//! A machine without a CPU: its guest counts, writes the count to memory and emits it.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use evertwin_replicator::machine::{
    Capture, CopyBase, DiskCopy, DiskData, DiskPlan, DiskPosition, DiskWrite, HeldDisk, Identity,
    InboundFrame, Machine, MachineError, MemoryRegion, NewBase, PAGE_SIZE,
};
use rustix::event::{EventfdFlags, eventfd};

use super::checks::Checks;

/// Numbers that guests have emitted, in the order in which the world saw them.
pub(crate) type World = Arc<Mutex<Vec<u64>>>;

/// First page of the second memory region: there is a hole between the two.
pub(crate) const HIGH: u64 = 0x1000;

/// What the guest's disk holds: the last count for each of 16 blocks.
type Disk = [u64; 16];

pub(crate) struct FakeVm(pub(super) Handle);

/// Shared by the replicator's thread and the test.
#[derive(Clone)]
pub(crate) struct Handle {
    inner: Arc<Mutex<Inner>>,
    waiting: Arc<OwnedFd>,
    switched: Arc<OwnedFd>,
    exited: Arc<OwnedFd>,
    inbound: Arc<OwnedFd>,
    pub(super) reached: Arc<OwnedFd>,
}

pub(crate) struct Inner {
    pub identity: Identity,
    /// Pages of both regions, in order.
    pages: u64,
    pub memory: Vec<u8>,
    pub disk: Disk,
    pub count: u64,
    pub running: bool,
    pub fenced: bool,
    tracking: bool,
    dirty: BTreeSet<u64>,
    pub(super) writes: Vec<DiskWrite>,
    held: bool,
    queue: VecDeque<(Option<u64>, u64)>,
    world: World,
    applied: Option<Vec<u8>>,
    pub epochs: u64,
    pub peeks: u64,
    pub failing_captures: u32,
    /// What the hypervisor needs to start tracking.
    pub tracking_takes: Duration,
    tracks_at: Instant,
    pub promotions: u32,
    arrived: Vec<InboundFrame>,
    /// Why the host can't go on.
    pub failure: Option<&'static str>,
    /// Frames that promotion gave to the guest again.
    pub again: Vec<InboundFrame>,
    /// Frames for a guest that was handed over are no longer passed on.
    pub forwarded: bool,
    /// What its disk was told to know, oldest first.
    pub points: Vec<u128>,
    reached: Option<u128>,
    begun: bool,
    pub withholds: bool,
    disk_failure: Option<&'static str>,
    /// What its standby said of its disks.
    pub told: Option<Vec<HeldDisk>>,
    /// The begin of its copies that both know.
    base: Option<u128>,
    /// How far its copies have come.
    pub copied: Option<DiskPosition>,
    pub checks: Checks,
}

impl FakeVm {
    /// A machine with `pages` pages, at least 32, that emits to `world`.
    pub(crate) fn new(world: &World, pages: u64) -> Self {
        let low = pages / 2;
        let memory = vec![
            MemoryRegion {
                start: 0,
                len: low * PAGE_SIZE as u64,
            },
            MemoryRegion {
                start: HIGH * PAGE_SIZE as u64,
                len: (pages - low) * PAGE_SIZE as u64,
            },
        ];
        let event = || Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        Self(Handle {
            inner: Arc::new(Mutex::new(Inner {
                identity: Identity {
                    lease: None,
                    vm: "demo".to_owned(),
                    memory,
                    vcpus: 1,
                    devices: vec!["disk 0".into()],
                    cpu: Vec::new(),
                    msrs: Vec::new(),
                },
                pages,
                memory: vec![0; pages as usize * PAGE_SIZE],
                disk: Disk::default(),
                count: 0,
                running: false,
                fenced: false,
                tracking: false,
                dirty: BTreeSet::new(),
                writes: Vec::new(),
                held: true,
                queue: VecDeque::new(),
                world: world.clone(),
                applied: None,
                epochs: 0,
                peeks: 0,
                failing_captures: 0,
                tracking_takes: Duration::ZERO,
                tracks_at: Instant::now(),
                promotions: 0,
                arrived: Vec::new(),
                again: Vec::new(),
                forwarded: false,
                failure: None,
                points: Vec::new(),
                reached: None,
                begun: false,
                withholds: false,
                disk_failure: None,
                told: None,
                base: None,
                copied: None,
                checks: Checks::default(),
            })),
            waiting: event(),
            switched: event(),
            exited: event(),
            inbound: event(),
            reached: event(),
        })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.0.clone()
    }
}

impl Handle {
    /// Nothing more fits on its disk.
    pub(crate) fn fill_disk(&self) {
        self.lock().checks.full = true;
        rustix::io::write(&*self.reached, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    /// Its disk has more to write than it can hold, or has room again.
    pub(crate) fn fall_behind(&self, behind: bool) {
        self.lock().checks.behind = behind;
        rustix::io::write(&*self.reached, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    /// A request of the guest fails, and is withheld.
    pub(crate) fn fail_disk(&self, why: &'static str) {
        self.lock().disk_failure = Some(why);
        rustix::io::write(&*self.reached, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("no test panics with the lock held")
    }

    pub(crate) fn running(&self) -> bool {
        self.lock().running
    }

    /// Lets the guest count to one more, if it runs.
    pub(crate) fn step(&self) -> bool {
        let mut inner = self.lock();
        if !inner.running {
            return false;
        }
        let signal = inner.step();
        drop(inner);
        if signal {
            rustix::io::write(&*self.waiting, &1u64.to_ne_bytes()).expect("an eventfd");
        }
        true
    }

    /// The guest gets a frame in the given epoch.
    pub(crate) fn receive(&self, epoch: u64, bytes: &[u8]) {
        self.lock().arrived.push(InboundFrame {
            card: 0,
            epoch,
            bytes: bytes.to_vec(),
        });
        rustix::io::write(&*self.inbound, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    /// The guest shuts down.
    pub(crate) fn exit(&self) {
        self.lock().running = false;
        rustix::io::write(&*self.exited, &1u64.to_ne_bytes()).expect("an eventfd");
    }
}

impl Inner {
    fn page_number(&self, index: u64) -> u64 {
        let low = self.pages / 2;
        if index < low {
            index
        } else {
            HIGH + index - low
        }
    }

    fn offset(&self, page: u64) -> Option<usize> {
        let low = self.pages / 2;
        let index = if page < low {
            page
        } else {
            page.checked_sub(HIGH)? + low
        };
        (index < self.pages).then_some(index as usize * PAGE_SIZE)
    }

    fn step(&mut self) -> bool {
        self.count += 1;
        let count = self.count;
        let page = self.page_number(count % self.pages);
        let at = self.offset(page).expect("a page of this machine");
        for word in self.memory[at..at + PAGE_SIZE].chunks_exact_mut(8) {
            word.copy_from_slice(&count.to_le_bytes());
        }
        self.disk[(count % 16) as usize] = count;
        if self.tracking {
            self.dirty.insert(page);
            // Zeroed first, in the same epoch: the order counts.
            let offset = (count % 16) * 8;
            let zeroes = DiskData::Zeroes {
                len: 8,
                unmap: true,
            };
            let number = DiskData::Bytes(count.to_le_bytes().to_vec().into());
            self.writes.extend([zeroes, number].map(|data| DiskWrite {
                disk: 0,
                offset,
                data,
            }));
        }
        if !self.held {
            self.world.lock().expect("unpoisoned").push(count);
            return false;
        }
        let first = self.queue.back().is_none_or(|(epoch, _)| epoch.is_some());
        self.queue.push_back((None, count));
        first
    }

    /// Is memory and disk exactly what a guest that has counted this far leaves behind?
    pub(crate) fn consistent(&self) -> bool {
        let last = |index: u64, of: u64| {
            let back = (self.count + of - index) % of;
            self.count.saturating_sub(back)
        };
        let memory = (0..self.pages).all(|index| {
            let at = index as usize * PAGE_SIZE;
            let want = if index == 0 && self.count < self.pages {
                0
            } else {
                last(index, self.pages)
            };
            let mut words = self.memory[at..at + PAGE_SIZE].chunks_exact(8);
            words.all(|word| word == want.to_le_bytes())
        });
        let disk = (0..16).all(|index| {
            let want = if index == 0 && self.count < 16 {
                0
            } else {
                last(index, 16)
            };
            self.disk[index as usize] == want
        });
        memory && disk
    }

    fn repeat(&mut self, writes: &[DiskWrite]) {
        for write in writes {
            let first = write.offset as usize / 8;
            let bytes = match &write.data {
                DiskData::Bytes(bytes) => bytes,
                DiskData::Zeroes { len, .. } => &vec![0; *len as usize].into(),
            };
            for (index, word) in bytes.chunks_exact(8).enumerate() {
                let word = word.try_into().expect("eight bytes");
                self.disk[first + index] = u64::from_le_bytes(word);
            }
        }
    }

    fn emit(&mut self, may: impl Fn(Option<u64>) -> bool) {
        let mut world = self.world.lock().expect("unpoisoned");
        while let Some((_, count)) = self.queue.pop_front_if(|(epoch, _)| may(*epoch)) {
            world.push(count);
        }
    }
}

impl Machine for FakeVm {
    fn identity(&self) -> Identity {
        self.0.lock().identity.clone()
    }

    fn replicate_all(&mut self, _all: bool) -> Result<(), MachineError> {
        Ok(())
    }

    fn boot(&mut self) -> Result<(), MachineError> {
        self.0.lock().running = true;
        Ok(())
    }

    fn hold_output(&mut self) {
        self.0.lock().held = true;
    }

    fn open_output(&mut self) {
        let mut inner = self.0.lock();
        inner.held = false;
        inner.emit(|_| true);
    }

    fn drop_output(&mut self) {
        self.0.lock().queue.clear();
    }

    fn release_through(&mut self, through: u64) {
        self.0
            .lock()
            .emit(|epoch| epoch.is_some_and(|epoch| epoch <= through));
    }

    fn start_tracking(&mut self) {
        let mut inner = self.0.lock();
        let takes = inner.tracking_takes;
        inner.tracks_at = Instant::now() + takes;
        let switched = self.0.switched.clone();
        thread::spawn(move || {
            thread::sleep(takes);
            rustix::io::write(&*switched, &1u64.to_ne_bytes()).expect("an eventfd");
        });
    }

    fn tracking_started(&mut self) -> Result<(), MachineError> {
        let at = self.0.lock().tracks_at;
        thread::sleep(at.saturating_duration_since(Instant::now()));
        self.0.lock().tracking = true;
        Ok(())
    }

    fn tracking_switched(&self) -> RawFd {
        self.0.switched.as_raw_fd()
    }

    fn stop_tracking(&mut self) {
        let mut inner = self.0.lock();
        inner.tracking = false;
        inner.dirty.clear();
        inner.writes.clear();
    }

    fn harvest_live(&mut self, pages: &mut Vec<u64>) -> Result<(), MachineError> {
        let mut inner = self.0.lock();
        inner.peeks += 1;
        pages.clear();
        pages.extend(std::mem::take(&mut inner.dirty));
        Ok(())
    }

    fn read_disks(
        &mut self,
        from: DiskPosition,
        limit: usize,
        writes: &mut Vec<DiskWrite>,
    ) -> Result<Option<DiskPosition>, MachineError> {
        let mut inner = self.0.lock();
        let disk: Vec<u8> = inner.disk.iter().flat_map(|n| n.to_le_bytes()).collect();
        let rest = disk.get(from.offset as usize..).unwrap_or_default();
        // Small pieces, so that a copy takes several.
        let data = &rest[..rest.len().min(limit).min(32)];
        let next = DiskPosition {
            device: 0,
            offset: from.offset + data.len() as u64,
        };
        let more = !data.is_empty();
        if more {
            writes.push(DiskWrite {
                disk: 0,
                offset: from.offset,
                data: DiskData::Bytes(data.to_vec().into()),
            });
        }
        writes.append(&mut inner.writes);
        Ok(more.then_some(next))
    }

    fn held_disks(&mut self, _runs: usize) -> Vec<HeldDisk> {
        vec![HeldDisk {
            points: self.0.lock().points.clone(),
            ..HeldDisk::default()
        }]
    }

    fn plan_copies(&mut self, held: Option<&[HeldDisk]>, _base: Option<NewBase>) -> DiskPlan {
        let mut inner = self.0.lock();
        let tracks = inner.tracking && inner.tracks_at <= Instant::now();
        // A peer that says nothing gets everything, whatever is written meanwhile.
        assert!(
            tracks || held.is_none(),
            "what is written now is not recorded"
        );
        inner.told = held.map(<[HeldDisk]>::to_vec);
        DiskPlan::default()
    }

    fn base_is_known(&mut self, point: u128) {
        self.0.lock().base = Some(point);
    }

    fn knows_point(&self, point: u128) -> bool {
        self.0.lock().base == Some(point)
    }

    fn copied(&mut self, to: DiskPosition) {
        self.0.lock().copied = Some(to);
    }

    fn begin_copies(&mut self, _copies: &[DiskCopy], _base: Option<&CopyBase>) {
        let mut inner = self.0.lock();
        inner.disk.fill(0);
        inner.begun = true;
        rustix::io::write(&*self.0.reached, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    fn copies_begun(&mut self, _wait: bool) -> Option<Result<(), MachineError>> {
        std::mem::take(&mut self.0.lock().begun).then_some(Ok(()))
    }

    fn wants_point(&self) -> bool {
        true
    }

    fn begin_point(&mut self, _point: u128) -> Vec<u128> {
        self.0.lock().points.clone()
    }

    fn follow_point(&mut self, point: u128, keep: &[u128]) {
        let mut inner = self.0.lock();
        inner.points.retain(|known| keep.contains(known));
        inner.points.push(point);
        inner.reached = Some(point);
        rustix::io::write(&*self.0.reached, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    fn take_reached_point(&mut self) -> Option<u128> {
        self.0.lock().reached.take()
    }

    fn withhold_failures(&mut self, on: bool) {
        self.0.lock().withholds = on;
    }

    fn take_disk_failure(&mut self) -> Option<String> {
        self.0.lock().disk_failure.take().map(str::to_owned)
    }

    fn disks_changed(&self) -> RawFd {
        self.0.reached.as_raw_fd()
    }

    fn confirm_point(&mut self, point: u128) {
        self.0.lock().points = vec![point];
    }

    fn write_disks(&mut self, writes: &[DiskWrite]) -> Result<(), MachineError> {
        self.0.lock().repeat(writes);
        Ok(())
    }

    fn read_pages(&self, pages: &[u64], into: &mut Vec<u8>) {
        let inner = self.0.lock();
        for page in pages {
            let at = inner.offset(*page).expect("a page of this machine");
            into.extend_from_slice(&inner.memory[at..at + PAGE_SIZE]);
        }
    }

    fn capture(&mut self, epoch: u64, into: &mut Capture) -> Result<(), MachineError> {
        let mut inner = self.0.lock();
        if inner.failing_captures > 0 {
            inner.failing_captures -= 1;
            return Err(MachineError::new("a capture that fails on purpose"));
        }
        into.clear();
        into.pages.extend(std::mem::take(&mut inner.dirty));
        for page in &into.pages {
            let at = inner.offset(*page).expect("a page of this machine");
            into.bytes
                .extend_from_slice(&inner.memory[at..at + PAGE_SIZE]);
        }
        into.state.extend(inner.count.to_le_bytes());
        into.disk_writes = std::mem::take(&mut inner.writes);
        inner.epochs += 1;
        for entry in &mut inner.queue {
            entry.0.get_or_insert(epoch);
        }
        Ok(())
    }

    fn capture_last(&mut self, epoch: u64, into: &mut Capture) -> Result<(), MachineError> {
        self.capture(epoch, into)?;
        let mut inner = self.0.lock();
        inner.running = false;
        inner.applied = Some(into.state.clone());
        Ok(())
    }

    fn stop_forwarding(&mut self) {
        self.0.lock().forwarded = true;
    }

    fn receive(&mut self, frames: Vec<InboundFrame>) {
        self.0.lock().again.extend(frames);
    }

    fn slow_guest(&mut self, _: u8) {
        // It counts when its test says so.
    }

    fn lease(&mut self, _until: Option<Duration>) {}

    fn stop_guest(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn continue_guest(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn redirty(&mut self, pages: &[u64]) {
        self.0.lock().dirty.extend(pages);
    }

    fn fence(&mut self) {
        let mut inner = self.0.lock();
        inner.running = false;
        inner.fenced = true;
        inner.queue.clear();
    }

    fn store_pages(&mut self, pages: &[u64], bytes: &[u8]) -> Result<(), MachineError> {
        let mut inner = self.0.lock();
        for (page, bytes) in pages.iter().zip(bytes.chunks_exact(PAGE_SIZE)) {
            let at = inner.offset(*page);
            let at = at.ok_or_else(|| MachineError::new("no such page"))?;
            inner.memory[at..at + PAGE_SIZE].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn store_part(&mut self, page: u64, at: usize, bytes: &[u8]) -> Result<(), MachineError> {
        let mut inner = self.0.lock();
        let page = inner.offset(page);
        let page = page.ok_or_else(|| MachineError::new("no such page"))?;
        inner.memory[page + at..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn is_behind(&self) -> bool {
        self.0.lock().checks.behind
    }

    fn check_repeated(&self) -> Result<(), MachineError> {
        match self.0.lock().checks.full {
            true => Err(MachineError::new("No space left on device")),
            false => Ok(()),
        }
    }

    fn apply(&mut self, state: &[u8], disk_writes: &[DiskWrite]) -> Result<(), MachineError> {
        let mut inner = self.0.lock();
        inner.repeat(disk_writes);
        inner.applied = Some(state.to_vec());
        Ok(())
    }

    fn promote(&mut self, inbound: Vec<InboundFrame>) -> Result<(), MachineError> {
        let mut inner = self.0.lock();
        let state = inner.applied.take();
        let state = state.ok_or_else(|| MachineError::new("nothing was applied"))?;
        inner.count = u64::from_le_bytes(state.try_into().expect("eight bytes"));
        inner.promotions += 1;
        inner.again = inbound;
        inner.running = true;
        Ok(())
    }

    fn take_inbound(&mut self) -> Vec<InboundFrame> {
        std::mem::take(&mut self.0.lock().arrived)
    }

    fn inbound_waiting(&self) -> RawFd {
        self.0.inbound.as_raw_fd()
    }

    fn output_waiting(&self) -> RawFd {
        self.0.waiting.as_raw_fd()
    }

    fn after_guest_exit(&mut self) -> Result<bool, MachineError> {
        Ok(false)
    }

    fn exited(&self) -> RawFd {
        self.0.exited.as_raw_fd()
    }

    fn failure(&self) -> Option<MachineError> {
        self.0.lock().failure.map(MachineError::new)
    }
}
