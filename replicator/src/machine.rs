//! What the replicator needs of a virtual machine.
//!
//! The VMM implements [`Machine`] once, for both roles: the primary's methods drive a
//! running guest, the standby's fill a stopped one. The replicator calls all of them
//! from one thread.

mod growth;
mod scrub;

use std::error::Error as StdError;
use std::ops::Range;
use std::os::fd::RawFd;
use std::time::Duration;

use bytes::Bytes;
pub use growth::{DiskRoom, Growing, RoomMade};
pub use scrub::{
    BLOCK_BYTES, BlockSum, CHECK_BLOCKS, DiskCheck, DiskChecked, DiskSize, Scrubbed, Summed,
};

/// Bytes in a guest page. Page numbers are guest physical addresses shifted by 12.
pub const PAGE_SIZE: usize = 4096;

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First guest physical address, a multiple of [`PAGE_SIZE`].
    pub start: u64,
    /// Length in bytes, a multiple of [`PAGE_SIZE`], not zero.
    pub len: u64,
}

/// What must be the same on both twins for one to take over from the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the VM in its configuration, at most 64 bytes.
    pub vm: String,
    /// How long a primary's guest may run on its standby's last word, where only disks are replicated.
    /// None: all of the guest is. The replicator fills it in.
    pub lease: Option<Duration>,
    /// Guest memory that is replicated, in ascending order, at most 64 regions.
    pub memory: Vec<MemoryRegion>,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The devices in order, each with what matters of its configuration: at most 64, of at
    /// most 128 bytes.
    pub devices: Vec<String>,
    /// The CPU shown to the guest: at most 256 leaves.
    pub cpu: Vec<CpuLeaf>,
    /// Indices of the model-specific registers that belong to a vCPU's state: at most 1024.
    pub msrs: Vec<u32>,
}

/// One answer of the CPUID instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLeaf {
    /// EAX on entry.
    pub function: u32,
    /// ECX on entry.
    pub index: u32,
    /// EAX, EBX, ECX and EDX.
    pub registers: [u32; 4],
}

/// A write that a guest made to one of its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskWrite {
    /// Index of the disk in the configuration.
    pub disk: u32,
    /// Offset on the disk in bytes.
    pub offset: u64,
    /// What was written.
    pub data: DiskData,
}

/// What a guest wrote to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskData {
    /// These bytes.
    Bytes(Bytes),
    /// Zeroes, which travel as a range.
    Zeroes {
        /// How many bytes, not zero.
        len: u64,
        /// Whether the disk's space was given back.
        unmap: bool,
    },
}

impl DiskData {
    /// Bytes of the disk that it covers.
    pub fn span(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeroes { len, .. } => *len,
        }
    }
}

/// A frame that a guest got from the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundFrame {
    /// Index of the network card in the configuration.
    pub card: u32,
    /// The epoch in which the guest got it.
    pub epoch: u64,
    /// The frame behind its card's header, at most 65,562 bytes.
    pub bytes: Vec<u8>,
}

/// What a standby knows of what one of its disks holds.
///
/// A *point* is a name for an instant at which both twins' disks held the same, durably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldDisk {
    /// Index of the disk in the configuration.
    pub disk: u32,
    /// Points that it knows, oldest first.
    pub points: Vec<u128>,
    /// Blocks of 64 KiB that may have been written to since the oldest point.
    pub changed: Vec<Range<u32>>,
    /// Why there is no point, if there is none; or why the disk is no whole copy.
    pub distrust: Option<String>,
}

/// How one disk is copied to the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskCopy {
    /// Index of the disk in the configuration.
    pub disk: u32,
    /// Only what may have changed since this point. None: everything.
    pub from: Option<u128>,
}

/// How all disks are copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskPlan {
    /// Each disk.
    pub copies: Vec<DiskCopy>,
    /// Bytes that have to be looked at.
    pub bytes: u64,
    /// What of each disk is copied.
    pub lacks: Vec<LackingDisk>,
}

/// The instant at which a copy of the disks begins, for which there is a name on both sides. A copy that was interrupted goes on from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyBase {
    /// Its name, which is a point's.
    pub point: u128,
    /// What each disk lacks then.
    pub lacks: Vec<LackingDisk>,
}

/// What the standby's disk does not have at a copy's begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LackingDisk {
    /// Index of the disk in the configuration.
    pub disk: u32,
    /// Blocks of 64 KiB that the copy brings.
    pub blocks: Vec<Range<u32>>,
}

