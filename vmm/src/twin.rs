//! The machine as the replicator sees it: epochs out, epochs in.

mod applier;
mod dirty_pages;
mod disks;
mod disks_only;
mod growth;
mod scrub;

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use evertwin_devices::inbound::InboundFrame as DeviceFrame;
use evertwin_devices::virtio::{DiskData as DeviceData, DiskWrite as DeviceWrite};
use evertwin_replicator::machine::{
    Capture, CopyBase, CpuLeaf, DiskCopy, DiskData, DiskPlan, DiskPosition, DiskWrite, HeldDisk,
    Identity, InboundFrame, Machine as Replicated, MachineError, MemoryRegion, NewBase,
};
use vm_memory::{Bytes, GuestAddress};

use crate::checkpoint::{self, VmState};
use crate::config::FastPath;
use crate::kvm::cpuid_of_first_vcpu;
use crate::machine::{Error, Machine, PausePhases, Stopwatch, lock};
use crate::memory::{self, PAGE_SIZE};
use dirty_pages::{DirtyPages, copy_pages};
use disks::Disks;
use disks_only::DisksOnly;
use growth::Growth;
use scrub::Scrub;

/// A machine with what replication needs around it.
#[derive(Debug)]
pub struct Twin {
    machine: Machine,
    dirty: DirtyPages,
    /// Standby: the state that promotion restores.
    standing: Option<VmState>,
    disks: Disks,
    scrub: Scrub,
    growth: Growth,
    /// Nothing but these is replicated.
    disks_only: Option<DisksOnly>,
    /// The guest was handed over: the log of frames is for its new host.
    forwarding: bool,
    last_pause: PausePhases,
}

impl Twin {
    /// Wraps a machine that has not run yet; its output is held from here on.
    ///
    /// # Errors
    /// When this process can have no further thread or descriptor.
    pub fn new(machine: Machine) -> Result<Self, Error> {
        machine.gate().hold();
        Ok(Self {
            dirty: DirtyPages::new(&machine)?,
            standing: None,
            disks: Disks::new(&machine).map_err(|error| Error::Device(error.to_string()))?,
            scrub: Scrub::default(),
            growth: Growth::default(),
            disks_only: None,
            forwarding: false,
            last_pause: PausePhases::default(),
            machine,
        })
    }

    /// The same for a machine of which nothing but the disks is replicated: its twin boots the guest anew.
    ///
    /// # Errors
    /// When this process can have no further thread or descriptor.
    pub fn of_disks(machine: Machine) -> Result<Self, Error> {
        let mut twin = Self::new(machine)?;
        twin.set_disks_only(true)?;
        Ok(twin)
    }

    /// The same with these switches, before it replicates anything.
    #[must_use]
    pub fn with_fast_path(mut self, switches: &FastPath) -> Self {
        self.dirty.set_copy_ahead(switches.copy_ahead);
        self
    }

    fn set_disks_only(&mut self, on: bool) -> Result<(), Error> {
        self.disks_only = match on {
            true => Some(DisksOnly::new(&self.machine, self.dirty.signal()?)?),
            false => None,
        };
        Ok(())
    }

    /// The machine inside.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// How long the phases of the last capture took.
    pub fn last_pause(&self) -> PausePhases {
        self.last_pause
    }

    /// Ends an epoch: most pages are copied before the guest stands still. A failure loses none (I5).
    ///
    /// With `stay` the guest does not go on, and the machine holds the epoch like a standby.
    fn end_epoch(&mut self, epoch: u64, into: &mut Capture, stay: bool) -> Result<(), Error> {
        let mut phases = PausePhases::default();
        let mut watch = Stopwatch::start();
        self.dirty.copy_ahead(&self.machine, into)?;
        phases.ahead = watch.lap();
        phases.pages_ahead = into.pages.len();
        let captured = self.capture_paused(epoch, into, &mut phases, stay);
        if captured.is_err() {
            self.dirty.give_back(into);
        }
        captured?;
        self.last_pause = phases;
        log_epoch(epoch, into, &phases);
        Ok(())
    }