/// The name for a copy's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewBase {
    /// The point.
    pub point: u128,
    /// How many runs of blocks there is room for, to tell what all disks lack.
    pub runs: usize,
}

/// How far the copy of all disks has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskPosition {
    /// Index of the device that the disk belongs to.
    pub device: usize,
    /// Offset on the disk in bytes.
    pub offset: u64,
}

impl DiskPosition {
    /// Behind the last disk's end.
    pub const END: Self = Self {
        device: usize::MAX,
        offset: u64::MAX,
    };
}

/// One epoch: everything that changed in the VM since the epoch before it.
///
/// The buffers are reused from epoch to epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// vCPUs, interrupt controllers, clock and devices, opaque to the replicator.
    pub state: Vec<u8>,
    /// Numbers of the pages dirtied in the epoch.
    pub pages: Vec<u64>,
    /// Contents of `pages` in the same order: `pages.len() * PAGE_SIZE` bytes.
    pub bytes: Vec<u8>,
    /// Disk writes completed in the epoch, in order.
    pub disk_writes: Vec<DiskWrite>,
}

impl Capture {
    /// Empties the capture and keeps its buffers.
    pub fn clear(&mut self) {
        let Self {
            state,
            pages,
            bytes,
            disk_writes,
        } = self;
        state.clear();
        pages.clear();
        bytes.clear();
        disk_writes.clear();
    }
}

/// A [`Machine`] could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(#[source] Box<dyn StdError + Send + Sync>);

impl MachineError {
    /// Wraps the machine's own error (or a message).
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// A virtual machine as seen by the replicator.
///
/// A machine starts stopped, with its output held and nothing tracked.
pub trait Machine: Scrubbed + Growing + Send {
    /// What the other twin must agree with.
    fn identity(&self) -> Identity;

    /// Whether all of the guest is replicated from now on, or only its disks. Nothing is tracked, and nothing is held; the descriptors
    /// that this machine has given stay what they are.
    ///
    /// # Errors
    /// When this process can have no further descriptor.
    fn replicate_all(&mut self, all: bool) -> Result<(), MachineError>;

    /// Cold start: runs the guest from its kernel.
    ///
    /// # Errors
    /// When the guest can't be loaded or its vCPUs can't be started.
    fn boot(&mut self) -> Result<(), MachineError>;

    /// Closes the output gate: from now on everything is held (I1).
    fn hold_output(&mut self);

    /// Opens the output gate: emits all that is held and lets the rest pass.
    fn open_output(&mut self);

    /// Drops all that is held: the guest that made it goes on elsewhere, from an earlier epoch.
    fn drop_output(&mut self);

    /// Emits the output of all epochs up to and including `epoch`.
    fn release_through(&mut self, epoch: u64);

    /// Begins to start dirty logging and the recording of disk writes. A hypervisor may take
    /// its time: [`Machine::tracking_started`] has to follow before anything is read.
    fn start_tracking(&mut self);

    /// Waits until what [`Machine::start_tracking`] began is done. Every page counts as unsent:
    /// the caller sends all memory after this.
    ///
    /// # Errors
    /// When the hypervisor refuses to log.
    fn tracking_started(&mut self) -> Result<(), MachineError>;

    /// An eventfd, written when [`Machine::tracking_started`] has nothing to wait for. The
    /// replicator polls it and reads it.
    fn tracking_switched(&self) -> RawFd;

    /// Ends what [`Machine::start_tracking`] began, now or soon, and forgets all that is dirty.
    fn stop_tracking(&mut self);

    /// Replaces `pages` with the numbers of the pages dirtied since the last harvest,
    /// while the guest runs.
    ///
    /// # Errors
    /// When the dirty log can't be read; no page is lost then (I5).
    fn harvest_live(&mut self, pages: &mut Vec<u64>) -> Result<(), MachineError>;

    /// Appends to `writes` the next piece of disk contents at or after `from`, at most
    /// `limit` bytes of it, and after it all disk writes that completed since the last call
    /// or capture, while the guest runs. Returns where to go on, or none at the last disk's
    /// end.
    ///
    /// # Errors
    /// When a disk can't be read.
    fn read_disks(
        &mut self,
        from: DiskPosition,
        limit: usize,
        writes: &mut Vec<DiskWrite>,
    ) -> Result<Option<DiskPosition>, MachineError>;

    /// Appends the contents of `pages` to `into`: `pages.len() * PAGE_SIZE` bytes.
    /// The guest may be running.
    fn read_pages(&self, pages: &[u64], into: &mut Vec<u8>);