    /// The part of an epoch's end during which the guest stands still. Everything that can
    /// fail comes before the harvest is handed out.
    fn capture_paused(
        &mut self,
        epoch: u64,
        into: &mut Capture,
        phases: &mut PausePhases,
        stay: bool,
    ) -> Result<(), Error> {
        let mut paused = self.machine.pause(phases)?;
        let mut watch = Stopwatch::start();
        let state = self.machine.save(&mut paused)?;
        checkpoint::encode(&state, &mut into.state)?;
        phases.capture = watch.lap();
        self.dirty.harvest(&self.machine)?;
        phases.harvest = watch.lap();
        self.dirty.copy_rest(&self.machine, into);
        phases.copy = watch.lap();
        into.disk_writes.clear();
        for device in &mut paused.devices {
            let writes = device.take_disk_writes();
            into.disk_writes.extend(writes.into_iter().map(from_device));
            self.disks.begin_point(&mut **device);
        }
        self.disks.point_begun();
        self.machine.gate().seal(epoch);
        if stay {
            paused.stay();
            self.machine.inbound().record(true);
            self.standing = Some(state);
            self.forwarding = true;
        } else {
            drop(paused);
        }
        self.machine.inbound().seal(epoch);
        phases.resume = watch.lap();
        Ok(())
    }

    fn track(&mut self, on: bool) {
        for device in self.machine.devices() {
            let mut device = lock(device);
            device.record_disk_writes(on);
            device.take_disk_writes();
        }
        if on || !self.forwarding {
            self.machine.inbound().record(on);
        }
        self.dirty.clear(&self.machine);
    }
}

fn log_epoch(epoch: u64, capture: &Capture, phases: &PausePhases) {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    tracing::debug!(
        target: "evertwin::epoch",
        epoch,
        pages = capture.pages.len(),
        pages_ahead = phases.pages_ahead,
        state_bytes = capture.state.len(),
        ahead_us = us(phases.ahead),
        kick_us = us(phases.kick),
        quiesce_us = us(phases.quiesce),
        harvest_us = us(phases.harvest),
        capture_us = us(phases.capture),
        copy_us = us(phases.copy),
        resume_us = us(phases.resume),
        pause_us = us(phases.total()),
        "epoch captured"
    );
}

fn from_device(write: DeviceWrite) -> DiskWrite {
    let DeviceWrite { disk, offset, data } = write;
    let data = match data {
        DeviceData::Bytes(bytes) => DiskData::Bytes(bytes),
        DeviceData::Zeroes { len, unmap } => DiskData::Zeroes { len, unmap },
    };
    DiskWrite { disk, offset, data }
}

fn to_device_write(write: &DiskWrite) -> DeviceWrite {
    let DiskWrite { disk, offset, data } = write;
    DeviceWrite {
        disk: *disk,
        offset: *offset,
        data: match data {
            DiskData::Bytes(bytes) => DeviceData::Bytes(bytes.clone()),
            DiskData::Zeroes { len, unmap } => DeviceData::Zeroes {
                len: *len,
                unmap: *unmap,
            },
        },
    }
}

fn from_device_frame(frame: DeviceFrame) -> InboundFrame {
    let DeviceFrame { card, epoch, bytes } = frame;
    InboundFrame { card, epoch, bytes }
}

fn to_device(frame: InboundFrame) -> DeviceFrame {
    let InboundFrame { card, epoch, bytes } = frame;
    DeviceFrame { card, epoch, bytes }
}

fn failed(error: impl Into<Error>) -> MachineError {
    MachineError::new(error.into())
}

fn outside(page: u64) -> MachineError {
    MachineError::new(format!("page {page:#x} lies outside the guest's memory"))
}

impl Replicated for Twin {
    fn identity(&self) -> Identity {
        if self.disks_only.is_some() {
            return DisksOnly::identity(&self.machine);
        }
        let regions = memory::region_list(self.machine.memory());
        Identity {
            vm: self.machine.config().name.clone(),
            lease: None,
            memory: regions
                .into_iter()
                .map(|(start, len)| MemoryRegion { start, len })
                .collect(),
            vcpus: self.machine.config().vcpus,
            devices: self.machine.device_list(),
            cpu: cpuid_of_first_vcpu(self.machine.vm().cpuid())
                .as_slice()
                .iter()
                .map(|leaf| CpuLeaf {
                    function: leaf.function,
                    index: leaf.index,
                    registers: [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx],
                })
                .collect(),
            // All vCPUs have the same.
            msrs: self
                .machine
                .vcpus()
                .first()
                .map(|vcpu| vcpu.msrs().to_vec())
                .unwrap_or_default(),
        }
    }

    fn replicate_all(&mut self, all: bool) -> Result<(), MachineError> {
        self.set_disks_only(!all).map_err(failed)
    }

    fn boot(&mut self) -> Result<(), MachineError> {
        // This twin may have been a standby before.
        self.disks.take()?;
        self.machine.boot().map_err(failed)
    }

    fn hold_output(&mut self) {
        match &self.disks_only {
            None => self.machine.gate().hold(),
            Some(_) => DisksOnly::hold(&self.machine),
        }
    }

    fn open_output(&mut self) {
        if self.disks_only.is_some() {
            DisksOnly::open(&self.machine);
        }
        self.machine.gate().open();
    }

    fn drop_output(&mut self) {
        self.machine.gate().drop_held();
    }

    fn release_through(&mut self, epoch: u64) {
        match self.disks_only {
            None => self.machine.gate().release_through(epoch),
            Some(_) => DisksOnly::release(&self.machine, epoch),
        }
    }

    fn start_tracking(&mut self) {
        match &self.disks_only {
            None => self.dirty.start(),
            Some(only) => only.record(&self.machine, true),
        }
    }

    fn tracking_started(&mut self) -> Result<(), MachineError> {
        if self.disks_only.is_some() {
            return Ok(());
        }
        self.dirty.started(&self.machine).map_err(failed)?;
        self.track(true);
        Ok(())
    }

    fn tracking_switched(&self) -> RawFd {
        self.dirty.switched()
    }

    fn stop_tracking(&mut self) {
        if let Some(only) = &self.disks_only {
            return only.record(&self.machine, false);
        }
        self.dirty.stop();
        self.track(false);
    }

    fn harvest_live(&mut self, pages: &mut Vec<u64>) -> Result<(), MachineError> {
        if self.disks_only.is_some() {
            pages.clear();
            return Ok(());
        }
        self.dirty.take(&self.machine, pages).map_err(failed)
    }

    fn read_disks(
        &mut self,
        from: DiskPosition,
        limit: usize,
        writes: &mut Vec<DiskWrite>,
    ) -> Result<Option<DiskPosition>, MachineError> {
        let mut next = None;
        for (index, device) in self.machine.devices().iter().enumerate().skip(from.device) {
            let offset = if index == from.device { from.offset } else { 0 };
            let contents = lock(device)
                .next_disk_contents(offset, limit)
                .map_err(MachineError::new)?;
            if let Some(piece) = contents {
                next = Some(DiskPosition {
                    device: index,
                    offset: piece.offset + piece.data.span(),
                });
                writes.push(from_device(piece));
                break;
            }
        }
        // After the contents: where both have the same blocks, these are not older.
        for device in self.machine.devices() {
            let live = lock(device).take_disk_writes();
            writes.extend(live.into_iter().map(from_device));
        }
        Ok(next)
    }

    fn read_pages(&self, pages: &[u64], into: &mut Vec<u8>) {
        let old = into.len();
        into.resize(old + pages.len() * PAGE_SIZE as usize, 0);
        copy_pages(self.machine.memory(), pages, &mut into[old..]);
    }