    /// Ends the epoch: pauses the guest, quiesces the devices, harvests, captures and
    /// copies everything into `into` (replacing what it held), seals the output gate
    /// with `epoch`, and resumes the guest.
    ///
    /// # Errors
    /// When any step fails; the guest runs on and no page is lost then (I5).
    fn capture(&mut self, epoch: u64, into: &mut Capture) -> Result<(), MachineError>;

    /// Ends the guest's last epoch here: as [`Machine::capture`], but the guest stays where it
    /// is, and this machine holds `epoch` as if it had been applied. Frames that come from the
    /// network from now on are for [`Machine::take_inbound`], until [`Machine::stop_forwarding`].
    ///
    /// # Errors
    /// When any step fails; the guest runs on and no page is lost then (I5).
    fn capture_last(&mut self, epoch: u64, into: &mut Capture) -> Result<(), MachineError>;

    /// Keeps from now on what comes from the network: nobody takes it any more.
    fn stop_forwarding(&mut self);

    /// Gives frames to the running guest that came for it where it ran before.
    fn receive(&mut self, frames: Vec<InboundFrame>);

    /// Keeps each vCPU of the running guest out of it for this share of the time, in percent, up
    /// to 99; 0: it runs all the time again. Nothing else may wait for that: a vCPU that is kept
    /// out pauses, ends and is fenced as fast as one that runs. A guest that boots again stays as
    /// slow.
    fn slow_guest(&mut self, percent: u8);

    /// The guest may run until then, a reading of `CLOCK_BOOTTIME`: after it nothing of the guest may get
    /// out any more, whatever keeps the caller from saying so. None: for as long as it likes.
    fn lease(&mut self, until: Option<Duration>);

    /// Stops the guest where it is: nothing of it gets out until [`Machine::continue_guest`].
    ///
    /// # Errors
    /// When a vCPU can't be stopped.
    fn stop_guest(&mut self) -> Result<(), MachineError>;

    /// Lets a guest that was stopped go on.
    ///
    /// # Errors
    /// When a vCPU can't be started.
    fn continue_guest(&mut self) -> Result<(), MachineError>;

    /// Makes pages that were harvested dirty again, because they reached no committed
    /// epoch (I5).
    fn redirty(&mut self, pages: &[u64]);

    /// Stops the guest for good and discards the output that is held (I2).
    fn fence(&mut self);

    /// Standby: writes `bytes` (`pages.len() * PAGE_SIZE`) to the given pages.
    ///
    /// # Errors
    /// When a page lies outside the guest's memory.
    fn store_pages(&mut self, pages: &[u64], bytes: &[u8]) -> Result<(), MachineError>;

    /// Standby: writes `bytes` to a page, from its byte `at` on.
    ///
    /// # Errors
    /// When they lie outside the guest's memory.
    fn store_part(&mut self, page: u64, at: usize, bytes: &[u8]) -> Result<(), MachineError>;

    /// Standby: what its disks hold. `runs` is how many runs of blocks there is room for, the same number for each disk; where
    /// there are more, neighbours are told as one.
    fn held_disks(&mut self, runs: usize) -> Vec<HeldDisk>;

    /// Primary: decides how each disk is copied, given what the standby has said, if it could. [`Machine::read_disks`] gives what
    /// has to be copied then. Writes are recorded by now: those that come after this are sent besides. `base` names this instant, if the
    /// standby can go on with an interrupted copy: what is written here since is noted.
    fn plan_copies(&mut self, held: Option<&[HeldDisk]>, base: Option<NewBase>) -> DiskPlan;

    /// Primary: the standby knows the point at which its copies began, durably. It is made durable here, and all others are forgotten
    /// after that.
    fn base_is_known(&mut self, point: u128);

    /// Primary: whether this point is durable on all disks here.
    fn knows_point(&self, point: u128) -> bool;

    /// Standby: its disks are made copies from now on, those that are not named here from nothing: they read as zeroes then.
    /// Only begins to prepare them, which may take disks their time: [`Machine::copies_begun`] has to say so before anything is
    /// written to them. `base` is where they begin, if the primary has named it.
    fn begin_copies(&mut self, copies: &[DiskCopy], base: Option<&CopyBase>);

    /// Standby: all that the copies bring of the disks before this position was given to [`Machine::write_disks`]. Once that is durable, no
    /// later copy need bring it again.
    fn copied(&mut self, to: DiskPosition);

    /// Standby: whether the disks are ready to be filled, or why they can't be. None while they are being prepared; with `wait`
    /// that is waited for. Told once.
    fn copies_begun(&mut self, wait: bool) -> Option<Result<(), MachineError>>;

    /// Primary: whether a new point would save a later copy anything.
    fn wants_point(&self) -> bool;

    /// Primary: with the end of the epoch that is captured next both twins' disks hold the same. Returns the points that are
    /// durable here.
    fn begin_point(&mut self, point: u128) -> Vec<u128>;

    /// Standby: the epoch that was applied last is that point. Begins to make it durable, which
    /// [`Machine::take_reached_point`] tells; older points but `keep` can be forgotten.
    fn follow_point(&mut self, point: u128, keep: &[u128]);

    /// The point that was followed or confirmed and is durable on all disks here now. Told once.
    fn take_reached_point(&mut self) -> Option<u128>;

    /// Primary: keeps failures of this host's disks from the guest, whose requests stay in flight then, or tells it of them.
    fn withhold_failures(&mut self, on: bool);

    /// Primary: a failure that was kept from the guest, told once.
    fn take_disk_failure(&mut self) -> Option<String>;

    /// An eventfd, written when there may be something for [`Machine::take_reached_point`], [`Machine::copies_begun`],
    /// [`Machine::check_repeated`], [`Machine::take_disk_failure`], [`Machine::is_behind`] or [`Scrubbed`]. The replicator polls it and reads it.
    fn disks_changed(&self) -> RawFd;

    /// Primary: the standby has made the point durable. It is made so here, and all others are forgotten after that.
    fn confirm_point(&mut self, point: u128);

    /// Standby: so much is on its way to the disks that no more is to be brought for now. [`Machine::disks_changed`] says when to ask
    /// again.
    fn is_behind(&self) -> bool;

    /// Standby: has writes repeated on the disks, after all that was to be before.
    ///
    /// # Errors
    /// When a disk has failed, or is not as large as the primary's; perhaps only at a later call.
    fn write_disks(&mut self, writes: &[DiskWrite]) -> Result<(), MachineError>;

    /// Standby: fails if something could not be repeated on the disks. [`Machine::disks_changed`] says when to ask.
    ///
    /// # Errors
    /// As [`Machine::write_disks`].
    fn check_repeated(&self) -> Result<(), MachineError>;

    /// Standby: fills the given pages with zeroes. Worth its own implementation where a
    /// page that was never touched can be left untouched.
    ///
    /// # Errors
    /// When a page lies outside the guest's memory.
    fn zero_pages(&mut self, pages: &[u64]) -> Result<(), MachineError> {
        let zeroes = [0; PAGE_SIZE];
        pages
            .iter()
            .try_for_each(|page| self.store_pages(std::slice::from_ref(page), &zeroes))
    }

    /// Standby: makes `state` the one that [`Machine::promote`] restores, and has the disk writes brought to the disks, all of
    /// them or none if this host dies (I3). The epoch's pages were stored before.
    ///
    /// # Errors
    /// When the state is not one this machine can restore; and as [`Machine::write_disks`].
    fn apply(&mut self, state: &[u8], disk_writes: &[DiskWrite]) -> Result<(), MachineError>;

    /// Standby: restores the state applied last, announces the guest to the network, gives
    /// it the frames of `inbound` before any others, and runs it. The output gate stays as
    /// it was set before.
    ///
    /// # Errors
    /// When the state can't be restored or the vCPUs can't be started.
    fn promote(&mut self, inbound: Vec<InboundFrame>) -> Result<(), MachineError>;

    /// Frames that the guest got while it was tracked and since the last call, in order.
    /// Some may be left out: to lose one here is no worse than to lose it on the wire.
    fn take_inbound(&mut self) -> Vec<InboundFrame>;

    /// An eventfd, written when there is something for [`Machine::take_inbound`]. The
    /// replicator polls it and reads it.
    fn inbound_waiting(&self) -> RawFd;

    /// An eventfd, written when held output starts to wait for an epoch's end. The
    /// replicator polls it and reads it.
    fn output_waiting(&self) -> RawFd;

    /// A descriptor that becomes readable when the guest has ended (reset, shutdown or panic)
    /// or this host can't go on with it.
    fn exited(&self) -> RawFd;

    /// Acts on the guest's end: true if the guest was booted again and goes on as the same VM,
    /// false if this is the end.
    ///
    /// # Errors
    /// When it should be booted again and can't be; its twin may be able to.
    fn after_guest_exit(&mut self) -> Result<bool, MachineError>;

    /// Why this host can't go on with the guest, if so. Its twin may: it is not the guest's
    /// own end.
    fn failure(&self) -> Option<MachineError>;
}