    fn capture(&mut self, epoch: u64, into: &mut Capture) -> Result<(), MachineError> {
        if self.disks_only.is_some() {
            DisksOnly::capture(&self.machine, &mut self.disks, epoch, into);
            return Ok(());
        }
        self.end_epoch(epoch, into, false).map_err(failed)
    }

    fn capture_last(&mut self, epoch: u64, into: &mut Capture) -> Result<(), MachineError> {
        if self.disks_only.is_some() {
            return Err(MachineError::new(
                "a guest whose memory is not replicated can't be handed over",
            ));
        }
        self.end_epoch(epoch, into, true).map_err(failed)
    }

    fn stop_forwarding(&mut self) {
        if std::mem::take(&mut self.forwarding) {
            self.machine.inbound().record(false);
        }
    }

    fn receive(&mut self, frames: Vec<InboundFrame>) {
        let frames: Vec<_> = frames.into_iter().map(to_device).collect();
        for device in self.machine.devices() {
            lock(device).receive_again(&frames);
        }
    }

    fn slow_guest(&mut self, percent: u8) {
        if let Err(error) = self.machine.slow(percent) {
            tracing::warn!(%error, "the guest's speed can't be changed");
        }
    }

    fn lease(&mut self, until: Option<Duration>) {
        self.machine.gate().lease(until);
    }

    fn stop_guest(&mut self) -> Result<(), MachineError> {
        // Breaks the lease on purpose.
        fail::fail_point!("ha::no_lease", |_| Ok(()));
        self.machine.stop().map_err(failed)
    }

    fn continue_guest(&mut self) -> Result<(), MachineError> {
        self.machine.go_on().map_err(failed)
    }

    fn redirty(&mut self, pages: &[u64]) {
        self.dirty.insert(pages);
    }

    fn fence(&mut self) {
        self.machine.halt();
    }

    fn store_pages(&mut self, pages: &[u64], bytes: &[u8]) -> Result<(), MachineError> {
        let mut pages = pages.iter().zip(bytes.chunks_exact(PAGE_SIZE as usize));
        pages.try_for_each(|(page, bytes)| self.store_part(*page, 0, bytes))
    }

    fn store_part(&mut self, page: u64, at: usize, bytes: &[u8]) -> Result<(), MachineError> {
        let first = page.checked_mul(PAGE_SIZE);
        let address = first.and_then(|first| first.checked_add(at as u64));
        let address = GuestAddress(address.ok_or_else(|| outside(page))?);
        let stored = self.machine.memory().write_slice(bytes, address);
        stored.map_err(|_| outside(page))
    }

    fn held_disks(&mut self, runs: usize) -> Vec<HeldDisk> {
        // What came over an earlier link is part of it. Where that failed the run is about to end.
        let _ = self.disks.settle();
        disks::held(&self.machine, runs)
    }

    fn plan_copies(&mut self, held: Option<&[HeldDisk]>, base: Option<NewBase>) -> DiskPlan {
        disks::plan(&self.machine, held, base)
    }

    fn base_is_known(&mut self, point: u128) {
        disks::base_is_known(&self.machine, point);
    }

    fn knows_point(&self, point: u128) -> bool {
        disks::knows_point(&self.machine, point)
    }

    fn begin_copies(&mut self, copies: &[DiskCopy], base: Option<&CopyBase>) {
        self.disks.begin_copies(&self.machine, copies, base);
    }

    fn copied(&mut self, to: DiskPosition) {
        self.disks.copied(to);
    }

    fn copies_begun(&mut self, wait: bool) -> Option<Result<(), MachineError>> {
        self.disks.copies_begun(wait)
    }

    fn wants_point(&self) -> bool {
        disks::wants_point(&self.machine)
    }

    fn begin_point(&mut self, point: u128) -> Vec<u128> {
        self.disks.point_is_due(&self.machine, point)
    }

    fn follow_point(&mut self, point: u128, keep: &[u128]) {
        self.disks.follow_point(point, keep);
    }

    fn take_reached_point(&mut self) -> Option<u128> {
        self.disks.take_reached(&self.machine)
    }

    fn withhold_failures(&mut self, on: bool) {
        disks::withhold_failures(&self.machine, on);
    }

    fn take_disk_failure(&mut self) -> Option<String> {
        disks::take_failure(&self.machine)
    }

    fn disks_changed(&self) -> RawFd {
        self.machine.disks_changed().as_raw_fd()
    }

    fn confirm_point(&mut self, point: u128) {
        self.disks.confirm_point(&self.machine, point);
    }

    fn write_disks(&mut self, writes: &[DiskWrite]) -> Result<(), MachineError> {
        self.disks
            .fill(writes.iter().map(to_device_write).collect())
    }

    fn is_behind(&self) -> bool {
        self.disks.is_behind()
    }

    fn check_repeated(&self) -> Result<(), MachineError> {
        self.disks.check()
    }

    fn zero_pages(&mut self, pages: &[u64]) -> Result<(), MachineError> {
        let mut now = [0; PAGE_SIZE as usize];
        for page in pages {
            let address = page.checked_mul(PAGE_SIZE).ok_or_else(|| outside(*page))?;
            let address = GuestAddress(address);
            let memory = self.machine.memory();
            memory
                .read_slice(&mut now, address)
                .map_err(|_| outside(*page))?;
            // A page that was never written costs the host nothing: keep it so.
            if now.iter().any(|byte| *byte != 0) {
                memory
                    .write_slice(&[0; PAGE_SIZE as usize], address)
                    .map_err(|_| outside(*page))?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, state: &[u8], disk_writes: &[DiskWrite]) -> Result<(), MachineError> {
        match self.disks_only {
            None => {
                let state = checkpoint::decode(state).map_err(failed)?;
                growth::follow(&self.machine, state.grown_disks());
                self.standing = Some(state);
            }
            Some(_) => {
                let grown = DisksOnly::check(state)?;
                let of = |disk: u32| grown.iter().find(|(grown, _)| *grown == disk);
                disks::each(&self.machine, |disk| {
                    if let Some((_, sectors)) = of(disk.number()) {
                        disk.follow_growth(*sectors);
                    }
                });
            }
        }
        self.disks
            .apply(disk_writes.iter().map(to_device_write).collect())
    }

    fn promote(&mut self, inbound: Vec<InboundFrame>) -> Result<(), MachineError> {
        self.disks.take()?;
        if self.disks_only.is_some() {
            return DisksOnly::boot(&mut self.machine).map_err(failed);
        }
        let state = self
            .standing
            .take()
            .ok_or_else(|| MachineError::new("no committed state to promote"))?;
        self.stop_forwarding();
        // Before the devices move: what has come in since is newer.
        self.receive(inbound);
        self.machine.restore(state).map_err(failed)?;
        for device in self.machine.devices() {
            lock(device).announce();
        }
        Ok(())
    }

    fn take_inbound(&mut self) -> Vec<InboundFrame> {
        let frames = self.machine.inbound().take();
        frames.into_iter().map(from_device_frame).collect()
    }

    fn inbound_waiting(&self) -> RawFd {
        self.machine.inbound().waiting()
    }

    fn output_waiting(&self) -> RawFd {
        self.machine.gate().waiting().as_raw_fd()
    }

    fn exited(&self) -> RawFd {
        self.machine.exit().event().as_raw_fd()
    }

    fn after_guest_exit(&mut self) -> Result<bool, MachineError> {
        self.machine.after_guest_exit().map_err(failed)
    }

    fn failure(&self) -> Option<MachineError> {
        self.machine.failure().map(MachineError::new)
    }
}
